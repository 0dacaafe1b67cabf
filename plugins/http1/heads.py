"""Heads: what RFC 9112 asks of a request's that llhttp does not check, and how an answer's is written.

llhttp refuses bad tokens, bare CR and LF, folded lines and malformed lengths. Here the rest: one
valid Host, targets in each form, one framing that is understood. Pure functions over bytes.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from ...schemas.asgi import RawHeaders

CACHED_BYTES = 256  # longer hosts and targets are looked at anew each time, so that caches stay small
BODILESS = frozenset((204, 304))
CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"  # HTTP/1.0 wants to be told
CHUNKED = b"transfer-encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+(?:%25[\w.~-]+)?\])(?::[0-9]{0,5})?", re.ASCII)
TARGET = re.compile(rb"(?i:https?://([^/?#]*))?(/[!-~]*|\?[!-~]*|)")
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Refused(Exception):
    """A request that is answered with `status` by the lane itself, after which the connection closes."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status

    def answer(self) -> bytes:
        body = msgspec.json.encode({"detail": str(self)})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return b"".join((head(self.status, headers), CLOSE, b"\r\n", body))


# --- requests


class Target(NamedTuple):
    """A request's target, taken apart as ASGI wants it."""

    path: str
    raw_path: bytes
    query: bytes
    authority: bytes | None = None  # of an absolute form; it beats the Host header (RFC 9112, 3.2.2)


def take_apart(raw: bytes, method: str) -> Target:
    """Take `raw` apart. Raises Refused for a form that no origin server answers."""
    if raw == b"*" and method == "OPTIONS":
        return Target("*", raw, b"")
    return _cached_target(raw) if len(raw) <= CACHED_BYTES else _target(raw)


def _target(raw: bytes) -> Target:
    match = TARGET.fullmatch(raw)
    if match is None or not raw or b"#" in raw:
        raise Refused(400, "the target of the request is not a path or an http address")
    authority, rest = match.groups()
    if authority is None and not rest.startswith(b"/"):
        raise Refused(400, "the target of the request must begin with '/'")
    if authority is not None and not valid_host(authority):
        raise Refused(400, "the host in the target of the request is not valid")
    path, _, query = rest.partition(b"?")
    path = path or b"/"
    return Target(unquote(path.decode("ascii")), path, query, authority)


_cached_target = lru_cache(1024)(_target)


def valid_host(value: bytes) -> bool:
    return _cached_host(value) if len(value) <= CACHED_BYTES else False  # no name is so long


@lru_cache(1024)
def _cached_host(value: bytes) -> bool:
    return HOST.fullmatch(value) is not None


class Framing(NamedTuple):
    """How a request's body is delimited, and what else of its head the lane acts on."""

    length: int | None = None  # None: chunked
    expects: bool = False  # its client waits for a 100
    close: bool = False  # it is the last on its connection
    upgrade: bytes = b""


def framing(watched: RawHeaders, version: str) -> Framing:
    """Read the headers in WATCHED. Raises Refused unless there is one Host and one way to find the end."""
    if version != "1.1" and version != "1.0":
        raise Refused(505, "this is a server of HTTP/1.1")
    hosts = lengths = codings = 0
    length: int | None = 0
    upgrade, expects, close = b"", False, False
    for name, value in watched:
        if name == b"host":
            hosts += 1
            if not valid_host(value) and value:
                raise Refused(400, "the Host header is not valid")
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > 18:
                raise Refused(400, "Content-Length is not a number")
            length = int(value)
        elif name == b"transfer-encoding":
            codings += 1
            if value.lower() != b"chunked":
                raise Refused(501, "the only transfer coding known here is chunked")
        elif name == b"expect":
            expects = value.lower() == b"100-continue" and version == "1.1"
        elif name == b"connection":  # llhttp lets keep-alive beat close in HTTP/1.0
            close = close or value.lower() == b"close" or b"close" in _tokens(value)
        elif name == b"upgrade":
            upgrade = value.lower()
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise Refused(400, "a request has exactly one Host header")
    if lengths > 1 or codings > 1 or (lengths and codings):
        raise Refused(400, "a request has one Content-Length or one Transfer-Encoding")
    if codings and version == "1.0":
        raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")
    if codings:
        length = None
    return Framing(length, expects, close, upgrade)


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.lower().split(b",")]


class Head:
    """A request's head, read. All in it follows from its bytes, so one that comes again is not read again."""

    __slots__ = ("expects", "first", "headers", "is_plain", "keep_alive", "length", "method", "path", "query", "raw_path", "version")

    def __init__(self, method: str, target: Target, version: str, headers: RawHeaders, framed: Framing, *, keep_alive: bool) -> None:
        self.method, self.version = method, version
        self.path, self.raw_path, self.query, authority = target
        if authority is not None:  # it beats the Host header (RFC 9112, 3.2.2)
            headers = [(b"host", authority), *(header for header in headers if header[0] != b"host")]
        self.headers = headers
        self.first = dict(reversed(headers))  # the first of each name
        self.length = framed.length
        self.keep_alive = keep_alive and not framed.close
        self.expects = framed.expects and framed.length != 0
        # Its request is over after `length` bytes more, and leaves the connection as it was:
        self.is_plain = self.keep_alive and not self.expects and self.length is not None and version == "1.1"


WATCHED = frozenset((b"connection", b"host", b"content-length", b"transfer-encoding", b"expect", b"upgrade"))


# --- answers

_status_lines = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_names: dict[bytes, bytes] = {}  # header names met so far, as they begin a line
_date = (0, b"")
_json_head = (b"", b"")


def head(status: int, headers: RawHeaders) -> bytes:
    """The lines of a head without its end, for which the framing is still to come.

    Raises ValueError for a name that is none, and for a value that would end its line.
    """
    lines = [_status_lines.get(status) or b"HTTP/1.1 %d \r\n" % status, date_line()]
    for name, value in headers:
        lines.append((_names.get(name) or _known_name(name)) + value + b"\r\n")
    text = b"".join(lines)
    if text.count(b"\n") != len(lines) or text.count(b"\r") != len(lines) or b"\0" in text:
        raise ValueError("a header's value has a line break or NUL in it")
    return text


def json_head() -> bytes:
    """The head of the common answer, 200 with JSON, up to the value of its id; the length is still to come."""
    global _json_head
    date = date_line()
    if _json_head[0] is not date:
        _json_head = date, b"%b%bcontent-type: application/json\r\nx-fal-request-id: " % (_status_lines[200], date)
    return _json_head[1]


def _known_name(name: bytes) -> bytes:
    if not TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    if len(_names) > 1000:  # names that an app makes up without end
        _names.clear()
    begin = _names[name] = name + b": "
    return begin


def date_line() -> bytes:
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = now, b"date: " + formatdate(now, usegmt=True).encode() + b"\r\n"
    return _date[1]
