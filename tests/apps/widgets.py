"""An app for the playground: a field for each widget, and an endpoint for each kind of result."""

from __future__ import annotations

import enum
import math
import struct
import time
import wave
from io import BytesIO
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from PIL import Image as Pictures

import runner


class RGBColor(msgspec.Struct):
    r: int = 0
    g: int = 0
    b: int = 0


class Size(msgspec.Struct):
    width: int = 512
    height: int = 512


class Style(enum.Enum):
    PLAIN = "plain"
    BOLD = "bold"


class Input(msgspec.Struct):
    prompt: Annotated[str, Meta(min_length=1, description="what it is about")]
    picture: runner.Image | None = None
    image_size: Literal["square", "portrait"] | Size = "square"
    style: Style = Style.PLAIN
    steps: Annotated[int, Meta(ge=1, le=50)] = 20
    strength: Annotated[float, Meta(ge=0, le=1)] = 0.5
    seed: int | None = None
    loud: bool = False
    color: RGBColor = msgspec.field(default_factory=RGBColor)
    tags: list[str] = []
    corners: list[Literal["a", "b", "c"]] = []
    inner: Size | None = None
    extra: dict[str, Any] = {}


class Frame(msgspec.Struct):
    n: int = 21


class Gallery(msgspec.Struct):
    images: list[runner.Image]
    seed: int


class Sound(msgspec.Struct):
    audio: runner.Audio


class Masked(msgspec.Struct):
    image_url: str
    mask_url: str


class Chunk(msgspec.Struct):
    sound: bytes = b""


class Widgets(runner.App):
    max_multiplexing = 2

    @runner.endpoint("/")
    def echo(self, input: Input) -> dict[str, Any]:
        """Give back what came in.

        Every kind of field that a form can have is in its input.
        """
        return msgspec.to_builtins(input) if input.picture is None else {"pixels": list(input.picture.to_pil().size)}

    @runner.endpoint("/steps")
    def steps(self, count: int = 20, seconds: float = 0.05) -> dict[str, int]:
        for step in range(count):
            print(f"step {step + 1}")
            runner.progress(step + 1, count, "stepping")
            runner.preview(Pictures.new("RGB", (64, 64), (255, 8 * step, 0)))
            time.sleep(seconds)
        return {"steps": count}

    @runner.endpoint("/pictures")
    def pictures(self, count: int = 3) -> Gallery:
        shades = [Pictures.new("RGB", (320, 200), (40 + 60 * i, 90, 200 - 50 * i)) for i in range(count)]
        return Gallery([runner.Image.from_pil(shade, "png", f"shade-{i}.png") for i, shade in enumerate(shades)], 7)

    @runner.endpoint("/sound")
    def sound(self) -> Sound:
        return Sound(runner.Audio.from_bytes(tone(), "audio/wav", "tone.wav"))

    @runner.endpoint("/markup")
    def markup(self) -> dict[str, str]:
        return {"text": "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"}

    @runner.endpoint("/inpaint")
    def inpaint(self, input: Masked) -> Masked:
        return input

    @runner.endpoint("/hear")
    def hear(self, audio: runner.Audio) -> dict[str, Any]:
        with audio.open() as file, wave.open(file) as sound:
            return {"channels": sound.getnchannels(), "heard": sound.getnframes() > 0}

    @runner.endpoint("/albums")
    def albums(self, images: list[runner.Image]) -> dict[str, Any]:
        return {"sizes": [list(image.to_pil().size) for image in images]}

    @runner.realtime("/levels")
    def levels(self, chunk: Chunk) -> dict[str, int]:
        return {"bytes": len(chunk.sound)}

    @runner.realtime("/double")
    def double(self, frame: Frame) -> Frame:
        return Frame(frame.n * 2)


def tone(seconds: float = 0.5, rate: int = 16_000) -> bytes:
    with BytesIO() as file:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(rate)
            samples = (round(20_000 * math.sin(i / 12) * math.exp(-i / 3000)) for i in range(int(seconds * rate)))
            sound.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
        return file.getvalue()
