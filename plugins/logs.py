"""Our own log: where its lines go is our business, whatever the app does to structlog or to `logging`.

A logger of `get_logger` looks up the way when it is used. Once the plugin observability has opened
the channel, lines take it; an app or a library that configures structlog later, clears the handlers
of `logging` or puts another stream in the place of `sys.stderr` changes the way of its own lines
only. While the channel is closed (another program carries us, or that plugin is left out), lines go
where structlog is configured to.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog


class Terminal:
    """Writes rendered lines to one stream, or to the stderr of the moment.

    It has no lock, so that a child forked in mid-line can go on; one write is one line or more.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        stream: Any = self._stream or sys.stderr
        with suppress(OSError, ValueError, AttributeError):  # closed, a broken pipe, or no stderr
            stream.write(line if line.endswith("\n") else line + "\n")
            stream.flush()

    log = debug = info = warn = warning = error = err = fatal = exception = critical = failure = msg


class Foreign(Terminal):
    """The same for lines that are not ours: those of the app and its libraries."""


class Channel:
    """The way of our lines. One per process, as there is one log; `open` and `close` are the plugin's."""

    def __init__(self) -> None:
        self.is_open = False
        self.processors: list[Any] = []
        self.stream: TextIO | None = None
        self.level = logging.INFO

    def open(self, processors: list[Any], level: int, stream: TextIO | None) -> None:
        """Send lines from `level` up through these processors, of which the last one renders, to `stream`."""
        self.is_open, self.processors, self.stream, self.level = True, processors, stream, level

    def close(self) -> None:
        self.is_open, self.processors, self.stream = False, [], None

    def logger(self, level: int | None = None, *, foreign: bool = False) -> Any:
        """A logger that writes here; `level` in place of the channel's."""
        kind = Foreign if foreign else Terminal
        if not self.is_open:
            wrapper = None if level is None else structlog.make_filtering_bound_logger(level)
            return structlog.wrap_logger(kind(), wrapper_class=wrapper) if level is not None else structlog.get_logger()
        wrapper = structlog.make_filtering_bound_logger(self.level if level is None else level)
        return structlog.wrap_logger(kind(self.stream), processors=self.processors, wrapper_class=wrapper)


channel = Channel()


class Logger:
    """A logger of ours, as structlog's: `info`, `warning`, `error`, `exception` and `bind`, with fields as keywords."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(channel.logger(), method)


def get_logger(name: str) -> Logger:
    """The logger of one room, such as `runner.health`. For plugins too: their lines stay out of a request's own."""
    return Logger(name)
