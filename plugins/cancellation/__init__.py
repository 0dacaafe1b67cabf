"""Cancellation: a request's token reaches the code that works for it, in its thread too.

A request has one `Token`. Whatever ends it early (the caller left, asked to stop, ran out of time,
the server drains) cancels that token with a reason, and the first reason stays. Code on the event
loop is stopped by the request's anyio scope. Work in a lane's thread is a `Call`; `unwind` makes
the thread leave it.
"""

from __future__ import annotations

from .call import Call, checkpoint, unwind
from .token import Token

__all__ = ["Call", "Token", "checkpoint", "unwind"]
