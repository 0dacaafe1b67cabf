"""The server: one process from its open socket to its exit code.

A plugin's `connection_protocol` reads the bytes first, if there is one; of what it hands over, or of all,
`websocket.py` reads WebSockets and hypercorn the rest (`stock.py`: HTTP/1.1, HTTP/2). Starting and stopping is
ours: hypercorn's own waits on idle connections, and on Python 3.12 and newer for as long as they live.

The first SIGTERM or SIGINT drains: `handle_exit`, no more requests, running ones to their end or
the end of the grace period, `teardown`, exit code 0. The second ends the process at once. A failed
setup ends it with code 1, after probes had a second to read why. The codes are in `schemas/exits.py`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import anyio

from ..schemas.app import AppSpec
from ..schemas.asgi import ASGIApp, Receive, Scope, Send
from ..schemas.connection import ConnectionProtocol
from ..schemas.exits import RELOADED, SETUP_FAILED, STOPPED
from ..schemas.health import Health, State
from ..schemas.problems import ConfigError
from ..schemas.settings import Settings
from .logs import get_logger
from .websocket import READ_BYTES, serve_handshake

IDLE_SECONDS = 300  # fal's own keep-alive; hypercorn's default of 5 s cuts pooled clients off
VANISHED = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # a silent peer is given up after 50 s
CLOSE_SECONDS = 1.0  # for connections to say goodbye after the last answer
FAILED_SECONDS = 1.0  # for probes to read why setup failed, where nobody starts another
EXIT_SECONDS = 2.0  # for the interpreter to end, once all is over
OVERTIME_SECONDS = 0.6  # after the grace period; then the process ends whatever is left to do
BACKLOG = 2048  # connections that wait to be accepted
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
READY_VARIABLE = "RUNNER_SUPERVISOR_FD"  # of plugins/supervising.py, which must not be imported for it

log = get_logger("runner.server")


class Runnable(Protocol):
    """What the server needs of a service."""

    app: AppSpec
    health: Health
    instance: Any
    connections: ConnectionProtocol | None
    url: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...
    def running(self) -> AbstractAsyncContextManager[None]: ...
    async def drain(self) -> None: ...


def listen(settings: Settings) -> socket.socket:
    """Bind the address of `settings`. Raises ConfigError naming the flag when it cannot be had."""
    if settings.listen_fd >= 0:
        return _inherited(settings.listen_fd)
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


def _inherited(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        sock.getsockname()
    except OSError as error:
        raise ConfigError(f"--listen-fd {descriptor}: {error.strerror}; give a listening socket, as --supervise does") from None
    sock.setblocking(False)
    return sock


def supervise(settings: Settings) -> None:
    """Bind the socket and turn this process into the parent that keeps a runner behind it. Does not return."""
    sock = listen(settings)
    sock.listen(BACKLOG)
    descriptor = sock.detach()
    command = [sys.executable, *sys.orig_argv[1:]]
    script = str(Path(__file__).with_name("supervising.py"))
    os.execv(sys.executable, [sys.executable, "-I", "-S", script, str(descriptor), *command])


def run(service: Runnable, settings: Settings) -> int:
    """Serve until a signal or a failure says stop; return the exit code."""
    sock = listen(settings)
    code: int = anyio.run(_run, service, settings, sock, backend_options={"use_uvloop": _has_uvloop()})
    _leave_within(EXIT_SECONDS, lambda: code)
    return code


async def _run(service: Runnable, settings: Settings, sock: socket.socket) -> int:
    stop, drained = anyio.Event(), anyio.Event()
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
        if state is State.READY:
            gc.collect()
            gc.freeze()  # what is loaded stays: looking through all of it again and again held requests up
            _tell_supervisor()
            if settings.ready_fd >= 0:
                _tell_ready(settings.ready_fd, url)
        if state is State.FAILED and not settings.reload:
            loop.call_later(FAILED_SECONDS if settings.listen_fd < 0 else 0, stop.set)  # who calls now waits for the next

    def on_replacement() -> None:
        code, reason = service.health.exit_code, service.health.reason
        if code == RELOADED:
            log.info("reload.restarting", reason=reason)
        else:
            log.error("server.replacing", code=code, reason=reason)
        stop.set()

    def code() -> int:
        if service.health.exit_code is not None:
            return service.health.exit_code
        return SETUP_FAILED if service.health.state is State.FAILED else STOPPED

    async def drain() -> None:
        _leave_within(service.app.options.termination_grace_period_seconds + OVERTIME_SECONDS, code)
        await service.drain()
        drained.set()

    async def no_more() -> None: ...

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    _end_with_supervisor()
    service.url = url = url_of(sock, settings)
    service.health.watch(on_state)
    service.health.watch_replacement(on_replacement)
    async with service.running(), AsyncExitStack() as doors:
        if settings.fal_gateway >= 0:
            gateway = importlib.import_module("runner.plugins.gateway").gateway
            await doors.enter_async_context(gateway(settings, lambda ours, inner: serve(service, ours, inner, drained, no_more)))
        log.info("server.listening", url=url)
        await serve(service, settings, sock, stop, drain, service.connections)
    log.info("server.stopped")
    return code()


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


def _tell_supervisor() -> None:
    if descriptor := os.environ.pop(READY_VARIABLE, ""):
        os.write(int(descriptor), b"r")
        os.close(int(descriptor))


def _end_with_supervisor() -> None:
    """Have the kernel send SIGTERM when the parent dies: an orphan would hold the port that the next one needs."""
    if READY_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None


def _leave_within(seconds: float, code: Callable[[], int]) -> None:
    """End the process by then even when a thread, the app's `teardown` or the event loop does not end."""
    timer = threading.Timer(seconds, lambda: os._exit(code()))
    timer.daemon = True
    with suppress(RuntimeError, MemoryError):  # there is no memory for a thread
        timer.start()


async def first_bytes(reader: asyncio.StreamReader) -> bytes:
    """What a connection begins with; empty when it ends, fails or says nothing."""
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await reader.read(READ_BYTES)
    except OSError:  # TimeoutError is one
        return b""


async def serve(
    app: ASGIApp,
    settings: Settings,
    sock: socket.socket,
    stop: anyio.Event,
    drain: Callable[[], Awaitable[None]],
    first: ConnectionProtocol | None = None,
) -> None:
    """Answer connections on `sock` with `app` until `stop` is set and drained, then close them all.

    `first` reads them first, and leaves to others what it does not answer.
    """
    loop = asyncio.get_running_loop()
    stock = cache(lambda: importlib.import_module("runner.plugins.stock").Stock(app, settings))
    connections: set[asyncio.Task[Any]] = set()
    silent: set[asyncio.StreamWriter] = set()  # of connections that have not sent anything yet

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        silent.add(writer)
        data = await first_bytes(reader)
        silent.discard(writer)
        if not data:
            writer.close()
        elif not await serve_handshake(app, data, reader, writer, settings.max_message_bytes):
            await stock().serve(data, reader, writer)

    def stream() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), connected, loop=loop)

    def hand_over(transport: asyncio.Transport, data: bytes) -> None:
        protocol = stream()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.data_received(data)

    def accept() -> asyncio.BaseProtocol:
        return stream() if first is None else first.connect(app, hand_over)

    tls: ssl.SSLContext | None = None
    if settings.tls_cert:
        try:
            tls = stock().tls()
        except ssl.SSLError as error:
            raise ConfigError(f"--tls-cert {settings.tls_cert}: not a certificate and its key ({error.reason})") from None
    server = await loop.create_server(accept, sock=sock, backlog=BACKLOG, ssl=tls)
    try:
        await stop.wait()
        if settings.listen_fd >= 0:
            server.close()  # who calls now waits in the backlog for the next runner
        await drain()
    finally:
        server.close()
        if stock.cache_info().currsize:
            await stock().end()
        if first is not None:
            await first.close(CLOSE_SECONDS)
        for writer in silent:
            writer.close()
        if connections:
            await asyncio.wait(connections, timeout=CLOSE_SECONDS)
        for task in list(connections):
            task.cancel()
        if connections:
            await asyncio.wait(connections, timeout=CLOSE_SECONDS)
