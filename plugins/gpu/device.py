"""The device: the little that is asked of it, and the canary that finds out whether it still answers.

The canary is one operation with a known answer. It runs in a thread of its own, as a call into a
broken driver may never return; after `CANARY_SECONDS` it counts as failed, and the thread is left.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

CANARY_SECONDS = 10.0  # a kernel of the app may have to end first; a number out of the air
SIDE = 64  # of the canary's matrices of ones; the sum of their product is known: SIDE to the third
HEADROOM_BYTES = 32 * 1024 * 1024  # of memory that a process which is well can have


class Device(Protocol):
    """What the plugin needs of a GPU. Tests have one of their own."""

    def in_use(self) -> bool:
        """Whether this process has a context on it."""
        ...

    def empty_cache(self) -> None: ...
    def answer(self) -> float:
        """Compute something; `EXPECTED` when all is well. Raises what the device raises."""
        ...


EXPECTED = float(SIDE**3)


class Torch:
    """The CUDA (or HIP) devices that torch uses in this process. Asking sets up nothing."""

    def _cuda(self) -> Any:
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        return cuda if cuda is not None and cuda.is_initialized() else None

    def in_use(self) -> bool:
        return self._cuda() is not None

    def empty_cache(self) -> None:
        if (cuda := self._cuda()) is not None:
            with suppress(RuntimeError):  # a context that is gone has no cache
                cuda.empty_cache()

    def answer(self) -> float:
        """On each device that holds memory of ours, in a stream of its own: it shall not wait for the app's work."""
        torch, cuda = sys.modules["torch"], self._cuda()
        used = [index for index in range(cuda.device_count()) if cuda.memory_reserved(index)] or [cuda.current_device()]
        sums = []
        for index in used:
            with torch.no_grad(), torch.autocast("cuda", enabled=False), cuda.device(index), cuda.stream(cuda.Stream(index)):
                ones = torch.ones(SIDE, SIDE, device="cuda", dtype=torch.float32)
                sums.append(float((ones @ ones).sum().item()))
        return next((found for found in sums if found != EXPECTED), EXPECTED)


async def canary(device: Device, seconds: float = CANARY_SECONDS) -> str | None:
    """What is wrong with `device`; None when it gives the known answer."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str | None] = loop.create_future()

    def tell(wrong: str | None) -> None:
        if not told.done():
            told.set_result(wrong)

    def sing() -> None:
        wrong = _wrong_with(device.answer)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, wrong)

    threading.Thread(target=sing, name="runner-canary", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await told
    except TimeoutError:
        return f"gave no answer within {seconds:g} s"


def _wrong_with(answer: Callable[[], float]) -> str | None:
    try:
        found = answer()
    except Exception as error:
        return f"raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None if found == EXPECTED else f"gave {found:g} where {EXPECTED:g} is right"


def has_memory() -> bool:
    """Whether the process can still have some memory of the host."""
    try:
        return len(bytearray(HEADROOM_BYTES)) > 0
    except MemoryError:
        return False
