"""Streams and sockets: the runner beside FastAPI on uvicorn, in one run.

Both are real processes on loopback, access logs at their defaults but written to a file; the load
comes from this process, so on a machine of few cores it takes its share. For each kind of generator
and number of streams at once: events per second over all of them, and the time from a request to
its first event (p50, p99). For sockets: round trips per second of one small binary message on 16
connections; the runner's realtime endpoints decode and encode msgpack on the way, the raw ones
echo. Then what an endless stream that nobody reads costs in memory. The generators do no work:
a model's would show less of the difference.

    python bench/streaming.py [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from peers import install, versions

BENCH = Path(__file__).parent
STREAMS = ((1, 5000), (32, 500), (256, 60))  # how many at once, and of how many events
ROUNDS = 5
CONNECTIONS, SOCKET_SECONDS = 16, 3.0
MASKED_FRAME = b"\x82\x84\0\0\0\0\x81\xa1n\x01"  # {"n": 1} in msgpack


@contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """The process id of a server that answers on `port`."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=BENCH, stdout=output, stderr=output)
        try:
            for _ in range(300):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            time.sleep(0.5)  # the runner opens its socket before it is ready
            yield process.pid
        finally:
            process.terminate()
            process.wait()


async def read_stream(port: int, path: str, first: list[float]) -> int:
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    count, seen = 0, False
    while data := await reader.read(65536):
        if not seen and b"data:" in data:
            seen = True
            first.append(time.perf_counter() - began)
        count += data.count(b"data:")
    writer.close()
    return count


async def measure_streams(port: int, path: str, streams: int, events: int) -> tuple[float, list[float]]:
    """The best round's events per second, and all first-event times in order."""
    best, first = 0.0, list[float]()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        counts = await asyncio.gather(*(read_stream(port, f"{path}?n={events}", first) for _ in range(streams)))
        assert sum(counts) == streams * events, f"{path}: {sum(counts)} events of {streams * events}"
        best = max(best, sum(counts) / (time.perf_counter() - began))
    return best, sorted(first)


async def echo(port: int, path: str, stop: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "host: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nsec-websocket-version: 13"
    writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    while (began := time.perf_counter()) < stop:
        writer.write(MASKED_FRAME)
        head_of_frame = await reader.readexactly(2)
        await reader.readexactly(head_of_frame[1] & 127)
        times.append(time.perf_counter() - began)
    writer.close()


async def measure_socket(port: int, path: str) -> list[float]:
    times: list[float] = []
    stop = time.perf_counter() + SOCKET_SECONDS
    await asyncio.gather(*(echo(port, path, stop, times) for _ in range(CONNECTIONS)))
    return sorted(times)


def rss(pid: int) -> int:
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def unread(port: int, pid: int) -> int:
    """KiB that an endless stream costs whose reader takes nothing for three seconds."""
    before = rss(pid)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /endless HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        connection.recv(1)
        time.sleep(3)
        return rss(pid) - before


def at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] * 1000


async def load(name: str, port: int, sockets: tuple[str, ...]) -> dict[str, float]:
    """Rates by what was measured, printed as they come."""
    rates: dict[str, float] = {}
    for path in ("/sync", "/async"):
        for streams, events in STREAMS:
            rate, first = await measure_streams(port, path, streams, events)
            what = f"SSE {path[1:]} generator, {streams} x {events}"
            rates[f"{path} {streams}"] = rate
            print(f"{what:34} {name:18} {rate:>9,.0f}/s   first event p50 {at(first, 0.5):6.1f} ms  p99 {at(first, 0.99):6.1f} ms")
    for path in sockets:
        times = await measure_socket(port, path)
        rate = rates[path] = len(times) / SOCKET_SECONDS
        print(f"{'WebSocket ' + path[1:] + ', 16 connections':34} {name:18} {rate:>9,.0f}/s   round trip p50 {at(times, 0.5):6.2f} ms  p99 {at(times, 0.99):6.2f} ms")
    return rates


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams and sockets beside FastAPI.")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    peer = str(install("fastapi") / "python")
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}; peer: {versions('fastapi')}")
    port = free_port()
    with server([peer, "-m", "uvicorn", "streams_peer:app", "--port", str(port), "--loop", "uvloop", "--http", "httptools"], port):
        theirs = uvloop.run(load("FastAPI, uvicorn", port, ("/ws-raw",)))
    port = free_port()
    with server([sys.executable, str(BENCH.parent / "runner.py"), "streams_app:Streams", "--port", str(port)], port) as pid:
        ours = uvloop.run(load("runner", port, ("/ws-raw", "/ws-async", "/ws-sync")))
        print(f"{'an endless stream nobody reads':34} {'runner':18} {unread(port, pid):>9,} KiB")
    if given.json:
        given.json.write_text(json.dumps({"ours": ours, "theirs": theirs}))


if __name__ == "__main__":
    main()
