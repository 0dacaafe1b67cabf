"""A connection and who reads it first: what the server and a `connection_protocol` agree on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .asgi import ASGIApp, RawHeaders

SHORTCUTS = "runner.shortcuts"  # among a scope's extensions, where there are any


class Shortcuts(Protocol):
    """What a protocol of ours offers beside ASGI's `receive` and `send`, for the common request."""

    def on_hangup(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client leaves before its answer is complete; at once if it has."""
        ...

    def take_body(self) -> bytes | None:
        """The request's body if all of it is here; None: `receive` it."""
        ...

    def answer(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send the whole answer. What the client does not take yet is kept, and its next request waits."""
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
