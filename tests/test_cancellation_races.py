"""Cancels at every instant around the start and the end of a call: none gets out, each call has one outcome.

The landing check is switched off here, so that exceptions come at the worst moments too. What the
protocol relies on is read from the bytecode as well: on another Python, look at that test first.
"""

from __future__ import annotations

import dis
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from runner.plugins.cancellation import Call, Token, landing, shield, stacks
from runner.plugins.cancellation.call import NEW, RUNNING
from runner.schemas.problems import RequestCancelled
from stopping import GUARD

TRIALS = int(os.environ.get("RUNNER_SOAK", "5000"))  # of each of the two races
WORK = 4_000  # turns of a loop: some 200 µs


@pytest.fixture(autouse=True)
def _at_the_worst_moments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(landing, "is_safe", lambda *_, **__: True)
    monkeypatch.setattr(stacks, "reading", lambda thread: iter([(work.__code__, 0)]))  # it never moves
    monkeypatch.setattr(sys, "unraisablehook", id)  # a function in C: nothing lands in it
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


def work(turns: int = WORK) -> int:
    total = 0
    for turn in range(turns):
        total += turn
    return total


RIGHT = work()


class Pool:
    """A thread that runs calls, and counts what comes out of them that should not."""

    def __init__(self) -> None:
        self.escaped = 0
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                call = self._calls.get()
                if call is None:
                    return
                call.invoke(work)
                self._done.put(call)
            except BaseException:
                self.escaped += 1

    def start(self, call: Call) -> None:
        self._calls.put(call)

    def wait(self) -> Call:
        return self._done.get(timeout=GUARD)

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join(GUARD)
        assert not self._thread.is_alive()


def race(cancel: Callable[[Call], None], trials: int) -> dict[str, int]:
    """Cancel calls at random moments from before their start to after their end."""
    pool, dice, seen = Pool(), random.Random(3), {"cancelled": 0, "finished": 0, "sent": 0, "late": 0}
    began = time.perf_counter()
    for _ in range(20):
        work()
    usual = (time.perf_counter() - began) / 20
    for _ in range(trials):
        call = Call(Token())
        pool.start(call)
        if dice.random() < 0.8:  # the others are cancelled about where they start
            while call.phase == NEW:
                pass
        due = time.perf_counter() + usual * dice.uniform(0, 3)
        while time.perf_counter() < due:
            pass
        call.token.cancel("client_cancelled")
        cancel(call)
        assert pool.wait() is call
        assert (call.error is None) != (call.result is None), "exactly one outcome"
        assert call.result in (None, RIGHT)
        assert call.error is None or isinstance(call.error, RequestCancelled)
        seen["cancelled" if call.error else "finished"] += 1
        seen["sent"] += call.sent
        seen["late"] += call.late

        untouched = Call(Token())
        pool.start(untouched)
        assert pool.wait() is untouched
        assert (untouched.error, untouched.result) == (None, RIGHT), "the next call is not hit"
    pool.close()
    assert pool.escaped == 0
    return seen


def test_one_cancel_at_any_instant_stays_within_its_call() -> None:
    seen = race(lambda call: _ignore(call.send()), TRIALS)

    assert seen["cancelled"]
    assert seen["finished"]


def test_a_hail_of_cancels_stays_within_its_call() -> None:
    def hammer(call: Call) -> None:
        for _ in range(200):
            if call.send(again=True) == "closed" and call.phase > RUNNING:
                return

    seen = race(hammer, TRIALS)

    assert seen["cancelled"]
    assert seen["finished"]


def test_no_cancel_arrives_inside_a_shield_however_it_is_timed() -> None:
    pool_call: list[Call] = []
    begun, done = threading.Semaphore(0), threading.Semaphore(0)
    whole = [0]

    def guarded() -> None:
        begun.release()
        while True:
            with shield():
                before = work(50)
                whole[0] += before == work(50)
            whole[0] -= 1

    def serve() -> None:
        for call in iter_calls():
            call.invoke(guarded)
            done.release()

    def iter_calls() -> Iterator[Call]:
        while (call := calls.get()) is not None:
            yield call

    calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    for _ in range(500):
        call = Call(Token())
        pool_call.append(call)
        calls.put(call)
        begun.acquire()
        call.token.cancel("client_cancelled")
        while call.phase == RUNNING:
            call.send(again=True)
        assert done.acquire(timeout=GUARD)
        # A block that was entered was finished; the statement after it may have been cut off.
        assert whole[0] in (0, 1)
        whole[0] = 0
        assert call.shields == 0
        assert isinstance(call.error, RequestCancelled)
    calls.put(None)
    thread.join(GUARD)


def _ignore(_: object) -> None:
    pass


# --- the bytecode

CHECKING = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "SEND", "FOR_ITER", "BEFORE_WITH", "WITH_EXCEPT_START")


def instructions_between(function: object, first: int, last: int) -> list[dis.Instruction]:
    """The instructions of source lines `first` to `last` of a function, counted within it."""
    code = function.__code__  # type: ignore[attr-defined]
    found, line = [], 0
    for instruction in dis.get_instructions(code):
        if instruction.starts_line:
            line = getattr(instruction, "line_number", None) or instruction.starts_line
        if first <= line - code.co_firstlineno <= last:
            found.append(instruction)
    return found


def checks(instructions: list[dis.Instruction]) -> list[str]:
    return [i.opname for i in instructions if i.opname.startswith(CHECKING)]


def up_to_storing(name: str, instructions: list[dis.Instruction]) -> list[dis.Instruction]:
    end = next(k for k, i in enumerate(instructions) if i.opname == "STORE_ATTR" and i.argval == name)
    return instructions[: end + 1]


def lines_with(function: object, text: str) -> list[int]:
    import inspect

    source, _ = inspect.getsourcelines(function)  # type: ignore[arg-type]
    return [number for number, line in enumerate(source) if text in line]


def test_nothing_is_delivered_between_the_works_return_and_the_closing_of_the_window() -> None:
    [returned] = lines_with(Call.invoke, "self.result = work()")
    closed, caught = lines_with(Call.invoke, "self.phase = CLOSING")

    on_return = up_to_storing("phase", instructions_between(Call.invoke, returned, closed))
    assert checks(on_return) == ["CALL"], "the work is called, and nothing else"

    on_exception = up_to_storing("error", instructions_between(Call.invoke, caught - 1, caught + 1))
    assert checks(on_exception) == []


def test_nothing_is_delivered_between_reading_the_phase_and_sending() -> None:
    [sent] = lines_with(Call.send, "any(sending)")

    line = instructions_between(Call.send, sent, sent)
    assert [i.argval for i in line if i.opname == "LOAD_ATTR"] == ["phase", "shields"]
    assert checks(line) == ["CALL"], "the sending itself"


TAKEN_BACK = """
import ctypes, sys, threading
from runner.plugins.cancellation import Call, Token

class Cancel(BaseException): pass

me, set_exception = ctypes.c_ulong(threading.get_ident()), ctypes.pythonapi["PyThreadState_SetAsyncExc"]
call = Call(Token())
call.sent = 1
call.invoke(lambda: list(map(set_exception, [me, me], [ctypes.py_object(Cancel), None])))  # no check between the two
assert (call.result, call.error, call.late) == ([1, 1], None, 0)
sys.settrace(lambda *about: None)
(lambda: None)()
sys.settrace(None)
print("begun")
"""


def test_a_traced_function_begins_also_after_a_cancel_was_taken_back() -> None:
    """What is left of a cancel in the interpreter: on CPython 3.11 a debugger or coverage would stand still for ever."""
    done = subprocess.run([sys.executable, "-c", TAKEN_BACK], capture_output=True, text=True, timeout=GUARD)
    assert (done.stdout, done.stderr) == ("begun\n", "")
