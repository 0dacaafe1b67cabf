"""Replying: an answer on its way out, whole or in parts, and how it ends when it is cut short.

A silent stream of events gets a comment now and then, so that nobody in between takes its
connection for dead. One that fails ends with an event in the shape of an error body, and then
without the end that HTTP/1.1 asks for: whoever reads it raises, where a clean end would look like
success. (Hypercorn 0.18 cannot break off a stream of HTTP/2: there the end is clean.)
"""

from __future__ import annotations

import asyncio
import time
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

    # Most of it differs in few requests: an object has an attribute once it does.
    endpoint: Endpoint | None = None
    route = ""  # of a plugin, as declared
    status = 0  # 0: no head was sent
    bytes_out = 0
    error_type: str | None = None
    ended = False  # its last part is on its way: who hangs up now misses nothing
    items: int | None = None  # of a stream of events
    why: str | None = None  # it ended; told of sockets only
    body = b""  # of the error that ended it
    _streams_events = False
    _at_boundary = True  # the last part ended an event
    _sending = False
    _parts = 0
    _pinging: asyncio.Task[None] | None = None

    def __init__(self, request: Request, send: Send, added: tuple[AddHeaders, ...], ping_seconds: float = 15) -> None:
        self.request, self._send, self._added, self._ping_seconds = request, send, added, ping_seconds
        self.began = time.perf_counter()
        self._foreign_headers: RawHeaders = []  # that we add to a Starlette Response

    def send_at_once(self, response: Response) -> bool:
        """Send a whole `response` without waiting, where that can be; return whether it could."""
        shortcuts = self.request.shortcuts
        if shortcuts is None or response.stream is not None or response.after is not None or type(response) is not Response:
            return False
        request, body, added = self.request, response.body, self._added_headers()
        is_head = request.method == "HEAD"
        self.bytes_out, self.ended = 0 if is_head else len(body), True
        if response.status == 200 and response.media_type is JSON and not (added or response.headers or is_head):
            self.status = 200
            shortcuts.answer_json((request.id or "").encode("latin-1"), body)
        else:
            shortcuts.answer(response.status, self._headers(response, len(body)) + added, b"" if is_head else body)
        return True

    async def send(self, response: Response) -> None:
        """Send all of `response`, then do what it leaves to be done after it."""
        try:
            if isinstance(response, ForeignResponse):
                self._foreign_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
                await response.app(self.request.scope, _nothing, self._foreign)
            elif response.stream is None:
                body = b"" if self.request.method == "HEAD" else response.body
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
        if self.request.method == "HEAD":
            return await self._part(b"", False)
        if self._streams_events:
            self.request.streams = True
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
        await self._part(part, not self.request.scope.get("http_version", "1.1").startswith("2"))

    def outcome(self) -> dict[str, Any]:
        """How it ended, for the event log: the status and, of an error, the body."""
        return {"status": self.status or 499, **(error_body(self.body, self.error_type) if self.body else {})}

    async def _head(self, response: Response, length: int | None) -> None:
        added = self._added_headers()
        headers = self._headers(response, length) + added
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})

    def _headers(self, response: Response, length: int | None) -> RawHeaders:
        request = self.request
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
        return headers

    def _added_headers(self) -> RawHeaders:
        """Those of plugins, asked once for each answer. One that fails is left out of the answer that says so."""
        headers: RawHeaders = []
        for added in self._added:
            try:
                if more := added(self.request):
                    headers += more
            except Exception:
                self._added = tuple(other for other in self._added if other is not added)
                raise
        return headers

    async def _part(self, part: bytes, more: bool) -> None:
        self.bytes_out += len(part)
        self.ended = not more
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def _foreign(self, message: Message) -> None:
        """Messages of a Starlette Response on their way out."""
        if message["type"] == "http.response.start":
            added = self._added_headers()
            headers = [*message.get("headers", ()), *self._foreign_headers, (b"x-fal-request-id", (self.request.id or "").encode("latin-1")), *added]
            self.status = message["status"]
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


