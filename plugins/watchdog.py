"""The watchdog: it tells where every thread is when the event loop no longer turns.

Blocking code in an async method stops everything in the process that is Python, so nothing written in
Python could say so. `faulthandler` has a thread in C: the loop puts it off once a second, and when
that does not happen for `stall_seconds` it writes all stacks to stderr. When the loop comes back,
the log says for how long it was gone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ..schemas.service import ServiceView
from .hookspecs import hookimpl
from .logs import get_logger

log = get_logger("runner.watchdog")

LOOK_SECONDS = 1.0


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return _watched(service.settings.stall_seconds)


@asynccontextmanager
async def _watched(stall_seconds: float) -> AsyncIterator[None]:
    descriptor = _stderr()
    if descriptor is None:  # a host without one of its own
        yield
        return
    looking = asyncio.create_task(_look(stall_seconds, descriptor))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        faulthandler.cancel_dump_traceback_later()


async def _look(stall_seconds: float, descriptor: int) -> None:
    pause = min(LOOK_SECONDS, stall_seconds / 4)
    while True:
        faulthandler.dump_traceback_later(stall_seconds, file=descriptor)
        before = time.perf_counter()
        await asyncio.sleep(pause)
        gone = time.perf_counter() - before - pause
        if gone > stall_seconds:
            log.error("loop.stalled", seconds=round(gone, 3), help="an async method blocks; make it sync, or await in it")


def _stderr() -> int | None:
    try:
        return sys.__stderr__.fileno() if sys.__stderr__ is not None else None
    except (OSError, ValueError, io.UnsupportedOperation):
        return None
