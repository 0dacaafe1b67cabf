"""Where one request ends and the next begins: nobody gets a second request out of one (RFC 9112, 9110).

Each case is sent with a further request behind it, which asks to close. If the case is understood,
both are answered; if it is refused, that is the last answer, and what is behind it is never read.
"""

from __future__ import annotations

import pytest
from wire import Answers, Recorder, wire

LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SEEN = ("GET", "/last", b"")


def get(line: bytes = b"GET / HTTP/1.1", *headers: bytes, host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join((line, *((host,) if host else ()), *headers, b"", b""))


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return get(b"POST / HTTP/1.1", *headers) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def te(value: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + value, body=b"3\r\nabc\r\n0\r\n\r\n")


def cl(value: bytes) -> bytes:
    return post(b"Content-Length: " + value, body=b"abc")


GET = ("GET", "/", b"")
ABC = ("POST", "/", b"abc")
EMPTY = ("POST", "/", b"")

# What is understood, and what the app then sees.
UNDERSTOOD = {
    "a get": (get(), [GET]),
    "a length": (cl(b"3"), [ABC]),
    "a length of zero": (post(b"Content-Length: 0"), [EMPTY]),
    "a length with a leading zero": (cl(b"03"), [ABC]),
    "a length with white space around it (9110 5.5)": (cl(b" \t3 \t"), [ABC]),
    "a post without a body (9112 6.3.7)": (post(), [EMPTY]),
    "a get with a body (9110 9.3.1)": (get(b"GET / HTTP/1.1", b"Content-Length: 3") + b"abc", [("GET", "/", b"abc")]),
    "chunks": (te(b"chunked"), [ABC]),
    "chunked in another case (9112 7)": (te(b"ChUnKeD"), [ABC]),
    "many chunks": (chunked(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n"), [ABC]),
    "a chunk size with leading zeros": (chunked(b"0003\r\nabc\r\n000\r\n\r\n"), [ABC]),
    "a chunk size in capitals": (chunked(b"A\r\n0123456789\r\n0\r\n\r\n"), [("POST", "/", b"0123456789")]),
    "a chunk extension (9112 7.1.1)": (chunked(b'3;name=value;other="quoted"\r\nabc\r\n0\r\n\r\n'), [ABC]),
    "no chunk but the last": (chunked(b"0\r\n\r\n"), [EMPTY]),
    "trailers, which are dropped (9112 7.1.2)": (chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"), [ABC]),
    "a trailer that names a header of the request": (chunked(b"3\r\nabc\r\n0\r\nHost: evil\r\nAuthorization: x\r\n\r\n"), [ABC]),
    "a request inside a body": (post(b"Content-Length: %d" % len(LAST), body=LAST), [("POST", "/", LAST)]),
    "a request inside a chunk": (chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(LAST), LAST)), [("POST", "/", LAST)]),
    "empty lines before it (9112 2.2)": (b"\r\n\r\n" + get(), [GET]),
    "two in one packet (9112 9.3.2)": (get() + cl(b"3"), [GET, ABC]),
    "a header without a value": (get(b"GET / HTTP/1.1", b"X-Empty:"), [GET]),
    "a value with bytes above 127 (9110 5.5)": (get(b"GET / HTTP/1.1", b"X-Name: caf\xe9"), [GET]),
    "a tab within a value": (get(b"GET / HTTP/1.1", b"X-Tab: a\tb"), [GET]),
    "an empty Host (9112 3.2)": (get(host=b"Host:"), [GET]),
    "a Host with a port": (get(host=b"Host: example.com:8000"), [GET]),
    "a Host that is an IPv6 address": (get(host=b"Host: [::1]:8000"), [GET]),
    "an absolute target (9112 3.2.2)": (get(b"GET http://b/x?y HTTP/1.1"), [("GET", "/x", b"")]),
    "an absolute target without a path": (get(b"GET http://b HTTP/1.1"), [GET]),
    "an absolute target in capitals": (get(b"GET HTTP://b/x HTTP/1.1"), [("GET", "/x", b"")]),
    "OPTIONS * (9112 3.2.4)": (get(b"OPTIONS * HTTP/1.1"), [("OPTIONS", "*", b"")]),
    "a target with two slashes": (get(b"GET //b/c HTTP/1.1"), [("GET", "//b/c", b"")]),
    "a target with dots": (get(b"GET /../c HTTP/1.1"), [("GET", "/../c", b"")]),
    "a target with an escape": (get(b"GET /a%20b%2Fc HTTP/1.1"), [("GET", "/a b/c", b"")]),
    "an unknown upgrade (9110 7.8)": (get(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: foo"), [GET]),
    "an unknown upgrade with a body": (post(b"Connection: upgrade", b"Upgrade: foo", b"Content-Length: 3", body=b"abc"), [ABC]),
    "an unknown upgrade with chunks": (
        post(b"Connection: upgrade", b"Upgrade: foo", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), [ABC],
    ),
    "a WebSocket upgrade with a body": (post(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 3", body=b"abc"), [ABC]),
    "an upgrade that Connection does not name": (get(b"GET / HTTP/1.1", b"Upgrade: websocket"), [GET]),
    "an expectation that is not 100-continue": (post(b"Expect: tea", b"Content-Length: 3", body=b"abc"), [ABC]),
    "keep-alive in HTTP/1.0 (9112 C.2.2)": (get(b"GET / HTTP/1.0", b"Connection: keep-alive"), [GET]),
    "HTTP/1.0 without a Host": (get(b"GET / HTTP/1.0", b"Connection: keep-alive", host=b""), [GET]),
    "a method that few know": (get(b"REPORT / HTTP/1.1"), [("REPORT", "/", b"")]),
}

# What is refused, and with what.
REFUSED = {
    "a length and a coding (9112 6.3.3)": (post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "a coding and a length": (post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "two lengths (9112 6.3.5)": (post(b"Content-Length: 3", b"Content-Length: 4", body=b"abc"), 400),
    "one length twice": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (cl(b"3, 3"), 400),
    "an empty length": (cl(b""), 400),
    "a length with a plus": (cl(b"+3"), 400),
    "a negative length": (cl(b"-3"), 400),
    "a hexadecimal length": (cl(b"0x3"), 400),
    "a length with a space in it": (cl(b"3 3"), 400),
    "a length with an underscore": (cl(b"1_0"), 400),
    "a length with a point": (cl(b"3.0"), 400),
    "a length in other digits": (cl("٣".encode()), 400),
    "a length without end": (cl(b"9" * 40), 400),
    "a length of 2^64": (cl(b"18446744073709551616"), 400),
    "a folded length": (post(b"Content-Length:\r\n 3", body=b"abc"), 400),
    "an unknown coding (9112 6.1)": (te(b"gzip"), 501),
    "a coding before chunked": (te(b"gzip, chunked"), 501),
    "a coding after chunked": (te(b"chunked, gzip"), 400),
    "chunked twice (9112 7.1)": (te(b"chunked, chunked"), 400),
    "chunked in two headers": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "chunked, then identity": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 400),
    "identity, then chunked": (post(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 501),
    "identity": (te(b"identity"), 501),
    "chunked with a letter before": (te(b"xchunked"), 501),
    "chunked in quotes": (te(b'"chunked"'), 501),
    "chunked with a parameter": (te(b"chunked;q=1"), 501),
    "chunked with a comma before": (te(b", chunked"), 501),
    "chunked with a comma behind": (te(b"chunked,"), 400),
    "an empty coding": (te(b""), 400),
    "a vertical tab before chunked": (te(b"\x0bchunked"), 400),
    "a NUL behind chunked": (te(b"chunked\x00"), 400),
    "a folded coding": (post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"), 400),
    "a coding in HTTP/1.0 (9112 6.1)": (get(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked", b"Connection: keep-alive") + b"0\r\n\r\n", 400),
    "a space before the colon (9112 5.1)": (post(b"Content-Length : 3", body=b"abc"), 400),
    "a tab before the colon": (post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"), 400),
    "a space before the first header (9112 2.2)": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "a folded header (9112 5.2)": (get(b"GET / HTTP/1.1", b"X-Fold: a\r\n b"), 400),
    "a line without a colon": (get(b"GET / HTTP/1.1", b"nonsense"), 400),
    "an empty name": (get(b"GET / HTTP/1.1", b": value"), 400),
    "a name with a bracket": (get(b"GET / HTTP/1.1", b"x(y): 1"), 400),
    "a name with a byte above 127": (get(b"GET / HTTP/1.1", b"x\xffy: 1"), 400),
    "a NUL in a name": (get(b"GET / HTTP/1.1", b"x\x00y: 1"), 400),
    "a NUL in a value (9110 5.5)": (get(b"GET / HTTP/1.1", b"X: a\x00b"), 400),
    "a control character in a value": (get(b"GET / HTTP/1.1", b"X: a\x01b"), 400),
    "a bare CR in a value": (get(b"GET / HTTP/1.1", b"X: a\rContent-Length: 3"), 400),
    "a bare LF in a value": (get(b"GET / HTTP/1.1", b"X: a\nContent-Length: 3"), 400),
    "lines that end in LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "a head that ends in CR CR LF": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n", 400),
    "no Host (9112 3.2)": (get(host=b""), 400),
    "two Hosts": (get(b"GET / HTTP/1.1", b"Host: b"), 400),
    "one Host twice": (get(b"GET / HTTP/1.1", b"Host: a"), 400),
    "a Host with a space": (get(host=b"Host: a b"), 400),
    "a Host with a path": (get(host=b"Host: a/b"), 400),
    "a Host with a user": (get(host=b"Host: user@a"), 400),
    "a list of Hosts": (get(host=b"Host: a,b\\c"), 400),
    "a Host with a bad port": (get(host=b"Host: a:b"), 400),
    "a Host with an open bracket": (get(host=b"Host: [::1"), 400),
    "a target without a slash": (get(b"GET x HTTP/1.1"), 400),
    "no target": (get(b"GET HTTP/1.1"), 400),
    "a target with a space": (get(b"GET /a b HTTP/1.1"), 400),
    "a target with a fragment": (get(b"GET /a#b HTTP/1.1"), 400),
    "a target with a byte above 127": (get(b"GET /\xff HTTP/1.1"), 400),
    "a target with a NUL": (get(b"GET /\x00 HTTP/1.1"), 400),
    "a target with a tab": (get(b"GET /\tx HTTP/1.1"), 400),
    "GET *": (get(b"GET * HTTP/1.1"), 400),
    "an absolute target of another scheme": (get(b"GET ftp://b/ HTTP/1.1"), 400),
    "an absolute target without a host": (get(b"GET http:///x HTTP/1.1"), 400),
    "an absolute target with a user": (get(b"GET http://u@b/x HTTP/1.1"), 400),
    "CONNECT (9110 9.3.6)": (get(b"CONNECT a:443 HTTP/1.1"), 501),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/2 without its preface": (get(b"GET / HTTP/2.0"), 505),
    "HTTP/1.2": (get(b"GET / HTTP/1.2"), 400),
    "HTTP/1.10": (get(b"GET / HTTP/1.10"), 400),
    "a version in small letters": (get(b"GET / http/1.1"), 400),
    "a space after the version": (get(b"GET / HTTP/1.1 "), 400),
    "a space before the method": (get(b" GET / HTTP/1.1"), 400),
    "a method in small letters (9110 9.1)": (get(b"get / HTTP/1.1"), 400),
    "a method nobody knows": (get(b"BREW / HTTP/1.1"), 400),
    "TLS on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a chunk size with a sign": (chunked(b"+3\r\nabc\r\n0\r\n\r\n"), 400),
    "a negative chunk size": (chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk size with 0x": (chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk size with an underscore": (chunked(b"0_3\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk size with a space (9112 7.1.1)": (chunked(b"3 \r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk size over 64 bits": (chunked(b"1" + b"0" * 16 + b"3\r\nabc\r\n0\r\n\r\n"), 400),
    "an empty chunk size": (chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "chunks whose lines end in LF": (chunked(b"3\nabc\n0\n\n"), 400),
    "a chunk longer than its size": (chunked(b"3\r\nabcd\r\n0\r\n\r\n"), 400),
    "a chunk shorter than its size": (chunked(b"4\r\nabc\r\n0\r\n\r\n"), 400),
    "a chunk without its line end": (chunked(b"3\r\nabc0\r\n\r\n"), 400),
    "a bare LF in a chunk extension": (chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n"), 400),
    "a bare CR in a chunk extension": (chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), 400),
    "a NUL in a chunk extension": (chunked(b"3;\x00\r\nabc\r\n0\r\n\r\n"), 400),
    "a trailer without a colon": (chunked(b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n"), 400),
    "a length in a trailer": (chunked(b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n"), 400),
    "a folded trailer": (chunked(b"3\r\nabc\r\n0\r\nX: a\r\n b\r\n\r\n"), 400),
    "a huge header": (get(b"GET / HTTP/1.1", b"X: " + b"a" * 70_000), 431),
    "a huge target": (get(b"GET /" + b"a" * 70_000 + b" HTTP/1.1"), 431),
    "very many headers": (get(b"GET / HTTP/1.1", *[b"X: 1"] * 300), 431),
    "huge trailers": (chunked(b"3\r\nabc\r\n0\r\n" + b"X: 1234567890\r\n" * 10_000 + b"\r\n"), 431),
}


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


def test_there_are_enough_cases() -> None:
    assert len(UNDERSTOOD) + len(REFUSED) >= 140


@pytest.mark.parametrize("case", UNDERSTOOD)
async def test_a_request_that_is_understood_ends_where_it_ends(case: str) -> None:
    data, seen = UNDERSTOOD[case]
    app = Recorder()
    async with wire(app) as server:
        answers = Answers(await server.exchange(data + LAST))

    assert app.requests == [*seen, SEEN]
    assert answers.statuses == [200] * (len(seen) + 1)


@pytest.mark.parametrize("case", REFUSED)
async def test_a_request_that_is_refused_is_the_last_on_its_connection(case: str) -> None:
    data, status = REFUSED[case]
    app = Recorder()
    async with wire(app) as server:
        answers = Answers(await server.exchange(data + LAST))

    assert [request for request in app.requests if request[2] != b"(gone)"] == []
    assert answers.statuses == [status]
    assert answers.headers[0][b"connection"] == b"close"


@pytest.mark.parametrize("case", [*UNDERSTOOD, *REFUSED])
async def test_byte_by_byte_it_is_the_same(case: str) -> None:
    data = (UNDERSTOOD | REFUSED)[case][0]  # type: ignore[operator]
    if len(data) > 5_000:
        pytest.skip("too long for this")
    whole, parts = Recorder(), Recorder()
    async with wire(whole) as server:
        expected = Answers(await server.exchange(data + LAST))
    async with wire(parts) as server, server.client() as client:
        for byte in data + LAST:
            await client.send(bytes((byte,)))
        answers = Answers(await client.rest())

    assert answers.statuses == expected.statuses
    assert parts.requests == whole.requests
