"""Portrait: a picture comes back painted. An image in, an image out, and torch between them.

    python runner.py examples/portrait.py
    curl -F image=@examples/data/cat.jpg -F brush=2 localhost:8000        answers with the painting's URL

Two classics, no weights to download. A guided filter (He, Sun, Tang 2010) parts the light from the
details, so that dark places open up without halos. A Kuwahara filter (1976), in its smooth form
with eight sectors, gives each pixel the color of the calmest sector around it, which leaves edges
sharp and flattens the rest to strokes. Needs `pip install pillow`; what is larger than 1024 pixels
is made smaller first.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch.nn import functional

import runner

LONGEST_SIDE = 1024  # pixels
SECTORS = 8
SHARPNESS = 8  # how much a calm sector outweighs a busy one; a number out of the air


class Input(msgspec.Struct):
    image: runner.Image
    brush: Annotated[int, Meta(ge=1, le=12, description="width of the strokes, in pixels")] = 2
    light: Annotated[float, Meta(ge=0, le=1, description="how far dark places are opened up")] = 0.4


class Output(msgspec.Struct):
    image: runner.Image


class Portrait(runner.App):
    def setup(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @runner.endpoint("/")
    def paint(self, input: Input) -> Output:
        picture = input.image.to_torch().to(self.device).permute(2, 0, 1)[None].float() / 255
        painted = kuwahara(opened(smaller(picture), input.light), input.brush)
        pixels = (painted[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8)
        return Output(runner.Image.from_torch(pixels, "png", "painted.png"))


def smaller(picture: torch.Tensor) -> torch.Tensor:
    """`picture`, (1, channels, height, width), with no side above LONGEST_SIDE."""
    scale = LONGEST_SIDE / max(picture.shape[2:])
    if scale >= 1:
        return picture
    return functional.interpolate(picture, scale_factor=scale, mode="bilinear", antialias=True)


def opened(picture: torch.Tensor, light: float) -> torch.Tensor:
    """The same with its dark places lighter: the light is compressed, the details on it are kept."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=picture.device)[:, None, None]
    luminance = (picture * weights).sum(1, keepdim=True).clamp(min=1e-3)
    base = guided(luminance.log(), radius=max(picture.shape[2:]) // 24, smooth=0.1)
    return (picture * torch.exp(-light * (base - base.amax()) * 0.6)).clamp(0, 1)


def guided(image: torch.Tensor, radius: int, smooth: float) -> torch.Tensor:
    """`image` smoothed along itself: flat where it varies less than `smooth`, untouched at edges."""
    mean = mean_around(image, radius)
    variance = mean_around(image * image, radius) - mean * mean
    slope = variance / (variance + smooth)
    return mean_around(slope, radius) * image + mean_around(mean - slope * mean, radius)


def mean_around(image: torch.Tensor, radius: int) -> torch.Tensor:
    return functional.avg_pool2d(image, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def kuwahara(picture: torch.Tensor, radius: int) -> torch.Tensor:
    """Each pixel as the sectors around it see it, the calm ones most. Values from 0 to 1."""
    channels = picture.shape[1]
    padded = functional.pad(picture, (2 * radius,) * 4, mode="replicate")
    colors = torch.zeros_like(picture)
    total = torch.zeros_like(picture[:, :1])
    for kernel in sectors(2 * radius).to(picture.device):
        window = kernel.expand(channels, 1, *kernel.shape)
        mean = functional.conv2d(padded, window, groups=channels)
        variance = functional.conv2d(padded * padded, window, groups=channels) - mean * mean
        deviation = variance.clamp(min=0).sum(1, keepdim=True).sqrt()
        weight = (1 + 255 * deviation).pow(-SHARPNESS / 2)
        colors += weight * mean
        total += weight
    return colors / total


def sectors(radius: int) -> torch.Tensor:
    """One smooth window for each sector of the disk, (sectors, side, side), each of sum 1."""
    place = torch.arange(-radius, radius + 1).float()
    y, x = torch.meshgrid(place, place, indexing="ij")
    far = torch.exp(-(x * x + y * y) / (2 * (radius / 2) ** 2))
    windows = []
    for sector in range(SECTORS):
        turn = torch.atan2(y, x) - 2 * math.pi * sector / SECTORS
        near = torch.cos(turn).clamp(min=0).pow(SECTORS)  # of the pixel's direction to the sector's
        near[radius, radius] = 1 / SECTORS  # the middle belongs to all
        windows.append(near * far / (near * far).sum())
    return torch.stack(windows)
