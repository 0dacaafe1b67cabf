"""The fast HTTP/1.1 lane: connections are read here first, by llhttp, and answered without hypercorn.

It calls the service as any ASGI server would, in fewer steps: head and body in one write, the
hang-up as a callback instead of a task that waits for it. What it does not speak (HTTP/2, and the
upgrades to it and to WebSockets) it hands over to hypercorn with every byte that has come.
`--no-plugin http1` leaves all connections to hypercorn.

    heads.py        what is asked of a request's head, and how an answer's is written
    exchange.py     one request and its answer, as the app sees them
    connection.py   one connection: requests in, answers out, in order and in time

The strictness is llhttp's own, and RFC 9112 where that is stricter: see tests/test_http1_framing.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio

from ...schemas.asgi import ASGIApp
from ...schemas.connection import HandOver
from ...schemas.health import State
from ...schemas.service import ServiceView
from ..hookspecs import hookimpl
from .connection import Connection, Limits
from .heads import Head

__all__ = ["Limits", "Server"]


class Server:
    """The connections of one server, and the calls of the app on their behalf."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self.known: dict[bytes, Head] = {}
        self.is_leaving = False

    def connect(self, app: ASGIApp, hand_over: HandOver) -> Connection:
        return Connection(app, hand_over, self._limits, self)

    async def close(self, seconds: float) -> None:
        for connection in list(self._open):
            connection.wind_up()
        await self._emptied(seconds)
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._open):
            connection.give_up()
        for connection in list(self._open):
            connection.abort()
        await self._emptied(seconds)

    async def _emptied(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            while self._open:
                self._empty.clear()
                await self._empty.wait()

    # --- what a connection needs

    def enter(self, connection: Connection) -> None:
        self._open.add(connection)

    def leave(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._empty.set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task of its own. It calls `forget` at its end, which is cheaper than a callback."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        return task

    def forget(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._tasks.discard(task)


@hookimpl
def connection_protocol(service: ServiceView) -> Server:
    server = Server()

    def look(state: State) -> None:
        server.is_leaving = state is State.DRAINING

    service.health.watch(look)
    return server
