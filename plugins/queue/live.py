"""A job as long as this process has to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ...schemas.queue import Job, JobState, LogLine
from ...schemas.request import Request
from ..eventlog import EventLog

LOG_LINES = 10_000  # kept of one job
PROGRESS_WITHIN = 100  # newest events, among which a status looks for progress


class Live:
    """One job as this process sees it: what was last stored of it, and who looks at it.

    Many wait at a time, and the garbage collector looks at all of them: one that waits is one object.
    """

    __slots__ = ("job", "log", "logs", "request", "start", "timer", "watchers")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.logs: Sequence[LogLine] = ()
        self.request: Request | None = None  # of the attempt that is under way
        self.timer: asyncio.TimerHandle | None = None  # its start timeout
        self.watchers: Collection[asyncio.Event] = ()
        self.log: EventLog | None = None  # made when somebody reads it, or when the job is on its way
        self.start = 0  # of the log's numbers: above those that the log of an earlier process had

    def event_log(self) -> EventLog:
        if self.log is None:
            self.log = EventLog(self.job.id, start=self.start, on_latest=self.changed)
            self.log.append("queued")
        return self.log

    def progress(self) -> Any:
        """How far the attempt that runs is, as the app told last; None when it did not."""
        if self.log is None or self.job.state is not JobState.RUNNING:
            return None
        for event in reversed(self.log.since(max(0, self.log.last - PROGRESS_WITHIN))):
            if event.kind == "started":
                return None
            if event.kind == "progress" and "done" in (told := msgspec.json.decode(event.data)):
                return told
        return None

    def changed(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    def watched_by(self, watcher: asyncio.Event) -> None:
        self.watchers = [*self.watchers, watcher]

    def left_by(self, watcher: asyncio.Event) -> None:
        self.watchers = [other for other in self.watchers if other is not watcher]

    def begin_logs(self) -> None:
        """Lines may come from now on, from any thread."""
        self.logs = list(self.logs)

    def add_line(self, text: str, stream: str, when: float) -> bool:
        """Keep a line that the app printed; whether it was kept."""
        logs = self.logs
        if not isinstance(logs, list) or len(logs) > LOG_LINES:
            return False
        told = text if len(logs) < LOG_LINES else f"what comes after {LOG_LINES} lines is not kept"
        line = LogLine(message=told, level=stream.upper(), timestamp=iso(when), labels={"fal_request_id": self.job.id, "fal_endpoint": self.job.path})
        logs.append(line)
        if self.log is not None:
            self.log.append("log", line)
        return True


def iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat()
