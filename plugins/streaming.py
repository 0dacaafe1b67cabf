"""Streaming: what an endpoint yields becomes the parts of an answer, as it is made.

A sync iterator runs to its end in the lane thread that its method ran in; an async one in a task
of its own. Both stay at most `AHEAD` bytes before their reader, so a slow reader slows the one who
makes. While the reader is busy sending nobody is woken: it then takes all that is there at once.

Whoever sends the parts closes the stream. That closes the iterator where it runs, `finally`
included; if an async one will not end within `CLOSE_SECONDS`, its place stays taken until it does.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..schemas.codec import Codec
from ..schemas.events import ascii_only
from ..schemas.foreign import headers_of, is_starlette
from ..schemas.problems import RequestCancelled, ServerError
from ..schemas.request import Request
from ..schemas.response import EVENTS, JSON, Response, StreamingResponse
from .lanes import Job, Lane
from .logs import get_logger

log = get_logger("runner.streaming")

AHEAD = 64 * 1024  # bytes that may wait for the reader, before another item is made
OVERHEAD = 64  # bytes that an item counts besides its own; a number out of the air
CLOSE_SECONDS = 5.0  # for an async iterator to end once it is told to
LONGEST_LIST = 100 * 1024 * 1024  # bytes of a stream that is asked for as one list

Encode = Callable[[Any], Any]


class Source:
    """Something to stream: the iterator, how an item is encoded, and the head of the answer."""

    def __init__(self, items: Any, encode: Encode, head: Response, *, as_list: bool = False) -> None:
        self.items, self.encode, self.head, self.as_list = items, encode, head, as_list
        self.is_async = hasattr(items, "__aiter__")


def source_of(value: Any, codec: Codec, request: Request, *, declared: bool) -> Source | None:
    """What `value`, just returned by an endpoint, streams; None when it is a plain value."""
    if isinstance(value, StreamingResponse):
        return Source(value.content, as_bytes, value)
    if is_streaming_response(value):
        return _of_starlette(value)
    if isinstance(value, Response) or not (isinstance(value, Iterator | AsyncIterator) or (declared and is_iterable(value))):
        return None
    encode = codec.encode if request.log is None else _logged(codec.encode, request)
    if asks_for_list(request):
        return Source(value, encode, Response(media_type=JSON), as_list=True)
    return Source(value, lambda item: event(encode(item)), events_head())


def events_head() -> Response:
    return Response(headers={"cache-control": "no-cache"}, media_type=EVENTS)


def is_iterable(value: Any) -> bool:
    return isinstance(value, Iterable) or hasattr(value, "__aiter__")


def is_streaming_response(value: Any) -> bool:
    """Whether `value` is Starlette's StreamingResponse, or one made from it that sends itself the same way."""
    kind = type(value)
    theirs = next((c for c in kind.__mro__ if c.__name__ == "StreamingResponse" and c.__module__.startswith("starlette.")), None)
    if theirs is None or not is_starlette(kind, "StreamingResponse"):
        return False
    return all(getattr(kind, name, None) is getattr(theirs, name, None) for name in ("__call__", "stream_response"))


def _of_starlette(value: Any) -> Source:
    items = value.body_iterator
    if getattr(getattr(items, "ag_code", None), "co_name", "") == "iterate_in_threadpool":
        # A sync iterator that Starlette would ask in some thread of a pool, item by item, and not
        # close when the caller leaves. It has not begun yet: take the iterator out (Starlette 1.10).
        items = items.ag_frame.f_locals.get("iterator", items)
    head = Response(b"", value.status_code, headers_of(value))
    head.media_type = head.headers.pop("content-type", None)
    head.after = value.background
    return Source(items, as_bytes, head)


def _logged(encode: Encode, request: Request) -> Encode:
    def both(item: Any) -> bytes:
        encoded: bytes = encode(item)
        request.log.append("output", encoded=encoded)
        return encoded

    return both


# --- framing


def event(encoded: bytes) -> bytes:
    """One server-sent event around a JSON text. ASCII only: the JavaScript client cuts characters apart."""
    return b"data: " + ascii_only(encoded) + b"\n\n"


def as_bytes(part: str | bytes | memoryview) -> bytes:
    """A part of an answer that the app frames itself."""
    return part.encode() if isinstance(part, str) else bytes(part)


def asks_for_list(request: Request) -> bool:
    """Whether the caller of a stream wants all of it as one JSON list."""
    accept = _accept(request)
    return b"application/json" in accept and b"text/event-stream" not in accept


def asks_for_events(request: Request) -> bool:
    """Whether the caller takes nothing but server-sent events."""
    accept = _accept(request)
    return b"text/event-stream" in accept and b"json" not in accept and b"*/*" not in accept


def _accept(request: Request) -> bytes:
    return request.header(b"accept") or b""


def as_event(response: Response) -> Response:
    """A plain JSON answer for a caller who asked for events: one event."""
    if response.media_type != JSON or response.status != 200:
        return response
    single = Response(event(response.body), 200, {"cache-control": "no-cache", **response.headers}, EVENTS)
    single.after = response.after
    return single


class _List:
    """A JSON list in the making, no longer than `LONGEST_LIST`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, item: Any) -> None:
        part = self._source.encode(item)
        self._size += len(part) + 1
        if self._size > LONGEST_LIST:
            raise ServerError(500, "the list grew past 100 MiB; ask for text/event-stream", "runner_server_error")
        self._parts.append(part)

    def response(self) -> Response:
        self._source.head.body = b"[" + b",".join(self._parts) + b"]"
        return self._source.head


# --- in a thread


def run_in_thread(source: Source, pipe: Pipe, merge: Callable[[Response], Response]) -> Response:
    """In a lane's thread: run a sync source to its end; its answer is handed over with the first item.

    What is raised before that is raised here, and the answer of an empty stream is returned.
    """
    iterator = iter(source.items)
    try:
        if source.as_list:
            whole = _List(source)
            for item in iterator:
                whole.add(item)
            return merge(whole.response())
        encode, put, response = source.encode, pipe.put, merge(pipe.answer(source.head))
        for item in iterator:
            put(encode(item))
            pipe.job.hand_over(response)
            break
        for item in iterator:
            put(encode(item))
        return response
    finally:
        for each in (iterator, source.items):
            if (close := getattr(each, "close", None)) is not None:
                close()


class Parts:
    """What waits for the reader of a stream. `_wait` and `_room` are for the two kinds of maker."""

    def __init__(self) -> None:
        self.items = 0  # that the reader took
        self._parts: deque[Any] = deque()  # bytes; of a socket also str
        self._hungry = False  # the reader waits, or is about to
        self._news: asyncio.Future[None] | None = None
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def answer(self, head: Response) -> Response:
        """The answer that has this as its body."""
        head.stream = self
        return head

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> bytes:
        taken = await self.take()
        if not taken:
            raise StopAsyncIteration
        return taken[0] if len(taken) == 1 else b"".join(taken)

    async def take(self) -> list[Any]:
        """All that is there, waiting for the first; empty at the end. Raises what the maker raised."""
        await self.begun()
        self.raise_early()
        taken = [self._parts.popleft() for _ in range(len(self._parts))]
        self.items += len(taken)
        self._took(sum(map(len, taken)) + OVERHEAD * len(taken))
        return taken

    async def begun(self) -> None:
        """Wait until there is a part, or the end."""
        while not (self._parts or self._ended):
            self._news = asyncio.get_running_loop().create_future()
            self._hungry = True
            if self._parts or self._ended:  # it came while nobody was hungry yet
                break
            await self._news
        self._hungry, self._news = False, None

    def raise_early(self) -> None:
        """Raise what went wrong before the first part, while the answer can still say so."""
        if self._error is not None and not self._parts:
            error, self._error = self._error, None
            raise error

    def _feed(self) -> None:
        """On the loop: there is something for the reader."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _took(self, size: int) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


class Pipe(Parts):
    """Parts on their way from one lane thread to one reader on the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.job: Job = None  # type: ignore[assignment] # set by `attach`, before the thread begins
        self._put = 0  # bytes, written by the thread only
        self._taken = 0  # bytes, written by the reader only
        self._blocked = False
        self._gate = threading.Lock()
        self._gate.acquire()  # held while there is nothing to wake the writer for

    def attach(self, job: Job) -> None:
        """In the thread, before the first `put`."""
        self.job = job
        job.on_stop, job.on_end = self._close, self._end
        if job.token.cancelled:
            self._closed = True

    def put(self, part: Any) -> None:
        """In the thread: hand over, waiting while the reader is `AHEAD` behind."""
        while self._put - self._taken > AHEAD and not self._closed:
            self._blocked = True
            if self._put - self._taken <= AHEAD or self._closed:  # it moved before it could know of us
                break
            self._gate.acquire()
        if self._closed:
            raise RequestCancelled
        self._put += len(part) + OVERHEAD
        self._parts.append(part)
        if self._hungry:
            self._hungry = False
            self.job.lane.tell(self._feed)

    def _took(self, size: int) -> None:
        self._taken += size
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._blocked:
            self._blocked = False
            with suppress(RuntimeError):  # it did not wait after all, and the gate stands open
                self._gate.release()

    def _close(self) -> None:
        """Nobody reads any more: the writer's next `put` raises."""
        self._closed = self._blocked = True
        self._wake_writer()

    def _end(self, error: BaseException | None) -> None:
        self._error, self._ended = error, True
        self._feed()

    async def aclose(self) -> None:
        """Make the thread leave. Does not wait for it: its place says when it has."""
        if not self._ended:
            self.job.stop("abandoned")


# --- on the loop


class Task(Parts):
    """Parts that an async iterator makes in a task of its own, which holds a place in the lane."""

    def __init__(self, source: Source, lane: Lane, place: Job) -> None:
        super().__init__()
        self._source, self._lane, self._place = source, lane, place
        self._waiting = 0  # bytes
        self._room: asyncio.Future[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._make()
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._lane.release(self._place, self._error)
            self._feed()

    async def _make(self) -> None:
        items = self._source.items
        encode, parts = self._source.encode, self._parts
        try:
            async for item in items:
                part = encode(item)
                parts.append(part)
                self._waiting += len(part) + OVERHEAD
                if self._hungry:
                    self._hungry = False
                    self._feed()
                if self._waiting > AHEAD:
                    await self._until_room()
                if self._closed:  # the iterator kept the cancel to itself
                    break
        finally:
            if (close := getattr(items, "aclose", None)) is not None:
                await close()

    async def _until_room(self) -> None:
        while self._waiting > AHEAD and not self._closed:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _took(self, size: int) -> None:
        self._waiting -= size
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def aclose(self) -> None:
        """Cancel the task and wait until it has ended, for a while."""
        if self._task.done():
            return
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        if not self._task.done():
            log.warning("stream.lingers", seconds=CLOSE_SECONDS, endpoint=self._place.request.path)


async def collect(source: Source) -> Response:
    """All of an async source as one list."""
    whole = _List(source)
    try:
        async for item in source.items:
            whole.add(item)
    finally:
        if inspect.isasyncgen(source.items):
            await source.items.aclose()
    return whole.response()


