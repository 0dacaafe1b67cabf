"""What the testing kit is tested with: an endpoint of every kind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec

import runner


class Input(msgspec.Struct):
    prompt: str
    n: Annotated[int, msgspec.Meta(ge=0)] = 3


class Output(msgspec.Struct):
    text: str
    n: int


class Pictures(msgspec.Struct):
    first: runner.Image
    others: list[runner.File] = []


class Kit(runner.App):
    max_multiplexing = 4

    def setup(self) -> None:
        self.go, self.closed = threading.Event(), threading.Event()

    @runner.endpoint("/")
    def generate(self, input: Input) -> Output:
        print("generating", input.prompt)
        if input.prompt == "boom":
            raise ValueError("boom!")
        if input.prompt == "teapot":
            raise runner.HTTPError(418, {"short": "stout"}, {"x-spout": "yes"})
        return Output(text=input.prompt.upper(), n=input.n)

    @runner.endpoint("/times")
    async def times(self, a: int, b: float = 2) -> float:
        return a * b

    @runner.endpoint("/items/{item}")
    def item(self, item: str, input: Input, flag: bool = False, x_tag: str = runner.Header("none")) -> dict[str, Any]:  # type: ignore[assignment]
        return {"item": item, "prompt": input.prompt, "flag": flag, "tag": x_tag}

    @runner.endpoint("/both")
    def both(self, one: Input, other: Input) -> list[str]:
        return [one.prompt, other.prompt]

    @runner.endpoint("/steps")
    def steps(self) -> Iterator[Output]:
        """The second item is made once somebody calls `release`."""
        self.go.clear()
        yield Output(text="first", n=0)
        self.go.wait(20)
        yield Output(text="second", n=1)

    @runner.endpoint("/release")
    async def release(self) -> None:
        self.go.set()

    @runner.endpoint("/forever")
    def forever(self) -> Iterator[int]:
        self.closed.clear()
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.closed.set()

    @runner.endpoint("/was-closed")
    def was_closed(self) -> bool:
        return self.closed.wait(20)

    @runner.endpoint("/fails")
    async def fails(self) -> AsyncIterator[dict[str, str]]:
        yield {"detail": "no error", "error_type": "but an item that looks like one"}
        yield {"text": "more"}
        raise ValueError("in the middle")

    @runner.endpoint("/twice")
    def twice(self, image: runner.Image) -> runner.Image:
        picture = image.to_pil()
        return runner.Image.from_pil(picture.resize((picture.width * 2, picture.height * 2)), format="png")

    @runner.endpoint("/sizes")
    def sizes(self, pictures: Pictures) -> list[int]:
        return [pictures.first.to_pil().width, *(len(other.as_bytes()) for other in pictures.others)]

    @runner.endpoint("/named")
    def named(self, file: runner.File) -> list[str | None]:
        return [file.file_name, file.content_type, file.as_bytes()[:5].decode()]

    @runner.endpoint("/page")
    def page(self) -> runner.Response:
        return runner.Response(b"<p>hello", media_type="text/html")

    @runner.endpoint("/waits")
    async def waits(self) -> str:
        print("waiting")
        await asyncio.sleep(30)
        return "never"

    @runner.endpoint("/healthy", health_check=runner.HealthCheck())
    def health(self) -> dict[str, str]:
        return {"version": "of the app"}

    @runner.realtime("/reverse")
    def reverse(self, input: Input) -> Output:
        return Output(text=input.prompt[::-1], n=input.n)

    @runner.realtime("/count")
    async def count(self, inputs: AsyncIterator[Input]) -> AsyncIterator[Output]:
        async for input in inputs:
            for number in range(input.n):
                yield Output(text=input.prompt, n=number)

    @runner.endpoint("/echo", is_websocket=True)
    async def echo(self, websocket: runner.WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text() + "!")
        await websocket.close()


class NeverReady(runner.App):
    def setup(self) -> None:
        threading.Event().wait()

    @runner.endpoint("/")
    def run(self) -> str:
        return "x"


class NoWeights(runner.App):
    def setup(self) -> None:
        print("looking for weights")
        raise OSError("no weights")

    @runner.endpoint("/")
    def run(self) -> str:
        return "x"
