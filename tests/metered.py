"""A runner that has done every kind of work, and what Prometheus read of it meanwhile and afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from serving import Runner, serving, written
from websockets.sync.client import connect

APP = """
import pathlib, threading, time
import prometheus_client
import runner

PAINTED = prometheus_client.Counter("my_pictures_painted", "Pictures.")
HERE = pathlib.Path(__file__).parent

class Metered(runner.App, max_multiplexing=2):
    version = "7"
    machine_type = "GPU-H100"
    metrics_port = {port}

    @runner.endpoint("/batched", batch=runner.Batch())
    def batched(self, n: list[int]) -> list[int]:
        return n

    @runner.endpoint("/")
    def run(self) -> str:
        PAINTED.inc()
        return "served"

    @runner.endpoint("/picture")
    def picture(self, picture: runner.File) -> runner.File:
        return runner.File.from_bytes(picture.as_bytes() * 2)

    @runner.endpoint("/bug")
    def bug(self) -> str:
        raise LookupError("a bug")

    @runner.endpoint("/spin", timeout=0.1)
    def spin(self) -> str:
        while True:
            time.sleep(0.001)

    @runner.endpoint("/count")
    def count(self):
        yield from range(5)

    @runner.endpoint("/until")
    def until(self, gate: str):
        print("streaming")
        yield 1
        while not (HERE / gate).exists():
            time.sleep(0.002)
        yield 2

    @runner.realtime("/echo")
    def echo(self, input: dict) -> dict:
        return input

    @runner.endpoint("/freeze")
    async def freeze(self) -> str:
        print("frozen")
        threading.Event().wait(20)
        return "thawed"
"""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(runner: Runner) -> Samples:
    response = runner.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return samples(response.text)


def of(found: Samples, name: str, **labels: str) -> float:
    """The one sample of this name that has these labels."""
    (value,) = [v for (n, have), v in found.items() if n == name and labels.items() <= dict(have).items()]
    return value


class Worked:
    """`during`: while streams are open and a request and a job wait. `after`: when all is over. `frozen`: see there."""

    def __init__(self, runner: Runner, port: int, folder: Path) -> None:
        self.runner, self.port = runner, port
        self.during = self._hold(folder)
        self._work()
        self.after = read(runner)
        with runner.call("/freeze", "freezing"):
            runner.wait_for("app.output", text="frozen")
            self.frozen = samples(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)

    def _hold(self, folder: Path) -> Samples:
        runner = self.runner
        with ExitStack() as held:
            client = held.enter_context(runner.client())
            streams = [
                held.enter_context(client.stream("POST", "/until?gate=gate", headers={"accept": "text/event-stream"})) for _ in range(2)
            ]
            pipe = held.enter_context(connect(runner.url.replace("http", "ws") + "/echo", proxy=None))
            runner.wait_for("app.output", text="streaming", times=2)
            waiting = held.enter_context(runner.call("/", "waits"))
            job = client.post("/queue/local/metered/").json()
            while of(during := read(runner), "runner_lane_waiting") < 1:
                pass
            (folder / "gate").touch()
            for stream in streams:
                assert "data: 2" in "".join(stream.iter_text())
            assert b"served" in waiting.recv(65536)
            pipe.send(msgspec.msgpack.encode({"number": 1}))
            pipe.recv()
            with client.stream("GET", job["status_url"] + "/stream") as told:
                list(told.iter_lines())
        return during

    def _work(self) -> None:
        runner = self.runner
        with runner.client() as client:
            for _ in range(3):
                client.post("/")
            client.post("/bug")
            client.post("/spin")
            client.post("/count", headers={"accept": "text/event-stream"})
            client.get("/no-such-path")
            url = client.post("/files", content=b"x" * 100).json()["url"]
            made = client.post("/picture", json={"url": url}).json()["url"]
            assert len(client.get(made).content) == 200
        runner.wait_for("request.finished", path="/spin")
        runner.wait_for("request.finished", path="/echo")


@contextmanager
def worked(folder: Path) -> Iterator[Worked]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app = written(folder, APP.replace("{port}", str(port)))
    with serving(app, "--data-dir", str(folder / "data")) as runner:
        yield Worked(runner, port, folder)
        runner.process.kill()
