"""Life: an app from `setup` to `teardown`, the lanes it works in, and how both are wound up.

`setup` runs beside the open socket, in the thread that will serve; a failure is said on `/health` and
ends nothing by itself. A drain lets running requests finish within the grace period and then cancels
them; `teardown` has what is left of it. Threads that outlive their cancel make the app unhealthy,
and in the end have the process replaced; so does a cancelled run that left the model changed.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import anyio

from ..schemas.app import Options
from ..schemas.exits import MODEL_CHANGED, STUCK
from ..schemas.health import Health, State
from ..schemas.request import Request
from ..schemas.settings import Settings
from .cancellation import Call, Fingerprint, Limits
from .lanes import Lane
from .logs import get_logger

log = get_logger("runner")

GRACE_FOR_WORK = 0.8  # of the grace period; the rest is for cancelled work and teardown
ASIDE_PLACES = 8  # for cancel endpoints and health checks; threads are made when first needed


class InFlight(Protocol):
    """The requests that are not answered yet: `plugins/stopping.py`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...
    async def none_left(self) -> None: ...


class Life:
    """Owns the lanes of one app. Made by the service, lived on its loop."""

    def __init__(self, instance: Any, options: Options, settings: Settings, health: Health) -> None:
        self._instance, self._options, self._health = instance, options, health
        limits = Limits(quarantine_seconds=settings.stuck_seconds / 3, replace_seconds=settings.stuck_seconds)
        self.lane = Lane(options.max_multiplexing, settings.max_queued_requests, limits=limits)
        self._fingerprint: Fingerprint | None = None  # of the app's torch modules, once they are set up
        self.aside = Lane(ASIDE_PLACES, settings.max_queued_requests, name="aside", limits=limits)

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
            log.error("setup.failed", exc_info=error)
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
        if self._health.become(State.READY):
            log.info("app.ready", seconds=round(time.perf_counter() - began, 3))

    def _look_at_model(self, call: Call) -> None:
        """In the lane's thread, after each run: a cancelled one may have left the model half changed."""
        assert self._fingerprint is not None
        if not call.token.cancelled:
            self._fingerprint.learn()
        elif changed := self._fingerprint.changed():
            self.lane.tell(partial(self._model_changed, changed))
        if call.bytes_left > 0:
            log.warning("cancel.memory_left", bytes=call.bytes_left)

    def _model_changed(self, changed: list[str]) -> None:
        log.error("cancel.model_changed", changed=changed[:20], help="wrap what must be done whole in runner.shield()")
        self._health.replace(MODEL_CHANGED, f"a cancelled run left the model changed: {', '.join(changed[:3])}")

    async def drain(self, running: InFlight) -> None:
        """Let requests that run finish within the grace period, then cancel them and have them answered."""
        seconds = self._options.termination_grace_period_seconds
        with anyio.move_on_after(seconds * GRACE_FOR_WORK):
            await running.none_left()
        if not len(running):
            return
        log.warning("drain.cancelling", requests=len(running))
        for request in running:
            request.token.cancel("draining")
        with anyio.move_on_after(max(0.2, seconds * (1 - GRACE_FOR_WORK) / 2)):
            await running.none_left()

    async def _tear_down(self, setting_up: asyncio.Task[None]) -> None:
        seconds = max(0.5, self._options.termination_grace_period_seconds * (1 - GRACE_FOR_WORK))
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
                log.error("teardown.failed", exc_info=error)
        for lane in (self.lane, self.aside):
            if not await lane.close(seconds):
                log.warning("lane.left_behind", lane=lane.name, reason="a thread does not end; the process ends without it")

    async def _in_lane(self, function: Callable[[], Any]) -> None:
        """Call a hook of the app where its endpoints of that kind run: the model meets one thread."""
        if inspect.iscoroutinefunction(function):
            await function()
        elif inspect.isawaitable(left := await self.lane.run(function, Request())):
            await left

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
