"""How long after a cancel a GPU stands still, and what the governor costs while nobody cancels.

In one process, without HTTP: a worker's thread runs a loop on the GPU, its token is cancelled at a
random moment, and two times are taken: until the thread has left, and until a mark set in its
stream after that is reached. Each pace of the governor is tried on each loop. Milliseconds.

    unwind   cancel to thread out
    idle     cancel to device idle, which is when the place is free
    left     bytes more in use afterwards than before
    same     whether the next output has the same bits
    cost     what the pace adds to an uncancelled run, in percent

It says nothing of several GPUs, of several streams, or of other processes on the same GPU.

    python bench/cancel_gpu.py --trials 200        # some 10 minutes on a large GPU
    python bench/cancel_gpu.py --cpu --trials 5    # only to see that it runs
"""

# ruff: noqa: E402 - the house is found first
from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(HOUSE)
    sys.path.insert(1, str(HOUSE / "tests"))

import torch
from runner.plugins.cancellation import Call, Token
from runner.plugins.cancellation.governor import Cuda, Governor, Pace
from runner.plugins.cancellation.modules import boundary
from stopping import Running, Worker, layers
from torch import Tensor, nn
from torch.nn import functional as F

PACES = (None, Pace(every=8, ahead=8), Pace(every=16, ahead=4), Pace(every=32, ahead=2), Pace(every=4, ahead=2))
ROUNDS = 5  # of uncancelled runs, in turns, for the cost


class Block(nn.Module):
    """A transformer block with conditioning, as diffusion transformers have."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.change = nn.Linear(width, 4 * width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, gate, shift_too, gate_too = self.change(F.silu(condition)).chunk(4, dim=-1)
        batch, length, width = x.shape
        normed = F.layer_norm(x, (width,)) + shift
        query, key, value = self.mix(normed).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)
        x = x + gate * self.out(seen)
        return x + gate_too * self.feed(F.layer_norm(x, (width,)) + shift_too)


class Transformer(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, condition)
        return x


class Bench:
    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device == "cuda"
        self.kind = torch.bfloat16 if self.cuda else torch.float32

    def diffusion(self, layers: int, width: int, heads: int, length: int) -> Callable[[int], Tensor]:
        """Steps that never wait for the GPU: the thread runs as far ahead as it may."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = Transformer(layers, width, heads).to(self.kind).eval().requires_grad_(False)

        @torch.inference_mode()
        def run(steps: int) -> Tensor:
            generator = torch.Generator(self.device).manual_seed(1)
            x = torch.randn(1, length, width, device=self.device, dtype=self.kind, generator=generator)
            condition = torch.ones(1, 1, width, device=self.device, dtype=self.kind)
            for _ in range(steps):
                x = x - 0.01 * model(x, condition)
            return x.float().sum().cpu()

        return run

    def products(self, size: int) -> Callable[[int], Tensor]:
        """Large matrix products and no module: the governor counts nothing here."""
        matrix = torch.ones(size, size, device=self.device, dtype=self.kind)

        @torch.inference_mode()
        def run(steps: int) -> Tensor:
            x = matrix
            for _ in range(steps):
                x = matrix @ matrix
            return x[0, 0].float().cpu()

        return run

    def graph(self) -> Callable[[int], Tensor]:
        """Replays of one captured graph."""
        x = torch.ones(512, 512, device=self.device, dtype=self.kind)
        layer = nn.Linear(512, 512, device=self.device, dtype=self.kind).requires_grad_(False)
        for _ in range(3):
            layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(50):
                x = layer(x)

        def run(steps: int) -> Tensor:
            for _ in range(steps):
                graph.replay()
            return x.float().sum().cpu()

        return run

    def loops(self) -> dict[str, tuple[Callable[[int], Tensor], int]]:
        """Each with the steps of a short run."""
        if not self.cuda:
            return {"small transformer": (self.diffusion(2, 64, 4, 64), 3), "matrix products": (self.products(256), 10)}
        return {
            "large transformer": (self.diffusion(38, 3072, 24, 4608), 3),
            "small transformer": (self.diffusion(28, 1152, 16, 1024), 20),
            "matrix products": (self.products(16384), 3),
            "graph replays": (self.graph(), 20),
        }

    def govern(self, pace: Pace | None) -> None:
        if self.cuda:
            boundary.govern(Governor(Cuda(torch), pace or Pace(every=10**12, ahead=1)))


async def stop_at_random(worker: Worker, loop: Callable[[int], Tensor], after: float) -> tuple[float, float, Call]:
    running = Running(Call(Token()))
    left: list[float] = []

    def work() -> Any:
        running.has_begun()
        try:
            return loop(10**9)
        finally:
            left.append(time.perf_counter())

    worker.start(work, running=running)
    await running.begun.wait()
    await asyncio.sleep(after)
    at = time.perf_counter()
    call = await running.stop()
    return left[0] - at, time.perf_counter() - at, call


async def main(trials: int, device: str) -> None:
    bench, dice = Bench(device), random.Random(3)
    name = torch.cuda.get_device_name() if bench.cuda else platform.machine()
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}; ms, p50 / p99 / max\n")
    print("| loop | every, ahead | unwind | idle | left | same | cost % |\n|" + " --- |" * 7)
    with layers():
        worker = Worker()
        await worker.run(boundary.look_for_torch)
        for label, (loop, steps) in bench.loops().items():
            right = await worker.run(lambda loop=loop, steps=steps: loop(steps))
            costs = await cost_of_paces(worker, bench, loop, steps)
            for pace in PACES:
                bench.govern(pace)
                unwinds, idles, left = [], [], 0
                for _ in range(trials):
                    unwind, idle, call = await stop_at_random(worker, loop, dice.uniform(0.05, 0.5))
                    unwinds.append(unwind)
                    idles.append(idle)
                    left = max(left, call.bytes_left)
                same = torch.equal(await worker.run(lambda loop=loop, steps=steps: loop(steps)), right)
                setting = f"{pace.every}, {pace.ahead}" if pace else "none"
                print(f"| {label} | {setting} | {spread(unwinds)} | {spread(idles)} | {left} | {same} | {costs[pace]:+.2f} |", flush=True)
        worker.close()


async def cost_of_paces(worker: Worker, bench: Bench, loop: Callable[[int], Tensor], steps: int) -> dict[Pace | None, float]:
    seconds: dict[Pace | None, list[float]] = {pace: [] for pace in PACES}
    for _ in range(ROUNDS):
        for pace in PACES:
            bench.govern(pace)
            began = time.perf_counter()
            await worker.run(lambda: loop(steps))
            seconds[pace].append(time.perf_counter() - began)
    usual = statistics.median(seconds[None])
    return {pace: (statistics.median(taken) / usual - 1) * 100 for pace, taken in seconds.items()}


def spread(seconds: list[float]) -> str:
    ordered = sorted(each * 1e3 for each in seconds)
    return f"{ordered[len(ordered) // 2]:.2f} / {ordered[int(len(ordered) * 0.99)]:.2f} / {ordered[-1]:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="cancel latency on a GPU")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    asyncio.run(main(asked.trials, "cpu" if asked.cpu else "cuda"))
