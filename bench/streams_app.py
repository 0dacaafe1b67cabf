"""What `bench/streaming.py` serves with the runner; its peer serves `bench/streams_peer.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec

import runner


class Token(msgspec.Struct):
    i: int
    text: str


class Frame(msgspec.Struct):
    n: int


class Streams(runner.App):
    max_multiplexing = 256

    @runner.endpoint("/sync")
    def sync(self, n: int) -> Iterator[Token]:
        for i in range(n):
            yield Token(i, "a token of a model")

    @runner.endpoint("/async")
    async def asynchronous(self, n: int) -> AsyncIterator[Token]:
        for i in range(n):
            yield Token(i, "a token of a model")

    @runner.endpoint("/endless")
    def endless(self) -> Iterator[Token]:
        while True:
            yield Token(0, "x" * 1000)

    @runner.realtime("/ws-sync")
    def ws_sync(self, frame: Frame) -> Frame:
        return Frame(frame.n + 1)

    @runner.realtime("/ws-async")
    async def ws_async(self, frame: Frame) -> Frame:
        return Frame(frame.n + 1)

    @runner.endpoint("/ws-raw", is_websocket=True)
    async def ws_raw(self, websocket: runner.WebSocket) -> None:
        await websocket.accept()
        async for frame in websocket.iter_bytes():
            await websocket.send_bytes(frame)
