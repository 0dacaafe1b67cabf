"""What goes back to a caller: a status, headers and bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

JSON = "application/json"
EVENTS = "text/event-stream"


class Stream(Protocol):
    """The parts of a body, in order. Whoever sends them closes it, also when it was never read.

    One that sends events, each whole within a part, counts them in an attribute `items`.
    """

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...


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
        stream: Stream | None = None,
    ) -> None:
        self.stream = stream
        self.after: Callable[[], Awaitable[None]] | None = None  # called once the answer is sent
        self.body = body.encode() if isinstance(body, str) else body
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()} if headers else {}
        self.media_type = media_type


class StreamingResponse(Response):
    """An answer in parts that the app frames itself: `content` yields str or bytes, sync or async.

    With `media_type="text/event-stream"` each part is `data: ...` and an empty line. Sync content
    runs where sync endpoints run, and is closed when the caller leaves. The names of the arguments
    are Starlette's, whose own class works as well.
    """

    __slots__ = ("content",)

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(b"", status_code, headers, media_type)
        self.content = content
        self.after = background


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`value`, encoded by msgspec, as `application/json`."""
    return Response(msgspec.json.encode(value), status, headers, JSON)
