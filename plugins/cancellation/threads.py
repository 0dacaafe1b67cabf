"""Children inherit: a thread or a pool's job that the work started is stopped with it.

`Thread.start` and `ThreadPoolExecutor.submit` are wrapped. What a call starts runs in a window of
its own under the same token, so a library that generates in one thread and reads in another stops
in both. A pool's threads belong to the pool and inherit nothing; the jobs given to it do.

Context variables are inherited too, from an async method as well: what a thread prints and logs
belongs to the request that it was started for.

When the request is over, children that still run are left to themselves: a thread that is meant to
outlive the request may. After a cancel that is once none of them is at work any more; one that
waits (for a queue, a lock, an event) counts as not at work, and cannot be stopped either.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread
from typing import TYPE_CHECKING, Any

from ...schemas.problems import RequestCancelled
from ...schemas.request import current_request
from . import landing
from .here import here
from .stacks import Stack

if TYPE_CHECKING:
    from .call import Call

_PAUSE = 0.001  # seconds between two looks at children that have yet to leave
# Seconds in one place of the standard library after which a thread is taken to wait there. One that
# only waits for the GIL moves within a few switch intervals; the number leaves room for a dozen.
_STILL = 0.05


class Inheritance:
    """Owns the two wrappers. One per process, as there is one `threading.Thread`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        plain_start: Callable[..., Any] = threading.Thread.start
        plain_submit: Callable[..., Any] = ThreadPoolExecutor.submit

        @functools.wraps(plain_start)
        def start(self: Any) -> None:
            call = here.call
            if not _is_a_pools(self):
                if call is not None:
                    self.run = _thread_of(call, _in_context(self.run))
                elif current_request().id is not None:
                    self.run = _in_context(self.run)
            plain_start(self)

        @functools.wraps(plain_submit)
        def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            call = here.call
            if call is not None:
                fn = _job_of(call, _in_context(fn))
            elif current_request().id is not None:
                fn = _in_context(fn)
            return plain_submit(self, fn, *args, **kwargs)

        threading.Thread.start = start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        self._undo = [
            lambda: setattr(threading.Thread, "start", plain_start),
            lambda: setattr(ThreadPoolExecutor, "submit", plain_submit),
        ]

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()


inheritance = Inheritance()


def _is_a_pools(started: threading.Thread) -> bool:
    """Whether a pool keeps this thread for whoever comes: of the standard library, or anyio's own."""
    return getattr(started, "_target", None) is thread._worker or type(started).__module__.startswith("anyio.")


def _in_context(run: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(contextvars.copy_context().run, run)


def _child(parent: Call) -> Call:
    family = parent.parent or parent
    child = type(parent)(family.token, family.scope, parent=family)
    family.children.add(child)
    return child


def _thread_of(parent: Call, run: Callable[[], Any]) -> Callable[[], None]:
    child = _child(parent)

    def run_in_window() -> None:
        child.invoke(run)
        (child.parent or child).children.discard(child)
        if child.error is not None and not isinstance(child.error, RequestCancelled):
            raise child.error  # for `threading.excepthook`, as ever

    return run_in_window


def _job_of(parent: Call, fn: Callable[..., Any]) -> Callable[..., Any]:
    child = _child(parent)

    def job(*args: Any, **kwargs: Any) -> Any:
        child.invoke(functools.partial(fn, *args, **kwargs))
        (child.parent or child).children.discard(child)
        if child.error is not None:
            raise child.error
        return child.result

    return job


def part(call: Call) -> None:
    """End a call's hold on what it started. Runs in its own thread, once its window is closed."""
    looks = _Looks()
    while call.token.cancelled and any(looks.is_at_work(child) for child in list(call.children)):
        time.sleep(_PAUSE)
    for child in list(call.children):
        # One that has not begun keeps its token: if that is cancelled, it never begins.
        if child.stack() or not call.token.cancelled:
            child.leave_to_itself()


class _Looks:
    """What was seen of each child, and since when."""

    def __init__(self) -> None:
        self._seen: dict[Call, tuple[Stack, float]] = {}

    def is_at_work(self, child: Call) -> bool:
        """Whether it has moved of late, or is in code of the author's or a library's."""
        stack, now = child.stack(), time.perf_counter()
        if not stack:
            return False
        if not landing.is_ours_or_stdlib(stack[0][0]):
            return True
        seen = self._seen.get(child)
        if seen is None or seen[0] != stack:
            seen = self._seen[child] = (stack, now)
        return now - seen[1] < _STILL
