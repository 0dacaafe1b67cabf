"""The census: what of a process could be left over when work ends early. Threads, open files, tensors, the GPU's memory."""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import Any, Self

FOLDERS = ("/proc/self/fd", "/dev/fd")  # Linux, macOS


class Census:
    """What is there when the `with` begins; `left` says what is there besides, as often as it is asked.

    The collector leaves alone meanwhile what is there (`gc.freeze`), and so sees what is new only:
    going through all of torch would take longer than the cancel.
    """

    def __init__(self, lanes: list[Any]) -> None:
        self._lanes = lanes

    def __enter__(self) -> Self:
        gc.freeze()
        self._threads, self._files, self._gpu_bytes = self._strange_threads(), open_files(), gpu_bytes()
        return self

    def __exit__(self, *error: object) -> None:
        gc.unfreeze()

    def left(self) -> list[str]:
        """One line for each thing that was not there before."""
        gc.collect()
        found = [f"the thread {thread.name!r} still runs" for thread in self._strange_threads() - self._threads]
        found += [f"{path} is open" for descriptor, path in open_files().items() if self._files.get(descriptor) != path]
        alive = new_tensors()
        found += [f"a tensor of shape {tuple(tensor.shape)} on {tensor.device} is alive" for tensor in alive[:5]]
        if len(alive) > 5:
            found.append(f"and {len(alive) - 5} tensors more")
        if (more := gpu_bytes() - self._gpu_bytes) > 0:
            found.append(f"{more} bytes of the GPU more are taken")
        return found

    def _strange_threads(self) -> set[threading.Thread]:
        return set(threading.enumerate()) - {thread for lane in self._lanes for thread in lane._threads}


def open_files() -> dict[int, str]:
    """What each file descriptor stands for. Those of the event loop and of the listing itself are left out."""
    folder = next((folder for folder in FOLDERS if os.path.isdir(folder)), None)
    files: dict[int, str] = {}
    for name in os.listdir(folder) if folder else ():
        try:
            path = os.readlink(f"{folder}/{name}")
        except OSError:  # the listing's own, closed by now
            continue
        if not path.startswith(("anon_inode:", "/dev/", "/proc/")):
            files[int(name)] = path
    return files


def new_tensors() -> list[Any]:
    """Those that the collector knows of: what was frozen is not among them."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def gpu_bytes() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())
