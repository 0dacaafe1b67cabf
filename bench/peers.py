"""The same typed endpoint behind us and our peers: requests a second, CPU per request, cold start, memory.

Each peer gets an environment of its own below `.bench/` and runs as one server with one worker, in
its documented set-up for speed (`bench/peers/*.py`, and COMMANDS here; criticise them). All are
started once and stay up; then each is loaded in turn by wrk, round after round, so that what else
the machine does falls on all alike. Shown are medians over the rounds. CPU is that of the server's
whole process tree, and depends less on a busy machine than the rate does. Memory is PSS, idle,
after the first load. Cold start is from `exec` to the first answer. Not shown: several workers,
large bodies, GPUs.

    python bench/peers.py [--rounds 3] [--seconds 3] [--connections 16,64] [--only ours,uvicorn]

wrk must be there (Debian: apt-get install wrk).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HOUSE = Path(__file__).parent.parent
PEERS = HOUSE / "bench" / "peers"
BODY = b'{"prompt": "a picture of a house by the sea", "steps": 20}'
START_SECONDS = 120  # BentoML's first start on a cold disk takes a while

INSTALL = {  # what each environment holds; ours is the one that runs this
    "uvicorn": ["uvicorn", "uvloop", "httptools", "msgspec"],
    "hypercorn": ["hypercorn", "uvloop", "msgspec"],
    "fastapi": ["fastapi", "uvicorn", "uvloop", "httptools", "websockets", "python-multipart"],
    "fal": ["fal", "uvicorn", "uvloop", "httptools"],
    "mosec": ["mosec", "msgspec"],
    "litserve": ["litserve", "uvloop", "httptools"],
    "bentoml": ["bentoml", "uvloop", "httptools"],
}
UVICORN = ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
COMMANDS = {  # {bin}: the environment's; {port}
    "ours": [sys.executable, str(HOUSE / "runner.py"), "ours.py:Peer", "--port", "{port}"],
    "ours, --no-plugin http1": [sys.executable, str(HOUSE / "runner.py"), "ours.py:Peer", "--port", "{port}", "--no-plugin", "http1"],
    "uvicorn": ["{bin}/uvicorn", "bare:app", "--port", "{port}", *UVICORN],
    "hypercorn": ["{bin}/hypercorn", "bare:app", "--bind", "127.0.0.1:{port}", "--worker-class", "uvloop"],
    "fastapi": ["{bin}/uvicorn", "fast:app", "--port", "{port}", *UVICORN],
    "fal": ["{bin}/uvicorn", "fal_app:app", "--port", "{port}", *UVICORN],
    "mosec": ["{bin}/python", "mos.py", "--port", "{port}", "--address", "127.0.0.1", "--log-level", "warning"],
    "litserve": ["{bin}/python", "lit.py", "{port}"],
    "bentoml": ["{bin}/bentoml", "serve", "bento:Peer", "--host", "127.0.0.1", "--port", "{port}"],
}
PATHS = {  # what answers; a bare ASGI app knows no threads, a worker process no loop
    "uvicorn": {"async": "/"},
    "hypercorn": {"async": "/"},
    "mosec": {"sync": "/inference"},
    "litserve": {"sync": "/sync"},
}
BOTH = {"async": "/async", "sync": "/sync"}


class Load(NamedTuple):
    """One run of wrk."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int


def install(name: str) -> Path:
    """The `bin` of the peer's environment, made now if it is not there."""
    folder = HOUSE / ".bench" / name
    done = folder / ".done"
    if not done.exists() or done.read_text().split() != INSTALL[name]:
        print(f"installing {name} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *INSTALL[name]], check=True)
        done.write_text("\n".join(INSTALL[name]))
    return folder / "bin"


def versions(name: str) -> str:
    if name.startswith("ours"):
        return f"here, hypercorn {version('hypercorn')}, httptools {version('httptools')}, uvloop {version('uvloop')}"
    python = HOUSE / ".bench" / name / "bin" / "python"
    code = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    return subprocess.run([python, "-c", code, *INSTALL[name]], capture_output=True, text=True, check=True).stdout.strip()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A peer that runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, path: str = "") -> None:
        self.name, self.process, self.port = name, process, port
        self.paths = {"": path} if path else PATHS.get(name, BOTH)

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("POST", next(iter(self.paths.values())), BODY, {"content-type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{self.name} does not answer; see .bench/{self.name}.log")
            time.sleep(0.005)

    def tree(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu_seconds(self) -> float:
        ticks = 0
        for pid in self.tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def pss_mib(self) -> float:
        found = [re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE) for pid in self.tree()]
        return sum(int(match[1]) for match in found if match) / 1024

    def load(self, kind: str, connections: int, seconds: float) -> Load:
        url = f"http://127.0.0.1:{self.port}{self.paths[kind]}"
        before = self.cpu_seconds()
        said = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", PEERS / "post.lua", url],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        spent = self.cpu_seconds() - before
        count = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])  # type: ignore[index]
        failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
        return Load(rate, _percentile(said, 50), _percentile(said, 99), spent / max(count, 1) * 1e6, int(failed[1]) if failed else 0)


def _percentile(said: str, percent: int) -> float:
    value, unit = re.search(rf"^\s+{percent}%\s+([\d.]+)(\w+)", said, re.MULTILINE).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[unit]


def running(name: str) -> AbstractContextManager[Server]:
    return started(name, COMMANDS[name])


@contextmanager
def started(name: str, command: list[str], path: str = "") -> Iterator[Server]:
    """The peer `name`, run by `command` beside the files of the peers; `path` is what answers, if not the typed endpoint."""
    port = free_port()
    folder = "" if name.startswith("ours") else str(install(name))
    command = [part.format(bin=folder, port=port) for part in command]
    (HOUSE / ".bench").mkdir(exist_ok=True)
    # What pip installs is compiled; so is what is here, from the second start on.
    written = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**written, "RUNNER_DATA_DIR": str(HOUSE / ".bench" / "data"), "PATH": f"{folder}:{os.environ['PATH']}", "BENTOML_DO_NOT_TRACK": "True", "PYTHONWARNINGS": "ignore"}
    with open(HOUSE / ".bench" / f"{name}.log", "wb") as log:
        process = subprocess.Popen(command, cwd=PEERS, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield Server(name, process, port, path)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(10)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def usable(names: list[str]) -> list[str]:
    """Those of `names` that are installed, or can be."""
    found = []
    for name in names:
        try:
            if not name.startswith("ours"):
                install(name)
            found.append(name)
        except subprocess.CalledProcessError:
            print(f"{name} does not install here and is left out", file=sys.stderr)
    return found


def cold_start(name: str) -> float:
    began = time.perf_counter()
    with running(name) as server:
        server.wait()
        return time.perf_counter() - began


def measure(names: list[str], rounds: int, seconds: float, connections: list[int]) -> tuple[dict[tuple[str, str, int], list[Load]], dict[str, float]]:
    loads: dict[tuple[str, str, int], list[Load]] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(name)) for name in names]
        for server in servers:
            server.wait()
            for kind in server.paths:  # warm
                server.load(kind, connections[0], 1)
        memory = {server.name: server.pss_mib() for server in servers}
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for count in connections:
                for server in servers if number % 2 == 0 else reversed(servers):
                    for kind in server.paths:
                        loads.setdefault((server.name, kind, count), []).append(server.load(kind, count, seconds))
    return loads, memory


def medians_of(loads: dict[tuple[str, str, int], list[Load]]) -> dict[tuple[str, str, int], Load]:
    return {key: Load(*(statistics.median(column) for column in zip(*runs, strict=True))) for key, runs in loads.items()}


def show(loads: dict[tuple[str, str, int], list[Load]], starts: dict[str, list[float]], memory: dict[str, float]) -> None:
    medians = medians_of(loads)
    print(f"\n{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n")
    for kind in ("async", "sync"):
        for count in sorted({key[2] for key in medians}):
            print(f"| {kind}, {count} connections | requests/s | ours is | CPU us/request | ours is | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|")
            ours = medians.get(("ours", kind, count))
            rows = [(key[0], load) for key, load in medians.items() if key[1:] == (kind, count)]
            for name, load in sorted(rows, key=lambda row: -row[1].rate):
                times = f"{ours.rate / load.rate:.2f} x" if ours else ""
                less = f"{load.cpu_us / ours.cpu_us:.2f} x cheaper" if ours else ""
                failed = f" ({load.failed:.0f} failed)" if load.failed else ""
                print(f"| {name} | {load.rate:,.0f}{failed} | {times} | {load.cpu_us:.0f} | {less} | {load.p50_ms:.2f} | {load.p99_ms:.2f} |")
            print()
    print("| | cold start s | ours is | PSS MiB idle | ours is |\n|---|---|---|---|---|")
    own = statistics.median(starts["ours"]) if "ours" in starts else 0
    for name in memory:
        start = statistics.median(starts[name])
        print(f"| {name} | {start:.2f} | {own / start:.2f} x | {memory[name]:.0f} | {memory.get('ours', 0) / memory[name]:.2f} x |")
    print()
    for name in memory:
        print(f"{name}: {versions(name)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the typed endpoint behind us and our peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", default="16,64")
    parser.add_argument("--only", default=",".join(name for name in COMMANDS if "," not in name) + ",ours/no-http1")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; on Debian: apt-get install wrk")
    names = [name.replace("ours/no-http1", "ours, --no-plugin http1") for name in given.only.split(",")]
    names = usable(names)
    for name in names:
        cold_start(name)  # from a warm disk, and compiled
    starts: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            starts[name].append(cold_start(name))
    loads, memory = measure(names, given.rounds, given.seconds, [int(count) for count in given.connections.split(",")])
    show(loads, starts, memory)
    if given.json:
        rates = {f"{kind} {count} {name}": load._asdict() for (name, kind, count), load in medians_of(loads).items()}
        given.json.write_text(json.dumps({"loads": rates, "starts": {n: statistics.median(s) for n, s in starts.items()}, "memory": memory}))


if __name__ == "__main__":
    main()
