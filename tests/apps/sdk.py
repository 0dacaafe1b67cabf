"""An app for the stock clients: one endpoint for each thing that they can do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

import runner


class Frame(msgspec.Struct):
    n: int


class Sdk(runner.App, name="sdk"):
    max_multiplexing = 4

    @runner.endpoint("/")
    def run(self, prompt: str) -> dict[str, str]:
        print(f"prompt is {prompt}")
        return {"text": prompt.upper()}

    @runner.endpoint("/gate")
    def gate(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        return "through"

    @runner.endpoint("/stream")
    def stream(self, n: int) -> Iterator[dict[str, int]]:
        for i in range(n):
            yield {"i": i}

    @runner.endpoint("/bad")
    def bad(self) -> str:
        raise runner.HTTPError(404, "no such voice")

    @runner.endpoint("/size")
    def size(self, file: runner.File) -> dict[str, int]:
        return {"size": len(file.as_bytes())}

    @runner.endpoint("/picture")
    def picture(self) -> runner.File:
        return runner.File.from_bytes(b"a picture", content_type="image/png")

    @runner.realtime("/realtime")
    def double(self, frame: Frame) -> Frame:
        return Frame(n=2 * frame.n)
