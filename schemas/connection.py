"""A connection and who reads it first: what the server and a `connection_protocol` agree on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .asgi import ASGIApp

HANGUP = "runner.hangup"  # among a scope's extensions: takes a function to call when the client has gone
OnHangup = Callable[[Callable[[], object]], None]

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
