"""Seats: one caller's part in a round, which ends once: with an answer, an error, or their leaving."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import anyio

from ...schemas.events import Stopped
from ...schemas.problems import ServerError
from ...schemas.request import Request
from ...schemas.response import JSON, Response
from ..lanes import Job
from ..streaming import LONGEST_LIST, OVERHEAD, Parts, Source, source_of

if TYPE_CHECKING:
    from .rounds import Plan, Round


class Seat(Job):
    """One caller's part in a round. The loop owns it; `share` is written by whoever makes a stream's items."""

    def __init__(self, plan: Plan, request: Request, arguments: dict[str, Any]) -> None:
        super().__init__(plan.lane, request, None)
        self.arguments = arguments
        self.round: Round | None = None
        self.closed = False  # it was answered, or left
        self.share: Share | None = None
        self._plan = plan
        self._answer: asyncio.Future[Any] = plan.lane.loop.create_future()
        if plan.endpoint.streams:
            self.share = Share(self, source_of(iter(()), plan.codec, request, declared=True))

    def begin(self, now: float) -> None:
        """Its round begins: deadlines count from here."""
        self.began = now
        if self.request.log is not None:
            self.request.log.append("started")
        if self.share is not None and not self._answer.done():
            self._answer.set_result(None)

    async def response(self) -> Response:
        """What this caller is answered; of a stream, the answer that has begun."""
        answer = await self._answer
        if (share := self.share) is None:
            assert isinstance(answer, Response)
            return answer
        if share.source.as_list:
            return self._plan.answer(await share.collected(), self.arguments)
        with anyio.move_on_after(self._plan.head_seconds):
            await share.begun()
        share.raise_early()
        return self._plan.answer(share.answer(share.source.head), self.arguments)

    def close(self, outcome: Response | BaseException | None) -> None:
        """Give this caller the outcome, the only one; None ends a stream."""
        if self.closed:
            return
        self.closed = True
        self.leave()
        self.progress, self.ended, self.on_stop = "over", time.perf_counter(), None
        if self.share is not None and self._answer.done():
            self.share.end(outcome if isinstance(outcome, BaseException) else None)
        elif not self._answer.done():
            if isinstance(outcome, StopIteration):  # a future cannot carry one
                outcome = RuntimeError(f"the endpoint gave {outcome!r}")
            if isinstance(outcome, BaseException):
                self._answer.set_exception(outcome)
                self._answer.exception()  # it counts as heard, also where nobody waits any more
            else:
                self._answer.set_result(outcome)

    async def stopped(self) -> Stopped | None:
        """How its cancel went: at once where others go on, else once the place is free."""
        if not self.token.cancelled:
            return None
        if self.round is not None and self.round.stopped_by is self:
            await self.round.over.wait()
            if self.round.place is not None:
                return await self.round.place.stopped()
        layer = "waiting" if self.round is None or self.round.request is None else "batch"
        return Stopped(reason=self.token.reason or "", layer=layer, seconds=0.0)


class Share(Parts):
    """One member's items of a stream, on their way to a reader who may be slow and holds nobody up."""

    def __init__(self, seat: Seat, source: Source | None) -> None:
        super().__init__()
        assert source is not None
        self.source = source
        self.done = False  # no more is put; for whoever makes the items
        self._seat = seat
        self._put = 0  # bytes, written by whoever makes them
        self._read = 0  # bytes, written by the reader
        self._trace: Any = None

    def put(self, item: Any) -> None:
        """Hand an item over. In the thread, or on the loop."""
        part = self.source.encode(item)
        self._put += len(part) + OVERHEAD
        self._parts.append(part)
        if self._hungry:
            self._hungry = False
            self._seat.lane.tell(self._feed)

    @property
    def behind(self) -> int:
        """Bytes that wait for the reader."""
        return self._put - self._read

    def end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._error, self._ended = error, True
            self._trace = error.__traceback__ if error is not None else None
            self._feed()

    def raise_early(self) -> None:
        if self._error is not None:  # others may have raised the same one, which made its trace longer
            self._error.__traceback__ = self._trace
        super().raise_early()

    async def collected(self) -> Response:
        """All of it as one JSON list."""
        parts: list[bytes] = []
        size = 0
        while taken := await self.take():
            parts += taken
            size += sum(map(len, taken))
            if size > LONGEST_LIST:
                raise ServerError(500, "the list grew past 100 MiB; ask for text/event-stream", "runner_server_error")
        return Response(b"[" + b",".join(parts) + b"]", media_type=JSON)

    def _took(self, size: int) -> None:
        self._read += size

    async def aclose(self) -> None:
        """Its reader is gone; others may go on."""
        if not self._ended:
            self._seat.stop("abandoned")
