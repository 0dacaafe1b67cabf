"""Replying: an answer on its way out, whole or in parts, and how it ends when it is cut short."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..schemas.asgi import Message, RawHeaders, Send
from ..schemas.endpoint import Endpoint
from ..schemas.foreign import ForeignResponse
from ..schemas.request import Request
from ..schemas.response import EVENTS, Response

AddHeaders = Callable[[Request], RawHeaders]
BODILESS = (204, 304)

class Reply:
    """What was sent of one answer so far. Owned by the request's task."""

    def __init__(self, request: Request, send: Send, added: tuple[AddHeaders, ...]) -> None:
        self._request, self._send, self._added = request, send, added
        self.endpoint: Endpoint | None = None
        self.status = 0  # 0: no head was sent
        self.bytes_out = 0
        self.error_type: str | None = None
        self.ended = False  # its last part is on its way: who hangs up now misses nothing
        self._streams_events = False

    async def send(self, response: Response) -> None:
        """Send all of `response`, then do what it leaves to be done after it."""
        try:
            if isinstance(response, ForeignResponse):
                await response.app(self._request.scope, _nothing, self._foreign)
            elif response.stream is None:
                await self._head(response, len(response.body))
                await self._part(b"" if self._request.method == "HEAD" else response.body, False)
            else:
                self._streams_events = response.media_type == EVENTS
                await self._head(response, None)
                async for part in response.stream:
                    await self._part(part, True)
                await self._part(b"", False)
        finally:
            if response.stream is not None:
                with anyio.CancelScope(shield=True):
                    await response.stream.aclose()
        if response.after is not None:
            await response.after()

    async def fail(self, response: Response) -> None:
        """Answer with an error; in the middle of a stream, end it with one."""
        if self.status == 0:
            await self.send(response)
        else:
            await self.cut_short(response)

    async def cut_short(self, response: Response) -> None:
        """End an answer that was stopped: with `response` if nothing was sent, else with a last event."""
        if self.status == 0:
            await self.send(response)
            return
        self.error_type = response.headers.get("x-fal-error-type", self.error_type)
        self.status = response.status
        if self._streams_events:
            await self._part(b"data: " + response.body + b"\n\n", True)
            await self._part(b"", False)

    async def _head(self, response: Response, length: int | None) -> None:
        request = self._request
        self.status = response.status
        self.error_type = response.headers.get("x-fal-error-type")
        headers: RawHeaders = [(b"x-fal-request-id", (request.id or "").encode("latin-1"))]
        if response.media_type is not None:
            headers.append((b"content-type", response.media_type.encode("latin-1")))
        if length is not None and response.status >= 200 and response.status not in BODILESS and "content-length" not in response.headers:
            headers.append((b"content-length", b"%d" % length))
        for name, value in response.headers.items():
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
        for added in self._added:
            headers += added(request)
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def _part(self, part: bytes, more: bool) -> None:
        self.bytes_out += len(part)
        self.ended = not more
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def _foreign(self, message: Message) -> None:
        """Messages of a Starlette Response on their way out."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-fal-request-id", (self._request.id or "").encode("latin-1"))]
            for added in self._added:
                headers += added(self._request)
            message = {**message, "headers": headers}
        else:
            self.bytes_out += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)


async def _nothing() -> Message:
    """`receive` for a Starlette Response: the body is read, and the hang-up is watched elsewhere."""
    await anyio.sleep_forever()
    raise AssertionError


