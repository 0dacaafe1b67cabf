"""What gets cancelled: the loops of bench/cancel.py and of the tests, and an app that serves them.

None of them knows of cancellation. Each takes a number of steps and gives a value that is the same
for the same number, bit by bit, so that what runs after a cancel can be compared.

    python runner.py bench/workloads.py:Workloads --plugin bench/workloads.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import runner

FOREVER = 1_000_000_000
SEED = 11


class Block(nn.Module):
    """Two convolutions with a time embedding, as a denoising U-Net has many of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.time = nn.Linear(16, channels)

    def forward(self, picture: Tensor, moment: Tensor) -> Tensor:
        return picture + self.second(self.first(picture) + self.time(moment)[:, :, None, None])


class Denoiser(nn.Module):
    """Like a U-Net: down, through the middle, up again."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, channels, 3, padding=1)
        self.down = nn.ModuleList(Block(channels) for _ in range(3))
        self.shrink = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Block(channels) for _ in range(2))
        self.up = nn.ModuleList(Block(channels) for _ in range(3))
        self.leave = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, picture: Tensor, moment: Tensor) -> Tensor:
        x = self.enter(picture)
        for block in self.down:
            x = block(x, moment)
        small = self.shrink(x)
        for block in self.middle:
            small = block(small, moment)
        x = x + F.interpolate(small, scale_factor=2)
        for block in self.up:
            x = block(x, moment)
        return self.leave(x)


class Layer(nn.Module):
    """Attention over what was kept, and a feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, width = x.shape
        mixed = self.mix(self.before(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, pair = mixed[0], mixed[1:]
        if kept is not None:
            pair = torch.cat([kept, pair], dim=3)[..., -128:, :]
        seen = F.scaled_dot_product_attention(query, pair[0], pair[1], is_causal=kept is None)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(x), pair


class Writer(nn.Module):
    """An autoregressive language model with a cache of keys and values."""

    def __init__(self, width: int = 128, layers: int = 4, words: int = 500) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Layer(width, 4) for _ in range(layers))
        self.head = nn.Linear(width, words)

    def forward(self, ids: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        x, kept = self.words(ids), []
        for number, layer in enumerate(self.layers):
            x, pair = layer(x, cache[number] if cache else None)
            kept.append(pair)
        return self.head(x[:, -1]), kept


class Models:
    """Made once, from one seed."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.denoiser = Denoiser().eval()
        self.writer = Writer().eval()
        self.compiled: Any = None

    def compile(self) -> None:
        """A compiled step of the denoiser; needs a C++ compiler and some seconds."""
        self.compiled = torch.compile(self.denoiser)

    @torch.no_grad()
    def denoise(self, steps: int, denoiser: Any = None) -> Tensor:
        denoiser = self.denoiser if denoiser is None else denoiser
        generator = torch.Generator().manual_seed(SEED)
        picture = torch.randn(1, 4, 32, 32, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            for step in range(steps):
                moment = torch.full((1, 16), (step % 50) / 50)
                picture = picture - 0.02 * denoiser(picture, moment).float()
        return picture

    def denoise_compiled(self, steps: int) -> Tensor:
        return self.denoise(steps, self.compiled)

    @torch.inference_mode()
    def write(self, steps: int) -> Tensor:
        ids, cache, written = torch.arange(16)[None], None, []
        for _ in range(steps):
            scores, cache = self.writer(ids, cache)
            ids = scores.argmax(-1, keepdim=True)
            written = [*written[-63:], ids]
        return torch.cat(written, dim=1)


@torch.no_grad()
def functional(steps: int) -> Tensor:
    """No module at all."""
    x = torch.randn(192, 192, generator=torch.Generator().manual_seed(SEED))
    weight = x / 16
    for _ in range(steps):
        x = F.layer_norm(F.gelu(x @ weight), (192,)) + torch.sin(x) * 0.1
    return x


def python(steps: int) -> int:
    """A plain loop, which never gives up the interpreter by itself."""
    total = 0
    for step in range(steps * 1000 if steps < FOREVER else FOREVER * FOREVER):
        total += step * step % 7
    return total


@torch.no_grad()
def one_long_call(steps: int) -> Tensor:
    """A matrix product of a third of a second or so: it ends when it ends."""
    matrix = torch.ones(1500, 1500) if steps >= FOREVER else torch.ones(30, 30)
    while steps > 0:
        matrix = matrix @ matrix * 1e-4
        steps -= 1
    return matrix[0, 0]


def asleep(steps: int) -> None:
    """Asleep for half a second: nobody can be woken."""
    time.sleep(0.5 if steps >= FOREVER else 0)


Loop = Callable[[int], Any]


def loops(models: Models) -> dict[str, Loop]:
    """Every loop by name; the compiled one when it was made."""
    found: dict[str, Loop] = {
        "unet": models.denoise,
        "lm": models.write,
        "functional": functional,
        "python": python,
        "one long call": one_long_call,
        "asleep": asleep,
    }
    if models.compiled is not None:
        found["compiled"] = models.denoise_compiled
    return found


class Workloads(runner.App):
    """Serves them: `{"loop": "unet", "steps": 3}`."""

    def setup(self) -> None:
        torch.set_num_threads(1)
        models = Models()
        models.compile()
        self.loops = loops(models)
        for loop in self.loops.values():
            loop(2)

    @runner.endpoint("/")
    def run(self, loop: str, steps: int = FOREVER) -> float:
        value = self.loops[loop](steps)
        return float(value.double().sum()) if isinstance(value, Tensor) else float(value or 0)


# --- as a plugin: when each request was cancelled and its place free again, on the machine's clock

_places: dict[str, Any] = {}


@runner.hookimpl
def wrap_call(endpoint: Any, service: Any) -> Any:
    def wrap(call: Any) -> Any:
        async def keep_place(request: Any, arguments: Any) -> Any:
            try:
                return await call(request, arguments)
            finally:
                _places[request.id] = request.place

        return keep_place

    return wrap


@runner.hookimpl
def register_routes(service: Any) -> Any:
    async def times(request: Any) -> runner.Response:
        place = _places.pop(request.path_parameters["id"])
        stopped = await place.stopped()
        return runner.Response(
            f'{{"heard": {place.token.at}, "free": {place.ended}, "began": {place.began}, '
            f'"layer": "{stopped.layer}", "swallowed": {stopped.swallowed}}}'
        )

    return [runner.Route(method="GET", path="/bench/times/{id}", answer=times)]
