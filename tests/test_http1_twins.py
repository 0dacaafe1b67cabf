"""The same bytes on the fast lane and on stock hypercorn: what the app received must not differ.

The lane may refuse what h11 lets pass, and then the app has received less. It must never receive
a request that hypercorn does not see, nor another one in its place. Neither reads from a socket,
so that nothing here depends on time.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runner.plugins.http1 import Server
from wire import Recorder

STEPS = 60  # of the loop, after which both have done all they can with what they were given

Received = list[tuple[str, str, bytes]]

LINES = [b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"POST /b?c=d HTTP/1.0", b"HEAD / HTTP/1.1", b"OPTIONS /x HTTP/1.1", b"PUT /%41 HTTP/1.1"]
PLAIN = [b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close", b"Connection: keep-alive, close", b"X: y", b"X:", b"Expect: 100-continue"]
ODD = [
    b"Host: b", b"Content-Length: 4", b"Content-Length: 0", b"content-length: 3, 3", b"Content-Length : 3", b"Content-Length:\t3 ",
    b"Content-Length: +3", b"Content_Length: 3", b"transfer-encoding: Chunked", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:\r\n chunked", b"Transfer_Encoding: chunked",
    b"Connection: Content-Length", b"X: \r\n folded", b"X: a\x00",
]  # fmt: skip
# None of these leaves an empty line behind, whatever part of it is taken for the body: h11 refuses
# one before a request, which RFC 9112 (2.2) asks to be passed over.
BODIES = [b"", b"abc", b"abcd", b"3\r\nabc\r\n0\r\n\r\n", b"000;a\r\n\r\n", b"3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n", b"3\nabc\n0\n\n", b"abcGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"]
SLIPS = [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b",", b";", b"0", b"3", b"a", b"\xff", b""]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request: sound, or with an odd header, and with a body that need not fit its head."""
    headers = draw(st.lists(st.sampled_from(PLAIN), max_size=2, unique=True))
    if draw(st.integers(0, 3)) == 0:
        headers.insert(0, draw(st.sampled_from(ODD)))
    body = draw(st.sampled_from(BODIES))
    if draw(st.booleans()):
        body = BODIES[3] if PLAIN[1] in headers else BODIES[1] if PLAIN[0] in headers else b""
    return b"\r\n".join((draw(st.sampled_from(LINES)), b"Host: a", *headers, b"", b"")) + body


@st.composite
def streams(draw: st.DrawFn, slips: int = 0) -> bytes:
    """One to three requests, with so many slips of the hand in them."""
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(slips):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(SLIPS)) + data[at + draw(st.integers(0, 1)) :]
    return data + LAST


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n"


class Sink:
    """A transport, or a stream's writer, that nobody reads. It says that it cannot end half, so nothing lingers."""

    def __init__(self) -> None:
        self.closed = False
        self.written = b""

    def get_extra_info(self, name: str) -> Any:
        if name == "socket":
            return self
        return None if name == "ssl_object" else ("127.0.0.1", 1)

    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    getsockname = getpeername

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError

    async def drain(self) -> None: ...
    async def wait_closed(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


def complete(app: Recorder) -> Received:
    return [request for request in app.requests if request[2] != b"(gone)"]


async def on_the_lane(data: bytes) -> Received:
    app, sink = Recorder(), Sink()
    left: list[bytes] = []
    connection = Server().connect(app, lambda transport, begin: left.append(begin))
    connection.connection_made(sink)
    connection.data_received(data)
    for _ in range(STEPS):
        await checkpoint()
    found = complete(app)
    connection.connection_lost(None)
    await checkpoint()
    return found


async def on_hypercorn(data: bytes) -> Received:
    app, sink, config, loop = Recorder(), Sink(), Config(), asyncio.get_running_loop()
    config.accesslog = config.errorlog = None
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    any_app: Any = app
    any_sink: Any = sink
    server = TCPServer(wrap_app(any_app, 1000, "asgi"), loop, config, WorkerContext(None), {}, reader, any_sink)
    task = loop.create_task(server.run())
    for _ in range(STEPS):
        await checkpoint()
    found = complete(app)
    reader.feed_eof()
    for _ in range(STEPS):
        await checkpoint()
    task.cancel()
    await asyncio.wait([task])
    return found


fuzzed = settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def on_both(data: bytes) -> tuple[Received, Received]:
    async def both() -> tuple[Received, Received]:
        return await on_the_lane(data), await on_hypercorn(data)

    return asyncio.run(both())


@fuzzed
@given(streams())
def test_the_app_receives_no_request_that_hypercorn_does_not_see(data: bytes) -> None:
    ours, theirs = on_both(data)

    assert ours == theirs[: len(ours)]


@fuzzed
@given(streams(slips=2))
def test_with_slips_of_the_hand_one_may_stop_earlier_but_none_sees_another_request(data: bytes) -> None:
    ours, theirs = on_both(data)

    agreed = min(len(ours), len(theirs))
    assert ours[:agreed] == theirs[:agreed]


@pytest.mark.parametrize("line", [b"GET  / HTTP/1.1", b"GET / RTSP/1.0"])
async def test_where_llhttp_is_kinder_than_h11_the_request_ends_at_the_same_place(line: bytes) -> None:
    data = line + b"\r\nHost: a\r\nConnection: keep-alive\r\n\r\nGET /last HTTP/1.1\r\nHost: a\r\n\r\n"

    assert await on_the_lane(data) == [("GET", "/", b""), ("GET", "/last", b"")]
    assert await on_hypercorn(data) == []


async def test_both_understand_the_same_plain_requests() -> None:
    data = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /last HTTP/1.1\r\nHost: a\r\n\r\n"

    assert await on_the_lane(data) == await on_hypercorn(data) == [("POST", "/a", b"abc"), ("GET", "/last", b"")]
