"""Calling: an endpoint's method runs where it belongs, and what it returns becomes the answer.

Sync methods run in a thread of the lane and are encoded there, since a tensor may have to be
waited for; async ones run on the event loop while they hold a place. Iterators answer as
server-sent events, or as one list for callers who ask for JSON (`streaming.py`): their first item
is awaited before the head goes out, so that what fails at once has a status of its own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from ..schemas.codec import Codec
from ..schemas.endpoint import Endpoint
from ..schemas.foreign import ForeignResponse, is_starlette, merge_starlette
from ..schemas.problems import ServerError
from ..schemas.request import Request
from ..schemas.response import JSON, Response
from ..schemas.service import Call
from .lanes import Job, Lane
from .streaming import (
    Pipe,
    Source,
    Task,
    as_event,
    asks_for_events,
    asks_for_list,
    collect,
    events_head,
    run_in_thread,
    source_of,
)

START_TIMEOUTS = (b"x-fal-request-start-timeout", b"x-fal-request-timeout")  # the first that is there counts
LEAST_START_SECONDS = 0.1  # contract 7.7

Method = Callable[..., Any]


def make_call(
    endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, timeout: float | None, head_seconds: float = 15
) -> Call:
    """The innermost call of `endpoint`: it waits for a place, runs `method` and gives its Response.

    `timeout` is in seconds for one run, waiting not counted. A stream whose first item takes longer
    than `head_seconds` answers with its head alone, and what then fails has no status of its own.
    """
    steps = Steps(endpoint, method, codec, lane, timeout, head_seconds)
    return steps.on_the_loop if endpoint.is_async else steps.in_the_lane


class Steps:
    """What calling one endpoint takes, settled at assembly."""

    def __init__(
        self, endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, timeout: float | None, head_seconds: float
    ) -> None:
        self.method, self.codec, self.lane = method, codec, lane
        self.timeout, self.head_seconds = timeout, head_seconds
        self.answer = make_answer(endpoint, codec)
        self.streams = endpoint.streams
        self.may_stream = endpoint.streams or endpoint.output is Any  # a declared plain type is believed

    async def in_the_lane(self, request: Request, arguments: dict[str, Any]) -> Response:
        """Run a sync method in a thread; what it yields goes on there, what is async on the loop."""
        pipe = Pipe() if self.may_stream else None

        def work() -> Response | Source:
            if request.log is not None:
                request.log.append("started")
            value = self.method(**arguments)
            source = self._source(value, request) if pipe is not None else None
            if pipe is not None and pipe.job is not None and (source is None or source.is_async):
                raise RuntimeError(f"after {self.head_seconds:g} s the answer is a stream, and it cannot become {type(value).__name__}")
            if source is None:
                return self._answered(request, value, arguments)
            if source.is_async:
                return source
            assert pipe is not None
            pipe.attach(request.place)
            return run_in_thread(source, pipe, lambda response: self.answer(response, arguments))

        if pipe is None or not self.streams:
            found = await self.lane.run(work, request, **self._limits(request))
        else:
            with self._early_head(request, arguments, pipe):
                found = await self.lane.run(work, request, **self._limits(request))
        if isinstance(found, Source):  # its turn comes anew: it changes from a thread to the loop
            place = await self.lane.hold(request, **self._limits(request))
            found = await self._stream_on_loop(found, place, arguments)
        return as_event(found) if asks_for_events(request) else found

    async def on_the_loop(self, request: Request, arguments: dict[str, Any]) -> Response:
        """Run an async method while holding a place; a sync iterator that it gives goes on in a thread."""
        place = await self.lane.hold(request, **self._limits(request))
        with place:
            if request.log is not None:
                request.log.append("started")
            value = self.method(**arguments)
            if inspect.isawaitable(value):
                value = await value
            source = self._source(value, request) if self.may_stream else None
            if source is None:
                response = self._answered(request, value, arguments)
                return as_event(response) if asks_for_events(request) else response
            if source.is_async:
                place.kept = True
                return await self._stream_on_loop(source, place, arguments)
        return await self._stream_in_thread(source, request, arguments)

    def _source(self, value: Any, request: Request) -> Source | None:
        return source_of(value, self.codec, request, declared=self.streams)

    async def _stream_on_loop(self, source: Source, place: Job, arguments: dict[str, Any]) -> Response:
        if source.as_list:
            with place:
                return self.answer(await collect(source), arguments)
        parts = Task(source, self.lane, place)
        try:
            with anyio.move_on_after(self.head_seconds):
                await parts.begun()
            parts.raise_early()
            return self.answer(parts.answer(source.head), arguments)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await parts.aclose()
            raise

    async def _stream_in_thread(self, source: Source, request: Request, arguments: dict[str, Any]) -> Response:
        pipe = Pipe()

        def work() -> Response:
            pipe.attach(request.place)
            return run_in_thread(source, pipe, lambda response: self.answer(response, arguments))

        response: Response = await self.lane.run(work, request, **self._limits(request))
        return response

    def _answered(self, request: Request, value: Any, arguments: dict[str, Any]) -> Response:
        if request.trace is None:
            return self.answer(value, arguments)
        with request.trace.part("encode", {}):
            return self.answer(value, arguments)

    @contextmanager
    def _early_head(self, request: Request, arguments: dict[str, Any], pipe: Pipe) -> Iterator[None]:
        """Answer with the head alone when the first item takes long, so that comments keep the line open."""

        timer: asyncio.TimerHandle

        def give() -> None:
            nonlocal timer
            job = request.place
            if job is not None and job.progress == "running" and not job.future.done() and not asks_for_list(request):
                pipe.attach(job)
                job.future.set_result(self.answer(pipe.answer(events_head()), arguments))
            elif job is None or job.progress == "waiting":
                timer = self.lane.loop.call_later(self.head_seconds, give)

        timer = self.lane.loop.call_later(self.head_seconds, give)
        try:
            yield
        finally:
            timer.cancel()

    def _limits(self, request: Request) -> dict[str, Any]:
        return {"run_within": self.timeout, "start_within": start_within(request)}


def make_answer(endpoint: Endpoint, codec: Codec) -> Callable[[Any, dict[str, Any]], Response]:
    """What turns a returned value into a Response; `Response`s of the author pass as they are."""
    encode = codec.encode
    injected = [p.name for p in endpoint.parameters if p.source in ("response", "foreign")]

    def plain(value: Any, arguments: dict[str, Any]) -> Response:
        if isinstance(value, Response):
            return value
        if is_starlette(type(value), "Response"):
            return ForeignResponse(value)
        return Response(encode(value), 200, None, JSON)

    if not injected:
        return plain

    def with_injected(value: Any, arguments: dict[str, Any]) -> Response:
        response = plain(value, arguments)
        for given in (arguments[name] for name in injected):
            if isinstance(given, Response):
                response.headers |= given.headers
                response.status = given.status if given.status != 200 else response.status
            elif is_starlette(type(given), "Response"):
                merge_starlette(response, given)
            elif is_starlette(type(given), "BackgroundTasks") and given.tasks:
                response.after = given
        return response

    return with_injected


def start_within(request: Request) -> float | None:
    """Seconds in which the work must begin, if the caller says so (contract 7.7)."""
    for name in START_TIMEOUTS:
        if (value := request.header(name)) is not None:
            return _seconds(name, value)
    return None


def _seconds(name: bytes, value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not LEAST_START_SECONDS < seconds < 1e9:
        raise ServerError(400, f"{name.decode()} must be a number of seconds above 0.1, such as 30", "bad_request")
    return seconds
