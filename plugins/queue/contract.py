"""What every store of the queue must do, as tests: for whoever writes another one.

Subclass `StoreContract` in a module that pytest collects, with a fixture `reopen`: a function that
gives a store on the same data each time, as another process would after the first one was killed.
The tests are coroutines; anyio's or asyncio's plugin for pytest runs them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...schemas.queue import Job, JobChange, JobMove, JobOutcome, JobState, LogLine, QueueStore

Reopen = Callable[[], QueueStore]
LARGE = 300_000  # bytes; more than any store should keep in a row


def job(id: str = "one", **fields: Any) -> Job:
    return Job(**{"id": id, "path": "/", "submitted": 1.0, **fields})


def outcome(body: bytes = b'{"text":"done"}', status: int = 200) -> JobOutcome:
    line = LogLine(message="hello", level="STDOUT", timestamp="2026-01-01T00:00:00+00:00", labels={"fal_request_id": "one"})
    return JobOutcome(status=status, body=body, headers=(("x-fal-billable-units", "5"),), logs=(line,))


def to(move: JobMove, **fields: Any) -> JobChange:
    if move in (JobMove.FINISH, JobMove.FAIL, JobMove.CANCEL, JobMove.MISS, JobMove.PARK):
        fields.setdefault("outcome", outcome())
    return JobChange(move=move, **{"at": 2.0, **fields})


class StoreContract:
    """Each test begins with no job at all."""

    async def test_what_was_submitted_is_there_after_the_process_was_killed(self, reopen: Reopen) -> None:
        first = reopen()
        await first.open()
        await first.submit(job("a", headers=(("x-one", "1"),)), b"input a")
        await first.submit(job("b", priority="low"), b"b" * LARGE)

        second = reopen()
        found = await second.open()

        assert [(j.id, j.state, j.priority) for j in found] == [("a", JobState.WAITING, "normal"), ("b", JobState.WAITING, "low")]
        assert found[0].headers == (("x-one", "1"),)
        assert found[0].number < found[1].number
        assert await second.input("a") == b"input a"
        assert await second.input("b") == b"b" * LARGE
        await second.close()

    async def test_of_moves_that_race_to_an_end_one_is_made(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        await store.submit(job(), b"{}")
        await store.change("one", to(JobMove.BEGIN))

        ends = (JobMove.FINISH, JobMove.CANCEL, JobMove.FAIL, JobMove.PARK)
        made = await asyncio.gather(*(store.change("one", to(move)) for move in ends))

        over = [moved for moved in made if moved is not None]
        assert len(over) == 1
        assert over[0].is_over
        loaded = await store.load("one")
        assert loaded == over[0]
        assert await store.open() == []
        await store.close()

    async def test_a_move_that_is_not_in_the_table_changes_nothing(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        await store.submit(job(), b"{}")

        for move in (JobMove.ASK, JobMove.PUT_BACK, JobMove.RECOVER, JobMove.PARK):
            assert await store.change("one", to(move)) is None
        assert await store.change("nobody", to(JobMove.BEGIN)) is None
        loaded = await store.load("one")
        assert loaded is not None
        assert loaded.state is JobState.WAITING
        assert await store.outcome("one") is None
        await store.close()

    async def test_an_outcome_is_kept_whole_and_the_input_let_go(self, reopen: Reopen) -> None:
        for id, body in (("small", b"small"), ("large", b"o" * LARGE)):
            store = reopen()
            await store.open()
            await store.submit(job(id), b"i" * LARGE)
            await store.change(id, to(JobMove.BEGIN))
            await store.change(id, to(JobMove.FINISH, outcome=outcome(body)))
            await store.close()

            again = reopen()
            await again.open()
            assert await again.outcome(id) == outcome(body)
            try:
                await again.input(id)
            except KeyError:
                pass
            else:
                raise AssertionError("the input is still there")
            await again.close()

    async def test_attempts_are_kept_before_a_run_begins(self, reopen: Reopen) -> None:
        first = reopen()
        await first.open()
        await first.submit(job(), b"{}")
        await first.change("one", to(JobMove.BEGIN))

        second = reopen()
        (found,) = await second.open()
        recovered = await second.change("one", to(JobMove.RECOVER))

        assert (found.state, found.attempts) == (JobState.RUNNING, 1)
        assert recovered is not None
        assert (recovered.state, recovered.crashes) == (JobState.WAITING, 1)
        await second.close()

    async def test_a_key_that_is_known_gives_the_job_that_has_it(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        first, second = await asyncio.gather(
            store.submit(job("a", key="k", digest="d"), b"1"), store.submit(job("b", key="k", digest="d"), b"1")
        )
        assert first.id == second.id
        assert len(await store.open()) == 1
        await store.close()

    async def test_an_id_that_is_taken_is_refused(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        await store.submit(job(), b"first")
        try:
            await store.submit(job(), b"second")
        except KeyError:
            pass
        else:
            raise AssertionError("two jobs with one id")
        assert await store.input("one") == b"first"
        await store.close()

    async def test_a_webhook_is_owed_from_the_moment_of_the_end_until_it_is_delivered(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        await store.submit(job(webhook="https://hooks.example/"), b"{}")
        assert await store.deliveries() == []
        await store.change("one", to(JobMove.CANCEL))
        await store.deliver_later("one", due=9.0)

        (owed,) = await store.deliveries()
        assert (owed.id, owed.url, owed.attempts, owed.due) == ("one", "https://hooks.example/", 1, 9.0)
        assert await store.sweep(ended_before=10.0, let_go_before=10.0, budget_bytes=0) == 0
        await store.delivered("one")
        assert await store.deliveries() == []
        await store.close()

    async def test_a_store_that_is_well_passes_its_check_and_keeps_what_it_has(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        await store.submit(job(), b"{}")
        await store.check()
        loaded = await store.load("one")
        assert loaded is not None
        assert loaded.state is JobState.WAITING
        assert [found.id for found in await store.open()] == ["one"]
        await store.close()

    async def test_old_jobs_go_and_then_the_oldest_until_all_fits(self, reopen: Reopen) -> None:
        store = reopen()
        await store.open()
        for at, id in enumerate("abcde"):
            await store.submit(job(id, keeps=id != "c"), b"{}")
            if id != "e":
                await store.change(id, to(JobMove.CANCEL, at=float(at), outcome=outcome(b"x" * 1000)))

        gone = await store.sweep(ended_before=1.0, let_go_before=3.0, budget_bytes=1500)

        assert gone == 3  # a is old, c does not keep, b does not fit
        assert [id for id in "abcde" if await store.load(id) is not None] == ["d", "e"]
        assert await store.outcome("a") is None
        await store.close()
