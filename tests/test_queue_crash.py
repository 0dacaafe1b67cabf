"""Killed at any moment, the queue loses nothing and runs nothing twice that may not (behaviours 44 and 45)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

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


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"x" * 4096)


def test_behaviour_45_a_full_disk_refuses_submits_and_running_work_ends(tmp_path: Path, small_disk: Path) -> None:
    app, gate = written(tmp_path, APP), tmp_path / "gate"
    with serving(app, "--data-dir", str(small_disk)) as runner, runner.client() as client:
        id = client.post(BASE, json={"path": str(gate)}).json()["request_id"]
        runner.wait_for("app.output", request_id=id)
        with pytest.raises(OSError, match="No space"):
            fill(small_disk / "filler")
        answers = [client.post(BASE, json={"path": str(gate), "more": "x" * 60_000}) for _ in range(200)]
        gate.touch()
        client.get(f"{BASE}/requests/{id}/status/stream")

        assert answers[-1].status_code == 507
        assert answers[-1].json()["error_type"] == answers[-1].headers["x-fal-error-type"]
        assert "full" in answers[-1].json()["detail"]
        assert client.get(f"{BASE}/requests/{id}").json() == "through"
        assert client.post("/", json={"path": str(gate)}).json() == "through"


def test_behaviour_45_a_read_only_folder_refuses_submits_and_direct_requests_go_on(tmp_path: Path, small_disk: Path) -> None:
    app, gate = written(tmp_path, APP), tmp_path / "gate"
    gate.touch()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with serving(app, "--data-dir", str(small_disk / "data")) as runner, runner.client() as client:
        refused = client.post(BASE, json={"path": str(gate)})

        assert refused.status_code == 507
        assert "Read-only" in refused.json()["detail"]
        assert client.post("/", json={"path": str(gate)}).json() == "through"

        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        assert client.post(BASE, json={"path": str(gate)}).status_code == 200
