"""A thread that works as a lane's does, and how tests stop what it runs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runner.plugins import cancellation
from runner.plugins.cancellation import LIMITS, Call, Limits, Token, arm, joined, unwind

GUARD = 20  # seconds after which a test that hangs fails; nothing waits for it to pass


@contextmanager
def layers() -> Iterator[None]:
    """The time between a service's start and its end."""
    cancellation.install()
    try:
        yield
    finally:
        cancellation.uninstall()


class Worker:
    """One thread that runs calls in order, and the event loop's side of it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.escaped: list[BaseException] = []  # what left an `invoke`, which must be nothing
        self._calls: queue.SimpleQueue[tuple[Call, Callable[[], Any], asyncio.Event] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with joined(self.loop):
            while True:
                try:
                    item = self._calls.get()
                    if item is None:
                        return
                    call, work, out = item
                    call.invoke(work)
                    self.loop.call_soon_threadsafe(out.set)
                    del item, call, work, out
                except BaseException as error:
                    self.escaped.append(error)

    def start(self, work: Callable[[], Any], call: Call | None = None, *, running: Running | None = None) -> Running:
        running = running or Running(call or Call(Token()))
        self._calls.put((running.call, work, running.out))
        return running

    async def run(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, or its error."""
        running = self.start(work)
        await running.out.wait()
        if running.call.error is not None:
            raise running.call.error
        return running.call.result

    def close(self) -> None:
        self._calls.put(None)
        self.thread.join(GUARD)
        assert not self.thread.is_alive()
        assert self.escaped == []


class Running:
    """One call under way."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.out = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()

    def has_begun(self) -> None:
        """For the work to say, from its thread, that it is where it shall be stopped."""
        self._loop.call_soon_threadsafe(self.begun.set)

    async def stop(self, limits: Limits = LIMITS, **hooks: Any) -> Call:
        """Cancel as a lane does, and wait until the thread has left."""
        self.call.token.on_cancel(lambda: arm(self.call, limits))
        self.call.token.cancel("client_disconnected")
        async with asyncio.timeout(GUARD):
            await unwind(self.call, self.out, limits, **hooks)
        return self.call


async def stop_once_begun(worker: Worker, work: Callable[[Callable[[], None]], Any], limits: Limits = LIMITS) -> Call:
    """Run `work`, which is given a function to call where it shall be stopped, and stop it there."""
    running = Running(Call(Token()))  # before the thread may look for it
    worker.start(lambda: work(running.has_begun), running=running)
    async with asyncio.timeout(GUARD):
        await running.begun.wait()
    return await running.stop(limits)
