"""Cancels on trial: an endpoint is stopped at its n-th checkpoint, and everything must be as before.

A checkpoint is where a cancel is certain to be noticed:

- in a sync method, each call of `runner.checkpoint()` and of an `nn.Module` (in a thread that the
  method started, too), outside of `runner.shield()`;
- in an async method, a generator or not, each await that has to wait.

At the n-th one the request's token is cancelled, as when its caller leaves, and the thread is held
there until the lane has begun to stop it: so it is that checkpoint that notices, every time, and all
that follows is the real lane at work.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, overload

import anyio
import msgspec

from ...schemas.events import Finished
from ...schemas.files import File
from ..cancellation import Call, try_out
from ..streaming import Task
from .async_client import AsyncBoundEndpoint
from .census import Census
from .client import BoundEndpoint
from .core import Core
from .errors import AppClientError, TestingError

HOLD_SECONDS = 10  # at most, at the checkpoint
SETTLE_SECONDS = 2.0  # for threads that the work started to end after it
LOOK_SECONDS = 0.01


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """How the trial went."""

    checkpoint: int
    layer: str  # what stopped it: see docs/cancellation.md
    seconds: float  # from the cancel until the place was free again
    swallowed: int  # times that the endpoint's code caught the cancel and went on
    answer: Any  # of the run before, which the run after has equalled


def equal(one: Any, other: Any) -> bool:
    """Whether two answers are the same; files by their bytes, not by where they lie."""
    if isinstance(one, File) and isinstance(other, File):
        return one.as_bytes() == other.as_bytes()
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, msgspec.Struct):
        return all(equal(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    if hasattr(one, "__pydantic_fields__"):
        return all(equal(getattr(one, name), getattr(other, name)) for name in type(one).__pydantic_fields__)
    return bool(one == other)


class cancel_at:
    """Cancel an endpoint at its `n`-th checkpoint, and assert that nothing is left of it:

        cancel_at(3)(client.generate, prompt="a cat", steps=20)

    The endpoint is called three times with these arguments: to its end, cancelled, and to its end again.
    AssertionError when there is no n-th checkpoint; when the place in the lane is not free `within` so
    many seconds; when a thread, an open file, a tensor or memory of the GPU is there that was not there
    before; and when the last answer differs from the first, by `same`. `same=None` is for endpoints
    whose answers differ anyway. The app must run in the process of the test. Await it with an async client.
    """

    def __init__(self, n: int, *, same: Callable[[Any, Any], bool] | None = equal, within: float = 10.0) -> None:
        if n < 1:
            raise ValueError(f"cancel_at({n}): the first checkpoint is 1")
        self._n, self._same, self._within = n, same, within

    @overload
    def __call__(self, endpoint: BoundEndpoint, /, *arguments: Any, **fields: Any) -> Cancelled: ...
    @overload
    def __call__(self, endpoint: AsyncBoundEndpoint, /, *arguments: Any, **fields: Any) -> Awaitable[Cancelled]: ...
    def __call__(self, endpoint: BoundEndpoint | AsyncBoundEndpoint, /, *arguments: Any, **fields: Any) -> Any:
        __tracebackhide__ = True
        if not isinstance(endpoint, BoundEndpoint | AsyncBoundEndpoint):
            raise TypeError(f"cancel_at({self._n}) takes an endpoint of a client and its arguments: cancel_at({self._n})(client.generate, prompt='x')")
        core: Core = endpoint._client._core
        if core.host.service is None:
            raise TestingError("cancel_at needs the app in this process: AppClient(MyApp), without serve or url")
        if endpoint.endpoint.mark.is_websocket:
            raise TypeError(f"{endpoint.endpoint.name} is realtime; cancel_at takes endpoints that answer requests")
        trial = Trial(core, endpoint, self._n, self._within, arguments, fields)
        if isinstance(endpoint, BoundEndpoint):
            first, after, report = endpoint._client._call(trial.run)
            return self._judged(endpoint, first, after, report)

        async def judged() -> Cancelled:
            first, after, report = await trial.run()
            return await asyncio.to_thread(self._judged, endpoint, first, after, report)  # files are read for it

        return judged()

    def _judged(self, endpoint: Any, first: Any, after: Any, report: Cancelled) -> Cancelled:
        __tracebackhide__ = True
        if self._same is not None and not self._same(first, after):
            raise AssertionError(
                f"{endpoint.endpoint.name}: after the cancel at checkpoint {self._n} the same call answers differently:\n"
                f"  before: {first!r}\n  after:  {after!r}\n"
                "Either the cancel left something half changed (runner.shield() is for what must be done whole), or no two "
                "answers are alike: then seed it, or give cancel_at(…, same=None)."
            )
        return report


class Trial:
    """One cancel of one endpoint. Runs on the client's loop."""

    def __init__(self, core: Core, endpoint: Any, n: int, within: float, arguments: Any, fields: Any) -> None:
        self._core, self._endpoint, self._headers = core, endpoint.endpoint, endpoint._headers
        self._n, self._within, self._arguments, self._fields = n, within, arguments, fields
        self._service = core.host.service
        self._id = str(uuid.uuid4())
        self._lock = threading.Lock()  # guards the count: threads that the work started count too
        self._count = 0
        self._call: Call | None = None  # in whose thread the n-th checkpoint was
        self._finished: asyncio.Future[Finished] = None  # type: ignore[assignment] # made by `run`

    async def run(self) -> tuple[Any, Any, Cancelled]:
        first = await self._drained(self._headers)
        with Census([self._service.lane, self._service.life.aside]) as census:
            finished = await self._cancelled()
            left = await self._left(census)
        name = f"{self._endpoint.name}: after the cancel at checkpoint {self._n}"
        if left:
            raise AssertionError(f"{name}\n" + "\n".join(f"  {line}" for line in left))
        try:
            after = await self._drained(self._headers)
        except AppClientError as error:
            raise AssertionError(f"{name} the same call fails: {error}") from error
        stopped = finished.stopped
        assert stopped is not None
        report = Cancelled(
            checkpoint=self._n, layer=stopped.layer, seconds=stopped.seconds, swallowed=stopped.swallowed, answer=first
        )
        return first, after, report

    async def _drained(self, headers: Any) -> Any:
        if not self._endpoint.streams:
            return await self._core.call(self._endpoint, self._arguments, self._fields, headers)
        return [item async for item in self._core.stream(self._endpoint, self._arguments, self._fields, headers, [])]

    async def _cancelled(self) -> Finished:
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        recorder = self._core.host.recorder  # type: ignore[attr-defined]
        recorder.listeners.append(self._told)
        transport: Any = self._core.host.transport
        if not self._endpoint.is_async:
            try_out(self._look)
        elif self._endpoint.streams:
            loop.set_task_factory(self._task)
        else:
            transport.drive = self._stepped
        try:
            await self._drained({**self._headers, "x-fal-request-id": self._id})
        except AppClientError as error:
            if self._count < self._n:
                raise AssertionError(f"{self._endpoint.name} failed before its checkpoint {self._n}: {error}") from error
        finally:
            transport.drive = None
            loop.set_task_factory(None)
            try_out(None)
        if self._count < self._n:
            recorder.listeners.remove(self._told)
            hint = "" if self._count else ": call runner.checkpoint() in its loops, or count on cancels that no checkpoint is needed for"
            raise AssertionError(f"{self._endpoint.name} came to its end after {self._count} checkpoints, before number {self._n}{hint}")
        try:
            async with asyncio.timeout(self._within):
                return await self._finished
        except TimeoutError:
            where = f"; it is at {self._call.whereabouts()}" if self._call is not None else ""
            raise AssertionError(
                f"{self._endpoint.name}: {self._within:g} s after the cancel at checkpoint {self._n} its place is not free{where}"
            ) from None
        finally:
            recorder.listeners.remove(self._told)

    def _told(self, finished: Finished) -> None:
        if finished.request_id == self._id and not self._finished.done():
            self._finished.set_result(finished)

    async def _left(self, census: Census) -> list[str]:
        """What is there that was not there before, once what takes a moment to go has gone."""
        end, pause = time.monotonic() + SETTLE_SECONDS, LOOK_SECONDS
        while left := census.left():
            if time.monotonic() > end:
                return left
            await anyio.sleep(pause)
            pause *= 2
        return []

    # --- checkpoints

    def _request(self) -> Any:
        return self._service.running_now._by_id.get(self._id)

    def _look(self, call: Call) -> None:
        """In the thread of some work, at a checkpoint of it."""
        request = self._request()
        place = request.place if request is not None else None
        if place is None or place.token is not call.token or call.shields or call.token.cancelled:
            return
        with self._lock:
            self._count += 1
            if self._count != self._n:
                return
        self._call = call
        gate = threading.Lock()
        gate.acquire()

        def cancel() -> None:
            call.token.on_cancel(gate.release)
            request.token.cancel("client_cancelled")

        self._service.lane.loop.call_soon_threadsafe(cancel)
        gate.acquire(timeout=HOLD_SECONDS)

    def _stepped(self, work: Coroutine[Any, Any, None]) -> Awaitable[None]:
        return _Steps(work, self._step)

    def _step(self) -> None:
        """On the loop: the request's task is about to wait for something."""
        request = self._request()
        if request is None or request.place is None or request.place.progress != "running" or request.token.cancelled:
            return
        self._count += 1
        if self._count == self._n:
            asyncio.get_running_loop().call_soon(request.token.cancel, "client_cancelled")

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        """The loop's tasks while an async generator is on trial: that in which it runs is stepped."""
        if getattr(work, "cr_code", None) is Task._run.__code__:
            work = _awaited(_Steps(work, self._step))
        return asyncio.Task(work, loop=loop, **options)


async def _awaited(steps: _Steps) -> None:
    await steps


class _Steps:
    """A coroutine that tells each time it waits."""

    def __init__(self, work: Coroutine[Any, Any, None], step: Callable[[], None]) -> None:
        self._work, self._step = work, step

    def __await__(self) -> Generator[Any, Any, None]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(value) if error is None else self._work.throw(error)
            except StopIteration:
                return
            self._step()
            value = error = None
            try:
                value = yield waits_for
            except BaseException as thrown:
                error = thrown
