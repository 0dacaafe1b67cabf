"""One terminal event for each job, whatever happens in whatever order: a state machine, by hypothesis.

The dispatcher is the real one. Its store is a disk that outlives processes, the service is a stand-in
that runs a job when the test gives it a place and answers what the test says, and time is the test's.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
)
from runner.plugins.eventlog import EventLogs
from runner.plugins.queue.contract import Reopen, StoreContract
from runner.plugins.queue.dispatching import Dispatcher
from runner.schemas.app import Options
from runner.schemas.asgi import Message, Receive, Send
from runner.schemas.endpoint import Endpoint, Mark
from runner.schemas.health import Health, State
from runner.schemas.problems import stopped_problem
from runner.schemas.queue import ENDS, Job, JobMove, JobState
from runner.schemas.request import Request
from runner.schemas.service import ServiceView
from runner.schemas.settings import Settings
from stores import Disk, MemoryStore

SAFE, UNSAFE = "/safe", "/unsafe"


@pytest.fixture
def reopen() -> Reopen:
    disk = Disk()
    return lambda: MemoryStore(disk)


class TestMemoryStore(StoreContract):
    """The stand-in keeps what every store must keep."""


class Clockwork(asyncio.SelectorEventLoop):
    """A loop whose time passes when it is told."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Run:
    """One job on its way through the stand-in service."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.place, self.ended = asyncio.Event(), asyncio.Event()
        self.has_begun = False
        self.status: int | None = None
        request.token.on_cancel(self.place.set)
        request.token.on_cancel(self.ended.set)

    async def serve(self, send: Send) -> int:
        await self.place.wait()
        if not self.request.token.cancelled:
            assert self.request.begin is not None
            try:
                await self.request.begin()
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    raise
                return 499
            self.has_begun = True
            await self.ended.wait()
            if self.status is not None:
                return self.status
        return stopped_problem(self.request.token.reason or "").status


class Service:
    """As much of a service as the dispatcher looks at."""

    def __init__(self) -> None:
        self.settings, self.health, self.lanes = Settings(), Health(), {"places": 2}
        self.app = SimpleNamespace(options=Options())
        marks = {SAFE: Mark(path=SAFE, retry="safe"), UNSAFE: Mark(path=UNSAFE)}
        self.endpoints = tuple(Endpoint(path=path, name="run", mark=mark) for path, mark in marks.items())
        self.running_now, self.logs = self, EventLogs()
        self.runs: dict[str, Run] = {}
        self.health.become(State.READY)

    async def perform(self, request: Request, receive: Receive, send: Send) -> None:
        assert request.id is not None
        assert request.id not in self.runs, "a job runs twice at a time"
        self.runs[request.id] = run = Run(request)
        try:
            status = await run.serve(send)
        finally:
            del self.runs[request.id]
        await send(cast(Message, {"type": "http.response.start", "status": status, "headers": []}))
        await send(cast(Message, {"type": "http.response.body", "body": b"{}"}))

    def stop(self, request: Request, reason: str) -> None:
        request.token.cancel(reason)


class Jobs(RuleBasedStateMachine):
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.loop = Clockwork()
        self.disk = Disk()
        self.count = 0
        self.seen_ended: dict[str, tuple[JobState, int]] = {}
        self.lost: set[str] = set()  # ran when a process died, and may not run twice
        self.cancelled: set[str] = set()  # told so while they waited
        self.readers: list[tuple[asyncio.Task[None], list[JobState]]] = []  # of status streams
        self.processes: list[AsyncExitStack] = []  # the last one lives
        self.start()

    # --- a process, and how it ends

    def start(self) -> None:
        self.service, self.store = Service(), MemoryStore(self.disk)
        self.dispatcher = Dispatcher(cast(ServiceView, self.service), self.store, clock=self.loop.time)
        self.processes.append(AsyncExitStack())
        self.run(self.processes[-1].enter_async_context(self.dispatcher.running()))
        self.settle()

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(60):
                await asyncio.sleep(0)

        self.run(turns())

    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        self.settle()

    @rule()
    def the_process_is_killed_and_started_again(self) -> None:
        self.store.kill()
        for job in self.disk.jobs.values():
            if job.state is JobState.RUNNING and job.path == UNSAFE:
                self.lost.add(job.id)
        self.readers.clear()
        self.service.health.become(State.DRAINING)  # the dead one's tasks shall not beget others
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.settle()
        self.start()

    @rule()
    def the_server_stops_and_is_started_again(self) -> None:
        self.service.health.become(State.DRAINING)
        self.settle()
        for run in list(self.service.runs.values()):
            run.request.token.cancel("draining")
        self.settle()
        while self.readers:
            self.the_newest_reader_disconnects()
        self.run(self.processes[-1].aclose())
        assert not [job for job in self.disk.jobs.values() if job.state is JobState.RUNNING]
        self.start()

    # --- what callers and the app do

    @rule(target=ids, path=st.sampled_from([SAFE, UNSAFE]), low=st.booleans(), late=st.sampled_from([None, 5.0]), done=st.booleans())
    def a_job_is_submitted(self, path: str, low: bool, late: float | None, done: bool) -> Any:
        self.count += 1
        id = f"job-{self.count}"
        now = self.loop.now
        job = Job(
            id=id, path=path, submitted=now, priority="low" if low else "normal", start_by=now + late if late else None
        )
        submitting = self.loop.create_task(self.dispatcher.submit(job, b"{}"))
        if done:
            self.run(submitting)
            return id
        self.run(asyncio.sleep(0))  # and whatever comes next happens before it is answered
        return multiple()

    @rule(turns=st.integers(0, 5))
    def a_place_is_given(self, turns: int) -> None:
        for run in self.service.runs.values():
            if not run.place.is_set():
                run.place.set()
                break
        for _ in range(turns):
            self.run(asyncio.sleep(0))

    @rule(status=st.sampled_from([200, 200, 422, 499, 500, 503, 504]), turns=st.integers(0, 5))
    def a_run_ends(self, status: int, turns: int) -> None:
        for run in self.service.runs.values():
            if run.has_begun and run.status is None:
                run.status = status
                run.ended.set()
                break
        for _ in range(turns):
            self.run(asyncio.sleep(0))

    @rule()
    def a_run_takes_too_long(self) -> None:
        for run in self.service.runs.values():
            if run.has_begun:
                run.request.token.cancel("request_timeout")
                break

    @rule(id=ids, turns=st.integers(0, 5), waits=st.booleans())
    def somebody_cancels(self, id: str, turns: int, waits: bool) -> None:
        if not waits:
            self.loop.create_task(self.dispatcher.cancel(id))
            for _ in range(turns):
                self.run(asyncio.sleep(0))
            return
        outcome = self.run(self.dispatcher.cancel(id))
        assert outcome != "NOT_FOUND"
        if outcome == "OK":
            assert self.disk.jobs[id].state is JobState.CANCELLED
            self.cancelled.add(id)

    @rule(seconds=st.sampled_from([0.3, 6.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    @precondition(lambda self: self.count)
    @rule(id=ids)
    def somebody_asks(self, id: str) -> None:
        live = self.run(self.dispatcher.find(id))
        assert live is not None, "an accepted job was lost"
        if live.job.is_over:
            end = live.job.state, live.job.status
            assert self.seen_ended.setdefault(id, end) == end, "an end changed into another"
        else:
            assert id not in self.seen_ended, "an ended job goes on"

    @precondition(lambda self: self.count)
    @rule(id=ids)
    def a_reader_follows_to_the_end(self, id: str) -> None:
        """Or until its process ends, and the connection with it."""
        live = self.run(self.dispatcher.find(id))
        assert live is not None
        seen: list[JobState] = []

        async def read() -> None:
            async for _ in self.dispatcher.watch(live):
                seen.extend([live.job.state])

        self.readers.append((self.loop.create_task(read()), seen))
        self.settle()

    @precondition(lambda self: self.readers)
    @rule()
    def the_newest_reader_disconnects(self) -> None:
        reader, _ = self.readers.pop()
        reader.cancel()
        self.settle()

    # --- what is always so

    @invariant()
    def readers_see_one_end_and_nothing_after_it(self) -> None:
        for reader, seen in self.readers:
            ends = [state for state in seen if state in ENDS]
            assert ends == seen[len(seen) - len(ends) :]
            assert len(ends) == reader.done()

    @invariant()
    def nothing_has_two_ends(self) -> None:
        ends = [id for id, change in self.disk.changes if change.outcome is not None]
        assert len(ends) == len(set(ends))

    @invariant()
    def nothing_runs_that_may_not(self) -> None:
        for id, run in self.service.runs.items():
            if run.has_begun:
                assert id not in self.lost, "it ran when the process died, and runs again"
                assert id not in self.cancelled, "it was cancelled before it began, and runs"

    @invariant()
    def crashes_are_counted(self) -> None:
        assert all(job.crashes <= 2 for job in self.disk.jobs.values())

    def teardown(self) -> None:
        """Let everything come to its end: each job has one, and one only."""
        for _ in range(200):
            self.settle()
            if all(job.is_over for job in self.disk.jobs.values()):
                break
            for run in list(self.service.runs.values()):
                run.place.set()
                run.status = 200
                run.ended.set()
            self.pass_time(100.0)
        self.readers_see_one_end_and_nothing_after_it()
        assert all(reader.done() for reader, _ in self.readers), "a stream goes on after the end of its job"
        self.run(self.processes[-1].aclose())
        self.run(self.loop.shutdown_asyncgens())
        self.loop.close()

        ends = sorted(id for id, change in self.disk.changes if change.outcome is not None)
        assert ends == sorted(self.disk.jobs), "each accepted job has exactly one end"
        for id in self.lost:
            assert self.disk.jobs[id].state is not JobState.DONE
            after = [change.move for changed, change in self.disk.changes if changed == id]
            assert after[-1] in (JobMove.FAIL, JobMove.CANCEL, JobMove.PARK)


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
