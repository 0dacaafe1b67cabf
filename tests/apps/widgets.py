"""An app for the playground: a field for each widget, and an endpoint for each kind of result."""

from __future__ import annotations

import base64
import enum
import json
import math
import struct
import time
import wave
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
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


class ImageSize(msgspec.Struct):
    width: Annotated[int, Meta(gt=0, le=14142)] = 512
    height: Annotated[int, Meta(gt=0, le=14142)] = 512


class CameraControl(msgspec.Struct):
    movement_type: Literal["horizontal", "vertical", "pan", "tilt", "roll", "zoom"]
    movement_value: Annotated[int, Meta(ge=-10, le=10)]


class Shot(msgspec.Struct):
    image_size: Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"] | ImageSize = "landscape_4_3"
    camera_control: Literal["down_back", "forward_up", "right_turn_forward", "left_turn_forward"] | None = None
    advanced_camera_control: CameraControl | None = None
    palette: list[RGBColor] = []
    tint: RGBColor | None = None


class Told(msgspec.Struct):
    style: Annotated[str, Meta(extra_json_schema={"ui": {"important": True, "hint": "as painters call it"}})] = "fauve"
    model_name: Annotated[str, Meta(examples=["small", "large"])] = "small"
    secret: Annotated[int, Meta(extra_json_schema={"ui": {"hidden": True}})] = 1
    version: Annotated[str, Meta(extra_json_schema={"ui": {"frozen": True}})] = "v1"
    story: Annotated[str, Meta(examples=["Once upon a time"], extra_json_schema={"ui": {"field": "textarea"}})] = ""


class Cut(msgspec.Struct, tag="cut"):
    at: Annotated[float, Meta(ge=0)]


class Fade(msgspec.Struct, tag="fade"):
    seconds: Annotated[float, Meta(ge=0, le=5)]


class Scene(msgspec.Struct):
    size: ImageSize
    lines: list[Annotated[str, Meta(max_length=8)]]
    change: Cut | Fade


class Storyboard(msgspec.Struct):
    scenes: list[Scene]


class Training(msgspec.Struct):
    images_data_url: runner.File
    model_name: str = ""


class Models(msgspec.Struct):
    model_glb: runner.File
    model_mesh: runner.File


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

    @runner.endpoint("/develop")
    def develop(self) -> Iterator[dict[str, Any]]:
        """Send a picture as it comes out."""
        for width in (8, 16, 32):
            with BytesIO() as file:
                Pictures.new("RGB", (width, 8), "teal").save(file, "png")
                url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            yield {"images": [{"url": url, "content_type": "image/png"}], "step": width}

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

    @runner.endpoint("/shot")
    def shot(self, input: Shot) -> dict[str, Any]:
        return {"asked": msgspec.to_builtins(input)}

    @runner.endpoint("/told")
    def told(self, input: Told) -> dict[str, Any]:
        return {"asked": msgspec.to_builtins(input)}

    @runner.endpoint("/storyboard")
    def storyboard(self, input: Storyboard) -> dict[str, Any]:
        return {"asked": msgspec.to_builtins(input)}

    @runner.endpoint("/scan")
    def scan(self, model_url: str) -> Models:
        return Models(runner.File.from_bytes(cube(), "model/gltf-binary", "cube.glb"), runner.File.from_bytes(b"no known kind", None, "scan.mesh"))

    @runner.endpoint("/light")
    def light(self) -> dict[str, Any]:
        return {"sky": runner.File.from_bytes(sky(), "image/x-exr", "sky.exr")}

    @runner.endpoint("/watch")
    def watch(self, video: runner.Video) -> dict[str, Any]:
        return {"video": video}

    @runner.endpoint("/train")
    def train(self, input: Training) -> dict[str, Any]:
        with input.images_data_url.open() as file, zipfile.ZipFile(file) as archive:
            return {"files": [{"name": one.filename, "bytes": len(archive.read(one))} for one in archive.infolist()]}

    @runner.endpoint("/elsewhere")
    def elsewhere(self, image_url: str) -> dict[str, Any]:
        return {"image": {"url": image_url, "content_type": "image/png"}, "video_url": "https://elsewhere.invalid/a.mp4"}

    @runner.endpoint("/unsafe")
    def unsafe(self) -> dict[str, Any]:
        return {"images": [runner.Image.from_pil(Pictures.new("RGB", (80, 60), "red"), "png", "red.png")], "has_nsfw_concepts": [True]}

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


def cube() -> bytes:
    """A GLB of one cube, half as high as it is wide by the node that holds it."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    places = b"".join(struct.pack("<3f", *corner) for corner in corners)
    faces = b"".join(struct.pack("<6H", a, b, c, a, c, d) for a, b, c, d in sides)
    told = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0, "scale": [1, 0.5, 1]}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorFactor": [0.9, 0.2, 0.1, 1]}}],
        "buffers": [{"byteLength": len(places) + len(faces)}],
        "bufferViews": [{"buffer": 0, "byteLength": len(places)}, {"buffer": 0, "byteOffset": len(places), "byteLength": len(faces)}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
    }  # fmt: skip
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 4)
    data = places + faces
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def sky(width: int = 24, height: int = 20) -> bytes:
    """An OpenEXR picture in two ZIP blocks: red grows to the right, above white; green is an eighth."""

    def field(name: str, kind: str, value: bytes) -> bytes:
        return f"{name}\0{kind}\0".encode() + struct.pack("<i", len(value)) + value

    channels = b"".join(f"{name}\0".encode() + struct.pack("<iIii", 1, 0, 1, 1) for name in "BGR") + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    head = struct.pack("<II", 20000630, 2) + field("channels", "chlist", channels) + field("compression", "compression", b"\3")
    head += field("dataWindow", "box2i", window) + field("displayWindow", "box2i", window) + field("lineOrder", "lineOrder", b"\0")
    head += field("pixelAspectRatio", "float", struct.pack("<f", 1)) + field("screenWindowCenter", "v2f", bytes(8))
    head += field("screenWindowWidth", "float", struct.pack("<f", 1)) + b"\0"
    line = struct.pack(f"<{width}e", *[0.0] * width) + struct.pack(f"<{width}e", *[0.125] * width)
    line += struct.pack(f"<{width}e", *[4 * x / width for x in range(width)])
    blocks = []
    for first in range(0, height, 16):
        plain = line * min(16, height - first)
        mixed = plain[::2] + plain[1::2]
        differences = bytes([mixed[0], *((b - a + 128) & 255 for a, b in pairwise(mixed))])
        packed = zlib.compress(differences)
        blocks.append(struct.pack("<ii", first, len(packed)) + packed)
    start = len(head) + 8 * len(blocks)
    places = [start + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    return head + struct.pack(f"<{len(blocks)}Q", *places) + b"".join(blocks)
