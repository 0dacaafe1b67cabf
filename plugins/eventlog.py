"""The event log of one request: what happened, numbered without holes, for any number of readers.

A log is kept for requests that may be looked at by more than their own connection: jobs of the
queue, and streams that go on when their caller leaves. It is in memory and bounded in events and
bytes: the oldest go first, and a reader who comes too late for them is told of a gap. Events come
from any thread; readers live on the event loop and are woken once for as many as are there.

`EventLogs` finds a log by the id under which it may be read. That id is a secret of whoever made
the request: whoever knows it may read, unless the log's owner gave it a `may_read` of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import msgspec

from ..schemas.events import Event, Kind, ascii_only
from ..schemas.request import Request

MOST_EVENTS = 10_000
MOST_BYTES = 16 * 1024 * 1024
LATEST_SECONDS = 0.1  # between two `latest` events of one kind
OVERHEAD = 150  # bytes that an event costs besides its data, measured

Latest = Literal["progress"]
Find = Callable[[str], "EventLog | None"]


class EventLog:
    """Made on the event loop, by whoever runs the request; `id` is the one it is read under."""

    def __init__(
        self,
        id: str,
        *,
        most_events: int = MOST_EVENTS,
        most_bytes: int = MOST_BYTES,
        may_read: Callable[[Request], bool] | None = None,
        start: int = 0,
    ) -> None:
        """The first event has the number after `start`; one that saw lower ones saw them of a log that is gone."""
        self.id = id
        self._start = start
        self.most_events, self.most_bytes = most_events, most_bytes
        self.may_read = may_read or (lambda request: True)
        self.ended = False  # its last event is `completed`
        self.ended_at = 0.0  # by `time.monotonic`
        self.readers = 0
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # guards what follows
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._last = start  # number of the newest event
        self._waiting: list[asyncio.Event] = []  # readers with nothing to read
        self._latest: dict[str, bytes] = {}  # by what they tell of; held back until their time comes
        self._latest_at = 0.0
        self._latest_is_due = False

    @property
    def last(self) -> int:
        """The number of the newest event; 0 when there is none."""
        return self._last

    @property
    def size(self) -> int:
        """What the log costs in memory, in bytes, roughly."""
        return self._bytes

    # --- writing, in any thread

    def append(self, kind: Kind, data: Any = None, *, encoded: bytes | None = None) -> int:
        """Add an event and return its number; after `completed` nothing is added, and 0 returned.

        `data` is anything msgspec encodes; `encoded` is JSON that is made already.
        """
        body = ascii_only(msgspec.json.encode(data) if encoded is None else encoded)
        with self._lock:
            if self.ended:
                return 0
            if kind == "completed":
                for held in self._take_latest():
                    self._add("progress", held)
            number = self._add(kind, body)
            if kind == "completed":
                self.ended, self.ended_at = True, time.monotonic()
            waiting, self._waiting = self._waiting, []
        self._wake(waiting)
        return number

    def latest(self, about: str, data: Any) -> None:
        """Tell of what only the newest state counts, such as progress: one event per 0.1 s and `about`."""
        body = ascii_only(msgspec.json.encode(data))
        with self._lock:
            if self.ended:
                return
            self._latest[about] = body
            if self._latest_is_due:
                return
            self._latest_is_due = True
        self._on_loop(self._arm_latest)

    # --- reading, on the loop

    def since(self, seq: int) -> list[Event]:
        """The events after number `seq`, a `gap` first when some of them are gone."""
        with self._lock:
            return self._since(seq)

    async def follow(self, seq: int = 0, *, enough: Callable[[], bool] = lambda: False) -> AsyncGenerator[list[Event], None]:
        """What `since` gives, then what comes, in lists of as many as are there; ends after `completed`.

        It also ends with the last event that is there once `enough` says so, which is asked after a `wake`.
        """
        self.readers += 1
        try:
            while True:
                with self._lock:
                    found, ended, news = self._since(seq), self.ended or enough(), None
                    if not found and not ended:
                        news = asyncio.Event()
                        self._waiting.append(news)
                if found:
                    seq = found[-1].seq
                    yield found
                elif ended:
                    return
                elif news is not None:
                    await self._news(news)
        finally:
            self.readers -= 1

    def wake(self) -> None:
        """Have those who follow look again."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        self._wake(waiting)

    async def _news(self, news: asyncio.Event) -> None:
        try:
            await news.wait()
        finally:
            with self._lock:
                if news in self._waiting:
                    self._waiting.remove(news)

    # --- under the lock

    def _add(self, kind: Kind, body: bytes) -> int:
        self._last += 1
        self._events.append(Event(self._last, kind, body, time.time()))
        self._bytes += len(body) + OVERHEAD
        while len(self._events) > self.most_events or (self._bytes > self.most_bytes and len(self._events) > 1):
            self._bytes -= len(self._events.popleft().data) + OVERHEAD
        return self._last

    def _since(self, seq: int) -> list[Event]:
        first = self._last - len(self._events) + 1
        seq = min(seq if seq > 0 else self._start, self._last)
        found = [self._events[at] for at in range(max(0, seq + 1 - first), len(self._events))]
        if seq + 1 < first:
            lost = msgspec.json.encode({"from": seq + 1, "to": first - 1})
            found.insert(0, Event(first - 1, "gap", lost, time.time()))
        return found

    def _take_latest(self) -> list[bytes]:
        held, self._latest = list(self._latest.values()), {}
        return held

    # --- waking

    def _wake(self, waiting: list[asyncio.Event]) -> None:
        def tell() -> None:
            for news in waiting:
                news.set()

        if waiting:
            self._on_loop(tell)

    def _on_loop(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop; at once when we are on it."""
        if asyncio._get_running_loop() is self._loop:
            function()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _arm_latest(self) -> None:
        wait = self._latest_at + LATEST_SECONDS - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._tell_latest)
        else:
            self._tell_latest()

    def _tell_latest(self) -> None:
        with self._lock:
            self._latest_is_due, self._latest_at = False, self._loop.time()
            held = [] if self.ended else self._take_latest()
            for body in held:
                self._add("progress", body)
            waiting: list[asyncio.Event] = []
            if held:
                waiting, self._waiting = self._waiting, []
        self._wake(waiting)


class EventLogs:
    """The logs of one service, by the id they are read under. Owns those put here; asks others for theirs.

    A log is kept for `keep_seconds` after its end, and not so long when there are more than
    `most_bytes` in all: those that ended first go first.
    """

    def __init__(self, keep_seconds: float = 300, most_bytes: int = 256 * 1024 * 1024) -> None:
        self.keep_seconds, self.most_bytes = keep_seconds, most_bytes
        self._logs: dict[str, EventLog] = {}
        self._elsewhere: list[Find] = []

    def __len__(self) -> int:
        return len(self._logs)

    def add(self, log: EventLog) -> EventLog:
        """Keep `log` until its time is over."""
        self._tidy()
        self._logs[log.id] = log
        return log

    def also_in(self, find: Find) -> None:
        """Ask `find` for logs that are not here; the queue keeps its own."""
        self._elsewhere.append(find)

    def find(self, id: str) -> EventLog | None:
        """The log that is read under `id`."""
        self._tidy()
        if (log := self._logs.get(id)) is not None:
            return log
        return next((log for find in self._elsewhere if (log := find(id)) is not None), None)

    def _tidy(self) -> None:
        due = time.monotonic() - self.keep_seconds
        ended = sorted((log for log in self._logs.values() if log.ended), key=lambda log: log.ended_at)
        size = sum(log.size for log in self._logs.values())
        for log in ended:
            if log.ended_at > due and size <= self.most_bytes:
                break
            size -= log.size
            del self._logs[log.id]
