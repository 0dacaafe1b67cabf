"""An app whose endpoints make, take and pass on files."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import PIL.Image
from pydantic import BaseModel

import runner


class Picture(msgspec.Struct):
    image: runner.Image


class PictureModel(BaseModel):
    image: runner.Image


class Made(msgspec.Struct):
    text: str = "made"
    content_type: str | None = None
    name: str | None = None
    repository: str = "fal_v3"


class Given(BaseModel):
    file: runner.File


class Files(runner.App):
    max_multiplexing = 8

    def setup(self):
        self.before = runner.File.from_bytes(b"made in setup", file_name="setup.txt")

    @runner.endpoint("/")
    def red(self) -> Picture:
        return Picture(runner.Image.from_pil(PIL.Image.new("RGB", (8, 4), "red")))

    @runner.endpoint("/model")
    async def model(self) -> PictureModel:
        return PictureModel(image=await runner.Image.from_pil_async(PIL.Image.new("RGB", (8, 4), "red"), "jpg"))

    @runner.endpoint("/made")
    def made(self, input: Made) -> runner.File:
        return runner.File.from_bytes(input.text.encode(), input.content_type, input.name, repository=input.repository)

    @runner.endpoint("/path")
    def path(self) -> runner.File:
        with open("here.txt", "w") as file:
            file.write("from a path")
        made = runner.File.from_path("here.txt")
        Path("here.txt").unlink()
        return made

    @runner.endpoint("/setup")
    def from_setup(self) -> runner.File:
        return self.before

    @runner.endpoint("/threads")
    def threads(self) -> list[runner.File]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(runner.File.from_bytes, [b"a", b"b"]))

    @runner.endpoint("/stream")
    def stream(self) -> Iterator[Picture]:
        for color in ("red", "green", "blue"):
            yield Picture(runner.Image.from_pil(PIL.Image.new("RGB", (2, 2), color)))

    @runner.endpoint("/stream-async")
    async def stream_async(self) -> AsyncIterator[runner.File]:
        for n in range(2):
            yield await runner.File.from_bytes_async(b"%d" % n)

    @runner.endpoint("/echo")
    def echo(self, file: runner.File) -> runner.File:
        return file

    @runner.endpoint("/read")
    def read(self, file: runner.File) -> str:
        return file.as_bytes().decode()

    @runner.endpoint("/read-model")
    async def read_model(self, input: Given) -> str:
        return (await input.file.as_bytes_async()).decode()

    @runner.endpoint("/mode")
    def mode(self, image: runner.Image) -> list:
        return list(image.to_pil().size)

    @runner.endpoint("/length")
    def length(self, file: runner.File) -> int:
        with file.open() as source:
            return sum(len(chunk) for chunk in iter(lambda: source.read(1 << 20), b""))

    @runner.endpoint("/lifecycle")
    def lifecycle(self) -> dict | None:
        return self.current_request.lifecycle_preference

    @runner.endpoint("/loop")
    async def loop(self) -> runner.File:
        await asyncio.sleep(0)
        return runner.File.from_bytes(b"on the loop")
