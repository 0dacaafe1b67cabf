"""GPU truth: what an error of the device means for the process, and what is done about it.

`faults.py` says what an exception means. After a fatal one nothing begins any more, before the next
in line could; the canary is asked, for the log; the process ends with code 74 and is replaced. Jobs
of the queue wait for the next process. After a doubtful one the canary decides.

Out of memory is not fatal. What the request held is let go of and the cache emptied; it runs once
more, alone, and its answer says so in `x-runner-retried`. When it does not fit even then, its caller
reads the error of the first time, and the queue does not try again. If after that not even the
canary fits, the process is full of what nobody lets go of, and is replaced as well (code 75).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ...schemas.endpoint import Endpoint
from ...schemas.exits import GPU_LOST, OUT_OF_MEMORY
from ...schemas.request import Request
from ...schemas.response import Response, json_response
from ...schemas.service import Call, ServiceView, Wrapper
from ..cancellation import scrub
from ..hookspecs import hookimpl
from ..lanes import Crowded
from ..logs import get_logger
from .device import CANARY_SECONDS, Device, Torch, canary, has_memory
from .faults import Fault, fault_of

__all__ = ["Plugin"]

log = get_logger("runner.gpu")

RETRIED = "x-runner-retried"
FAULT = "x-runner-fault"


class Plugin:
    """One service's eye on its device. Owns the canaries that are under way."""

    def __init__(self, device: Device | None = None, *, canary_seconds: float = CANARY_SECONDS) -> None:
        self._device = device or Torch()
        self._seconds = canary_seconds
        self._service: ServiceView = None  # type: ignore[assignment] # told with the first hook
        self._loop: asyncio.AbstractEventLoop | None = None
        self._canaries: set[asyncio.Task[None]] = set()
        self._is_lost = False

    # --- what ends a run

    @hookimpl
    def observe_errors(self, service: ServiceView) -> Callable[[BaseException], None]:
        self._service = service
        return self._on_error

    def _on_error(self, error: BaseException) -> None:
        """Where the run ended, before anybody else gets its place."""
        fault = fault_of(error)
        if fault is None:
            return
        if fault.kind == "memory":
            scrub(error)
            self._relieve()
        elif fault.kind == "fatal":
            error.answer_headers = {FAULT: "fatal"}  # type: ignore[attr-defined]
            if not self._is_lost:
                self._is_lost = True
                log.error("gpu.lost", reason=fault.reason)
                self._service.give_up(GPU_LOST, fault.reason)
                self._keep(self._look_after(fault))
        elif self._device.in_use() and not self._canaries:
            self._keep(self._find_out(fault))

    def _relieve(self) -> None:
        gc.collect()
        self._device.empty_cache()

    async def _look_after(self, fault: Fault) -> None:
        """For the log: is it really gone?"""
        if self._device.in_use():
            wrong = await canary(self._device, self._seconds)
            log.error("gpu.canary", wrong=wrong, after=fault.reason)

    async def _find_out(self, fault: Fault) -> None:
        wrong = await canary(self._device, self._seconds)
        (log.error if wrong else log.info)("gpu.canary", wrong=wrong, after=fault.reason)
        if wrong and not self._is_lost:
            self._is_lost = True
            self._service.give_up(GPU_LOST, f"the GPU {wrong}, after {fault.reason}")

    # --- out of memory

    @hookimpl
    def wrap_call(self, endpoint: Endpoint, service: ServiceView) -> Wrapper:
        def wrap(call: Call) -> Call:
            async def called(request: Request, arguments: dict[str, Any]) -> Response:
                try:
                    return await call(request, arguments)
                except Exception as error:
                    if not _is_memory(error) or request.token.cancelled or request.place is None:
                        raise
                    log.warning("memory.retrying", endpoint=request.path, exc_info=error)
                    first = error.with_traceback(None)  # whose frames would hold it, and it them
                return await self._again(call, request, arguments, first)

            return called

        return wrap

    async def _again(self, call: Call, request: Request, arguments: dict[str, Any], first: Exception) -> Response:
        """Run it once more with nobody beside it. Raises what the first run raised when it does not fit."""
        request.alone = True
        try:
            response = await call(request, arguments)
        except Crowded:
            log.warning("memory.crowded", endpoint=request.path, help="others ran on for so long that it could not be alone")
            first.answer_headers = {RETRIED: "no"}  # type: ignore[attr-defined]
            raise first from None
        except Exception as error:
            if not _is_memory(error):
                raise
            log.error("memory.exhausted", endpoint=request.path, help="it does not fit, with nobody else at work")
            error.answer_headers = {RETRIED: "out-of-memory", "x-fal-needs-retry": "0"}  # type: ignore[attr-defined]
            self._keep(self._see_what_is_left())
            raise
        response.headers[RETRIED] = "out-of-memory"
        return response

    async def _see_what_is_left(self) -> None:
        """Alone, and it did not fit: does anything?"""
        wrong = None if has_memory() else "had no memory left"
        if wrong is None and self._device.in_use():
            wrong = await canary(self._device, self._seconds)
        if wrong and not self._is_lost:
            self._is_lost = True
            log.error("memory.gone", wrong=wrong)
            self._service.give_up(OUT_OF_MEMORY, f"with nobody else at work, {wrong}")

    @hookimpl
    def map_error(self, service: ServiceView) -> Callable[[BaseException], Response | None]:
        """What the device raised is 503, also without the plugin fal."""

        def answer(error: BaseException) -> Response | None:
            fault = fault_of(error)
            if fault is None or isinstance(error, MemoryError):
                return None
            told = "CUDA error: out of memory" if fault.kind == "memory" else "GPU error"
            return json_response({"detail": told}, status=503)

        return answer

    # --- canaries

    @hookimpl
    def lifespan(self, service: ServiceView) -> AbstractAsyncContextManager[None]:
        self._service = service
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            if self._canaries:
                await asyncio.wait(self._canaries)  # each ends by itself, see `canary`

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin `work` on the loop; from any thread."""
        assert self._loop is not None

        def begin() -> None:
            task = asyncio.get_running_loop().create_task(work)
            self._canaries.add(task)
            task.add_done_callback(self._canaries.discard)

        self._loop.call_soon_threadsafe(begin)


def _is_memory(error: BaseException) -> bool:
    fault = fault_of(error)
    return fault is not None and fault.kind == "memory"
