"""Sync work that never looks up, in a real runner: every way of leaving reaches it (behaviours 21, 22, 25, 27)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from serving import GUARD_SECONDS, Runner, serving, written

APP = """
import threading, time
import runner

class Busy(runner.App):
    termination_grace_period_seconds = 1

    def setup(self):
        self.gate = threading.Lock()

    @runner.endpoint("/loop")
    def loop(self) -> int:
        print("begun")
        turns = 0
        with self.gate:
            try:
                while True:
                    try:
                        turns += 1
                    except Exception:
                        pass
            finally:
                print("cleaned up")

    @runner.endpoint("/waiting")
    def waiting(self) -> None:
        print("begun")
        threading.Event().wait()

    @runner.endpoint("/short", timeout=0.1)
    def short(self) -> int:
        return self.loop()

    @runner.endpoint("/words")
    def words(self) -> "Iterator[int]":
        try:
            word = 0
            while True:
                word += 1
                if word % 100_000 == 1:
                    yield word
        finally:
            print("closed")

    @runner.endpoint("/shielded")
    def shielded(self) -> None:
        with runner.shield():
            print("begun")
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                pass
            print("finished")
        while True:
            pass

    @runner.endpoint("/thread")
    def thread(self) -> None:
        started = threading.Thread(target=self.loop)
        started.start()
        started.join()

    @runner.endpoint("/")
    def next(self) -> bool:
        return not self.gate.locked()

from collections.abc import Iterator
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    with serving(written(tmp_path, APP)) as runner:
        yield runner


def stopped(runner: Runner, request_id: str, **fields: str) -> tuple[str, str]:
    line = runner.wait_for("request.finished", request_id=request_id, **fields)
    return line["reason"], line["layer"]


LOOP_LAYERS = ("asynchronous", "back-edge")


def test_a_busy_loop_is_left_by_its_caller_and_its_with_and_finally_are_run(runner: Runner) -> None:
    with runner.call("/loop", "gone"):
        runner.wait_for("app.output", text="begun", request_id="gone")
    reason, layer = stopped(runner, "gone")

    assert reason == "client_disconnected"
    assert layer in LOOP_LAYERS
    runner.wait_for("app.output", text="cleaned up", request_id="gone")
    assert runner.post("/").json() is True


def test_a_thread_that_waits_is_left_too(runner: Runner) -> None:
    with runner.call("/waiting", "gone"):
        runner.wait_for("app.output", text="begun", request_id="gone")

    assert stopped(runner, "gone") == ("client_disconnected", "scope")
    assert runner.post("/").json() is True


def test_a_busy_loop_is_stopped_by_its_deadline(runner: Runner) -> None:
    late = runner.post("/short", headers={"x-fal-request-id": "late"})

    assert late.status_code == 504
    reason, layer = stopped(runner, "late")
    assert reason == "request_timeout"
    assert layer in LOOP_LAYERS
    assert runner.post("/").json() is True


def test_a_busy_loop_is_stopped_by_a_cancel_of_its_id(runner: Runner) -> None:
    with runner.call("/loop", "one") as caller:
        runner.wait_for("app.output", text="begun", request_id="one")
        runner.post("/loop/cancel", headers={"x-fal-request-id": "one"})
        answer = caller.recv(4096)

    assert b" 499 " in answer.splitlines()[0]
    assert stopped(runner, "one", path="/loop")[0] == "client_cancelled"
    assert runner.post("/").json() is True


def test_a_busy_loop_does_not_hold_up_the_stop_of_the_server(runner: Runner) -> None:
    with runner.call("/loop", "busy") as caller:
        runner.wait_for("app.output", text="begun", request_id="busy")
        code = runner.stop()
        answer = caller.recv(4096)

    assert code == 0
    assert answer.startswith(b"HTTP/1.1 5")
    assert stopped(runner, "busy")[0] == "draining"
    assert runner.events("app.output", text="cleaned up")


class Http2:
    """A caller with one HTTP/2 connection, that speaks first."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), GUARD_SECONDS)
        self._protocol = H2Connection()
        self._protocol.initiate_connection()
        self._send()

    def _send(self) -> None:
        self._socket.sendall(self._protocol.data_to_send())

    def post(self, path: str, request_id: str) -> int:
        """Send a request; return its stream."""
        stream: int = self._protocol.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x"), ("x-fal-request-id", request_id)]
        self._protocol.send_headers(stream, head, end_stream=True)
        self._send()
        return stream

    def drop(self, stream: int) -> None:
        self._protocol.reset_stream(stream)
        self._send()

    def answer(self, stream: int) -> bytes:
        received, ended = b"", False
        while not ended:
            for event in self._protocol.receive_data(self._socket.recv(65536)):
                if isinstance(event, DataReceived) and event.stream_id == stream:
                    received += event.data
                ended = ended or (isinstance(event, StreamEnded) and event.stream_id == stream)
            self._send()
        return received

    def close(self) -> None:
        self._socket.close()


def test_a_caller_over_http_2_who_drops_one_stream_stops_its_work_only(runner: Runner) -> None:
    with closing(Http2(runner.port)) as caller:
        dropped = caller.post("/loop", "dropped")
        runner.wait_for("app.output", text="begun", request_id="dropped")
        waits = caller.post("/", "waits")
        caller.drop(dropped)

        assert caller.answer(waits) == b"true"
    assert stopped(runner, "dropped")[0] == "client_disconnected"


def test_a_caller_who_closes_an_http_2_connection_stops_all_of_its_work(runner: Runner) -> None:
    with closing(Http2(runner.port)) as caller:
        caller.post("/loop", "left")
        runner.wait_for("app.output", text="begun", request_id="left")

    assert stopped(runner, "left")[0] == "client_disconnected"
    assert runner.post("/").json() is True


def test_a_stream_is_closed_between_its_items_or_within_one(runner: Runner) -> None:
    with runner.call("/words", "gone") as caller:
        received = b""
        while b"data:" not in received:
            received += caller.recv(4096)

    assert stopped(runner, "gone")[0] == "client_disconnected"
    runner.wait_for("app.output", text="closed", request_id="gone")
    assert runner.post("/").json() is True


def test_a_shielded_block_is_finished_after_its_caller_has_left(runner: Runner) -> None:
    with runner.call("/shielded", "gone"):
        runner.wait_for("app.output", text="begun", request_id="gone")

    runner.wait_for("app.output", text="finished", request_id="gone")
    assert stopped(runner, "gone") == ("client_disconnected", "scope")


def test_a_thread_that_the_work_started_is_stopped_with_it(runner: Runner) -> None:
    with runner.call("/thread", "gone"):
        runner.wait_for("app.output", text="begun")

    assert stopped(runner, "gone")[0] == "client_disconnected"
    runner.wait_for("app.output", text="cleaned up")
    assert runner.post("/").json() is True
