"""The token: one request's wish to stop, and the first reason given for it."""

from __future__ import annotations

import time
from collections.abc import Callable


class Token:
    """Owned by the request. Cancelled on the event loop only; read from any thread."""

    # Two are made for every request, and few are cancelled: an object has an attribute once it differs.
    cancelled = False
    reason: str | None = None  # client_disconnected, client_cancelled, request_timeout, draining
    at = 0.0  # when it was cancelled, by `time.perf_counter`
    _listeners: tuple[Callable[[], object], ...] = ()

    def cancel(self, reason: str) -> bool:
        """Ask the work to stop; False when somebody was first, whose reason then stays."""
        if self.cancelled:
            return False
        self.reason, self.at = reason, time.perf_counter()
        self.cancelled = True
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener()
        return True

    def on_cancel(self, listener: Callable[[], object]) -> None:
        """Call `listener` once, when the token is cancelled; at once when it is already."""
        if self.cancelled:
            listener()
        else:
            self._listeners = (*self._listeners, listener)

    def forget(self, listener: Callable[[], object]) -> None:
        """Take back `on_cancel`."""
        listeners = self._listeners
        if listeners and listeners[-1] == listener:  # as a rule
            self._listeners = listeners[:-1]
        elif listener in listeners:
            self._listeners = tuple(kept for kept in listeners if kept != listener)
