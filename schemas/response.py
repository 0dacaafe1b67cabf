"""What goes back to a caller: a status, headers and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

JSON = "application/json"


class Response:
    """A whole answer. Return one from an endpoint to send it untouched.

    An endpoint with a parameter annotated `runner.Response` is handed an empty one: headers and
    status set on it reach the caller together with the value that the endpoint returns.
    """

    __slots__ = ("body", "headers", "media_type", "status")

    def __init__(
        self,
        body: bytes | str = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.status = status
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.media_type = media_type


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`value`, encoded by msgspec, as `application/json`."""
    return Response(msgspec.json.encode(value), status, headers, JSON)
