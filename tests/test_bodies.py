"""Bodies are read whole, within their limit (behaviour 13), or refused with a reason."""

import gzip
from collections.abc import Iterator

import pytest
import zstandard
from runner.plugins.bodies import Disconnected, read_body, refuse_two_framings, take_body
from runner.schemas.asgi import Message, Receive

import runner

LIMIT = 1000


def arriving(*messages: Message) -> Receive:
    left: Iterator[Message] = iter(messages)

    async def receive() -> Message:
        return next(left)

    return receive


def whole(body: bytes) -> Receive:
    return arriving({"type": "http.request", "body": body})


def with_headers(headers: list[tuple[bytes, bytes]]) -> runner.Request:
    return runner.Request(scope={"type": "http", "headers": headers})


async def test_a_body_in_parts_arrives_joined() -> None:
    receive = arriving(
        {"type": "http.request", "body": b"one ", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
    )

    assert await read_body(receive, with_headers([]), LIMIT) == b"one two"


async def test_a_body_announced_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(runner.HTTPError) as refused:
        await read_body(arriving(), with_headers([(b"content-length", b"1001")]), LIMIT)

    assert refused.value.status == 413
    assert "1000 bytes" in refused.value.detail


async def test_a_body_that_grows_too_large_is_refused() -> None:
    with pytest.raises(runner.HTTPError) as refused:
        await read_body(whole(b"x" * (LIMIT + 1)), with_headers([]), LIMIT)

    assert refused.value.status == 413


@pytest.mark.parametrize(("coding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstandard.compress)])
async def test_compressed_bodies_arrive_decompressed_and_bombs_are_refused(coding, compress) -> None:  # type: ignore[no-untyped-def]
    headers = [(b"content-encoding", coding)]

    assert await read_body(whole(compress(b"x" * LIMIT)), with_headers(headers), LIMIT) == b"x" * LIMIT
    with pytest.raises(runner.HTTPError) as refused:
        await read_body(whole(compress(b"x" * 1_000_000)), with_headers(headers), LIMIT * 100)
    assert refused.value.status == 413


@pytest.mark.parametrize("coding", [b"gzip", b"zstd"])
@pytest.mark.parametrize("cut", [True, False])
async def test_a_broken_coding_is_the_callers_error(coding: bytes, cut: bool) -> None:
    compressed = (gzip.compress if coding == b"gzip" else zstandard.compress)(b"x" * LIMIT)
    body = compressed[:-5] if cut and coding == b"gzip" else b"not compressed at all"

    with pytest.raises(runner.HTTPError) as refused:
        await read_body(whole(body), with_headers([(b"content-encoding", coding)]), LIMIT)

    assert refused.value.status == 400
    assert "not valid" in refused.value.detail


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-encoding", b"br")], 415),
        ([(b"content-encoding", b"gzip")], 400),
        ([(b"content-length", b"1001")], 413),
    ],
)
async def test_what_cannot_be_decoded_or_is_too_large_is_refused_whether_it_has_arrived_or_not(
    headers: list[tuple[bytes, bytes]], status: int
) -> None:
    with pytest.raises(runner.HTTPError) as refused:
        await read_body(whole(b"abc"), with_headers(headers), LIMIT)
    with pytest.raises(runner.HTTPError) as refused_at_once:
        take_body(b"abc", with_headers(headers), LIMIT)

    assert refused.value.status == refused_at_once.value.status == status


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_with_a_length_and_a_coding_is_refused_and_its_connection_closed(method: str) -> None:
    headers = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")]

    with pytest.raises(runner.HTTPError) as refused:
        refuse_two_framings(runner.Request(scope={"method": method, "headers": headers}))

    assert refused.value.status == 400
    assert refused.value.headers["connection"] == "close"


async def test_a_caller_who_leaves_before_the_end_is_told_apart() -> None:
    receive = arriving({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"})

    with pytest.raises(Disconnected):
        await read_body(receive, with_headers([]), LIMIT)
