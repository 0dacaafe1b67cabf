"""The sockets: hypercorn's connections, served until somebody says stop.

Hypercorn reads the bytes (HTTP/1.1, HTTP/2, WebSockets, TLS). Starting and stopping is ours:
its own waits on idle connections, and on Python 3.12 and newer for as long as they live.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from ..schemas.asgi import ASGIApp
from ..schemas.problems import ConfigError
from ..schemas.settings import Settings

MiB = 1024 * 1024
IDLE_SECONDS = 300  # fal's own keep-alive; hypercorn's default of 5 s cuts pooled clients off
CLOSE_SECONDS = 1.0  # for connections to say goodbye after the last answer


def listen(settings: Settings) -> socket.socket:
    """Bind the address of `settings`. Raises ConfigError naming the flag when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: {error.strerror}; --port 0 picks a free port"
        ) from None
    sock.setblocking(False)
    sock.set_inheritable(True)
    return sock


async def serve(
    app: ASGIApp, settings: Settings, sock: socket.socket, stopped: Callable[[], Awaitable[None]]
) -> None:
    """Answer connections on `sock` with `app` until `stopped()` returns, then close them all."""
    config = Config()
    config.certfile, config.keyfile = settings.tls_cert or None, settings.tls_key or None
    config.alpn_protocols = ["h2", "http/1.1"]
    config.keep_alive_timeout = IDLE_SECONDS
    config.websocket_max_message_size = 100 * MiB
    config.include_server_header = False
    config.accesslog = config.errorlog = None
    loop = asyncio.get_running_loop()
    context = WorkerContext(None)
    wrapped = wrap_app(cast(Any, app), config.wsgi_max_body_size, "asgi")
    connections: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        await TCPServer(wrapped, loop, config, context, {}, reader, writer)

    tls: ssl.SSLContext | None = None
    if settings.tls_cert:
        try:
            tls = config.create_ssl_context()
        except ssl.SSLError as error:
            raise ConfigError(f"--tls-cert {settings.tls_cert}: not a certificate and its key ({error.reason})") from None
    server = await asyncio.start_server(connected, sock=sock, backlog=2048, ssl=tls)
    try:
        await stopped()
    finally:
        server.close()
        await context.terminated.set()  # idle connections close
        if connections:
            await asyncio.wait(connections, timeout=CLOSE_SECONDS)
        for task in list(connections):
            task.cancel()
        if connections:
            await asyncio.wait(connections, timeout=CLOSE_SECONDS)
