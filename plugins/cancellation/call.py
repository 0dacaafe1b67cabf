"""The window: work runs in one thread, and a cancel can be raised in it there and nowhere else.

`Call.invoke` opens a window around the work and closes it; `Call.send` raises the cancel inside
from another thread, as an asynchronous exception. The two share a protocol with these promises:
no exception is set once the window closes, at most one is on its way at a time, and one that
comes late is absorbed before `invoke` ends. So the code before and after the work, and whatever
runs in the thread next, never sees it.

CPython delivers asynchronous exceptions only at checks of its evaluation loop: when a function
begins, when a loop jumps back, after a call. The lines marked "no check" rely on there being none
between them; a test disassembles them for each Python. Builds without the GIL have no such
moments, and there `send` does nothing: the module boundary and the loop edges still work.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, Literal, NoReturn

from ...schemas.problems import RequestCancelled
from . import landing, stacks
from .anyio_thread import anyio_locals
from .closing import Closing, is_cancel
from .here import here, lower_flag, take_back
from .stacks import Stack, stack_of
from .token import Token

NEW, RUNNING, CLOSING, CLOSED = range(4)
Sending = Literal["sent", "pending", "unsafe", "cleaning", "shielded", "closed"]

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

_set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc  # a PyDLL function: the GIL stays held
_set_exception.argtypes = [ctypes.c_ulong, ctypes.py_object]
_set_exception.restype = ctypes.c_int
_identity = threading.get_ident


class Call:
    """One piece of work. Made on the event loop, run once by one thread; `invoke` never raises.

    Afterwards the outcome is in `result` or `error`. `layer` says what made it leave once its token
    was cancelled, `swallowed` how often the author's code caught the cancel and went on. `retire`
    is true when the thread's own state could not be put back: then the thread should end.
    `scope` is the anyio scope that `anyio.from_thread.check_cancelled()` looks at.
    """

    def __init__(self, token: Token, scope: Any = None, *, parent: Call | None = None) -> None:
        self.token = token
        self.scope = scope
        self.parent = parent  # whose thread started this one
        self.result: Any = None
        self.error: BaseException | None = None
        self.layer = "returned"
        self.swallowed = 0
        self.retire = False
        self.peak_bytes: int | None = None  # on the GPU at most; of all threads together
        self.bytes_left = 0  # on the GPU after a cancel, more than before; of all threads together
        self.children: set[Call] = set()  # in threads that the work started
        self.lock = threading.Lock()  # owned for moments, by `send` and by the end of `invoke`
        self.phase = NEW
        self.thread = 0
        self.shields = 0  # depth of `shield()`; nothing is raised above 0
        self.raised = 0  # cancels raised in the thread, by whichever layer
        self.raised_by = "returned"
        self.waits_on: threading.Condition | None = None  # while the thread waits for one
        self.sent = 0  # asynchronous exceptions set
        self.pending = False  # one is set and not delivered yet
        self.disturb = False  # the time for clean-up is over
        self.late = 0  # came when the work was over, and were absorbed

    def invoke(self, work: Callable[[], Any]) -> None:
        """Run `work` in this thread. Its end is in `result` or `error`."""
        closing = Closing.before(self)
        try:
            try:
                self.thread = _identity()
                here.call = self
                anyio_locals.current_cancel_scope = self.scope
                if self.token.cancelled:
                    self.stop("waiting")
                self.phase = RUNNING  # the window opens
                self.result = work()
                self.phase = CLOSING  # no check since the work returned
            except BaseException as error:
                self.phase = CLOSING  # no check since the exception came
                self.error = error
            with self.lock:  # whoever is inside `send` comes out first
                self.phase = CLOSED
            if self.sent:
                take_back(self.thread, None)
                lower_flag()
        except BaseException:  # the one exception that may come late: set before, delivered after
            self.late += 1
            self.raised -= 1
            with self.lock:
                self.phase = CLOSED
            take_back(self.thread, None)
            lower_flag()
        here.call = None
        closing.after(self)
        del self, work, closing  # an error's frames keep this one, and so what it names

    def send(self, *, again: bool = False, strictly: bool = False) -> Sending:
        """Raise the cancel in the thread, if it would land where that is safe. Any thread may call this.

        `again` sends although the last one has not arrived: it may have been lost on its way, and
        a second takes the place of the first. `strictly`: see `landing.is_safe`.
        """
        with self.lock:
            if self.phase != RUNNING:
                return "closed"
            if self.shields:
                return "shielded"
            if self.pending and not again:
                return "pending"
            if not self.disturb and self.is_cleaning_up():
                return "cleaning"
            stack = stack_of(self.thread) if HAS_GIL else []
            if not landing.is_safe(stack, FLOOR, into_cleanup=self.disturb, strictly=strictly):
                return "unsafe"
            # It may have moved while we thought: it is looked at again, and the exception set, in one call into C.
            sending = map(_set_exception, stacks.if_still(self.thread, stack), (_Delivered,))
            self.sent += 1
            self.pending = True  # beforehand: it may arrive at once
            if self.phase == RUNNING and not self.shields and any(sending):  # no check since the phase was read
                return "sent"
            self.sent -= 1
            self.pending = False
            return "unsafe"

    def stop(self, layer: str) -> NoReturn:
        """Raise the cancel here, in the call's own thread, on behalf of `layer`."""
        self.raised += 1
        self.raised_by = layer
        raise RequestCancelled(self.token.reason)

    def stack(self) -> Stack:
        """Where the thread is now; empty outside the window."""
        return stack_of(self.thread) if self.phase == RUNNING else []

    def whereabouts(self) -> str:
        """File, line and function of the author's or a library's code that the thread is in, for the log."""
        stack = self.stack()
        if not stack:
            return ""
        place = next((place for place in stack if not landing.is_ours_or_stdlib(place[0])), stack[-1])
        return f"{place[0].co_filename}:{stacks.line_of(place)} in {place[0].co_qualname}"

    def is_cleaning_up(self) -> bool:
        """Whether an `except` or `finally` of the author is at work on a cancel. Any thread may ask."""
        error = stacks.exception_of(self.thread)
        for _ in range(20):  # a longer chain than that is somebody's game
            if error is None:
                return False
            if is_cancel(error):
                return True
            error = error.__context__
        return False

    def leave_to_itself(self) -> None:
        """Let this call's thread run on: the request that it was started for is over."""
        self.token = Token()


FLOOR: CodeType = Call.invoke.__code__  # frames below this one are not the author's


class _Delivered(RequestCancelled):
    """What `send` raises. It is made in the target thread, which is how we know that it arrived."""

    def __init__(self, *args: object) -> None:
        call = here.call
        if call is not None:
            call.pending = False
            call.raised += 1
            call.raised_by = "asynchronous"
            args = args or (call.token.reason,)
        super().__init__(*args)


_Delivered.__name__ = _Delivered.__qualname__ = RequestCancelled.__name__
