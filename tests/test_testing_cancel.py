"""`runner.testing.cancel_at`: an author's endpoint, cancelled at its n-th checkpoint, leaves nothing behind; or the test says what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from runner.testing import AppClient, AppClientError, AsyncAppClient, cancel_at
from torch import nn

import runner

HERE = Path(__file__)


class Steps(runner.App):
    def setup(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.kept: list[Any] = []
        self.files: list[IO[str]] = []
        self.pool = ThreadPoolExecutor(1)
        self.calls = 0
        self.let_go = threading.Event()

    @runner.endpoint("/modules")
    def modules(self, steps: int = 5) -> list[float]:
        x = torch.ones(8)
        for _ in range(steps):
            x = self.net(x)
        return list(x.tolist())

    @runner.endpoint("/checkpoints")
    def checkpoints(self) -> int:
        for _ in range(5):
            runner.checkpoint()
        return 5

    @runner.endpoint("/in-a-thread")
    def in_a_thread(self) -> int:
        child = threading.Thread(target=self.checkpoints)
        child.start()
        child.join()
        return 5

    @runner.endpoint("/shielded")
    def shielded(self) -> int:
        with runner.shield():
            for _ in range(5):
                runner.checkpoint()
        runner.checkpoint()
        return 5

    @runner.endpoint("/items")
    def items(self) -> Iterator[int]:
        for number in range(5):
            runner.checkpoint()
            yield number

    @runner.endpoint("/awaits")
    async def awaits(self) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 5

    @runner.endpoint("/async-items")
    async def async_items(self) -> AsyncIterator[int]:
        for number in range(5):
            await asyncio.sleep(0)
            yield number

    @runner.endpoint("/leaks")
    def leaks(self, what: str) -> int:
        if what == "tensor":
            self.kept.append(torch.ones(3, 4))
        if what == "file":
            self.files.append(HERE.open())
        if what == "thread":
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="leaked")
            self.pool.submit(int).result()
        if what == "count":
            self.calls += 1
        runner.checkpoint()
        self.kept.clear()
        while self.files:
            self.files.pop().close()
        self.pool.shutdown()
        return self.calls

    @runner.endpoint("/clings")
    def clings(self) -> int:
        try:
            runner.checkpoint()
        finally:
            with runner.shield():
                if runner.current_request().cancelled:
                    self.let_go.wait(20)
        return 1

    @runner.endpoint("/fails")
    def fails(self) -> int:
        raise ValueError("always")


@pytest.fixture(scope="module")
def client() -> Iterator[AppClient[Steps]]:
    with AppClient(Steps) as opened:
        yield opened


@pytest.mark.parametrize(
    ("endpoint", "layer", "last"),
    [("modules", "module", 20), ("checkpoints", "scope", 5), ("in_a_thread", None, 5), ("items", "scope", 5), ("awaits", "scope", 5), ("async_items", "scope", 5)],
)
def test_each_checkpoint_of_an_endpoint_can_be_the_last(client: AppClient[Steps], endpoint: str, layer: str | None, last: int) -> None:
    for n in (1, last):
        report = cancel_at(n)(client[endpoint])
        assert (report.checkpoint, report.layer, report.swallowed) == (n, layer or report.layer, 0)
    with pytest.raises(AssertionError, match=f"{endpoint} came to its end after {last} checkpoints, before number {last + 1}"):
        cancel_at(last + 1)(client[endpoint])


def test_what_is_shielded_is_no_checkpoint(client: AppClient[Steps]) -> None:
    assert cancel_at(1)(client.shielded).layer == "scope"
    with pytest.raises(AssertionError, match="after 1 checkpoints, before number 2"):
        cancel_at(2)(client.shielded)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("tensor", r"a tensor of shape \(3, 4\) on cpu is alive"),
        ("file", f"{HERE} is open"),
        ("thread", "the thread 'leaked_0' still runs"),
        ("count", r"answers differently:\n  before: 1\n  after:  3"),
    ],
)
def test_what_is_left_is_told(what: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.plugins.testing.cancelling.SETTLE_SECONDS", 0.05)
    with AppClient(Steps) as client:
        with pytest.raises(AssertionError, match=told):
            cancel_at(1)(client.leaks, what=what)
        client._core.host.service.instance.pool.shutdown()


def test_what_leaves_nothing_passes_and_answers_may_differ_where_that_is_said() -> None:
    with AppClient(Steps) as client:
        assert cancel_at(1)(client.leaks, what="nothing").answer == 0
        assert cancel_at(1, same=None)(client.leaks, what="count").answer == 1
        assert cancel_at(1, same=lambda one, other: one < other)(client.leaks, what="count").answer == 4


def test_a_place_that_is_not_free_in_time_is_told(client: AppClient[Steps]) -> None:
    with pytest.raises(AssertionError, match=r"0\.05 s after the cancel at checkpoint 1 its place is not free; it is at .*test_testing_cancel\.py"):
        cancel_at(1, within=0.05)(client.clings)
    client._core.host.service.instance.let_go.set()


def test_what_cannot_be_tried_is_said(client: AppClient[Steps]) -> None:
    with pytest.raises(AppClientError, match="500"):
        cancel_at(1)(client.fails)
    with pytest.raises(ValueError, match=r"cancel_at\(0\): the first checkpoint is 1"):
        cancel_at(0)
    with pytest.raises(TypeError, match=r"takes an endpoint of a client and its arguments: cancel_at\(1\)\(client.generate, prompt='x'\)"):
        cancel_at(1)(lambda: None)  # type: ignore[call-overload]
    elsewhere = AppClient(Steps, "http://127.0.0.1:9")
    with elsewhere, pytest.raises(runner.ConfigError, match="cancel_at needs the app in this process"):
        cancel_at(1)(elsewhere.checkpoints)


@pytest.mark.anyio
async def test_an_async_client_awaits_it() -> None:
    async with AsyncAppClient(Steps) as client:
        assert (await cancel_at(2)(client.modules, steps=2)).layer == "module"
        assert (await cancel_at(2)(client.async_items)).answer == [0, 1, 2, 3, 4]


def test_nothing_is_looked_at_when_nobody_is_on_trial(client: AppClient[Steps]) -> None:
    from runner.plugins.cancellation.here import trial
    from runner.plugins.cancellation.modules import boundary

    cancel_at(1)(client.modules)

    assert trial.look is None
    assert boundary.unwinding == set()
