"""Cancellation: a request's token reaches the code that works for it, in its thread too.

A request has one `Token`. Whatever ends it early (the caller left, asked to stop, ran out of time,
the server drains) cancels that token with a reason, and the first reason stays. Code on the event
loop is stopped by the request's anyio scope. Work in a lane's thread is a `Call`; `arm` and
`unwind` make the thread leave it, in code that knows nothing of us, within milliseconds.

    token.py        the wish to stop, and why
    call.py         the window in which a thread can be stopped, without a race at either end
    unwinding.py     which layer stops it, by where the thread is
    modules.py      a layer: `nn.Module` calls
    edges.py        a layer: loops, Python 3.12+
    landing.py      where an asynchronous exception may land: the layer for all the rest
    threads.py      what the work started is stopped too
    closing.py      frames, torch's state, the place: as before
    here.py         what authors call

One long call into C is not stopped by anything in this process: it ends when it ends.
"""

from __future__ import annotations

from .anyio_thread import current_scope, joined
from .call import FLOOR, Call
from .edges import edges
from .here import checkpoint, shield
from .modules import boundary
from .threads import inheritance
from .token import Token
from .unwinding import LIMITS, Limits, arm, unwind

__all__ = [
    "LIMITS",
    "Call",
    "Limits",
    "Token",
    "arm",
    "checkpoint",
    "current_scope",
    "install",
    "joined",
    "shield",
    "uninstall",
    "unwind",
]

_installed: list[None] = []  # one entry per service in this process


def install() -> None:
    """Put the layers in place, once per process. Each service calls it when it starts."""
    if not _installed:
        boundary.wanted = True
        boundary.look_for_torch()
        edges.install(FLOOR)
        inheritance.install()
    _installed.append(None)


def uninstall() -> None:
    """Take them away again, with the last service."""
    _installed.pop()
    if not _installed:
        inheritance.remove()
        edges.remove()
        boundary.remove()
