"""Health: what probes read, and how the runner finds out (contract 9; checks 9, 68, 69; behaviours 5 to 7)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from runner.plugins import health as checks
from runner.schemas.health import HealthCheck
from runner.schemas.settings import Settings
from serving import Runner, serving, written

APP = """
import asyncio, pathlib, threading, time
import runner

HERE = pathlib.Path(__file__).parent

class Checked(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return "served"

    @runner.endpoint("/hold")
    def hold(self) -> str:
        threading.Event().wait()

    @runner.endpoint("/doubt")
    def doubt(self, response: runner.Response) -> str:
        response.headers["x-fal-runner-health-check"] = "true"
        return "doubtful"

    @runner.endpoint("/stop")
    def stop(self, response: runner.Response, value: str, how: str = ""):
        headers = dict([("x-fal-stop-runner", value)])
        if how == "raised":
            raise runner.HTTPError(503, "broken", headers)
        if how == "starlette":
            from starlette.responses import JSONResponse
            return JSONResponse("stopping", headers=headers)
        response.headers.update(headers)
        return "stopping"

    @runner.endpoint("/well", health_check=runner.HealthCheck({check}))
    {define} well(self, request: runner.Request) -> str:
        print("checked by", request.method)
        how = (HERE / "how").read_text()
        if how == "raises":
            raise OSError("no GPU")
        if how == "slow":
            {slow}
        return how
"""
NOW = "start_period_seconds=0, failure_threshold=2, timeout_seconds=1"


def app(folder: Path, check: str = NOW, define: str = "def", how: str = "well") -> Path:
    (folder / "how").write_text(how)
    slow = "time.sleep(5)" if define == "def" else "await asyncio.sleep(5)"
    return written(folder, APP.format(check=check, define=define, slow=slow))


def change(folder: Path, how: str) -> None:
    (folder / "how.new").write_text(how)
    (folder / "how.new").rename(folder / "how")


def until(runner: Runner, status: str) -> dict[str, Any]:
    """What `/health/ready` says once it says `status`."""
    with runner.client() as client:
        while (found := client.get("/health/ready").json())["status"] != status:
            pass
    return dict(found)


@pytest.mark.parametrize("define", ["def", "async def"])
@pytest.mark.parametrize("how", ["raises", "slow"])
def test_behaviour_6_a_failing_check_makes_it_unhealthy_and_recovery_is_seen(tmp_path: Path, define: str, how: str) -> None:
    """Check 68: at the threshold; requests still work meanwhile."""
    with serving(app(tmp_path, define=define), "--health-seconds", "0.05") as runner:
        runner.wait_for("app.output", text="checked by POST", times=2)
        well = runner.get("/health/ready").status_code
        change(tmp_path, how)
        runner.wait_for("health_check.failed", times=2)
        sick = until(runner, "unhealthy")
        status, served = runner.get("/health/ready").status_code, runner.post("/")
        change(tmp_path, "well")
        until(runner, "ready")

    assert well == 200
    assert status == 503
    expected = "/well answered 500" if how == "raises" else "it took longer than 1 s"
    assert expected in sick["reason"]
    assert served.json() == "served"


def test_check_68_the_check_passes_the_limit_of_places(tmp_path: Path) -> None:
    with serving(app(tmp_path), "--health-seconds", "0.05") as runner, runner.call("/hold", "held"):
        while runner.get("/health").json()["status"] != "busy":
            pass
        seen = len(runner.events("app.output", text="checked by POST"))
        runner.wait_for("app.output", text="checked by POST", times=seen + 2)

        assert runner.get("/health/ready").status_code == 200


def test_check_68_by_default_it_is_a_post_every_15_seconds_and_the_third_failure_counts() -> None:
    """Contract 9.1. That a supervised runner is then replaced is in test_supervising.py."""
    assert Settings().health_seconds == 15
    assert (checks.START_PERIOD_SECONDS, checks.TIMEOUT_SECONDS, checks.THRESHOLD) == (30, 5, 3)
    assert HealthCheck() == HealthCheck(call_regularly=True, method=None)


def test_a_failure_within_the_start_period_does_not_count(tmp_path: Path) -> None:
    with serving(app(tmp_path, "failure_threshold=1", how="raises"), "--health-seconds", "0.05") as runner:
        line = runner.wait_for("health_check.failed", times=3)

        assert line["counts"] is False
        assert runner.get("/health/ready").status_code == 200


def test_check_69_the_trigger_on_an_answer_checks_at_once_and_is_not_shown(tmp_path: Path) -> None:
    """One failure is enough, start period or not; and this app is never checked otherwise."""
    with serving(app(tmp_path, "call_regularly=False, method='GET'", how="raises"), "--health-seconds", "3600") as runner:
        before = runner.events("app.output", text="checked by GET")
        answer = runner.post("/doubt")
        runner.wait_for("health_check.failed")
        sick = until(runner, "unhealthy")

    assert before == []
    assert (answer.json(), "x-fal-runner-health-check" in answer.headers) == ("doubtful", False)
    assert "/well answered 500" in sick["reason"]
    assert runner.events("app.output", text="checked by GET")


def test_an_answer_can_ask_for_the_process_to_be_replaced_and_its_caller_does_not_see_that(tmp_path: Path) -> None:
    """Contract 2.6: `x-fal-stop-runner`, true or 1, false or 0, on an answer or on what is raised."""
    for query, status in [("value=true", 200), ("value=1&how=raised", 503), ("value=true&how=starlette", 200)]:
        with serving(app(tmp_path), "--health-seconds", "3600") as runner:
            kept = [runner.post(f"/stop?{query}") for query in ("value=false", "value=0&how=raised")]
            stopped = runner.post(f"/stop?{query}")
            code = runner.wait()

        assert [answer.status_code for answer in kept] == [200, 503]
        assert stopped.status_code == status
        assert all("x-fal-stop-runner" not in answer.headers for answer in (*kept, stopped))
        assert runner.events("server.replacing", code=76)[0]["reason"] == "/stop answered with x-fal-stop-runner"
        assert code == 76


@pytest.mark.parametrize("define", ["def", "async def"])
def test_without_a_check_of_its_own_the_apps_health_is_asked(tmp_path: Path, define: str) -> None:
    """Check 9: what it raises is said on /health."""
    source = f"""
import pathlib
import runner
class Plain(runner.App):
    {define} health(self):
        if (pathlib.Path(__file__).parent / "how").read_text() == "raises":
            raise OSError("no GPU")
        return {{"version": "3"}}
    @runner.endpoint("/")
    def run(self) -> str: return "served"
"""
    (tmp_path / "how").write_text("well")
    with serving(written(tmp_path, source)) as runner:
        well = runner.get("/health").json()
        change(tmp_path, "raises")
        sick = runner.get("/health")

    assert (well["version"], well["status"]) == ("3", "ready")
    assert (sick.status_code, sick.json()["status"]) == (500, "unhealthy")
    assert "no GPU" in sick.json()["reason"]


def test_behaviour_5_a_sync_health_that_blocks_delays_nobody(tmp_path: Path) -> None:
    source = """
import threading
import runner
class Slow(runner.App):
    def health(self):
        print("asked")
        threading.Event().wait(20)
    @runner.endpoint("/")
    def run(self) -> str: return "served"
"""
    with serving(written(tmp_path, source)) as runner, runner.call("/health", "slow"):
        with runner.client() as client, pytest.raises(httpx.ReadTimeout):
            client.get("/health", timeout=0.3)
        runner.wait_for("app.output", text="asked")
        assert runner.get("/health/live").status_code == 200
        assert runner.post("/").json() == "served"
        runner.process.kill()


def test_behaviour_7_health_polled_ten_thousand_times_leaks_nothing(tmp_path: Path) -> None:
    with serving(app(tmp_path), "--log-level", "warning", "--ready-fd", "2", ready=False) as runner:
        url = runner.wait_for("ready")["url"]

        def state() -> tuple[int, int]:
            pid = runner.process.pid
            return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

        def memory() -> int:
            lines = Path(f"/proc/{runner.process.pid}/smaps_rollup").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("Pss:")).split()[1])

        with httpx.Client(base_url=url, trust_env=False) as client:
            client.get("/metrics")  # what it needs is loaded when first asked for
            for _ in range(1000):
                client.get("/health")
            client.get("/metrics")
            before, used = state(), memory()
            for _ in range(9000):
                assert client.get("/health/ready").status_code == 200
            assert state() == before
            assert memory() - used < 2048, "KiB"


def test_the_states_follow_one_another_as_the_table_says() -> None:
    from runner.schemas.health import Health, State

    health, seen = Health(), []
    health.watch(seen.append)
    health.ail("lanes", "a ghost")
    health.become(State.READY)
    health.ail("app", "it raised")
    reason = health.reason
    health.recover("lanes")
    health.recover("app")
    health.become(State.DRAINING)
    health.ail("app", "too late")

    assert [str(state) for state in seen] == ["ready", "unhealthy", "ready", "draining"]
    assert reason == "a ghost; it raised"
    assert not health.become(State.READY)
    assert json.dumps(health.state) == '"draining"'
