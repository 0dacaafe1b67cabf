"""What one request's log line costs: taking it in, and writing it, in both formats.

Runs in this process, on one loop, with stderr going to a file: no HTTP, no reader of the log. Shows
the time per request of `Journal.add` (on the request's path) and of the batch (between requests),
and how late the loop gets when batches are written by a timer on it, as the plugin does, or by a
thread beside it. Does not show what a slow reader of stderr costs.

    python bench/observability.py
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)

import msgspec
import structlog
from runner.plugins.observability import BATCH_LINES, BATCH_SECONDS, Journal, configure_logging
from runner.schemas.events import Finished

FORMATS: tuple[Literal["json", "console"], ...] = ("json", "console")
RECORDS = 100_000
PER_SECOND = 25_000  # about what one core serves


def record(number: int) -> Finished:
    return Finished(
        request_id=f"4f9a1c02-8d57-4b2e-9c1d-{number:012d}",
        method="POST",
        path="/generate",
        endpoint="/generate",
        status=200,
        seconds=0.0123,
        bytes_out=512,
        client="127.0.0.1:54321",
    )


class ByThread(Journal):
    """The other way: a thread looks every 10 ms and writes what came."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def add(self, record: Finished) -> None:
        self._finished.append((time.time(), record))

    def _work(self) -> None:
        while not self.stopped.wait(BATCH_SECONDS):
            self.write_all()

    def close(self) -> None:
        self.stopped.set()
        self.thread.join()
        super().close()


async def added_and_written(batch: list[Finished]) -> tuple[float, float]:
    """Nanoseconds per record: on the request's path, and in batches."""
    journal = Journal()
    adding = writing = 0
    for start in range(0, len(batch), BATCH_LINES):
        some = batch[start : start + BATCH_LINES]
        begun = time.perf_counter_ns()
        for one in some:
            journal.add(one)
        added = time.perf_counter_ns()
        journal.write_all()
        adding, writing = adding + added - begun, writing + time.perf_counter_ns() - added
    journal.close()
    return adding / len(batch), writing / len(batch)


async def one_by_one(batch: list[Finished]) -> float:
    """Nanoseconds per record when each is an ordinary structlog event."""
    log = structlog.get_logger()
    begun = time.perf_counter_ns()
    for one in batch:
        log.info("request.finished", **msgspec.structs.asdict(one))
    return (time.perf_counter_ns() - begun) / len(batch)


async def lateness(journal: Journal, seconds: float) -> list[float]:
    """How late, in ms, the loop comes to each millisecond's work, under `PER_SECOND` requests."""
    late: list[float] = []
    one, due = record(1), time.perf_counter()
    end = due + seconds
    while due < end:
        due += 0.001
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late.append((time.perf_counter() - due) * 1000)
        for _ in range(PER_SECOND // 1000):
            journal.add(one)
    journal.close()
    return sorted(late)


async def main(say: Any) -> None:
    batch = [record(n) for n in range(RECORDS)]
    say(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {RECORDS} records, batches of {BATCH_LINES}\n")
    say(f"{'':9} {'add':>9} {'write':>9} {'one by one':>11}   ns per request, median of 5\n")
    for format in FORMATS:
        configure_logging(format)
        pairs = [await added_and_written(batch) for _ in range(5)]
        plain = statistics.median([await one_by_one(batch[:10_000]) for _ in range(5)])
        add, write = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        say(f"{format:9} {add:9.0f} {write:9.0f} {plain:11.0f}\n")
    say(f"\n{'':9} {'written by':>11} {'p50':>7} {'p99':>7} {'max':>7}   ms late, {PER_SECOND} requests/s for 3 s\n")
    for format in FORMATS:
        configure_logging(format)
        for name, kind in (("timer", Journal), ("thread", ByThread)):
            late = await lateness(kind(), 3)
            p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
            say(f"{format:9} {name:>11} {p50:7.2f} {p99:7.2f} {late[-1]:7.2f}\n")


if __name__ == "__main__":
    with tempfile.TemporaryFile("w") as log:
        sys.stderr = log
        asyncio.run(main(sys.stdout.write))
