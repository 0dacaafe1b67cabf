"""The line of jobs that wait: who is next, and how many are before somebody.

Normal jobs go before low ones, each kind in order of arrival; a low job that has waited for
`LOW_SECONDS` goes before all, so that nothing starves. A job that is to be tried again later keeps
its place and is passed over until then.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable

from ...schemas.queue import Job

LOW_SECONDS = 600  # a number out of the air; contract 7.7 only says that low waits behind normal

Key = tuple[bool, int]  # is low, number


class Line:
    """Owned by the dispatcher; lives on the event loop. Memory only: the store has the jobs themselves."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: list[Key] = []  # of all who wait, sorted
        self._ready: list[Key] = []  # of those that may begin now, sorted
        self._later: list[tuple[float, Key]] = []  # a heap of the others, by the time that they may begin
        self._jobs: dict[Key, Job] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, job: Job) -> None:
        key = _key(job)
        if key in self._jobs:
            return
        self._jobs[key] = job
        insort(self._keys, key)
        if job.not_before > self._clock():
            heapq.heappush(self._later, (job.not_before, key))
        else:
            insort(self._ready, key)

    def remove(self, job: Job) -> bool:
        """Take `job` out; whether it was in."""
        key = _key(job)
        if self._jobs.pop(key, None) is None:
            return False
        for keys in (self._keys, self._ready):
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                del keys[at]
        self._later = [entry for entry in self._later if entry[1] != key] if self._later else []
        heapq.heapify(self._later)
        return True

    def next(self) -> Job | None:
        """The one whose turn it is; it stays in the line."""
        while self._later and self._later[0][0] <= self._clock():
            insort(self._ready, heapq.heappop(self._later)[1])
        if not self._ready:
            return None
        first_low = bisect_left(self._ready, (True, 0))
        if first_low < len(self._ready):
            low = self._jobs[self._ready[first_low]]
            if self._clock() - low.submitted > LOW_SECONDS:
                return low
        return self._jobs[self._ready[0]]

    def next_due(self) -> float | None:
        """When somebody who may not begin yet may; None if there is nobody."""
        return self._later[0][0] if self._later else None

    def before(self, job: Job) -> int:
        """How many are before `job`."""
        return bisect_left(self._keys, _key(job))


def _key(job: Job) -> Key:
    return job.priority == "low", job.number
