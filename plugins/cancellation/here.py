"""Where code in a worker's thread finds the call it works for: `checkpoint()` and `shield()`."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import Call

# NULL takes an asynchronous exception back. A PYFUNCTYPE call keeps the GIL.
take_back = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)
_set_own = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_ulong, ctypes.py_object)(
    ("PyThreadState_SetAsyncExc", ctypes.pythonapi)
)


class _Spent(BaseException):
    """Raised by `lower_flag` and caught there."""


def lower_flag() -> None:
    """End what `take_back` leaves behind. In the thread whose exception was taken back, while nobody can send one.

    Setting an exception raises a flag of the whole interpreter, which only a delivery lowers. While it
    is up every check takes the long way, and in CPython 3.11 a function that is traced (by a debugger,
    by coverage) never begins, in no thread. So one is delivered here.
    """
    try:
        _set_own(threading.get_ident(), _Spent)
        while True:  # each turn is a check
            pass
    except _Spent:
        return


class _Here(threading.local):
    call: Call | None = None


here = _Here()


class _Trial:
    """For tests of authors: `look` is called at every checkpoint, also at the module boundary. One per process."""

    look: Callable[[Call], None] | None = None


trial = _Trial()


def checkpoint() -> None:
    """Stop here if the request is over. Call it between steps; without effect outside a request's thread."""
    call = here.call
    if call is not None:
        if trial.look is not None:
            trial.look(call)
        if call.token.cancelled and not call.shields:
            call.stop("scope")


class shield:
    """`with shield():` finishes its block first; a cancel that came meanwhile is raised at its end.

    Use it around what must not be left half done: loading weights into a model, writing a file.
    The caller is answered at once all the same; the place stays taken until the block is through.
    """

    __slots__ = ("call",)

    def __enter__(self) -> None:
        call = self.call = here.call
        if call is not None:
            call.shields += 1  # from here on nothing is sent,
            take_back(call.thread, None)  # and what was on its way does not arrive
            if call.pending:
                lower_flag()
            call.pending = False

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        call = self.call
        if call is not None:
            call.shields -= 1
            if call.token.cancelled and not call.shields and error is None:
                call.stop("scope")
