"""Replying: an answer on its way out, whole or in parts, and how it ends when it is cut short.

A silent stream of events gets a comment now and then, so that nobody in between takes its
connection for dead. One that fails ends with an event in the shape of an error body, and then
without the end that HTTP/1.1 asks for: whoever reads it raises, where a clean end would look like
success. (Hypercorn 0.18 cannot break off a stream of HTTP/2: there the end is clean.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import msgspec

from ..schemas.asgi import Message, RawHeaders, Send
from ..schemas.endpoint import Endpoint
from ..schemas.events import ascii_only
from ..schemas.foreign import ForeignResponse
from ..schemas.request import Request
from ..schemas.response import EVENTS, JSON, Response, Stream

AddHeaders = Callable[[Request], RawHeaders]
BODILESS = (204, 304)
JSON_TYPE = (b"content-type", JSON.encode())
PING = b": ping\n\n"


class Reply:
    """What was sent of one answer so far. Owned by the request's task."""

    def __init__(self, request: Request, send: Send, added: tuple[AddHeaders, ...], ping_seconds: float = 15) -> None:
        self._request, self._send, self._added, self._ping_seconds = request, send, added, ping_seconds
        self.endpoint: Endpoint | None = None
        self.route = ""  # of a plugin, as declared
        self.status = 0  # 0: no head was sent
        self.bytes_out = 0
        self.error_type: str | None = None
        self.ended = False  # its last part is on its way: who hangs up now misses nothing
        self.items: int | None = None  # of a stream of events
        self.why: str | None = None  # it ended; told of sockets only
        self.body = b""  # of the error that ended it
        self._streams_events = False
        self._at_boundary = True  # the last part ended an event
        self._sending = False
        self._parts = 0
        self._pinging: asyncio.Task[None] | None = None
        self._foreign_headers: RawHeaders = []  # that we add to a Starlette Response

    async def send(self, response: Response) -> None:
        """Send all of `response`, then do what it leaves to be done after it."""
        try:
            if isinstance(response, ForeignResponse):
                self._foreign_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
                await response.app(self._request.scope, _nothing, self._foreign)
            elif response.stream is None:
                body = b"" if self._request.method == "HEAD" else response.body
                if (shortcuts := self._request.shortcuts) is not None:
                    headers = self._headers(response, len(response.body))
                    self.bytes_out, self.ended = len(body), True
                    shortcuts.answer(response.status, headers, body)
                else:
                    await self._head(response, len(response.body))
                    await self._part(body, False)
            else:
                await self._stream(response, response.stream)
        finally:
            if response.stream is not None:
                self.items = getattr(response.stream, "items", None)
                with anyio.CancelScope(shield=True):
                    await response.stream.aclose()
        if response.after is not None:
            await response.after()

    async def _stream(self, response: Response, stream: Stream) -> None:
        self._streams_events = (response.media_type or "").startswith(EVENTS)
        await self._head(response, None)
        if self._request.method == "HEAD":
            return await self._part(b"", False)
        if self._streams_events:
            self._request.streams = True
            with self._pings():
                async for part in stream:
                    self._at_boundary = part.endswith(b"\n\n")
                    await self._part(part, True)
        else:
            async for part in stream:
                await self._part(part, True)
        await self._part(b"", False)

    @contextmanager
    def _pings(self) -> Iterator[None]:
        """Send a comment whenever nothing was sent for `ping_seconds`, and nothing is on its way."""
        loop, seen = asyncio.get_running_loop(), self._parts
        timer: asyncio.TimerHandle

        async def ping(parts: int) -> None:
            if self._parts == parts:  # nothing came between the timer and this task
                await self._part(PING, True)

        def look() -> None:
            nonlocal seen, timer
            if self._parts == seen and not self._sending and self._at_boundary:
                self._pinging = loop.create_task(ping(seen))
            seen = self._parts
            timer = loop.call_later(self._ping_seconds, look)

        timer = loop.call_later(self._ping_seconds, look)
        try:
            yield
        finally:
            timer.cancel()

    async def fail(self, response: Response) -> None:
        """Answer with an error; in the middle of a stream, end it with one."""
        if self.status == 0:
            self.body = response.body
            await self.send(response)
        else:
            await self.cut_short(response)

    async def cut_short(self, response: Response) -> None:
        """End an answer that was stopped: with `response` if nothing was sent, else with a last event."""
        if self.status == 0:
            await self.send(response)
            return
        self.error_type = response.headers.get("x-fal-error-type", self.error_type)
        self.status, self.body = response.status, response.body
        part = error_event(response) if self._streams_events else b""
        if part and not self._at_boundary:
            part = b"\n\n" + part
        await self._part(part, not self._request.scope.get("http_version", "1.1").startswith("2"))

    def outcome(self) -> dict[str, Any]:
        """How it ended, for the event log: the status and, of an error, the body."""
        return {"status": self.status or 499, **(error_body(self.body, self.error_type) if self.body else {})}

    async def _head(self, response: Response, length: int | None) -> None:
        headers = self._headers(response, length)
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})

    def _headers(self, response: Response, length: int | None) -> RawHeaders:
        request = self._request
        self.status = response.status
        self.error_type = response.headers.get("x-fal-error-type")
        headers: RawHeaders = [(b"x-fal-request-id", (request.id or "").encode("latin-1"))]
        if response.media_type == JSON:
            headers.append(JSON_TYPE)
        elif response.media_type is not None:
            headers.append((b"content-type", response.media_type.encode("latin-1")))
        if length is not None and response.status >= 200 and response.status not in BODILESS and "content-length" not in response.headers:
            headers.append((b"content-length", b"%d" % length))
        for name, value in response.headers.items():
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
        for added in self._added:
            headers += added(request)
        return headers

    async def _part(self, part: bytes, more: bool) -> None:
        self.bytes_out += len(part)
        self.ended = not more
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def _foreign(self, message: Message) -> None:
        """Messages of a Starlette Response on their way out."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *self._foreign_headers, (b"x-fal-request-id", (self._request.id or "").encode("latin-1"))]
            for added in self._added:
                headers += added(self._request)
            message = {**message, "headers": headers}
        else:
            self.bytes_out += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        await self._send(message)


def error_event(response: Response) -> bytes:
    """The last event of a stream that failed: its error body, with the `error_type` in it."""
    body = error_body(response.body, response.headers.get("x-fal-error-type"))
    return b"data: " + ascii_only(msgspec.json.encode(body)) + b"\n\n"


def error_body(encoded: bytes, error_type: str | None) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(encoded)
    except msgspec.DecodeError:
        body = encoded.decode(errors="replace")
    body = body if isinstance(body, dict) else {"detail": body}
    return {**body, "error_type": body.get("error_type") or error_type or "runner_server_error"}


async def _nothing() -> Message:
    """`receive` for a Starlette Response: the body is read, and the hang-up is watched elsewhere."""
    await anyio.sleep_forever()
    raise AssertionError


