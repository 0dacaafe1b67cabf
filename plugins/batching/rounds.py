"""Rounds: one call of a batched method, from who has gathered for it to the last one's answer."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import anyio

from ...schemas.batch import BatchRequest
from ...schemas.codec import Codec
from ...schemas.endpoint import Endpoint
from ...schemas.problems import InvalidOutput, RequestCancelled, ServerError
from ...schemas.request import enter_request
from ...schemas.response import Response, StreamingResponse
from ..calling import Method, make_answer
from ..cancellation import Token
from ..lanes import Job, Lane
from .seats import Seat

LAG = 4 * 1024 * 1024  # bytes that a reader may be behind the others of a stream before it is cut off

Outcome = Response | BaseException | None


class Plan:
    """A batched endpoint, settled at assembly."""

    def __init__(self, endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, head_seconds: float, sizes: dict[int, int]) -> None:
        self.endpoint, self.method, self.codec, self.lane = endpoint, method, codec, lane
        self.head_seconds, self.sizes = head_seconds, sizes
        self.answer = make_answer(endpoint, codec)

    def checked(self, items: Any, members: int) -> Sequence[Any]:
        """`items` if there is one for each member. Raises InvalidOutput."""
        name, inputs = self.endpoint.name, _count(members, "input")
        if not isinstance(items, list | tuple):
            raise InvalidOutput(f"{name}() gave {_a(items)} for {inputs}; it must give a list with one item for each, in their order")
        if len(items) != members:
            raise InvalidOutput(f"{name}() gave {_count(len(items), 'item')} for {inputs}; it must give one for each, in their order")
        return items

    def outcome(self, seat: Seat, item: Any) -> Outcome:
        """What one member is answered: made of the item in its place, within its own request."""
        if isinstance(item, Exception):
            return item
        if isinstance(item, StreamingResponse) or inspect.isgenerator(item) or inspect.isasyncgen(item):
            return InvalidOutput(f"{self.endpoint.name}() gave {_a(item)} in an item's place; a batched stream is one iterator of lists")
        enter_request(seat.request)
        try:
            return self.answer(item, seat.arguments)
        except Exception as error:
            return error


class Round:
    """One call, and the callers whose inputs it has. Owns the place that its leader was given."""

    def __init__(self, plan: Plan, leader: Seat, on_empty: Callable[[Round], None]) -> None:
        self.leader, self.since = leader, leader.asked
        self.seats: list[Seat] = []
        self.request: BatchRequest | None = None  # from the start on
        self.place: Job | None = None  # likewise
        self.over = asyncio.Event()
        self.stopped_by: Seat | None = None
        self._plan, self._on_empty = plan, on_empty
        self._token = Token()
        self._here = 0  # who still wait for their answers
        self.add(leader)

    def add(self, seat: Seat) -> None:
        seat.round, seat.on_stop = self, partial(self._left, seat)
        self.seats.append(seat)

    def _left(self, seat: Seat) -> None:
        """A member was stopped: by its caller, a deadline or a drain."""
        seat.close(RequestCancelled())
        if self.request is None:
            self.seats.remove(seat)
            if not self.seats:
                self._on_empty(self)
            return
        self._here -= 1
        if not self._here:
            self.stopped_by = seat
            self._token.cancel(seat.token.reason or "")

    async def run(self) -> None:
        """Begin with those who are here, and give each of them what is theirs."""
        try:
            await self._note()
            if self.seats:
                await self._work()
            else:
                self._plan.lane.pass_on(self.leader)
            self._end(None)
        except BaseException as error:
            self._end(error)
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
        finally:
            self.over.set()

    async def _note(self) -> None:
        """Have it noted of the queue's jobs that they begin; of the leader it is. Who may not, does not."""
        noting = [seat for seat in self.seats if seat is not self.leader and seat.request.begin is not None]
        if not noting:
            return
        for seat, problem in zip(noting, await asyncio.gather(*map(_noted, noting), return_exceptions=True), strict=True):
            if problem is not None and seat in self.seats:
                self.seats.remove(seat)
                seat.close(problem)

    async def _work(self) -> None:
        plan, now = self._plan, time.perf_counter()
        self._here = len(self.seats)
        self.request = BatchRequest([seat.request for seat in self.seats], self._token)
        self.request.alone = self.leader.alone
        plan.sizes[self._here] = plan.sizes.get(self._here, 0) + 1
        for seat in self.seats:
            seat.begin(now)
        arguments = {name: [seat.arguments[name] for seat in self.seats] for name in self.seats[0].arguments}
        enter_request(self.request)
        with anyio.CancelScope() as scope:
            self._token.on_cancel(scope.cancel)
            run = self._on_the_loop(arguments) if plan.endpoint.is_async else self._in_the_lane(partial(self._in_thread, arguments))
            for seat, outcome in zip(self.seats, await run, strict=False):
                self._finish(seat, outcome)

    async def _in_the_lane(self, work: Callable[[], Sequence[Outcome]]) -> Sequence[Outcome]:
        """Do `work`, which is all of a sync round, in a thread at the round's place."""
        outcomes: Sequence[Outcome] = await self._plan.lane.take_over(self._placed(work))
        return outcomes

    def _placed(self, work: Callable[[], Any] | None) -> Job:
        assert self.request is not None
        self.place = Job(self._plan.lane, self.request, work)
        self.place.requests = len(self.seats)
        return self.place

    def _finish(self, seat: Seat, outcome: Outcome) -> None:
        if not seat.closed:
            seat.close(outcome)
            self._here -= 1

    def _end(self, outcome: Outcome) -> None:
        for seat in self.seats:
            self._finish(seat, outcome)

    # --- where the method runs: in its thread, or on the loop

    def _in_thread(self, arguments: dict[str, Any]) -> Sequence[Outcome]:
        given = self._plan.method(**arguments)
        if not self._plan.endpoint.streams:
            return self._outcomes(given)
        if not isinstance(given, Iterable):
            raise InvalidOutput(f"{self._plan.endpoint.name}() gave {_a(given)}; it must give an iterator of lists")
        rows = iter(given)
        try:
            for row in rows:
                if not self._hand_out(row, self._plan.lane.tell):
                    break
        finally:
            for each in (rows, given):
                if (close := getattr(each, "close", None)) is not None:
                    close()
        return ()

    async def _on_the_loop(self, arguments: dict[str, Any]) -> Sequence[Outcome]:
        plan, place = self._plan, self._placed(None)
        await plan.lane.take_over(place)
        with place:
            given = plan.method(**arguments)
            if inspect.isawaitable(given):
                given = await given
            if not plan.endpoint.streams:
                return self._outcomes(given)
            if not hasattr(given, "__aiter__"):
                raise InvalidOutput(f"{plan.endpoint.name}() is async and gave {_a(given)}; it must give an async iterator of lists")
            try:
                async for row in given:
                    if not self._hand_out(row, _at_once):
                        break
            finally:
                if (close := getattr(given, "aclose", None)) is not None:
                    await close()
            return ()

    def _outcomes(self, given: Any) -> Sequence[Outcome]:
        assert self.request is not None
        items = self._plan.checked(given, len(self.seats))
        outcomes = [None if seat.closed else self._plan.outcome(seat, item) for seat, item in zip(self.seats, items, strict=True)]
        enter_request(self.request)
        return outcomes

    def _hand_out(self, row: Any, tell: Callable[[Callable[[], None]], None]) -> bool:
        """Give each member its item of a stream; False once there is nobody to get more."""
        assert self.request is not None
        anybody = False
        for seat, item in zip(self.seats, self._plan.checked(row, len(self.seats)), strict=True):
            share = seat.share
            assert share is not None
            if share.done or seat.closed:
                continue
            if item is None:
                anybody = True
                continue
            problem = item if isinstance(item, Exception) else None
            if problem is None:
                enter_request(seat.request)
                try:
                    share.put(item)
                except Exception as error:
                    problem = error
                if problem is None and share.behind > LAG:
                    problem = too_slow()
            if problem is None:
                anybody = True
            else:
                share.done = True
                tell(partial(self._finish, seat, None if isinstance(problem, StopIteration) else problem))
        enter_request(self.request)
        return anybody


async def _noted(seat: Seat) -> None:
    assert seat.request.begin is not None
    await seat.request.begin()


def _at_once(function: Callable[[], None]) -> None:
    function()


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def too_slow() -> ServerError:
    return ServerError(503, f"this reader is more than {LAG >> 20} MiB behind those who share its batch", "runner_disconnected")
