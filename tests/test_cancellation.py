"""What stops, how it stops, and that nothing else notices. Speed is for bench/cancel.py."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import anyio.from_thread
import pytest
from runner.plugins.cancellation import Call, Limits, Token, checkpoint, install, shield, uninstall
from runner.schemas.problems import RequestCancelled
from stopping import Running, Worker, layers, stop_once_begun

Begun = Callable[[], None]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with layers():
        yield


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def spin(begun: Begun) -> None:
    begun()
    total = 0
    while True:
        total += 1


# --- the token


def test_the_first_reason_stays() -> None:
    token = Token()

    assert token.cancel("request_timeout")
    assert not token.cancel("client_disconnected")
    assert token.reason == "request_timeout"


def test_a_listener_that_was_taken_back_hears_nothing() -> None:
    heard: list[str] = []
    token = Token()
    token.on_cancel(lambda: heard.append("stays"))
    gone = lambda: heard.append("gone")  # noqa: E731
    token.on_cancel(gone)
    token.forget(gone)

    token.cancel("draining")

    assert heard == ["stays"]


# --- the call


async def test_work_that_is_left_alone_returns_its_value(worker: Worker) -> None:
    assert await worker.run(lambda: 41 + 1) == 42


async def test_work_cancelled_before_it_began_never_begins(worker: Worker) -> None:
    began: list[bool] = []
    token = Token()
    token.cancel("client_cancelled")

    running = worker.start(lambda: began.append(True), Call(token))
    await running.out.wait()

    assert began == []
    assert isinstance(running.call.error, RequestCancelled)
    assert running.call.layer == "waiting"


async def test_a_python_loop_is_stopped(worker: Worker) -> None:
    call = await stop_once_begun(worker, spin)

    assert isinstance(call.error, RequestCancelled)
    assert str(call.error) == "client_disconnected"
    assert call.layer == ("back-edge" if sys.version_info >= (3, 12) else "asynchronous")
    assert call.swallowed == 0


async def test_the_next_call_in_the_thread_is_untouched(worker: Worker) -> None:
    for _ in range(20):
        await stop_once_begun(worker, spin)

        assert await worker.run(lambda: sum(range(1000))) == 499500


async def test_a_checkpoint_stops_where_it_stands(worker: Worker) -> None:
    turn = threading.Event()

    def step(begun: Begun) -> None:
        begun()
        turn.wait()
        checkpoint()

    def cancelled() -> None:
        turn.set()

    token = Token()
    token.on_cancel(cancelled)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    running = worker.start(lambda: step(lambda: loop.call_soon_threadsafe(begun.set)), Call(token))
    await begun.wait()
    token.cancel("request_timeout")
    await running.out.wait()

    assert isinstance(running.call.error, RequestCancelled)
    assert running.call.layer == "scope"


def test_checkpoint_and_shield_do_nothing_outside_a_request() -> None:
    checkpoint()
    with shield():
        checkpoint()


async def test_the_authors_except_exception_does_not_swallow_a_cancel(worker: Worker) -> None:
    def work(begun: Begun) -> None:
        begun()
        while True:
            with contextlib.suppress(Exception):
                sum(range(50))

    assert isinstance((await stop_once_begun(worker, work)).error, RequestCancelled)


async def test_finally_blocks_run_to_their_end(worker: Worker) -> None:
    cleaned: list[int] = []

    def work(begun: Begun) -> None:
        try:
            spin(begun)
        finally:
            cleaned.append(sum(1 for _ in range(20_000)))
            cleaned.append(-1)

    call = await stop_once_begun(worker, work)

    assert cleaned == [20_000, -1]
    assert isinstance(call.error, RequestCancelled)


async def test_a_clean_up_that_does_not_end_is_stopped_after_its_budget(worker: Worker) -> None:
    def work(begun: Begun) -> None:
        try:
            spin(begun)
        finally:
            while True:
                pass

    call = await stop_once_begun(worker, work, Limits(cleanup_seconds=0.01))

    assert isinstance(call.error, RequestCancelled)


async def test_a_swallowed_cancel_is_counted_and_sent_again(worker: Worker) -> None:
    def work(begun: Begun) -> str:
        with contextlib.suppress(BaseException):
            spin(begun)
        while True:
            sum(range(50))

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, RequestCancelled)
    assert call.swallowed == 1


async def test_a_cancel_that_lands_in_a_destructor_is_not_the_authors_fault(worker: Worker) -> None:
    class Last:
        def __del__(self) -> None:
            checkpoint()

    def work(begun: Begun) -> None:
        begun()
        last = Last()
        with shield():
            while not call_of_this_thread().token.cancelled:
                pass
            abs(-1)
            call_of_this_thread().shields -= 1  # as if the block were over
            del last
            call_of_this_thread().shields += 1

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, RequestCancelled)
    assert call.swallowed == 0


async def test_work_that_swallows_its_cancel_and_returns_keeps_its_value(worker: Worker) -> None:
    def work(begun: Begun) -> str:
        with contextlib.suppress(BaseException):
            spin(begun)
        return "half an answer"

    call = await stop_once_begun(worker, work)

    assert (call.result, call.error) == ("half an answer", None)
    assert (call.layer, call.swallowed) == ("returned", 1)


async def test_a_shielded_block_is_finished_first(worker: Worker) -> None:
    steps: list[int] = []

    def work(begun: Begun) -> None:
        with shield():
            begun()
            while not call_of_this_thread().token.cancelled:
                pass
            for step in range(10_000):
                checkpoint()
                steps.append(step)
        steps.append(-1)

    call = await stop_once_begun(worker, work)

    assert len(steps) == 10_000
    assert steps[-1] == 9_999
    assert isinstance(call.error, RequestCancelled)
    assert call.layer == "scope"


def call_of_this_thread() -> Call:
    from runner.plugins.cancellation.here import here

    assert here.call is not None
    return here.call


async def test_an_error_of_the_author_stays_that_error(worker: Worker) -> None:
    def work(begun: Begun) -> None:
        try:
            spin(begun)
        finally:
            raise KeyError("mine")

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, KeyError)
    assert call.layer == "returned"


# --- threads


async def test_a_thread_that_the_work_started_is_stopped_with_it(worker: Worker) -> None:
    ended = threading.Event()

    def generate(words: queue.Queue[int]) -> None:
        try:
            word = 0
            while True:
                word += 1
                if word < 5:
                    words.put(word)
        finally:
            ended.set()

    def work(begun: Begun) -> None:
        words: queue.Queue[int] = queue.Queue()
        threading.Thread(target=generate, args=(words,)).start()
        begun()
        while True:
            if not words.empty():
                words.get()

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, RequestCancelled)
    assert ended.is_set()


async def test_the_jobs_that_the_work_gave_to_a_pool_are_stopped_and_the_pool_lives_on(worker: Worker) -> None:
    with ThreadPoolExecutor(2) as pool:
        pool.submit(int).result()  # its threads are older than the request

        def work(begun: Begun) -> None:
            list(pool.map(spin, [begun, begun]))

        call = await stop_once_begun(worker, work)

        assert isinstance(call.error, RequestCancelled)
        assert list(pool.map(abs, [-1, -2])) == [1, 2]


async def test_a_thread_that_outlives_its_request_is_left_to_itself(worker: Worker) -> None:
    stay, result = threading.Event(), queue.SimpleQueue[str]()

    def outlive() -> None:
        stay.wait()
        checkpoint()
        result.put("done")

    running = worker.start(lambda: threading.Thread(target=outlive).start())
    await running.out.wait()
    running.call.token.cancel("client_disconnected")  # too late
    stay.set()

    assert await asyncio.to_thread(result.get) == "done"


# --- waits


@pytest.mark.parametrize(
    "wait",
    [
        lambda: queue.Queue[int]().get(),
        lambda: threading.Event().wait(),
        lambda: threading.Semaphore(0).acquire(),
        lambda: Future[int]().result(),
    ],
    ids=["queue", "event", "semaphore", "future"],
)
async def test_a_thread_that_waits_is_woken(worker: Worker, wait: Callable[[], Any]) -> None:
    def work(begun: Begun) -> None:
        begun()
        wait()

    call = await stop_once_begun(worker, work)

    assert isinstance(call.error, RequestCancelled)
    assert call.layer == "scope"


async def test_others_who_wait_for_the_same_are_not_woken(worker: Worker) -> None:
    event, woken = threading.Event(), queue.SimpleQueue[bool]()
    other = threading.Thread(target=lambda: woken.put(event.wait()))
    other.start()

    def work(begun: Begun) -> None:
        begun()
        event.wait()

    await stop_once_begun(worker, work)

    assert woken.empty()
    event.set()
    assert await asyncio.to_thread(woken.get) is True
    other.join()


async def test_a_clean_up_that_waits_is_let_wait(worker: Worker) -> None:
    helper_done = threading.Event()

    def work(begun: Begun) -> None:
        try:
            spin(begun)
        finally:
            worker.loop.call_soon_threadsafe(helper_done.set)
            helper_done.wait()

    call = await stop_once_begun(worker, work)

    assert helper_done.is_set()
    assert isinstance(call.error, RequestCancelled)
    assert call.swallowed == 0


# --- anyio


async def test_anyio_s_functions_for_worker_threads_work_in_the_lane(worker: Worker) -> None:
    async def on_the_loop() -> str:
        return "async"

    def work() -> tuple[str, str]:
        anyio.from_thread.check_cancelled()
        return anyio.from_thread.run(on_the_loop), anyio.from_thread.run_sync(lambda: "sync")

    assert await worker.run(work) == ("async", "sync")


async def test_check_cancelled_sees_the_scope_of_the_request(worker: Worker) -> None:
    begun, cancelled = asyncio.Event(), queue.SimpleQueue[None]()

    def work() -> None:
        worker.loop.call_soon_threadsafe(begun.set)
        cancelled.get()
        anyio.from_thread.check_cancelled()

    with anyio.CancelScope() as scope:
        token = Token()
        running = worker.start(work, Call(token, scope))
        await begun.wait()
        scope.cancel()
        token.cancel("client_cancelled")
        cancelled.put(None)
        with anyio.CancelScope(shield=True):
            await running.out.wait()

    assert isinstance(running.call.error, asyncio.CancelledError)
    assert running.call.layer == "scope"


# --- ghosts


async def test_a_thread_that_does_not_come_back_is_a_ghost_and_then_asks_for_a_replacement(worker: Worker) -> None:
    let_go = queue.SimpleQueue[None]()  # waits in C
    told: list[str] = []

    def work() -> None:
        running.has_begun()
        let_go.get()

    def replace(call: Call) -> None:
        told.append("replace")
        let_go.put(None)

    running = Running(Call(Token()))
    worker.start(work, running=running)
    await running.begun.wait()
    call = await running.stop(
        Limits(quarantine_seconds=0.01, replace_seconds=0.02),
        on_ghost=lambda call: told.append("ghost"),
        on_replace=replace,
    )

    assert told == ["ghost", "replace"]
    assert call.layer == "ghost"


# --- what is left behind


async def test_a_failed_call_s_error_keeps_its_line_and_none_of_its_locals(worker: Worker) -> None:
    class Tensor:
        pass

    alive: list[Any] = []

    def work() -> None:
        import weakref

        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise ValueError("no")

    running = worker.start(work)
    await running.out.wait()

    error = running.call.error
    assert isinstance(error, ValueError)
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "work"
    assert alive[0]() is None


def test_what_was_replaced_is_put_back_when_the_last_service_ends() -> None:
    uninstall()  # the fixture's
    before = sys.getswitchinterval(), threading.Thread.start, ThreadPoolExecutor.submit

    with layers(), layers():
        assert threading.Thread.start is not before[1]

    assert (sys.getswitchinterval(), threading.Thread.start, ThreadPoolExecutor.submit) == before
    install()
