"""Telling: observers hear of every request once it is over, and of a stopped one once its place is free;
and of every exception that ends a run, where and when it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..schemas.endpoint import Endpoint
from ..schemas.events import Finished, Stopped
from ..schemas.request import Request
from .logs import get_logger

log = get_logger("runner")

Observe = Callable[[Finished], None]
OnError = Callable[[BaseException], None]


def tell_all(observers: Sequence[OnError]) -> OnError | None:
    """One function that tells all of `observers` and never raises; None for none."""
    if not observers:
        return None

    def tell(error: BaseException) -> None:
        for observe in observers:
            try:
                observe(error)
            except Exception as failure:
                log.error("observer.failed", exc_info=failure)

    return tell


class Outcome(Protocol):
    """What became of a request or a socket: `Reply` and `Wire` know."""

    @property
    def endpoint(self) -> Endpoint | None: ...
    @property
    def route(self) -> str: ...
    @property
    def status(self) -> int:
        """0: no head was sent."""
        ...

    @property
    def bytes_out(self) -> int: ...
    @property
    def error_type(self) -> str | None: ...
    @property
    def items(self) -> int | None: ...
    @property
    def why(self) -> str | None:
        """Why a socket ended."""
        ...


class Teller:
    """Tells the observers of one service, on its loop. Owns the tasks that wait for a place to be free."""

    def __init__(self, blame: Callable[[BaseException], dict[str, str]] = lambda error: {}) -> None:
        self._blame = blame  # says whose an error was
        self.observers: tuple[Observe, ...] = ()  # filled in by assembly
        self._waiting: set[asyncio.Task[None]] = set()

    def tell(self, request: Request, outcome: Outcome, began: float) -> None:
        """`request` is over; it began at `began`, by `time.perf_counter`."""
        place, seconds = request.place, time.perf_counter() - began
        if not request.token.cancelled or place is None:
            self._tell(request, outcome, seconds, place, None)
            request.place = None  # which knows the request: end the circle
            return

        async def once_out() -> None:
            self._tell(request, outcome, seconds, place, await place.stopped())

        task = asyncio.get_running_loop().create_task(once_out())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _tell(self, request: Request, outcome: Outcome, seconds: float, place: Any, stopped: Stopped | None) -> None:
        # A socket, which has no method, always ends by somebody's leaving.
        gone = request.token.reason == "client_disconnected" and request.method is not None
        finished = Finished(
            request_id=request.id or "",
            method=request.method or "WS",
            path=request.path,
            endpoint=outcome.endpoint.path if outcome.endpoint else None,
            route=outcome.route,
            status=499 if gone or not outcome.status else outcome.status,
            seconds=seconds,
            waited=place.waited if place is not None else 0.0,
            bytes_out=outcome.bytes_out,
            client=request.client,
            error_type="client_disconnected" if gone else outcome.error_type,
            stopped=stopped,
            items=outcome.items,
            quiet=request.quiet,
            ended=outcome.why,
            ran=place.ran if place is not None else None,
            peak_bytes=place.peak_bytes if place is not None else None,
            trace=request.trace,
        )
        for observe in self.observers:
            try:
                observe(finished)
            except Exception as error:
                log.error("plugin.failed", hook="observe_requests", **self._blame(error), exc_info=error)
