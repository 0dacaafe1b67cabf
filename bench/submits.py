"""The durable queue: submits per second, how long one takes, and status polls per second.

First in this process, from `Dispatcher.submit` to the commit, at both durabilities; then over HTTP
against a real runner, by callers that each send one request after the other on a connection of
their own. The line is held by a job that does not end, so nothing but submits and polls is measured.
Bodies are 60 bytes. Client and server share the machine's cores: over HTTP a number is what both
together can do. Does not show large bodies, nor what running jobs cost.

    python bench/submits.py
"""

from __future__ import annotations

import asyncio
import json
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import uuid4

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)

from runner.plugins.eventlog import EventLogs
from runner.plugins.queue.dispatching import Dispatcher
from runner.plugins.queue.sqlite import SqliteStore
from runner.schemas.app import Options
from runner.schemas.health import Health
from runner.schemas.queue import Job
from runner.schemas.service import ServiceView
from runner.schemas.settings import Settings

HOUSE = Path(__file__).parent.parent
SECONDS = 4.0
CALLERS = (1, 64)
BODY = json.dumps({"prompt": "a photo of a cat on a sofa, at noon", "steps": 30}).encode()
APP = """
import threading, runner
class Bench(runner.App, name="bench"):
    @runner.endpoint("/")
    def run(self, prompt: str = "") -> str:
        threading.Event().wait()
        return prompt
"""


async def measure(callers: int, call: Callable[[int], Awaitable[None]]) -> str:
    """Have so many callers call one time after the other; what they reached as a line."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS

    async def caller(number: int) -> None:
        while (began := time.perf_counter()) < end:
            await call(number)
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    cuts = statistics.quantiles(times, n=100)
    return f"{len(times) / SECONDS:8,.0f}/s   p50 {cuts[49] * 1e3:6.2f} ms   p99 {cuts[98] * 1e3:6.2f} ms"


async def in_process(durability: Literal["process", "power"]) -> None:
    service = SimpleNamespace(
        lanes={"places": 1}, logs=EventLogs(), endpoints=(), settings=Settings(), health=Health(), app=SimpleNamespace(options=Options())
    )
    for callers in CALLERS:
        with tempfile.TemporaryDirectory(dir=HOUSE) as folder:
            dispatcher = Dispatcher(cast(ServiceView, service), SqliteStore(Path(folder), durability=durability))

            async def submit(number: int, dispatcher: Dispatcher = dispatcher) -> None:
                await dispatcher.submit(Job(id=str(uuid4()), path="/", submitted=time.time()), BODY)

            async with dispatcher.running():
                await submit(0)
                print(f"submit, in process, {durability:8} {callers:3} callers {await measure(callers, submit)}")


class Connection:
    """As little of an HTTP client as will do."""

    async def open(self, port: int) -> Connection:
        self.port = port
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        self.writer.write(request)
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):  # a server may close a connection that had its share
            await self.open(self.port)
            return await self.ask(request)
        at = head.index(b"content-length: ") + 16
        body = await self.reader.readexactly(int(head[at : head.index(b"\r", at)]))
        return head, body


async def over_http(port: int) -> None:
    base = "/queue/local/bench"
    submit_head = f"POST {base} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
    first = await Connection().open(port)
    for _ in range(2):  # the second one waits
        _, told = await first.ask(submit_head.encode() + BODY)
    id = json.loads(told)["request_id"]
    poll = f"GET {base}/requests/{id}/status HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
    for name, request, wanted in (("poll", poll, b" 202 "), ("submit", submit_head.encode() + BODY, b" 200 ")):
        for callers in CALLERS:
            connections = [await Connection().open(port) for _ in range(callers)]

            async def call(number: int, connections: Any = connections, request: bytes = request, wanted: bytes = wanted) -> None:
                head, _ = await connections[number].ask(request)
                assert wanted in head, head

            print(f"{name + ', over HTTP':28} {callers:3} callers {await measure(callers, call)}")


def main() -> None:
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}, {SECONDS:g} s each")
    for durability in ("process", "power"):
        asyncio.run(in_process(cast(Literal["process", "power"], durability)))
    with tempfile.TemporaryDirectory(dir=HOUSE) as folder:
        app = Path(folder, "app.py")
        app.write_text(APP)
        command = [sys.executable, HOUSE / "runner.py", app, "--port", "0", "--log-format", "json", "--data-dir", folder]
        command += ["--max-queued-jobs", "10000000"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            assert process.stderr is not None
            port = 0
            for line in process.stderr:
                event = json.loads(line)
                port = int(event["url"].rpartition(":")[2]) if event["event"] == "server.listening" else port
                if event["event"] == "app.ready":
                    break
            try:
                with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL):
                    try:
                        asyncio.run(over_http(port))
                    finally:
                        process.kill()
            finally:
                process.kill()


if __name__ == "__main__":
    main()
