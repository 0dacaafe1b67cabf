"""Members of batches that come and leave at any moment: each gets one answer, and its own (behaviours 27 and 53).

Dice with a printed seed say who calls what, how many turns of the loop later, and after how many they leave.
All of it runs in one service, sync and async methods and streams side by side on two places.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from asking import GUARD_SECONDS, Asked, service_of

import runner

LONG = 3  # turns of the loop, or a tenth of a millisecond, that a call takes
BATCH = runner.Batch(max_size=3, max_wait_ms=0.2)
GAMES = int(os.environ.get("RUNNER_SOAK", "100"))


def answer(n: int) -> Any:
    """What `n` is answered; every fifth one gets an error in its place."""
    return runner.HTTPError(418, n) if n % 5 == 4 else n


class Many(runner.App):
    max_multiplexing = 2

    def setup(self) -> None:
        self.seen: Counter[int] = Counter()
        self.largest = 0

    def see(self, n: list[int]) -> None:
        self.seen.update(n)
        self.largest = max(self.largest, len(n))

    @runner.endpoint("/sync", batch=BATCH)
    def sync(self, n: list[int]) -> list[int | Exception]:
        self.see(n)
        time.sleep(LONG / 10_000)  # the work
        return [answer(each) for each in n]

    @runner.endpoint("/async", batch=BATCH)
    async def on_the_loop(self, n: list[int]) -> list[int | Exception]:
        self.see(n)
        for _ in range(LONG):
            await asyncio.sleep(0)
        return [answer(each) for each in n]

    @runner.endpoint("/stream", batch=BATCH)
    def stream(self, n: list[int]) -> Iterator[list[int | Exception]]:
        self.see(n)
        for _ in range(LONG):
            yield list(n)
        yield [answer(each) for each in n]

    @runner.endpoint("/async-stream", batch=BATCH)
    async def stream_on_the_loop(self, n: list[int]) -> AsyncIterator[list[int | Exception]]:
        self.see(n)
        for _ in range(LONG):
            await asyncio.sleep(0)
            yield list(n)
        yield [answer(each) for each in n]


def caller(dice: random.Random) -> tuple[str, int, int | None]:
    """What one calls, how many turns of the loop from now, and after how many more they leave; None: they stay."""
    leaves = dice.randint(0, 25) if dice.random() < 0.5 else None
    return dice.choice(["/sync", "/async", "/stream", "/async-stream"]), dice.randint(0, 12), leaves


async def play(service: runner.Service, callers: list[tuple[str, int, int | None]], first: int) -> None:
    async def one(n: int, path: str, comes: int, leaves: int | None) -> Asked:
        for _ in range(comes):
            await asyncio.sleep(0)
        asked = Asked(service, path, {"n": n})
        for _ in range(leaves or 0):
            await asyncio.sleep(0)
        if leaves is not None:
            asked.leave()
        return await asked.over()

    with anyio.fail_after(GUARD_SECONDS):
        over = await asyncio.gather(*(one(first + i, *each) for i, each in enumerate(callers)))
    for n, (path, _, leaves), asked in zip(range(first, first + len(over)), callers, over, strict=True):
        if leaves is None:
            assert_answered(n, path, asked)
            assert service.instance.seen[n] == 1
        else:
            assert len(asked.heads) <= 1
            assert service.instance.seen[n] <= 1
            if asked.body and asked.status != 499:
                assert_answered(n, path, asked, whole=False)
    with anyio.fail_after(GUARD_SECONDS):  # until also those are through whose callers left
        places = [await service.lane.hold(runner.Request("both")) for _ in range(2)]
    for place in places:
        service.lane.release(place)
    assert service.lanes == {"places": 2, "running": 0, "waiting": 0, "ghosts": 0}


def assert_answered(n: int, path: str, asked: Asked, *, whole: bool = True) -> None:
    """`asked` got what belongs to `n`; with `whole` all of it."""
    fails = n % 5 == 4
    if "stream" not in path:
        assert (asked.status, asked.json) == ((418, {"detail": n}) if fails else (200, n))
        return
    *items, last = asked.events
    if whole:
        assert items == [n] * LONG
        assert last == ({"detail": n, "error_type": "runner_server_error"} if fails else n)
    else:
        assert {n, n if not isinstance(last, dict) else last["detail"]} >= set(items) | ({last} if isinstance(last, int) else set())


def test_each_member_gets_exactly_one_answer_and_its_own_whoever_leaves_when(tmp_path: Path) -> None:
    numbers = iter(range(0, 10**9, 100))
    with asyncio.Runner() as loop:
        ready: asyncio.Future[runner.Service] = loop.get_loop().create_future()
        end = asyncio.Event()

        async def live() -> None:
            async with service_of(Many, tmp_path) as service:
                ready.set_result(service)
                await end.wait()

        async def begun() -> tuple[runner.Service, asyncio.Task[None]]:
            task = asyncio.ensure_future(live())
            return await ready, task

        service, life = loop.run(begun())

        async def ended() -> None:
            end.set()
            await life

        try:
            for seed in range(GAMES):
                dice = random.Random(seed)
                callers = [caller(dice) for _ in range(dice.randint(2, 14))]
                print("seed", seed, callers)  # noqa: T201 # shown when it fails
                loop.run(play(service, callers, next(numbers)))
            assert service.instance.largest == BATCH.max_size
        finally:
            loop.run(ended())
