"""A stack is read at one instant, however busy its thread and whatever the collector does meanwhile."""

from __future__ import annotations

import faulthandler
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runner.plugins.cancellation import stacks

READINGS = 3000  # of a stack; read line by line, or with the collector on, some are wrong on 3.11


def leaf(turns: int) -> Iterator[int]:
    yield from range(turns)


def nested(depth: int) -> Iterator[int]:
    if depth:
        yield from nested(depth - 1)
    yield from leaf(2)


def busy(stop: threading.Event) -> None:
    """Go up and down the stack all the time, with generators that end, are closed and are thrown away."""
    while not stop.is_set():
        for _ in nested(6):
            pass
        closed, thrown_away = nested(4), nested(4)
        next(closed)
        next(thrown_away)
        closed.close()
        del thrown_away
        sorted(range(3), key=lambda turns: sum(leaf(turns)))


def read_often() -> None:
    """Read a busy thread's stack while collections come often, and let it run in each of them."""
    faulthandler.enable()
    reader = threading.get_ident()

    def let_others_run(phase: str, _: object) -> None:
        if phase == "start" and threading.get_ident() == reader:
            time.sleep(0)

    gc.callbacks.append(let_others_run)
    gc.freeze()  # what is there already need not be looked through
    gc.set_threshold(7, 3, 3)
    sys.setswitchinterval(1e-6)
    stop = threading.Event()
    thread = threading.Thread(target=busy, args=[stop], daemon=True)
    thread.start()
    outermost = threading.Thread._bootstrap.__code__  # type: ignore[attr-defined]
    for _ in range(READINGS):
        time.sleep(0)
        codes = [code for code, _ in stacks.stack_of(thread.ident or 0)]
        assert codes[-1] is outermost, "the whole of it"
        assert busy.__code__ in codes or not {nested.__code__, leaf.__code__}.intersection(codes)
        assert gc.isenabled()
    stop.set()
    thread.join()


def test_a_busy_threads_stack_is_read_whole_while_the_collector_lets_it_run() -> None:
    """In a process of its own: where the reading is not at one instant, it crashes as often as it fails."""
    program = "import test_cancellation_stacks; test_cancellation_stacks.read_often()"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    """A thread that waits in `hold` while it handles an error."""
    begun, go_on = threading.Event(), threading.Semaphore(0)

    def hold(number: int) -> None:
        try:
            raise LookupError(number)
        except LookupError:
            begun.set()
            go_on.acquire(timeout=20)

    thread = threading.Thread(target=hold, args=[7], daemon=True)
    thread.start()
    begun.wait()
    while stacks.stack_of(thread.ident or 0)[0][0].co_name != "wait":
        pass
    yield thread
    go_on.release()
    thread.join()


def test_what_is_read_says_which_function_is_at_which_line(waiting: threading.Thread) -> None:
    stack = stacks.stack_of(waiting.ident or 0)

    [place] = [place for place in stack if place[0].co_name == "hold"]
    line = Path(__file__).read_text().splitlines()[stacks.line_of(place) - 1]
    assert "go_on.acquire(timeout=20)" in line
    assert isinstance(stacks.exception_of(waiting.ident or 0), LookupError)


def test_a_variable_is_read_of_the_one_function_asked_about(waiting: threading.Thread) -> None:
    identity, wait = waiting.ident or 0, stacks.stack_of(waiting.ident or 0)[0][0]

    assert stacks.local_of(identity, wait, "timeout")
    assert stacks.local_of(identity, busy.__code__, "timeout") is None
    assert stacks.local_of(identity, wait, "nothing_of_that_name") is None


def test_a_thread_that_has_moved_is_no_longer_where_it_was(waiting: threading.Thread) -> None:
    identity = waiting.ident or 0
    stack = stacks.stack_of(identity)

    assert list(stacks.if_still(identity, stack)) == [identity]
    assert list(stacks.if_still(identity, stack[1:])) == []
    assert list(stacks.if_still(identity, [(stack[0][0], stack[0][1] + 2), *stack[1:]])) == []


def test_a_thread_that_is_gone_is_nowhere() -> None:
    assert stacks.stack_of(1) == []
    assert stacks.local_of(1, busy.__code__, "stop") is None
    assert stacks.exception_of(1) is None


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        stacks.stack_of(threading.get_ident())
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_reading_that_fails_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> Any:
        raise PermissionError

    monkeypatch.setattr(stacks, "_frames", forbidden)

    with pytest.raises(PermissionError):
        stacks.stack_of(threading.get_ident())
    assert gc.isenabled()
