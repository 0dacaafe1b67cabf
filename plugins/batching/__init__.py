"""Batching: callers send one, the method gets many, and each caller gets their own answer.

Everybody who calls a batched endpoint waits in the lane as others do, in either line. Whoever gets
a place leads a round: those of the same endpoint who wait then go along at that place, up to
`max_size`. So what came while a round ran is the next one. A round that is smaller than the one
before it, which has only just ended, waits for up to `max_wait_ms` until it is as large: who was
answered may call again. So does one that begins beside others. In all other cases, and when somebody
waits for the place, it begins at once.

A member who leaves before the start is not in the lists; one who leaves later is not answered, and
the last one stops the work, as a request's own end does. Each has deadlines of their own.

    rounds.py     one call of the method, and what becomes of its outcome
    seats.py      one caller's part in it, and the stream that they read
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ...schemas.batch import Batch
from ...schemas.codec import Codec
from ...schemas.endpoint import Endpoint
from ...schemas.request import Request
from ...schemas.response import Response
from ...schemas.service import Call
from ..calling import Method, start_within
from ..lanes import Lane
from ..streaming import as_event, asks_for_events
from .rounds import Plan, Round
from .seats import Seat

__all__ = ["make_batched_call"]


def make_batched_call(
    endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, timeout: float | None, head_seconds: float, sizes: dict[int, int]
) -> Call:
    """The innermost call of a batched endpoint, as `make_call` is of others. Counts its rounds by size in `sizes`."""
    assert endpoint.mark.batch is not None
    return Batching(Plan(endpoint, method, codec, lane, head_seconds, sizes), endpoint.mark.batch, timeout).answer


class Batching:
    """Those who wait for one endpoint, and when they begin. Lives on the event loop."""

    def __init__(self, plan: Plan, batch: Batch, timeout: float | None) -> None:
        self._plan, self._lane, self._timeout = plan, plan.lane, timeout
        self._most, self._wait = batch.max_size, batch.max_wait_ms / 1000
        self._line: dict[Seat, None] = {}  # who waits in the lane, in order
        self._gathering: Round | None = None  # has its place, and waits for company
        self._timer: asyncio.TimerHandle | None = None
        self._running = 0  # rounds
        self._last_size, self._last_end = 0, 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: Request, arguments: dict[str, Any]) -> Response:
        """Wait for a round, and for this caller's part of what it gives."""
        start_seconds = start_within(request)
        seat = Seat(self._plan, request, arguments)
        if self._gathering is not None and not seat.alone:
            seat.ride(self._timeout)
            self._gathering.add(seat)
            self._look()
        else:
            seat.enter(self._timeout, start_seconds)
            self._line[seat] = None
        try:
            await seat.future
            self._line.pop(seat, None)
            if seat.round is None:
                self._lead(seat)
            response = await seat.response()
        except BaseException:
            self._line.pop(seat, None)
            seat.stop("abandoned")
            seat.leave()
            if seat.progress == "running" and seat.round is None:  # the place came in the same moment
                self._lane.pass_on(seat)
            raise
        return as_event(response) if asks_for_events(request) else response

    def _lead(self, seat: Seat) -> None:
        """`seat` has a place: it gathers, or goes along with those who do already."""
        if seat.alone:
            return self._begin(Round(self._plan, seat, self._empty))
        if self._gathering is None:
            self._gathering = Round(self._plan, seat, self._empty)
        else:
            self._gathering.add(seat)
            self._lane.pass_on(seat)
            seat.progress = "running"
        self._look()

    def _look(self) -> None:
        """Take along who waits, and begin if there is nothing more to wait for."""
        gathering = self._gathering
        if gathering is None:
            return
        for seat in [*self._line]:
            if len(gathering.seats) < self._most and self._lane.board(seat):
                del self._line[seat]
                gathering.add(seat)
        self._stop_waiting()
        if (seconds := self._patience(gathering)) > 0:
            self._timer = self._lane.loop.call_later(seconds, self._begin_gathered)
        else:
            self._begin_gathered()

    def _patience(self, gathering: Round) -> float:
        """For how many seconds company is worth waiting for."""
        here = len(gathering.seats)
        if here >= self._most or (not self._running and here >= self._last_size):
            return 0.0
        if self._lane.occupancy["waiting"]:  # others, for the place
            return 0.0
        since = gathering.since if self._running else self._last_end
        return since + self._wait - time.perf_counter()

    def _begin_gathered(self) -> None:
        self._stop_waiting()
        gathered, self._gathering = self._gathering, None
        assert gathered is not None
        self._begin(gathered)

    def _begin(self, round: Round) -> None:
        self._running += 1
        task = self._lane.loop.create_task(self._see_through(round))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_through(self, round: Round) -> None:
        try:
            await round.run()
        finally:
            self._running -= 1
            if round.request is not None:
                self._last_size, self._last_end = len(round.seats), time.perf_counter()
            self._look()

    def _empty(self, round: Round) -> None:
        """All who gathered have left before the start."""
        if self._gathering is round:
            self._stop_waiting()
            self._gathering = None
            self._lane.pass_on(round.leader)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
