"""The event log of a request: numbers without holes, many readers, explicit gaps, bounds."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from runner.plugins.eventlog import EventLog, EventLogs
from runner.schemas.events import Event, as_sse

pytestmark = pytest.mark.anyio


async def read(events: AsyncIterator[list[Event]]) -> list[tuple[int, str, Any]]:
    with anyio.fail_after(5):
        return [(event.seq, event.kind, json.loads(event.data)) async for batch in events for event in batch]


async def test_a_reader_gets_what_was_and_what_comes_until_the_end() -> None:
    log = EventLog("x")
    log.append("queued", {"position": 0})
    got: list[Any] = []

    async with anyio.create_task_group() as tasks:

        async def reader() -> None:
            got.extend(await read(log.follow()))

        tasks.start_soon(reader)
        await anyio.wait_all_tasks_blocked()
        log.append("output", {"text": "é"})
        await anyio.wait_all_tasks_blocked()
        log.append("completed", {"status": 200})

    assert got == [(1, "queued", {"position": 0}), (2, "output", {"text": "é"}), (3, "completed", {"status": 200})]


async def test_several_readers_each_get_everything_and_one_who_leaves_changes_nothing() -> None:
    log = EventLog("x")
    log.append("output", 1)
    first, second = log.follow(), log.follow()

    assert [event.seq for event in await anext(first)] == [1]
    await anext(second)
    assert log.readers == 2
    await first.aclose()
    log.append("completed")

    assert await read(second) == [(2, "completed", None)]
    assert log.readers == 0


async def test_a_reader_resumes_after_the_number_it_saw_last() -> None:
    log = EventLog("x")
    for number in range(5):
        log.append("output", number)
    log.append("completed")

    assert [seq for seq, _, _ in await read(log.follow(3))] == [4, 5, 6]
    assert await read(log.follow(6)) == []
    assert await read(log.follow(99)) == []


async def test_what_was_dropped_is_an_explicit_gap_whose_number_resumes_behind_it() -> None:
    log = EventLog("x", most_events=3)
    for number in range(10):
        log.append("output", number)

    events = log.since(2)

    assert [(event.seq, event.kind) for event in events] == [(7, "gap"), (8, "output"), (9, "output"), (10, "output")]
    assert json.loads(events[0].data) == {"from": 3, "to": 7}
    assert [event.seq for event in log.since(7)] == [8, 9, 10]


async def test_a_log_is_bounded_in_bytes_and_keeps_its_newest_event_whatever_its_size() -> None:
    log = EventLog("x", most_bytes=10_000)
    for _ in range(100):
        log.append("output", "x" * 1000)
    assert log.size <= 10_000

    log.append("output", "x" * 20_000)
    assert [event.kind for event in log.since(0)] == ["gap", "output"]


async def test_nothing_follows_the_end() -> None:
    log = EventLog("x")
    log.append("completed")

    assert log.append("output", 1) == 0
    log.latest("progress", {"done": 1})
    assert [event.kind for event in log.since(0)] == ["completed"]


async def test_events_from_threads_are_numbered_without_holes_and_wake_the_reader() -> None:
    log = EventLog("x")

    def write() -> None:
        for number in range(500):
            log.append("output", number)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    with anyio.fail_after(10):
        async for batch in log.follow():
            seen += [event.seq for event in batch]
            if len(seen) == 2000:
                break

    assert seen == list(range(1, 2001))
    for thread in threads:
        thread.join()


async def test_of_a_flood_of_progress_the_newest_wins() -> None:
    log = EventLog("x")
    for done in range(1000):
        log.latest("progress", {"done": done})
    log.append("completed")

    told = [json.loads(event.data)["done"] for event in log.since(0) if event.kind == "progress"]
    assert told[-1] == 999
    assert len(told) <= 3


async def test_an_event_is_one_block_of_ascii_lines_with_its_number_as_id() -> None:
    log = EventLog("x")
    log.append("output", "né\n\N{GRINNING FACE}")

    assert as_sse(log.since(0)[0]) == b'id: 1\nevent: output\ndata: "n\\u00e9\\n\\ud83d\\ude00"\n\n'


async def test_logs_are_found_by_id_here_and_with_other_owners_until_their_time_is_over() -> None:
    logs = EventLogs(keep_seconds=0)
    own, elsewhere = logs.add(EventLog("own")), EventLog("elsewhere")
    logs.also_in({"elsewhere": elsewhere}.get)

    assert logs.find("own") is own
    assert logs.find("elsewhere") is elsewhere
    assert logs.find("nobody's") is None
    own.append("completed")
    assert logs.find("own") is None
    assert len(logs) == 0
