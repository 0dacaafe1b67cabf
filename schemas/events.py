"""What happens to a request: its events as they come, and what observers are told when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from .tracing import Trace
else:  # msgspec reads the annotations, and travels light
    Trace = Any

OutputStream = Literal["stdout", "stderr", "debug", "info", "warn", "error"]  # printed, or logged at that level
OnOutput = Callable[[str | None, OutputStream, str, float], None]  # request id, stream, line, Unix time


class Stopped(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a cancel went: who asked, which layer stopped the work, and how long that took."""

    reason: str  # client_disconnected, client_cancelled, request_timeout, draining, abandoned
    layer: str  # waiting, batch, scope, module, back-edge, asynchronous, returned, ghost
    seconds: float  # from the request to stop until the lane was free again
    swallowed: int = 0  # times the author's code caught the cancel and went on


class Finished(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, over: what the access log, the metrics and the traces are made of."""

    request_id: str
    method: str
    path: str
    endpoint: str | None  # the declared path; None when no endpoint answered
    status: int  # as sent; 499 when the client was gone
    seconds: float  # from the head read to the last byte handed over
    waited: float = 0.0  # seconds in the line before a place was free
    bytes_out: int = 0
    client: str | None = None
    error_type: str | None = None
    stopped: Stopped | None = None
    route: str = ""  # a plugin's path as declared, when one answered
    items: int | None = None  # events of a stream, messages to the client of a socket
    quiet: bool = False  # one of many that only look: probes, polls
    ended: str | None = None  # why a socket ended: see `runner.plugins.realtime`
    ran: float | None = None  # seconds in its place, once it had one
    peak_bytes: int | None = None  # CUDA memory at most while it ran, where that is measured
    trace: Trace | None = None


Kind = Literal["queued", "started", "log", "progress", "output", "completed", "gap"]


class Event(msgspec.Struct, frozen=True):
    """One line of a request's event log. A `gap` stands for lost ones; its number is the last of them."""

    seq: int  # from 1, without holes
    kind: Kind
    data: bytes  # JSON, ASCII only
    at: float  # seconds since 1970


def as_sse(event: Event) -> bytes:
    """The event as server-sent: its number is the `id` that `Last-Event-ID` names."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.kind.encode(), event.data)


def ascii_only(encoded: bytes) -> bytes:
    """The same JSON text with all that is not ASCII as \\u escapes, so that no chunk cuts a character."""
    if encoded.isascii():
        return encoded
    return "".join(c if c < "\x80" else _escape(c) for c in encoded.decode()).encode("ascii")


def _escape(character: str) -> str:
    point = ord(character)
    if point < 0x10000:
        return f"\\u{point:04x}"
    point -= 0x10000
    return f"\\u{0xD800 + (point >> 10):04x}\\u{0xDC00 + (point & 0x3FF):04x}"
