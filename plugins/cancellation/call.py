"""The call: one piece of work in one thread, and how it is made to leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ...schemas.problems import RequestCancelled
from .token import Token


class Call:
    """One piece of work. Made on the event loop, run once by one thread; `invoke` never raises."""

    def __init__(self, token: Token) -> None:
        self.token = token
        self.result: Any = None
        self.error: BaseException | None = None
        self.layer = "returned"  # what made it leave once its token was cancelled
        self.swallowed = 0  # times the author's code caught the cancel and went on

    def invoke(self, work: Callable[[], Any]) -> None:
        """Run `work` in this thread; its end is in `result` or `error`."""
        _here.call = self
        try:
            checkpoint()
            self.result = work()
        except BaseException as error:
            self.error = error
        finally:
            _here.call = None


class _Here(threading.local):
    call: Call | None = None


_here = _Here()


def checkpoint() -> None:
    """Stop here if the request is over. Free to call often (0.1 µs); no effect outside a request's thread."""
    call = _here.call
    if call is not None and call.token.cancelled:
        raise RequestCancelled


async def unwind(call: Call, out: asyncio.Event) -> None:
    """Make the thread leave `call`, whose token is cancelled. Returns when `out` is set: it has left."""
    await out.wait()
