"""How long after a client hangs up its place is free, by what was running.

Starts a real runner (`python runner.py bench/workloads.py:Workloads`) and sends it requests that
would run for ever. After a random moment the client closes its socket. Shown in milliseconds:

    heard   from the close to the token's cancel, on the runner's event loop
    free    from the close until the thread has left and the place is free
    next    a short request of the same loop, sent at once: connection to answer, and what it costs
            when nobody was cancelled before
    by      the layers that stopped the thread, and how often

All on one machine, whose clock both processes read. It does not show a GPU (docs/gpu.md does), nor
networks, nor many callers at once.

    python bench/cancel.py --trials 200 --only unet,lm
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import socket
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(HOUSE / "tests")

import serving  # noqa: E402 - from tests/
from serving import Runner  # noqa: E402

LOOPS = ("unet", "lm", "functional", "python", "compiled", "one long call", "asleep")
FEW = {"one long call": 10, "asleep": 10}  # trials: these only show the remainder of the call


def request(loop: str, request_id: str, steps: int | None = None, path: str = "/", method: str = "POST") -> bytes:
    body = b"" if method == "GET" else json.dumps({"loop": loop} | ({"steps": steps} if steps else {})).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"X-Fal-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_to(port: int, message: bytes) -> Any:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(message)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = body.split(b"\r\n")[1]
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(received.decode())
    return json.loads(body)


def hang_up(port: int, loop: str, number: int, after: float) -> tuple[float, str]:
    """Send a request and leave; return when, and under which id."""
    request_id = f"{loop.replace(' ', '-')}-{number}"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(request(loop, request_id))
    time.sleep(after)
    left = time.perf_counter()
    connection.close()
    return left, request_id


def measure(runner: Runner, loop: str, trials: int) -> dict[str, Any]:
    port, dice = runner.port, random.Random(5)
    usual = []
    for number in range(20):
        began = time.perf_counter()
        right = answer_to(port, request(loop, f"usual-{number}", steps=2))
        usual.append(time.perf_counter() - began)
    heard, free, following, layers, wrong = [], [], [], Counter[str](), 0
    for number in range(min(trials, FEW.get(loop, trials))):
        left, request_id = hang_up(port, loop, number, dice.uniform(0.02, 0.1))
        began = time.perf_counter()
        wrong += answer_to(port, request(loop, f"next-{number}", steps=2)) != right
        following.append(time.perf_counter() - began)
        times = answer_to(port, request(loop, "times", path=f"/bench/times/{request_id}", method="GET"))
        heard.append(times["heard"] - left)
        free.append(times["free"] - left)
        layers[times["layer"]] += 1
    return {
        "loop": loop,
        "n": len(free),
        "heard": spread(heard),
        "free": spread(free),
        "next": f"{statistics.median(following) * 1e3:.1f} / {statistics.median(usual) * 1e3:.1f}",
        "wrong": wrong,
        "by": ", ".join(f"{layer} {count}" for layer, count in layers.most_common()),
    }


def spread(seconds: list[float]) -> str:
    ordered = sorted(each * 1e3 for each in seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(len(ordered) * share))]  # noqa: E731
    return f"{at(0.5):.2f} / {at(0.9):.2f} / {at(0.99):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="cancel latency through HTTP")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", default=",".join(LOOPS))
    asked = parser.parse_args()
    columns = ("loop", "n", "heard", "free", "next", "wrong", "by")
    app = f"{HOUSE / 'bench/workloads.py'}:Workloads"
    serving.GUARD_SECONDS = 600  # compiling takes its time
    with serving.serving(app, "--plugin", str(HOUSE / "bench/workloads.py"), cwd=HOUSE) as runner:
        print(f"Python {platform.python_version()}, {platform.machine()}; ms, p50 / p90 / p99; next: after a cancel / usual\n")
        print("| " + " | ".join(columns) + " |\n" + "|" + " --- |" * len(columns))
        for loop in asked.only.split(","):
            row = measure(runner, loop, asked.trials)
            print("| " + " | ".join(str(row[column]) for column in columns) + " |", flush=True)


if __name__ == "__main__":
    main()
