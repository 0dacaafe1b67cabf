"""Log lines: what they look like, for people and as JSON, each with the id of its request."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog

from ...schemas.events import Finished
from ...schemas.problems import printable
from ...schemas.request import current_request
from ..logs import Foreign, channel
from .output import behind, belonging, output_now

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
BOLD, DIM, CYAN, GREEN, YELLOW, RED, PLAIN = (f"\x1b[{n}m" for n in (1, 2, 36, 32, 33, 31, 0))

EventDict = MutableMapping[str, Any]

def configure_logging(
    format: Literal["console", "json"] = "console", level: str = "info", *, stdlib: bool = True
) -> None:
    """Send all log lines to the stderr of now, in this format. Called once, before the app is loaded.

    Ours go there for good. The lines of the app and its libraries do, through structlog or (with
    `stdlib`) through `logging`, unless they configure either for themselves, structlog in `setup()` or later.
    """
    renderer: Json | Console = Json(LEVELS[level]) if format == "json" else Console(LEVELS[level])
    processors = [_add_ids, structlog.processors.add_log_level, _tell_listeners, *renderer.before, renderer]
    channel.open(processors, LEVELS[level], behind(sys.stderr))
    take_structlog()
    if stdlib:
        logging.root.handlers[:] = [Routed()]
        logging.root.setLevel(LEVELS[level])


def take_structlog() -> None:
    """Have what others log with structlog come our way."""
    stream, level = channel.stream, channel.level
    structlog.configure(
        processors=channel.processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: Foreign(stream),
        cache_logger_on_first_use=False,
    )


def _add_ids(logger: Any, method: str, event: EventDict) -> EventDict:
    request = current_request()
    if "request_id" not in event and "request_ids" not in event:
        event.update(belonging(request.ids))
    if request.trace is not None and event.get("request_id") == request.id:
        event["trace_id"], event["span_id"] = request.trace.ids()
    return event


def _tell_listeners(logger: Any, method: str, event: EventDict) -> EventDict:
    """A line that is not ours is the app's output, as what it prints is."""
    if isinstance(logger, Foreign) and (output := output_now()) is not None:
        output.hear(event["level"], event)
    return event


class Routed(logging.Handler):
    """Hands records of the standard library's `logging` to our log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = max((n for n in LEVELS.values() if n <= record.levelno), default=logging.DEBUG)
            fields: dict[str, Any] = {"logger": record.name}
            if record.exc_info:
                fields["exc_info"] = record.exc_info
            if record.stack_info:
                fields["stack"] = record.stack_info
            channel.logger(foreign=True).log(level, record.getMessage(), **fields)
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
    trace_id: str | None = None
    span_id: str | None = None


def access_line(when: float, record: Finished) -> AccessLine:
    """Called for every request: the plain case comes first and is the short one."""
    line = AccessLine(
        timestamp=datetime.fromtimestamp(when, UTC),
        level="debug" if record.quiet else "info",
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
    if record.trace is not None:
        line = msgspec.structs.replace(line, trace_id=record.trace.trace_id, span_id=record.trace.span_id)
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
        first = {k: event.pop(k) for k in ("timestamp", "level", "event", "request_id", "trace_id", "span_id") if k in event}
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


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


class Console:
    """For people: local time, level, event, fields; colours on a terminal."""

    def __init__(self, level: int) -> None:
        self.level = level
        self._colors = _is_terminal(behind(sys.stderr)) and "NO_COLOR" not in os.environ
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
        level = "debug    " if record.quiet else "info     "
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
        if record.trace is not None:
            told += f" trace_id={record.trace.trace_id}"
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
