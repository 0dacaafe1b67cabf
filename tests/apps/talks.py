"""An app that talks over WebSockets in every mode there is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
from pydantic import BaseModel
from starlette.websockets import WebSocket as StarletteWebSocket

import runner


class Frame(msgspec.Struct):
    n: int
    data: bytes = b""
    text: str = ""


class Model(BaseModel):
    n: int
    data: bytes = b""


class Batched(msgspec.Struct):
    n: int

    def can_batch(self, other: Batched, size: int) -> bool:
        return other.n < 100


def to_json(value: Any) -> str:
    return json.dumps({"wrapped": value})


def from_json(frame: bytes) -> Any:
    return json.loads(frame)["wrapped"]


class Talks(runner.App):
    max_multiplexing = 4
    termination_grace_period_seconds = 5

    def setup(self) -> None:
        self.gate = threading.Event()
        self.async_gate = asyncio.Event()

    @runner.endpoint("/open", health_check=runner.HealthCheck(call_regularly=False))
    async def open_gate(self, what: str = "sync") -> None:
        (self.gate if what == "sync" else self.async_gate).set()

    # --- unary

    @runner.realtime("/realtime")
    def double(self, frame: Frame) -> Frame:
        return Frame(n=frame.n * 2, data=frame.data + b"!", text=frame.text)

    @runner.realtime("/async")
    async def double_async(self, frame: Frame) -> Frame:
        return Frame(n=frame.n * 2, data=frame.data + b"!", text=frame.text)

    @runner.realtime("/model")
    def model(self, frame: Model) -> Model:
        return Model(n=frame.n * 2, data=frame.data + b"!")

    @runner.realtime("/raw")
    def raw(self, frame):  # type: ignore[no-untyped-def]
        return {"got": frame, "kind": type(frame).__name__}

    @runner.realtime("/mapping")
    def mapping(self, frame: dict[str, Any]) -> dict[str, Any]:
        return frame

    @runner.realtime("/tensor")
    def tensor(self, frame: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"sum": torch.tensor([1.0, 2.0]).sum(), "all": torch.tensor([1.0, 2.0])}

    @runner.realtime("/fails")
    def fails(self, frame: Frame) -> Frame:
        raise ValueError(f"no {frame.n}")

    @runner.realtime("/misfit")
    def misfit(self, frame: Frame) -> Frame:
        return 5  # type: ignore[return-value]

    @runner.realtime("/leaves")
    def leaves(self, frame: Frame) -> Frame:
        raise runner.WebSocketDisconnect(1000)

    @runner.realtime("/impatient", session_timeout=0.5)
    def impatient(self, frame: Frame) -> Frame:
        return frame

    @runner.realtime("/late", session_timeout=0.2)
    async def late(self, frame: Frame) -> Frame:
        if frame.n == 0:
            await asyncio.Event().wait()
        return frame

    @runner.realtime("/buffered", buffering=1)
    async def buffered(self, frame: Frame) -> Frame:
        if frame.n == 0:
            print("holding")
            await self.async_gate.wait()
            self.async_gate.clear()
        return frame

    @runner.realtime("/held")
    async def held(self, frame: Frame) -> Frame:
        if frame.n == 0:
            print("holding")
            await self.async_gate.wait()
            self.async_gate.clear()
        return frame

    @runner.realtime("/batch", max_batch_size=4)
    def batch(self, first: Batched, *rest: Batched) -> dict[str, Any]:
        if first.n == 0:
            print("holding")
            self.gate.wait(20)
            self.gate.clear()
        return {"batch": [first.n, *(each.n for each in rest)]}

    @runner.realtime("/codec", encode_message=to_json, decode_message=from_json)
    def codec(self, frame: dict[str, Any]) -> dict[str, Any]:
        return {"got": frame}

    @runner.realtime("/spins")
    def spins(self, frame: Frame) -> Frame:
        print("spinning")
        try:
            while True:
                pass
        finally:
            print("spun")

    @runner.realtime("/waits")
    async def waits(self, frame: Frame) -> Frame:
        print("waiting")
        try:
            await asyncio.Event().wait()
        finally:
            print("waited")
        return frame

    # --- streaming

    @runner.realtime("/server")
    def server(self, frame: Frame) -> Iterator[Frame]:
        for n in range(frame.n):
            yield Frame(n=n)

    @runner.realtime("/server-async")
    async def server_async(self, frame: Frame) -> AsyncIterator[Frame]:
        for n in range(frame.n):
            yield Frame(n=n)

    @runner.realtime("/server-fails")
    def server_fails(self, frame: Frame) -> Iterator[Frame]:
        yield Frame(n=1)
        raise ValueError("out of frames")

    @runner.realtime("/server-endless")
    def server_endless(self, frame: Frame) -> Iterator[Frame]:
        try:
            while True:
                yield Frame(n=1, data=b"x" * 1000)
        finally:
            print("closed endless")

    @runner.realtime("/client", session_timeout=1)
    async def client(self, frames: AsyncIterator[Frame]) -> Frame:
        return Frame(n=sum([frame.n async for frame in frames]))

    @runner.realtime("/client-stops")
    async def client_stops(self, frames: AsyncIterator[Frame]) -> Frame:
        total = 0
        async for frame in frames:
            total += frame.n
            if frame.text == "stop":
                break
        return Frame(n=total)

    @runner.realtime("/bidi", session_timeout=1)
    async def bidi(self, frames: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
        try:
            async for frame in frames:
                yield Frame(n=frame.n + 1)
                yield Frame(n=frame.n + 2)
        finally:
            print("closed bidi")

    # --- raw

    @runner.endpoint("/ws", is_websocket=True)
    async def ws(self, websocket: runner.WebSocket) -> None:
        await websocket.accept(headers=[(b"x-own", b"yes")])
        await websocket.send_json({"path": websocket.scope["path"], "q": websocket.query_params.get("q")})
        async for text in websocket.iter_text():
            if text == "bye":
                return
            if text == "crash":
                raise ValueError("crashed")
            if text == "close":
                await websocket.close(4001, "as asked")
                return
            await websocket.send_bytes(text.upper().encode())

    @runner.endpoint("/ws-starlette", is_websocket=True)
    async def ws_starlette(self, websocket: StarletteWebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text((await websocket.receive_text()).upper())

    @runner.endpoint("/ws-refuses", is_websocket=True)
    async def ws_refuses(self, websocket: runner.WebSocket) -> None:
        await websocket.close()

    @runner.endpoint("/ws-busy", is_websocket=True)
    async def ws_busy(self, websocket: runner.WebSocket) -> None:
        await websocket.accept()
        try:
            await asyncio.Event().wait()
        finally:
            print("busy no more")
