"""The dispatcher: jobs on their way from the store through the app's places to their end.

Each job that is not over has one `Live` here. Every step is a change in the store first, and only
one that the store made is shown, so whatever was shown once is still true after a crash. A job
runs as a direct request does, through the service, under the same cancellation; it waits in the
lane's second line and its attempt is counted, for good, before it begins. At most as many jobs as
the app has places are taken out of the line, so a normal job overtakes the low ones to the last; of
a batched endpoint, as many as fill the batches that run and those that come next.

When the process dies, the next one finds in the store what waited (it waits on) and what ran (see
`retries`). When the server stops, what waits and what had to be cut short begin after the next start.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal
from uuid import uuid4

import anyio
import msgspec

from ...schemas.endpoint import Endpoint
from ...schemas.health import State
from ...schemas.problems import ConfigError, RequestCancelled, ServerError, stopped_problem
from ...schemas.queue import (
    ENDS,
    Job,
    JobChange,
    JobMove,
    JobOutcome,
    JobState,
    LogLine,
    QueueStore,
    StoreTaken,
    Unstorable,
)
from ...schemas.request import Request
from ...schemas.response import JSON, Response
from ...schemas.routes import compiled
from ...schemas.service import ServiceView
from ..cancellation import Token
from ..eventlog import EventLog
from ..logs import get_logger
from .attempt import Answer, internal_error, lost, problem_of, scope_of
from .line import Line
from .live import Live
from .retries import CRASHES, is_tried_again, may_run_after_crash, pause

log = get_logger("runner.queue")

RECENT = 1000  # ended jobs that are kept at hand, so that the last polls cost no look into the store
LINES_AT_HAND = 200  # of an ended job; one with more is looked up in the store
MOST_EVENTS_PER_SECOND = 10_000  # of one job, in the mean
UNSTORABLE_SECONDS = 1.0  # until the next try at what the store refused
SWEEP_SECONDS = 60.0
LET_GO_SECONDS = 3600.0  # for which a result is there that its caller wanted not to be kept (contract 7.7)
STORING_SECONDS = 5.0  # at the end, for the store to take what is left
MEMORY = 0.1  # weight of the newest run in the mean that waits are guessed from; a number out of the air
FAULT = "x-runner-fault"  # on an answer: "fatal" when the process is beyond help
NOT_KEPT = ("content-length", "date", "x-fal-request-id", "connection", "transfer-encoding")

Cancelled = Literal["OK", "CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]


class Refused(Exception):
    """The store does not let this attempt begin: the job ended in the same moment."""


class Dispatcher:
    """The owner of all jobs that are not over. Lives on the event loop, between `running()`'s ends."""

    def __init__(self, service: ServiceView, store: QueueStore, *, clock: Callable[[], float] = time.time) -> None:
        self._service, self.store, self._clock = service, store, clock
        self._places = service.lanes["places"]
        self._endpoints = [(compiled(endpoint.path), endpoint) for endpoint in service.endpoints]
        self._live: dict[str, Live] = {}
        self._line = Line(clock)
        self._watched: set[Live] = set()
        self._running = 0
        self._out: dict[str, float] = {}  # taken out of the line, on their way through a place: how much of one
        self._recent: OrderedDict[str, Live] = OrderedDict()
        self._seconds: dict[str, float] = {}  # a run of each path takes, in the mean
        self._tasks: set[asyncio.Task[None]] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None
        self._opening = anyio.Lock()
        self._is_open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unavailable = ""  # why the store could not be opened
        self.on_open: Callable[[], object] = lambda: None  # told when the store is open
        self.on_over: Callable[[Job], object] = lambda job: None  # told of every end
        self._ended = dict.fromkeys(sorted(ENDS), 0)  # how many jobs, since the start
        self._begun, self._waited = 0, 0.0  # attempts since the start, and seconds from submit to each

    # --- from start to stop

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take jobs up where the last process left them; leave them so that the next one can.

        Raises ConfigError on entering when another process has the store.
        """
        self._loop = asyncio.get_running_loop()
        self._service.logs.also_in(self._log_of)
        self._service.health.watch(self._on_state)
        if self.store.exists:
            await self._open_or_say_why()
        try:
            yield
        finally:
            self._is_open = False  # nothing is dispatched any more
            for live in self._live.values():
                if live.timer is not None:
                    live.timer.cancel()
            if self._wake is not None:
                self._wake.cancel()
            if self._attempts:  # their answers are there; what became of them is to be stored
                await asyncio.wait(self._attempts, timeout=STORING_SECONDS)
            left = self._tasks | self._attempts
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
            await self.store.close()

    async def open(self) -> None:
        """Open the store and recover its jobs, unless that was done. Raises Unstorable."""
        async with self._opening:
            if not self._is_open:
                try:
                    await self._recover(await self.store.open())
                except Unstorable as error:
                    self._unavailable = str(error)
                    raise
                self._is_open = True
                self._keep(self._sweep_now_and_then())
                self.on_open()
        self._dispatch()

    @property
    def is_open(self) -> bool:
        return self._is_open

    async def _open_or_say_why(self) -> None:
        try:
            await self.open()
        except StoreTaken as error:
            await self.store.close()
            raise ConfigError(str(error)) from None
        except Unstorable as error:
            log.warning("queue.unavailable", problem=str(error))
            self._keep(self._open_until_it_works(str(error)))

    async def _open_until_it_works(self, told: str) -> None:
        while True:
            await asyncio.sleep(UNSTORABLE_SECONDS)
            try:
                return await self.open()
            except Unstorable as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("queue.unavailable", problem=told)

    async def check(self) -> str | None:
        """What keeps new jobs from being kept, or None. Nothing does before the first one was submitted."""
        if not self._is_open:
            return self._unavailable or None
        try:
            await self.store.check()
        except Unstorable as error:
            return str(error)
        return None

    async def _recover(self, jobs: Sequence[Job]) -> None:
        """Settle what ran when the last process died; let wait what waited."""
        for job in jobs:
            if job.id in self._live:
                continue
            found: Job | None = job
            if job.state is JobState.RUNNING:
                found = await self.store.change(job.id, self._after_crash(job))
            if found is None:
                continue
            live = Live(found)
            live.start = round(max(0.0, self._clock() - job.submitted) * MOST_EVENTS_PER_SECOND)
            if found.is_over:
                log.warning("job.lost", request_id=job.id, state=found.state, error=found.error)
                self._over(live)
            else:
                self._take_in(live)

    def _after_crash(self, job: Job) -> JobChange:
        endpoint = self._endpoint_of(job)
        is_safe = endpoint is not None and endpoint.mark.retry == "safe"
        if job.asked:
            return self._end(JobMove.CANCEL, stopped_problem("client_cancelled"))
        if job.crashes + 1 >= CRASHES:
            return self._end(JobMove.PARK, lost("the process died twice while this job ran; it is not tried again"))
        if may_run_after_crash(job, is_safe=is_safe):
            return JobChange(move=JobMove.RECOVER, at=self._clock(), gateway_id=str(uuid4()))
        told = 'the process died while this job ran, and its endpoint does not say retry="safe"'
        return self._end(JobMove.FAIL, lost(told))

    def _endpoint_of(self, job: Job) -> Endpoint | None:
        return next((endpoint for pattern, endpoint in self._endpoints if pattern.fullmatch(job.path)), None)

    def _at_once(self, job: Job) -> int:
        """How many jobs like this one a place takes at a time."""
        endpoint = self._endpoint_of(job)
        return 1 if endpoint is None or endpoint.mark.batch is None else endpoint.mark.batch.max_size

    def _on_state(self, state: State) -> None:
        if state is State.DRAINING:
            for id in self._out:
                live = self._live.get(id)
                if live is not None and live.request is not None and live.job.state is JobState.WAITING:
                    live.request.token.cancel("draining")
        elif self._loop is not None:
            self._loop.call_soon(self._dispatch)

    # --- what callers ask

    async def submit(self, job: Job, body: bytes) -> Job:
        """Keep a new job, and let it wait for its turn. Raises Unstorable, and KeyError for an id that is taken."""
        if not self._is_open:
            await self.open()
        kept = await self.store.submit(job, body)
        if kept.id == job.id and kept.id not in self._live:
            self._take_in(Live(kept))
            self._dispatch()
        return kept

    async def find(self, id: str) -> Live | None:
        """The job of this id, from memory when it is not over or ended a short while ago. May raise Unstorable."""
        live = self._live.get(id) or self._recent.get(id)
        if live is None and not self._is_open and self.store.exists:
            await self.open()
            live = self._live.get(id) or self._recent.get(id)
        if live is None and self._is_open and (job := await self.store.load(id)) is not None:
            live = Live(job)
            if job.is_over and (outcome := await self.store.outcome(id)) is not None:
                live.logs = list(outcome.logs)
                self._remember(live)
        return live

    async def cancel(self, id: str) -> Cancelled:
        """Take a job out of the line for good, or make it stop when it runs."""
        live = self._live.get(id)
        if live is None:
            return "NOT_FOUND" if await self.find(id) is None else "ALREADY_COMPLETED"
        end = self._end(JobMove.CANCEL, stopped_problem("client_cancelled"))
        if live.job.state is JobState.WAITING and await self._change(live, end):
            if live.request is not None:
                live.request.token.cancel("client_cancelled")
            self._tell_end(live, end)
            self._over(live)
            return "OK"
        if not await self._change(live, JobChange(move=JobMove.ASK, at=self._clock())):
            return "ALREADY_COMPLETED"
        if live.request is not None:
            self._service.running_now.stop(live.request, "client_cancelled")
        return "CANCELLATION_REQUESTED"

    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._live) - self.running_count()

    def running_count(self) -> int:
        return self._running

    def tally(self) -> dict[str, float]:
        """For `/health` and `/metrics`: who waits and runs now, and how jobs ended since the start."""
        ended = {f"{state}_total": float(count) for state, count in self._ended.items()}
        now = {"waiting": self.waiting(), "running": self.running_count()}
        return {**now, **ended, "begun_total": self._begun, "waited_seconds_total": round(self._waited, 3)}

    def position(self, job: Job) -> int:
        """How many begin before `job` does, 0 for the next."""
        if job.id in self._out:
            return 0
        return self._line.before(job) + len(self._out) - self.running_count()

    def expected_wait(self, job: Job) -> float | None:
        """Seconds until `job` begins, guessed from what runs of its endpoint took; None before the first ended."""
        mean = self._seconds.get(job.path)
        return None if mean is None else round((self.position(job) + 1) * mean / (self._places * self._at_once(job)), 3)

    async def watch(self, live: Live) -> AsyncGenerator[Sequence[LogLine], None]:
        """Now and after every change or progress of the job: the lines it has logged since. The last time is its end."""
        news, told, shown = asyncio.Event(), 0, None
        live.watched_by(news)
        self._watched.add(live)
        try:
            while True:
                news.clear()
                job, lines = live.job, live.logs[told:]
                state = (job.state, job.attempts, None if job.is_over else self.position(job), live.progress())
                if lines or state != shown:
                    told, shown = told + len(lines), state
                    yield lines
                if job.is_over:
                    return
                await news.wait()
        finally:
            live.left_by(news)
            if not live.watchers:
                self._watched.discard(live)

    def _log_of(self, id: str) -> EventLog | None:
        live = self._live.get(id)
        return live.event_log() if live is not None else None

    def on_output(self, id: str | None, stream: str, line: str, when: float) -> None:
        """A line that the app printed; called in the thread that did."""
        live = self._live.get(id) if id is not None else None
        if live is not None and live.add_line(line, stream, when) and live.watchers and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(live.changed)

    # --- the line

    def _take_in(self, live: Live) -> None:
        job = live.job
        self._live[job.id] = live
        self._line.add(job)
        if job.start_by is not None:
            assert self._loop is not None
            live.timer = self._loop.call_later(max(0.0, job.start_by - self._clock()), lambda: self._keep(self._miss(live)))

    def _dispatch(self) -> None:
        """Send as many jobs on their way as there are places."""
        if not (self._is_open and self._service.health.takes_requests):
            return
        moved = False
        while sum(self._out.values()) < self._places and (job := self._line.next()) is not None:
            self._line.remove(job)
            at_once = self._at_once(job)
            self._out[job.id] = 1 if at_once == 1 else 0.5 / at_once  # so that the next batch waits while one runs
            self._keep(self._attempt(self._live[job.id]), among=self._attempts)
            moved = True
        if (due := self._line.next_due()) is not None and self._loop is not None:
            if self._wake is not None:
                self._wake.cancel()
            self._wake = self._loop.call_later(max(0.0, due - self._clock()) + 0.001, self._dispatch)
        if moved:
            self._tell_those_who_wait()

    def _tell_those_who_wait(self) -> None:
        for live in self._watched:
            if live.job.state is JobState.WAITING:
                live.changed()

    # --- one attempt

    async def _attempt(self, live: Live) -> None:
        id, pause_first = live.job.id, 0.0
        try:
            await self._run(live)
        except Unstorable as error:
            log.warning("job.not_begun", request_id=id, problem=str(error))
            pause_first = UNSTORABLE_SECONDS
        except Refused:  # it ended by another hand, which tells it
            return
        except Exception as error:
            log.error("job.failed", request_id=id, exc_info=error)
            await self._finish(live, self._end(JobMove.FAIL, internal_error()))
        finally:
            live.request = None
            self._out.pop(id, None)
            self._dispatch_soon()
        if live.job.state is JobState.WAITING:
            assert self._loop is not None
            self._loop.call_later(pause_first, self._back_in_line, live)

    def _dispatch_soon(self) -> None:
        assert self._loop is not None
        self._loop.call_soon(self._dispatch)

    def _back_in_line(self, live: Live) -> None:
        if live.job.id in self._live and live.job.id not in self._out:
            self._line.add(live.job)
            self._dispatch()

    async def _run(self, live: Live) -> None:
        """One attempt at a job. Raises Unstorable when it could not begin, Refused when it ended before it did."""
        try:
            body = await self.store.input(live.job.id)
        except KeyError:
            job = await self.store.load(live.job.id)
            if job is None or job.is_over:
                raise Refused from None
            raise
        trouble: list[Exception] = []
        noting = asyncio.Lock()

        async def begin() -> None:
            async with noting:
                if request.token.cancelled:  # the server stops in this very moment
                    raise RequestCancelled(request.token.reason)
                await note()

        async def note() -> None:
            try:
                if not await self._change(live, JobChange(move=JobMove.BEGIN, at=self._clock())):
                    raise Refused
                self._waited += max(0.0, self._clock() - live.job.submitted)
                self._begun += 1
            except (Refused, Unstorable) as error:
                trouble.append(error)
                raise RequestCancelled from error  # nobody reads the answer

        request = Request(live.job.id, scope=scope_of(live.job), path=live.job.path, token=Token())
        request.begin, request.log = begin, live.event_log()
        live.request = request
        live.begin_logs()
        answer = Answer(body)
        await self._service.perform(request, answer.receive, answer.send)
        async with noting:  # a stop answers at once, also while it is being noted that the work begins
            pass
        if trouble:
            raise trouble[0]
        if live.job.is_over:  # late or cancelled while it waited for its place
            raise Refused
        await self._settle(live, request, answer)

    async def _settle(self, live: Live, request: Request, answer: Answer) -> None:
        """Make of an answer the job's next step."""
        job, reason = live.job, request.token.reason
        if reason == "draining" and answer.status >= 400:
            if job.state is JobState.RUNNING:
                await self._finish(live, JobChange(move=JobMove.PUT_BACK, at=self._clock()))
            return
        if answer.status < 400:
            change = self._end(JobMove.FINISH, answer)
        elif job.asked:
            change = self._end(JobMove.CANCEL, answer)
        elif answer.status != 499 and is_tried_again(job, answer.status, answer.headers):
            if answer.headers.get(FAULT) == "fatal":  # the next process has to find out whether it was this job
                await self._finish(live, self._after_fault(job, answer))
                return
            wait = pause(max(1, job.attempts))
            log.info("job.retried", request_id=job.id, attempt=job.attempts, status=answer.status, seconds=wait)
            change = JobChange(move=JobMove.RETRY, at=self._clock(), not_before=self._clock() + wait, gateway_id=str(uuid4()))
        else:
            change = self._end(JobMove.CANCEL if answer.status == 499 else JobMove.FAIL, answer)
        await self._finish(live, change)

    def _after_fault(self, job: Job, answer: Answer) -> JobChange:
        if job.crashes + 1 >= CRASHES:
            return self._end(JobMove.PARK, answer)
        return JobChange(move=JobMove.RECOVER, at=self._clock(), gateway_id=str(uuid4()))

    async def _miss(self, live: Live) -> None:
        """Its time to begin has passed."""
        if live.job.state is not JobState.WAITING:
            return
        late = ServerError(
            504, "the request could not begin in the time its caller gave it", "request_timeout", {"X-Fal-Request-Timeout-Type": "user"}
        )
        if await self._finish(live, self._end(JobMove.MISS, late.response())) and live.request is not None:
            live.request.token.cancel("client_cancelled")

    async def _finish(self, live: Live, change: JobChange) -> bool:
        """Make a change however long the store refuses to; whether it was made. The end of a job is told."""
        told = False
        while True:
            try:
                made = await self._change(live, change)
                break
            except Unstorable as error:
                if not told:
                    told = True
                    log.error("job.not_stored", request_id=live.job.id, move=change.move, problem=str(error))
                await asyncio.sleep(UNSTORABLE_SECONDS)
        if made and live.job.is_over:
            self._tell_end(live, change)
            self._over(live)
        return made

    def _tell_end(self, live: Live, change: JobChange) -> None:
        """The last events of a job. Its log is kept for a while, as that of any request."""
        if live.log is None:
            return
        job, outcome = live.job, change.outcome
        if outcome is not None and job.state is JobState.DONE and outcome.media_type == JSON:
            live.log.append("output", encoded=outcome.body)
        problem = {} if job.error is None else {"detail": job.error, "error_type": job.error_type}
        live.log.append("completed", {"status": job.status, **problem})
        self._service.logs.add(live.log)

    async def _change(self, live: Live, change: JobChange) -> bool:
        moved = await self.store.change(live.job.id, with_logs(change, live.logs))
        if moved is None:
            return False
        if live.job.is_over:  # another change of the same moment was told first, and is the later one
            return True
        self._running += (moved.state is JobState.RUNNING) - (live.job.state is JobState.RUNNING)
        live.job = moved
        live.changed()
        return True

    def _end(self, move: JobMove, answer: Response | Answer) -> JobChange:
        """A change to the end of a job, with what its caller reads as the result."""
        at = self._clock()
        headers = tuple((name, value) for name, value in answer.headers.items() if name not in (*NOT_KEPT, "content-type"))
        outcome = JobOutcome(status=answer.status, body=bytes(answer.body), media_type=answer.media_type or "", headers=headers)
        if answer.status < 400:
            return JobChange(move=move, at=at, outcome=outcome)
        error, error_type = problem_of(answer)
        return JobChange(move=move, at=at, outcome=outcome, error=error, error_type=error_type)

    def _over(self, live: Live) -> None:
        job = live.job
        if live.timer is not None:
            live.timer.cancel()
        self._line.remove(job)
        self._live.pop(job.id, None)
        self._remember(live)
        self._ended[job.state] += 1
        if job.began is not None and job.ended is not None and job.state is JobState.DONE:
            took, mean = job.ended - job.began, self._seconds.get(job.path)
            self._seconds[job.path] = took if mean is None else mean + (took - mean) * MEMORY
        live.changed()
        self.on_over(job)
        self._tell_those_who_wait()

    def _remember(self, live: Live) -> None:
        if len(live.logs) > LINES_AT_HAND:
            return
        self._recent[live.job.id] = live
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    # --- old results

    async def _sweep_now_and_then(self) -> None:
        settings = self._service.settings
        while True:
            now = self._clock()
            with suppress(Unstorable):
                gone = await self.store.sweep(
                    ended_before=now - settings.queue_expiry_seconds,
                    let_go_before=now - LET_GO_SECONDS,
                    budget_bytes=settings.queue_budget_bytes,
                )
                if gone:
                    self._recent.clear()
                    log.info("queue.swept", jobs=gone)
            await asyncio.sleep(SWEEP_SECONDS)

    def _keep(self, work: Coroutine[Any, Any, None], *, among: set[asyncio.Task[None]] | None = None) -> None:
        tasks = self._tasks if among is None else among
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def with_logs(change: JobChange, logs: Sequence[LogLine]) -> JobChange:
    if change.outcome is None or change.outcome.logs or not logs:
        return change
    return msgspec.structs.replace(change, outcome=msgspec.structs.replace(change.outcome, logs=tuple(logs)))
