"""Cancellation: a request's token reaches the code that works for it, in its thread too.

A request has one `Token`. Whatever ends it early (the caller left, asked to stop, ran out of time,
the server drains) cancels that token with a reason, and the first reason stays. Code on the event
loop is stopped by the request's anyio scope. Work in a lane's thread is a `Call`; `arm` and
`unwind` make the thread leave it, in code that knows nothing of us, within milliseconds.

    token.py        the wish to stop, and why
    call.py         the window in which a thread can be stopped, without a race at either end
    unwinding.py     which layer stops it, by where the thread is
    modules.py      a layer: `nn.Module` calls
    waits.py        a layer: queues, events, futures
    edges.py        a layer: loops, Python 3.12+
    stacks.py       where another thread is, read at one instant
    landing.py      where an asynchronous exception may land: the layer for all the rest
    governor.py     a GPU's queue, kept short
    threads.py      what the work started is stopped too
    lost.py         what lands where nobody can be told
    fingerprint.py  whether a model was left half changed
    closing.py      frames, torch's state, the place: as before
    here.py         what authors call

One long call into C is not stopped by anything in this process: it ends when it ends.
"""

from __future__ import annotations

import sys

from .anyio_thread import current_scope, joined
from .call import FLOOR, Call
from .closing import scrub
from .edges import edges
from .fingerprint import Fingerprint
from .here import checkpoint, shield
from .lost import lost
from .modules import boundary
from .threads import inheritance
from .token import Token
from .unwinding import LIMITS, Limits, arm, unwind
from .waits import waits

__all__ = [
    "LIMITS",
    "Call",
    "Fingerprint",
    "Limits",
    "Token",
    "arm",
    "checkpoint",
    "current_scope",
    "install",
    "joined",
    "scrub",
    "shield",
    "try_out",
    "uninstall",
    "unwind",
]

# How long a thread may keep the interpreter when another wants it, while a service runs; Python's
# own 5 ms are more than a whole cancel takes. A loop in Python, cancelled through HTTP: 12 ms with
# 5, 2.1 with 0.5 (bench/cancel.py, p50). Nothing changes while only one thread wants to run.
SWITCH_SECONDS = 0.0005


class _Installed:
    """The layers, in place once per process while any service runs."""

    def __init__(self) -> None:
        self._services = 0
        self._interval = sys.getswitchinterval()

    def install(self) -> None:
        self._services += 1
        if self._services == 1:
            self._interval = sys.getswitchinterval()
            sys.setswitchinterval(min(self._interval, SWITCH_SECONDS))
            boundary.wanted = True
            boundary.look_for_torch()
            edges.install(FLOOR)
            inheritance.install()
            lost.install()
            waits.install()

    def uninstall(self) -> None:
        self._services -= 1
        if self._services == 0:
            waits.remove()
            lost.remove()
            inheritance.remove()
            edges.remove()
            boundary.remove()
            sys.setswitchinterval(self._interval)


_installed = _Installed()
try_out = boundary.try_out
install = _installed.install  # each service, when it starts
uninstall = _installed.uninstall  # and when it ends
