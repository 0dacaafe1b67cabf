"""The census: what of a process could be left over when work ends early. Threads, open files, tensors, the GPU's memory."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from typing import Any

FOLDERS = ("/proc/self/fd", "/dev/fd")  # Linux, macOS


class Census:
    """What is there now. `over` says what is there besides, in a later one."""

    def __init__(self, lanes: list[Any]) -> None:
        gc.collect()
        ours = {thread for lane in lanes for thread in lane._threads}
        self.threads = set(threading.enumerate()) - ours
        self.files = open_files()
        self.tensors: dict[int, Any] = {id(tensor): weakref.ref(tensor) for tensor in tensors()}
        self.gpu_bytes = gpu_bytes()

    def over(self, before: Census) -> list[str]:
        """One line for each thing that was not there before."""
        found = [f"the thread {thread.name!r} still runs" for thread in self.threads - before.threads]
        found += [f"{path} is open" for descriptor, path in self.files.items() if before.files.get(descriptor) != path]
        new = [ref() for key, ref in self.tensors.items() if key not in before.tensors or before.tensors[key]() is None]
        alive = [tensor for tensor in new if tensor is not None]
        found += [f"a tensor of shape {tuple(tensor.shape)} on {tensor.device} is alive" for tensor in alive[:5]]
        if len(alive) > 5:
            found.append(f"and {len(alive) - 5} tensors more")
        if self.gpu_bytes > before.gpu_bytes:
            found.append(f"{self.gpu_bytes - before.gpu_bytes} bytes of the GPU more are taken")
        return found


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


def tensors() -> list[Any]:
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
