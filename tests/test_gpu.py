"""GPU truth, without a GPU: errors as torch and CUDA word them are raised by apps, and the device is one made of Python.

Nothing here has seen a real one; `bench/gpu_truth.py` provokes the real ones (contract 2.5; checks 21 and 22).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from anyio.lowlevel import checkpoint
from runner.plugins.gpu import Plugin
from runner.plugins.gpu.device import EXPECTED, Torch, canary
from runner.plugins.gpu.faults import FATAL, fault_of
from runner.schemas.health import State
from runner.schemas.settings import Settings
from serving import Runner, serving, written
from torch.distributed import DistBackendError
from websockets.sync.client import connect

import runner

# As `c10_cuda_check_implementation` of torch 2.13 puts a text of `cudaGetErrorString` together.
TAIL = (
    "\nSearch for `{name}' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information."
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
    "\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nDevice-side assertion tracking was not enabled by user."
)
NO_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 9.06 GiB is free. Process 7 has "
    "70.04 GiB memory in use. Of the allocated memory 69.51 GiB is allocated by PyTorch, and 3.79 MiB is reserved by PyTorch but unallocated."
)


def cuda_error(text: str, name: str = "cudaErrorIllegalAddress") -> RuntimeError:
    return torch.AcceleratorError(f"CUDA error: {text}{TAIL.format(name=name)}")


class OnnxRuntimeFail(Exception):
    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


class TritonError(RuntimeError):
    __module__ = "triton.backends.nvidia.driver"


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((cuda_error(text), "fatal") for text in FATAL.values()),
        (TritonError("Triton Error [CUDA]: an illegal memory access was encountered"), "fatal"),
        (OnnxRuntimeFail("CUDA failure 700: an illegal memory access was encountered ; GPU=0"), "fatal"),
        (DistBackendError("NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error\nncclRemoteError: A call failed"), "fatal"),
        (caused(runner.HTTPError(503, "GPU error"), cuda_error("device-side assert triggered")), "fatal"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "doubtful"),
        (cuda_error("no kernel image is available for execution on the device"), "doubtful"),
        (cuda_error("unknown error"), "doubtful"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`"), "doubtful"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "doubtful"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "doubtful"),
        (torch.OutOfMemoryError(NO_MEMORY), "memory"),
        (cuda_error("out of memory", "cudaErrorMemoryAllocation"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1016'), "memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "memory"),
        (OnnxRuntimeFail("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 8589934592"), "memory"),
        (MemoryError(), "memory"),
        (ValueError("triton x"), None),
        (ValueError("CUDA error: an illegal memory access was encountered"), None),
        (DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1331, invalid usage\nncclInvalidUsage: This usually reflects invalid usage"), None),
        (torch.AcceleratorError("probability tensor contains either `inf`, `nan` or element < 0"), "doubtful"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_an_error_says_of_the_device(error: BaseException, kind: str | None) -> None:
    fault = fault_of(error)

    assert (fault and fault.kind) == kind


def test_the_code_counts_where_torch_gives_it_whatever_the_text() -> None:
    error = torch.AcceleratorError("CUDA error")
    error.error_code = 719  # type: ignore[attr-defined]

    assert (fault := fault_of(error)) is not None
    assert fault.kind == "fatal"


def test_without_a_gpu_there_is_none_in_use_and_asking_sets_none_up() -> None:
    assert Torch().in_use() is False
    Torch().empty_cache()
    assert torch.cuda.is_initialized() is False


# --- a service of one's own, with a device made of Python


class Device:
    """A GPU that answers as it is told."""

    def __init__(self) -> None:
        self.emptied = self.asked = 0
        self.result: float | Exception | threading.Event = EXPECTED

    def in_use(self) -> bool:
        return True

    def empty_cache(self) -> None:
        self.emptied += 1

    def answer(self) -> float:
        self.asked += 1
        if isinstance(self.result, threading.Event):
            self.result.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result if isinstance(self.result, float) else EXPECTED


class Model(runner.App):
    max_multiplexing = 4

    def setup(self) -> None:
        self.left = self.beside = self.most_beside = 0  # failures yet to come, and who runs
        self.error: Exception = torch.OutOfMemoryError(NO_MEMORY)
        self.held, self.gate = threading.Event(), threading.Event()
        self.alive: list[Any] = []

    def _work(self) -> str:
        tensor = torch.ones(1000)
        self.alive.append(__import__("weakref").ref(tensor))
        self.most_beside = self.beside
        if self.left:
            self.left -= 1
            raise self.error
        return "done"

    @runner.endpoint("/")
    def run(self) -> str:
        return self._work()

    @runner.endpoint("/async")
    async def run_async(self) -> str:
        return self._work()

    @runner.endpoint("/stream")
    def stream(self) -> Iterator[str]:
        yield self._work()

    @runner.endpoint("/stream-async")
    async def stream_async(self) -> AsyncIterator[str]:
        yield self._work()

    @runner.endpoint("/late")
    def late(self) -> Iterator[str]:
        yield "begun"
        yield self._work()

    @runner.endpoint("/hold")
    def hold(self) -> str:
        self.beside += 1
        self.held.set()
        self.gate.wait(20)
        self.beside -= 1
        return "held"


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await checkpoint()


class Served:
    """The app, its device, and a client without a wire, who also reads what is broken off."""

    def __init__(self, service: runner.Service, device: Device) -> None:
        self.service, self.device = service, device
        self.model: Model = service.instance
        self.replaced: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        service.health.watch_replacement(lambda: self.replaced.set_result(service.health.exit_code or 0))

    async def post(self, path: str) -> httpx.Response:
        messages: list[runner.Message] = []
        asked: list[bool] = []

        async def receive() -> runner.Message:
            if asked:
                await asyncio.Future()  # nobody hangs up
            asked.append(True)
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: runner.Message) -> None:
            messages.append(message)

        scope: runner.Scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        await self.service(scope, receive, send)
        return httpx.Response(messages[0]["status"], headers=messages[0]["headers"], content=b"".join(m["body"] for m in messages[1:]))


@asynccontextmanager
async def served(tmp_path: Path, **options: Any) -> AsyncIterator[Served]:
    device = Device()
    settings = Settings(no_plugin=["gpu"], data_dir=str(tmp_path))
    service = runner.asgi(Model, settings, [Plugin(device, **options)])
    ready = asyncio.Event()
    service.health.watch(lambda state: ready.set() if state is State.READY else None)
    async with service.running():
        async with asyncio.timeout(20):
            await ready.wait()
        yield Served(service, device)


PATHS = ["/", "/async", "/stream", "/stream-async"]


@pytest.mark.parametrize("path", PATHS)
async def test_what_does_not_fit_runs_once_more_and_the_answer_says_so(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as app:
        app.model.left = 1
        answer = await app.post(path)
        plain = await app.post(path)

        assert (answer.status_code, "done" in answer.text) == (200, True)
        assert answer.headers["x-runner-retried"] == "out-of-memory"
        assert "x-runner-retried" not in plain.headers
        assert app.device.emptied == 1
        assert app.service.health.state is State.READY


@pytest.mark.parametrize("path", PATHS)
async def test_what_does_not_fit_alone_either_is_an_error_that_the_queue_does_not_try_again(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as app:
        app.model.left = 2
        answer = await app.post(path)
        after = await app.post(path)

        assert (answer.status_code, answer.json()) == (503, {"detail": "CUDA error: out of memory"})
        assert answer.headers["x-runner-retried"] == "out-of-memory"
        assert answer.headers["x-fal-needs-retry"] == "0"
        assert (after.status_code, app.service.health.state) == (200, State.READY)
        assert [ref() for ref in app.model.alive[:2]] == [None, None], "frames are let go of"


async def test_it_runs_alone_and_those_who_come_meanwhile_wait(tmp_path: Path) -> None:
    async with served(tmp_path) as app:
        held = asyncio.create_task(app.post("/hold"))
        await asyncio.to_thread(app.model.held.wait)
        app.model.left = 1
        again = asyncio.create_task(app.post("/"))
        await until(lambda: app.service.lane._alones)
        later = asyncio.create_task(app.post("/hold"))
        await until(lambda: app.service.lanes["waiting"])
        waiting = [again.done(), later.done(), app.model.beside]
        app.model.gate.set()
        answers = await asyncio.gather(held, again, later)

        assert waiting == [False, False, 1]
        assert app.model.most_beside == 0
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert app.service.lanes == {"places": 4, "running": 0, "waiting": 0, "ghosts": 0}


async def test_those_who_cannot_be_alone_in_time_read_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.plugins.lanes.ALONE_SECONDS", 0.05)
    async with served(tmp_path) as app:
        held = asyncio.create_task(app.post("/hold"))
        await asyncio.to_thread(app.model.held.wait)
        app.model.left = 1
        answer = await app.post("/")
        beside = await app.post("/")
        app.model.gate.set()
        await held

        assert (answer.status_code, answer.headers["x-runner-retried"]) == (503, "no")
        assert beside.status_code == 200, "the others go on"


async def test_a_stream_that_has_begun_is_not_begun_again(tmp_path: Path) -> None:
    async with served(tmp_path) as app:
        app.model.left = 1
        answer = await app.post("/late")

        assert answer.text.startswith('data: "begun"\n\ndata: {"detail":"CUDA error: out of memory"')
        assert (app.model.left, app.device.emptied) == (0, 1)


async def test_a_device_so_full_that_nothing_fits_has_the_process_replaced(tmp_path: Path) -> None:
    async with served(tmp_path) as app:
        app.device.result = torch.OutOfMemoryError(NO_MEMORY)
        app.model.left = 2
        answer = await app.post("/")

        assert answer.status_code == 503
        assert await asyncio.wait_for(app.replaced, 20) == 75


@pytest.mark.parametrize("path", [*PATHS, "/late"])
async def test_after_a_fatal_error_nobody_begins_and_the_process_is_replaced(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as app:
        app.model.left, app.model.error = 1, cuda_error("an illegal memory access was encountered")
        app.device.result = cuda_error("an illegal memory access was encountered")
        answer = await app.post(path)
        code = await asyncio.wait_for(app.replaced, 20)
        refused = await app.post("/")

        if path == "/late":
            assert '{"detail":"GPU error"' in answer.text
        else:
            assert (answer.status_code, answer.json()) == (503, {"detail": "GPU error"})
            assert answer.headers["x-runner-fault"] == "fatal"
        assert code == 74
        assert (refused.status_code, refused.json()["error_type"]) == (503, "runner_scheduling_failure")
        assert int(refused.headers["retry-after"]) >= 1
        assert app.model.left == 0
        assert app.service.health.reason is not None
        assert "an illegal memory access was encountered" in app.service.health.reason
    assert app.device.asked == 1, "the canary"


async def test_who_waits_does_not_begin_on_a_broken_device(tmp_path: Path) -> None:
    """The place would be passed on in the thread, before the event loop hears of anything."""
    async with served(tmp_path) as app:
        holding = [asyncio.create_task(app.post("/hold")) for _ in range(3)]
        await until(lambda: app.model.beside == 3)
        app.model.left, app.model.error = 9, cuda_error("device-side assert triggered", "cudaErrorAssert")
        answers = await asyncio.gather(*(app.post("/") for _ in range(4)))
        app.model.gate.set()
        held = await asyncio.gather(*holding)

        assert app.model.left == 8
        assert sorted(answer.json()["detail"] for answer in answers) == ["GPU error"] + ["the server is stopping"] * 3
        assert [answer.json() for answer in held] == ["held"] * 3


@pytest.mark.parametrize("is_well", [True, False])
async def test_of_a_doubtful_error_the_canary_finds_out(tmp_path: Path, is_well: bool) -> None:
    async with served(tmp_path) as app:
        error = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle )`")
        app.model.left, app.model.error = 1, error
        app.device.result = EXPECTED if is_well else 3.0
        answer = await app.post("/")
        await until(lambda: app.device.asked)

        assert (answer.status_code, answer.json()) == (503, {"detail": "GPU error"})
        if is_well:
            assert (await app.post("/")).status_code == 200
            assert not app.replaced.done()
        else:
            assert await asyncio.wait_for(app.replaced, 20) == 74
            assert "gave 3 where 262144 is right" in (app.service.health.reason or "")


async def test_a_canary_that_does_not_come_back_has_failed() -> None:
    device = Device()
    device.result = hangs = threading.Event()

    assert await canary(device, 0.02) == "gave no answer within 0.02 s"
    hangs.set()
    device.result = EXPECTED
    assert await canary(device) is None


# --- a real process, real classes of torch

STAND_IN = """
class torch:  # known by the names of its classes; the real one takes seconds to import
    class AcceleratorError(RuntimeError): pass
    class OutOfMemoryError(RuntimeError): pass
"""
APP = f"""
import os, pathlib, torch
import runner

HERE = pathlib.Path(__file__).parent
FATAL = torch.AcceleratorError("CUDA error: device-side assert triggered")

class Frame(__import__("msgspec").Struct):
    how: str

class Fragile(runner.App):
    termination_grace_period_seconds = 1

    def setup(self):
        print("setup", os.getpid())

    @runner.endpoint("/")
    def run(self, how: str) -> str:
        print("run", how)
        if how == "fatal":
            raise FATAL
        if how == "fatal-once" and not (HERE / "once").exists():
            (HERE / "once").touch()
            raise FATAL
        if how == "memory":
            raise torch.OutOfMemoryError({NO_MEMORY!r})
        return how

    @runner.realtime("/realtime")
    def step(self, frame: Frame) -> Frame:
        if frame.how == "fatal":
            raise FATAL
        if frame.how == "memory":
            raise torch.OutOfMemoryError({NO_MEMORY!r})
        return frame
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return written(tmp_path, APP)


def test_unsupervised_the_process_ends_with_code_74(app: Path) -> None:
    with serving(app) as fragile:
        answer = fragile.post("/?how=fatal")
        code = fragile.wait()

    assert (answer.status_code, answer.json()) == (503, {"detail": "GPU error"})
    assert fragile.events("gpu.lost")[0]["reason"].startswith("AcceleratorError: CUDA error: device-side assert")
    assert code == 74


def test_a_socket_reads_of_memory_and_goes_on_elsewhere_and_of_a_fatal_error_at_the_end(app: Path) -> None:
    with serving(app) as fragile:
        url = f"ws://127.0.0.1:{fragile.port}/realtime"
        for how, reason in [("memory", "CUDA out of memory"), ("fatal", "device-side assert")]:
            with connect(url) as socket:
                socket.send('{"how": "well"}')
                assert socket.recv() == '{"how":"well"}'
                socket.send(f'{{"how": "{how}"}}')
                said = socket.recv()
            assert '"INTERNAL_ERROR"' in said
            assert reason in said
        code = fragile.wait()

    assert code == 74


def follow(runner: Runner, id: str) -> dict[str, Any]:
    """What became of a job in the end."""
    with runner.client() as client:
        while True:
            try:
                found = client.get(f"/queue/local/fragile/requests/{id}/status")
                if found.json().get("status") == "COMPLETED":
                    return {**found.json(), "result": client.get(f"/queue/local/fragile/requests/{id}").text}
            except httpx.TransportError:  # the connection was to a process that made way
                continue


def test_jobs_wait_for_the_next_process_and_one_that_breaks_two_is_parked(tmp_path: Path) -> None:
    """And one that does not fit is tried again alone, not ten times by the queue."""
    app = written(tmp_path, APP.replace(", torch\n", "\n" + STAND_IN))
    with serving(app, "--supervise", "--data-dir", str(tmp_path / "data")) as fragile, fragile.client() as client:
        ids = {how: client.post(f"/queue/local/fragile?how={how}").json()["request_id"] for how in ("memory", "fatal-once", "fatal", "well")}
        ends = {how: follow(fragile, id) for how, id in ids.items()}
        ran = [line["text"] for line in fragile.events("app.output") if line["text"].startswith("run")]
        codes = [line["code"] for line in fragile.events("supervisor.child_ended")]
        fragile.stop()

    assert ends["well"]["result"] == '"well"'
    assert ends["fatal-once"]["result"] == '"fatal-once"'
    assert (ends["memory"]["error"], ran.count("run memory")) == ("CUDA error: out of memory", 2)
    assert (ends["fatal"]["error"], ran.count("run fatal")) == ("GPU error", 2)
    assert codes == [74, 74, 74]
