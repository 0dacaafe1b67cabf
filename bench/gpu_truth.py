"""What a real GPU's errors look like, and whether a runner does with them what docs/gpu.md says.

A supervised runner serves an app that breaks the device on request. Printed are the class and text
that torch raised, what the caller read, how the child ended, what the canary said, and the seconds
until the next process answered. It measures no speed, and provokes no hardware error (ECC, NVLink).

    memory          a tensor that never fits: once more, alone, then 503 and no replacement
    memory at first a tensor that fits once another request is through: 200 and a header
    full            memory that nobody lets go of: replaced, code 75
    assert          an index out of range in a kernel: fatal, code 74
    address         a kernel writes to an address that is nobody's: fatal, code 74
    swallowed       the app keeps a fatal error to itself: the next request finds out

    python bench/gpu_truth.py            # on a machine with an NVIDIA GPU and a CUDA build of torch, a minute or two
    python bench/gpu_truth.py --cpu      # only to see that it runs: the errors are made up
"""

# ruff: noqa: E402 - the house is found first
from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

HOUSE = Path(__file__).parent.parent
if __name__ == "__main__":
    sys.path[0] = str(HOUSE)
    sys.path.insert(1, str(HOUSE / "tests"))

import httpx
from serving import Runner, running, written

APP = '''
import os, time
import torch
import runner

CPU = os.environ.get("GPU_TRUTH_CPU") == "1"
WILD = """
extern "C" __global__ void wild(float* out) { *(float*)0x10 = out[0]; }
"""

class Fragile(runner.App):
    max_multiplexing = 2
    termination_grace_period_seconds = 5

    def setup(self):
        self.device = "cpu" if CPU else "cuda"
        self.hoard = []
        self.tried = 0
        torch.ones(2, 2, device=self.device) @ torch.ones(2, 2, device=self.device)
        if not CPU:
            torch.cuda.synchronize()

    @runner.endpoint("/")
    def run(self) -> int:
        torch.ones(4, device=self.device).sum().item()
        return os.getpid()

    @runner.endpoint("/hold")
    def hold(self, seconds: float) -> str:
        """Hold most of what is free."""
        held = None if CPU else torch.empty(int(torch.cuda.mem_get_info()[0] * 0.8), dtype=torch.uint8, device="cuda")
        print("held")
        time.sleep(seconds)
        return str(held is None or held.numel())

    @runner.endpoint("/break")
    def break_it(self, how: str) -> str:
        try:
            return getattr(self, how)()
        except Exception as error:
            print("raised", type(error).__mro__[0].__qualname__, "|", getattr(error, "error_code", "-"), "|", str(error).splitlines()[0])
            if how == "swallowed":
                return "nothing happened"
            raise

    def memory(self):
        if CPU:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 GiB.")
        return str(torch.empty(2**40, dtype=torch.uint8, device="cuda").numel())

    def memory_at_first(self):
        self.tried += 1
        if CPU:
            if self.tried == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB.")
            return "fits"
        return str(torch.empty(int(torch.cuda.mem_get_info()[1] * 0.5), dtype=torch.uint8, device="cuda").numel())

    def full(self):
        if CPU:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        size = 2**30
        while True:
            try:
                self.hoard.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                if size <= 512:
                    raise
                size //= 2

    def device_assert(self):
        if CPU:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        index = torch.tensor([10**6], device="cuda")
        return str(torch.ones(10, device="cuda")[index].sum().item())

    swallowed = device_assert

    def address(self):
        if CPU:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        kernel = torch.cuda._compile_kernel(WILD, "wild")
        kernel(grid=(1, 1, 1), block=(1, 1, 1), args=[torch.ones(1, device="cuda")])
        torch.cuda.synchronize()
        return "nothing happened"
'''
WAYS = {
    "memory": None,
    "memory_at_first": None,
    "full": 75,
    "device_assert": 74,
    "address": 74,
    "swallowed": 74,
}
PATIENCE_SECONDS = 120.0


def first_answer(runner: Runner) -> int:
    """The process that answers once one does again."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        try:
            answer = runner.post("/")
        except httpx.TransportError:
            continue
        if answer.status_code == 200:
            return int(answer.json())
    raise SystemExit(f"no runner answered within {PATIENCE_SECONDS:g} s; the log:\n{runner.log}")


def provoke(runner: Runner, way: str, expected: int | None) -> tuple[str, bool]:
    """One row of the table, and whether it is as docs/gpu.md says."""
    before, seen = first_answer(runner), len(runner.lines)
    beside: threading.Thread | None = None
    if way == "memory_at_first":
        beside = threading.Thread(target=runner.post, args=("/hold?seconds=3",))
        beside.start()
        runner.wait_for("app.output", text="held")
    began = time.monotonic()
    try:
        answer = runner.post(f"/break?how={way}")
        read = f"{answer.status_code} {answer.text}"
        retried = answer.headers.get("x-runner-retried", "-")
    except httpx.TransportError as error:
        read, retried = type(error).__name__, "-"
    if way == "swallowed":  # whoever comes next finds out
        read += f", then {runner.post('/').status_code}"
    after = first_answer(runner)
    while expected is not None and after == before and time.monotonic() - began < PATIENCE_SECONDS / 4:
        after = first_answer(runner)
    seconds = time.monotonic() - began
    if beside is not None:
        beside.join()
    lines = runner.lines[seen:]
    raised = [line["text"].removeprefix("raised ") for line in lines if line["event"] == "app.output" and line["text"].startswith("raised")]
    codes = [line["code"] for line in lines if line["event"] == "supervisor.child_ended"]
    canaries = [line["wrong"] or "well" for line in lines if line["event"] == "gpu.canary"]
    good = codes == ([] if expected is None else [expected]) and (after == before) == (expected is None)
    if way == "memory_at_first":
        good = good and read.startswith("200") and retried == "out-of-memory"
    cells = [way, *(raised[:1] or ["-"]), read, retried, str(codes or "-"), "; ".join(canaries) or "-", f"{seconds:.1f}", "yes" if good else "NO"]
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |", good


def main(cpu: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        app = written(Path(folder), APP)
        command = [sys.executable, HOUSE / "runner.py", app, "--supervise", "--port", "0", "--log-format", "json"]
        with running(command, env={"GPU_TRUTH_CPU": "1"} if cpu else {}) as runner:
            runner.wait_for("app.ready")
            import torch

            name = platform.machine() if cpu else torch.cuda.get_device_name()
            print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}\n")
            print("| way | class / code / text | caller read | x-runner-retried | exit | canary | s | as said |\n|" + " --- |" * 8)
            good = True
            for way, code in WAYS.items():
                if cpu and way == "swallowed":
                    continue  # nothing made up outlives its request
                row, as_said = provoke(runner, way, 74 if cpu and way == "full" else code)
                good = good and as_said
                print(row, flush=True)
            runner.stop()
    print(json.dumps({"as_said": good}))
    return 0 if good else 1


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cpu", action="store_true", help="without a GPU, to see that it runs")
    raise SystemExit(main(arguments.parse_args().cpu))
