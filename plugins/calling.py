"""Calling: an endpoint's method runs where it belongs, and what it returns becomes the answer.

Sync methods run in a thread of the lane and are encoded there, since a tensor may have to be
waited for; async ones run on the event loop while they hold a place. Iterators answer as
server-sent events: their first item is awaited before the head goes out, so that what fails at
once has a status of its own. Which of these an endpoint needs is settled at assembly.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import msgspec

from ..schemas.codec import Codec
from ..schemas.endpoint import Endpoint
from ..schemas.foreign import ForeignResponse, is_starlette, merge_starlette
from ..schemas.problems import ServerError
from ..schemas.request import Request
from ..schemas.response import EVENTS, JSON, Response
from ..schemas.service import Call
from .lanes import Lane

START_TIMEOUTS = (b"x-fal-request-start-timeout", b"x-fal-request-timeout")  # the first that is there counts
LEAST_START_SECONDS = 0.1  # contract 7.7

Method = Callable[..., Any]
Batches = AsyncGenerator[list[bytes], None]


def make_call(endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, timeout: float | None) -> Call:
    """The innermost call of `endpoint`: it waits for a place, runs `method` and gives its Response.

    `timeout` is in seconds for one run, waiting not counted.
    """
    answer = make_answer(endpoint, codec)
    if endpoint.streams:
        return _streamed(endpoint, method, codec, lane, timeout)
    if endpoint.is_async:

        async def on_the_loop(request: Request, arguments: dict[str, Any]) -> Response:
            place = await lane.hold(request, run_within=timeout, start_within=start_within(request))
            try:
                return answer(await method(**arguments), arguments)
            finally:
                lane.release(place)

        return on_the_loop

    async def in_the_lane(request: Request, arguments: dict[str, Any]) -> Response:
        def work() -> Response:
            return answer(method(**arguments), arguments)

        response: Response = await lane.run(work, request, run_within=timeout, start_within=start_within(request))
        return response

    return in_the_lane


def make_answer(endpoint: Endpoint, codec: Codec) -> Callable[[Any, dict[str, Any]], Response]:
    """What turns a returned value into a Response; `Response`s of the author pass as they are."""
    encode = codec.encode
    injected = [p.name for p in endpoint.parameters if p.source in ("response", "foreign")]

    def plain(value: Any, arguments: dict[str, Any]) -> Response:
        if isinstance(value, Response):
            return value
        if is_starlette(type(value), "Response"):
            return ForeignResponse(value)
        return Response(encode(value), 200, None, JSON)

    if not injected:
        return plain

    def with_injected(value: Any, arguments: dict[str, Any]) -> Response:
        response = plain(value, arguments)
        for given in (arguments[name] for name in injected):
            if isinstance(given, Response):
                response.headers |= given.headers
                response.status = given.status if given.status != 200 else response.status
            elif is_starlette(type(given), "Response"):
                merge_starlette(response, given)
            elif is_starlette(type(given), "BackgroundTasks") and given.tasks:
                response.after = given
        return response

    return with_injected


def start_within(request: Request) -> float | None:
    """Seconds in which the work must begin, if the caller says so (contract 7.7)."""
    for name in START_TIMEOUTS:
        if (value := request.header(name)) is not None:
            return _seconds(name, value)
    return None


def _seconds(name: bytes, value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not LEAST_START_SECONDS < seconds < 1e9:
        raise ServerError(400, f"{name.decode()} must be a number of seconds above 0.1, such as 30", "bad_request")
    return seconds


# --- streams


def _streamed(endpoint: Endpoint, method: Method, codec: Codec, lane: Lane, timeout: float | None) -> Call:
    def encode(item: Any) -> bytes:
        return event(codec.encode(item))

    async def call(request: Request, arguments: dict[str, Any]) -> Response:
        limits: dict[str, Any] = {"run_within": timeout, "start_within": start_within(request)}
        if endpoint.is_async:
            batches = _on_the_loop(lane, method, arguments, encode, request, limits)
        else:

            def items() -> Iterable[bytes]:
                return map_closing(encode, method(**arguments))

            batches = lane.iterate(items, request, **limits)
        return Response(status=200, headers={"cache-control": "no-cache"}, media_type=EVENTS, stream=await begun(batches))

    return call


async def _on_the_loop(
    lane: Lane, method: Method, arguments: dict[str, Any], encode: Callable[[Any], bytes], request: Request, limits: dict[str, Any]
) -> Batches:
    place = await lane.hold(request, **limits)
    try:
        found = method(**arguments)
        if inspect.isawaitable(found):
            found = await found
        async with aclosing(found):
            async for item in found:
                yield [encode(item)]
    finally:
        lane.release(place)


def map_closing(function: Callable[[Any], bytes], items: Any) -> Iterable[bytes]:
    """`map` that closes `items` when it is closed itself."""
    try:
        for item in items:
            yield function(item)
    finally:
        if (close := getattr(items, "close", None)) is not None:
            close()


async def begun(batches: Batches) -> Begun:
    """The stream, its first part there already; what fails before it is raised here."""
    try:
        return Begun(await anext(batches, []), batches)
    except BaseException:
        await batches.aclose()
        raise


class Begun:
    """The bytes of a stream that has begun. Unlike a generator it can be closed before it is read."""

    def __init__(self, first: list[bytes], batches: Batches) -> None:
        self._first, self._batches = first, batches

    def __aiter__(self) -> Begun:
        return self

    async def __anext__(self) -> bytes:
        if first := self._first:
            self._first = []
            return b"".join(first)
        return b"".join(await anext(self._batches))

    async def aclose(self) -> None:
        await self._batches.aclose()


def event(encoded: bytes) -> bytes:
    """One server-sent event around a JSON text. ASCII only: the JavaScript client cuts characters apart."""
    if not encoded.isascii():
        encoded = escaped(encoded)
    return b"data: " + encoded + b"\n\n"


def escaped(encoded: bytes) -> bytes:
    """The same JSON with all that is not ASCII as \\u escapes."""
    text = encoded.decode()
    return "".join(c if c < "\x80" else _escape(c) for c in text).encode("ascii")


def _escape(character: str) -> str:
    point = ord(character)
    if point < 0x10000:
        return f"\\u{point:04x}"
    point -= 0x10000
    return f"\\u{0xD800 + (point >> 10):04x}\\u{0xDC00 + (point & 0x3FF):04x}"


def failed_event(problem: Any) -> bytes:
    """The last event of a stream that failed, in the shape of an error body."""
    return event(msgspec.json.encode(problem))
