"""A request's body, whole or as a stream: within its limit, or refused with a reason.

A whole body is decompressed. A stream is taken as it is, for routes that write it to disk.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable

import anyio

from ..schemas.asgi import RawHeaders, Receive
from ..schemas.problems import HTTPError
from ..schemas.request import Request
from ..schemas.response import Response

LINGER_SECONDS = 2.0  # a number out of the air; a client that sends for longer may see a reset
CLOSE = {"connection": "close"}  # what we did not read must not be taken for the next request


class Disconnected(Exception):
    """The client left before its body was complete."""


def refuse_two_framings(request: Request) -> None:
    """Raise HTTPError 400 for both a length and a transfer coding (RFC 9112, 6.3), and close.

    Proxies differ on which counts, so what follows may be a part of this body or another request.
    """
    if request.header(b"transfer-encoding") is not None and request.header(b"content-length") is not None:
        raise HTTPError(400, "a request has Content-Length or Transfer-Encoding, not both", CLOSE)


def take_body(whole: bytes, request: Request, limit: int) -> bytes:
    """The same as `read_body` for a body that has arrived already."""
    decompress = _expected(request, limit)
    if len(whole) > limit:
        raise _too_large(limit)
    return decompress(whole) if decompress and whole else whole


async def read_body(receive: Receive, request: Request, limit: int) -> bytes:
    """Return the body, at most `limit` bytes before and after decompression.

    Raises HTTPError 413 before reading what is announced too large, 415 for an unknown
    content coding, 400 for a broken one, and Disconnected.
    """
    decompress = _expected(request, limit)
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        if part:
            parts.append(part)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return decompress(body) if decompress and body else body


class Stream:
    """A body part by part. Raises as `read_body` does, 415 for every content coding."""

    def __init__(self, receive: Receive, headers: RawHeaders, limit: int) -> None:
        length, coding = _framing(headers)
        if length > limit:
            raise _too_large(limit)
        if coding not in ("", "identity"):
            raise HTTPError(415, "this path takes bytes as they are; send them without Content-Encoding", CLOSE)
        self._receive, self._left, self._limit = receive, limit, limit
        self.ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            self._left -= len(part)
            if self._left < 0:
                raise _too_large(self._limit)
            self.ended = not message.get("more_body", False)
            if part:
                yield part


def lingering(response: Response, receive: Receive) -> Response:
    """`response` to a request whose body was not read to its end, as the last one on its connection.

    It is sent at once. Then the body is read on for a while and thrown away: closing while the
    client still sends would reset the connection, and it might never see why.
    """
    headers = {**response.headers, **CLOSE, "content-length": str(len(response.body))}
    return Response(status=response.status, headers=headers, media_type=response.media_type, stream=_Lingering(response.body, receive))


class _Lingering:
    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    def __aiter__(self) -> _Lingering:
        return self

    async def __anext__(self) -> bytes:
        if self._body is not None:
            body, self._body = self._body, None
            return body
        with anyio.move_on_after(LINGER_SECONDS):
            while (await self._receive()).get("more_body", False):
                pass
        raise StopAsyncIteration

    async def aclose(self) -> None: ...


def has_body(request: Request) -> bool:
    """Whether a body was announced that may not have come to its end yet."""
    if request.stream is not None and request.stream.ended:
        return False
    if request.shortcuts is not None and request.shortcuts.take_body() is not None:
        return False
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in request.scope["headers"])


def _framing(headers: RawHeaders) -> tuple[int, str]:
    """The announced length (0 when none is) and the content coding."""
    length, coding = 0, ""
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"content-encoding":
            coding = value.decode("latin-1").strip().lower()
    return length, coding


def _expected(request: Request, limit: int) -> Callable[[bytes], bytes] | None:
    """Refuse what is announced too large; return what decompresses the body, if anything must."""
    length, coding = request.first.get(b"content-length"), request.first.get(b"content-encoding")
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    return None if coding is None else _decompressor(coding.decode("latin-1").strip().lower(), limit)


def _decompressor(coding: str, limit: int) -> Callable[[bytes], bytes] | None:
    if coding in ("", "identity"):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return lambda body: _inflate(body, limit)
    if coding == "zstd":
        return lambda body: _unzstd(body, limit)
    raise HTTPError(415, f"the content coding {coding!r} is not known here; use gzip, zstd or none", CLOSE)


def _inflate(body: bytes, limit: int) -> bytes:
    decoder = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, told by the first bytes
    try:
        whole = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise HTTPError(400, f"the body is not valid gzip: {error}") from None
    if len(whole) > limit:
        raise _too_large(limit)
    if not decoder.eof:
        raise HTTPError(400, "the body is not valid gzip: it ends too early")
    return whole


def _unzstd(body: bytes, limit: int) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=128 * 1024 * 1024).stream_reader(body) as reader:
            whole = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise HTTPError(400, f"the body is not valid zstd: {error}") from None
    if len(whole) > limit:
        raise _too_large(limit)
    return whole


def _too_large(limit: int) -> HTTPError:
    return HTTPError(413, f"the body is larger than {limit} bytes, the limit of this server", CLOSE)
