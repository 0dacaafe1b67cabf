"""Counts: what has finished, in plain numbers. Added to for every request, so it is short."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from itertools import accumulate

import msgspec

from ...schemas.events import Finished
from ...schemas.service import ServiceView

CANCEL_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
RUN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
MEMORY_BUCKETS = tuple(float(2**n) for n in range(26, 39))  # 64 MiB to 256 GiB
SERVED = "/files/{id}/{name}"  # the route of stored files
LOOK_SECONDS, MINUTE_SECONDS = 5.0, 60.0


class Spread:
    """A histogram in the making."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self, text: Callable[[float], str]) -> list[tuple[str, float]]:
        """Each upper bound, and how many values lie below it."""
        bounds = (*self.bounds, math.inf)
        return [(text(bound), count) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]


class Counts:
    """What has finished since the start, by what tells one kind of request from another. Added to on the loop."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, int, bool], Spread] = {}  # by method, path as declared, status; whether it is an endpoint's
        self.waited: dict[str, Spread] = {}  # by endpoint, as what follows
        self.ran: dict[str, Spread] = {}
        self.peaks: dict[str, Spread] = {}
        self.sent: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.sockets: dict[tuple[str, str], int] = {}  # by endpoint and why they ended
        self.cancels: dict[tuple[str, str], Spread] = {}  # by reason and layer
        self.swallowed = 0
        self.served = 0  # bytes of stored files
        self.peak = 0  # bytes of CUDA memory, of all requests

    def add(self, one: Finished) -> None:
        path = one.endpoint or one.route or "other"  # never as asked: callers would make labels without end
        key = one.method, path, one.status, one.endpoint is not None
        if (seconds := self.seconds.get(key)) is None:
            seconds = self.seconds[key] = Spread(RUN_BUCKETS)
        seconds.add(one.seconds)
        if one.endpoint is not None:
            self._add_of_endpoint(one, path)
        elif path == SERVED:
            self.served += one.bytes_out
        if one.items is not None:
            self.items[path] = self.items.get(path, 0) + one.items
        if one.ended is not None:
            self.sockets[path, one.ended] = self.sockets.get((path, one.ended), 0) + 1
        if one.stopped is not None:
            by = one.stopped.reason, one.stopped.layer
            if (cancels := self.cancels.get(by)) is None:
                cancels = self.cancels[by] = Spread(CANCEL_BUCKETS)
            cancels.add(one.stopped.seconds)
            self.swallowed += one.stopped.swallowed

    def _add_of_endpoint(self, one: Finished, path: str) -> None:
        if (waited := self.waited.get(path)) is None:
            waited = self.waited[path] = Spread(WAIT_BUCKETS)
            self.ran[path], self.sent[path] = Spread(RUN_BUCKETS), 0
        waited.add(one.waited)
        if one.ran is not None:
            self.ran[path].add(one.ran)
        self.sent[path] += one.bytes_out
        if one.peak_bytes is not None:
            self.peak = max(self.peak, one.peak_bytes)
            if path not in self.peaks:
                self.peaks[path] = Spread(MEMORY_BUCKETS)
            self.peaks[path].add(one.peak_bytes)


class Look(msgspec.Struct, frozen=True):
    """The counts of one moment."""

    at: float  # by `time.perf_counter`
    completed: Counter[tuple[str, int]]  # by method and status
    received: Counter[str]  # by method
    latency: list[int]  # by bucket, not summed up


class Minute:
    """What fal's platform shows of the last minute: the difference to what was counted then. Owns those looks back."""

    def __init__(self, counts: Counts, service: ServiceView) -> None:
        self._counts, self._service = counts, service
        self._looks: deque[Look] = deque()

    def look(self, now: float) -> None:
        """Called often; keeps a look every few seconds."""
        if not self._looks or now - self._looks[-1].at >= LOOK_SECONDS:
            self._looks.append(self._look(now))
            while len(self._looks) > 1 and now - self._looks[1].at >= MINUTE_SECONDS:
                self._looks.popleft()

    def _look(self, now: float) -> Look:
        seconds = [(key, list(spread.counts)) for key, spread in list(self._counts.seconds.items()) if key[3]]
        completed: Counter[tuple[str, int]] = Counter()
        for (method, _, status, _), counts in seconds:
            completed[method, status] += sum(counts)
        received = Counter(request.method or "WS" for request in self._service.running_now if request.place is not None)
        for (method, _), count in completed.items():
            received[method] += count
        latency = [sum(column) for column in zip(*(counts for _, counts in seconds), strict=True)] or [0] * (len(RUN_BUCKETS) + 1)
        return Look(now, completed, received, latency)

    def passed(self, now: float) -> Look:
        """What came since the oldest look, which is a minute ago or the start."""
        here = self._look(now)
        if not self._looks:
            return here
        then = self._looks[0]
        latency = [max(0, a - b) for a, b in zip(here.latency, then.latency, strict=True)]
        return Look(now, here.completed - then.completed, here.received - then.received, latency)
