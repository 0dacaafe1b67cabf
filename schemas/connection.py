"""A connection and who reads it first: what the server and a `connection_protocol` agree on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .asgi import ASGIApp, Message, RawHeaders, Scope

SHORTCUTS = "runner.shortcuts"  # among a scope's extensions, where there are any


class Shortcuts(Protocol):
    """A request and its answer: ASGI's `scope`, `receive` and `send`, and shorter ways for the common case.

    An app that has a method `take` is given these, and calls `over` at the end of each; others are called as ASGI.
    """

    task: asyncio.Task[None] | None  # in which the app's call waits, for who must cancel it

    @property
    def scope(self) -> Scope: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def first_headers(self) -> dict[bytes, bytes]:
        """The first of each name, in lower case. Not to be changed: requests share it."""
        ...

    @property
    def client(self) -> tuple[str, int] | None: ...
    async def receive(self) -> Message: ...
    async def send(self, message: Message) -> None: ...

    def on_hangup(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client leaves before its answer is complete; at once if it has."""
        ...

    def take_body(self) -> bytes | None:
        """The request's body if all of it is here; None: `receive` it."""
        ...

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the whole answer. What the client does not take yet is kept, and its next request waits."""
        ...

    def answer_json(self, id: bytes, body: bytes) -> None:
        """The same for 200, JSON, and the request's id as the one other header."""
        ...

    def over(self, error: BaseException | None) -> None:
        """The app's call has ended: what it left unanswered is cut off."""
        ...


HandOver = Callable[[asyncio.Transport, bytes], None]
"""Let the server's own machinery read on: the transport, and the bytes that it shall see first."""


class ConnectionProtocol(Protocol):
    """Reads the connections of one server first, and answers those it can."""

    def connect(self, app: ASGIApp, hand_over: HandOver) -> asyncio.Protocol:
        """Return what reads a new connection. It may give it to `hand_over`, and then never touches it again."""
        ...

    async def close(self, seconds: float) -> None:
        """End all connections: idle ones at once, others after their present answer or `seconds`."""
        ...
