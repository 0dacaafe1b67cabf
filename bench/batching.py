"""A small torch model behind us, LitServe and Mosec, each with its own batching, under open-loop load.

Requests arrive at a fixed mean rate, at random moments (Poisson, the same ones for every server),
whether or not earlier ones are answered, and a latency counts from the moment a request was due: a
server that falls behind cannot hide it. The rate doubles until, twice in a row, p99 passes the bound
or a request fails, then the border is halved a few times. Shown are the highest rates held, medians over
alternating rounds, with the latencies there. All have one worker, batches of up to 32, and 5 ms to
wait (`bench/peers/batch_*.py`); only one server runs at a time. The load comes from this machine,
so on few cores it takes its share. Not shown: GPUs, streams, several workers, large inputs.

    python bench/batching.py [--rounds 3] [--seconds 3] [--p99-ms 50] [--only ours,litserve,mosec]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from typing import NamedTuple, cast

import peers
import uvloop

TORCH = "torch==2.13.0"
peers.INSTALL |= {"litserve-torch": ["litserve", "uvloop", "httptools", TORCH], "mosec-torch": ["mosec", "msgspec", TORCH]}
peers.COMMANDS |= {
    "ours, batching": [sys.executable, str(peers.HOUSE / "runner.py"), "batch_ours.py:Peer", "--port", "{port}"],
    "litserve-torch": ["{bin}/python", "batch_lit.py", "{port}"],
    "mosec-torch": ["{bin}/python", "batch_mos.py", "--port", "{port}", "--address", "127.0.0.1", "--log-level", "warning"],
}
SERVERS = {"ours": ("ours, batching", "/"), "litserve": ("litserve-torch", "/"), "mosec": ("mosec-torch", "/inference")}
peers.PATHS |= {name: {"sync": path} for name, path in SERVERS.values()}
BODY = b'{"x": [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8, 0.9, -1.0, 1.1, -1.2, 1.3, -1.4, 1.5, -1.6]}'
peers.BODY = BODY
FIRST_RATE, HALVINGS = 100, 3
LATE_SECONDS = 5.0  # after the last arrival; what is not answered by then has failed


class Step(NamedTuple):
    """One rate, held for a while."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


class Connection(asyncio.Protocol):
    """Keeps one request at a time on its way."""

    def __init__(self, idle: list[Connection]) -> None:
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bool] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length and self._answer is not None:
            answer, self._answer, self._buffer = self._answer, None, b""
            self._idle.append(self)
            if not answer.done():
                answer.set_result(head.split(b" ", 2)[1] == b"200" and b'"best"' in body)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(False)

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def load(port: int, path: str, rate: float, seconds: float) -> Step:
    """Send `rate` requests a second for so long, and see how late each is answered."""
    loop, dice = asyncio.get_running_loop(), random.Random(rate)
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
    idle: list[Connection] = []
    latencies: list[float] = []
    failed = 0

    async def one(due: float) -> None:
        nonlocal failed
        try:
            if idle:
                connection = idle.pop()
            else:
                _, connection = await loop.create_connection(lambda: Connection(idle), "127.0.0.1", port)
            if await connection.ask(request):
                latencies.append(time.perf_counter() - due)
            else:
                failed += 1
        except OSError:
            failed += 1

    tasks = set()
    due = time.perf_counter() + 0.05
    end = due + seconds
    while due < end:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        while due <= time.perf_counter() and due < end:
            tasks.add(asyncio.ensure_future(one(due)))
            due += dice.expovariate(rate)
    done, late = await asyncio.wait(tasks, timeout=LATE_SECONDS)
    for task in done:
        task.result()
    for task in late:
        task.cancel()
    for connection in idle:
        connection.close()
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("inf")] * 99
    return Step(rate, cuts[49] * 1000, cuts[98] * 1000, failed + len(late))


def climb(server: peers.Server, path: str, seconds: float, bound_ms: float) -> Step:
    """The highest rate at which the bound was kept."""

    def holds(rate: float) -> Step | None:
        step = uvloop.run(load(server.port, path, rate, seconds))
        kept = step.p99_ms <= bound_ms and not step.failed
        print(f"  {server.name}: {rate:.0f}/s p50 {step.p50_ms:.1f} ms p99 {step.p99_ms:.1f} ms, {step.failed} failed{'' if kept else ': too much'}", file=sys.stderr)
        return step if kept else None

    uvloop.run(load(server.port, path, FIRST_RATE, 1))  # warm
    best, rate = Step(0, 0, 0, 0), float(FIRST_RATE)
    while (step := holds(rate) or holds(rate)) is not None:
        best, rate = step, rate * 2
    low, high = best.rate or rate / 8, rate
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if (step := holds(middle) or holds(middle)) is not None:
            best, low = step, middle
        else:
            high = middle
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure batching behind us, LitServe and Mosec under open-loop load.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--p99-ms", type=float, default=50)
    parser.add_argument("--only", default=",".join(SERVERS))
    given = parser.parse_args()
    names = given.only.split(",")
    for name in names:
        if name != "ours":
            peers.install(SERVERS[name][0])
    found: dict[str, list[Step]] = {name: [] for name in names}
    for number in range(given.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            key, path = SERVERS[name]
            with peers.running(key) as server:
                server.wait()
                found[name].append(climb(server, path, given.seconds, given.p99_ms))
    print(f"\n{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n")
    print(f"| open loop, p99 under {given.p99_ms:g} ms | requests/s held | ours is | p50 ms there | p99 ms there |\n|---|---|---|---|---|")
    medians = {name: statistics.median(step.rate for step in steps) for name, steps in found.items()}
    for name, rate in sorted(medians.items(), key=lambda row: -row[1]):
        times = f"{medians['ours'] / rate:.2f} x" if "ours" in medians and rate else ""
        p50, p99 = (statistics.median(getattr(step, field) for step in found[name]) for field in ("p50_ms", "p99_ms"))
        print(f"| {name} | {rate:,.0f} | {times} | {p50:.1f} | {p99:.1f} |")
    print()
    for name in names:
        if name == "ours":
            print(f"ours: {peers.versions('ours')}, {TORCH.replace('==', ' ')}")
        else:
            wanted = [requirement.partition("==")[0] for requirement in peers.INSTALL[SERVERS[name][0]]]
            python = peers.HOUSE / ".bench" / SERVERS[name][0] / "bin" / "python"
            code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
            print(f"{name}: {subprocess.run([python, '-c', code, *wanted], capture_output=True, text=True, check=True).stdout.strip()}")


if __name__ == "__main__":
    main()
