"""How values of one type cross the wire. Chosen once per type, at assembly."""

from __future__ import annotations

from typing import Any, Protocol


class Codec(Protocol):
    """Turns JSON into values of one type and back. Made by the `type_codec` hook."""

    def decode(self, body: bytes) -> Any:
        """Parse and validate a JSON text. Raises InvalidInput, its `loc`s without a leading "body"."""
        ...

    def convert(self, value: Any, *, text: bool = False) -> Any:
        """Validate what JSON became (dict, list, str …). Raises InvalidInput.

        With `text`, `value` is a str from a query, path or header: "3" is a valid int there.
        """
        ...

    def encode(self, value: Any) -> bytes:
        """JSON of `value`, checked against the type. Raises InvalidOutput when it does not fit."""
        ...

    def schema(self, *, output: bool) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """JSON Schema (2020-12) and the components it refers to as `#/components/schemas/Name`."""
        ...
