"""diffusers and transformers, as they are installed, with random weights: their loops stop unchanged.

They live in an environment of their own, `make models-test`: not part of `make test`.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from runner.plugins.cancellation import Call
from runner.schemas.problems import RequestCancelled
from stopping import Worker, layers, stop_once_begun
from transformers import LlamaConfig, LlamaForCausalLM, TextIteratorStreamer

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
CANCELS = 30
MANY = 100_000


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    torch.set_num_threads(1)
    with layers():
        yield


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=200, max_position_embeddings=2 * MANY,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def pipeline() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=MANY))


def generate(model: LlamaForCausalLM, words: int, **more: Any) -> torch.Tensor:
    ids = torch.arange(1, 9)[None]
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=words, min_new_tokens=words, do_sample=False, pad_token_id=0, **more
    )


def picture(pipeline: DDPMPipeline, steps: int) -> Any:
    generator = torch.Generator().manual_seed(5)
    return pipeline(num_inference_steps=steps, generator=generator, output_type="np").images.tobytes()


async def stop_again_and_again(worker: Worker, forever: Callable[[], Any], short: Callable[[], Any]) -> list[Call]:
    right = await worker.run(short)
    stopped = []
    for _ in range(CANCELS):

        def work(begun: Callable[[], None]) -> None:
            begun()
            forever()

        call = await stop_once_begun(worker, work)
        assert isinstance(call.error, RequestCancelled)
        assert not call.retire
        assert await worker.run(short) == right
        stopped.append(call)
    return stopped


async def test_generate_of_transformers_stops(worker: Worker, llama: LlamaForCausalLM) -> None:
    stopped = await stop_again_and_again(
        worker, lambda: generate(llama, MANY), lambda: generate(llama, 5).tolist()
    )

    assert all(call.swallowed == 0 for call in stopped)


async def test_a_diffusers_pipeline_stops(worker: Worker, pipeline: DDPMPipeline) -> None:
    stopped = await stop_again_and_again(worker, lambda: picture(pipeline, MANY), lambda: picture(pipeline, 3))

    assert all(call.swallowed == 0 for call in stopped)


async def test_a_loop_over_a_scheduler_of_diffusers_stops(worker: Worker, pipeline: DDPMPipeline) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=1000)

    @torch.no_grad()
    def denoise(rounds: int) -> list[float]:
        sample = torch.ones(1, 3, 16, 16)
        for _ in range(rounds):
            scheduler.set_timesteps(20)
            for moment in scheduler.timesteps:
                sample = scheduler.step(pipeline.unet(sample, moment).sample, moment, sample).prev_sample
        return list(sample.flatten().tolist())

    await stop_again_and_again(worker, lambda: denoise(MANY), lambda: denoise(1))


async def test_a_streamer_of_transformers_stops_in_both_of_its_threads(worker: Worker, llama: LlamaForCausalLM) -> None:
    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return "".join(f"{int(each)} " for each in ids)

    generating: list[threading.Thread] = []

    def work(begun: Callable[[], None]) -> None:
        streamer = TextIteratorStreamer(Words(), timeout=60)
        thread = threading.Thread(target=generate, args=(llama, MANY), kwargs={"streamer": streamer})
        generating.append(thread)
        thread.start()
        for _ in streamer:
            begun()

    call = await stop_once_begun(worker, work)
    generating[0].join(20)

    assert isinstance(call.error, RequestCancelled)
    assert not generating[0].is_alive()
