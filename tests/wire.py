"""A server in the test's own loop, what its app received, and clients that send any bytes they like."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httptools
from anyio.lowlevel import checkpoint
from runner.plugins.http1 import Limits, Server
from runner.plugins.server import listen, serve
from runner.schemas.asgi import ASGIApp, Receive, Scope, Send
from runner.schemas.settings import Settings

GUARD_SECONDS = 20


class Recorder:
    """An app that answers each request with its own body, and remembers what it received."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, bytes]] = []
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.requests.append((scope["method"], scope["path"], b"(gone)"))
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.scopes.append(scope)
        self.requests.append((scope["method"], scope["path"], body))
        await reply(send, body)


async def reply(send: Send, body: bytes = b"", status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body)), *headers]})
    await send({"type": "http.response.body", "body": body})


class Answers:
    """What came back, taken apart."""

    def __init__(self, raw: bytes, *, heads_only: bool = False) -> None:
        self.raw = raw
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.whole = 0  # answers that ended as they should
        self._parser = httptools.HttpResponseParser(self)
        if not heads_only:
            self._parser.feed_data(raw)

    def on_message_begin(self) -> None:
        self.headers.append({})
        self.bodies.append(b"")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[-1][name.lower()] = value

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_body(self, part: bytes) -> None:
        self.bodies[-1] += part

    def on_message_complete(self) -> None:
        self.whole += 1


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def end(self) -> None:
        self.writer.write_eof()

    async def until(self, end: bytes) -> bytes:
        return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """All that comes until the server closes, or cuts the connection off."""
        found = bytearray()
        try:
            while part := await self.reader.read(65536):
                found += part
        except ConnectionError:
            pass
        return bytes(found)

    def close(self) -> None:
        self.writer.close()


class Wire:
    def __init__(self, port: int) -> None:
        self.port = port
        self.stop = anyio.Event()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            yield client
        finally:
            client.close()

    async def exchange(self, data: bytes, *, end: bool = False) -> bytes:
        """Send `data` on a connection of its own; everything that comes back until the server closes it."""
        async with self.client() as client:
            await client.send(data)
            if end:
                client.end()
            return await client.rest()


@asynccontextmanager
async def wire(app: ASGIApp | Callable[..., Awaitable[None]], limits: Limits | None = None, *, stock: bool = False) -> AsyncIterator[Wire]:
    """Serve `app` on the fast lane, or with `stock` on hypercorn alone."""
    sock: socket.socket = listen(Settings(port=0))
    sock.listen()
    server = Wire(sock.getsockname()[1])
    any_app: Any = app
    with anyio.fail_after(GUARD_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, any_app, Settings(), sock, server.stop, checkpoint, None if stock else Server(limits))
            try:
                yield server
            finally:
                server.stop.set()
