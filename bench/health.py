"""How fast probes are answered while all lanes run torch on both cores.

Starts a real runner (`python runner.py bench/health.py:Busy`) with two places and asks it every 20 ms,
on a new connection each, as Kubernetes does: first idle, then with an endless torch loop in each place,
of each kind:

    layers      a network of many small modules: Python between short kernels
    products    large matrix products: few long calls, on all cores
    python      a loop of pure Python: as much of the interpreter as one can take

Shown in milliseconds, from the connection to the answer: p50, p99 and the worst of `/health/live`, of
`/health/ready` and of `/metrics`. Beside them what the machine itself does to anybody: the same asked of a bare
asyncio server in a process of its own, at the same time. The target is a p99 of 20 ms for `/health/live`. The
one who asks competes for the same cores.

    python bench/health.py --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(HOUSE / "tests")
    import serving
else:
    import runner

    class Busy(runner.App, max_multiplexing=2):
        def setup(self) -> None:
            import torch

            self.torch = torch
            torch.set_grad_enabled(False)
            self.layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(50)))
            self.small, self.large = torch.randn(8, 64), torch.randn(1500, 1500)

        @runner.endpoint("/layers")
        def layers_loop(self) -> None:
            print("begun")
            while True:
                self.layers(self.small)

        @runner.endpoint("/products")
        def products(self) -> None:
            print("begun")
            while True:
                self.torch.mm(self.large, self.large)

        @runner.endpoint("/python")
        def python(self) -> None:
            print("begun")
            number = 0
            while True:
                number += 1


KINDS = ("layers", "products", "python")
PATHS = ("/health/live", "/health/ready", "/metrics")
PAUSE = 0.02
TARGET_MS = 20.0


def asked(port: int, path: str) -> float:
    """Milliseconds from the connection to the last byte of the answer."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    if not received.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(received.decode())
    return (time.perf_counter() - began) * 1000


def measure(port: int, bare: int, seconds: float) -> dict[str, list[float]]:
    """Ask all in turns, so that they meet the same machine."""
    took: dict[str, list[float]] = {path: [] for path in (*PATHS, "bare")}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        took["/health/live"].append(asked(port, "/health/live"))
        took["bare"].append(asked(bare, "/"))
        if len(took["bare"]) % 5 == 0:
            for path in PATHS[1:]:
                took[path].append(asked(port, path))
        time.sleep(PAUSE)
    return {path: sorted(times) for path, times in took.items()}


def row(name: str, took: dict[str, list[float]]) -> str:
    def shown(times: list[float]) -> str:
        return f"{times[len(times) // 2]:7.2f} {times[len(times) * 99 // 100]:7.2f} {times[-1]:7.2f}"

    return f"{name:10}" + "".join(f" | {shown(took[path])}" for path in (*PATHS, "bare"))


async def serve_bare() -> None:
    """The least that answers: what the machine does to it, it does to us."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description="How fast probes are answered under load.")
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of work, with commas")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        asyncio.run(serve_bare())
        return 0
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before; ms, every {PAUSE * 1000:.0f} ms")
    print(f"{'':10}" + "".join(f" | {path:^23}" for path in (*PATHS, "a bare server")))
    print(f"{'':10}" + f" | {'p50':>7} {'p99':>7} {'worst':>7}" * 4)
    worst: dict[str, Any] = {}
    bare = subprocess.Popen([sys.executable, __file__, "--bare"], stdout=subprocess.PIPE, text=True)
    try:
        assert bare.stdout is not None
        port = int(bare.stdout.readline())
        with serving.serving(f"{Path(__file__)}:Busy", "--log-level", "warning", "--log-format", "json", "--ready-fd", "2", ready=False) as runner:
            url = runner.wait_for("ready")["url"]
            own = int(url.rpartition(":")[2])
            runner.wait_for("ready")
            measure(own, port, 1)
            print(row("idle", measure(own, port, options.seconds)), flush=True)
            for number, kind in enumerate(options.only.split(","), 1):
                with ExitStack() as callers:
                    for _ in range(2):
                        caller = callers.enter_context(socket.create_connection(("127.0.0.1", own)))
                        caller.sendall(f"POST /{kind} HTTP/1.1\r\nhost: bench\r\ncontent-length: 0\r\n\r\n".encode())
                    runner.wait_for("app.output", text="begun", times=2 * number)
                    took = measure(own, port, options.seconds)
                    print(row(kind, took), flush=True)
                    worst[kind] = took["/health/live"][len(took["/health/live"]) * 99 // 100]
    finally:
        bare.terminate()
        bare.wait()
    late = {kind: ms for kind, ms in worst.items() if ms >= TARGET_MS}
    print(f"target: p99 of /health/live under {TARGET_MS:.0f} ms: " + ("held" if not late else f"missed by {', '.join(late)}"))
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
