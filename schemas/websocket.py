"""A WebSocket as an app's raw socket endpoint is handed it. Its vocabulary is Starlette's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from enum import Enum
from functools import cached_property
from typing import Any

import msgspec

from .asgi import Message, Receive, Scope, Send
from .request import Request


class WebSocketState(Enum):
    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 2


class WebSocketDisconnect(Exception):
    """The client is gone. Let it pass: it ends the endpoint without being a failure."""

    def __init__(self, code: int = 1000, reason: str | None = None) -> None:
        super().__init__(code, reason or "")
        self.code, self.reason = code, reason or ""


class WebSocket:
    """One connection: `accept()` first, then send and receive, in any order and from any task.

    Receiving raises WebSocketDisconnect when the client is gone; `iter_text()` and its like end
    instead. An endpoint that returns closes the connection with code 1000.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive, self._send = receive, send
        self.client_state = self.application_state = WebSocketState.CONNECTING

    # --- who called

    @cached_property
    def _request(self) -> Request:
        return Request(scope=self.scope, path=self.scope["path"])

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        return self._request.headers

    @cached_property
    def query_params(self) -> Mapping[str, str]:
        """The query string; of a repeated name the last value."""
        return {name: values[-1] for name, values in self._request.query.items()}

    @property
    def path_params(self) -> Mapping[str, str]:
        params: Mapping[str, str] = self.scope.get("path_params", {})
        return params

    @property
    def client(self) -> tuple[str, int] | None:
        client: tuple[str, int] | None = self.scope.get("client")
        return client

    # --- messages

    async def accept(self, subprotocol: str | None = None, headers: Iterable[tuple[bytes, bytes]] | None = None) -> None:
        if self.client_state is WebSocketState.CONNECTING:
            await self.receive()  # what says that it wants to connect
        await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers or [])})

    async def receive(self) -> Message:
        """The next ASGI message. Raises RuntimeError once the client is gone."""
        if self.client_state is WebSocketState.DISCONNECTED:
            raise RuntimeError('cannot call "receive" after the client has left; catch WebSocketDisconnect and return')
        message = await self._receive()
        gone = message["type"] == "websocket.disconnect"
        self.client_state = WebSocketState.DISCONNECTED if gone else WebSocketState.CONNECTED
        return message

    async def send(self, message: Message) -> None:
        if self.application_state is WebSocketState.DISCONNECTED:
            raise RuntimeError('cannot call "send" after "close"')
        if message["type"] == "websocket.accept":
            self.application_state = WebSocketState.CONNECTED
        elif message["type"] == "websocket.close":
            self.application_state = WebSocketState.DISCONNECTED
        await self._send(message)

    async def _next(self) -> Message:
        if self.application_state is not WebSocketState.CONNECTED:
            raise RuntimeError('the WebSocket is not open; call "accept" first')
        message = await self.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005, message.get("reason"))
        return message

    async def receive_text(self) -> str:
        """The next message as text, whichever kind of frame it came in."""
        message = await self._next()
        text = message.get("text")
        return text if text is not None else bytes(message["bytes"]).decode()

    async def receive_bytes(self) -> bytes:
        """The next message as bytes, whichever kind of frame it came in."""
        message = await self._next()
        data: bytes | None = message.get("bytes")
        return data if data is not None else str(message["text"]).encode()

    async def receive_json(self) -> Any:
        return msgspec.json.decode(await self.receive_bytes())

    async def iter_text(self) -> AsyncIterator[str]:
        try:
            while True:
                yield await self.receive_text()
        except WebSocketDisconnect:
            pass

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield await self.receive_bytes()
        except WebSocketDisconnect:
            pass

    async def iter_json(self) -> AsyncIterator[Any]:
        try:
            while True:
                yield await self.receive_json()
        except WebSocketDisconnect:
            pass

    async def send_text(self, data: str) -> None:
        await self.send({"type": "websocket.send", "text": data})

    async def send_bytes(self, data: bytes) -> None:
        await self.send({"type": "websocket.send", "bytes": data})

    async def send_json(self, data: Any, mode: str = "text") -> None:
        encoded = msgspec.json.encode(data)
        await (self.send_bytes(encoded) if mode == "binary" else self.send_text(encoded.decode()))

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        await self.send({"type": "websocket.close", "code": code, "reason": reason or ""})
