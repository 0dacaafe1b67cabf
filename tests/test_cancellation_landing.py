"""Loops that do nothing but hold something for a moment, stopped at random: nothing stays held.

Each trial runs in the worker's thread through the whole of the layers, then looks at what must be
free or as before. `RUNNER_SOAK=400` runs that many trials of each; tests run a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import logging
import os
import queue
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from runner.plugins.cancellation import Call, Token
from runner.schemas.problems import RequestCancelled
from stopping import Running, Worker, layers

TRIALS = int(os.environ.get("RUNNER_SOAK", "12"))


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with layers():
        yield


def is_free(lock: Any) -> bool:
    free = lock.acquire(timeout=0.2)
    if free:
        lock.release()
    return bool(free)


class Logging:
    """A handler's lock, left held, hangs every later log call."""

    def __init__(self) -> None:
        self.log = logging.Logger("landing", logging.DEBUG)
        self.handler = logging.StreamHandler(io.StringIO())
        self.log.addHandler(self.handler)

    def turn(self) -> None:
        self.log.info("hello %d", 1)
        self.handler.stream.seek(0)

    def is_whole(self) -> bool:
        return self.handler.lock is not None and is_free(self.handler.lock)


class Condition:
    def __init__(self) -> None:
        self.condition = threading.Condition()

    def turn(self) -> None:
        with self.condition:
            self.condition.notify_all()

    def is_whole(self) -> bool:
        return is_free(self.condition)


class Queue:
    def __init__(self) -> None:
        self.queue: queue.Queue[int] = queue.Queue()

    def turn(self) -> None:
        self.queue.put(1)
        self.queue.get()

    def is_whole(self) -> bool:
        return is_free(self.queue.mutex)


class ContextManager:
    """A lock taken and freed by a generator."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.lock.acquire()
        try:
            yield
        finally:
            self.lock.release()

    def turn(self) -> None:
        with self.held():
            pass

    def is_whole(self) -> bool:
        return is_free(self.lock)


class PlainLock:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def turn(self) -> None:
        with self.lock:
            pass

    def is_whole(self) -> bool:
        return is_free(self.lock)


class AcquireTryFinally:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def turn(self) -> None:
        self.lock.acquire()
        try:
            sum(range(20))
        finally:
            self.lock.release()

    def is_whole(self) -> bool:
        return is_free(self.lock)


class LoopWithinTheLock:
    """The loop that is stopped is inside the block that must be left."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def turn(self) -> None:
        with self.lock:
            for _ in range(50):
                pass
        self.lock.acquire()
        try:
            for _ in range(50):
                pass
        finally:
            self.lock.release()

    def is_whole(self) -> bool:
        return is_free(self.lock)


class Restored:
    """A value changed for a while; the `finally` calls what nobody knows by name."""

    def __init__(self) -> None:
        self.value = "usual"

    def change(self, value: str) -> None:
        self.value = value

    def turn(self) -> None:
        self.value = "other"
        try:
            abs(-1)
        finally:
            self.change("usual")

    def is_whole(self) -> bool:
        return self.value == "usual"


class Import:
    """Importing, with something else in between: an exception sent during an import would leak its lock.

    A thread that does nothing but import gives up the interpreter only while it reads files, and
    is never met elsewhere: on Python 3.11 it is not stopped.
    """

    NAMES = ("colorsys", "nturl2path", "there_is_no_module_of_this_name")

    def turn(self) -> None:
        for name in self.NAMES:
            sys.modules.pop(name, None)
            try:  # noqa: SIM105 - fewer places to land
                importlib.import_module(name)
            except ImportError:
                pass
            sum(range(20_000))

    def is_whole(self) -> bool:
        return all(len(dir(importlib.import_module(name))) > 9 for name in self.NAMES[:1])


class Modes:
    """torch's modes of one thread."""

    def __init__(self) -> None:
        self.torch = pytest.importorskip("torch")
        self.ones = self.torch.ones(8)
        self.left_in: list[tuple[bool, ...]] = []

    def turn(self) -> None:
        torch, ones = self.torch, self.ones
        with torch.no_grad():
            _ = ones + ones
            with torch.autocast("cpu", torch.bfloat16):
                _ = ones * ones
        with torch.inference_mode():
            _ = ones + ones
        with torch.enable_grad():
            _ = ones - ones
        with torch.device("meta"):
            torch.empty(2)

    def look(self) -> tuple[bool, ...]:
        torch = self.torch
        return (
            torch.is_grad_enabled(),
            not torch.is_inference_mode_enabled(),
            not torch.is_autocast_enabled("cpu"),
            torch._C._len_torch_function_stack() == 0,
        )

    def is_whole(self) -> bool:
        return True  # looked at in the thread


CASES = [Logging, Condition, Queue, ContextManager, PlainLock, AcquireTryFinally, LoopWithinTheLock, Restored, Import, Modes]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_a_cancel_leaves_nothing_held(case: Callable[[], Any]) -> None:
    dice, worker = random.Random(7), Worker()
    whole, thing = 0, case()
    for _ in range(TRIALS):
        running = Running(Call(Token()))

        def work(thing: Any = thing, running: Running = running) -> None:
            running.has_begun()
            while True:
                thing.turn()

        worker.start(work, running=running)
        await running.begun.wait()
        await asyncio.sleep(dice.uniform(0, 0.002))  # anywhere in the loop, is the point
        call = await running.stop()
        assert isinstance(call.error, RequestCancelled)
        assert not call.retire
        modes = await worker.run(thing.look) if hasattr(thing, "look") else (True,)
        if thing.is_whole() and all(modes):
            whole += 1
        else:
            thing = case()
    worker.close()

    assert whole == TRIALS
