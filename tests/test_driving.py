"""A request's first step is taken at once; from where it waits it has a task that behaves as if it always had (behaviours 21, 27)."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from runner.plugins.cancellation import Token
from runner.plugins.driving import Drivers

Over = tuple[str, type[BaseException] | None]
where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="outside")


class Bench:
    """Drivers, what they were told to run, and how it ended."""

    def __init__(self) -> None:
        self.ended: list[Over] = []
        self.seen_out: list[str] = []
        self.news = asyncio.Event()
        self.drivers: Drivers[str] = Drivers(self._stopped, self._over, lambda work: work == "kept")
        self.drivers.open()

    async def _stopped(self, work: str) -> None:
        await asyncio.sleep(0)  # out of the cancelled scope, where one may wait
        self.seen_out.append(work)

    def _over(self, work: str, error: BaseException | None) -> None:
        self.ended.append((work, None if error is None else type(error)))
        self.news.set()

    async def started(self, steps: Coroutine[Any, Any, None], token: Token | None = None, name: str = "work") -> asyncio.Task[None] | None:
        """Run `steps` as the loop does that has just read a request: from a callback, in no task."""
        told: asyncio.Future[asyncio.Task[None] | None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: told.set_result(self.drivers.run(steps, token or Token(), name)))
        return await told

    async def all_over(self, count: int) -> None:
        while len(self.ended) < count:
            self.news.clear()
            await self.news.wait()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    with anyio.fail_after(10):
        await made.started(asyncio.sleep(0), name="first")  # makes a driver, which then sleeps
        await made.all_over(1)
        made.ended.clear()
        yield made
        await made.drivers.close()


async def test_a_request_that_never_waits_is_over_before_anything_else_happens(bench: Bench) -> None:
    seen: list[object] = []

    async def steps() -> None:
        seen.append(asyncio.current_task())
        with anyio.move_on_after(1):  # scopes and timeouts ask for the current task
            async with asyncio.timeout(1):  # noqa: ASYNC100
                seen.append(asyncio.current_task())

    assert await bench.started(steps()) is None
    assert bench.ended == [("work", None)]
    assert isinstance(seen[0], asyncio.Task)
    assert seen[0] is seen[1]


async def test_one_that_waits_goes_on_in_the_task_and_the_context_of_its_first_step(bench: Bench) -> None:
    seen: list[tuple[object, str]] = []

    async def steps() -> None:
        where.set("inside")
        for _ in range(3):
            seen.append((asyncio.current_task(), where.get()))
            await asyncio.sleep(0)

    task = await bench.started(steps())
    await bench.all_over(1)

    assert seen == [(task, "inside")] * 3
    assert where.get() == "outside"


async def test_task_groups_and_timeouts_that_begin_in_the_first_step_end_in_a_later_one(bench: Bench) -> None:
    results: list[str] = []

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        results.append(name)

    async def steps() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child, "anyio")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child("asyncio"))
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            results.append("timeout")
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        results.append("moved on")

    await bench.started(steps())
    await bench.all_over(1)

    assert results == ["anyio", "asyncio", "timeout", "moved on"]
    assert bench.ended == [("work", None)]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_timeout_that_passes_right_after_the_first_step_finds_what_it_began_in(bench: Bench, waits: bool) -> None:
    seen: list[str] = []

    async def steps() -> None:
        try:
            async with asyncio.timeout(None) as limit:
                limit.reschedule(0)
                if waits:
                    await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")

    await bench.started(steps())
    await bench.all_over(1)
    await asyncio.sleep(0)

    assert seen == (["timeout"] if waits else [])


@pytest.mark.parametrize("when", ["in the first step", "right after it", "later"])
async def test_a_cancelled_request_is_seen_out_of_its_scope_and_the_next_one_is_not_cancelled(bench: Bench, when: str) -> None:
    token, left = Token(), list[str]()

    async def steps() -> None:
        try:
            if when == "in the first step":
                token.cancel("deadline")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append("cancelled")
            raise

    await bench.started(steps(), token)
    if when == "later":
        await anyio.wait_all_tasks_blocked()
    token.cancel("deadline")
    await bench.all_over(1)
    task = await bench.started(asyncio.sleep(0), name="next")
    await bench.all_over(2)

    assert left == ["cancelled"]
    assert bench.seen_out == ["work"]
    assert bench.ended == [("work", None), ("next", None)]
    assert task is not None


async def test_a_request_that_was_cancelled_and_ended_in_its_first_step_is_seen_out_too(bench: Bench) -> None:
    token = Token()

    async def steps() -> None:
        token.cancel("deadline")

    await bench.started(steps(), token)
    await bench.all_over(1)

    assert bench.seen_out == ["work"]


async def test_a_late_cancel_of_a_request_that_is_over_reaches_nobody(bench: Bench) -> None:
    token, go_on = Token(), asyncio.Event()

    async def quick() -> None: ...

    async def slow() -> None:
        await go_on.wait()

    await bench.started(quick(), token, "quick")
    await bench.started(slow(), name="slow")
    token.cancel("draining")
    await anyio.wait_all_tasks_blocked()
    go_on.set()
    await bench.all_over(2)

    assert bench.ended == [("quick", None), ("slow", None)]


async def test_a_task_cancel_reaches_what_the_request_waits_for(bench: Bench) -> None:
    """As the server cancels what does not end; and as a task does for a task that it awaits."""
    inner = asyncio.ensure_future(asyncio.Event().wait())

    async def steps() -> None:
        await inner

    task = await bench.started(steps())
    assert task is not None
    await anyio.wait_all_tasks_blocked()
    task.cancel()
    await bench.all_over(1)

    assert inner.cancelled()
    assert bench.ended == [("work", asyncio.CancelledError)]


@pytest.mark.parametrize("waits", [True, False])
async def test_an_error_is_told_and_the_next_request_is_served(bench: Bench, waits: bool) -> None:
    async def steps() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("no")

    await bench.started(steps())
    await bench.all_over(1)
    await bench.started(asyncio.sleep(0), name="next")
    await bench.all_over(2)

    assert bench.ended == [("work", ValueError), ("next", None)]


async def test_within_another_tasks_step_a_request_begins_in_a_task_of_its_own(bench: Bench) -> None:
    current: list[object] = []

    async def steps() -> None:
        current.append(asyncio.current_task())

    task = bench.drivers.run(steps(), Token(), "work")
    await bench.all_over(1)

    assert task is not None
    assert current == [task]


async def test_a_scope_that_somebody_still_looks_at_serves_no_other_request(bench: Bench) -> None:
    first = await bench.started(asyncio.sleep(0), name="kept")
    await bench.all_over(1)
    second = await bench.started(asyncio.sleep(0), name="next")
    await bench.all_over(2)

    assert first is not second


async def test_many_at_once_each_have_their_own_and_few_tasks_are_made_for_them_later(bench: Bench) -> None:
    go_on = asyncio.Event()
    tasks = [await bench.started(_until(go_on.wait), name=str(n)) for n in range(20)]
    go_on.set()
    await bench.all_over(20)
    again = [await bench.started(asyncio.sleep(0), name=str(n)) for n in range(20)]
    await bench.all_over(40)

    assert len(set(tasks)) == 20
    assert set(again) <= set(tasks)


async def _until(wait: Callable[[], Awaitable[object]]) -> None:
    await wait()
