"""The portrait example: what it does to a picture, and that its answer is a picture again."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import PIL.Image
import pytest
import torch
from serving import HOUSE, serving

CAT = HOUSE / "examples" / "data" / "cat.jpg"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location("portrait_example", HOUSE / "examples" / "portrait.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_that_goes_up_comes_back_painted(tmp_path: Path) -> None:
    with serving(HOUSE / "examples" / "portrait.py", "--data-dir", str(tmp_path), cwd=tmp_path) as runner:
        image = runner.post("/", files={"image": CAT.read_bytes()}, data={"brush": "1"}).json()["image"]
        painted = PIL.Image.open(io.BytesIO(httpx.get(image["url"], trust_env=False).content))
        wrong = runner.post("/", {"image": "data:,no picture"})

    with PIL.Image.open(CAT) as cat:
        assert painted.size == (image["width"], image["height"]) == cat.size
    assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "image"])


def test_strokes_flatten_noise_and_leave_an_edge_where_it_was(example: ModuleType) -> None:
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 40, 40)
    picture[..., 20:] = 1.0
    noisy = (picture + 0.1 * torch.randn_like(picture)).clamp(0, 1)

    painted = example.kuwahara(noisy, 2)
    assert painted[..., 4:16].std() < noisy[..., 4:16].std() / 2
    assert (painted[..., :19] < 0.3).all()
    assert (painted[..., 21:] > 0.7).all()


def test_light_opens_dark_places_and_nothing_gets_darker(example: ModuleType) -> None:
    picture = torch.full((1, 3, 64, 64), 0.8)
    picture[..., :32] = 0.05

    opened = example.opened(picture, 0.5)
    assert (opened[..., :24] > 0.08).all()
    assert (opened >= picture - 1e-4).all()
    assert torch.equal(example.opened(picture, 0.0), picture)


def test_a_large_picture_is_made_smaller_and_a_small_one_is_not(example: ModuleType) -> None:
    assert max(example.smaller(torch.zeros(1, 3, 3000, 1500)).shape) == example.LONGEST_SIDE
    assert example.smaller(torch.zeros(1, 3, 7, 5)).shape == (1, 3, 7, 5)


def test_the_sectors_of_the_brush_weigh_the_same(example: ModuleType) -> None:
    windows = example.sectors(4)

    assert windows.shape == (8, 9, 9)
    assert torch.allclose(windows.sum((1, 2)), torch.ones(8))
