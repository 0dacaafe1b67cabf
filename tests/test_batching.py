"""Dynamic batching: who is in a batch, when it begins, and what each member gets (behaviours 27 and 53)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
import torch
from asking import GUARD_SECONDS, Asked, service_of
from prometheus_client.parser import text_string_to_metric_families
from runner.plugins.batching import rounds
from runner.schemas.problems import ConfigError
from serving import serving, written

import runner

ME: Any = runner.Header("-")
NEVER_MS = 600_000  # company is waited for until it comes, or the test fails


class Input(msgspec.Struct):
    n: int
    does: str = ""


class Output(msgspec.Struct):
    twice: int


class Gate:
    """Where a call stands until it is let go, in a thread or on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._event, self._opened = loop, threading.Event(), asyncio.Event()
        self.wait, self.opened = self._event.wait, self._opened.wait

    def set(self) -> None:
        self._event.set()
        self._opened.set()


class Calls:
    """The calls of a batched method, each of which stands still until it is let go. Told from its thread or the loop."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.gates: list[Gate] = []
        self.left: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def begin(self, inputs: list[Input]) -> Gate:
        gate = Gate(self._loop)
        self.gates.append(gate)
        self.seen.append([each.n for each in inputs])
        self._loop.call_soon_threadsafe(self._news.set)
        return gate

    def leave(self, what: str) -> None:
        self.left.append(what)
        self._loop.call_soon_threadsafe(self._news.set)

    async def until(self, so: Callable[[], bool]) -> None:
        with anyio.fail_after(GUARD_SECONDS):
            while not so():
                self._news.clear()
                await self._news.wait()

    async def begun(self, count: int) -> None:
        await self.until(lambda: len(self.seen) >= count)

    def let_go(self) -> None:
        self.gates[-1].set()


def answers(inputs: list[Input]) -> Any:
    """What the methods below give: one answer for each, or what an input asks for."""
    does = {each.does for each in inputs}
    if "fail" in does:
        raise ZeroDivisionError("all of it")
    if "short" in does:
        return [Output(0)] * (len(inputs) - 1)
    if "dict" in does:
        return {}
    fault = runner.Fault(type="image_load_error", loc=("body", "picture"), msg="no picture")
    given: dict[str, Any] = {
        "teapot": runner.HTTPError(418, "I am one"), "bug": ValueError("mine"), "text": "no output", "fault": runner.InvalidInput([fault]),
    }  # fmt: skip
    return [given.get(each.does, Output(2 * each.n)) for each in inputs]


def app(**settings: Any) -> type[runner.App]:
    """An app with the same batched method, sync and async."""
    batch = runner.Batch(**{"max_size": 4, "max_wait_ms": 0} | settings)

    class Batched(runner.App):
        async def setup(self) -> None:
            self.calls = Calls()

        @runner.endpoint("/", batch=batch)
        def sync(self, inputs: list[Input]) -> list[Output | Exception]:
            self.calls.begin(inputs).wait()
            return answers(inputs)  # type: ignore[no-any-return]

        @runner.endpoint("/plain")
        def plain(self) -> str:
            return "served"

        @runner.endpoint("/async", batch=batch)
        async def on_the_loop(self, inputs: list[Input]) -> list[Output | Exception]:
            gate = self.calls.begin(inputs)
            try:
                await gate.opened()
            except asyncio.CancelledError:
                self.calls.leave("cancelled")
                raise
            return answers(inputs)  # type: ignore[no-any-return]

        @runner.endpoint("/torch", batch=batch)
        def torch_loop(self, inputs: list[Input]) -> list[Output]:
            layer = torch.nn.Linear(64, 64)
            self.calls.begin(inputs)
            try:
                with torch.no_grad():
                    state = torch.zeros(len(inputs), 64)
                    while True:
                        state = layer(state)
            finally:
                self.calls.leave("torch")

    return Batched


async def in_line(service: runner.Service, *numbers: int, path: str = "/", **body: Any) -> list[Asked]:
    """A caller for each number, all of them waiting for a place."""
    before = service.lanes["waiting"]
    asked = [Asked(service, path, {"n": n, **body}) for n in numbers]
    await waiting(service, before + len(numbers))
    return asked


async def waiting(service: runner.Service, count: int) -> None:
    with anyio.fail_after(GUARD_SECONDS):
        while service.lanes["waiting"] != count:
            await anyio.lowlevel.checkpoint()


async def settled(service: runner.Service, *numbers: int) -> list[Asked]:
    """A caller for each number, come as far as they come by themselves."""
    asked = [Asked(service, "/", {"n": n}) for n in numbers]
    await anyio.wait_all_tasks_blocked()
    return asked


PATHS = pytest.mark.parametrize("path", ["/", "/async"])


async def held(service: runner.Service, path: str = "/", n: int = 0) -> tuple[Calls, Asked]:
    """A batch of one that holds the only place."""
    calls: Calls = service.instance.calls
    first = Asked(service, path, {"n": n})
    await calls.begun(1)
    return calls, first


async def all_over(calls: Calls, *asked: Asked) -> None:
    """Let every call go, also those that have yet to begin."""
    done = asyncio.gather(*(each.over() for each in asked))
    known = 0
    while not done.done():
        for gate in calls.gates[known:]:
            gate.set()
        known = len(calls.gates)
        await asyncio.wait([done, asyncio.ensure_future(calls.begun(known + 1))], return_when=asyncio.FIRST_COMPLETED)
    await done


# --- when a batch begins


@PATHS
async def test_a_caller_who_comes_alone_begins_at_once(tmp_path: Path, path: str) -> None:
    async with service_of(app(max_wait_ms=NEVER_MS), tmp_path) as service:
        for n in (1, 2):
            asked = Asked(service, path, {"n": n})
            await service.instance.calls.begun(n)
            service.instance.calls.let_go()
            assert (await asked.over()).json == {"twice": 2 * n}

        assert service.instance.calls.seen == [[1], [2]]


async def test_what_came_while_a_batch_ran_is_the_next_one_up_to_its_size(tmp_path: Path) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service)
        others = await in_line(service, 1, 2, 3, 4, 5, 6)
        assert service.lanes["waiting"] == 6
        calls.let_go()
        await calls.begun(2)
        assert service.lanes["waiting"] == 2
        await all_over(calls, first, *others)

        assert calls.seen == [[0], [1, 2, 3, 4], [5, 6]]
        assert [asked.json for asked in others] == [{"twice": 2 * n} for n in range(1, 7)]
        assert service.lanes == {"places": 1, "running": 0, "waiting": 0, "ghosts": 0}


async def test_after_a_batch_of_several_a_smaller_one_waits_for_as_many(tmp_path: Path) -> None:
    async with service_of(app(max_wait_ms=NEVER_MS), tmp_path) as service:
        calls, first = await held(service)
        pair = await in_line(service, 1, 2)
        calls.let_go()
        await calls.begun(2)
        calls.let_go()
        for asked in (first, *pair):
            await asked.over()
        (third,) = await settled(service, 3)
        assert len(calls.seen) == 2
        fourth = Asked(service, "/", {"n": 4})
        await all_over(calls, third, fourth)

        assert calls.seen == [[0], [1, 2], [3, 4]]


async def test_nobody_waits_for_company_while_another_endpoints_caller_waits_for_the_place(tmp_path: Path) -> None:
    async with service_of(app(max_wait_ms=NEVER_MS), tmp_path) as service:
        calls, first = await held(service)
        pair = await in_line(service, 1, 2)
        calls.let_go()
        await calls.begun(2)
        (third,) = await in_line(service, 3)
        (plain,) = await in_line(service, 0, path="/plain")
        await all_over(calls, first, *pair, third, plain)

        assert calls.seen == [[0], [1, 2], [3]]
        assert plain.json == "served"


async def test_it_waits_no_longer_than_max_wait_ms(tmp_path: Path) -> None:
    async with service_of(app(max_wait_ms=1), tmp_path) as service:
        calls, first = await held(service)
        pair = await in_line(service, 1, 2)
        await all_over(calls, first, *pair)
        third = Asked(service, "/", {"n": 3})
        await all_over(calls, third)

        assert calls.seen == [[0], [1, 2], [3]]


async def test_who_gathers_and_leaves_again_gives_the_place_back(tmp_path: Path) -> None:
    async with service_of(app(max_wait_ms=NEVER_MS), tmp_path) as service:
        calls, first = await held(service)
        pair = await in_line(service, 1, 2)
        await all_over(calls, first, *pair)
        (third,) = await settled(service, 3)
        assert service.lanes["running"] == 1
        third.leave()
        await third.over()
        assert service.lanes["running"] == 0
        await all_over(calls, *await settled(service, 4, 5))

        assert calls.seen == [[0], [1, 2], [4, 5]]


async def test_as_many_batches_run_at_once_as_there_are_places(tmp_path: Path) -> None:
    kind = app()
    kind.max_multiplexing = 2  # type: ignore[attr-defined]
    async with service_of(kind, tmp_path) as service:
        calls, first = await held(service)
        second = Asked(service, "/", {"n": 1})
        await calls.begun(2)
        others = await in_line(service, 2, 3)
        assert service.lanes["running"] == 2
        calls.gates[0].set()
        await calls.begun(3)
        assert service.lanes["running"] == 2
        await all_over(calls, first, second, *others)

        assert calls.seen == [[0], [1], [2, 3]]


async def test_a_line_that_is_full_refuses_members_as_it_does_others(tmp_path: Path) -> None:
    async with service_of(app(), tmp_path, max_queued_requests=2) as service:
        calls, first = await held(service)
        others = await in_line(service, 1, 2)
        refused = await Asked(service, "/", {"n": 3}).over()
        await all_over(calls, first, *others)

        assert refused.status == 429
        assert calls.seen == [[0], [1, 2]]


async def test_jobs_of_the_queue_and_direct_calls_share_a_batch(tmp_path: Path) -> None:
    async with service_of(app(max_size=3, max_wait_ms=NEVER_MS), tmp_path) as service:
        calls, first = await held(service)
        trio = await in_line(service, 1, 2, 3)
        await all_over(calls, first, *trio)
        direct = Asked(service, "/", {"n": 4})
        jobs = [await Asked(service, "/queue/local/batched", {"n": n}).over() for n in (5, 6)]
        await all_over(calls, direct)
        results = []
        for job in jobs:
            await Asked(service, f"/queue/local/batched/requests/{job.json['request_id']}/status/stream", method="GET").over()
            results.append(await Asked(service, f"/queue/local/batched/requests/{job.json['request_id']}", method="GET").over())

        assert sorted(calls.seen[2]) == [4, 5, 6]
        assert [result.json for result in results] == [{"twice": 10}, {"twice": 12}]


# --- what each member gets


@PATHS
async def test_a_bad_input_is_told_at_once_and_never_enters_a_batch(tmp_path: Path, path: str) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service, path)
        others = [Asked(service, path, {"n": n}) for n in (1, "two", 3)]
        assert (await others[1].over()).status == 422
        assert others[1].json["detail"][0]["loc"] == ["body", "n"]
        await waiting(service, 2)
        await all_over(calls, first, *others)

        assert calls.seen == [[0], [1, 3]]


@PATHS
async def test_an_exception_in_an_items_place_is_the_answer_of_that_member_alone(tmp_path: Path, path: str) -> None:
    async with service_of(app(max_size=5), tmp_path) as service:
        calls, first = await held(service, path)
        others = [Asked(service, path, {"n": n, "does": does}) for n, does in enumerate(["", "teapot", "bug", "text", "fault"])]
        await waiting(service, 5)
        await all_over(calls, first, *others)

        assert [asked.status for asked in others] == [200, 418, 500, 500, 422]
        assert others[4].json["detail"][0]["loc"] == ["body", "picture"]
        assert others[1].json == {"detail": "I am one"}
        assert others[0].json == {"twice": 0}
        assert len(calls.seen) == 2


@PATHS
@pytest.mark.parametrize("does", ["short", "dict", "fail"])
async def test_a_wrong_length_a_wrong_type_or_an_error_is_a_500_for_that_batch_only(
    tmp_path: Path, path: str, does: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service, path)
        others = await in_line(service, 1, 2, 3, 4, path=path, does=does)
        after = Asked(service, path, {"n": 5})
        await waiting(service, 5)
        await all_over(calls, first, *others, after)

        assert calls.seen == [[0], [1, 2, 3, 4], [5]]
        assert [asked.status for asked in (first, *others, after)] == [200, 500, 500, 500, 500, 200]
    told = {
        "short": "gave 3 items for 4 inputs; it must give one for each, in their order",
        "dict": "gave a dict for 4 inputs; it must give a list with one item for each",
        "fail": "all of it",
    }
    assert told[does] in capfd.readouterr().err


async def test_the_methods_other_parameters_are_lists_as_well(tmp_path: Path) -> None:
    class Many(runner.App):
        @runner.endpoint("/", batch=runner.Batch())
        def run(
            self, prompt: list[str], requests: list[runner.Request], replies: list[runner.Response], seed: list[int] = 7, who: list[str] = ME  # type: ignore[assignment]
        ) -> list[str]:
            replies[0].headers["x-own"] = "yes"
            assert runner.current_batch() == tuple(requests)
            assert runner.current_request().id == ",".join(str(request.id) for request in requests)
            return [f"{p} {r.id} {s} {w}" for p, r, s, w in zip(prompt, requests, seed, who, strict=True)]

    async with service_of(Many, tmp_path) as service:
        asked = await Asked(service, "/", {"prompt": "house"}, id="mine", who="me").over()

    assert asked.json == "house mine 7 me"
    assert (b"x-own", b"yes") in asked.heads[0]["headers"]


async def test_a_file_that_cannot_be_fetched_fails_its_own_request_alone(tmp_path: Path) -> None:
    class Files(runner.App):
        @runner.endpoint("/", batch=runner.Batch())
        def run(self, file: list[runner.File]) -> list[str]:
            return [each.as_bytes().decode() for each in file]

    async with service_of(Files, tmp_path) as service:
        bad = await Asked(service, "/", {"url": "http://127.0.0.1:9/x"}).over()
        good = await Asked(service, "/", {"url": "data:,good"}).over()

    assert (bad.status, bad.json["detail"][0]["type"]) == (422, "file_download_error")
    assert good.json == "good"
    assert service.batches == {"/": {1: 1}}


# --- who leaves


async def test_a_member_who_leaves_before_the_start_is_not_in_the_batch(tmp_path: Path) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service)
        others = await in_line(service, 1, 2, 3)
        others[1].leave()
        await others[1].over()
        await all_over(calls, first, *others)

        assert calls.seen == [[0], [1, 3]]


@PATHS
async def test_a_member_who_leaves_while_it_runs_is_ignored_and_the_others_are_answered(tmp_path: Path, path: str) -> None:
    """Behaviour 27: a batch loses one member and goes on for the others."""
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service, path)
        others = await in_line(service, 1, 2, 3, path=path)
        calls.let_go()
        await calls.begun(2)
        others[0].leave()
        await others[0].over()
        assert service.lanes["running"] == 1
        await all_over(calls, first, *others)

        assert calls.seen[1] == [1, 2, 3]
        assert others[0].body == b""
        assert [asked.json for asked in others[1:]] == [{"twice": 4}, {"twice": 6}]
        assert calls.left == []


@pytest.mark.parametrize("path", ["/torch", "/async"])
async def test_a_batch_whose_last_member_leaves_is_stopped_and_its_place_is_free(tmp_path: Path, path: str) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service)
        others = await in_line(service, 1, 2, path=path)
        calls.let_go()
        await calls.begun(2)
        others[0].leave()
        await others[0].over()
        assert calls.left == []
        others[1].leave()
        await calls.until(lambda: len(calls.left) == 1)
        for asked in (first, *others):
            await asked.over()
        after = Asked(service, "/", {"n": 3})
        await all_over(calls, after)

        assert (after.json, calls.seen) == ({"twice": 6}, [[0], [1, 2], [3]])
        assert service.lanes["ghosts"] == 0


async def test_a_deadline_to_begin_is_that_of_its_member(tmp_path: Path) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service)
        hasty = Asked(service, "/", {"n": 1}, x_fal_request_timeout="0.11")
        (patient,) = await in_line(service, 2)
        await hasty.over()
        await all_over(calls, first, patient)

        assert (hasty.status, hasty.json["error_type"]) == (504, "request_timeout")
        assert calls.seen == [[0], [2]]


async def test_a_run_that_takes_longer_than_its_timeout_is_stopped_for_every_member(tmp_path: Path) -> None:
    class Slow(runner.App):
        @runner.endpoint("/", timeout=0.05, batch=runner.Batch(max_wait_ms=0))
        def run(self, n: list[int]) -> list[int]:
            threading.Event().wait()
            return n

    async with service_of(Slow, tmp_path) as service:
        asked = [Asked(service, "/", {"n": n}) for n in range(3)]
        statuses = [(await each.over()).status for each in asked]

        assert statuses == [504, 504, 504]
        assert service.batches == {"/": {1: 1, 2: 1}}


@PATHS
async def test_a_batch_that_does_not_fit_into_memory_is_run_again_one_member_at_a_time(tmp_path: Path, path: str) -> None:
    class Large(runner.App):
        max_multiplexing = 2

        async def setup(self) -> None:
            self.calls = Calls()

        def answers(self, inputs: list[Input]) -> list[Output]:
            if len(inputs) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return [Output(2 * each.n) for each in inputs]

        @runner.endpoint("/", batch=runner.Batch(max_size=4, max_wait_ms=0))
        def sync(self, inputs: list[Input]) -> list[Output]:
            self.calls.begin(inputs).wait()
            return self.answers(inputs)

        @runner.endpoint("/async", batch=runner.Batch(max_size=4, max_wait_ms=0))
        async def on_the_loop(self, inputs: list[Input]) -> list[Output]:
            await self.calls.begin(inputs).opened()
            return self.answers(inputs)

    async with service_of(Large, tmp_path) as service:
        calls, first = await held(service, path)
        second = Asked(service, path, {"n": 1})
        await calls.begun(2)
        others = await in_line(service, 2, 3, 4, path=path)
        calls.gates[0].set()
        await calls.begun(3)
        calls.gates[1].set()
        await all_over(calls, first, second, *others)

        assert calls.seen == [[0], [1], [2, 3, 4], [2], [3], [4]]
        assert [asked.json for asked in others] == [{"twice": 4}, {"twice": 6}, {"twice": 8}]
        assert all((b"x-runner-retried", b"out-of-memory") in asked.heads[0]["headers"] for asked in others)
        assert service.lanes == {"places": 2, "running": 0, "waiting": 0, "ghosts": 0}


APP = """
import time
import runner

class Endless(runner.App):
    @runner.endpoint("/endless", batch=runner.Batch(max_size=4, max_wait_ms=0))
    def endless(self, n: list[int]) -> list[int]:
        print("begun", n)
        try:
            while True:
                time.sleep(0.001)
        finally:
            print("left", n)

    @runner.endpoint("/")
    def next(self) -> str:
        return "served"
"""


def test_callers_who_hang_up_one_by_one_stop_their_batch_with_the_last(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as running:
        callers = {"a": running.call("/endless", "a", b'{"n": 0}')}
        running.wait_for("app.output", text="begun [0]", request_id="a")
        for n, name in enumerate("bc", 1):
            callers[name] = running.call("/endless", name, b'{"n": %d}' % n)
            while running.get("/health", headers={"accept": "application/json"}).json()["lanes"]["waiting"] < n:
                pass
        callers["a"].close()
        running.wait_for("app.output", text="begun [1, 2]", request_ids=["b", "c"])
        callers["b"].close()
        stayed = running.wait_for("request.finished", request_id="b")
        assert not running.events("app.output", text="left [1, 2]")
        callers["c"].close()
        stopped = running.wait_for("request.finished", request_id="c")
        served = running.post("/").json()

    assert (stayed["reason"], stayed["layer"]) == ("client_disconnected", "batch")
    assert stopped["reason"] == "client_disconnected"
    assert stopped["layer"] in ("asynchronous", "back-edge")
    assert running.events("app.output", text="left [1, 2]")
    assert served == "served"


# --- streams


def streams() -> type[runner.App]:
    class Streams(runner.App):
        async def setup(self) -> None:
            self.calls = Calls()
            self.large = "x" * 100_000

        def rows(self, inputs: list[Input]) -> Iterator[list[Any]]:
            for step in range(max(each.n for each in inputs)):
                yield [self.item(each, step) for each in inputs]

        def item(self, each: Input, step: int) -> Any:
            if step >= each.n:
                return StopIteration()
            if each.does == "even" and step % 2:
                return None
            if each.does == "fail" and step == 1:
                return runner.HTTPError(418, "I am one")
            return self.large if each.does == "large" else step

        @runner.endpoint("/", batch=runner.Batch(max_size=4, max_wait_ms=0))
        def sync(self, inputs: list[Input]) -> Iterator[list[int | str | Exception | None]]:
            gate = self.calls.begin(inputs)
            try:
                for row in self.rows(inputs):
                    yield row
                    if row[0] == 0:
                        gate.wait()
            finally:
                self.calls.leave("closed")

        @runner.endpoint("/async", batch=runner.Batch(max_size=4, max_wait_ms=0))
        async def on_the_loop(self, inputs: list[Input]) -> AsyncIterator[list[int | str | Exception | None]]:
            gate = self.calls.begin(inputs)
            try:
                for row in self.rows(inputs):
                    yield row
                    if row[0] == 0:
                        await gate.opened()
            finally:
                self.calls.leave("closed")

    return Streams


async def together(service: runner.Service, path: str, *bodies: dict[str, Any], **headers: str) -> tuple[Calls, list[Asked]]:
    """A batch of these members that has begun, and gives nothing after the first step until it is let go."""
    calls, first = await held(service, path, n=1)
    asked = [Asked(service, path, body, **headers) for body in bodies]
    await waiting(service, len(bodies))
    first.leave()
    await calls.until(lambda: len(calls.left) == 1 and len(calls.seen) == 2)
    return calls, asked


@PATHS
async def test_each_member_of_a_batch_reads_a_stream_of_its_own(tmp_path: Path, path: str) -> None:
    async with service_of(streams(), tmp_path) as service:
        bodies = [{"n": 4}, {"n": 2}, {"n": 4, "does": "even"}, {"n": 4, "does": "fail"}]
        calls, asked = await together(service, path, *bodies)
        for each in asked:
            assert (await each.until_events(1))[0] == 0
        await all_over(calls, *asked)

        assert [each.events for each in asked[:3]] == [[0, 1, 2, 3], [0, 1], [0, 2]]
        assert asked[3].events == [0, {"detail": "I am one", "error_type": "runner_server_error"}]
        assert calls.seen[1] == [4, 2, 4, 4]


@PATHS
async def test_a_member_who_asks_for_json_gets_its_items_as_one_list(tmp_path: Path, path: str) -> None:
    async with service_of(streams(), tmp_path) as service:
        calls, asked = await together(service, path, {"n": 3}, {"n": 2}, accept="application/json")
        await all_over(calls, *asked)

        assert [each.json for each in asked] == [[0, 1, 2], [0, 1]]


@PATHS
async def test_the_last_reader_who_leaves_closes_the_generator(tmp_path: Path, path: str) -> None:
    async with service_of(streams(), tmp_path) as service:
        calls, asked = await together(service, path, {"n": 10**9}, {"n": 10**9})
        for each in asked:
            await each.until_events(1)
        asked[0].leave()
        await asked[0].over()
        assert calls.left == ["closed"]
        calls.let_go()
        await asked[1].until_events(100)
        asked[1].leave()
        await calls.until(lambda: len(calls.left) == 2)
        await asked[1].over()

        after = Asked(service, path, {"n": 1})
        await all_over(calls, after)
        assert after.events == [0]


async def test_a_reader_who_falls_far_behind_is_cut_off_and_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LAG", 1024 * 1024)
    async with service_of(streams(), tmp_path) as service:
        calls, (brisk, slow) = await together(service, "/", {"n": 30}, {"n": 30, "does": "large"})
        slow.reads.clear()
        await slow.until_events(1)
        await all_over(calls, brisk)
        assert brisk.events == list(range(30))
        slow.reads.set()
        await slow.over()

        *read, last = slow.events
        assert 1 < len(read) < 15
        assert last == {"detail": "this reader is more than 1 MiB behind those who share its batch", "error_type": "runner_disconnected"}


# --- what is told


async def test_what_a_batch_prints_and_tells_of_its_progress_reaches_every_member(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Told(runner.App):
        @runner.endpoint("/", on_disconnect="finish", batch=runner.Batch(max_size=2, max_wait_ms=0))
        def run(self, n: list[int]) -> list[int]:
            gate.wait()
            runner.progress(len(n), 2)
            print("a line for", n)  # noqa: T201 # what is told
            return n

    class Listening:
        @runner.hookimpl
        def observe_output(self, service: runner.ServiceView) -> runner.OnOutput:
            return lambda id, stream, line, when: heard.append((id, line))

    gate, heard = threading.Event(), []
    async with service_of(Told, tmp_path, Listening()) as service:
        asked = [Asked(service, "/", {"n": n}, id=id) for n, id in enumerate(["first", "id,1", "id,2"])]
        await waiting(service, 2)
        gate.set()
        events = []
        for each in asked:
            await each.over()
            path = dict(each.heads[0]["headers"])[b"x-runner-events"].decode()
            events.append((await Asked(service, path, method="GET").over()).body.decode())

    assert heard == [("first", "a line for [0]"), ("id,1", "a line for [1, 2]"), ("id,2", "a line for [1, 2]")]
    assert [('"done":1,"total":2' in text, '"done":2,"total":2' in text) for text in events] == [(True, False), (False, True), (False, True)]
    assert all(text.count("event: started") == text.count("event: output") == 1 for text in events)
    assert "request_ids=id,1,id,2" in capfd.readouterr().err


async def test_metrics_count_batches_by_their_size(tmp_path: Path) -> None:
    async with service_of(app(), tmp_path) as service:
        calls, first = await held(service)
        others = await in_line(service, 1, 2, 3)
        await all_over(calls, first, *others)
        text = (await Asked(service, "/metrics", method="GET").over()).body.decode()

    (family,) = [family for family in text_string_to_metric_families(text) if family.name == "runner_batch_size"]
    samples = {(sample.name.removeprefix("runner_batch_size_"), sample.labels.get("le")): sample.value for sample in family.samples if sample.labels["endpoint"] == "/"}
    assert samples["count", None] == 2
    assert samples["sum", None] == 4
    assert (samples["bucket", "1.0"], samples["bucket", "2.0"], samples["bucket", "4.0"]) == (1, 1, 2)


# --- what is read of a class


def test_the_document_of_a_batched_endpoint_is_that_of_one_call(tmp_path: Path) -> None:
    class Batched(runner.App, name="same"):
        @runner.endpoint("/", batch=runner.Batch())
        def run(self, inputs: list[Input]) -> list[Output | ValueError]: ...

        @runner.endpoint("/stream", batch=runner.Batch())
        def stream(self, inputs: list[Input]) -> Iterator[list[Output | StopIteration | None]]: ...

    class Plain(runner.App, name="same"):
        @runner.endpoint("/")
        def run(self, inputs: Input) -> Output: ...

        @runner.endpoint("/stream")
        def stream(self, inputs: Input) -> Iterator[Output]: ...

    documents = [runner.asgi(kind).routes.known("/openapi.json")["GET"].answer(runner.Request()).body for kind in (Batched, Plain)]
    assert msgspec.json.decode(documents[0])["paths"] == msgspec.json.decode(documents[1])["paths"]
    assert msgspec.json.decode(documents[0])["components"] == msgspec.json.decode(documents[1])["components"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_size": 0}, "max_size is 0; it is how many inputs one call gets at most, from 1; for example runner.Batch(max_size=8, max_wait_ms=5)"),
        ({"max_size": "8"}, "max_size is '8'"),
        ({"max_wait_ms": -1}, "max_wait_ms is -1; it is a number of milliseconds from 0; for example"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
    ],
)
def test_a_wrong_setting_of_a_batch_is_told_where_it_is_made(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        runner.Batch(**settings)

    assert told in str(error.value)


class Wrong:
    def takes_one(self, input: Input) -> list[Output]: ...
    def takes_none(self) -> list[Output]: ...
    def takes_anything(self, inputs) -> list[Output]: ...  # type: ignore[no-untyped-def]
    def gives_one(self, inputs: list[Input]) -> Output: ...
    def gives_none(self, inputs: list[Input]) -> None: ...
    async def async_one(self, input: Input) -> Output: ...
    def yields_one(self, inputs: list[Input]) -> Iterator[Output]: ...
    async def yields_on_the_loop(self, inputs: list[Input]) -> AsyncIterator[Output]:
        yield Output(0)

    def fine(self, inputs: list[Input]) -> list[Output]: ...


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("takes_one", "its parameter 'input' is no list; write def takes_one(self, input: list[Input]) -> list[Output]"),
        ("takes_none", "it takes none; write def takes_none(self, inputs: list[Input]) -> list[Output]"),
        ("takes_anything", "its parameter 'inputs' is no list; write def takes_anything(self, inputs: list[Input]) -> list[Output]"),
        ("gives_one", "what it returns is no list with an item for each; write def gives_one(self, inputs: list[Input]) -> list[Output]"),
        ("gives_none", "what it returns is no list with an item for each; write def gives_none(self, inputs: list[Input]) -> list[Output]"),
        ("async_one", "its parameter 'input' is no list; write async def async_one(self, input: list[Input]) -> list[Output]"),
        ("yields_one", "what it yields is no list with an item for each; write def yields_one(self, inputs: list[Input]) -> Iterator[list[Output]]"),
        ("yields_on_the_loop", "write async def yields_on_the_loop(self, inputs: list[Input]) -> AsyncIterator[list[Output]]"),
    ],
)
def test_a_method_that_cannot_be_batched_is_refused_with_the_line_to_write(name: str, told: str) -> None:
    method = runner.endpoint("/", batch=runner.Batch())(Wrong.__dict__[name])
    try:
        with pytest.raises(ConfigError) as error:
            runner.asgi(type("App", (runner.App,), {name: method}))
    finally:
        del method.route_signature

    assert f"App.{name}: " in str(error.value).replace("Wrong", "App")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch": 8}, "batch is 8; it is a runner.Batch, for example runner.Batch(max_size=8, max_wait_ms=5)"),
        ({"batch": runner.Batch(), "is_websocket": True}, "a WebSocket cannot be batched; leave batch= out"),
        ({"batch": runner.Batch(), "health_check": runner.HealthCheck()}, "the health check cannot be batched; leave batch= out"),
    ],
)
def test_what_cannot_be_batched_says_so(options: dict[str, Any], told: str) -> None:
    method = runner.endpoint("/", **options)(Wrong.fine)
    try:
        with pytest.raises(ConfigError, match="App") as error:
            runner.asgi(type("App", (runner.App,), {"fine": method}))
    finally:
        del method.route_signature

    assert told in str(error.value)
