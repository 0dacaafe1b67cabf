"""Waits: a thread that waits for a queue, an event or a future is woken to be stopped.

All of these wait in `threading.Condition.wait`, which is wrapped: while a call's thread is in it,
the call knows on which condition. To stop it, its own waiter is released, as `notify` would, and
the cancel is raised as the wait ends, with the condition's lock held, where every caller of `wait`
has to expect an exception. Other waiters on the same condition notice nothing.

Waits in C have no condition: a bare lock, `Thread.join`, `SimpleQueue.get`, `time.sleep`, a socket.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .here import here
from .stacks import local_of

if TYPE_CHECKING:
    from .call import Call


class Waits:
    """Owns the wrapper. One per process, as there is one `threading.Condition`."""

    def __init__(self) -> None:
        self._plain: Callable[..., bool] = threading.Condition.wait
        self._code = threading.Condition.wait.__code__

    def install(self) -> None:
        plain = self._plain = threading.Condition.wait
        self._code = plain.__code__

        def wait(self: threading.Condition, timeout: float | None = None) -> bool:
            call = here.call
            if call is None:
                return plain(self, timeout)
            call.waits_on = self
            try:
                woken = plain(self, timeout)
            finally:
                call.waits_on = None
            if call.token.cancelled and not call.shields and (call.disturb or not call.is_cleaning_up()):
                call.stop("scope")
            return woken

        threading.Condition.wait = wait  # type: ignore[method-assign]

    def remove(self) -> None:
        threading.Condition.wait = self._plain  # type: ignore[method-assign]

    def wake(self, call: Call) -> bool:
        """Wake the call's thread if it waits and may be stopped there; False when there is nobody to wake."""
        condition: Any = call.waits_on
        if condition is None or call.shields or (call.is_cleaning_up() and not call.disturb):
            return False
        if not condition.acquire(blocking=False):
            return True  # somebody is at work with it; next time
        try:
            waiter = local_of(call.thread, self._code, "waiter")
            if waiter in condition._waiters:
                condition._waiters.remove(waiter)
                waiter.release()
        finally:
            condition.release()
        return True


waits = Waits()
