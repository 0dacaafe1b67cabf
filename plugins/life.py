"""Life: an app from `setup` to `teardown`, the lanes it works in, and how both are wound up.

`setup` runs beside the open socket, in the thread that will serve; a failure is said on `/health` and
ends nothing by itself. A drain lets running requests finish within the grace period and then cancels
them; `teardown` has what is left of it. Threads that outlive their cancel make the app unhealthy,
and in the end have the process replaced; so does a cancelled run that left the model changed.

A process that succeeds one which was ready has its callers wait while it starts: they were told nothing of a
change, and shall notice none.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio

from ..schemas.app import Options
from ..schemas.exits import MODEL_CHANGED, STUCK
from ..schemas.health import Health, State
from ..schemas.problems import ServerError, not_taking
from ..schemas.request import Request
from ..schemas.settings import Settings
from ..schemas.tracebacks import trimmed
from .cancellation import Call, Fingerprint, Limits
from .lanes import Lane, start_timeout
from .logs import get_logger

log = get_logger("runner")

GRACE_FOR_WORK = 0.8  # of the grace period; the rest is for cancelled work and teardown
READERS_SECONDS = 0.5  # at the end of a drain, for those who only read to get the end of what they read
SUCCEEDS_VARIABLE = "RUNNER_SUPERVISOR_SUCCEEDS"  # of plugins/supervising.py, which must not be imported for it
ASIDE_PLACES = 8  # for cancel endpoints and health checks; threads are made when first needed


class InFlight(Protocol):
    """The requests that are not answered yet, without those who only read: `plugins/stopping.py`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    async def none_left(self) -> None: ...
    async def end_readers(self) -> None: ...


class Life:
    """Owns the lanes of one app. Made by the service, lived on its loop."""

    def __init__(self, instance: Any, options: Options, settings: Settings, health: Health) -> None:
        self._instance, self._options, self._health = instance, options, health
        limits = Limits(quarantine_seconds=settings.stuck_seconds / 3, replace_seconds=settings.stuck_seconds)
        self.lane = Lane(options.max_multiplexing, settings.max_queued_requests, limits=limits)
        self._fingerprint: Fingerprint | None = None  # of the app's torch modules, once they are set up
        self.aside = Lane(ASIDE_PLACES, settings.max_queued_requests, name="aside", limits=limits)
        self.on_error: Callable[[BaseException], None] | None = None  # set by assembly; told of what ends runs from READY on
        self._succeeds = os.environ.pop(SUCCEEDS_VARIABLE, "") == "1"
        self._most_waiting = settings.max_queued_requests
        self._at_the_door: set[asyncio.Future[None]] = set()  # of those who wait for the app to be ready
        health.watch(self._open_door)

    @asynccontextmanager
    async def lived(self) -> AsyncIterator[None]:
        """Set the app up beside whatever runs inside; tear it down at the end."""
        for lane in (self.lane, self.aside):
            lane.open()
            lane.on_ghost = self._haunted
            lane.on_replace = self._stuck
        setting_up = asyncio.create_task(self._set_up())
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._tear_down(setting_up)

    async def _set_up(self) -> None:
        began, limit = time.perf_counter(), self._options.startup_timeout
        try:
            with anyio.move_on_after(limit) as scope:
                await self._in_lane(self._instance.setup)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.error("setup.failed", exc_info=trimmed(error))
            self._health.become(State.FAILED, f"setup failed: {error!r}")
            return
        if scope.cancelled_caught:
            reason = f"setup took longer than startup_timeout, {limit:g} s"
            log.error("setup.failed", reason=reason)
            self._health.become(State.FAILED, reason)
            return
        if sys.modules.get("torch") is not None:
            self._fingerprint = Fingerprint(self._instance)
            self.lane.look_at = self._look_at_model
        for lane in (self.lane, self.aside):
            lane.on_error = self.on_error
        if self._health.become(State.READY):
            log.info("app.ready", seconds=round(time.perf_counter() - began, 3))

    def _look_at_model(self, call: Call) -> None:
        """In the lane's thread, after each run: a cancelled one may have left the model half changed."""
        assert self._fingerprint is not None
        if not call.token.cancelled:
            self._fingerprint.learn()
        elif changed := self._fingerprint.changed():
            log.error("cancel.model_changed", changed=changed[:20], help="wrap what must be done whole in runner.shield()")
            self.give_up(MODEL_CHANGED, f"a cancelled run left the model changed: {', '.join(changed[:3])}")
        if call.bytes_left > 0:
            log.warning("cancel.memory_left", bytes=call.bytes_left)

    def give_up(self, exit_code: int, reason: str) -> None:
        """From any thread: nothing begins any more, and the process shall be replaced.

        At once, so that who is next in line does not begin on what is broken. Those who wait are
        answered 503; jobs of the queue stay for the next process.
        """

        def replace() -> None:
            self.lane.turn_away()
            self._health.replace(exit_code, reason)

        self.lane.shut()
        self.lane.tell(replace)

    # --- at the door

    def refusal(self) -> ServerError:
        """Why nothing is begun at present."""
        why = {State.STARTING: "the app is still starting", State.DRAINING: "the server is stopping"}
        state = self._health.state
        return not_taking(why.get(state, "the app is not available"), closes=state is State.DRAINING)

    async def admit(self, seconds: float | None) -> None:
        """Return once requests are taken, if that is to be waited for: for so many seconds. Raises the refusal."""
        if self._succeeds and self._health.state is State.STARTING and len(self._at_the_door) < self._most_waiting:
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._at_the_door.add(opened)
            try:
                with anyio.move_on_after(seconds) as waiting:
                    await opened
            finally:
                self._at_the_door.discard(opened)
            if waiting.cancelled_caught:
                raise start_timeout()
        if not self._health.takes_requests:
            raise self.refusal()

    def _open_door(self, state: State) -> None:
        for opened in self._at_the_door:
            if not opened.done():
                opened.set_result(None)

    # --- the end

    async def drain(self, running: InFlight) -> None:
        """Let requests that run finish within the grace period, then cancel them and have them answered."""
        seconds = self._options.termination_grace_period_seconds
        with anyio.move_on_after(seconds * GRACE_FOR_WORK) as scope:
            await running.none_left()
        if scope.cancelled_caught:  # not for who asked something in the very moment in which all were through
            log.warning("drain.cancelling", requests=len(running))
            for request in running:
                request.token.cancel("draining")
            with anyio.move_on_after(max(0.2, seconds * (1 - GRACE_FOR_WORK) / 2)):
                await running.none_left()
        with anyio.move_on_after(READERS_SECONDS):
            await running.end_readers()

    async def _tear_down(self, setting_up: asyncio.Task[None]) -> None:
        seconds = max(0.5, self._options.termination_grace_period_seconds * (1 - GRACE_FOR_WORK))
        for lane in (self.lane, self.aside):
            lane.on_error = None
        was_set_up = setting_up.done() and self._health.state is not State.FAILED
        if not setting_up.done():
            setting_up.cancel()
            await asyncio.wait([setting_up])
        if was_set_up:
            try:
                with anyio.move_on_after(seconds) as scope:
                    await self._in_lane(self._instance.teardown)
                if scope.cancelled_caught:
                    log.error("teardown.failed", reason=f"it took longer than {seconds:g} s, what was left of the grace period")
            except BaseException as error:
                log.error("teardown.failed", exc_info=trimmed(error))
        for lane in (self.lane, self.aside):
            if not await lane.close(seconds):
                log.warning("lane.left_behind", lane=lane.name, reason="a thread does not end; the process ends without it")

    async def _in_lane(self, function: Callable[[], Any]) -> None:
        """Call a hook of the app where its endpoints of that kind run: the model meets one thread."""
        left = await function() if inspect.iscoroutinefunction(function) else await self.lane.run(function, Request())
        if inspect.isawaitable(left):
            left = await left
        if left is False:
            name = getattr(function, "__name__", "setup")
            log.warning(f"{name}.returned", value=left, help=f"what {name} returns is not looked at; raise when it failed")

    async def beside(self, function: Callable[[], Any]) -> Any:
        """Call a function of the app past its places: what looks after it must not wait for it."""
        if inspect.iscoroutinefunction(function):
            return await function()
        said = await self.aside.run(function, Request())
        return await said if inspect.isawaitable(said) else said

    def _haunted(self) -> None:
        """A thread outlived its cancel bound, or came back: not ready meanwhile."""
        if ghosts := self.lane.ghosts + self.aside.ghosts:
            self._health.ail("lanes", f"{ghosts} places are held by work that does not stop")
        else:
            self._health.recover("lanes")

    def _stuck(self) -> None:
        self._health.replace(STUCK, "cancelled work did not leave its thread")
