"""Who stops a request, and what its caller reads (contract 8; checks 54 to 57 for direct calls; behaviours 23, 24, 29)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path

import pytest
from serving import Runner, serving, written

APP = """
import asyncio, os, threading, time
import fal
from fal.exceptions import RequestCancelledException
import runner

def spin(path):
    print("begun")
    try:
        while not os.path.exists(path):
            time.sleep(0.001)
        print("finished")
        return "finished"
    finally:
        print("cleaned up")

class Stoppable(fal.App):
    cancel_grace_seconds = None

    def setup(self):
        self.tasks = {}
        self.begun = []

    @fal.endpoint("/spin")
    def spin(self, path: str) -> str:
        return spin(path)

    @fal.endpoint("/spin-async")
    async def spin_async(self, path: str) -> str:
        print("begun")
        try:
            while not os.path.exists(path):
                await asyncio.sleep(0.001)
            return "finished"
        finally:
            print("cleaned up")

    @runner.endpoint("/finish", on_disconnect="finish")
    def finish(self, path: str) -> str:
        return spin(path)

    @runner.endpoint("/short", timeout=0.2)
    def short(self, path: str) -> str:
        return spin(path)

    @runner.endpoint("/short-async", timeout=0.2)
    async def short_async(self, path: str) -> str:
        return await self.spin_async(path)

    @fal.endpoint("/own")
    async def own(self, path: str, x_fal_request_id: str = runner.Header(None)) -> str:
        self.tasks[x_fal_request_id] = asyncio.current_task()
        print("begun")
        try:
            while not os.path.exists(path):
                await asyncio.sleep(0.001)
            return "finished"
        except asyncio.CancelledError:
            raise RequestCancelledException("stopped as its author wished") from None

    @fal.endpoint("/own/cancel")
    async def cancel_own(self, x_fal_request_id: str = runner.Header(None)) -> dict:
        print("asked to cancel", x_fal_request_id)
        self.tasks[x_fal_request_id].cancel()
        return {"cancelled": x_fal_request_id}

    @fal.endpoint("/")
    def next(self) -> str:
        return "next"
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return written(tmp_path, APP)


@pytest.fixture
def runner(app: Path) -> Iterator[Runner]:
    with serving(app) as runner:
        yield runner


def begun(runner: Runner, request_id: str) -> None:
    runner.wait_for("app.output", text="begun", request_id=request_id)


@pytest.mark.parametrize("path", ["/spin", "/spin-async"])
def test_a_cancel_by_id_stops_the_work_and_both_callers_are_told(runner: Runner, path: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as callers:
        answer = callers.submit(runner.post, f"{path}?path={tmp_path / 'never'}", headers={"x-fal-request-id": "one"})
        begun(runner, "one")
        cancelled = runner.post(f"{path}/cancel", headers={"x-fal-request-id": "one"})

    assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    stopped = answer.result()
    assert (stopped.status_code, stopped.json()["error_type"]) == (499, "client_cancelled")
    assert stopped.headers["x-fal-error-type"] == "client_cancelled"
    runner.wait_for("app.output", text="cleaned up", request_id="one")
    assert runner.post("/").json() == "next"
    line = runner.wait_for("request.finished", request_id="one", path=path)
    assert (line["reason"], line["status"]) == ("client_cancelled", 499)
    assert line["layer"] in ("scope", "asynchronous", "back-edge")


def test_a_direct_request_is_cancelled_by_the_queues_path_too(runner: Runner, tmp_path: Path) -> None:
    base = "/queue/local/stoppable/requests"
    with ThreadPoolExecutor() as callers, runner.client() as client:
        answer = callers.submit(runner.post, f"/spin?path={tmp_path / 'never'}", headers={"x-fal-request-id": "one"})
        begun(runner, "one")
        cancelled = client.put(f"{base}/one/cancel")
        stopped = answer.result()
        late, unknown = client.put(f"{base}/one/cancel"), client.put(f"{base}/nobody/cancel")

    assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (stopped.status_code, stopped.json()["error_type"]) == (499, "client_cancelled")
    assert (late.status_code, late.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})


def test_behaviour_24_a_cancel_before_the_work_began_means_it_never_begins(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor() as callers:
        first = callers.submit(runner.post, f"/spin?path={gate}", headers={"x-fal-request-id": "first"})
        begun(runner, "first")
        second = callers.submit(runner.post, f"/spin?path={gate}", headers={"x-fal-request-id": "second"})
        with runner.client() as client:
            while client.get("/health").json()["lanes"]["waiting"] == 0:
                pass
        runner.post("/spin/cancel", headers={"x-fal-request-id": "second"})
        stopped = second.result()
        gate.touch()

    assert stopped.status_code == 499
    assert first.result().json() == "finished"
    assert not runner.events("app.output", request_id="second")
    assert runner.wait_for("request.finished", request_id="second", path="/spin")["layer"] == "waiting"


def test_behaviours_23_and_24_cancels_of_what_is_over_or_unknown_or_asked_thrice(runner: Runner, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as callers:
        answer = callers.submit(runner.post, f"/spin?path={tmp_path / 'never'}", headers={"x-fal-request-id": "one"})
        begun(runner, "one")
        codes = [runner.post("/spin/cancel", headers={"x-fal-request-id": "one"}).status_code for _ in range(3)]
    unknown = runner.post("/spin/cancel", headers={"x-fal-request-id": "nobody"})
    late = runner.post("/spin/cancel", headers={"x-fal-request-id": "one"})

    assert answer.result().status_code == 499
    assert codes[0] == 202
    assert set(codes[1:]) <= {202, 400}
    assert (unknown.status_code, unknown.json()) == (404, {"status": "NOT_FOUND"})
    assert (late.status_code, late.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_behaviour_24_a_cancel_that_races_with_the_end_gives_exactly_one_answer(runner: Runner, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as callers:
        for trial in range(30):
            name, gate = f"race-{trial}", tmp_path / f"gate-{trial}"
            answer = callers.submit(runner.post, f"/spin?path={gate}", headers={"x-fal-request-id": name})
            begun(runner, name)
            opening = callers.submit(gate.touch)
            cancelled = runner.post("/spin/cancel", headers={"x-fal-request-id": name}).status_code
            opening.result()
            outcome = answer.result()
            assert (outcome.status_code, outcome.json() == "finished") in ((200, True), (499, False))
            assert cancelled in (202, 400)

    assert runner.post("/").json() == "next"


@pytest.mark.parametrize("path", ["/spin", "/spin-async"])
def test_a_caller_who_hangs_up_stops_the_work(runner: Runner, path: str, tmp_path: Path) -> None:
    with runner.call(f"{path}?path={tmp_path / 'never'}", "gone"):
        begun(runner, "gone")
    line = runner.wait_for("request.finished", request_id="gone")

    assert (line["status"], line["reason"], line["error_type"]) == (499, "client_disconnected", "client_disconnected")
    runner.wait_for("app.output", text="cleaned up", request_id="gone")
    assert runner.post("/").json() == "next"


def test_work_that_is_to_finish_outlives_its_caller(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with runner.call(f"/finish?path={gate}", "gone"):
        begun(runner, "gone")
    gate.touch()
    runner.wait_for("app.output", text="finished", request_id="gone")


@pytest.mark.parametrize("path", ["/short", "/short-async"])
def test_check_54_a_run_over_its_timeout_is_504_and_the_next_request_is_served(runner: Runner, path: str, tmp_path: Path) -> None:
    late = runner.post(f"{path}?path={tmp_path / 'never'}")

    assert (late.status_code, late.json()["error_type"]) == (504, "request_timeout")
    assert late.headers["x-fal-error-type"] == "request_timeout"
    assert "x-fal-request-timeout-type" not in late.headers
    assert runner.post("/").json() == "next"


def test_check_54_the_apps_own_timeout_counts_from_the_start_of_the_run(tmp_path: Path) -> None:
    app = written(tmp_path, APP.replace("cancel_grace_seconds = None", "request_timeout = 0.3"))
    with serving(app) as runner, ThreadPoolExecutor() as callers:
        answers = list(callers.map(lambda _: runner.post(f"/spin?path={tmp_path / 'never'}"), range(3)))
        runner.wait_for("request.finished", times=3)

    assert [answer.json()["error_type"] for answer in answers] == ["request_timeout"] * 3
    waited = sorted(line["waited_ms"] for line in runner.events("request.finished", path="/spin"))
    assert waited[-1] > 300, "the third waited longer than its own timeout, and had it whole"


@pytest.mark.parametrize("by", ["id", "hang-up"])
def test_behaviour_29_an_authors_own_cancel_endpoint_is_called_past_the_lanes_limit(runner: Runner, by: str, tmp_path: Path) -> None:
    """Checks 55 and 57: with the same request id, while `max_multiplexing = 1` is taken."""
    with runner.call(f"/own?path={tmp_path / 'never'}", "mine") as caller:
        begun(runner, "mine")
        if by == "id":
            told = runner.post("/own/cancel", headers={"x-fal-request-id": "mine"})
            assert told.json() == {"cancelled": "mine"}
            answer = HTTPResponse(caller)
            answer.begin()
            assert (answer.status, answer.read()) == (499, b'{"detail":"stopped as its author wished"}')
    runner.wait_for("app.output", text="asked to cancel mine")
    runner.wait_for("request.finished", request_id="mine", path="/own")

    assert runner.post("/").json() == "next"


def test_what_an_authors_cancel_endpoint_leaves_running_is_stopped_after_the_grace_period(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        APP.replace("cancel_grace_seconds = None", "cancel_grace_seconds = 0.2").replace("self.tasks[x_fal_request_id].cancel()", "raise ValueError"),
    )
    with serving(app) as runner:
        with runner.call(f"/own?path={tmp_path / 'never'}", "mine"):
            begun(runner, "mine")
        line = runner.wait_for("request.finished", request_id="mine", path="/own")
        assert runner.post("/").json() == "next"

    assert runner.events("cancel_endpoint.failed") or runner.events("request.failed")
    assert line["reason"] == "client_disconnected"


def test_ten_callers_that_vanish_leave_no_thread_and_no_descriptor_behind(runner: Runner) -> None:
    def state() -> tuple[int, int]:
        pid = runner.process.pid
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    def vanish(number: int) -> None:
        with runner.call("/spin?path=/never", f"gone-{number}"):
            begun(runner, f"gone-{number}")
        runner.wait_for("request.finished", request_id=f"gone-{number}")

    vanish(0)
    before = state()
    for number in range(1, 11):
        vanish(number)

    assert state() == before
