"""Realtime: a method talks to one WebSocket, message by message, in one of four modes.

What the method takes and gives says which (contract 6): one value for one value, one value for an
iterator of them, an iterator for a value, or both ways. Messages are msgpack, or JSON for clients
who send text. A session ends with a frame that says why, and then with code 1000.

A call holds a place in the lane, as a request does: in the first two modes for that one call, so
that sessions share the places in turns; in the others for as long as the call lasts, which is as
long as its client talks. A raw socket endpoint holds one from accept to close. When the client
leaves, what still runs for it is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, Protocol

import anyio
import msgspec

from ..schemas.asgi import Message, Receive, Scope, Send
from ..schemas.codec import Codec
from ..schemas.endpoint import Endpoint
from ..schemas.foreign import is_starlette
from ..schemas.problems import Fault, InvalidInput
from ..schemas.request import Request
from ..schemas.response import Response
from ..schemas.websocket import WebSocket, WebSocketDisconnect
from .lanes import Lane
from .streaming import Pipe, Source, run_in_thread

WAITING_BYTES = 2  # times the largest message: more input than that is not read yet
LEAVE_SECONDS = 0.5  # for a raw endpoint to notice by itself that its client left
TOO_BIG, FAILED_CODE, STOPPED_CODE = 1009, 1011, 1012

Frame = bytes | str
Method = Callable[..., Any]


class Wire:
    """One socket as ASGI has it, and what has crossed it. Owned by the request's task."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self._id = (b"x-fal-request-id", request_id.encode("latin-1"))
        self.endpoint: Endpoint | None = None
        self.route = ""
        self.accepted = self.closed = self.gone = False
        self.status = 0  # of the handshake; once a session fails, that of its error
        self.error_type: str | None = None
        self.bytes_out = self.items = 0
        self.why: str | None = None  # it ended: completed, idle, client, failed, or why it was cancelled

    async def send(self, message: Message) -> None:
        if self.closed or self.gone:
            return
        if message["type"] == "websocket.send":
            self.items += 1
            self.bytes_out += len(message.get("bytes") or message.get("text") or "")
        elif message["type"] == "websocket.accept":
            self.accepted, self.status = True, 101
            message = {**message, "headers": [*message.get("headers", ()), self._id]}
        elif message["type"] == "websocket.close":
            self.closed = True
            self.status = self.status or 403
        await self._send(message)

    async def frame(self, frame: Frame) -> None:
        await self.send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})

    async def last_words(self, error: str, reason: str) -> None:
        """Say in a text frame why it ends, and close."""
        if not self.gone and not self.closed:
            words = {"type": "x-fal-error", "error": error, "reason": reason}
            await self._send({"type": "websocket.send", "text": msgspec.json.encode(words).decode()})
        await self.close()

    async def close(self, code: int = 1000) -> None:
        await self.send({"type": "websocket.close", "code": code, "reason": ""})

    async def fail(self, response: Response, reason: str, why: str = "failed") -> None:
        """End a session that failed or was stopped: a frame with the reason, or for raw sockets a code."""
        if not self.accepted:
            return await self.refuse(response)
        self.status, self.why = response.status, why
        self.error_type = response.headers.get("x-fal-error-type")
        if self.endpoint is not None and self.endpoint.mark.realtime_mode is not None:
            await self.last_words("INTERNAL_ERROR", reason)
        else:
            await self.close(STOPPED_CODE if why == "draining" else FAILED_CODE)

    async def refuse(self, response: Response) -> None:
        """Answer the handshake by an HTTP error, where the server can; who brought a token reads it in the socket."""
        self.status = response.status
        if response.status == 401 and b"fal_jwt_token=" in self.scope.get("query_string", b""):
            await self._send({"type": "websocket.accept"})
            await self._send({"type": "websocket.send", "text": '{"status":"error","error":"Unauthorized"}'})
            await self._send({"type": "websocket.close", "code": 1008, "reason": ""})
        elif "websocket.http.response" in self.scope.get("extensions", {}) and response.status not in (307, 403, 404):
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
            headers += [(b"content-type", (response.media_type or "").encode("latin-1")), self._id]
            await self._send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
            await self._send({"type": "websocket.http.response.body", "body": response.body})
        else:
            self.status = 403  # all that a close before accept can say
            await self._send({"type": "websocket.close", "code": 1008, "reason": ""})
        self.closed = True


class Talk(Protocol):
    """One accepted socket, being served."""

    async def run(self) -> str:
        """Serve it to its end and say why it ended. Raises what the author's method raises."""
        ...

    def wind_up(self) -> None:
        """The server stops: finish what came, take no more."""
        ...


Hangup = Callable[[], None]
Open = Callable[[Request, Wire, Hangup], Talk]


def make_talk(
    endpoint: Endpoint, method: Method, codec: Callable[[Any], Codec], lane: Lane, timeout: float | None, limits: Limits
) -> Open:
    """What serves a socket of `endpoint`, settled at assembly."""
    if endpoint.mark.realtime_mode is None:
        kind = endpoint.parameters[0].type
        return lambda request, wire, hangup: Raw(kind, method, lane, request, wire, hangup)
    plan = Plan(endpoint, method, codec, lane, timeout, limits)
    return lambda request, wire, hangup: Session(plan, request, wire, hangup)


class Limits(msgspec.Struct, frozen=True):
    message_bytes: int
    messages_per_second: int  # of one socket; what comes faster waits. 0: no limit


# --- frames


class Plan:
    """A realtime endpoint: its types, its limits, how its frames are read and written."""

    def __init__(
        self, endpoint: Endpoint, method: Method, codec: Callable[[Any], Codec], lane: Lane, timeout: float | None, limits: Limits
    ) -> None:
        mark = endpoint.mark
        self.method, self.lane, self.limits, self.is_async = method, lane, limits, endpoint.is_async
        self.mode, self.batch_size, self.buffering = mark.realtime_mode, mark.max_batch_size, mark.buffering
        self.session_timeout, self.timeout = mark.session_timeout, timeout
        taken = mark.input_modal or (endpoint.parameters[0].type if endpoint.parameters else Any)
        self.takes_nothing = not endpoint.parameters
        self.convert = None if taken is Any else codec(taken).convert
        self._encode, self._decode = mark.encode_message, mark.decode_message

    def read(self, frame: Frame) -> Any:
        """A client's message as the method wants it. Raises InvalidInput, or what the author's decoder raises."""
        if self._decode is not None:
            value = self._decode(frame.encode() if isinstance(frame, str) else frame)
        elif isinstance(frame, str):
            value = decoded(msgspec.json.decode, frame, "JSON")
        else:
            value = decoded(msgspec.msgpack.decode, frame, "msgpack")
        return value if self.convert is None else self.convert(value)

    def write(self, output: Any, as_text: bool) -> Frame:
        """What the method gave as a frame; JSON text for clients who talk so."""
        plain = as_mapping(output)
        if self._encode is not None:
            return self._encode(plain)
        if as_text:
            return msgspec.json.encode(plain, enc_hook=to_plain).decode()
        return msgspec.msgpack.encode(plain, enc_hook=to_plain)


def decoded(decode: Callable[[Any], Any], frame: Frame, format: str) -> Any:
    try:
        return decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput([Fault(type="message_invalid", loc=("message",), msg=f"not {format}: {error}")]) from None


def as_mapping(output: Any) -> Any:
    """`output` if a message can be made of it: a dict, a Struct, a dataclass, or what has a `.dict()`."""
    if isinstance(output, dict | msgspec.Struct) or (is_dataclass(output) and not isinstance(output, type)):
        return output
    if isinstance(output, Mapping):
        return dict(output)
    for name in ("model_dump", "dict"):
        if callable(dump := getattr(output, name, None)):
            return dump()
    raise TypeError(f"a realtime method gives dicts or models, not {type(output).__name__}")


def to_plain(value: Any) -> Any:
    """What msgspec does not know, inside a message: models, tensors, arrays, and types with `__to_json__`."""
    if hasattr(value, "__to_json__"):
        return value.__to_json__()
    for name in ("model_dump", "tolist"):
        if callable(dump := getattr(value, name, None)):
            return dump()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no form in a message")


# --- a session


class Inputs:
    """Frames that came and were not taken yet: no more than `longest`, of which the oldest go first."""

    def __init__(self, longest: int | None, most_bytes: int) -> None:
        self._longest, self._most_bytes = longest, most_bytes
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._ended = False
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    async def add(self, frame: Frame) -> None:
        """Take `frame` in; wait while what nobody takes grows too large."""
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._longest is not None and len(self._frames) > self._longest:
            self.pop()
        _wake(self._news)
        while self._bytes > self._most_bytes:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        _wake(self._news)

    async def any(self) -> bool:
        """Wait for a frame; False when no more will come."""
        while not self._frames and not self._ended:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return bool(self._frames)

    def pop(self) -> Frame:
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        if self._bytes <= self._most_bytes:
            _wake(self._room)
        return frame


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Session:
    """One client of a realtime endpoint."""

    def __init__(self, plan: Plan, request: Request, wire: Wire, hangup: Hangup) -> None:
        self.plan, self.request, self.wire, self._hangup = plan, request, wire, hangup
        self._inputs = Inputs(buffering(plan, request), WAITING_BYTES * plan.limits.message_bytes)
        self._ahead: list[Any] = []  # an input that was read for a batch and did not fit
        self._as_text = False  # the client's last message was text
        self._why = "completed"
        self._scope = anyio.CancelScope()

    async def run(self) -> str:
        await self.wire.receive()
        await self.wire.send({"type": "websocket.accept"})
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            with self._scope:
                await getattr(self, f"_{self.plan.mode}")()
        except WebSocketDisconnect:
            self._why = "client"
        finally:
            reader.cancel()
        if self._why == "client":
            await self.wire.close()
        else:  # also when all is done: clients know no other word for it
            await self.wire.last_words("TIMEOUT", "no inputs, reconnect when needed!")
        return self._why

    def wind_up(self) -> None:
        self._end("draining")

    def _end(self, why: str) -> None:
        self._why = why
        self._inputs.end()

    # --- what comes

    async def _read(self) -> None:
        """Take frames in until the client leaves, or is silent for too long."""
        limits, idle = self.plan.limits, self.plan.session_timeout
        pace = Pace(limits.messages_per_second)
        while True:
            try:
                if idle is None:
                    message = await self.wire.receive()
                else:
                    async with asyncio.timeout(idle):
                        message = await self.wire.receive()
            except TimeoutError:
                self._scope.deadline = anyio.current_time() + (idle or 0)
                return self._end("idle")
            if message["type"] == "websocket.disconnect":
                self.wire.gone = True
                return self._hangup()
            frame: Frame = message["text"] if message.get("bytes") is None else message["bytes"]
            if len(frame) > limits.message_bytes:
                await self.wire.close(TOO_BIG)
                return self._hangup()
            await self._inputs.add(frame)
            if (wait := pace.wait()) > 0:
                await asyncio.sleep(wait)

    def _next(self) -> Any:
        if self._ahead:
            return self._ahead.pop()
        frame = self._inputs.pop()
        self._as_text = isinstance(frame, str)
        return self.plan.read(frame)

    async def _stream(self) -> AsyncIterator[Any]:
        while await self._inputs.any():
            yield self._next()

    # --- the four modes

    async def _unary(self) -> None:
        while self._ahead or await self._inputs.any():
            await self.wire.frame(await self._call(self._batch()))

    def _batch(self) -> list[Any]:
        first = self._next()
        batch, can_batch = [first], getattr(first, "can_batch", None)
        while len(batch) < self.plan.batch_size and len(self._inputs):
            following = self._next()
            if can_batch is not None and not can_batch(following, len(batch)):
                self._ahead.append(following)
                break
            batch.append(following)
        return batch

    async def _call(self, batch: list[Any]) -> Frame:
        """One call of the method, in the lane, its answer encoded where it was made."""
        plan, as_text = self.plan, self._as_text
        arguments = [] if plan.takes_nothing else batch
        if not plan.is_async:
            work: Callable[[], Frame] = lambda: plan.write(plan.method(*arguments), as_text)  # noqa: E731
            frame: Frame = await plan.lane.run(work, self.request, run_within=plan.timeout)
            return frame
        with await plan.lane.hold(self.request, run_within=plan.timeout):
            return plan.write(await plan.method(*arguments), as_text)

    async def _server_streaming(self) -> None:
        if not (self.plan.takes_nothing or await self._inputs.any()):
            return
        arguments = [] if self.plan.takes_nothing else [self._next()]
        if self.plan.is_async:
            await self._held(lambda: self.plan.method(*arguments))
        else:
            await self._from_thread(lambda: self.plan.method(*arguments))

    async def _client_streaming(self) -> None:
        with await self.plan.lane.hold(self.request):
            output = await self.plan.method(self._stream())
        await self.wire.frame(self.plan.write(output, self._as_text))

    async def _bidi(self) -> None:
        await self._held(lambda: self.plan.method(self._stream()))

    async def _held(self, make: Callable[[], Any]) -> None:
        """Send what an async iterator gives, while holding a place."""
        streams_out = self.plan.mode == "server_streaming"
        with await self.plan.lane.hold(self.request, run_within=self.plan.timeout if streams_out else None):
            items = make()
            if not hasattr(items, "__aiter__"):
                items = await items
            try:
                async for item in items:
                    await self.wire.frame(self.plan.write(item, self._as_text))
            finally:
                if (close := getattr(items, "aclose", None)) is not None:
                    with anyio.CancelScope(shield=True):
                        await close()

    async def _from_thread(self, make: Callable[[], Any]) -> None:
        """Send what a sync iterator gives, which runs to its end in a thread of the lane."""
        pipe, as_text = Pipe(), self._as_text

        def work() -> Response:
            pipe.attach(self.request.place)
            source = Source(make(), lambda item: self.plan.write(item, as_text), Response())
            return run_in_thread(source, pipe, lambda response: response)

        await self.plan.lane.run(work, self.request, run_within=self.plan.timeout)
        try:
            while frames := await pipe.take():
                for frame in frames:
                    await self.wire.frame(frame)
        finally:
            await pipe.aclose()


def buffering(plan: Plan, request: Request) -> int | None:
    """How many inputs may wait: the author's limit, or the caller's `max_buffering` when that is less."""
    asked = (request.query.get("max_buffering") or [""])[0]
    own = plan.buffering
    if not (asked.isascii() and asked.isdigit() and 1 <= int(asked[:4]) <= 60):
        return own
    return int(asked) if own is None else min(own, int(asked))


class Pace:
    """How long to wait before the next message, so that a second brings no more than `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit, self._seen, self._since = limit, 0, time.monotonic()

    def wait(self) -> float:
        if not self._limit:
            return 0.0
        self._seen += 1
        if self._seen < self._limit:
            return 0.0
        left = self._since + 1 - time.monotonic()
        self._seen, self._since = 0, time.monotonic() + max(0.0, left)
        return left


# --- a raw socket


class Raw:
    """A socket that the author's method drives itself.

    The method reads the socket when it asks for a message. While it does something else, somebody
    has to listen for the client's leaving: now and then one message is read ahead.
    """

    def __init__(self, kind: type, method: Method, lane: Lane, request: Request, wire: Wire, hangup: Hangup) -> None:
        self._kind, self._method, self._lane = kind, method, lane
        self._request, self._wire, self._hangup = request, wire, hangup
        self._listens = False
        self._ahead: asyncio.Future[Message] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> str:
        wire, request = self._wire, self._request
        scope = {**wire.scope, "path": request.path, "path_params": dict(request.path_parameters)}
        make: Any = self._kind if is_starlette(self._kind, "WebSocket") else WebSocket
        place = await self._lane.hold(request)
        self._look()
        try:
            with place:
                await self._method(make(scope, self._receive, wire.send))
        except Exception as error:
            if not is_disconnect(error):
                raise
        finally:
            for waiting in (self._timer, self._ahead):
                if waiting is not None:
                    waiting.cancel()
        if wire.gone:
            return "client"
        if not wire.closed:
            await wire.close()
        return "completed"

    def wind_up(self) -> None:
        """Nothing: only the author knows how to end it early. At the end of the grace period it is cancelled."""

    async def _receive(self) -> Message:
        """What the method is given as `receive`."""
        self._listens = True
        try:
            if (ahead := self._ahead) is not None:
                message = await asyncio.shield(ahead)  # who gives up waiting loses no message
                self._ahead = None
            else:
                message = await self._wire.receive()
        finally:
            self._listens = False
        if message["type"] == "websocket.disconnect":
            self._wire.gone = True
        return message

    def _look(self) -> None:
        """Every half second: listen in the method's place when it does not; stop it once its client has left."""
        loop = asyncio.get_running_loop()
        if self._ahead is None and not self._listens:
            self._ahead = asyncio.ensure_future(self._wire.receive())
        elif self._ahead is not None and self._ahead.done() and self._ahead.result()["type"] == "websocket.disconnect":
            self._wire.gone = True
            return self._hangup()
        self._timer = loop.call_later(LEAVE_SECONDS, self._look)


def is_disconnect(error: Exception) -> bool:
    """Whether a method raised that its client is gone, in our words or in Starlette's."""
    return isinstance(error, WebSocketDisconnect) or is_starlette(type(error), "WebSocketDisconnect")


__all__ = ["Limits", "Open", "Talk", "Wire", "make_talk"]
