"""More load than the app can do: what fits is served in turn, the rest is refused at once and told when to come back."""

from __future__ import annotations

import asyncio
import math

import anyio
import pytest
from runner.plugins import lanes
from runner.plugins.cancellation import Token
from runner.plugins.lanes import Lane
from runner.schemas.problems import ServerError
from runner.schemas.request import Request

SECONDS = 2.0  # that each run takes, by the clock of these tests


class Clock:
    """Stands still unless somebody works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def work(self) -> float:
        self.now += SECONDS
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lanes, "time", clock)
    return clock


def caller() -> Request:
    return Request("a", scope={"headers": []}, token=Token())


async def test_of_twice_the_load_all_that_fits_is_served_in_turn_and_the_rest_refused_before_anything_runs(clock: Clock) -> None:
    """Behaviour 49: the bounded line. Whoever is accepted waits for no more runs than the line is long."""
    longest = 3
    lane = Lane(1, longest)
    lane.open()
    await lane.run(clock.work, caller())  # from which the lane learns how long a run takes
    began, place = clock.now, await lane.hold(caller())
    refused: list[ServerError] = []
    served: list[float] = []

    async def call() -> None:
        try:
            served.append(await lane.run(clock.work, caller()))
        except ServerError as error:
            refused.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(2 * longest):
                group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            assert (len(refused), served) == (longest, [])
            lane.release(place)

    assert served == [began + SECONDS * turn for turn in range(1, longest + 1)]
    assert await lane.close(5)


@pytest.mark.parametrize(("places", "waiting"), [(1, 0), (1, 3), (4, 3), (2, 10)])
async def test_who_is_refused_is_told_how_long_the_line_will_take_by_what_runs_took(clock: Clock, places: int, waiting: int) -> None:
    lane = Lane(places, waiting)
    lane.open()
    await lane.run(clock.work, caller())
    held = [await lane.hold(caller()) for _ in range(places)]
    line = [asyncio.ensure_future(lane.hold(caller())) for _ in range(waiting)]
    await anyio.wait_all_tasks_blocked()

    with pytest.raises(ServerError, match=f"{waiting} requests wait already") as refused:
        await lane.hold(caller())

    assert refused.value.status == 429
    assert refused.value.headers["Retry-After"] == str(math.ceil((waiting + 1) * SECONDS / places))
    for place in held:
        lane.release(place)
    for follower in line:
        lane.release(await follower)
    assert await lane.close(5)


async def test_who_could_not_begin_in_time_is_refused_at_once_instead_of_waiting_in_vain(clock: Clock) -> None:
    """Behaviour 49: a deadline that would pass in the line."""
    lane = Lane(1, 100)
    lane.open()
    await lane.run(clock.work, caller())
    place = await lane.hold(caller())
    line = [asyncio.ensure_future(lane.hold(caller())) for _ in range(3)]
    await anyio.wait_all_tasks_blocked()

    with pytest.raises(ServerError, match="could not begin in the time") as refused:
        await lane.hold(caller(), start_within=3 * SECONDS)

    assert refused.value.status == 504
    assert lane.occupancy["waiting"] == 3
    lane.release(place)
    for follower in line:
        lane.release(await follower)
    assert await lane.close(5)
