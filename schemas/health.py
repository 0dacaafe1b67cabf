"""How the service is: the states, who may follow whom, and the check an author declares."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal

import msgspec


class State(enum.StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"  # ready, with every place taken; only answers show it
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    FAILED = "failed"


MAY_BECOME = {
    State.STARTING: {State.READY, State.FAILED, State.DRAINING},
    State.READY: {State.UNHEALTHY, State.DRAINING},
    State.UNHEALTHY: {State.READY, State.DRAINING},
    State.DRAINING: set[State](),
    State.FAILED: set[State](),
}


class Health:
    """The one owner of the service's state. Made by the service; it, its lanes and its checks change it.

    While anything ails it, by whatever cause, it is unhealthy; when nothing does any more, ready again.
    """

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason: str | None = None
        self._ailments: dict[str, str] = {}  # what is wrong, by its cause
        self._listeners: list[Callable[[State], None]] = []
        self._suspicious: list[Callable[[], None]] = []
        self._ends: list[Callable[[], None]] = []
        self.exit_code: int | None = None  # set when the process shall be replaced

    def become(self, state: State, reason: str | None = None) -> bool:
        """Move to `state` if the table allows it from here; return whether it did."""
        if state not in MAY_BECOME[self.state]:
            return False
        self.state, self.reason = state, reason
        for listener in self._listeners:
            listener(state)
        if state is State.READY:
            self._judge()
        return True

    def ail(self, cause: str, reason: str) -> None:
        """Something is wrong: unhealthy until `recover` of the same cause."""
        self._ailments[cause] = reason
        self._judge()

    def recover(self, cause: str) -> None:
        """What was wrong by this cause is right again."""
        if self._ailments.pop(cause, None) is not None:
            self._judge()

    def _judge(self) -> None:
        if self._ailments:
            reason = "; ".join(self._ailments.values())
            if not self.become(State.UNHEALTHY, reason) and self.state is State.UNHEALTHY:
                self.reason = reason
        elif self.state is State.UNHEALTHY:
            self.become(State.READY)

    def suspect(self) -> None:
        """Somebody wants the app checked now, and one failure to count."""
        for listener in self._suspicious:
            listener()

    def replace(self, exit_code: int, reason: str) -> None:
        """The process is beyond help: it shall end with `exit_code`, for another to take its place."""
        if self.exit_code is None:
            self.exit_code = exit_code
            self.ail("replacement", reason)
            self.reason = self.reason or reason
            for listener in self._ends:
                listener()

    def watch_replacement(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the process shall be replaced."""
        self._ends.append(listener)

    def watch(self, listener: Callable[[State], None]) -> None:
        """Call `listener` with every new state."""
        self._listeners.append(listener)

    def watch_suspicion(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever somebody suspects."""
        self._suspicious.append(listener)

    @property
    def takes_requests(self) -> bool:
        return self.state is State.READY or self.state is State.UNHEALTHY


class HealthCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is called to find out whether the app is well. Names and defaults are fal's.

    None means fal's default: a start period of 30 s, a timeout of 5 s, three failures in a row.
    """

    start_period_seconds: int | None = None
    timeout_seconds: int | None = None
    failure_threshold: int | None = None
    call_regularly: bool = True
    method: Literal["GET", "POST"] | None = None
