"""The token: one request's wish to stop, and the first reason given for it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Token:
    """Owned by the request. Cancelled on the event loop only; read from any thread."""

    __slots__ = ("_listeners", "at", "cancelled", "reason")

    def __init__(self) -> None:
        self.cancelled = False
        self.reason: str | None = None  # client_disconnected, client_cancelled, request_timeout, draining
        self.at = 0.0  # when it was cancelled, by `time.perf_counter`
        self._listeners: list[Callable[[], object]] = []

    def cancel(self, reason: str) -> bool:
        """Ask the work to stop; False when somebody was first, whose reason then stays."""
        if self.cancelled:
            return False
        self.reason, self.at = reason, time.perf_counter()
        self.cancelled = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()
        return True

    def on_cancel(self, listener: Callable[[], object]) -> None:
        """Call `listener` once, when the token is cancelled; at once when it is already."""
        if self.cancelled:
            listener()
        else:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[], object]) -> None:
        """Take back `on_cancel`."""
        if listener in self._listeners:
            self._listeners.remove(listener)
