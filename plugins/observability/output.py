"""What the app prints, as lines that belong to requests."""

from __future__ import annotations

import io
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ...schemas.events import OnOutput
from ...schemas.events import OutputStream as Stream
from ...schemas.request import current_request
from ..logs import channel

LINE_LIMIT = 64 * 1024  # characters kept of a line that never ends
OWN_FIELDS = ("event", "level", "request_id", "request_ids", "trace_id", "span_id", "logger", "exc_info", "stack")
LEVELS: Mapping[str, Stream] = {"debug": "debug", "info": "info", "warning": "warn"}  # anything else: error

class Output:
    """What the app prints, cut into lines; each is logged and told to the listeners.

    A line belongs to the request it was printed for, or to all of a batch. Its beginning is kept, for each request and
    thread apart, until the rest comes or the request ends. Empty lines are dropped, and of a line
    that overwrites itself with carriage returns (a progress bar) the last state is kept.
    """

    def __init__(self) -> None:
        self.listeners: list[OnOutput] = []
        self.blame: Callable[[BaseException], dict[str, str]] = lambda error: {}
        self._begun: dict[tuple[Stream, tuple[str, ...], int], str] = {}
        self._here = threading.local()  # .inside: this thread is logging a line right now
        self._process = self._last_process = os.getpid()

    @property
    def has_begun(self) -> bool:
        return bool(self._begun)

    @property
    def inside(self) -> bool:
        return getattr(self._here, "inside", False)

    def write(self, stream: Stream, text: str) -> None:
        if (process := os.getpid()) != self._last_process:
            self._last_process = process
            self._begun.clear()  # a forked child: what its parent began, its parent ends
        ids = current_request().ids
        key = stream, ids, threading.get_ident()
        begun = self._begun.pop(key, "") if self._begun else ""
        *lines, rest = (begun + text).split("\n")
        for line in lines:
            self._tell(ids, stream, line)
        if "\r" in rest[:-1]:
            rest = rest[rest.rindex("\r", 0, -1) + 1 :]
        if len(rest) > LINE_LIMIT:
            self._tell(ids, stream, rest)
        elif rest:
            self._begun[key] = rest

    def end(self, request_id: str) -> None:
        """Tell the lines that this request began and did not finish."""
        for key in [k for k in list(self._begun) if request_id in k[1]]:
            self._finish(key)

    def end_all(self) -> None:
        for key in list(self._begun):
            self._finish(key)

    def end_in_child(self) -> None:
        """A forked child ends without further ado: what it began is told when it flushes."""
        if self._last_process != self._process:
            self.end_all()

    def _finish(self, key: tuple[Stream, tuple[str, ...], int]) -> None:
        if line := self._begun.pop(key, ""):
            self._tell(key[1], key[0], line)

    def _tell(self, ids: tuple[str, ...], stream: Stream, line: str) -> None:
        line = line.rstrip("\r").rpartition("\r")[2]
        if not line:
            return
        self._here.inside = True
        try:
            channel.logger(logging.NOTSET).info("app.output", stream=stream, text=line, **belonging(ids))  # whatever the level
            self._call_listeners(ids, stream, line)
        finally:
            self._here.inside = False

    def hear(self, level: str, event: Mapping[str, Any]) -> None:
        """Tell the listeners of a line that the app logged; written it is by whoever calls."""
        if self.inside:
            return
        self._here.inside = True
        try:
            self._call_listeners(event.get("request_ids") or ([event["request_id"]] if "request_id" in event else ()), LEVELS.get(level, "error"), logged_text(event))
        finally:
            self._here.inside = False

    def _call_listeners(self, ids: Sequence[str], stream: Stream, text: str) -> None:
        if os.getpid() != self._process:
            return  # a forked child
        for listener, request_id in itertools.product(self.listeners, ids or (None,)):
            try:
                listener(request_id, stream, text, time.time())
            except Exception as error:
                channel.logger().error("output.listener_failed", **self.blame(error), exc_info=error)


def belonging(ids: tuple[str, ...]) -> dict[str, Any]:
    """For whom a line is: nobody, one request, or those whose batch it was written in."""
    return {"request_ids": list(ids)} if len(ids) > 1 else {"request_id": ids[0]} if ids else {}


def logged_text(event: Mapping[str, Any]) -> str:
    """A logged event as a caller reads it: what it says, its fields, its traceback."""
    fields = [f"{name}={value}" for name, value in event.items() if name not in OWN_FIELDS]
    text = " ".join([str(event.get("event", "")), *fields])
    error = event.get("exc_info")
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        text += "\n" + "".join(traceback.format_exception(error)).rstrip()
    return text


class Captured(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`. What it does not know, the original answers.

    Without an `output` it hands everything to the original.
    """

    def __init__(self, original: TextIO, stream: Stream) -> None:
        self.original = original
        self._stream: Stream = stream
        self.output: Output | None = None

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if (output := self.output) is None or output.inside:
            return self.original.write(text)
        output.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        if self.output is not None:
            self.output.end_in_child()
        self.original.flush()

    def close(self) -> None:
        """Stay open, as others print too."""

    def isatty(self) -> bool:
        """A log reads what is captured, no person: no colours, no cursor movements."""
        return self.output is None and self.original.isatty()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.original.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


_capturing: list[Output] = []  # of the services that live in this process, the newest last


def output_now() -> Output | None:
    """What takes the app's lines now; None outside any service's life."""
    return _capturing[-1] if _capturing else None


def stand_in() -> None:
    """Put our streams in the place of `sys.stdout` and `sys.stderr`, for `captured` to use.

    Done before the app is imported, so that a handler made there holds what is captured later.
    """
    for stream in ("stdout", "stderr"):
        if (original := getattr(sys, stream)) is not None:
            setattr(sys, stream, Captured(original, stream))


@contextmanager
def captured(output: Output) -> Iterator[None]:
    """Within it, what is printed goes to `output`; afterwards the streams are as they were."""
    ours, replaced = [], []
    for stream in ("stdout", "stderr"):
        there = getattr(sys, stream)
        if there is None:
            continue
        if not (isinstance(there, Captured) and there.output is None):
            there = Captured(there, stream)
            replaced.append((stream, there))
            setattr(sys, stream, there)
        there.output = output
        ours.append(there)
    _capturing.append(output)
    try:
        yield
    finally:
        output.end_all()
        _capturing.remove(output)
        for there in ours:
            there.output = None  # whoever kept it prints on
        for stream, there in replaced:
            if getattr(sys, stream) is there:
                setattr(sys, stream, there.original)


def behind(stream: Any) -> Any:
    """The stream that our own stand in front of."""
    while isinstance(stream, Captured):
        stream = stream.original
    return stream
