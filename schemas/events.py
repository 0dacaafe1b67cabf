"""What happened to a request: told to observers once, when it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

OutputStream = Literal["stdout", "stderr"]
OnOutput = Callable[[str | None, OutputStream, str, float], None]  # request id, stream, line, Unix time


class Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """How a cancel went: who asked, which layer stopped the work, and how long that took."""

    reason: str  # client_disconnected, client_cancelled, request_timeout, draining, abandoned
    layer: str  # waiting, scope, module, back-edge, asynchronous, returned, ghost
    seconds: float  # from the request to stop until the lane was free again
    swallowed: int = 0  # times the author's code caught the cancel and went on


class Finished(msgspec.Struct, frozen=True, kw_only=True):
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
