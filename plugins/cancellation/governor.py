"""The governor: a GPU's queue is kept short, so that it stands still soon after its thread does.

A thread gives a GPU its work far ahead of time: when the thread is stopped, seconds may be queued.
So every `every`-th module call leaves a mark in the stream, and waits for the mark `ahead` marks
back. On a CPU there is no governor and nothing is called. Work without modules is not counted:
there the queue is what the driver allows.

After a cancel the lane's thread waits until the device is through with what was queued, and then
compares the memory in use with what it was before. While a graph is being captured neither marks
nor cancels are allowed: a capture counts as a shield.

`every` and `ahead` were chosen by reasoning, not by measurement: no GPU has run this yet.
docs/gpu.md has the command that measures it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from .here import here, lower_flag, take_back


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How far ahead a thread may be: at most about `every * ahead` module calls."""

    every: int = 16
    ahead: int = 4


class Mark(Protocol):
    """A point in a stream, as `torch.cuda.Event` is one."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...


class Device(Protocol):
    """What the governor needs of a GPU. Tests have one of their own."""

    def mark(self) -> Mark: ...
    def is_capturing(self) -> bool: ...
    def allocated(self) -> int: ...
    def peak(self) -> int:
        """Bytes allocated at most since `forget_peak`."""
        ...

    def forget_peak(self) -> None: ...


class Cuda:
    """The current CUDA device of the calling thread."""

    def __init__(self, torch: Any) -> None:
        self._cuda = torch.cuda

    def mark(self) -> Mark:
        mark: Mark = self._cuda.Event(blocking=False)
        return mark

    def is_capturing(self) -> bool:
        return bool(self._cuda.is_current_stream_capturing())

    def allocated(self) -> int:
        return int(self._cuda.memory_allocated())

    def peak(self) -> int:
        return int(self._cuda.max_memory_allocated())

    def forget_peak(self) -> None:
        self._cuda.reset_peak_memory_stats()


class _Ring(threading.local):
    """One thread's marks, oldest next."""

    marks: list[Mark] | None = None
    count = 0  # module calls since the last mark
    recorded = 0


class Governor:
    """Owns the marks of every thread on one device. One per process, if it has a GPU."""

    def __init__(self, device: Device, pace: Pace | None = None) -> None:
        self.device = device
        self.pace = pace or Pace()
        self._ring = _Ring()

    def count(self) -> None:
        """A module is about to be called."""
        ring = self._ring
        ring.count += 1
        if ring.count < self.pace.every:
            return
        ring.count = 0
        if self.device.is_capturing():
            return
        if ring.marks is None:
            ring.marks = [self.device.mark() for _ in range(self.pace.ahead)]
        mark = ring.marks[ring.recorded % self.pace.ahead]
        if ring.recorded >= self.pace.ahead and not mark.query():
            mark.synchronize()  # without the GIL; no longer than the work between `ahead` marks
        mark.record()
        ring.recorded += 1

    def drain(self) -> None:
        """Wait until the device has done all that this thread has given it."""
        mark = self.device.mark()
        mark.record()
        mark.synchronize()


def find_device() -> Device | None:
    """The GPU that torch has set up in this process, if any; asking sets up nothing."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return Cuda(torch) if cuda is not None and cuda.is_initialized() else None


def shield_captures(graph: Any) -> Callable[[], None]:
    """Make the time between `capture_begin` and `capture_end` of `graph`, a class, a shield. Returns the undoing."""
    begin, end = graph.capture_begin, graph.capture_end

    @functools.wraps(begin)
    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = here.call
        if call is not None:
            call.shields += 1
            take_back(call.thread, None)
            if call.pending:
                lower_flag()
            call.pending = False
        try:
            return begin(self, *args, **kwargs)
        except BaseException:
            if call is not None:
                call.shields -= 1
            raise

    @functools.wraps(end)
    def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return end(self, *args, **kwargs)
        finally:
            call = here.call
            if call is not None and call.shields:
                call.shields -= 1  # raised at the next boundary, not here: the graph is whole first

    graph.capture_begin, graph.capture_end = capture_begin, capture_end

    def undo() -> None:
        graph.capture_begin, graph.capture_end = begin, end

    return undo
