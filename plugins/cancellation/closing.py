"""Closing: what is put right in the worker's thread between the work's end and the next request.

The frames that an exception passed through are cleared, so that no tensor outlives the request in
a traceback; its line numbers stay for the log. After a cancel torch's state in this thread is
compared with what it was and put back. What an exception carries in its own arguments is the
author's, and stays.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...schemas.problems import RequestCancelled
from . import threads, torch_state
from .modules import boundary

if TYPE_CHECKING:
    from .call import Call

# anyio.from_thread raises the first, or the second from a coroutine on the loop.
_CANCELS = (RequestCancelled, asyncio.CancelledError, concurrent.futures.CancelledError)


class Closing:
    """One call's surroundings: looked at before the work, put right after it."""

    __slots__ = ("allocated", "state")

    def __init__(self, state: torch_state.State | None, allocated: int) -> None:
        self.state = state
        self.allocated = allocated  # bytes on the GPU

    @classmethod
    def before(cls, call: Call) -> Closing:
        boundary.look_for_torch()
        allocated = boundary.governor.device.allocated() if boundary.governor is not None else 0
        if boundary.governor is not None and call.parent is None:
            boundary.governor.device.forget_peak()
        return cls(torch_state.look(is_child=call.parent is not None), allocated)

    def after(self, call: Call) -> None:
        """Never raises: a closing that fails retires the thread."""
        try:
            self._close(call)
        except BaseException as error:
            call.retire = True
            if call.error is None or is_cancel(call.error):  # what the device says now matters more than the cancel
                call.error = error

    def _close(self, call: Call) -> None:
        error = call.error
        if error is not None:
            drop_own_frame(error)
            scrub(error)
        cancelled = call.token.cancelled
        if cancelled:
            call.swallowed = max(0, call.raised - sum(map(is_cancel, chain(error))))
            if call.layer != "ghost" and error is not None and is_cancel(error):
                call.layer = call.raised_by if call.raised else "scope"
        if boundary.governor is not None and call.parent is None:
            call.peak_bytes = boundary.governor.device.peak()
        threads.part(call)
        if self.state is not None and not self.state.close(restore=cancelled):
            call.retire = True
        if cancelled and boundary.governor is not None:
            boundary.governor.drain()
            call.bytes_left = boundary.governor.device.allocated() - self.allocated


def is_cancel(error: BaseException) -> bool:
    return isinstance(error, _CANCELS)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and all that it came of, each once."""
    waiting, seen = [error], set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [error.__context__, error.__cause__]
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions


def scrub(error: BaseException) -> None:
    """Let go of the locals of every frame that `error` passed through. File and line stay readable."""
    for each in chain(error):
        traceback.clear_frames(each.__traceback__)
    if is_cancel(error):  # nobody logs how a cancel came about
        error.__context__ = error.__cause__ = error.__traceback__ = None


def drop_own_frame(error: BaseException) -> None:
    """Take our own frame off the trace: it still runs, so it cannot be cleared."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
