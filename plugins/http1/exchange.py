"""An exchange: one request and its answer, as an ASGI app sees them.

A body is kept until the app asks for it. Head and body of an answer whose length is known go out
in one write. An app that returns before its answer is complete leaves the connection cut off, so
that no client takes half an answer for a whole one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ...schemas.asgi import Message, RawHeaders, Scope
from ...schemas.connection import SHORTCUTS
from ..logs import get_logger
from .heads import BODILESS, CHUNKED, CLOSE, CONTINUE, KEEP_ALIVE, Head, head, json_head

ASGI = {"version": "3.0", "spec_version": "2.3"}

BODY_AHEAD = 64 * 1024  # bytes of a body that are kept before reading pauses
JOINED = 64 * 1024  # a body up to this size is copied behind its head; a larger one goes beside it

log = get_logger("runner.http1")


class Line(Protocol):
    """What an exchange needs of its connection."""

    loop: asyncio.AbstractEventLoop
    room: asyncio.Event | None  # set once more may be written; None while nothing is held up

    scheme: str
    client: tuple[str, int] | None
    server: tuple[str, int] | None

    def write(self, *parts: bytes) -> None: ...
    def cut_off(self, exchange: Exchange) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def stays_open(self, exchange: Exchange) -> bool: ...
    def answered(self, exchange: Exchange) -> None: ...


class Exchange:
    """Owned by its connection, which tells it what arrives; the app calls `receive` and `send`, or the shortcuts."""

    # Most of it differs in few requests: an object has an attribute once it does.
    arrived = False  # the request is whole
    begun = False  # the head of the answer is out
    answered = False  # and the rest of it
    gone = False  # the client is
    task: asyncio.Task[None] | None = None  # in which the app's call waits
    _size = 0
    _told = False  # the app knows that the body is complete
    _waiter: asyncio.Future[None] | None = None
    _hangups: tuple[Callable[[], object], ...] = ()
    _status = 0
    _headers: RawHeaders  # with the status
    _left = 0  # bytes that Content-Length still promises
    _scope: Scope | None = None
    _write_part: Callable[[bytes, bytes, bool], None]  # set when the answer begins

    def __init__(self, line: Line, head: Head, parts: list[bytes]) -> None:
        self._line, self.head, self._parts = line, head, parts
        self.keep_alive = head.keep_alive
        self.expects = head.expects  # the client waits for a 100 before it sends the body

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def path(self) -> str:
        return self.head.path

    @property
    def first_headers(self) -> dict[bytes, bytes]:
        return self.head.first

    @property
    def client(self) -> tuple[str, int] | None:
        return self._line.client

    @property
    def scope(self) -> Scope:
        """The request as ASGI has it; made when first asked for."""
        if self._scope is None:
            head, line = self.head, self._line
            self._scope = {
                "type": "http",
                "asgi": ASGI,
                "http_version": head.version,
                "method": head.method,
                "scheme": line.scheme,
                "path": head.path,
                "raw_path": head.raw_path,
                "query_string": head.query,
                "root_path": "",
                "headers": [*head.headers],
                "client": line.client,
                "server": line.server,
                "state": {},
                "extensions": {SHORTCUTS: self},
            }
        return self._scope

    # --- told by the connection

    def body(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._waiter is not None:
            self._wake()
        elif self._size > BODY_AHEAD:
            self._line.pause()

    def complete(self) -> None:
        self.arrived = True
        self._wake()

    def hang_up(self) -> None:
        """The client is gone, or can no longer be understood."""
        self.gone = True
        self._wake()
        hangups, self._hangups = self._hangups, ()
        for hangup in hangups:
            hangup()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- called by the app

    def on_hangup(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client leaves before its answer is complete; at once if it has."""
        if self.gone:
            callback()
        else:
            self._hangups = (*self._hangups, callback)

    def take_body(self) -> bytes | None:
        """The body, if all of it is here and nobody has received a part of it."""
        if not self.arrived or self._told or self.gone:
            return None
        self._told = True
        parts, self._parts, self._size = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def answer_json(self, id: bytes, body: bytes) -> None:
        """Send the answer that most requests get: 200, JSON, the request's id, and no other header."""
        if self._status or self.gone or not self.keep_alive or len(body) > JOINED or not self.head.is_plain or not self._line.stays_open(self):
            headers = [(b"x-fal-request-id", id), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            self.answer(200, headers, body)
            return
        self._status = 200
        self.begun = self.answered = True
        self._hangups = ()
        if self._waiter is not None:
            self._wake()
        self._line.write(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (json_head(), id, len(body), body))
        self._line.answered(self)

    def over(self, error: BaseException | None) -> None:
        """The app's call has ended. An answer that it left incomplete is cut off, and one not begun is 500."""
        if isinstance(error, Exception):
            log.error("http1.app_failed", exc_info=error)
        if not (self.answered or self.gone):
            self._line.cut_off(self)

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the whole answer at once. What the client does not take yet is kept by its connection."""
        if self._status:
            raise RuntimeError("the answer has started already")
        self._status, self._headers = status, headers
        self._send_part(body, False)

    async def receive(self) -> Message:
        while True:
            if self.gone or (self.answered and self._told):
                return {"type": "http.disconnect"}
            if self._parts or (self.arrived and not self._told):
                parts, self._parts, self._size = self._parts, [], 0
                self._told = self.arrived
                whole = parts[0] if len(parts) == 1 else b"".join(parts)
                return {"type": "http.request", "body": whole, "more_body": not self.arrived}
            if self.expects and not self.begun:
                self.expects = False
                self._line.write(CONTINUE)
            await self._news()

    async def _news(self) -> None:
        self._waiter = self._line.loop.create_future()
        try:
            self._line.resume()  # which may bring the news at once
            await self._waiter
        finally:
            self._waiter = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if not self._status:
                raise RuntimeError("the answer's body comes before its start")
            more = message.get("more_body", False)
            self._send_part(message.get("body", b""), more)
            if not more:
                return  # what is held up delays the next answer, not this app
        elif message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", []))
        if self._line.room is not None:
            await self._line.room.wait()

    # --- the answer

    def _start(self, status: int, headers: RawHeaders) -> None:
        if self._status:
            raise RuntimeError("the answer has started already")
        self._status, self._headers = status, headers
        for name, _ in headers:
            if name == b"content-length":
                return
        self._line.loop.call_soon(self._flush_head)  # its first part may be long in coming

    def _flush_head(self) -> None:
        if not (self.begun or self.gone):
            self._begin(b"", True)

    def _send_part(self, part: bytes, more: bool) -> None:
        if self.gone or self.answered:
            return
        if self.begun:
            self._write_part(b"", part, more)
        else:
            self._begin(part, more)
        if not more:
            self.answered = True
            self._hangups = ()
            self._wake()
            self._line.answered(self)

    def _begin(self, part: bytes, more: bool) -> None:
        """Write the head, and the first part with it."""
        headers, length = self._headers, -1
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding" or name == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                headers = [header for header in headers if header[0] not in (b"transfer-encoding", b"connection")]
        text = head(self._status, headers)
        self._write_part = self._write_plain
        if self._status in BODILESS or self.head.method == "HEAD":
            self._write_part = self._write_none
        elif length >= 0:
            self._left = length
        elif not more:
            self._left = len(part)
            text += b"content-length: %d\r\n" % len(part)
        elif self.head.version == "1.1":
            self._write_part = self._write_chunk
            text += CHUNKED
        else:  # its end is the end of the connection
            self._left = -1
            self.keep_alive = False
        self.keep_alive = self.keep_alive and self._line.stays_open(self)
        if not self.keep_alive:
            text += CLOSE
        elif self.head.version == "1.0":
            text += KEEP_ALIVE
        self.begun = True
        self._write_part(text + b"\r\n", part, more)

    def _write_plain(self, text: bytes, part: bytes, more: bool) -> None:
        if self._left >= 0:
            self._left -= len(part)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the answer's body is not as long as its Content-Length")
        if len(part) <= JOINED:
            self._line.write(text + part)
        else:
            self._line.write(text, part)

    def _write_chunk(self, text: bytes, part: bytes, more: bool) -> None:
        end = b"" if more else b"0\r\n\r\n"
        if len(part) > JOINED:
            self._line.write(text + b"%x\r\n" % len(part), part, b"\r\n" + end)
        elif part:
            self._line.write(b"%b%x\r\n%b\r\n%b" % (text, len(part), part, end))
        else:
            self._line.write(text + end)

    def _write_none(self, text: bytes, part: bytes, more: bool) -> None:
        self._line.write(text)
