"""The lines of a lane: direct requests, and the jobs of the queue behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from runner.plugins.cancellation import Token
from runner.plugins.lanes import DIRECT_IN_A_ROW, Job, Lane
from runner.schemas.problems import ServerError
from runner.schemas.request import Request


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    lane = Lane(1, 100)
    lane.open()
    yield lane
    assert await lane.close(5)


def direct() -> Request:
    return Request("direct", scope={"headers": []}, token=Token())


def queued(begin: Callable[[], Awaitable[None]] | None = None) -> Request:
    async def nothing() -> None: ...

    request = direct()
    request.begin = begin or nothing
    return request


@pytest.mark.parametrize("threads", [True, False])
async def test_a_job_of_the_queue_gets_a_place_after_four_direct_requests(lane: Lane, threads: bool) -> None:
    served: list[str] = []
    place = await lane.hold(direct())

    async def serve(name: str, request: Request) -> None:
        if threads:
            await lane.run(lambda: served.append(name), request)
        else:
            held = await lane.hold(request)
            served.append(name)
            lane.release(held)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(serve, "job", queued())
            for _ in range(DIRECT_IN_A_ROW + 1):
                group.start_soon(serve, "direct", direct())
            await anyio.wait_all_tasks_blocked()
            lane.release(place)

    assert served == ["direct"] * DIRECT_IN_A_ROW + ["job", "direct", "job"]


async def test_jobs_of_the_queue_do_not_count_in_the_line_that_may_be_full() -> None:
    lane = Lane(1, 0)
    lane.open()
    place = await lane.hold(direct())
    waiting = asyncio.ensure_future(lane.hold(queued()))
    await anyio.wait_all_tasks_blocked()

    assert lane.occupancy["waiting"] == 0
    lane.release(place)
    lane.release(await waiting)


async def test_work_of_a_job_waits_until_its_beginning_is_noted(lane: Lane) -> None:
    noted, order = anyio.Event(), []

    async def begin() -> None:
        await noted.wait()
        order.append("noted")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(lane.run, lambda: order.append("worked"), queued(begin))
            await anyio.wait_all_tasks_blocked()
            assert lane.occupancy["running"] == 1
            noted.set()

    assert order == ["noted", "worked"]


@pytest.mark.parametrize("threads", [True, False])
async def test_a_job_whose_beginning_cannot_be_noted_never_works_and_gives_its_place_on(lane: Lane, threads: bool) -> None:
    async def begin() -> None:
        raise OSError("no space")

    worked: list[str] = []
    request = queued(begin)
    with anyio.fail_after(10), pytest.raises(OSError, match="no space"):
        await (lane.run(lambda: worked.append("job"), request) if threads else lane.hold(request))
    await lane.run(lambda: worked.append("direct"), direct())

    assert worked == ["direct"]


async def test_a_holder_that_is_cancelled_while_its_beginning_is_noted_gives_its_place_on_once(lane: Lane) -> None:
    noted = anyio.Event()
    with anyio.fail_after(10):
        holder = asyncio.ensure_future(lane.hold(queued(noted.wait)))
        await anyio.wait_all_tasks_blocked()
        holder.cancel()
        await asyncio.wait([holder])
        noted.set()
        await anyio.wait_all_tasks_blocked()

    assert lane.occupancy["running"] == 0


def alone() -> Request:
    request = direct()
    request.alone = True
    return request


@pytest.fixture
async def wide() -> AsyncIterator[Lane]:
    lane = Lane(3, 100)
    lane.open()
    yield lane
    assert await lane.close(5)


async def settled(*tasks: asyncio.Future[Job]) -> list[bool]:
    """Which of them have their place, once nothing moves any more."""
    await anyio.wait_all_tasks_blocked()
    return [task.done() for task in tasks]


async def test_who_is_to_be_alone_goes_first_and_nobody_begins_beside_it(wide: Lane) -> None:
    first, second = await wide.hold(direct()), await wide.hold(direct())
    only = asyncio.ensure_future(wide.hold(alone()))
    others = [asyncio.ensure_future(wide.hold(request)) for request in (direct(), queued(), direct(), alone())]

    assert await settled(only, *others) == [False] * 5
    wide.release(first)
    assert await settled(only, *others) == [False] * 5
    wide.release(second)
    assert await settled(only, *others) == [True, False, False, False, False]
    wide.release(only.result())
    assert await settled(only, *others) == [True, False, False, False, True], "the next one who is to be alone"
    wide.release(others[3].result())
    assert await settled(*others) == [True] * 4, "all places are given out again"
    for other in others[:3]:
        wide.release(other.result())
    assert wide.occupancy["running"] == 0


async def test_when_who_is_to_be_alone_leaves_the_others_begin(wide: Lane) -> None:
    first = await wide.hold(direct())
    only, other = asyncio.ensure_future(wide.hold(alone())), asyncio.ensure_future(wide.hold(direct()))
    assert await settled(only, other) == [False, False]
    only.cancel()
    await asyncio.wait([only])

    assert await settled(other) == [True]
    wide.release(first)
    wide.release(other.result())


async def test_nobody_is_kept_from_being_alone_by_a_thread_that_does_not_leave(wide: Lane) -> None:
    ghost = await wide.hold(direct())
    only = asyncio.ensure_future(wide.hold(alone()))
    assert await settled(only) == [False]
    wide._count_ghosts(1)

    assert await settled(only) == [True]
    wide.release(only.result())
    wide._count_ghosts(-1)
    wide.release(ghost)


async def test_a_shut_lane_turns_away_who_waits_and_who_comes_and_lets_the_apps_own_hooks_in(lane: Lane) -> None:
    place = await lane.hold(direct())
    waiting, job = asyncio.ensure_future(lane.hold(direct())), asyncio.ensure_future(lane.hold(queued()))
    await anyio.wait_all_tasks_blocked()
    lane.shut()
    lane.turn_away()
    with pytest.raises(ServerError, match="stopping"):
        await waiting
    with pytest.raises(ServerError, match="stopping"):
        await lane.hold(direct())
    lane.release(place)

    assert await settled(job) == [False], "it is its dispatcher's"
    job.cancel()
    await asyncio.wait([job])
    assert await lane.run(lambda: "teardown", Request()) == "teardown"


async def test_a_run_has_its_own_time_also_where_its_caller_gave_it_longer_to_begin(lane: Lane) -> None:
    request, ended = direct(), asyncio.Event()
    request.token.on_cancel(ended.set)
    with anyio.fail_after(10), await lane.hold(request, run_within=0.02, start_within=3600):
        await ended.wait()

    assert request.token.reason == "request_timeout"


async def test_what_ends_a_run_is_told_before_the_place_is_passed_on(lane: Lane) -> None:
    told: list[tuple[str, int]] = []
    lane.on_error = lambda error: told.append((str(error), lane.occupancy["running"]))

    def fail() -> None:
        raise OSError("in a thread")

    with pytest.raises(OSError, match="in a thread"):
        await lane.run(fail, direct())
    with pytest.raises(OSError, match="on the loop"), await lane.hold(direct()):
        raise OSError("on the loop")

    assert told == [("in a thread", 1), ("on the loop", 1)]


async def test_a_look_that_fails_costs_neither_the_thread_nor_the_answer(lane: Lane) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("dictionary changed size during iteration")

    lane.look_at = fail
    with anyio.fail_after(10):
        assert [await lane.run(lambda: 1, direct()), await lane.run(lambda: 2, direct())] == [1, 2]
