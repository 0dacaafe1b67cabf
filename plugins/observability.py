"""What the server tells: log lines, one line per request, and what the app prints.

Log lines go to stderr, for people or as JSON, each with the id of the request it was written for;
the standard library's `logging` goes the same way. While the service lives, `print` in the app
becomes `app.output` lines, so that each is known to belong to its request. A request's own line
costs the request only a place in a batch; the batch is written every hundredth of a second
and when the service ends. Bytes that go round Python (subprocesses, C libraries) are not seen.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO
from weakref import WeakKeyDictionary

import msgspec
import structlog

from ..schemas.events import Finished, OnOutput
from ..schemas.events import OutputStream as Stream
from ..schemas.problems import printable
from ..schemas.request import current_request
from ..schemas.service import ServiceView
from .hookspecs import hookimpl

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
BATCH_SECONDS = 0.01  # at most so late is a request's line
BATCH_LINES = 128  # written in one go, about 0.2 ms; then the loop gets its turn
LINE_LIMIT = 64 * 1024  # characters kept of a line that never ends
BOLD, DIM, CYAN, GREEN, YELLOW, RED, PLAIN = (f"\x1b[{n}m" for n in (1, 2, 36, 32, 33, 31, 0))

EventDict = MutableMapping[str, Any]


# --- log lines ---------------------------------------------------------------------------------


def configure_logging(
    format: Literal["console", "json"] = "console", level: str = "info", *, stdlib: bool = True
) -> None:
    """Send all log lines to stderr in this format. Called once, by `main`.

    With `stdlib`, the root logger's handlers are replaced by one that does the same.
    """
    renderer: Json | Console = Json(LEVELS[level]) if format == "json" else Console(LEVELS[level])
    structlog.configure(
        processors=[
            _add_request_id,
            structlog.processors.add_log_level,
            *renderer.before,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: Terminal(),
        cache_logger_on_first_use=False,
    )
    if stdlib:
        logging.root.handlers[:] = [Routed()]
        logging.root.setLevel(LEVELS[level])


def _add_request_id(logger: Any, method: str, event: EventDict) -> EventDict:
    if "request_id" not in event:
        event.update(_belonging(current_request().ids))
    return event


def _belonging(ids: tuple[str, ...]) -> dict[str, Any]:
    """For whom a line is: nobody, one request, or those whose batch it was written in."""
    return {"request_ids": list(ids)} if len(ids) > 1 else {"request_id": ids[0]} if ids else {}


class Terminal:
    """Writes rendered lines to the stderr of the moment, looking behind our own captures.

    It has no lock, so that a child forked in mid-line can go on; one write is one line or more.
    """

    def msg(self, line: str) -> None:
        stream = _behind(sys.stderr)
        with suppress(OSError, ValueError, AttributeError):  # closed, a broken pipe, or no stderr
            stream.write(line if line.endswith("\n") else line + "\n")
            stream.flush()

    log = debug = info = warn = warning = error = err = fatal = exception = critical = failure = msg


class Routed(logging.Handler):
    """Hands records of the standard library's `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = max((n for n in LEVELS.values() if n <= record.levelno), default=logging.DEBUG)
            fields: dict[str, Any] = {"logger": record.name}
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            if record.stack_info:
                fields["stack"] = record.stack_info
            structlog.get_logger().log(level, record.getMessage(), **fields)
        except Exception:
            self.handleError(record)


class AccessLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`request.finished` as JSON. What is None is left out."""

    timestamp: datetime
    level: str
    event: str
    request_id: str
    method: str
    path: str
    status: int
    ms: float
    waited_ms: float
    bytes: int
    endpoint: str | None = None
    client: str | None = None
    error_type: str | None = None
    items: int | None = None
    ended: str | None = None
    reason: str | None = None
    layer: str | None = None
    cancel_ms: float | None = None
    swallowed: int = 0


def access_line(when: float, record: Finished) -> AccessLine:
    """Called for every request: the plain case comes first and is the short one."""
    line = AccessLine(
        timestamp=datetime.fromtimestamp(when, UTC),
        level="debug" if record.endpoint is None and record.path in PROBES else "info",
        event="request.finished",
        request_id=record.request_id,
        method=record.method,
        path=record.path,
        status=record.status,
        ms=_ms(record.seconds),
        waited_ms=_ms(record.waited) if record.waited else 0.0,
        bytes=record.bytes_out,
        endpoint=record.endpoint,
        client=record.client,
        error_type=record.error_type,
        items=record.items,
        ended=record.ended,
    )
    if (stopped := record.stopped) is None:
        return line
    return msgspec.structs.replace(
        line,
        reason=stopped.reason,
        layer=stopped.layer,
        cancel_ms=_ms(stopped.seconds),
        swallowed=stopped.swallowed,
    )


def _ms(seconds: float) -> float:
    return int(seconds * 100_000 + 0.5) / 100  # `round` takes twice as long


class Json:
    """One object per line: timestamp, level, event and request id first."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.before: list[Any] = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
        ]
        self._encoder = msgspec.json.Encoder(enc_hook=repr)

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        first = {k: event.pop(k) for k in ("timestamp", "level", "event", "request_id") if k in event}
        return self._encode({**first, **event})

    def access(self, finished: list[tuple[float, Finished]]) -> str:
        lines = [access_line(when, record) for when, record in finished]
        try:
            return self._encoder.encode_lines(lines).decode()
        except UnicodeEncodeError:  # a lone surrogate in a path
            return "".join(self._encode(msgspec.to_builtins(line)) + "\n" for line in lines)

    def _encode(self, fields: dict[str, Any]) -> str:
        try:
            return self._encoder.encode(fields).decode()
        except (UnicodeEncodeError, TypeError, ValueError, RecursionError):
            return self._encoder.encode(printable({k: _flat(v) for k, v in fields.items()})).decode()


def _flat(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


class Console:
    """For people: local time, level, event, fields; colours on a terminal."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._colors = sys.stderr is not None and sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self.before: list[Any] = [structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False)]
        self._render = structlog.dev.ConsoleRenderer(
            colors=self._colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
        self._second, self._clock = 0, ""

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        if event.get("event") == "app.output":
            return self._output(event)
        return str(self._render(logger, method, event))

    def access(self, finished: list[tuple[float, Finished]]) -> str:
        return "".join([self._access(when, record) for when, record in finished])

    def _access(self, when: float, record: Finished) -> str:
        if (second := int(when)) != self._second:
            self._second = second
            self._clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        path, endpoint, status = record.path, record.endpoint, record.status
        level = "debug    " if endpoint is None and path in PROBES else "info     "
        told = f"ms={int(record.seconds * 100_000 + 0.5) / 100} bytes={record.bytes_out}"
        if record.waited >= 0.0005:
            told += f" waited_ms={_ms(record.waited)}"
        if record.items is not None:
            told += f" items={record.items}"
        if record.ended is not None:
            told += f" ended={record.ended}"
        if record.error_type is not None:
            told += f" error_type={record.error_type}"
        if (stopped := record.stopped) is not None:
            told += f" reason={stopped.reason} layer={stopped.layer} cancel_ms={_ms(stopped.seconds)}"
            if stopped.swallowed:
                told += f" swallowed={stopped.swallowed}"
        if endpoint is not None and endpoint != path:
            told += f" endpoint={endpoint}"
        asked, who = f"{record.method} {path}", f"client={record.client} request_id={record.request_id}"
        if not self._colors:
            line = f"{self._clock} [{level}] request.finished {asked} {status} {told} {who}"
            return f"{line}\n" if line.isprintable() else f"{_harmless(line)}\n"
        color = GREEN if status < 400 else YELLOW if status < 500 else RED
        return (
            f"{DIM}{self._clock}{PLAIN} [{GREEN}{level}{PLAIN}] request.finished "
            f"{BOLD}{_harmless(asked)}{PLAIN} {color}{status}{PLAIN} {told} {DIM}{_harmless(who)}{PLAIN}\n"
        )

    def _output(self, event: EventDict) -> str:
        ids = [event["request_id"]] if "request_id" in event else event.get("request_ids", [])
        request_id = f"request_id{'s' * (len(ids) > 1)}={_harmless(','.join(ids))}" if ids else ""
        clock, stream = event["timestamp"], f"{event['stream']:9}"
        if self._colors:
            clock, stream = f"{DIM}{clock}{PLAIN}", f"{CYAN}{stream}{PLAIN}"
            request_id = f"{DIM}{request_id}{PLAIN}" if request_id else ""
        return f"{clock} [{stream}] {event['text']}{'  ' if request_id else ''}{request_id}"


def _harmless(text: str) -> str:
    """`text`, which a caller chose, without what could forge a line or steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape", "replace").decode()


# --- what the app prints -----------------------------------------------------------------------


class Output:
    """What the app prints, cut into lines; each is logged and told to the listeners.

    A line belongs to the request it was printed for, or to all of a batch. Its beginning is kept, for each request and
    thread apart, until the rest comes or the request ends. Empty lines are dropped, and of a line
    that overwrites itself with carriage returns (a progress bar) the last state is kept.
    """

    def __init__(self) -> None:
        self.listeners: list[OnOutput] = []
        self._begun: dict[tuple[Stream, tuple[str, ...], int], str] = {}
        self._here = threading.local()  # .inside: this thread is logging a line right now
        self._process = self._last_process = os.getpid()
        # All lines are logged, whatever the level; and to stderr, wherever the app sends its own.
        self._log = structlog.wrap_logger(
            Terminal(), wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET)
        )

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
            self._log.info("app.output", stream=stream, text=line, **_belonging(ids))
            if self._last_process == self._process:
                for listener in self.listeners:
                    for request_id in ids or (None,):
                        self._call(listener, request_id, stream, line)
        finally:
            self._here.inside = False

    def _call(self, listener: OnOutput, request_id: str | None, stream: Stream, line: str) -> None:
        try:
            listener(request_id, stream, line, time.time())
        except Exception as error:
            self._log.error("output.listener_failed", exc_info=error)


class Captured(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`. What it does not know, the original answers."""

    def __init__(self, original: TextIO, stream: Stream, output: Output) -> None:
        self.original = original
        self._stream: Stream = stream
        self._output = output
        self.open = True  # False: hand everything to the original

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if not self.open or self._output.inside:
            return self.original.write(text)
        self._output.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        self._output.end_in_child()
        self.original.flush()

    def close(self) -> None:
        """Stay open, as others print too."""

    def isatty(self) -> bool:
        return False  # a log reads this, no person: no colours, no cursor movements

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


@contextmanager
def captured(output: Output) -> Iterator[None]:
    """Within it, what is printed goes to `output`; afterwards the streams are as they were."""
    streams: list[tuple[Stream, Captured]] = []
    for stream in ("stdout", "stderr"):
        if (original := getattr(sys, stream)) is not None:
            streams.append((stream, Captured(original, stream, output)))
            setattr(sys, stream, streams[-1][1])
    try:
        yield
    finally:
        output.end_all()
        for stream, stand_in in streams:
            stand_in.open = False  # whoever kept it prints on
            if getattr(sys, stream) is stand_in:
                setattr(sys, stream, stand_in.original)


def _behind(stream: Any) -> Any:
    while isinstance(stream, Captured):
        stream = stream.original
    return stream


# --- one line per request ----------------------------------------------------------------------


class Journal:
    """The finished requests of one service, on their way to the log."""

    def __init__(self) -> None:
        self.output = Output()
        self._finished: deque[tuple[float, Finished]] = deque()
        self._context = contextvars.Context()  # the timer's: of no request
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._closed = False

    def add(self, record: Finished) -> None:
        self._finished.append((time.time(), record))
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write_all()
            return
        if self._closed:
            self.write_all()
        else:
            self._timer = loop.call_later(BATCH_SECONDS, self._write_some, context=self._context)

    def _write_some(self) -> None:
        self._timer = None
        self._write([self._finished.popleft() for _ in range(min(BATCH_LINES, len(self._finished)))])
        if self._finished:
            self._timer = asyncio.get_running_loop().call_soon(self._write_some, context=self._context)

    def write_all(self) -> None:
        while self._finished:
            self._write([self._finished.popleft() for _ in range(min(BATCH_LINES, len(self._finished)))])

    def close(self) -> None:
        """Write what is left; whatever still comes is written at once."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.write_all()

    def _write(self, batch: list[tuple[float, Finished]]) -> None:
        try:
            if self.output.has_begun:
                for _, record in batch:
                    self.output.end(record.request_id)
            renderer = structlog.get_config()["processors"][-1]
            if isinstance(renderer, (Json, Console)):
                write_access(renderer, batch)
            else:  # the app's own configuration, or a test's
                for when, record in batch:
                    log_access(when, record)
        except Exception as error:
            structlog.get_logger().error("access_log.failed", exc_info=error, lines=len(batch))


def write_access(renderer: Json | Console, batch: list[tuple[float, Finished]]) -> None:
    """Render and write the batch in one go, past structlog's chain: about ten times as fast."""
    if renderer.level > logging.INFO:
        return
    if renderer.level > logging.DEBUG:
        batch = [b for b in batch if b[1].endpoint is not None or b[1].path not in PROBES]
    if batch:
        Terminal().msg(renderer.access(batch))


def log_access(when: float, record: Finished) -> None:
    fields = msgspec.structs.asdict(access_line(when, record))
    level, event = fields.pop("level"), fields.pop("event")
    fields = {k: v for k, v in fields.items() if v is not None and k != "timestamp"}
    structlog.get_logger().log(LEVELS[level], event, **fields)


# --- hooks -------------------------------------------------------------------------------------

# Both hooks are asked apart and must come to the same journal.
_journals: WeakKeyDictionary[Any, Journal] = WeakKeyDictionary()


def journal_of(service: ServiceView) -> Journal:
    return _journals.setdefault(service, Journal())


def on_output(service: ServiceView, listener: OnOutput) -> None:
    """Call `listener(request_id, stream, text, when)` with every line that the app prints.

    It is called in the thread that prints, at once; it must be quick. What it raises is logged.
    """
    journal_of(service).output.listeners.append(listener)


@hookimpl
def observe_requests(service: ServiceView) -> Callable[[Finished], None]:
    return journal_of(service).add


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return _observed(service)


@asynccontextmanager
async def _observed(service: ServiceView) -> AsyncIterator[None]:
    journal, settings = journal_of(service), service.settings
    journal.output.listeners.extend(service.output_observers)
    ours = not structlog.is_configured()  # no `main`: another server carries us
    if ours:
        configure_logging(
            settings.log_format, settings.log_level, stdlib=not logging.root.handlers
        )
    try:
        with captured(journal.output):
            yield
    finally:
        journal.close()
        if ours:
            structlog.reset_defaults()
