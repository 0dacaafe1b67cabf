"""The GPU's part, with a GPU made of Python; nothing here has seen a real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from runner.plugins.cancellation import Call, Token
from runner.plugins.cancellation.governor import Governor, Pace, find_device, shield_captures
from runner.plugins.cancellation.modules import boundary
from runner.schemas.problems import RequestCancelled
from stopping import Running, Worker, layers, stop_once_begun
from torch import nn


class Mark:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self.place = 0

    def record(self) -> None:
        self.place = self._device.given

    def query(self) -> bool:
        return self._device.done >= self.place

    def synchronize(self) -> None:
        if self._device.broken:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        self._device.done = max(self._device.done, self.place)
        self._device.waits += 1


class FakeDevice:
    """Does nothing until it is waited for."""

    def __init__(self) -> None:
        self.given = self.done = self.waits = self.most = self.bytes = 0
        self.capturing = self.broken = False
        self.furthest = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    @bytes.setter
    def bytes(self, value: int) -> None:
        self._bytes = value
        self.most = max(self.most, value)

    def give(self) -> None:
        self.given += 1
        self.furthest = max(self.furthest, self.given - self.done)

    def mark(self) -> Mark:
        return Mark(self)

    def is_capturing(self) -> bool:
        return self.capturing

    def allocated(self) -> int:
        return self.bytes

    def peak(self) -> int:
        return self.most

    def forget_peak(self) -> None:
        self.most = 0


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with layers():
        yield
    wanted = boundary.wanted  # where another service of this process lives, the boundary stays
    boundary.remove()
    boundary.wanted = wanted


class Step(nn.Module):
    """Gives the device one piece of work."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self.device = device

    def forward(self) -> None:
        self.device.give()


def test_without_a_gpu_there_is_no_governor() -> None:
    boundary.look_for_torch()

    assert torch.cuda.is_initialized() is False
    assert find_device() is None
    assert boundary.governor is None


def test_a_thread_is_never_further_ahead_than_the_pace_allows() -> None:
    device, pace = FakeDevice(), Pace(every=8, ahead=3)
    boundary.look_for_torch()
    boundary.govern(Governor(device, pace))
    step = Step(device)

    for _ in range(1000):
        step()

    assert device.waits > 0
    assert device.furthest <= pace.every * (pace.ahead + 1)


def test_no_mark_is_made_while_a_graph_is_captured() -> None:
    device = FakeDevice()
    device.capturing = True
    boundary.look_for_torch()
    boundary.govern(Governor(device, Pace(every=1, ahead=1)))

    for _ in range(10):
        Step(device)()

    assert device.waits == 0


async def test_after_a_cancel_the_place_is_free_once_the_device_stands_still() -> None:
    device, worker = FakeDevice(), Worker()
    boundary.look_for_torch()
    boundary.govern(Governor(device))
    step = Step(device)

    def work(begun: Any) -> None:
        begun()
        device.bytes = 300
        device.bytes = 100
        while True:
            step()

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, RequestCancelled)
    assert device.done == device.given
    assert (call.bytes_left, call.peak_bytes) == (100, 300)
    worker.close()


async def test_what_the_device_says_after_a_cancel_is_not_lost() -> None:
    """Who looks at errors learns that it is broken; the thread ends, its state is not to be trusted."""
    device, worker = FakeDevice(), Worker()
    boundary.look_for_torch()
    boundary.govern(Governor(device))
    step = Step(device)

    def work(begun: Any) -> None:
        begun()
        try:
            while True:
                step()
        finally:
            device.broken = True

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, torch.AcceleratorError)
    assert call.retire
    worker.close()


async def test_a_capture_is_finished_before_the_cancel_is_raised() -> None:
    class Graph:
        captured = False

        def capture_begin(self) -> None: ...

        def capture_end(self) -> None:
            self.captured = True

    worker, graph = Worker(), Graph()
    undo = shield_captures(Graph)

    def work(begun: Any) -> None:
        graph.capture_begin()
        begun()
        while not token.cancelled:
            pass
        sum(range(20_000))
        graph.capture_end()
        while True:
            pass

    token = Token()
    running = Running(Call(token))
    worker.start(lambda: work(running.has_begun), running=running)
    await running.begun.wait()
    call = await running.stop()
    undo()

    assert graph.captured
    assert isinstance(call.error, RequestCancelled)
    assert call.shields == 0
    worker.close()
