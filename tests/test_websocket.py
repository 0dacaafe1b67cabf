"""WebSockets from bytes to ASGI: RFC 6455 kept, and what breaks it told by the right code."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runner.plugins.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Broken,
    Frames,
    closing,
    framed,
    head_of,
    read_handshake,
    scope_of,
    unmasked,
)
from serving import Runner, serving

APPS = Path(__file__).parent / "apps"
HANDSHAKE = (
    b"GET /ws?q=1 HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


def sent(kind: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x01\x02\xfe\xff") -> bytes:
    """A frame as a client sends it."""
    plain = framed(kind, b"")[:1] if final else bytes((kind,))
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else bytes((0xFE,)) + size.to_bytes(2, "big") if size < 65536 else bytes((0xFF,)) + size.to_bytes(8, "big")
    return plain + length + mask + unmasked(payload, mask)


def messages(data: bytes, cuts: list[int] | None = None, longest: int = 1_000_000) -> list[tuple[int, bytes]]:
    frames, got, at = Frames(longest), [], 0
    for cut in [*(cuts or []), len(data)]:
        frames.feed(data[at:cut])
        at = max(at, cut)
        while (found := frames.next()) is not None:
            got.append(found)
    return got


# --- frames


@given(st.lists(st.tuples(st.sampled_from([TEXT, BINARY]), st.binary(max_size=300)), max_size=8), st.data())
def test_messages_come_out_as_they_went_in_however_tcp_cuts_them(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    whole = b"".join(sent(kind, payload) for kind, payload in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))

    assert messages(whole, cuts) == parts


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_001])
def test_every_form_of_length_is_read_and_written(size: int) -> None:
    payload = os.urandom(size)

    assert messages(sent(BINARY, payload)) == [(BINARY, payload)]
    assert framed(BINARY, payload).endswith(payload)
    assert len(framed(BINARY, payload)) - size == (2 if size < 126 else 4 if size < 65536 else 10)


def test_fragments_are_put_together_and_control_frames_pass_between_them() -> None:
    whole = sent(TEXT, b"a", final=False) + sent(PING, b"?") + sent(CONTINUATION, b"b", final=False) + sent(CONTINUATION, b"c")

    assert messages(whole) == [(PING, b"?"), (TEXT, b"abc")]


@pytest.mark.parametrize(
    "data",
    [
        framed(TEXT, b"not masked"),
        b"\xc1" + sent(TEXT, b"x")[1:],  # a reserved bit
        sent(3, b""),  # a kind that is not defined
        sent(CONTINUATION, b"of nothing"),
        sent(TEXT, b"a", final=False) + sent(TEXT, b"b"),
        sent(PING, b"a", final=False),
        sent(PING, b"x" * 126),
    ],
)
def test_what_breaks_the_protocol_is_1002(data: bytes) -> None:
    with pytest.raises(Broken) as broken:
        messages(data)

    assert broken.value.code == 1002


def test_a_message_over_the_limit_is_1009_before_it_is_read_in_one_piece_or_many() -> None:
    for data in (sent(BINARY, b"x" * 101)[:14], sent(BINARY, b"x" * 60, final=False) + sent(CONTINUATION, b"x" * 60)):
        with pytest.raises(Broken) as broken:
            messages(data, longest=100)
        assert broken.value.code == 1009


@pytest.mark.parametrize(("payload", "code"), [(b"", 1005), (b"\x03\xe8bye", 1000), (b"\x0f\xa1", 4001)])
def test_a_close_frame_has_a_code_and_a_reason(payload: bytes, code: int) -> None:
    assert closing(payload) == (code, payload[2:].decode())


@pytest.mark.parametrize(("payload", "code"), [(b"\x03", 1002), (b"\x03\xec", 1002), (b"\x03\xed", 1002), (b"\x00\x01", 1002), (b"\x03\xe8\xff", 1007)])
def test_a_close_frame_that_makes_no_sense_is_refused(payload: bytes, code: int) -> None:
    with pytest.raises(Broken) as broken:
        closing(payload)

    assert broken.value.code == code


# --- the handshake


def test_a_handshake_becomes_a_scope() -> None:
    found = read_handshake(HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: a, b\r\n\r\n") + b"rest")

    assert found is not None
    request, rest = found
    scope = scope_of(request, secure=True, client=("127.0.0.1", 1), server=None)
    assert (scope["path"], scope["query_string"], scope["scheme"]) == ("/ws", b"q=1", "wss")
    assert (scope["subprotocols"], rest) == (["a", "b"], b"rest")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"upgrade: websocket", b"upgrade: h2c"),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"version: 13", b"version: 8"),
        (b"key: dGhlIHNhbXBsZSBub25jZQ==", b"key: short"),
        (b"host: x\r\n", b""),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n"),
    ],
)
def test_what_is_no_whole_handshake_is_left_to_the_http_server(old: bytes, new: bytes) -> None:
    assert read_handshake(HANDSHAKE.replace(old, new)) is None


def test_a_header_cannot_smuggle_a_line() -> None:
    with pytest.raises(ValueError, match="line break"):
        head_of(101, [(b"x", b"a\r\nset-cookie: b")])


# --- over the wire


@pytest.fixture(scope="module")
def talks() -> Iterator[Runner]:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner:
        yield runner


@contextmanager
def opened(runner: Runner, *pieces: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", runner.port)) as connection:
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        yield connection


def head(connection: socket.socket) -> h11.InformationalResponse | h11.Response:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x"), ("upgrade", "websocket"), ("connection", "upgrade")]))
    while True:
        client.receive_data(connection.recv(1))
        event = client.next_event()
        if isinstance(event, h11.InformationalResponse | h11.Response):
            return event


def frame(connection: socket.socket) -> tuple[int, bytes]:
    first, size = connection.recv(1)[0], connection.recv(1)[0]
    return first & 0x0F, connection.recv(size, socket.MSG_WAITALL)


def test_frames_that_come_with_the_handshake_are_not_lost(talks: Runner) -> None:
    with opened(talks, HANDSHAKE + sent(TEXT, b"early")) as connection:
        answer = head(connection)
        greeting, early = frame(connection), frame(connection)

    assert answer.status_code == 101
    assert dict(answer.headers)[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert (greeting[0], early) == (TEXT, (BINARY, b"EARLY"))


def test_a_handshake_in_pieces_opens_a_socket_too(talks: Runner) -> None:
    with opened(talks, HANDSHAKE[:40]) as connection:
        talks.get("/health")  # the server has read what was there
        connection.sendall(HANDSHAKE[40:])
        assert head(connection).status_code == 101
        assert frame(connection)[0] == TEXT
        connection.sendall(sent(TEXT, b"piecemeal"))
        assert frame(connection) == (BINARY, b"PIECEMEAL")


def test_a_ping_is_answered_and_a_close_is_echoed(talks: Runner) -> None:
    with opened(talks, HANDSHAKE) as connection:
        head(connection)
        frame(connection)
        connection.sendall(sent(PING, b"there?") + sent(CLOSE, b"\x0f\xa1enough"))

        assert frame(connection) == (PONG, b"there?")
        assert frame(connection) == (CLOSE, b"\x0f\xa1")
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (framed(TEXT, b"not masked"), 1002),
        (sent(TEXT, b"\xff"), 1007),
        (sent(CLOSE, b"\x03\xec"), 1002),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_and_let_go(talks: Runner, data: bytes, code: int) -> None:
    with opened(talks, HANDSHAKE) as connection:
        head(connection)
        frame(connection)
        connection.sendall(data)

        assert frame(connection) == (CLOSE, code.to_bytes(2, "big"))
        assert connection.recv(1) == b""


def test_a_server_that_stops_closes_connections_that_never_said_anything() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner, opened(runner) as silent:
        runner.get("/health")
        runner.signal()

        assert silent.recv(1) == b""
        assert runner.wait() == 0
