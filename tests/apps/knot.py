"""An app for pictures of the playground: a knot in colours of one's choice, as a 3D model."""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

import runner

AROUND, ACROSS = 320, 28  # corners along the knot, and around its rope


class RGBColor(msgspec.Struct):
    r: int = 0
    g: int = 0
    b: int = 0


class ImageSize(msgspec.Struct):
    width: int = 512
    height: int = 512


class CameraControl(msgspec.Struct):
    movement_type: Literal["horizontal", "vertical", "pan", "tilt", "roll", "zoom"] = "roll"
    movement_value: Annotated[int, Meta(ge=-10, le=10)] = 4


class Input(msgspec.Struct):
    palette: Annotated[list[RGBColor], Meta(examples=[[{"r": 238, "g": 108, "b": 77}, {"r": 240, "g": 196, "b": 90}, {"r": 60, "g": 120, "b": 190}]])]
    turns: Annotated[int, Meta(ge=2, le=9, description="of the rope around the ring")] = 3
    image_size: Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"] | ImageSize = msgspec.field(
        default="landscape_4_3"
    )
    camera: Annotated[CameraControl, Meta(extra_json_schema={"ui": {"field": "camera_control", "important": True}})] = msgspec.field(default_factory=CameraControl)


class Output(msgspec.Struct):
    model_glb: runner.File
    corners: int


class Knot(runner.App):
    @runner.endpoint("/")
    def tie(self, input: Input) -> Output:
        """Tie a rope around a ring and paint it."""
        data = knot(input.turns, np.array([[c.r, c.g, c.b] for c in input.palette] or [[200, 200, 205]]) / 255)
        return Output(runner.File.from_bytes(data, "model/gltf-binary", "knot.glb"), AROUND * ACROSS)


def knot(turns: int, colors: Any) -> bytes:
    """A GLB of a torus knot whose rope changes its colour along the way."""
    along = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
    path = np.stack([(2 + np.cos(turns * along)) * np.cos(2 * along), (2 + np.cos(turns * along)) * np.sin(2 * along), np.sin(turns * along)], 1)
    forward = unit(np.roll(path, -1, 0) - np.roll(path, 1, 0))
    out = unit(np.cross(forward, unit(np.roll(path, -1, 0) - 2 * path + np.roll(path, 1, 0))))
    side = np.cross(out, forward)
    angle = np.linspace(0, 2 * np.pi, ACROSS, endpoint=False)
    normals = np.cos(angle)[None, :, None] * out[:, None] + np.sin(angle)[None, :, None] * side[:, None]
    places = path[:, None] + 0.42 * normals
    at = np.arange(AROUND) / AROUND * len(colors)
    part = (at % 1)[:, None]
    paint = colors[at.astype(int) % len(colors)] * (1 - part) + colors[(at.astype(int) + 1) % len(colors)] * part
    paints = np.repeat(paint[:, None] ** 2.2, ACROSS, 1)
    i, j = np.meshgrid(np.arange(AROUND), np.arange(ACROSS), indexing="ij")
    corner = lambda a, b: (i + a) % AROUND * ACROSS + (j + b) % ACROSS  # noqa: E731
    faces = np.stack([corner(0, 0), corner(1, 0), corner(1, 1), corner(0, 0), corner(1, 1), corner(0, 1)], 2)
    return glb([places, normals, paints], faces)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def glb(attributes: list[Any], faces: Any) -> bytes:
    blocks = [np.ascontiguousarray(one, "<f4").tobytes() for one in attributes] + [np.ascontiguousarray(faces, "<u4").tobytes()]
    starts = [sum(map(len, blocks[:i])) for i in range(len(blocks))]
    count = attributes[0].size // 3
    told = {
        "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "indices": 3}]}],
        "buffers": [{"byteLength": sum(map(len, blocks))}],
        "bufferViews": [{"buffer": 0, "byteOffset": start, "byteLength": len(block)} for start, block in zip(starts, blocks, strict=True)],
        "accessors": [{"bufferView": i, "componentType": 5126, "count": count, "type": "VEC3"} for i in range(3)]
        + [{"bufferView": 3, "componentType": 5125, "count": faces.size, "type": "SCALAR"}],
    }  # fmt: skip
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 4)
    data = b"".join(blocks)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body
