"""What goes back to a caller: a status, headers and bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

JSON = "application/json"


class Response:
    """An answer: a whole body, or a `stream` of its parts. Return one from an endpoint to send it untouched.

    An endpoint with a parameter annotated `runner.Response` is handed an empty one: headers and
    status set on it reach the caller together with the value that the endpoint returns.
    """

    __slots__ = ("after", "body", "headers", "media_type", "status", "stream")

    def __init__(
        self,
        body: bytes | str = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        stream: AsyncGenerator[bytes, None] | None = None,
    ) -> None:
        self.stream = stream
        self.after: Callable[[], Awaitable[None]] | None = None  # called once the answer is sent
        self.body = body.encode() if isinstance(body, str) else body
        self.status = status
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.media_type = media_type


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`value`, encoded by msgspec, as `application/json`."""
    return Response(msgspec.json.encode(value), status, headers, JSON)
