"""Hypercorn's part of the server: HTTP/2, and HTTP/1.1 where no plugin reads it first.

Importing hypercorn takes a fifth of a start and some MiB, so it is done when the first connection
asks for it, or TLS does. That connection waits for the import, and so does all else, once.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.protocol import ws_stream
from hypercorn.utils import wrap_app

from ..schemas.asgi import ASGIApp
from ..schemas.settings import Settings

IDLE_SECONDS = 300  # fal's own keep-alive; hypercorn's default of 5 s cuts pooled clients off


class Replayed:
    """A reader whose first bytes were read already; as much of one as hypercorn asks for."""

    def __init__(self, data: bytes, reader: asyncio.StreamReader) -> None:
        self._data, self._reader = data, reader

    def at_eof(self) -> bool:
        return not self._data and self._reader.at_eof()

    async def read(self, size: int) -> bytes:
        if self._data:
            data, self._data = self._data, b""
            return data
        return await self._reader.read(size)


class Connection(TCPServer):
    """One connection, which ends when its client leaves: hypercorn's own goes on to wait for the end of its idle time."""

    left = False

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self.left = True
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if not (self.left and isinstance(event, Updated)):  # which would begin another idle time
            await super().protocol_send(event)


class Stock:
    """Hypercorn, set up for one server."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._config = config = Config()
        config.certfile, config.keyfile = settings.tls_cert or None, settings.tls_key or None
        config.alpn_protocols = ["h2", "http/1.1"]
        config.keep_alive_timeout = IDLE_SECONDS
        config.keep_alive_max_requests = 2**31  # its default of 1,000 cuts clients off that do not retry
        config.websocket_max_message_size = settings.max_message_bytes
        config.include_server_header = False
        config.accesslog = config.errorlog = None
        uncompressed: Any = ws_stream  # hypercorn 0.18 has no setting for it; deflate costs more than frames save
        uncompressed.server_extensions_handshake = lambda requested, supported: None
        self._context = WorkerContext(None)
        self._app = wrap_app(cast(Any, app), config.wsgi_max_body_size, "asgi")

    def tls(self) -> ssl.SSLContext | None:
        return self._config.create_ssl_context()

    async def serve(self, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, of which `data` was read already."""
        loop, replayed = asyncio.get_running_loop(), cast(Any, Replayed(data, reader))
        await Connection(self._app, loop, self._config, self._context, {}, replayed, writer)

    async def end(self) -> None:
        """Let idle connections close."""
        await self._context.terminated.set()
