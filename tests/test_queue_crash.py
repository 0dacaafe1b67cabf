"""Killed at any moment, the queue loses nothing and runs nothing twice that may not (behaviours 44 and 45)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from crashing import crash
from serving import serving, written

APP = """
import os, time
import runner

class Slow(runner.App, name="slow"):
    @runner.endpoint("/")
    def run(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        return "through"

    @runner.endpoint("/safe", retry="safe")
    def safe(self, path: str) -> str:
        return self.run(path)

    @runner.endpoint("/well", health_check=runner.HealthCheck(start_period_seconds=0, failure_threshold=2))
    def well(self) -> str:
        return "well"
"""
READ_ONLY = """
import runner

@runner.hookimpl
def register_routes(service):
    def switch(request):
        service.queue_store._committer._connection.execute(f"PRAGMA query_only = {request.query['on'][0]}")
        return runner.Response(b"")
    return [runner.Route(method="POST", path="/read-only", answer=switch)]
"""
BASE = "/queue/local/slow"


def test_behaviour_44_killed_at_random_moments_no_job_is_lost_and_none_runs_twice_that_may_not(tmp_path: Path) -> None:
    outcomes = crash(tmp_path, rounds=200, seed=44)

    assert outcomes["done"] > 0
    assert outcomes["done the second time"] > 0
    assert outcomes["lost with the process"] > 0


def test_behaviour_44_what_ran_when_the_process_died_ends_as_its_endpoint_says(tmp_path: Path) -> None:
    app, gate = written(tmp_path, APP), str(tmp_path / "gate")
    ids: dict[str, str] = {}
    for path in ("", "/safe"):
        with serving(app, "--data-dir", str(tmp_path)) as runner:
            ids[path] = runner.post(BASE + path, {"path": gate}).json()["request_id"]
            runner.wait_for("app.output", request_id=ids[path])
            runner.process.kill()
    with serving(app, "--data-dir", str(tmp_path)) as runner:
        runner.wait_for("app.output", request_id=ids["/safe"])
        status = runner.get(f"{BASE}/requests/{ids['']}/status").json()
        assert (status["status"], status["error_type"]) == ("COMPLETED", "runner_disconnected")
        assert 'retry="safe"' in status["error"]
        assert runner.get(f"{BASE}/requests/{ids['']}").status_code == 503
        assert runner.get(f"{BASE}/requests/{ids['/safe']}/status").json()["status"] == "IN_PROGRESS"
        runner.process.kill()
    with serving(app, "--data-dir", str(tmp_path)) as runner:
        runner.wait_for("job.lost", request_id=ids["/safe"])
        status = runner.get(f"{BASE}/requests/{ids['/safe']}/status").json()
        assert status["status"] == "COMPLETED"
        assert "died twice" in status["error"]
        assert not runner.events("app.output")


def test_a_cancel_that_was_asked_for_before_the_process_died_is_kept(tmp_path: Path) -> None:
    own_cancel = '\n    @runner.endpoint("/safe/cancel")\n    def stop(self) -> str:\n        print("asked")\n        return ""\n'
    app = written(tmp_path, APP + own_cancel)
    with serving(app, "--data-dir", str(tmp_path)) as runner, runner.client() as client:
        id = client.post(f"{BASE}/safe", json={"path": str(tmp_path / "gate")}).json()["request_id"]
        runner.wait_for("app.output", request_id=id)
        assert client.put(f"{BASE}/requests/{id}/cancel").status_code == 202
        runner.process.kill()
    with serving(app, "--data-dir", str(tmp_path)) as runner:
        assert runner.get(f"{BASE}/requests/{id}/status").json()["error_type"] == "client_cancelled"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here; needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def until(client: httpx.Client, status: int) -> dict[str, Any]:
    """What the probe says once it answers so."""
    while (answer := client.get("/health/ready")).status_code != status:
        pass
    return dict(answer.json())


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"x" * 4096)


def test_behaviour_45_a_full_disk_refuses_submits_and_running_work_ends(tmp_path: Path, small_disk: Path) -> None:
    app, gate, filler = written(tmp_path, APP), tmp_path / "gate", small_disk / "filler"
    with serving(app, "--data-dir", str(small_disk), "--health-seconds", "0.05") as runner, runner.client() as client:
        id = client.post(BASE, json={"path": str(gate)}).json()["request_id"]
        runner.wait_for("app.output", request_id=id)
        with pytest.raises(OSError, match="No space"):
            fill(filler)
        answers = [client.post(BASE, json={"path": str(gate), "more": "x" * 60_000}) for _ in range(200)]
        as_file = client.post(BASE, json={"path": str(gate), "more": "x" * 600_000})
        sick = until(client, 503)
        gate.touch()
        client.get(f"{BASE}/requests/{id}/status/stream")

        for refused in (answers[-1], as_file):
            assert refused.status_code == 507
            assert refused.json()["error_type"] == refused.headers["x-fal-error-type"]
        assert "full" in answers[-1].json()["detail"]
        assert "No space" in as_file.json()["detail"]
        assert sick["reason"].startswith("queue: ")
        assert str(small_disk) in sick["reason"]
        assert client.get(f"{BASE}/requests/{id}").json() == "through"
        assert client.post("/", json={"path": str(gate)}).json() == "through"

        filler.unlink()
        until(client, 200)
        assert client.post(BASE, json={"path": str(gate)}).status_code == 200
        for accepted in filter(lambda answer: answer.is_success, answers):
            assert client.get(f"{BASE}/requests/{accepted.json()['request_id']}/status/stream").status_code == 200


def test_behaviour_45_a_read_only_folder_refuses_submits_and_direct_requests_go_on(tmp_path: Path, small_disk: Path) -> None:
    app, gate = written(tmp_path, APP), tmp_path / "gate"
    gate.touch()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    arguments = ("--data-dir", str(small_disk / "data"), "--health-seconds", "0.05")
    with serving(app, *arguments) as runner, runner.client() as client:
        refused = client.post(BASE, json={"path": str(gate)})
        sick = until(client, 503)

        assert refused.status_code == 507
        assert "Read-only" in refused.json()["detail"]
        assert "Read-only" in sick["reason"]
        assert client.post("/", json={"path": str(gate)}).json() == "through"

        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert client.post(BASE, json={"path": str(gate)}).status_code == 200
        until(client, 200)


def test_behaviour_45_when_the_store_turns_read_only_what_runs_ends_and_is_kept_later(tmp_path: Path) -> None:
    """A file system in use cannot be remounted; SQLite refuses with the same error when told that only questions are allowed."""
    app, gate = written(tmp_path, APP), tmp_path / "gate"
    plugin = written(tmp_path, READ_ONLY, "read_only.py")
    with serving(app, "--data-dir", str(tmp_path / "data"), "--plugin", str(plugin)) as runner, runner.client() as client:
        id = client.post(BASE, json={"path": str(gate)}).json()["request_id"]
        runner.wait_for("app.output", request_id=id)
        assert client.post("/read-only?on=1").status_code == 200
        refused = client.post(BASE, json={"path": str(gate)})
        cancelled = client.put(f"{BASE}/requests/{id}/cancel")
        gate.touch()
        runner.wait_for("job.not_stored", request_id=id, move="finish")
        while_it_is = client.get(f"{BASE}/requests/{id}")
        direct = client.post("/", json={"path": str(gate)})
        assert client.post("/read-only?on=0").status_code == 200
        client.get(f"{BASE}/requests/{id}/status/stream")

        for answer in (refused, cancelled):
            assert answer.status_code == 507
            assert "readonly" in answer.json()["detail"]
        assert while_it_is.status_code == 400
        assert direct.json() == "through"
        assert client.get(f"{BASE}/requests/{id}").json() == "through"
        assert client.post(BASE, json={"path": str(gate)}).status_code == 200
