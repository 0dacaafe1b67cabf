"""An app that streams in every way there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import msgspec

import runner


class Item(msgspec.Struct):
    i: int
    text: str = "né 😀"


class Streams(runner.App):
    max_multiplexing = 4

    def setup(self) -> None:
        self.gate = threading.Event()
        self.closed: list[str] = []

    @runner.endpoint("/stream")
    def stream(self, n: int = 3) -> Iterator[Item]:
        for i in range(n):
            yield Item(i)

    @runner.endpoint("/generator")
    def generator(self, n: int = 3) -> Generator[Item, None, None]:
        yield from map(Item, range(n))

    @runner.endpoint("/async")
    async def asynchronous(self, n: int = 3) -> AsyncIterator[Item]:
        for i in range(n):
            yield Item(i)

    @runner.endpoint("/async-method")
    async def async_method(self, n: int = 3) -> AsyncIterator[Item]:
        return self.asynchronous(n)

    @runner.endpoint("/plain")
    def plain(self, n: int = 3):  # type: ignore[no-untyped-def]
        return (Item(i) for i in range(n))

    @runner.endpoint("/plain-async")
    async def plain_async(self, n: int = 3):  # type: ignore[no-untyped-def]
        for i in range(n):
            yield Item(i)

    @runner.endpoint("/async-gives-sync")
    async def async_gives_sync(self, n: int = 3) -> Iterator[Item]:
        return map(Item, range(n))

    @runner.endpoint("/sync-gives-async")
    def sync_gives_async(self, n: int = 3) -> AsyncIterator[Item]:
        return self.asynchronous(n)

    @runner.endpoint("/list")
    def a_list(self, n: int = 3) -> Iterator[Item]:
        return [Item(i) for i in range(n)]  # type: ignore[return-value]

    @runner.endpoint("/own")
    def own(self, n: int = 3) -> runner.StreamingResponse:
        parts = (f'data: {{"i":{i},"text":"n\\u00e9 \\ud83d\\ude00"}}\n\n' for i in range(n))
        return runner.StreamingResponse(parts, media_type="text/event-stream", headers={"x-own": "yes"})

    @runner.endpoint("/starlette")
    def starlette(self, n: int = 3) -> Any:
        from fastapi.responses import StreamingResponse

        return StreamingResponse((f"data: {i}\n\n" for i in range(n)), media_type="text/event-stream", headers={"x-own": "yes"})

    @runner.endpoint("/starlette-async")
    async def starlette_async(self, n: int = 3) -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse((f"data: {i}\n\n" for i in range(n)), media_type="text/event-stream")

    @runner.endpoint("/bytes")
    def raw_bytes(self) -> runner.StreamingResponse:
        return runner.StreamingResponse(iter([b"\x00\xff", b"\x01"]), media_type="audio/wav")

    @runner.endpoint("/unary")
    def unary(self) -> Item:
        return Item(7)

    @runner.endpoint("/unary-async")
    async def unary_async(self) -> Item:
        return Item(7)

    @runner.endpoint("/threads")
    def threads(self):  # type: ignore[no-untyped-def]
        called = threading.get_ident()
        return (threading.get_ident() == called for _ in range(3))

    # --- failures

    @runner.endpoint("/fails-at-once")
    def fails_at_once(self) -> Iterator[Item]:
        raise runner.HTTPError(418, "teapot")
        yield

    @runner.endpoint("/fails-at-once-async")
    async def fails_at_once_async(self) -> AsyncIterator[Item]:
        raise runner.HTTPError(418, "teapot")
        yield

    @runner.endpoint("/fails/stream")
    def fails(self) -> Iterator[Item]:
        yield from map(Item, range(1, 4))
        raise ValueError("the model is out of words")

    @runner.endpoint("/fails-async/stream")
    async def fails_async(self) -> AsyncIterator[Item]:
        for i in range(1, 4):
            yield Item(i)
        raise ValueError("the model is out of words")

    @runner.endpoint("/told/stream")
    def told(self) -> Iterator[Item]:
        yield Item(1)
        raise runner.HTTPError(503, "busy elsewhere")

    @runner.endpoint("/misfit")
    def misfit(self) -> Iterator[Item]:
        yield Item(1)
        yield "no item"  # type: ignore[misc]

    @runner.endpoint("/slow", timeout=0.2)
    def slow(self) -> Iterator[Item]:
        yield Item(1)
        threading.Event().wait(0.3)
        while True:
            runner.checkpoint()

    # --- one by one, and without end

    @runner.endpoint("/gated")
    def gated(self) -> Iterator[Item]:
        yield Item(0)
        self.gate.wait(20)
        self.gate.clear()
        yield Item(1)

    @runner.endpoint("/gated-async")
    async def gated_async(self) -> AsyncIterator[Item]:
        yield Item(0)
        await asyncio.to_thread(self.gate.wait, 20)
        self.gate.clear()
        yield Item(1)

    @runner.endpoint("/quiet")
    def quiet(self) -> Iterator[Item]:
        self.gate.wait(20)
        self.gate.clear()
        yield Item(0)

    @runner.endpoint("/quiet-fails")
    def quiet_fails(self) -> Iterator[Item]:
        threading.Event().wait(0.3)
        raise runner.HTTPError(418, "teapot")
        yield

    @runner.endpoint("/quiet-gives-async")
    def quiet_gives_async(self) -> AsyncIterator[Item]:
        threading.Event().wait(0.3)
        return self.asynchronous(1)

    @runner.endpoint("/open", health_check=runner.HealthCheck(call_regularly=False))
    def open_gate(self) -> None:
        self.gate.set()

    def _endless(self, name: str) -> Iterator[Item]:
        try:
            i = 0
            while True:
                yield Item(i, "x" * 1000)
                i += 1
        finally:
            print("closed", name)

    @runner.endpoint("/endless")
    def endless(self) -> Iterator[Item]:
        return self._endless("sync")

    @runner.endpoint("/endless-plain")
    def endless_plain(self):  # type: ignore[no-untyped-def]
        return self._endless("plain")

    @runner.endpoint("/endless-async")
    async def endless_async(self) -> AsyncIterator[Item]:
        try:
            i = 0
            while True:
                yield Item(i, "x" * 1000)
                i += 1
        finally:
            print("closed", "async")

    @runner.endpoint("/waits-async")
    async def waits_async(self) -> AsyncIterator[Item]:
        try:
            yield Item(0)
            await asyncio.Event().wait()
        finally:
            print("closed", "waiting")

    @runner.endpoint("/endless-own")
    async def endless_own(self) -> runner.StreamingResponse:
        parts = (f"data: {item.i}\n\n" for item in self._endless("own"))
        return runner.StreamingResponse(parts, media_type="text/event-stream")

    @runner.endpoint("/endless-starlette")
    async def endless_starlette(self) -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse((f"data: {item.i}\n\n" for item in self._endless("starlette")), media_type="text/event-stream")

    # --- to be read by others too

    @runner.endpoint("/finish", on_disconnect="finish")
    def finish(self, n: int = 3) -> Iterator[Item]:
        for i in range(n):
            if i == 1:
                self.gate.wait(20)
                self.gate.clear()
            yield Item(i)

    @runner.endpoint("/finish-unary", on_disconnect="finish")
    def finish_unary(self) -> Item:
        runner.progress(1, 2)
        return Item(7)

    @runner.endpoint("/finish-fails", on_disconnect="finish")
    def finish_fails(self) -> Iterator[Item]:
        yield Item(0)
        raise ValueError("no")
