"""The lines of a lane: direct requests, and the jobs of the queue behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from runner.plugins.cancellation import Token
from runner.plugins.lanes import DIRECT_IN_A_ROW, Lane
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
