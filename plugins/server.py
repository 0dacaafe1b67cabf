"""The server: one process from its open socket to its exit code.

Hypercorn reads the bytes (HTTP/1.1, HTTP/2, WebSockets, TLS). Starting and stopping is ours:
its own waits on idle connections, and on Python 3.12 and newer for as long as they live.

The first SIGTERM or SIGINT drains: `handle_exit`, no more requests, running ones to their end or
the end of the grace period, `teardown`, exit code 0. The second ends the process at once. A failed
setup ends it with code 1, after probes had a second to read why.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, cast

import anyio
import structlog
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.protocol import ws_stream
from hypercorn.utils import wrap_app

from ..schemas.asgi import ASGIApp, Receive, Scope, Send
from ..schemas.health import Health, State
from ..schemas.problems import ConfigError
from ..schemas.settings import Settings

IDLE_SECONDS = 300  # fal's own keep-alive; hypercorn's default of 5 s cuts pooled clients off
VANISHED = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a silent peer is given up after 50 s
CLOSE_SECONDS = 1.0  # for connections to say goodbye after the last answer
FAILED_SECONDS = 1.0  # for probes to read why setup failed
EXIT_SECONDS = 2.0  # for the interpreter to end, once all is over
SETUP_FAILED = 1

log = structlog.get_logger("runner.server")


class Runnable(Protocol):
    """What the server needs of a service."""

    health: Health
    instance: Any
    url: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...
    def running(self) -> AbstractAsyncContextManager[None]: ...
    async def drain(self) -> None: ...


def listen(settings: Settings) -> socket.socket:
    """Bind the address of `settings`. Raises ConfigError naming the flag when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit these
    for name, value in VANISHED.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
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


def run(service: Runnable, settings: Settings) -> int:
    """Serve until a signal or a failure says stop; return the exit code."""
    sock = listen(settings)
    code = anyio.run(_run, service, settings, sock, backend_options={"use_uvloop": _has_uvloop()})
    _leave_soon(code)
    return code


async def _run(service: Runnable, settings: Settings, sock: socket.socket) -> int:
    stop = anyio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("server.killed", signal=number.name)
            os._exit(128 + number)
        log.info("server.stopping", signal=number.name)
        stop.set()
        try:
            service.instance.handle_exit()
        except Exception as error:
            log.error("handle_exit.failed", exc_info=error)

    def on_state(state: State) -> None:
        if state is State.READY and settings.ready_fd >= 0:
            _tell_ready(settings.ready_fd, url)
        if state is State.FAILED:
            loop.call_later(FAILED_SECONDS, stop.set)

    async def stopped() -> None:
        await stop.wait()
        await service.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    service.url = url = url_of(sock, settings)
    service.health.watch(on_state)
    async with service.running():
        log.info("server.listening", url=url)
        await serve(service, settings, sock, stopped)
    log.info("server.stopped")
    return SETUP_FAILED if service.health.state is State.FAILED else 0


def url_of(sock: socket.socket, settings: Settings) -> str:
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _tell_ready(descriptor: int, url: str) -> None:
    line = json.dumps({"event": "ready", "url": url, "pid": os.getpid()})
    try:
        os.write(descriptor, line.encode() + b"\n")
        if descriptor > 2:  # the log goes on
            os.close(descriptor)
    except OSError as error:
        log.error("ready_fd.failed", descriptor=descriptor, problem=error.strerror)


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


def _leave_soon(code: int) -> None:
    """End the process even when a thread that the app started, or one of ours, does not end."""
    timer = threading.Timer(EXIT_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def serve(
    app: ASGIApp, settings: Settings, sock: socket.socket, stopped: Callable[[], Awaitable[None]]
) -> None:
    """Answer connections on `sock` with `app` until `stopped()` returns, then close them all."""
    config = Config()
    config.certfile, config.keyfile = settings.tls_cert or None, settings.tls_key or None
    config.alpn_protocols = ["h2", "http/1.1"]
    config.keep_alive_timeout = IDLE_SECONDS
    config.websocket_max_message_size = settings.max_message_bytes
    config.include_server_header = False
    config.accesslog = config.errorlog = None
    uncompressed: Any = ws_stream  # hypercorn 0.18 has no setting for it; deflate costs more than frames save
    uncompressed.server_extensions_handshake = lambda requested, supported: None
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
