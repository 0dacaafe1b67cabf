"""torch loops that know nothing of us, cancelled at random moments: what comes after is bit-equal.

`RUNNER_SOAK=1000` cancels each loop that many times; `make soak` does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runner.plugins.cancellation import Call, Limits, Token, shield
from runner.plugins.cancellation.modules import boundary
from runner.schemas.problems import RequestCancelled
from stopping import GUARD, Running, Worker, layers, stop_once_begun

from bench.workloads import FOREVER, Loop, Models, loops

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it compiles
CANCELS = int(os.environ.get("RUNNER_SOAK", "40"))  # of each loop; there are five
STEPS = 3


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with layers():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> Models:
    models = Models()
    models.compile()
    return models


def state_of_thread() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
    )


def tensors() -> int:
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


def bits(value: Any) -> Any:
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


async def cancel_at_random(worker: Worker, loop: Loop, moment: float) -> Call:
    running = Running(Call(Token()))

    def work() -> Any:
        running.has_begun()
        return loop(FOREVER)

    worker.start(work, running=running)
    await running.begun.wait()
    await asyncio.sleep(moment)  # a random moment is what is tried
    return await running.stop()


@pytest.mark.parametrize("name", ["unet", "lm", "functional", "python", "compiled"])
async def test_after_a_cancel_the_next_output_is_bit_equal_and_nothing_is_left(models: Models, name: str) -> None:
    loop, worker, dice = loops(models)[name], Worker(), random.Random(13)
    right = bits(await worker.run(lambda: loop(STEPS)))
    await cancel_at_random(worker, loop, 0.005)
    state = await worker.run(state_of_thread)
    numbers = torch.get_rng_state()
    weights = {key: (value.data_ptr(), value._version, value.clone()) for key, value in models.denoiser.state_dict().items()}
    gc.collect()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    before = tensors(), threading.active_count(), open_files()
    gc.disable()
    try:
        for _ in range(CANCELS):
            call = await cancel_at_random(worker, loop, dice.uniform(0, 0.02))
            assert isinstance(call.error, RequestCancelled)
            assert (call.swallowed, call.retire) == (0, False)
            assert bits(await worker.run(lambda: loop(STEPS))) == right
            assert await worker.run(state_of_thread) == state
            del call
        recompiled = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
        left = (0 if recompiled else tensors() - before[0], threading.active_count(), open_files())
        assert left == (0, *before[1:]), "with the garbage collector off"
        # A cancel that lands in a guard of compiled code is lost there, and all is compiled again:
        # seen once in 1,000. What was compiled keeps tensors, and is the same.
        assert recompiled <= 1 + CANCELS // 300
    finally:
        gc.enable()
    assert torch.equal(torch.get_rng_state(), numbers)
    for key, value in models.denoiser.state_dict().items():
        pointer, version, copy = weights[key]
        assert (value.data_ptr(), value._version) == (pointer, version)
        assert torch.equal(value, copy)
    worker.close()


async def test_the_module_boundary_stops_whatever_calls_a_module(models: Models) -> None:
    class Forever(torch.nn.Module):
        def forward(self, begun: Any) -> None:
            begun()
            while True:
                models.denoise(1)

    worker, whole = Worker(), Forever()

    # Inside a module call nobody else raises for `module_seconds`: here for longer than the test lasts.
    call = await stop_once_begun(worker, whole, Limits(module_seconds=GUARD))

    assert call.layer == "module"
    worker.close()


async def test_a_module_called_again_by_code_that_swallowed_the_cancel_raises_again(models: Models) -> None:
    worker = Worker()
    steps: list[int] = []

    def work(begun: Any) -> str:
        begun()
        while not here_is_cancelled():
            pass
        for step in range(5):
            try:
                models.denoise(1)
                steps.append(step)
            except BaseException:
                pass
        return "went on"

    call = await stop_once_begun(worker, work)

    assert steps == []
    assert call.swallowed >= 5 or isinstance(call.error, RequestCancelled)
    worker.close()


async def test_a_shielded_clean_up_may_use_the_model(models: Models) -> None:
    worker = Worker()
    cleaned: list[Any] = []

    def work(begun: Any) -> None:
        begun()
        try:
            models.denoise(FOREVER)
        finally:
            with shield():
                cleaned.append(bits(models.denoise(STEPS)))

    call = await stop_once_begun(worker, work)

    assert cleaned == [bits(models.denoise(STEPS))]
    assert isinstance(call.error, RequestCancelled)
    worker.close()


async def test_a_cancel_recompiles_nothing(models: Models) -> None:
    worker = Worker()
    await worker.run(lambda: models.denoise_compiled(STEPS))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    boundary.unwinding.add("somebody")
    try:
        await worker.run(lambda: models.denoise_compiled(STEPS))
    finally:
        boundary.unwinding.discard("somebody")

    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    worker.close()


async def test_a_thread_left_without_gradients_is_put_right_after_a_cancel() -> None:
    worker = Worker()

    def work(begun: Any) -> None:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_autocast_enabled("cpu", True)
        torch.rand(3)
        begun()
        while True:
            pass

    before = torch.get_rng_state()
    await worker.run(lambda: None)
    call = await stop_once_begun(worker, work)

    assert not call.retire
    assert await worker.run(state_of_thread) == state_of_thread()
    assert torch.equal(torch.get_rng_state(), before)
    worker.close()


async def test_a_thread_left_in_inference_mode_is_retired() -> None:
    worker = Worker()
    left_in = torch.inference_mode()

    def work(begun: Any) -> None:
        left_in.__enter__()
        begun()
        while True:
            pass

    call = await stop_once_begun(worker, work)
    await worker.run(lambda: left_in.__exit__(None, None, None))

    assert call.retire
    worker.close()


async def test_what_a_normal_end_leaves_behind_is_the_authors_business() -> None:
    worker = Worker()

    await worker.run(lambda: torch.set_grad_enabled(False))

    assert await worker.run(torch.is_grad_enabled) is False
    worker.close()


def here_is_cancelled() -> bool:
    from runner.plugins.cancellation.here import here

    return here.call is not None and here.call.token.cancelled
