"""Transports: how a test's requests reach the app. In this process through ASGI, or over a socket.

In this process a request is a task of its own that drives the assembled service; a reader who stops
reading holds its writer up, and one who leaves is a client that hung up. Over a socket it is httpcore,
with wsproto for WebSockets.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import httpcore
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws

from ...schemas.asgi import ASGIApp, Message
from .errors import Answer

Frame = bytes | str
HOST = "app.test"  # of a service without a socket
LEAVE_SECONDS = 10  # for a request to end once its client has hung up
READ_BYTES = 64 * 1024


class Broken(Exception):
    """An answer was broken off before its end."""


class Reply(Protocol):
    """An answer on its way in. Iterating raises Broken when it is broken off."""

    status: int
    headers: dict[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None:
        """Hang up, if it has not come to its end."""
        ...


class Socket(Protocol):
    """A WebSocket that was accepted."""

    async def send(self, frame: Frame) -> None: ...
    async def receive(self) -> Frame | None:
        """The next frame; None once the server has closed."""
        ...

    async def close(self) -> None: ...


class Refused(Exception):
    """The server answered a WebSocket's handshake by an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the handshake was answered by {answer.status}")
        self.answer = answer


class Transport(Protocol):
    url: str
    reaches_others: bool  # it can be asked for a URL of another server

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply: ...
    async def connect(self, path: str, headers: Mapping[str, str]) -> Socket: ...
    async def close(self) -> None: ...


# --- in this process


class Direct:
    """Through ASGI, without a socket. Lives on the loop that the service runs on."""

    reaches_others = False

    def __init__(self, app: ASGIApp) -> None:
        self.url = f"http://{HOST}"
        self.drive: Callable[[Coroutine[Any, Any, None]], Awaitable[None]] | None = None  # for `cancel_at`: runs requests
        self._app = app
        self._open: set[Exchange | Line] = set()

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Exchange:
        app = self._app if self.drive is None else _driven(self._app, self.drive)
        exchange = Exchange(app, _scope("http", method, path, headers), body, self._open)
        await exchange.begun()
        return exchange

    async def connect(self, path: str, headers: Mapping[str, str]) -> Line:
        line = Line(self._app, _scope("websocket", "GET", path, headers), self._open)
        await line.begun()
        return line

    async def close(self) -> None:
        """Hang up all that is still open."""
        for each in list(self._open):
            await each.close()


def _driven(app: ASGIApp, drive: Callable[[Any], Awaitable[None]]) -> ASGIApp:
    async def driven(scope: Any, receive: Any, send: Any) -> None:
        await drive(app(scope, receive, send))

    return driven


def _scope(kind: str, method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = path.partition("?")
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": unquote(path),
        "raw_path": quote(path, safe="/%:@!$&'()*+,;=~-._").encode(),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(b"host", HOST.encode()), *raw],
        "client": ("127.0.0.1", 1),
        "server": (HOST, 80),
    }
    return scope | ({"method": method} if kind == "http" else {"subprotocols": [], "extensions": {"websocket.http.response": {}}})


class _Talk:
    """One task that drives the app, and what it has sent that nobody has read yet."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], opened: set[Any]) -> None:
        self._sent: deque[Any] = deque()
        self._news, self._room, self._left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._over = False
        self._error: BaseException | None = None
        self._opened = opened
        opened.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        except BaseException as error:
            self._error = error
        finally:
            self._over = True
            self._opened.discard(self)
            self._news.set()

    async def _receive(self) -> Message:
        raise NotImplementedError

    async def _send(self, message: Message) -> None:
        raise NotImplementedError

    async def _until_read(self) -> None:
        while self._sent and not self._left.is_set():
            self._room.clear()
            await self._room.wait()

    async def _next(self) -> Any:
        """The next thing sent, waiting for it; None when no more will come."""
        while not self._sent and not self._over:
            self._news.clear()
            await self._news.wait()
        if not self._sent:
            return None
        sent = self._sent.popleft()
        self._room.set()
        return sent

    async def close(self) -> None:
        """Hang up, and wait until the request has ended."""
        self._left.set()
        self._room.set()
        await asyncio.wait([self._task], timeout=LEAVE_SECONDS)


class Exchange(_Talk):
    """One HTTP request and its answer."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], body: bytes, opened: set[Any]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body: bytes | None = body
        self._whole = False
        self._head = asyncio.Event()
        super().__init__(app, scope, opened)

    async def begun(self) -> None:
        """Wait for the head. The client hangs up when it does not want to wait any longer."""
        head = asyncio.ensure_future(self._head.wait())
        try:
            await asyncio.wait([head, self._task], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._left.set()
            self._room.set()
            raise
        finally:
            head.cancel()
        if not self.status:
            if self._error is not None:
                raise self._error
            raise Broken("the request ended without an answer")

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._left.is_set():
            return
        if message["type"] == "http.response.start":
            self.headers = _joined(message.get("headers", ()))
            self.status = message["status"]
            self._head.set()
            return
        if part := message.get("body", b""):
            self._sent.append(part)
            self._news.set()
        if message.get("more_body", False):
            await self._until_read()
        else:
            self._whole = True

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> bytes:
        part: bytes | None = await self._next()
        if part is None:
            if not self._whole:
                raise Broken("the answer was broken off")
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        await self.close()


class Line(_Talk):
    """One WebSocket."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], opened: set[Any]) -> None:
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        super().__init__(app, scope, opened)

    async def begun(self) -> None:
        first = await self._next()
        if first is not None and first["type"] == "websocket.accept":
            return
        status, headers, body = 403, {}, b""
        if first is not None and first["type"] == "websocket.http.response.start":
            status, headers = first["status"], _joined(first["headers"])
            body = ((await self._next()) or {}).get("body", b"")
        await self.close()
        raise Refused(Answer(status, headers, body))

    async def _receive(self) -> Message:
        taken = asyncio.ensure_future(self._incoming.get())
        left = asyncio.ensure_future(self._left.wait())
        try:
            await asyncio.wait([taken, left], return_when=asyncio.FIRST_COMPLETED)
            return taken.result() if taken.done() else {"type": "websocket.disconnect", "code": 1005}
        finally:
            taken.cancel()
            left.cancel()

    async def _send(self, message: Message) -> None:
        if not self._left.is_set():
            self._sent.append(message)
            self._news.set()
            await self._until_read()

    async def send(self, frame: Frame) -> None:
        key = "text" if isinstance(frame, str) else "bytes"
        self._incoming.put_nowait({"type": "websocket.receive", key: frame})

    async def receive(self) -> Frame | None:
        message = await self._next()
        if message is None or message["type"] != "websocket.send":
            return None
        frame: Frame = message["text"] if message.get("bytes") is None else message["bytes"]
        return frame


def _joined(raw: Any) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


# --- over a socket


class Wire:
    """Over HTTP, to `url`, which may end in a path."""

    reaches_others = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._pool = httpcore.AsyncConnectionPool(max_connections=None, ssl_context=_tls())

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> WireReply:
        url = path if path.startswith(("http://", "https://")) else self.url + path
        request = httpcore.Request(method, url, headers=_host(url) + list(_encoded(headers)), content=body or None)
        return WireReply(await self._pool.handle_async_request(request))

    async def connect(self, path: str, headers: Mapping[str, str]) -> WireSocket:
        parts = urlsplit(self.url + path)
        protocol = WSConnection(ConnectionType.CLIENT)
        tls = _tls() if parts.scheme == "https" else None
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if tls else 80), ssl=tls)
        socket = WireSocket(protocol, reader, writer)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        await socket.shake_hands(ws.Request(host=parts.netloc, target=target or "/", extra_headers=list(_encoded(headers))))
        return socket

    async def close(self) -> None:
        await self._pool.aclose()


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _host(url: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", urlsplit(url).netloc.rpartition("@")[2].encode())]


def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class WireReply:
    def __init__(self, response: httpcore.Response) -> None:
        self.status: int = response.status
        self.headers = _joined(response.headers)
        self._response = response
        self._parts = response.aiter_stream()

    def __aiter__(self) -> WireReply:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._parts)
        except (httpcore.RemoteProtocolError, httpcore.ReadError) as error:
            raise Broken(str(error) or "the answer was broken off") from None

    async def aclose(self) -> None:
        await self._response.aclose()


class WireSocket:
    def __init__(self, protocol: WSConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._protocol, self._reader, self._writer = protocol, reader, writer
        self._events: deque[ws.Event] = deque()
        self._partial: list[Any] = []

    async def shake_hands(self, request: ws.Request) -> None:
        self._write(request)
        refused: ws.RejectConnection | None = None
        body = b""
        while (event := await self._event()) is not None:
            if isinstance(event, ws.AcceptConnection):
                return
            if isinstance(event, ws.RejectConnection):
                refused = event
                if not event.has_body:
                    break
            elif isinstance(event, ws.RejectData):
                body += event.data
                if event.body_finished:
                    break
        self._writer.close()
        status, headers = (refused.status_code, _joined(refused.headers)) if refused is not None else (0, {})
        raise Refused(Answer(status, headers, body))

    def _write(self, event: ws.Event) -> None:
        self._writer.write(self._protocol.send(event))

    async def _event(self) -> ws.Event | None:
        while not self._events:
            data = await self._reader.read(READ_BYTES)
            if not data:
                return None
            self._protocol.receive_data(data)
            self._events.extend(self._protocol.events())
        return self._events.popleft()

    async def send(self, frame: Frame) -> None:
        self._write(ws.TextMessage(data=frame) if isinstance(frame, str) else ws.BytesMessage(data=frame))
        await self._writer.drain()

    async def receive(self) -> Frame | None:
        while (event := await self._event()) is not None:
            if isinstance(event, ws.Message):
                self._partial.append(event.data)
                if event.message_finished:
                    parts, self._partial = self._partial, []
                    return "".join(parts) if isinstance(event, ws.TextMessage) else b"".join(map(bytes, parts))
            elif isinstance(event, ws.Ping):
                self._write(event.response())
            elif isinstance(event, ws.CloseConnection):
                with suppress(Exception):
                    self._write(event.response())
                return None
        return None

    async def close(self) -> None:
        with suppress(Exception):
            self._write(ws.CloseConnection(code=1000))
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
