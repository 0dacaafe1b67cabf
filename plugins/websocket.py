"""WebSockets over HTTP/1.1, from bytes to ASGI: handshake and frames (RFC 6455).

A connection whose first bytes are a whole handshake comes here; all others are hypercorn's, which
speaks WebSocket too, through three layers more. There is no task in between: an application that
asks for the next message reads the socket itself, so TCP slows a client whom nobody listens to.
No extension is agreed on: what servers of models send is packed already.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import h11

from ..schemas.asgi import ASGIApp, Message, RawHeaders, Scope
from .logs import get_logger

log = get_logger("runner.websocket")

READ_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0  # for the client to answer a close frame
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # the RFC's own
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NORMAL, PROTOCOL_ERROR, NO_CODE, ABNORMAL, NOT_UTF8, TOO_BIG, FAILED = 1000, 1002, 1005, 1006, 1007, 1009, 1011


class Broken(Exception):
    """The client does not keep to the protocol; `code` says how."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


# --- frames


class Frames:
    """A client's bytes, as they come, turned into messages and control frames. Does no I/O."""

    def __init__(self, longest: int) -> None:
        self._longest = longest  # bytes of one message
        self._bytes = bytearray()
        self._kind = CONTINUATION  # of the message whose fragments are `_parts`
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._bytes += data

    def next(self) -> tuple[int, bytes] | None:
        """The next TEXT or BINARY message, CLOSE, PING or PONG with its payload; None: feed more."""
        while (frame := self._frame()) is not None:
            final, kind, payload = frame
            if kind >= CLOSE:
                return kind, payload
            if kind == CONTINUATION:
                if self._kind == CONTINUATION:
                    raise Broken(PROTOCOL_ERROR)
            elif self._kind != CONTINUATION:
                raise Broken(PROTOCOL_ERROR)
            else:
                if final:
                    return kind, payload
                self._kind = kind
            self._parts.append(payload)
            self._size += len(payload)
            if final:
                message = self._kind, b"".join(self._parts)
                self._kind, self._parts, self._size = CONTINUATION, [], 0
                return message
        return None

    def _frame(self) -> tuple[bool, int, bytes] | None:
        data = self._bytes
        if len(data) < 2:
            return None
        first, second = data[0], data[1]
        kind, length, at = first & 0x0F, second & 0x7F, 2
        if first & 0x70 or not second & 0x80 or kind not in KNOWN or (kind >= CLOSE and (length > 125 or first < 0x80)):
            raise Broken(PROTOCOL_ERROR)
        if length >= 126:
            at = 4 if length == 126 else 10
            if len(data) < at:
                return None
            length = int.from_bytes(data[2:at], "big")
        if kind < CLOSE and length + self._size > self._longest:
            raise Broken(TOO_BIG)
        end = at + 4 + length
        if len(data) < end:
            return None
        payload = unmasked(bytes(data[at + 4 : end]), bytes(data[at : at + 4]))
        del data[:end]
        return first >= 0x80, kind, payload


KNOWN = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})


def unmasked(payload: bytes, mask: bytes) -> bytes:
    """The exclusive or of both, the mask repeated: as two large numbers, which is fast at any size."""
    size = len(payload)
    if not size:
        return b""
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")


def framed(kind: int, payload: bytes) -> bytes:
    """One whole message or control frame, as servers send them: not masked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | kind, size)) + payload
    if size < 65536:
        return bytes((0x80 | kind, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | kind, 127)) + size.to_bytes(8, "big") + payload


def closing(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close frame."""
    if not payload:
        return NO_CODE, ""
    code = int.from_bytes(payload[:2], "big")
    allowed = 3000 <= code < 5000 or (1000 <= code <= 1014 and code not in (1004, NO_CODE, ABNORMAL))
    if len(payload) < 2 or not allowed:
        raise Broken(PROTOCOL_ERROR)
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise Broken(NOT_UTF8) from None


# --- the handshake


def may_be_handshake(data: bytes) -> bool:
    """Whether these first bytes of a connection are worth reading as a handshake."""
    return data.startswith(b"GET ") and b"\r\n\r\n" in data and b"websocket" in data.lower()


def read_handshake(data: bytes) -> tuple[h11.Request, bytes] | None:
    """The request that asks for a WebSocket, and what came after it; None when it is something else."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    try:
        request = connection.next_event()
        end = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or not isinstance(end, h11.EndOfMessage) or request.http_version != b"1.1":
        return None
    headers = dict(request.headers)
    connection_tokens = {token.strip().lower() for token in headers.get(b"connection", b"").split(b",")}
    asked = headers.get(b"upgrade", b"").lower() == b"websocket" and b"upgrade" in connection_tokens
    if not asked or headers.get(b"sec-websocket-version") != b"13" or not is_key(headers.get(b"sec-websocket-key", b"")):
        return None
    return request, connection.trailing_data[0]


def is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def scope_of(request: h11.Request, *, secure: bool, client: Any, server: Any) -> Scope:
    path, _, query = request.target.partition(b"?")
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol")
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "wss" if secure else "ws",
        "path": unquote(path.decode("ascii")),
        "raw_path": bytes(path),
        "query_string": bytes(query),
        "root_path": "",
        "headers": headers,
        "client": client,
        "server": server,
        "subprotocols": [name.strip().decode("latin-1") for name in offered.split(b",") if name.strip()],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }


def accepting(scope: Scope, message: Message) -> bytes:
    """The answer that opens the socket."""
    key = dict(scope["headers"])[b"sec-websocket-key"]
    token = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
    headers: RawHeaders = [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", token)]
    if (chosen := message.get("subprotocol")) is not None:
        headers.append((b"sec-websocket-protocol", chosen.encode("latin-1")))
    return head_of(101, [*headers, *message.get("headers", ())])


def head_of(status: int, headers: RawHeaders) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    for name, value in headers:
        if any(mark in name + value for mark in (b"\r", b"\n", b"\0")):
            raise ValueError(f"the header {name!r} holds a line break")
        lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


# --- a connection


class Connection:
    """One socket as an ASGI application sees it."""

    def __init__(self, scope: Scope, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rest: bytes, longest: int) -> None:
        self.scope, self._reader, self._writer = scope, reader, writer
        self._frames = Frames(longest)
        self._frames.feed(rest)
        self._announced = self._accepted = self._closed = False
        self._gone: Message | None = None  # what ended it, as the application is told
        self._denial: Message | None = None

    async def receive(self) -> Message:
        if not self._announced:
            self._announced = True
            return {"type": "websocket.connect"}
        while self._gone is None:
            try:
                if (found := self._frames.next()) is None:
                    if data := await self._reader.read(READ_BYTES):
                        self._frames.feed(data)
                    else:
                        self._leave(ABNORMAL)
                elif (message := await self._taken(*found)) is not None:
                    return message
            except Broken as broken:
                await self._close(broken.code)
                self._leave(broken.code)
            except OSError:
                self._leave(ABNORMAL)
        return self._gone

    async def _taken(self, kind: int, payload: bytes) -> Message | None:
        if kind == BINARY:
            return {"type": "websocket.receive", "bytes": payload, "text": None}
        if kind == TEXT:
            try:
                return {"type": "websocket.receive", "bytes": None, "text": payload.decode()}
            except UnicodeDecodeError:
                raise Broken(NOT_UTF8) from None
        if kind == PING:
            await self._write(framed(PONG, payload))
        elif kind == CLOSE:
            code, reason = closing(payload)
            await self._close(NORMAL if code == NO_CODE else code)
            self._leave(code, reason)
        return None

    def _leave(self, code: int, reason: str = "") -> None:
        self._gone = {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._closed or self._gone is not None:
            return
        if kind == "websocket.send" and self._accepted:
            if (data := message.get("bytes")) is not None:
                await self._write(framed(BINARY, bytes(data)))
            else:
                await self._write(framed(TEXT, message["text"].encode()))
        elif kind == "websocket.close":
            await self._close(message.get("code") or NORMAL, message.get("reason") or "")
        elif kind == "websocket.accept" and not self._accepted:
            await self._write(accepting(self.scope, message))
            self._accepted = True
        elif kind == "websocket.http.response.start" and not self._accepted:
            self._denial = message
        elif kind == "websocket.http.response.body" and self._denial is not None:
            await self._deny(self._denial["status"], self._denial["headers"], message.get("body", b""))
        else:
            raise RuntimeError(f"{kind} cannot be sent {'once' if self._accepted else 'before'} the socket is accepted")

    async def _close(self, code: int, reason: str = "") -> None:
        if self._closed:
            return
        if not self._accepted:
            return await self._deny(403, [], b"")
        self._closed = True
        await self._write(framed(CLOSE, code.to_bytes(2, "big") + reason.encode()[:123]))

    async def _deny(self, status: int, headers: RawHeaders, body: bytes) -> None:
        self._closed = True
        length = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await self._write(head_of(status, [*headers, *length]) + body)

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            self._leave(ABNORMAL)

    async def finish(self) -> None:
        """The application has returned: close what it left open, and hear the client out."""
        if not self._closed and self._gone is None:
            await (self._close(FAILED) if self._accepted else self._deny(500, [], b""))
        if self._accepted and self._gone is None:
            await asyncio.sleep(0)  # a reader of the application's that was just cancelled leaves first
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    while self._gone is None:
                        await self.receive()
            except TimeoutError:
                pass


async def serve_handshake(
    app: ASGIApp, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, longest: int
) -> bool:
    """Serve the socket that `data`, the first bytes of a connection, asks for; False when it asks for none."""
    found = read_handshake(data) if may_be_handshake(data) else None
    if found is None:
        return False
    request, rest = found
    peer, here = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
    client, server = (address[:2] if isinstance(address, tuple) else None for address in (peer, here))
    secure = writer.get_extra_info("ssl_object") is not None
    connection = Connection(scope_of(request, secure=secure, client=client, server=server), reader, writer, rest, longest)
    try:
        await app(connection.scope, connection.receive, connection.send)
    except Exception as error:
        log.error("websocket.failed", exc_info=error)
    finally:
        await connection.finish()
        writer.close()
    return True
