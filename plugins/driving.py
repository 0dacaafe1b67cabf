"""Driving: a request takes its first step at once, and has a task of its own only from where it waits.

A driver is a task that sleeps within one anyio cancel scope. To serve a request is to enter that task by
hand (asyncio's `_enter_task`, made for it), so that the first step finds the current task and the cancel
scope that it would find in a task made for it. A request that never waits ends there, and the task has
not been woken; one that waits is adopted: the task wakes up and goes on where the step has stopped. A
scope serves one request after another until one is cancelled; then its driver sees that one out and ends.

A step must not be taken within another task's step; what is to begin there begins in its task instead.
"""

from __future__ import annotations

import asyncio
import contextvars
import types
from asyncio import _enter_task, _leave_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar

import anyio

NOT_BEGUN: Any = object()
IDLE_DRIVERS = 256  # that are kept for the next requests; a number out of the air


class Stoppable(Protocol):
    """What a token offers here."""

    @property
    def cancelled(self) -> bool: ...
    def on_cancel(self, listener: Callable[[], object]) -> None: ...
    def forget(self, listener: Callable[[], object]) -> None: ...


W = TypeVar("W")


class Drivers(Generic[W]):
    """The drivers of one service. What they serve is named by a `W`, which is handed back at its end.

    `over(work, error)` is called at the end of each; before it, out of its cancel scope, `stopped(work)`
    is awaited for one that was cancelled. `keeps(work)` says that something that outlives the work
    still looks at its scope, which then serves no other.
    """

    def __init__(
        self,
        stopped: Callable[[W], Awaitable[None]],
        over: Callable[[W, BaseException | None], None],
        keeps: Callable[[W], bool],
    ) -> None:
        self._stopped, self._over, self._keeps = stopped, over, keeps
        self._idle: list[Driver[W]] = []
        self._all: set[Driver[W]] = set()

    def open(self) -> None:
        """Take the running loop as the one that all is driven on."""
        self._loop = asyncio.get_running_loop()
        self._new_scope = type(anyio.CancelScope())  # the loop's own class, which anyio would look up each time

    async def close(self) -> None:
        """End all drivers; what they still serve is cancelled."""
        tasks = [driver.task for driver in self._all]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def run(self, steps: Coroutine[Any, Any, None], token: Stoppable, work: W) -> asyncio.Task[None] | None:
        """Drive `steps`, which `token` cancels. Returns the task in which they wait, unless they are through."""
        context = contextvars.copy_context()
        if not self._idle:
            driver = Driver(self, self._loop, self._new_scope())
            self._all.add(driver)
            token.on_cancel(driver.cancel)
            driver.adopt(context, steps, token, work, NOT_BEGUN)
            return driver.task
        driver = self._idle.pop()
        token.on_cancel(driver.cancel)
        try:
            _enter_task(self._loop, driver.task)
        except RuntimeError:  # another task is in the middle of a step
            driver.adopt(context, steps, token, work, NOT_BEGUN)
            return driver.task
        try:
            waits_for = context.run(steps.send, None)
        except StopIteration:
            _leave_task(self._loop, driver.task)
            if not (token.cancelled or driver.is_cancelled):
                token.forget(driver.cancel)
                self._idle.append(driver)
                self._over(work, None)
                return None
            driver.adopt(context, _nothing(None), token, work, NOT_BEGUN)
        except BaseException as error:
            _leave_task(self._loop, driver.task)
            driver.adopt(context, _nothing(error), token, work, NOT_BEGUN)
        else:
            _leave_task(self._loop, driver.task)
            driver.adopt(context, steps, token, work, waits_for)
        return driver.task

    def rest(self, driver: Driver[W], work: W) -> bool:
        """`work` is over in `driver`'s task, uncancelled; return whether the driver goes on."""
        goes_on = len(self._idle) < IDLE_DRIVERS and not self._keeps(work)
        self._over(work, None)
        if goes_on:
            self._idle.append(driver)
        return goes_on

    async def see_out(self, driver: Driver[W], work: W, error: BaseException | None) -> None:
        """`work` was cancelled or failed, and its scope is left."""
        try:
            await self._stopped(work)
        except BaseException as another:
            error = another
        self._over(work, error)

    def left(self, driver: Driver[W]) -> None:
        self._all.discard(driver)
        if driver in self._idle:
            self._idle.remove(driver)


class Driver(Generic[W]):
    """One task and its scope. Owned by `Drivers`."""

    def __init__(self, drivers: Drivers[W], loop: asyncio.AbstractEventLoop, scope: anyio.CancelScope) -> None:
        self._drivers, self._loop, self._scope = drivers, loop, scope
        self.cancel = scope.cancel
        self._awake: asyncio.Future[None] = loop.create_future()
        self._serving: tuple[W, Stoppable] | None = None
        self._steps: tuple[contextvars.Context, Any, Any] | None = None
        self.task: asyncio.Task[None] = loop.create_task(self._live())

    @property
    def is_cancelled(self) -> bool:
        """Whether the task is, while it sleeps: what it served is seen out, and nothing follows."""
        return self._awake.done()

    def adopt(self, context: contextvars.Context, steps: Any, token: Stoppable, work: W, waits_for: Any) -> None:
        self._serving = work, token
        self._steps = context, steps, waits_for
        if not self._awake.done():
            self._awake.set_result(None)

    async def _live(self) -> None:
        error: BaseException | None = None
        try:
            with self._scope:
                while await self._serve_one():
                    pass
        except BaseException as caught:
            error = caught
        serving, self._serving = self._serving, None
        self._drivers.left(self)
        if serving is not None:
            serving[1].forget(self.cancel)
            await self._drivers.see_out(self, serving[0], error)

    async def _serve_one(self) -> bool:
        """Sleep until there is something to serve, serve it, return whether to go on."""
        thrown: BaseException | None = None
        try:
            await self._awake
        except asyncio.CancelledError as cancelled:
            if self._serving is None:
                raise
            thrown = cancelled
        assert self._serving is not None
        assert self._steps is not None
        work, token = self._serving
        steps, self._steps = self._steps, None
        await _go_on(*steps, thrown)
        if token.cancelled or self._scope.cancel_called or self.task.cancelling():
            return False
        token.forget(self.cancel)
        self._serving = None
        self._awake = self._loop.create_future()
        return self._drivers.rest(self, work)


@types.coroutine
def _go_on(context: contextvars.Context, steps: Any, waits_for: Any, thrown: BaseException | None) -> Generator[Any, Any, None]:
    """Take the steps of a coroutine in its context, from one that waits for `waits_for`, or from the first.

    `thrown` is raised where it waits, in place of waiting.
    """
    try:
        if thrown is not None:
            waits_for = context.run(steps.throw, thrown)
        elif waits_for is NOT_BEGUN:
            waits_for = context.run(steps.send, None)
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = context.run(steps.throw, error)
            else:
                waits_for = context.run(steps.send, sent)
    except StopIteration:
        return


async def _nothing(error: BaseException | None) -> None:
    """The steps of a work that has ended already, so."""
    if error is not None:
        raise error


