"""A worker's thread as anyio knows it, so that `anyio.from_thread` works in it.

`from_thread.run()` and `run_sync()` need to know the loop, `check_cancelled()` the scope of the
request. anyio gives both to its own worker threads only, in a thread-local of
`anyio._core._eventloop`. Read in anyio 4.16.0, where `claim_worker_thread` sets and clears the
loop, and `WorkerThread.run` sets `current_cancel_scope` for one job; a test uses all three.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from anyio._backends._asyncio import _task_states
from anyio._core._eventloop import claim_worker_thread, get_async_backend, threadlocals

anyio_locals = threadlocals


@contextmanager
def joined(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Make this thread one of `loop`'s workers, for as long as the block lasts."""
    with claim_worker_thread(get_async_backend("asyncio"), loop):
        yield


def current_scope() -> object | None:
    """The innermost cancel scope of the current task, for the thread that works for it."""
    task = asyncio.current_task()
    state = _task_states.get(task) if task is not None else None
    return state.cancel_scope if state is not None else None
