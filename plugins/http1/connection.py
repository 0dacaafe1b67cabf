"""A connection: bytes are parsed as they come, requests are answered in order, one at a time.

llhttp parses; what it does not check, `heads.py` does. A request that is refused waits for its turn
like any other, so that its answer does not overtake those before it; afterwards the connection
closes. A head that came before, byte for byte, is known and not parsed again, as long as nothing but it
and its body has come; clients repeat themselves. HTTP/2 and upgrades that hypercorn knows are handed over once all before them is answered.
Pipelined requests are kept, up to a slice of input more than `PIPELINED`; then reading pauses, and
a hang-up is noticed late. A client that closes its sending half has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

import httptools
import msgspec

from ...schemas.asgi import ASGIApp, RawHeaders
from ...schemas.connection import HandOver, Shortcuts
from ..logs import get_logger
from .exchange import Exchange
from .heads import WATCHED, Framing, Head, Refused, framing, take_apart

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SLICE = 16 * 1024  # bytes parsed in one go, which bounds how many requests come of it
PIPELINED = 8  # requests kept while one is answered
METHODS = {method.encode(): method for method in ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")}
END = b"\r\n\r\n"
KNOWN_BYTES = 4 * 1024  # a longer head is parsed each time
KNOWN_HEADS = 512  # then all are forgotten; both numbers are out of the air

log = get_logger("runner.http1")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may take of us."""

    head_bytes: int = 64 * 1024
    headers: int = 200
    head_seconds: float = 30.0  # from a head's first byte to its last
    body_seconds: float = 30.0  # in which a body must have grown by `body_bytes`
    body_bytes: int = 4 * 1024
    idle_seconds: float = 300.0  # fal's own keep-alive
    first_seconds: float = 0.5  # for the request of who had just come when the server stops
    linger_seconds: float = 2.0  # for a refused client to read why while it still sends


class Leaving:
    """The turn of a request with which the connection goes to hypercorn, and the bytes it begins with."""

    def __init__(self, begin: bytes) -> None:
        self.begin = begin
        self.task: asyncio.Task[None] | None = None


Turn = Exchange | Refused | Leaving


class Home(Protocol):
    """Where connections are kept."""

    known: dict[bytes, Head]  # heads that came before, by their bytes
    is_leaving: bool  # every answer is the last one of its connection

    def enter(self, connection: Connection) -> None: ...
    def leave(self, connection: Connection) -> None: ...
    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...
    def forget(self, task: asyncio.Task[None] | None) -> None: ...


class Connection(asyncio.Protocol):
    """One client's. Its own steps are callbacks of the loop; the app takes exchanges, or is called in tasks."""

    def __init__(self, app: ASGIApp, hand_over: HandOver, limits: Limits, home: Home) -> None:
        self.loop = asyncio.get_running_loop()
        self.room: asyncio.Event | None = None
        self._app, self._hand_over, self._limits, self._home = app, hand_over, limits, home
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # set by `connection_made`
        self._parser = httptools.HttpRequestParser(self)
        self._take: Callable[[Shortcuts], None] | None = getattr(app, "take", None)
        self._known = home.known
        self.scheme = "http"
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self._turns: deque[Turn] = deque()
        self._current: Turn | None = None  # is being answered: the first of them, or none just now
        self._rests = False  # nothing is being answered, and the parser is between two messages
        self._preface: bytes | None = b""  # what has come of it, or of something else; None: something else
        self._unparsed: deque[bytes] = deque()  # held back while enough requests wait
        self._paused = False
        self._held_up = False  # the next turn comes when the client has taken more of the last answer
        self._deaf = False  # what still comes is of no interest
        self._winding_up = False
        self._silent = True  # no request has come yet
        # Of the message that is being parsed:
        self._reading: Exchange | None = None  # its head is complete, its body is not
        self._feeding = False  # llhttp is at work: no turn begins, as it might end in here
        self._messages = 0  # begun since the connection last rested
        self._in_head = False
        self._head_bytes = 0
        self._url = b""
        self._headers: RawHeaders = []
        self._head: Head | None = None  # the last that was read
        self._watched: RawHeaders = []
        self._muted = False  # llhttp tells what we know, or know better
        self._upgrade: Framing | None = None  # it asks for another protocol
        self._leaving: Leaving | None = None  # and gets it
        # Of the time that it takes:
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._awaited: Literal["", "head", "body"] = ""
        self._moved = 0  # bytes of bodies since the timer last looked
        self._lingering = False

    # --- told by the loop

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if (tls := transport.get_extra_info("ssl_object")) is not None:
            self.scheme = "https"
            if tls.selected_alpn_protocol() == "h2":
                self._leave(b"")
                return
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))
        self._home.enter(self)
        self._rest()

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        turns, self._turns = self._turns, deque()
        for turn in turns:
            if isinstance(turn, Exchange):
                turn.hang_up()

    def pause_writing(self) -> None:
        self.room = asyncio.Event()

    def resume_writing(self) -> None:
        if self.room is not None:
            self.room.set()
            self.room = None
            if self._held_up:
                self._held_up = False
                self._next_turn()

    def data_received(self, data: bytes) -> None:
        if self._rests:
            self._rests = False
            end = data.find(END) + 4
            if (head := self._known.get(data[:end])) is not None and len(data) == end + head.length:  # type: ignore[operator]
                self._preface, self._silent = None, False
                exchange = Exchange(self, head, [data[end:]] if head.length else [])
                exchange.arrived = True
                self._turns.append(exchange)
                self._begin_turn(exchange)
            else:
                self._messages, self._head = 0, None
                self._read(data)
                if self._messages == 1 and (head := self._head) is not None:
                    self._get_to_know(data, end, head)
        elif not self._deaf:
            self._read(data)

    def _get_to_know(self, data: bytes, end: int, head: Head) -> None:
        """Keep `head` if `data` was its request and nothing else."""
        if head.is_plain and end <= KNOWN_BYTES and len(data) == end + (head.length or 0) and self._reading is None and not self._in_head:
            if len(self._known) >= KNOWN_HEADS:
                self._known.clear()
            self._known[data[:end]] = head

    def _read(self, data: bytes) -> None:
        if self._preface is not None:
            data = self._after_preface(data)
        if len(data) <= SLICE and not self._unparsed:
            self._parse(data)
        else:
            self._unparsed.extend(data[at : at + SLICE] for at in range(0, len(data), SLICE))
            self._parse_on()

    def _after_preface(self, data: bytes) -> bytes:
        """Leave if this is HTTP/2; else return what is to be parsed: nothing while it may become HTTP/2."""
        begin = (self._preface or b"") + data
        if not PREFACE.startswith(begin[: len(PREFACE)]):
            self._preface = None
            return begin
        self._preface = begin
        if len(begin) >= len(PREFACE):
            self._leave(begin)
        else:
            self._wait_for("head", self._limits.head_seconds)
        return b""

    # --- reading

    def _parse_on(self) -> None:
        while self._unparsed and not self._paused:
            self._parse(self._unparsed.popleft())

    def _parse(self, data: bytes) -> None:
        if self._deaf or not data:
            return
        if self._leaving is not None:
            self._leaving.begin += data
            return
        self._feeding = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._feeding = False
            self._turn_to_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._feeding = False
            self._refuse(_refusal(error))
        self._feeding = False
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes + SLICE:
                self._refuse(_too_long())
            elif not self._turns:
                self._wait_for("head", self._limits.head_seconds)
        elif self._reading is not None:
            self._wait_for("body", self._limits.body_seconds)
        elif self._awaited:
            self._awaited = ""
        if len(self._turns) > PIPELINED:
            self.pause()
        self._begin_next()

    def on_message_begin(self) -> None:
        if not self._muted:
            self._messages += 1
            self._in_head = True
            self._head_bytes = 0
            self._url = b""
            self._headers = []
            self._watched = []

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if not self._in_head:  # a trailer, which is nobody's business
            if self._head_bytes > self._limits.head_bytes:
                raise _too_long()
            return
        name, value = name.lower(), value.rstrip(b" \t")
        self._headers.append((name, value))
        if name in WATCHED:
            self._watched.append((name, value))

    def on_headers_complete(self) -> None:
        if self._muted:
            return
        self._in_head = False
        if self._head_bytes + len(self._url) > self._limits.head_bytes or len(self._headers) > self._limits.headers:
            raise _too_long()
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        framed = framing(self._watched, version)
        if parser.should_upgrade():
            self._muted, self._upgrade = True, framed
            if self._may_leave(method, framed):
                return
        name = METHODS.get(method) or method.decode("ascii")
        self._head = Head(name, take_apart(self._url, name), version, self._headers, framed, keep_alive=parser.should_keep_alive())
        exchange = Exchange(self, self._head, [])
        self._reading = exchange
        self._take_turn(exchange)

    def on_chunk_header(self) -> None:
        self._head_bytes = 0  # from here on it counts trailers

    def on_body(self, part: bytes) -> None:
        self._moved += len(part)
        if self._reading is not None:
            self._reading.body(part)

    def on_message_complete(self) -> None:
        if self._muted or self._reading is None:
            return
        exchange, self._reading = self._reading, None
        exchange.complete()
        if not exchange.keep_alive:
            self._deaf = True

    def _may_leave(self, method: bytes, framed: Framing) -> bool:
        """Whether hypercorn takes this request over: it begins a WebSocket or HTTP/2, and has no body."""
        if method == b"CONNECT":
            raise Refused(501, "this is no proxy")
        known = framed.upgrade == b"websocket" or (
            framed.upgrade == b"h2c" and any(name == b"http2-settings" for name, _ in self._headers)
        )
        if not known or framed.length != 0 or method != b"GET":
            return False
        lines = [b"%b %b HTTP/1.1" % (method, self._url), *(b"%b: %b" % header for header in self._headers)]
        self._leaving = Leaving(b"\r\n".join((*lines, b"\r\n")))
        return True

    def _turn_to_upgrade(self, rest: bytes) -> None:
        """llhttp has read a head that asks for another protocol, and no body that it may have."""
        framed, self._upgrade = self._upgrade, None
        assert framed is not None
        if self._leaving is not None:
            self._leaving.begin += rest
            self.pause()
            self._take_turn(self._leaving)
            return
        self._parser = httptools.HttpRequestParser(self)
        if framed.length is None:
            self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        elif framed.length > 0:
            self._parser.feed_data(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % framed.length)
        self._muted = False
        if framed.length == 0:
            self.on_message_complete()
        self._parse(rest)

    # --- turns

    def _take_turn(self, turn: Turn) -> None:
        self._silent = False
        self._turns.append(turn)
        self._begin_next()

    def _begin_next(self) -> None:
        if self._turns and self._current is None and not self._feeding:
            self._begin_turn(self._turns[0])

    def _begin_turn(self, turn: Turn) -> None:
        self._current = turn
        if isinstance(turn, Exchange):
            if self._take is not None:
                self._take(turn)
            else:
                turn.task = self._home.start(self._serve(turn))
        elif isinstance(turn, Leaving):
            turn.task = self._home.start(self._leave_once_written(turn))
        else:
            log.debug("http1.refused", status=turn.status, why=str(turn), client=self.client)
            self.write(turn.answer())
            self._close(linger=True)

    def _next_turn(self) -> None:
        self._turns.popleft()
        self._current = None
        if self._turns:
            self.loop.call_soon(self._begin_next)  # not here: a hundred may follow, each within the one before
        else:
            self._rest()
        if self._paused:
            self.resume()

    async def _serve(self, exchange: Exchange) -> None:
        error: BaseException | None = None
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except BaseException as raised:
            error = raised
            if not isinstance(raised, Exception):
                raise
        finally:
            exchange.over(error)
            self._home.forget(exchange.task)

    def cut_off(self, exchange: Exchange) -> None:
        if not exchange.begun:
            self.write(Refused(500, "Internal Server Error").answer())
        self._close(linger=not exchange.arrived)

    async def _leave_once_written(self, leaving: Leaving) -> None:
        while self.room is not None:
            await self.room.wait()
        self._home.forget(leaving.task)
        if not self._deaf:
            self._leave(leaving.begin + b"".join(self._unparsed))

    def _leave(self, begin: bytes) -> None:
        """Hypercorn reads on; this object is done."""
        transport, paused = self._transport, self._paused
        self._end()
        self._hand_over(transport, begin)
        if paused:
            transport.resume_reading()

    def _refuse(self, refused: Refused) -> None:
        """Let `refused` be answered in the turn of the message that is being parsed, and parse no more."""
        if self._deaf:
            return
        self._deaf, self._in_head = True, False
        exchange, self._reading = self._reading, None
        if exchange is None:
            self._take_turn(refused)
        elif exchange.answered:
            self._close(linger=True)
        elif exchange is not self._current:
            self._turns[-1] = refused  # behind an incomplete message there is none
        else:
            begun = exchange.begun
            exchange.hang_up()
            if begun:
                self._close(linger=False)
            else:
                self._begin_turn(refused)

    # --- asked by an exchange

    def write(self, *parts: bytes) -> None:
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._leaving is None:
            self._paused = False
            self._parse_on()
            if not self._paused and not self._transport.is_closing():
                self._transport.resume_reading()

    def stays_open(self, exchange: Exchange) -> bool:
        """Whether another request may follow: not when the rest of this one is still to come."""
        return exchange.arrived and not self._winding_up and not self._home.is_leaving

    def answered(self, exchange: Exchange) -> None:
        if exchange.keep_alive and not self._winding_up:
            if self.room is None:
                self._next_turn()
            else:
                self._held_up = True
        else:
            self._close(linger=not exchange.arrived)

    # --- waiting and ending

    def _rest(self) -> None:
        """Nothing is being answered: what still comes must come in time."""
        self._idle_since = self.loop.time()
        self._rests = not (self._in_head or self._preface or self._muted or self._deaf or self._unparsed or self._leaving)
        if self._in_head:
            self._wait_for("head", self._limits.head_seconds)
        elif self._timer is None:
            self._arm(self._limits.idle_seconds)
        if self._winding_up and not self._silent:
            self._close(linger=False)

    def _wait_for(self, what: Literal["head", "body"], seconds: float) -> None:
        if self._awaited != what and not self._deaf:
            self._awaited, self._moved = what, 0
            self._arm(seconds)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """The timer: something may have taken too long. It is not moved at every step, and looks early then."""
        self._timer, limits = None, self._limits
        if self._lingering:
            self._transport.abort()
        elif self._awaited == "head":
            self._refuse(Refused(408, f"the head of the request was not complete after {limits.head_seconds:g} s"))
        elif self._awaited == "body" and self._reading is not None:
            if self._paused or self._reading.expects or self._moved >= limits.body_bytes:  # not the client's fault
                self._moved = 0
                self._arm(limits.body_seconds)
            else:
                self._refuse(Refused(408, f"the body of the request stopped coming for {limits.body_seconds:g} s"))
        elif not self._turns:
            left = self._idle_since + limits.idle_seconds - self.loop.time()
            if left > 0:
                self._arm(left)
            else:
                self._close(linger=False)

    def wind_up(self) -> None:
        """Take no further request. One that may be on its way, since its caller just came, is waited for."""
        self._winding_up = True
        if self._turns:
            return
        if self._silent or self._in_head:
            self.loop.call_later(self._limits.first_seconds, self._close_if_resting)
        else:
            self._close(linger=False)

    def _close_if_resting(self) -> None:
        if not self._turns and not self._transport.is_closing():
            self._close(linger=False)

    def give_up(self) -> None:
        """Cancel what is being answered."""
        if isinstance(self._current, Exchange) and self._current.task is not None:
            self._current.task.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def _close(self, *, linger: bool) -> None:
        """Say goodbye. Closing on what a client still sends would take the answer from it as well.

        So `linger` ends our half and reads on for a while, into nothing.
        """
        self._deaf = True
        self._unparsed.clear()
        if linger and not self._transport.is_closing() and self._transport.can_write_eof():
            self._lingering = True
            self._transport.write_eof()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._arm(self._limits.linger_seconds)
        else:
            self._transport.close()

    def _end(self) -> None:
        self._deaf = True
        self._home.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._held_up = False
        self.resume_writing()
        self._reading = None
        self._parser = None  # type: ignore[assignment] # it holds methods of ours: end the circle


def _refusal(error: Exception) -> Refused:
    """What a parser's complaint is to the client; ours come back as the cause of its own."""
    if isinstance(error.__context__, Refused):
        return error.__context__
    if isinstance(error, httptools.HttpParserCallbackError):
        log.error("http1.parser_failed", exc_info=error.__context__)
        return Refused(500, "Internal Server Error")
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refused(400, "the request does not begin with a method known here")
    return Refused(400, f"the request cannot be read: {error}")


def _too_long() -> Refused:
    return Refused(431, "the head of the request is too long, or has too many headers")


def _address(found: Any) -> tuple[str, int] | None:
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
