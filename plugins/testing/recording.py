"""Recording: what apps under test log and print, line by line, for errors and for the report of a failed test.

While a service runs in this process for a test, its log lines come here instead of stderr, unless
the test's author has set structlog up himself: then they go both ways. What is printed is printed
still, so that `capsys` and pytest's own capture see it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from ...schemas.events import Finished
from ...schemas.request import current_request
from ...schemas.service import ServiceView
from ...schemas.tracebacks import own_traceback
from ..hookspecs import hookimpl
from ..observability import journal_of
from ..observability.lines import LEVELS
from ..observability.output import Captured, Output

MOST = 10_000  # lines kept
TOLD = ("request.finished", "plugins.loaded")  # by `_finished`, and not a hundredth of a second late; by nobody
QUIET = ("timestamp", "level", "event", "request_id", "logger", "exception", "exc_info", "stack_info", "stream", "text")


class Line(msgspec.Struct, frozen=True):
    number: int
    request_id: str | None
    text: str


class Journal:
    """The lines of all apps under test in this process, oldest first. One per process, as pytest is."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=MOST)
        self.count = 0

    def add(self, fields: MutableMapping[str, Any]) -> str:
        """Keep one log line, given by its fields; return it as it is shown."""
        text, request_id = shown(fields), fields.get("request_id")
        self.count += 1
        self._lines.append(Line(self.count, request_id, text))
        return text

    def of(self, request_id: str | None, since: int = 0) -> list[str]:
        """The lines of one request; with None, of all."""
        return [line.text for line in list(self._lines) if line.number > since and (request_id is None or line.request_id == request_id)]

    def since(self, number: int) -> list[str]:
        """The lines after the first `number`, each with the beginning of its request's id."""
        return [f"{(line.request_id or '')[:8]:8} {line.text}" for line in list(self._lines) if line.number > number]


journal = Journal()


def shown(fields: MutableMapping[str, Any]) -> str:
    event = str(fields.get("event", ""))
    if event == "app.output":
        return f"{fields.get('stream', 'stdout')}: {fields.get('text', '')}"
    told = "".join(f" {name}={value}" for name, value in fields.items() if name not in QUIET and value is not None)
    trace = fields.get("exception") or _trace(fields.get("exc_info"))
    return f"{fields.get('level', 'info')}: {event}{told}" + (f"\n{trace}" if trace else "")


def _trace(error: Any) -> str:
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    return own_traceback(error) if isinstance(error, BaseException) else ""


def _keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The first of the processors: keeps a line, and lets it go on. What the app printed is printed instead."""
    if event.get("event") in TOLD:
        return event
    if "request_id" not in event and (request_id := current_request().id) is not None:
        event["request_id"] = request_id
    journal.add({"level": method, **event})
    if event.get("event") == "app.output":
        stream = getattr(sys, event["stream"])
        while isinstance(stream, Captured):
            stream = stream.original
        print(event["text"], file=stream)
        raise structlog.DropEvent
    return event


def _drop(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
    raise structlog.DropEvent


class Lines:
    """Owns what stands in structlog's configuration while any service runs for a test."""

    def __init__(self) -> None:
        self._services = 0
        self._own: list[Any] = [_keep, _drop]
        self._joined: list[list[Any]] = []  # processors of others, in which ours stands first

    def begin(self) -> None:
        self._services += 1
        self.see_to_it()

    def see_to_it(self) -> None:
        """Stand in whatever configuration there is: tests and apps may set structlog up when they like."""
        processors: list[Any] = structlog.get_config()["processors"]
        if processors and processors[0] is _keep:
            return
        if structlog.is_configured():
            processors.insert(0, _keep)
            self._joined.append(processors)
            return
        structlog.configure(
            processors=self._own,
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS["info"]),
            cache_logger_on_first_use=False,
        )

    def end(self) -> None:
        self._services -= 1
        if self._services:
            return
        while self._joined:
            processors = self._joined.pop()
            if _keep in processors:
                processors.remove(_keep)
        if structlog.get_config()["processors"] is self._own:
            structlog.reset_defaults()


lines = Lines()


class Recorder:
    """A plugin of one service under test: tells of its requests, and keeps hold of what it prints."""

    __name__ = "testing"  # among the plugins

    def __init__(self) -> None:
        self.began = journal.count
        self.listeners: list[Callable[[Finished], None]] = []  # told of each request that is over, its place free
        self._output: Output | None = None
        self._stand_ins: list[tuple[str, Captured]] = []

    def begin(self) -> None:
        """From now on log lines are kept."""
        lines.begin()

    def end(self) -> None:
        for stream, stand_in in self._stand_ins:
            stand_in.output = None
            if getattr(sys, stream) is stand_in:
                setattr(sys, stream, stand_in.original)
        lines.end()

    @hookimpl
    def observe_requests(self, service: ServiceView) -> Callable[[Finished], None]:
        self._output = journal_of(service).output if "observability" not in service.settings.no_plugin else None
        return self._finished

    def _finished(self, record: Finished) -> None:
        stopped = record.stopped
        ended = f" reason={stopped.reason} layer={stopped.layer} cancel_ms={stopped.seconds * 1000:.1f}" if stopped else ""
        journal.add(
            {"event": f"{record.method} {record.path} {record.status} {record.seconds * 1000:.1f} ms{ended}", "request_id": record.request_id}
        )
        for listener in self.listeners:
            listener(record)

    def capture(self) -> None:
        """See to it that what the app prints is captured: pytest exchanges `sys.stdout` between the parts of a test."""
        lines.see_to_it()
        if self._output is None:
            return
        for stream in ("stdout", "stderr"):
            current = getattr(sys, stream)
            if current is not None and not isinstance(current, Captured):
                self._stand_ins = [(s, c) for s, c in self._stand_ins if s != stream]
                self._stand_ins.append((stream, Captured(current, stream)))
                self._stand_ins[-1][1].output = self._output
                setattr(sys, stream, self._stand_ins[-1][1])
