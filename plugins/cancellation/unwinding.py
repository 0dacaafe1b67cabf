"""The unwinding: who makes a thread leave its cancelled call, chosen by where the thread is now.

    where the thread is                          who stops it             looked at again after
    ------------------------------------------   ----------------------   ---------------------
    outside the window, or in `shield()`         nobody: it is leaving    5 ms
    waiting for a queue, event, future           we wake it               2 ms
    inside a module call, for the first 2 ms     the module boundary      what is left of these
    in a loop, Python 3.12+, for 20 ms           the loop's edge          2 ms
    where an exception lands well                an exception, sent       10 ms
    one is sent and has not arrived              nobody: a long C call    10 ms, then up to 50
    in the author's `except` or `finally`        nobody, for 1 s          2 ms
    anywhere else                                nobody: a bad moment     1 ms, then up to 10

The module boundary and the loop's edges stay armed throughout; a row says for whom we wait. After
`quarantine_seconds` the call is a ghost: its place is lost until the thread comes back, and health
says so. After `replace_seconds` the process is asked to make way for another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from .call import FLOOR, RUNNING, Call
from .edges import edges
from .modules import boundary
from .waits import waits

SWITCH_SECONDS = 0.0005  # how long another thread may keep the GIL while somebody is being stopped


TRIES = 6  # at a landing, in one step; each keeps the loop for about `SWITCH_SECONDS`


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of an unwinding may take, in seconds since the cancel."""

    module_seconds: float = 0.002
    edge_seconds: float = 0.02
    strict_seconds: float = 0.03  # of looking for a landing outside of what torch compiled
    cleanup_seconds: float = 1  # of an author's `except` and `finally`, since first seen at it
    quarantine_seconds: float = 10
    replace_seconds: float = 30


LIMITS = Limits()
Hook = Callable[[Call], None]


class Pursuit:
    """One call on its way out. Lives on the event loop; the thread knows nothing of it."""

    def __init__(self, call: Call, limits: Limits) -> None:
        self.call = call
        self.limits = limits
        self.started = time.perf_counter()
        self._cleaning_since = 0.0
        self._sent_at = 0.0
        self._refusals = 0

    def step(self) -> float:
        """Do what the table says for where the thread is; return the seconds until the next look."""
        pauses = [self._step(self.call)]
        pauses += [self._step(child) for child in list(self.call.children)]
        return min(pauses)

    def _step(self, call: Call) -> float:
        if call.phase != RUNNING or call.shields:
            return 0.005
        if waits.wake(call):
            return 0.002
        elapsed = time.perf_counter() - self.started
        if elapsed < self.limits.module_seconds and boundary.is_on(call.stack(), FLOOR):
            return self.limits.module_seconds - elapsed
        if edges.tool is not None:
            edges.watch(call.stack(), FLOOR)
            if elapsed < self.limits.edge_seconds:
                return 0.002
        return self._send(call)

    def _send(self, call: Call) -> float:
        now = time.perf_counter()
        strictly = now - self.started < self.limits.strict_seconds
        outcome = call.send(again=now - self._sent_at > 0.1, strictly=strictly)
        for _ in range(TRIES - 1):
            if outcome != "unsafe":
                break
            time.sleep(0)  # let the thread run on to another place
            outcome = call.send(strictly=strictly)
        if outcome == "sent":
            self._sent_at, self._refusals = now, 0
            return 0.01
        if outcome == "pending":
            return min(0.05, 0.01 + (now - self._sent_at))
        if outcome == "cleaning":
            self._cleaning_since = self._cleaning_since or now
            call.disturb = now - self._cleaning_since > self.limits.cleanup_seconds
            return 0.002
        if outcome == "unsafe":
            self._refusals += 1
            return 0.001 if self._refusals < 500 else 0.01
        return 0.005


class _Stopping:
    """Owns what is armed while anybody is being stopped. One per process, used on the event loop."""

    def __init__(self) -> None:
        self._pursuits: dict[Call, Pursuit] = {}

    def begin(self, call: Call, limits: Limits) -> Pursuit:
        pursuit = self._pursuits.get(call)
        if pursuit is None:
            boundary.look_for_torch()
            boundary.unwinding.add(call)
            pursuit = self._pursuits[call] = Pursuit(call, limits)
            pursuit.step()
        return pursuit

    def end(self, call: Call) -> None:
        boundary.unwinding.discard(call)
        if self._pursuits.pop(call, None) is not None and not self._pursuits:
            edges.rest()


stopping = _Stopping()


def arm(call: Call, limits: Limits = LIMITS) -> None:
    """Take the first step at once. For the token's listener; `unwind` must follow."""
    stopping.begin(call, limits)


async def unwind(
    call: Call,
    out: asyncio.Event,
    limits: Limits = LIMITS,
    *,
    on_ghost: Hook | None = None,
    on_replace: Hook | None = None,
) -> None:
    """Make the thread leave `call`, whose token is cancelled. Returns when `out` is set: it has left."""
    pursuit = stopping.begin(call, limits)
    due = [(limits.quarantine_seconds, on_ghost), (limits.replace_seconds, on_replace)]
    try:
        while not await _set_within(out, pursuit.step()):
            while due and time.perf_counter() - pursuit.started > due[0][0]:
                call.layer = "ghost"
                hook = due.pop(0)[1]
                if hook is not None:
                    hook(call)
    finally:
        stopping.end(call)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
