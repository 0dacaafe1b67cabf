"""What a cancelled run leaves of the model (cancellation: closing), and who waits at the door of an app that starts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import anyio
import httpx
import pytest
from runner.schemas.settings import Settings
from serving import serving, written

import runner

APP = """
import torch
import runner

class Adapting(runner.App):
    def setup(self):
        self.model = torch.nn.Linear(4, 4)

    @runner.endpoint("/")
    def run(self) -> float:
        with torch.no_grad():
            return self.model(torch.ones(4)).sum().item()

    @runner.endpoint("/load", timeout=0.2)
    def load(self, whole: bool) -> str:
        print("loading")
        with torch.no_grad():
            if whole:
                while True:
                    self.model(torch.ones(4))
            self.model.weight.mul_(2)
            while True:
                self.model(torch.ones(4))
"""


def test_a_cancelled_run_that_left_the_model_as_it_was_changes_nothing(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        first = runner.post("/").json()
        for _ in range(3):
            assert runner.post("/load?whole=true").status_code == 504

        assert runner.post("/").json() == first
        assert runner.get("/health/ready").status_code == 200


def test_a_cancelled_run_that_left_the_model_changed_has_the_process_replaced(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner:
        late = runner.post("/load?whole=false")
        changed = runner.wait_for("cancel.model_changed")["changed"]
        replacing = runner.wait_for("server.replacing")
        code = runner.wait()

    assert late.status_code == 504
    assert changed == ["model.weight"]
    assert "left the model changed: model.weight" in replacing["reason"]
    assert code == 72


class Slow(runner.App):
    gate = threading.Event()
    fails = False

    def setup(self) -> None:
        self.gate.wait(20)
        if self.fails:
            raise OSError("no weights")

    @runner.endpoint("/")
    def run(self) -> str:
        return "served"


@pytest.mark.parametrize("fails", [False, True])
async def test_who_calls_a_process_that_succeeds_another_waits_while_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """As long as the caller gave it, and the line has room; a setup that fails is 503."""
    monkeypatch.setenv("RUNNER_SUPERVISOR_SUCCEEDS", "1")
    monkeypatch.setattr(Slow, "gate", threading.Event())
    monkeypatch.setattr(Slow, "fails", fails)
    service = runner.asgi(Slow, Settings(data_dir=str(tmp_path), max_queued_requests=2))
    async with service.running(), httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://test") as client:
        late = await client.post("/", headers={"x-fal-request-timeout": "0.11"})
        waiting = [asyncio.create_task(client.post("/")) for _ in range(2)]
        await anyio.wait_all_tasks_blocked()
        beyond, health = await client.post("/"), await client.get("/health/live")
        still = [task.done() for task in waiting]
        Slow.gate.set()
        answers = await asyncio.gather(*waiting)

    assert (late.status_code, late.json()["error_type"]) == (504, "request_timeout")
    assert (beyond.status_code, beyond.json()["detail"]) == (503, "the app is still starting")
    assert health.status_code == 200
    assert still == [False, False]
    assert [answer.status_code for answer in answers] == [503, 503] if fails else [200, 200]


async def test_the_first_process_tells_its_callers_that_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "gate", threading.Event())
    service = runner.asgi(Slow, Settings(data_dir=str(tmp_path)))
    async with service.running(), httpx.AsyncClient(transport=httpx.ASGITransport(service), base_url="http://test") as client:
        answer = await client.post("/")
        Slow.gate.set()

    assert (answer.status_code, answer.headers["x-fal-needs-retry"]) == (503, "1")
