"""Lanes: the places in which an app works, and the line of those who wait for one.

An app has one lane with `max_multiplexing` places. A request holds a place from the start of its
work until the work is over, also when its caller has long been answered: a cancelled thread keeps
its place until it is out. Sync work runs in threads that the lane owns and keeps, one per place at
most, so a model meets the same threads for as long as the process lives. Whoever finds no place
free waits in order of arrival; whoever finds the line full is refused at once.

Jobs of the queue wait in a second line. While both lines have somebody, four direct requests get
a place and then one job: a long queue costs a direct request at most one job's time, and direct
requests cannot starve the queue.

A request that is to be `alone` goes before both lines: nobody begins any more until the others are
through, and again nobody before it is. A lane that is `shut` gives places to nobody but the app's own
`teardown`.

A thread that is through takes the next one in line by itself, without asking the event loop, and
results cross back in one wake-up for as many as are there. While work is short, one thread is woken
for all that begins in one turn of the loop: threads that fight over the interpreter are slower than
one that has it. When none has been taken up for two milliseconds, what waits gets further threads,
each millisecond twice as many as before.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, cast

import anyio

from ..schemas.events import Stopped
from ..schemas.problems import ServerError, not_taking
from ..schemas.request import Request
from .cancellation import (
    LIMITS,
    Call,
    Limits,
    Token,
    arm,
    current_scope,
    install,
    joined,
    uninstall,
    unwind,
)
from .logs import get_logger

log = get_logger("runner.lanes")

Progress = Literal["waiting", "running", "over", "dropped"]
MEMORY = 0.1  # weight of the newest run in the mean that Retry-After is guessed from; a number out of the air
DIRECT_IN_A_ROW = 4  # direct requests that get a place before a job of the queue does
SHORT_SECONDS = 0.0005  # work that takes less is not worth a second thread
CERTAIN = 3  # runs in a row that were not short; a single one may have been kept waiting by the machine
PATIENCE_SECONDS = 0.001  # in which a busy thread should come to the next of what else began
ALONE_SECONDS = 30.0  # that the others get to be through, while nobody begins; a number out of the air


class Job:
    """One request's stay in the lane. Its lane's lock guards `progress`; the loop owns the rest."""

    # Most of it differs in few requests: an object has an attribute once it does.
    progress: Progress = "waiting"
    began = ended = 0.0
    requests = 1  # that this run answers: more than one of a batch
    out: asyncio.Event | None = None  # made when somebody waits for the thread to leave
    on_stop: Callable[[], None] | None = None
    on_end: Callable[[BaseException | None], None] | None = None  # told of the error, if any
    context: contextvars.Context | None = None
    future: asyncio.Future[Any] = None  # type: ignore[assignment] # made by `enter`
    kept = False  # somebody else gives the place back
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, lane: Lane, request: Request, work: Callable[[], Any] | None) -> None:
        self.lane, self.request, self.work = lane, request, work
        self.alone = request.alone
        self.parent = request.token
        self.token = Token()  # its own: a scope inside the request may end this work alone
        if work is None:
            self.call = cast(Call, _OnLoop("returned"))
        else:
            self.call = Call(self.token, current_scope())
            self.context = contextvars.copy_context()
        self.asked = time.perf_counter()

    @property
    def is_queued(self) -> bool:
        """Whether it waits in the second line."""
        return self.request.begin is not None and not self.alone

    @property
    def children(self) -> Collection[Call]:
        """Threads that the work started and that run on."""
        return self.call.children

    @property
    def waited(self) -> float:
        """Seconds in the line."""
        return (self.began or time.perf_counter()) - self.asked

    @property
    def ran(self) -> float | None:
        """Seconds in its place so far; None before it had one."""
        return (self.ended or time.perf_counter()) - self.began if self.began else None

    @property
    def peak_bytes(self) -> int | None:
        """CUDA memory at most while it ran in its thread; of all threads together."""
        return self.call.peak_bytes

    # --- on the loop

    def __enter__(self) -> Job:
        """Give a held place back at the end of the block, and tell of what was raised in it."""
        self.kept = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.kept:
            self.lane.release(self, error)

    def enter(self, run_within: float | None, start_within: float | None) -> None:
        self.future = self.lane.loop.create_future()
        if self.alone:
            start_within = ALONE_SECONDS
        self.parent.on_cancel(self.follow)
        self.request.place = self
        if start_within is not None or run_within is not None:
            run, start_by = run_within or math.inf, self.asked + (start_within or math.inf)
            self._timer = self.lane.loop.call_later(min(run, start_within or math.inf), self._time_may_be_up, run, start_by)
        try:
            self.lane._enter(self, start_within)
        except BaseException:
            self.leave()
            self.future.cancel()
            raise

    def end_within(self, seconds: float) -> None:
        self._timer = self.lane.loop.call_later(seconds, self._time_may_be_up, seconds, math.inf)

    def ride(self, run_within: float | None) -> None:
        """Begin at the place of another job, with it, instead of waiting for one."""
        self.parent.on_cancel(self.follow)
        self.request.place = self
        if run_within is not None:
            self._timer = self.lane.loop.call_later(run_within, self._time_may_be_up, run_within, math.inf)
        self.progress, self.began = "running", time.perf_counter()
        self.future = self.lane.loop.create_future()
        self.future.set_result(None)

    def leave(self) -> None:
        """No deadline and no cancel of the request reaches this job any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.parent.forget(self.follow)

    def follow(self) -> None:
        self.stop(self.parent.reason or "")

    def stop(self, reason: str) -> None:
        """Make the work leave; in the line it never begins."""
        if not self.token.cancel(reason):
            return
        if self.lane._drop(self):
            self.call.layer = "waiting"  # whoever awaits the future is cancelled by its own scope
            self.ended = time.perf_counter()
        elif self.progress == "running":
            if self.on_stop is not None:
                self.on_stop()
            if self.work is not None:
                self.lane._unwind(self)
            else:
                self.call.layer = "scope"

    def _time_may_be_up(self, run_within: float, start_by: float) -> None:
        """One of the two deadlines has passed, unless the work began late or is over."""
        now = time.perf_counter()
        if self.progress == "waiting" and now >= start_by and self.lane._drop(self):
            self.call.layer = "waiting"
            self.future.set_exception(Crowded() if self.alone else start_timeout())
        elif self.progress == "waiting":
            self._timer = self.lane.loop.call_later(min(run_within, start_by - now), self._time_may_be_up, run_within, start_by)
        elif self.progress == "running" and now >= self.began + run_within:
            self.parent.cancel("request_timeout")
        elif self.progress == "running" and run_within < math.inf:
            self._timer = self.lane.loop.call_later(self.began + run_within - now, self._time_may_be_up, run_within, start_by)

    def hand_over(self, result: Any) -> None:
        """In the thread: give `result` to whoever waits, and go on; the place stays taken."""

        def give() -> None:
            if not self.future.done():
                self.future.set_result(result)

        self.lane.tell(give)

    def settle(self) -> None:
        """The thread is out: tell whoever waits."""
        self.leave()
        if self.out is not None:
            self.out.set()
        if self.on_end is not None:
            self.on_end(self.call.error)
        if self.request.id is not None:  # not `setup`, which is no measure of anything
            self.lane._learn((self.ended - self.began) / self.requests)
        if self.future.done():  # nobody waits
            return
        if (error := self.call.error) is None:
            self.future.set_result(self.call.result)
        elif isinstance(error, StopIteration):  # a future cannot carry one
            self.future.set_exception(RuntimeError(f"the endpoint raised {error!r}"))
        else:
            self.future.set_exception(error)

    async def stopped(self) -> Stopped | None:
        """How the cancel went, once the place is free again; None if there was none."""
        if self.progress == "running" and self.work is not None:
            if self.out is None:
                self.out = asyncio.Event()
            await self.out.wait()
        if not self.token.cancelled:
            return None
        return Stopped(
            reason=self.token.reason or "",
            layer=self.call.layer,
            seconds=max(0.0, self.ended - self.token.at),
            swallowed=self.call.swallowed,
        )


class _OnLoop:
    """What a `Call` tells of work in a thread, for work on the loop: only how a cancel went."""

    swallowed = 0
    error = None
    children = ()
    peak_bytes = None

    def __init__(self, layer: str) -> None:
        self.layer = layer


class Held(Job):
    """The stay of a request that found a place free, and works on the loop: its own scope stops it."""

    work = None
    alone = False
    call = cast(Call, _OnLoop("scope"))
    progress = "running"

    def __init__(self, lane: Lane, request: Request) -> None:
        self.lane, self.request = lane, request
        self.parent = request.token
        self.token = cast(Token, request.token)
        self.asked = self.began = time.perf_counter()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.parent.cancelled:
            self.token = NOBODY  # whoever cancels the request now does not stop this work


NOBODY = Token()


class Lane:
    """The places of one app. Made by the service, opened on its loop, closed after teardown."""

    def __init__(self, places: int, longest_line: int, *, name: str = "lane", limits: Limits = LIMITS) -> None:
        self.places, self.longest_line, self.name, self.limits = places, longest_line, name, limits
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment] # set by `open`
        self.ghosts = 0  # places whose thread outlived its cancel bound
        self._lock = threading.Lock()  # guards what follows, down to `_shut`
        self._running = 0
        self._waiting = 0  # in the first line
        self._line: deque[Job] = deque()  # dropped ones too, until their turn comes
        self._queued: deque[Job] = deque()  # the second line, of the queue's jobs
        self._in_a_row = 0  # direct requests since a job of the queue last got a place
        self._alones: deque[Job] = deque()  # those who are to be alone
        self._is_alone = False  # one of them runs
        self._shut = False
        self._ready: deque[Job] = deque()  # have their place, and wait for a thread
        self._taken = 0  # of those, since the lane was opened
        self._parked: list[threading.Lock] = []  # of threads that have nothing to do; the last one is woken first
        self._closing = False
        self._waking_threads = False
        self._patience: asyncio.TimerHandle | None = None
        self._threads: list[threading.Thread] = []
        self._through: deque[Callable[[], None]] = deque()  # on its way to the loop
        self._waking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._mean_seconds = 0.0
        self._long_in_a_row = 0  # runs over SHORT_SECONDS
        self._ended = asyncio.Semaphore(0)  # once for each thread that has ended
        self.on_ghost: Callable[[], None] | None = None  # told when `ghosts` has changed
        self.look_at: Callable[[Call], None] | None = None  # in the thread, at what a run left behind
        self.on_replace: Callable[[], None] | None = None  # told when a ghost has been one for too long
        self.on_error: Callable[[BaseException], None] | None = None  # told, before the place is passed on, of what ended a run

    def open(self) -> None:
        """Take the running loop as the one that waits for this lane's work."""
        self.loop = asyncio.get_running_loop()
        install()

    @property
    def occupancy(self) -> dict[str, int]:
        return {
            "places": self.places, "running": self._running, "waiting": self._waiting, "ghosts": self.ghosts,
        }  # fmt: skip

    async def run(
        self, work: Callable[[], Any], request: Request, *, run_within: float | None = None, start_within: float | None = None
    ) -> Any:
        """Do `work` in a thread of the lane and return what it returns.

        `run_within` is for the work, `start_within` for the wait, both in seconds. Cancelling the
        caller makes the work leave and does not wait for it. Raises ServerError 429 when the line
        is full and 504 when the work cannot begin in time.
        """
        job = Job(self, request, work)
        job.enter(run_within, start_within)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.stop("abandoned")
            raise

    def hold_now(self, request: Request, run_within: float | None) -> Job | None:
        """The same as `hold` where a place is free; None where the request has to wait for it."""
        if self.ghosts >= self.places or request.begin is not None or request.alone:
            return None
        with self._lock:
            if self._shut or self._is_alone or self._alones or self._running >= self.places:
                return None
            self._running += 1
        request.place = job = Held(self, request)
        if run_within is not None:
            job.end_within(run_within)
        return job

    async def hold(self, request: Request, *, run_within: float | None = None, start_within: float | None = None) -> Job:
        """Take a place for work on the event loop. Whoever gets it owes a `release`."""
        job = Job(self, request, None)
        job.enter(run_within, start_within)
        try:
            await job.future
        except asyncio.CancelledError:
            job.stop("abandoned")
            if job.progress == "running":  # the place came in the same moment
                self.release(job)
            raise
        return job

    def board(self, job: Job) -> bool:
        """Take `job` out of the line to begin with another, at its place; False when it does not wait any more."""
        with self._lock:
            if job.progress != "waiting" or job.alone or self._shut:
                return False
            self._waiting -= not job.is_queued
            job.progress, job.began = "running", time.perf_counter()
        if not job.future.done():
            job.future.set_result(None)
        return True

    async def take_over(self, job: Job) -> Any:
        """Do the work of `job`, which was never in the line, at a place that somebody holds: it is the job's from now on.

        The place is given back when the work is over; with no work, by `release`. Cancelling the
        caller makes the work leave and does not wait for it.
        """
        job.request.place = job
        job.progress, job.began = "running", time.perf_counter()
        job.future = self.loop.create_future()
        job.parent.on_cancel(job.follow)
        self._go(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            job.stop("abandoned")
            raise

    def release(self, job: Job, error: BaseException | None = None) -> None:
        """Give a held place to the next in line; `error` is what ended the work."""
        if error is not None and self.on_error is not None:
            self.on_error(error)
        job.leave()
        job.ended = time.perf_counter()
        self._learn((job.ended - job.began) / job.requests)
        self.pass_on(job)

    def pass_on(self, job: Job) -> None:
        """The same for a place at which nothing was done."""
        with self._lock:
            job.progress = "over"
            following = self._next(job)
        if following is not None:
            self._start(following)

    def shut(self) -> None:
        """Nobody gets a place any more. From any thread; who waits is to be turned away."""
        with self._lock:
            self._shut = True

    def turn_away(self) -> None:
        """Answer those who wait that it is in vain. Jobs of the queue are their dispatcher's."""
        with self._lock:
            turned = [job for line in (self._line, self._alones) for job in line if job.progress == "waiting" and job.request.id is not None]
            for job in turned:
                job.progress = "dropped"
                self._waiting -= not job.alone
        for job in turned:
            job.leave()
            job.call.layer = "waiting"
            if not job.future.done():
                job.future.set_exception(not_taking("the server is stopping", closes=True))

    async def close(self, seconds: float) -> bool:
        """Let the threads end; return whether all did within `seconds`. Work still waiting is dropped."""
        uninstall()
        with self._lock:
            self._closing = True
            parked, self._parked = self._parked, []
        for gate in parked:
            gate.release()
        if self._patience is not None:
            self._patience.cancel()
        with anyio.move_on_after(seconds):
            for _ in self._threads:
                await self._ended.acquire()
            for thread in self._threads:
                thread.join()  # it has said that it ends
            return True
        return False

    # --- the line

    def _enter(self, job: Job, start_within: float | None) -> None:
        if self.ghosts >= self.places:
            raise quarantined()
        with self._lock:
            if self._shut and job.request.id is not None:
                raise not_taking("the server is stopping", closes=True)
            free = self._has_place_for(job)
            if free:
                self._begin(job)
            elif job.alone:
                self._alones.append(job)
            elif job.is_queued:
                self._queued.append(job)
            elif self._waiting >= self.longest_line:
                raise too_many(self._waiting, self._expected_wait())
            elif start_within is not None and self._expected_wait() > start_within:
                raise start_timeout()
            else:
                self._waiting += 1
                self._line.append(job)
        if free:
            self._start(job)

    def _drop(self, job: Job) -> bool:
        """Take `job` out of the line; False when it is not in it."""
        with self._lock:
            if job.progress != "waiting":
                return False
            job.progress = "dropped"
            self._waiting -= not (job.is_queued or job.alone)
            for line in (self._line, self._queued, self._alones):
                while line and line[0].progress == "dropped":
                    line.popleft()
        if job.alone:  # the others waited for it
            self.tell(self._fill)
        return True

    # --- under the lock

    def _has_place_for(self, job: Job) -> bool:
        if self._is_alone:
            return False
        return self._running <= self.ghosts if job.alone else self._running < self.places and not self._alones

    def _next(self, over: Job) -> Job | None:
        """Pass on the place of one who is through, or set it free."""
        self._running -= 1
        if over.alone:
            self._is_alone = False
            self.tell(self._fill)
        return self._pick()

    def _pick(self) -> Job | None:
        """Who begins now, if anybody waits and there is a place."""
        while self._alones or self._line or self._queued:
            direct = not self._alones and bool(self._line) and (self._in_a_row < DIRECT_IN_A_ROW or not self._queued)
            line = self._alones or (self._line if direct else self._queued)
            job = line[0]
            if job.progress == "waiting":
                if not self._has_place_for(job) or (self._shut and job.request.id is not None):
                    return None
                line.popleft()
                self._waiting -= direct
                self._in_a_row = self._in_a_row + 1 if direct else 0
                self._begin(job)
                return job
            line.popleft()
        return None

    def _begin(self, job: Job) -> None:
        self._running += 1
        self._is_alone = job.alone
        job.progress = "running"
        job.began = time.perf_counter()

    # --- on the loop

    def _fill(self) -> None:
        """Give out the places that became free while somebody was alone, or waited to be."""
        while True:
            with self._lock:
                job = self._pick()
            if job is None:
                return
            self._start(job)

    def _start(self, job: Job) -> None:
        """Set a job going that has its place; on the loop."""
        if job.request.begin is None or job.alone:  # it has been noted before
            self._go(job)
        else:
            self._keep(self._note_and_go(job, job.request.begin))

    async def _note_and_go(self, job: Job, begin: Callable[[], Awaitable[None]]) -> None:
        """The same for a job of the queue, once it is noted that it begins."""
        try:
            await begin()
        except BaseException as error:
            job.leave()
            if not job.future.done():
                job.future.set_exception(error)
            if job.out is not None:
                job.out.set()
            if job.progress == "running":  # and not given back by its holder, who was cancelled
                job.ended = time.perf_counter()
                self.pass_on(job)
        else:
            self._go(job)

    def _go(self, job: Job) -> None:
        if job.work is None:
            if not job.future.done():
                job.future.set_result(None)
            return
        self._ready.append(job)
        if not self._waking_threads:
            self._waking_threads = True
            self.loop.call_soon(self._wake_threads)

    def _wake_threads(self) -> None:
        """Find threads for all that has begun in this turn of the loop; for short work, one."""
        self._waking_threads = False
        is_short = self._long_in_a_row < CERTAIN
        if is_short and self._ready and self._patience is None:
            self._patience = self.loop.call_later(PATIENCE_SECONDS, self._lose_patience, self._taken, 0)
        busy = len(self._threads) - len(self._parked)
        self._wake(len(self._ready) if not is_short else 0 if busy else 1)

    def _lose_patience(self, taken: int, threads: int) -> None:
        """Wake so many threads when no job was taken since there were `taken`, and ready ones wait."""
        self._patience = None
        if self._ready:
            if stuck := self._taken == taken:
                self._wake(min(threads, len(self._ready)))
            threads = max(1, 2 * threads) if stuck else 0  # the first time the thread may not have had its turn
            self._patience = self.loop.call_later(PATIENCE_SECONDS, self._lose_patience, self._taken, threads)

    def _wake(self, wanted: int) -> None:
        with self._lock:
            gates = [self._parked.pop() for _ in range(min(wanted, len(self._parked)))]
        for gate in gates:
            gate.release()
        for _ in range(min(wanted - len(gates), self.places - len(self._threads))):
            thread = threading.Thread(target=self._serve, name=f"runner-{self.name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _expected_wait(self) -> float:
        """Seconds until a newcomer's turn, guessed from the mean of recent runs."""
        return (self._waiting + 1) * self._mean_seconds / self.places

    def _learn(self, seconds: float) -> None:
        self._mean_seconds += (seconds - self._mean_seconds) * (MEMORY if self._mean_seconds else 1)

    # --- in the threads

    def _serve(self) -> None:
        with joined(self.loop):
            self._serve_until_told()

    def _serve_until_told(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        while (job := self._next_ready(gate)) is not None:
            following: Job | None = job
            while following is not None:
                job, following = following, None
                assert job.context is not None
                assert job.work is not None
                taken_up = time.perf_counter()
                job.context.run(job.call.invoke, job.work)
                if self.look_at is not None:
                    self._look(job)
                if job.call.error is not None and self.on_error is not None:
                    self.on_error(job.call.error)
                job.ended = time.perf_counter()
                with self._lock:
                    self._long_in_a_row = self._long_in_a_row + 1 if job.ended - taken_up > SHORT_SECONDS else 0
                    job.progress = "over"
                    following = self._next(job)
                self.tell(job.settle)
                if following is not None and (following.work is None or following.is_queued):
                    self.tell(_granted(following))
                    following = None
                if job.call.retire:
                    self.tell(partial(self._retire, threading.current_thread(), following))
                    return
            del job  # holds the last result while nobody calls
        self.tell(self._ended.release)

    def _look(self, job: Job) -> None:
        """Have it looked at what a run left behind; if that fails, the thread goes on and the caller is answered."""
        assert self.look_at is not None
        try:
            self.look_at(job.call)
        except Exception as error:
            log.error("lane.look_failed", request_id=job.request.id, error=repr(error))

    def _next_ready(self, gate: threading.Lock) -> Job | None:
        """The next job that has begun, waiting for one; None when the lane closes."""
        while True:
            with self._lock:
                if self._ready:
                    self._taken += 1
                    return self._ready.popleft()
                if self._closing:
                    return None
                self._parked.append(gate)
            gate.acquire()  # until `_wake`

    def tell(self, what: Callable[[], None]) -> None:
        """Have the loop call `what`. From any thread; many at a time cost one wake-up."""
        self._through.append(what)
        if not self._waking:
            self._waking = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self.loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        self._waking = False  # before reading: what comes later wakes the loop again
        while self._through:
            self._through.popleft()()

    # --- cancelling

    def _unwind(self, job: Job) -> None:
        if job.out is None:
            job.out = asyncio.Event()
        arm(job.call, self.limits)
        self._keep(self._see_out(job, job.out))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_out(self, job: Job, out: asyncio.Event) -> None:
        await unwind(job.call, out, self.limits, on_ghost=self._haunt, on_replace=self._give_up)
        if job.call.layer == "ghost":
            log.warning("lane.ghost_gone", request_id=job.request.id, seconds=round(job.ended - job.token.at, 3))
            self._count_ghosts(-1)

    def _haunt(self, call: Call) -> None:
        """A cancelled thread does not leave: its place is lost until it does."""
        log.error("lane.ghost", seconds=round(time.perf_counter() - call.token.at, 3), at=call.whereabouts())
        self._count_ghosts(1)

    def _count_ghosts(self, more: int) -> None:
        self.ghosts += more
        if self._alones:  # a ghost is no company
            self._fill()
        if self.on_ghost is not None:
            self.on_ghost()

    def _give_up(self, call: Call) -> None:
        log.error("lane.stuck", seconds=round(time.perf_counter() - call.token.at, 3), at=call.whereabouts())
        if self.on_replace is not None:
            self.on_replace()

    def _retire(self, thread: threading.Thread, following: Job | None) -> None:
        """A thread whose torch state cannot be put back has ended: another takes over."""
        log.warning("lane.thread_retired", thread=thread.name)
        self._threads.remove(thread)
        if following is not None:
            self._start(following)


class Crowded(Exception):
    """Who was to be alone has waited too long for the others to be through."""


def _granted(job: Job) -> Callable[[], None]:
    def grant() -> None:
        if job.work is not None or not job.future.done():
            job.lane._start(job)
        elif job.progress == "running":  # cancelled in the same moment, and not yet given back
            job.lane.release(job)

    return grant


def quarantined() -> ServerError:
    return ServerError(503, "all places are held by work that does not stop", "runner_scheduling_failure", {"Retry-After": "10"})


def too_many(waiting: int, expected_wait: float) -> ServerError:
    seconds = str(max(1, math.ceil(expected_wait)))
    return ServerError(
        429, f"{waiting} requests wait already; try again in {seconds} s", "concurrent_requests_limit", {"Retry-After": seconds}
    )


def start_timeout() -> ServerError:
    return ServerError(
        504, "the request could not begin in the time its caller gave it", "request_timeout", {"X-Fal-Request-Timeout-Type": "user"}
    )
