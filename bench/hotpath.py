"""What one request costs in the process alone: no sockets, no client, no other server.

A connection of the HTTP/1.1 lane is fed the bytes that wrk sends and writes to a transport that keeps
nothing. Shown is CPU per request, the least of many short rounds: on a busy machine the one figure that
stays put. `--profile` prints where the time goes, by cProfile, which makes small functions look larger.

    python bench/hotpath.py [--kind async,sync] [--connections 16] [--rounds 60] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import pstats
import sys
import time
from pathlib import Path
from typing import Any, TextIO

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent / "peers")

import uvloop
from ours import Peer
from runner.plugins.http1 import Server
from runner.plugins.observability import configure_logging

import runner

BODY = b'{"prompt": "a picture of a house by the sea", "steps": 20}'
HEAD = b"POST /%b HTTP/1.1\r\nHost: 127.0.0.1:8000\r\ncontent-type: application/json\r\nContent-Length: %d\r\n\r\n"


class Nowhere(asyncio.Transport):
    """A transport whose client takes everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.last = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8000)}.get(name, default)

    def write(self, data: Any) -> None:
        self.answers += 1
        self.last = data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...


async def measure(kind: str, connections: int, rounds: int, profile: bool, said: TextIO) -> None:
    service, loop = runner.asgi(Peer), asyncio.get_running_loop()
    async with service.running():
        while not service.health.takes_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        server = Server()
        lines = [(server.connect(service, lambda transport, data: None), Nowhere()) for _ in range(connections)]
        for connection, transport in lines:
            connection.connection_made(transport)
        request = HEAD % (kind.encode(), len(BODY)) + BODY

        def feed() -> None:
            for connection, _ in lines:
                connection.data_received(request)

        async def answer_all() -> None:
            wanted = lines[0][1].answers + 1
            loop.call_soon(feed)  # as the loop does, outside of any task
            while any(transport.answers < wanted for _, transport in lines):  # noqa: ASYNC110
                await asyncio.sleep(0)

        turns = 2000 // connections

        async def one_round() -> float:
            began = time.process_time()
            for _ in range(turns):
                await answer_all()
            return (time.process_time() - began) / (turns * connections) * 1e6

        for _ in range(3):
            await one_round()
        assert lines[0][1].last.startswith(b"HTTP/1.1 200 "), lines[0][1].last
        if profile:
            profiler = cProfile.Profile()
            profiler.enable()
            for _ in range(5):
                await one_round()
            profiler.disable()
            pstats.Stats(profiler, stream=said).sort_stats("tottime").print_stats(45)
        else:
            costs = sorted([await one_round() for _ in range(rounds)])
            said.write(f"{kind}, {connections} at a time: {costs[0]:.1f} us of CPU a request (median {costs[len(costs) // 2]:.1f})\n")
        for connection, _ in lines:
            connection.connection_lost(None)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU per request in the process alone.")
    parser.add_argument("--kind", default="async,sync")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    said = sys.stdout  # what is printed while a service runs is its app's
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stderr(nowhere):  # the access log, formatted as ever
        configure_logging()
        for kind in given.kind.split(","):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
                loop.run(measure(kind, given.connections, given.rounds, given.profile, said))


if __name__ == "__main__":
    main()
