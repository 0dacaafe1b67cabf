"""Twice the load that an app can take: what is served, how long that took, and what the others are told.

The work is 20 ms that one request has at a time, so 50 a second is all there is. Callers come at a fixed
100 a second and wait for nobody (open loop), each on a connection of its own. Ours keeps a line of
25; the peers have no bound of their own, so theirs grows for as long as the load lasts. Goodput is what was
answered with 200 while the load lasted, by what the same server answers eight callers who wait for their
answers, measured just before. Does not show a load that varies.

    python bench/overload.py [--seconds 8] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from peers import HOUSE, UVICORN, started, usable

LINE = 25
WORK_SECONDS = 0.02
CAPACITY_SECONDS = 2.0
RATE = 2 / WORK_SECONDS
COMMANDS = {
    "ours": [sys.executable, str(HOUSE / "runner.py"), "ours_slow.py:Slow", "--port", "{port}", "--max-queued-requests", str(LINE)],
    "fastapi": ["{bin}/uvicorn", "fast_slow:app", "--port", "{port}", *UVICORN],
    "litserve": ["{bin}/python", "lit_slow.py", "{port}"],
}


class Seen(NamedTuple):
    """What one caller saw."""

    status: int
    seconds: float
    ended: float
    retry_after: str


async def call(port: int) -> Seen:
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /sync HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    answer = await reader.read()
    writer.close()
    head = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    now = time.perf_counter()
    return Seen(int(head[0].split()[1]), now - began, now, headers.get("retry-after", ""))


async def capacity(port: int) -> float:
    """Requests a second that eight callers get answered, one after the other each."""
    until, count = time.perf_counter() + CAPACITY_SECONDS, 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < until:
            answered = await call(port)
            count += answered.status == 200

    await asyncio.gather(*(caller() for _ in range(8)))
    return count / (time.perf_counter() - until + CAPACITY_SECONDS)


async def load(port: int, seconds: float) -> tuple[float, list[Seen]]:
    began, calls = time.perf_counter(), []
    for number in range(int(RATE * seconds)):
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        calls.append(asyncio.create_task(call(port)))
    until = time.perf_counter()
    return until, await asyncio.gather(*calls)


def at(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Twice the load that an app can take.")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    print(f"| 100 requests/s for {given.seconds:g} s, work of 20 ms | capacity/s | goodput | p50 of the served, s | p99, s | refused | told to wait, s |")
    print("|---|---|---|---|---|---|---|")
    for name in usable(list(COMMANDS)):
        with started(name, COMMANDS[name], "/sync") as server:
            server.wait()
            able = asyncio.run(capacity(server.port))
            until, seen = asyncio.run(load(server.port, given.seconds))
        served = [one for one in seen if one.status == 200]
        refused = [one for one in seen if one.status != 200]
        goodput = sum(one.ended <= until for one in served) / given.seconds / able
        times = [one.seconds for one in served]
        told = [float(one.retry_after) for one in refused if one.retry_after]
        found[name] = {"goodput": goodput, "p50": at(times, 0.5), "p99": at(times, 0.99), "refused": len(refused) / len(seen), "capacity": able}
        wait = f"{statistics.median(told):g}" if told else "nothing"
        print(f"| {name} | {able:.0f} | {goodput:.2f} | {at(times, 0.5):.2f} | {at(times, 0.99):.2f} | {len(refused) / len(seen):.0%} | {wait} |")
    print(f"\nOurs has a line of {LINE}, which takes {LINE * WORK_SECONDS:g} s.")
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
