"""`AsyncAppClient`: the same for async tests. The core, and with it the app, runs on the loop that it is used on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from ...schemas.endpoint import Endpoint
from .client import STARTUP_SECONDS, Client, hang_up
from .core import Submitted, Talk, until_healthy
from .errors import Answer
from .transports import Reply

A = TypeVar("A")


class AsyncAppClient(Client[A]):
    """As AppClient, for async tests: `async with AsyncAppClient(MyApp) as client: await client.generate(…)`.

    The app runs on the loop of the test. Streams are `async for`, sockets `async with`.
    """

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        app_cls: type[A] | str,
        *,
        health_request_timeout: float = 30,
        startup_timeout: float = STARTUP_SECONDS,
        health_check_interval: float = 0.5,
    ) -> AsyncIterator[AsyncAppClient[A]]:
        client: AsyncAppClient[A] = cls(app_cls, startup_timeout=startup_timeout, _listen=True)
        async with client:
            await until_healthy(client._core, startup_timeout, health_request_timeout, health_check_interval)
            yield client

    async def __aenter__(self) -> Self:
        await self._core.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._core.close()

    async def aclose(self) -> None:
        await self._core.close()

    def __getattr__(self, name: str) -> AsyncBoundEndpoint:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> AsyncBoundEndpoint:
        return AsyncBoundEndpoint(self, self._core.endpoint(name), {})

    async def health(self) -> Any:
        return await self._core.health()

    async def request(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        return await self._core.whole(method, path, headers, body)


class AsyncBoundEndpoint:
    """One endpoint of one async client."""

    def __init__(self, client: AsyncAppClient[Any], endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._core, self._client, self._headers = client._core, client, headers
        self.endpoint = endpoint
        self.__name__, self.__doc__ = endpoint.name, endpoint.description

    def with_headers(self, headers: Mapping[str, str]) -> AsyncBoundEndpoint:
        return AsyncBoundEndpoint(self._client, self.endpoint, {**self._headers, **{n.lower(): v for n, v in headers.items()}})

    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        """An awaitable of what the method returns; an AsyncStream where it yields; an AsyncRealtimeSession."""
        if self.endpoint.mark.is_websocket:
            if arguments or fields:
                raise TypeError(f"{self.endpoint.name} is realtime: write `async with client.{self.endpoint.name}() as socket:`")
            return AsyncRealtimeSession(self)
        if self.endpoint.streams:
            keep: list[Reply] = []
            return AsyncStream(self._core.stream(self.endpoint, arguments, fields, self._headers, keep), keep)
        return self._core.call(self.endpoint, arguments, fields, self._headers)

    async def answer(self, *arguments: Any, **fields: Any) -> Answer:
        return await self._core.answer(self.endpoint, arguments, fields, self._headers)

    async def submit(self, *arguments: Any, **fields: Any) -> Submitted:
        return await self._core.submit(self.endpoint, arguments, fields, self._headers)


class AsyncStream(AsyncIterator[Any]):
    """As Stream; `aclose` hangs up."""

    def __init__(self, items: AsyncIterator[Any], keep: list[Reply]) -> None:
        self._items, self._keep = items, keep

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._items)

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await hang_up(self._items, self._keep)


class AsyncRealtimeSession:
    """As RealtimeSession."""

    def __init__(self, endpoint: AsyncBoundEndpoint) -> None:
        self._bound = endpoint
        self._talk: Talk = None  # type: ignore[assignment] # set on entering

    async def __aenter__(self) -> Self:
        self._talk = await self._bound._core.connect(self._bound.endpoint, self._bound._headers)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._talk.close()

    async def send(self, *message: Any, **fields: Any) -> None:
        await self._talk.send(message, fields)

    async def recv(self) -> Any:
        return await self._talk.receive()

    async def call(self, *message: Any, **fields: Any) -> Any:
        await self.send(*message, **fields)
        return await self.recv()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.recv()) is not None:
            yield message
