"""Machine: what the process takes of the machine and of its GPUs, read when asked.

CUDA is looked at once the app has begun to use it: to look would be to begin.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .counts import Counts
from .families import gauge

LEAST_SECONDS = 1.0  # between two looks at the CPU time; in a shorter while it is mostly noise


class Process:
    """CPU and memory of this process, as fal's platform names them."""

    def __init__(self, app_id: str) -> None:
        self._id = app_id
        self._at, self._used, self._percent = time.monotonic(), 0.0, 0.0

    def collect(self) -> Iterator[Any]:
        help = "CPU time since the last reading; 100 is one core."
        yield gauge("fal_app_runner_cpu_usage_percent", help, ["application"], {self._id: self._cpu()})
        if (memory := resident_bytes()) is not None:
            yield gauge("fal_app_runner_memory_usage_bytes", "Memory that is resident.", ["application"], {self._id: memory})

    def _cpu(self) -> float:
        now, used = time.monotonic(), time.process_time()
        if now - self._at >= LEAST_SECONDS:
            self._percent = 100 * (used - self._used) / (now - self._at)
            self._at, self._used = now, used
        return self._percent


def resident_bytes() -> int | None:
    """None where there is no /proc."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


class Disk:
    """Room where the queue and the files lie."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).absolute()

    def collect(self) -> Iterator[Any]:
        here = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        with suppress(OSError):
            yield gauge("runner_data_free_bytes", "Room left on the disk of the data folder.", [], {(): shutil.disk_usage(here).free})


class Cuda:
    """Memory and use of the devices, as torch sees them."""

    def __init__(self, app_id: str, counts: Counts) -> None:
        self._id, self._counts = app_id, counts

    def collect(self) -> Iterator[Any]:
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        there = cuda is not None and cuda.is_available()
        count = cuda.device_count() if cuda is not None and there else 0
        yield gauge("fal_app_runner_gpu_count", "GPUs that torch sees; 0 while the app has not imported it.", ["application"], {self._id: count})
        if cuda is None or not there or not cuda.is_initialized():
            return
        devices = range(count)
        allocated = {str(n): cuda.memory_allocated(n) for n in devices}
        yield gauge("runner_cuda_memory_allocated_bytes", "CUDA memory of tensors.", ["device"], allocated)
        reserved = {str(n): cuda.memory_reserved(n) for n in devices}
        yield gauge("runner_cuda_memory_reserved_bytes", "CUDA memory that torch keeps.", ["device"], reserved)
        self._counts.peak = max(self._counts.peak, *(cuda.max_memory_allocated(n) for n in devices))
        yield gauge("runner_cuda_memory_peak_bytes", "CUDA memory of tensors at most, on one device, since the start.", [], {(): self._counts.peak})
        free = {n: cuda.mem_get_info(n) for n in devices}
        used = {str(n): total - left for n, (left, total) in free.items()}
        yield gauge("runner_cuda_memory_used_bytes", "Memory of the device that is taken, by whomever.", ["device"], used)
        percent = 100 * sum(used.values()) / max(1, sum(total for _, total in free.values()))
        yield gauge("fal_app_runner_vram_usage_percent", "Memory of all devices that is taken.", ["application"], {self._id: percent})
        with suppress(Exception):  # nvidia-ml-py is not there, or the driver does not tell
            busy = {str(n): cuda.utilization(n) for n in devices}
            yield gauge("runner_cuda_utilization_percent", "How much of the time the device works.", ["device"], busy)
            mean = sum(busy.values()) / count
            yield gauge("fal_app_runner_gpu_utilization_percent", "The same, of all devices.", ["application"], {self._id: mean})
