"""What an operator's Prometheus reads (contract 11.2; check 70)."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families
from serving import Runner, serving, written
from websockets.sync.client import connect

APP = """
import threading, time
import prometheus_client
import runner

PAINTED = prometheus_client.Counter("my_pictures_painted", "Pictures.")

class Metered(runner.App):
    version = "7"
    {options}

    @runner.endpoint("/")
    def run(self) -> str:
        PAINTED.inc()
        return "served"

    @runner.endpoint("/spin", timeout=0.1)
    def spin(self) -> str:
        print("begun")
        while True:
            time.sleep(0.001)

    @runner.endpoint("/count")
    def count(self):
        yield from range(5)

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


def test_requests_are_counted_by_endpoint_and_outcome(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP.format(options=""))) as runner:
        for _ in range(3):
            runner.post("/")
        runner.post("/spin")
        runner.get("/no-such-path")
        runner.wait_for("request.finished", path="/spin")
        found = read(runner)

    assert of(found, "http_requests_total", method="POST", path="/", status_code="200", app_name="metered") == 3
    assert of(found, "http_request_duration_seconds_count", path="/", status_code="200") == 3
    assert of(found, "http_requests_total", path="other", status_code="404") == 1
    assert of(found, "runner_cancel_seconds_count", reason="request_timeout") == 1
    assert of(found, "runner_waited_seconds_count", endpoint="/") == 3
    assert of(found, "runner_response_bytes_total", endpoint="/") == 3 * len('"served"')


def test_streams_and_sockets_are_counted_when_they_end(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP.format(options=""))) as runner:
        for _ in range(2):
            assert runner.post("/count").text.count("data: ") == 5
        with connect(runner.url.replace("http", "ws") + "/echo", proxy=None) as socket:
            for number in range(3):
                socket.send(msgspec.msgpack.encode({"number": number}))
                assert msgspec.msgpack.decode(socket.recv()) == {"number": number}
        runner.wait_for("request.finished", path="/echo")
        found = read(runner)

    assert of(found, "runner_items_total", endpoint="/count") == 10
    assert of(found, "runner_items_total", endpoint="/echo") == 3
    assert of(found, "runner_sockets_ended_total", endpoint="/echo", why="client") == 1


def test_the_lane_and_the_health_are_shown_as_they_are(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP.format(options="machine_type = 'GPU-H100'"))) as runner:
        found = read(runner)

    assert of(found, "runner_lane_places") == 1
    assert [of(found, f"runner_lane_{what}") for what in ("running", "waiting", "ghosts")] == [0, 0, 0]
    assert of(found, "fal_app_runners", application="local/metered", state="running", machine_type="GPU-H100") == 1
    assert of(found, "fal_app_runners", state="dead") == 0
    assert of(found, "runner_ready") == 1
    assert of(found, "runner_loop_lag_seconds") >= 0


def test_check_70_the_metrics_port_has_the_apps_own_metrics_and_answers_while_the_loop_does_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(written(tmp_path, APP.format(options=f"metrics_port = {port}"))) as runner:
        runner.post("/")
        with runner.call("/freeze", "freezing"):
            runner.wait_for("app.output", text="frozen")
            found = samples(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
        runner.process.kill()

    assert of(found, "fal_app_info", version="7") == 1
    assert of(found, "my_pictures_painted_total") == 1


def test_metrics_can_be_left_out(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP.format(options="")), "--no-plugin", "metrics") as runner:
        assert runner.get("/metrics").status_code == 404
