"""Streams, seen from the wire (contract 5; checks 34 to 36; behaviours 28 and 30 to 34)."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from runner.plugins.lanes import Lane
from runner.plugins.streaming import AHEAD, Pipe, Source, Task, run_in_thread
from runner.schemas.request import Request
from runner.schemas.response import Response
from serving import Runner, serving

APPS = Path(__file__).parent / "apps"
THREE = [{"i": i, "text": "né 😀"} for i in range(3)]
BUG = {"detail": "Internal Server Error", "error_type": "runner_server_error"}


@pytest.fixture(scope="module")
def streams() -> Iterator[Runner]:
    with serving(f"{APPS / 'streams.py'}:Streams") as runner:
        yield runner


@pytest.fixture(scope="module")
def impatient() -> Iterator[Runner]:
    with serving(f"{APPS / 'streams.py'}:Streams", "--ping-seconds", "0.05") as runner:
        yield runner


def events_in(text: str) -> list[Any]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), text
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@contextmanager
def opened(runner: Runner, path: str, **options: Any) -> Iterator[tuple[httpx.Response, Iterator[Any]]]:
    """A stream and an iterator over its events; left in the middle, the client hangs up."""
    with runner.client() as client, client.stream("POST", path, **options) as response:

        def events() -> Iterator[Any]:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

        yield response, events()


# --- what streams, and how it is framed


@pytest.mark.parametrize(
    "path",
    [
        "/stream", "/generator", "/async", "/async-method", "/plain", "/plain-async", "/async-gives-sync",
        "/sync-gives-async", "/list", "/own",
    ],
)  # fmt: skip
def test_whatever_gives_an_iterator_streams(streams: Runner, path: str) -> None:
    response = streams.post(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert events_in(response.text) == THREE
    assert response.content.isascii()
    assert b"id:" not in response.content
    assert response.content.endswith(b"\n\n")


@pytest.mark.parametrize("path", ["/starlette", "/starlette-async"])
def test_a_streaming_response_of_starlette_streams_as_its_own_parts(streams: Runner, path: str) -> None:
    response = streams.post(path)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_the_headers_of_a_streaming_response_reach_the_caller(streams: Runner) -> None:
    assert [streams.post(path).headers["x-own"] for path in ("/own", "/starlette")] == ["yes", "yes"]


def test_a_stream_need_not_be_events(streams: Runner) -> None:
    response = streams.post("/bytes")

    assert (response.content, response.headers["content-type"]) == (b"\x00\xff\x01", "audio/wav")


@pytest.mark.parametrize("path", ["/stream", "/async", "/plain", "/own"])
def test_an_empty_stream_is_a_stream(streams: Runner, path: str) -> None:
    response = streams.post(f"{path}?n=0")

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "text/event-stream"


def test_a_generator_goes_on_in_the_thread_that_made_it(streams: Runner) -> None:
    assert events_in(streams.post("/threads").text) == [True, True, True]


@pytest.mark.parametrize("path", ["/stream", "/async", "/plain", "/async-gives-sync", "/sync-gives-async"])
def test_a_caller_who_asks_for_json_gets_a_plain_list(streams: Runner, path: str) -> None:
    response = streams.post(path, headers={"accept": "application/json"})

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == THREE
    assert streams.post(f"{path}?n=0", headers={"accept": "application/json"}).json() == []


def test_a_list_that_fails_halfway_is_an_error_and_nothing_else(streams: Runner) -> None:
    response = streams.post("/fails/stream", headers={"accept": "application/json"})

    assert (response.status_code, response.json()) == (500, {"detail": "Internal Server Error"})


@pytest.mark.parametrize("path", ["/unary", "/unary-async"])
def test_behaviour_34_events_asked_of_a_plain_endpoint_are_its_result_as_one_event(streams: Runner, path: str) -> None:
    response = streams.post(path, headers={"accept": "text/event-stream"})

    assert response.headers["content-type"] == "text/event-stream"
    assert events_in(response.text) == [{"i": 7, "text": "né 😀"}]
    for accept in ("*/*", "application/json", "text/event-stream, application/json"):
        assert streams.post(path, headers={"accept": accept}).json() == {"i": 7, "text": "né 😀"}


def test_the_access_log_counts_the_events(streams: Runner) -> None:
    request_id = streams.post("/stream?n=5").headers["x-fal-request-id"]

    line = streams.wait_for("request.finished", request_id=request_id)
    assert (line["status"], line["items"]) == (200, 5)


# --- one by one


@pytest.mark.parametrize("path", ["/gated", "/gated-async"])
def test_behaviour_30_an_event_arrives_before_the_next_one_is_made(streams: Runner, path: str) -> None:
    with opened(streams, path) as (_, events):
        first = next(events)
        streams.post("/open")
        second = next(events)

    assert (first["i"], second["i"]) == (0, 1)


@pytest.mark.parametrize(("path", "before", "after"), [("/gated", 1, 1), ("/gated-async", 1, 1), ("/quiet", 0, 1)])
def test_behaviour_33_a_silent_stream_gets_comments_that_keep_its_connection_open(
    impatient: Runner, path: str, before: int, after: int
) -> None:
    with impatient.client() as client, client.stream("POST", path) as response:
        lines, first = response.iter_lines(), []
        while not (line := next(lines)).startswith(": ping"):
            first.append(line)
        impatient.post("/open")
        rest = list(lines)

    assert sum(line.startswith("data: ") for line in first) == before
    assert sum(line.startswith("data: ") for line in rest) == after


def test_what_fails_after_the_head_went_out_alone_is_told_in_the_stream(impatient: Runner) -> None:
    got, _ = read_until_broken(impatient, "/quiet-fails")

    assert got == [{"detail": "teapot", "error_type": "runner_server_error"}]


def test_what_turns_out_to_be_no_stream_after_that_is_a_failure_and_not_an_empty_stream(impatient: Runner) -> None:
    got, _ = read_until_broken(impatient, "/quiet-gives-async")

    assert got == [BUG]


# --- failures


@pytest.mark.parametrize("path", ["/fails-at-once", "/fails-at-once-async"])
def test_what_fails_before_the_first_item_has_a_status_of_its_own(streams: Runner, path: str) -> None:
    response = streams.post(path)

    assert (response.status_code, response.json()) == (418, {"detail": "teapot"})


def read_until_broken(runner: Runner, path: str) -> tuple[list[Any], httpx.Response]:
    """The events that came before the connection was broken off."""
    got: list[Any] = []
    with opened(runner, path) as (response, events), pytest.raises(httpx.RemoteProtocolError):
        got.extend(events)
    return got, response


@pytest.mark.parametrize("path", ["/fails/stream", "/fails-async/stream"])
def test_behaviour_31_a_stream_that_fails_ends_with_an_error_event_and_not_as_if_all_were_well(streams: Runner, path: str) -> None:
    got, response = read_until_broken(streams, path)

    assert [event["i"] for event in got[:3]] == [1, 2, 3]
    assert got[3:] == [BUG]
    request_id = response.headers["x-fal-request-id"]
    assert "out of words" in streams.wait_for("request.failed", request_id=request_id)["exception"]
    line = streams.wait_for("request.finished", request_id=request_id)
    assert (line["status"], line["error_type"], line["items"]) == (500, "runner_server_error", 3)


def test_an_error_that_is_meant_for_the_caller_is_told_in_the_stream(streams: Runner) -> None:
    got, _ = read_until_broken(streams, "/told/stream")

    assert got[1:] == [{"detail": "busy elsewhere", "error_type": "runner_server_error"}]


def test_an_item_that_does_not_fit_its_annotation_fails_the_stream(streams: Runner) -> None:
    got, response = read_until_broken(streams, "/misfit")

    assert got[1:] == [BUG]
    streams.wait_for("response.invalid", request_id=response.headers["x-fal-request-id"])


def test_a_deadline_that_passes_in_a_stream_is_its_last_event(streams: Runner) -> None:
    got, response = read_until_broken(streams, "/slow")

    assert got[1:] == [{"detail": "the request took longer than its timeout", "error_type": "request_timeout"}]
    assert streams.wait_for("request.finished", request_id=response.headers["x-fal-request-id"])["status"] == 504


# --- hanging up


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/endless", "sync"), ("/endless-plain", "plain"), ("/endless-async", "async"), ("/waits-async", "waiting"),
        ("/endless-own", "own"), ("/endless-starlette", "starlette"),
    ],
)  # fmt: skip
def test_check_36_who_hangs_up_closes_the_generator_and_frees_the_place(streams: Runner, path: str, name: str) -> None:
    with opened(streams, path) as (response, events):
        next(events)

    line = streams.wait_for("request.finished", request_id=response.headers["x-fal-request-id"])
    streams.wait_for("app.output", text=f"closed {name}")
    assert (line["status"], line["reason"]) == (499, "client_disconnected")
    assert streams.get("/health").json().get("ghosts", 0) == 0
    assert streams.post("/stream").status_code == 200


def test_a_thousand_streams_opened_and_dropped_leave_nothing_behind() -> None:
    """Issue 5: tasks, threads, descriptors and memory are where they were."""
    with serving(f"{APPS / 'streams.py'}:Streams") as runner:

        def drop(number: int, path: str) -> None:
            with socket.create_connection(("127.0.0.1", runner.port)) as connection:
                connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
                assert b"200" in connection.recv(100)

        def usage() -> tuple[int, int, int]:
            process = Path("/proc") / str(runner.process.pid)
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            return len(os.listdir(process / "fd")), int(status["Threads"]), int(status["VmRSS"].split()[0])

        def drop_many(times: int, total: int) -> tuple[int, int, int]:
            for number in range(times):
                drop(number, ("/endless", "/endless-async")[number % 2])
            runner.wait_for("request.finished", times=total)
            assert runner.post("/stream").status_code == 200
            runner.wait_for("request.finished", times=total + 1)
            return usage()

        before = drop_many(200, 200)
        after = drop_many(1000, 1201)

    assert after[0] <= before[0] + 3
    assert after[1] <= before[1] + 3  # a lane makes its threads, four here, when first needed
    assert after[2] <= before[2] + 20_000  # KiB; the log that the test keeps is not the server's


# --- crossing from the thread


def requested() -> Request:
    return Request(scope={"headers": []})


@pytest.fixture
def lane() -> Lane:
    return Lane(2, 10)


def untouched(item: bytes) -> bytes:
    return item


@pytest.mark.anyio
async def test_a_slow_reader_slows_the_thread_that_makes_and_costs_a_bounded_amount(lane: Lane) -> None:
    """Behaviour 33."""
    lane.open()
    made, pipe, request = [0], Pipe(), requested()

    def endless() -> Iterator[bytes]:
        while True:
            made[0] += 1
            yield b"x" * 1000

    def work() -> Response:
        pipe.attach(request.place)
        return run_in_thread(Source(endless(), untouched, Response()), pipe, lambda response: response)

    with anyio.fail_after(10):
        await lane.run(work, request)
        while not pipe._blocked:
            await anyio.lowlevel.checkpoint()
        assert made[0] * 1000 <= AHEAD + 2000
        for _ in range(20):
            assert sum(map(len, await pipe.take())) <= AHEAD + 2000
        await pipe.aclose()
        await request.place.stopped()
        assert await lane.close(5)


@pytest.mark.anyio
async def test_a_slow_reader_slows_an_async_maker(lane: Lane) -> None:
    lane.open()
    made = [0]

    async def endless() -> Any:
        while True:
            made[0] += 1
            yield b"x" * 1000

    with anyio.fail_after(10):
        stream = Task(Source(endless(), untouched, Response()), lane, await lane.hold(requested()))
        await stream.begun()
        await anyio.wait_all_tasks_blocked()
        assert made[0] * 1000 <= AHEAD + 2000
        await stream.aclose()
        assert lane.occupancy["running"] == 0
        assert await lane.close(5)


@pytest.mark.anyio
async def test_no_item_is_lost_or_doubled_however_reader_and_thread_interleave(lane: Lane) -> None:
    lane.open()
    count = 20_000
    for size in (1, 700):
        pipe, request = Pipe(), requested()

        def work(pipe: Pipe = pipe, request: Request = request, size: int = size) -> Response:
            pipe.attach(request.place)
            items = (i.to_bytes(4, "big") * size for i in range(count))
            return run_in_thread(Source(items, untouched, Response()), pipe, lambda response: response)

        got: list[int] = []
        with anyio.fail_after(30):
            await lane.run(work, request)
            while taken := await pipe.take():
                got += [int.from_bytes(item[:4], "big") for item in taken]
                if len(got) % 7 == 0:
                    await anyio.lowlevel.checkpoint()
        assert got == list(range(count))
    assert await lane.close(5)


@pytest.mark.anyio
async def test_a_stream_nobody_reads_is_closed_where_it_runs(lane: Lane) -> None:
    lane.open()
    closed_in, pipe, request = [0], Pipe(), requested()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed_in[0] = threading.get_ident()

    def work() -> Response:
        pipe.attach(request.place)
        closed_in.append(threading.get_ident())
        return run_in_thread(Source(endless(), untouched, Response()), pipe, lambda response: response)

    with anyio.fail_after(10):
        await lane.run(work, request)
        await pipe.aclose()
        await request.place.stopped()
    assert closed_in[0] == closed_in[1]
    assert lane.occupancy["running"] == 0
    assert await lane.close(5)


# --- read by others too


def log_of(runner: Runner, path: str, **options: Any) -> list[tuple[int, str, Any]]:
    blocks = [block.split("\n") for block in runner.get(path, **options).text.split("\n\n") if block and block[0] != ":"]
    return [(int(seq[4:]), kind[7:], json.loads(data[6:])) for seq, kind, data in blocks]


def test_a_request_that_finishes_without_its_caller_can_be_read_to_its_end(streams: Runner) -> None:
    with opened(streams, "/finish") as (response, events):
        next(events)
    path = response.headers["x-runner-events"]
    streams.post("/open")

    log = log_of(streams, path)

    assert [seq for seq, _, _ in log] == list(range(1, 7))
    assert [kind for _, kind, _ in log] == ["queued", "started", "output", "output", "output", "completed"]
    assert [data["i"] for _, kind, data in log if kind == "output"] == [0, 1, 2]
    assert log[-1][2] == {"status": 200}


def test_behaviour_32_last_event_id_resumes_without_a_gap_or_a_double(streams: Runner) -> None:
    with opened(streams, "/finish?n=1") as (response, events):
        list(events)
    path = response.headers["x-runner-events"]
    streams.wait_for("request.finished", request_id=response.headers["x-fal-request-id"])

    assert [seq for seq, _, _ in log_of(streams, path)] == [1, 2, 3, 4]
    assert [seq for seq, _, _ in log_of(streams, path, headers={"last-event-id": "2"})] == [3, 4]
    assert streams.get(path, headers={"last-event-id": "4"}).status_code == 204
    with streams.client() as client:
        assert client.head(path).headers["content-type"] == "text/event-stream"
    assert streams.get(path, headers={"last-event-id": "four"}).status_code == 400


def test_behaviour_28_of_several_readers_one_leaving_changes_nothing(streams: Runner) -> None:
    with opened(streams, "/finish") as (response, events):
        next(events)
        path = response.headers["x-runner-events"]
        with streams.client() as client, client.stream("GET", path) as leaving, client.stream("GET", path) as staying:
            assert next(leaving.iter_lines()) == "id: 1"
            lines = staying.iter_lines()
            assert next(lines) == "id: 1"
            leaving.close()
            streams.post("/open")
            kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        assert [event["i"] for event in events] == [1, 2]

    assert kinds == ["queued", "started", "output", "output", "output", "completed"]


def test_a_caller_who_chose_the_request_id_reads_under_another_that_nobody_can_guess(streams: Runner) -> None:
    chosen = streams.post("/finish-unary", headers={"x-fal-request-id": "mine"})
    made_up = streams.post("/finish-unary")

    assert streams.get("/requests/mine/events").status_code == 404
    assert chosen.headers["x-runner-events"] != "/requests/mine/events"
    assert made_up.headers["x-runner-events"] == f"/requests/{made_up.headers['x-fal-request-id']}/events"
    for response in (chosen, made_up):
        log = log_of(streams, response.headers["x-runner-events"])
        assert [kind for _, kind, _ in log] == ["queued", "started", "output", "progress", "completed"] or [
            kind for _, kind, _ in log
        ] == ["queued", "started", "progress", "output", "completed"]


def test_the_events_of_a_failed_request_end_with_its_error(streams: Runner) -> None:
    _, response = read_until_broken(streams, "/finish-fails")

    assert log_of(streams, response.headers["x-runner-events"])[-1][1:] == ("completed", {"status": 500, **BUG})


def test_requests_that_end_with_their_caller_keep_no_events(streams: Runner) -> None:
    response = streams.post("/stream")

    assert "x-runner-events" not in response.headers
    assert streams.get(f"/requests/{response.headers['x-fal-request-id']}/events").status_code == 404
