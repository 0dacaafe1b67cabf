"""A request is one span with its parts below it, in its caller's trace, at a receiver that speaks OTLP over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from runner.plugins.traces import wanted
from runner.schemas.request import enter_request
from serving import GUARD_SECONDS, HOUSE, Runner, serving, written
from structlog.testing import capture_logs
from websockets.sync.client import connect

import runner

APP = """
import logging, os, threading, time
from opentelemetry import trace
import runner

class Traced(runner.App):
    @runner.endpoint("/")
    def run(self, picture: runner.File) -> runner.File:
        with trace.get_tracer("app").start_as_current_span("think"):
            print("thinking")
            logging.warning("hard")
        return runner.File.from_bytes(picture.as_bytes() * 2, file_name="twice.bin")

    @runner.endpoint("/async")
    async def on_loop(self) -> str:
        return "soon"

    @runner.endpoint("/bug")
    def bug(self) -> str:
        raise LookupError("a bug")

    @runner.endpoint("/spin", timeout=0.1)
    def spin(self) -> str:
        while True:
            time.sleep(0.001)

    @runner.endpoint("/once", retry="safe")
    def once(self, mark: str) -> str:
        if not os.path.exists(mark):
            open(mark, "w").close()
            print("dying")
            time.sleep(60)
        return "at last"

    @runner.realtime("/echo")
    def echo(self, input: dict) -> dict:
        return input
"""
CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, CALLER = CALLERS.split("-")[1:3]


class Receiver(ThreadingHTTPServer):
    """A collector: what is posted to /v1/traces, decoded."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Posts)
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.news = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def take(self, body: bytes) -> None:
        told = ExportTraceServiceRequest.FromString(body)
        with self.news:
            for resource in told.resource_spans:
                self.resources.append(facts(resource.resource))
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.news.notify_all()

    def wait_for(self, name: str, *, times: int = 1, **wanted: Any) -> Span:
        """The `times`-th span of this name with these attributes, waiting until it is there."""

        def found() -> list[Span]:
            asked = {key.replace("__", "."): value for key, value in wanted.items()}
            return [span for span in self.spans if span.name == name and asked.items() <= facts(span).items()]

        with self.news:
            assert self.news.wait_for(lambda: len(found()) >= times, GUARD_SECONDS), [span.name for span in self.spans]
            return found()[times - 1]

    def below(self, span: Span) -> dict[str, Span]:
        return {child.name: child for child in self.spans if child.parent_span_id == span.span_id}


class Posts(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        self.server.take(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *told: Any) -> None: ...


def facts(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def environment(receiver: Receiver) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "NO_PROXY": "*",
    }  # fmt: skip


@pytest.fixture(scope="module")
def traced(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("traced")
    with serving(written(folder, APP), "--data-dir", str(folder / "data"), env=environment(receiver)) as started:
        yield started


def test_a_request_is_a_span_in_its_callers_trace_with_its_parts_below(traced: Runner, receiver: Receiver) -> None:
    body = {"url": traced.post("/files", content=b"1234").json()["url"]}
    headers = {"traceparent": CALLERS, "x-fal-request-id": "painted", "user-agent": "a test"}
    assert traced.post("/?q=secret", body, headers=headers).status_code == 200
    span = receiver.wait_for("POST /", runner__request__id="painted")
    parts = receiver.below(span)
    fetches, stores = [s for s in receiver.spans if s.name == "files" and s.parent_span_id == span.span_id]
    think = parts["think"]

    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, CALLER, Span.SPAN_KIND_SERVER)
    told = facts(span)
    assert told.items() >= {
        "http.request.method": "POST", "http.route": "/", "url.path": "/", "url.scheme": "http", "server.address": "127.0.0.1",
        "server.port": traced.port, "client.address": "127.0.0.1", "user_agent.original": "a test", "http.response.status_code": 200,
        "network.protocol.version": "1.1",
    }.items()  # fmt: skip
    assert "secret" not in str(told)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert {"waiting", "lane", "encode", "files", "think"} == set(parts)
    lane = parts["lane"]
    assert span.start_time_unix_nano <= parts["waiting"].start_time_unix_nano <= lane.start_time_unix_nano
    assert lane.start_time_unix_nano <= think.start_time_unix_nano <= stores.start_time_unix_nano
    assert stores.end_time_unix_nano <= parts["encode"].start_time_unix_nano <= parts["encode"].end_time_unix_nano
    assert parts["encode"].end_time_unix_nano <= lane.end_time_unix_nano <= span.end_time_unix_nano
    assert (facts(fetches)["runner.file.way"], facts(stores)["runner.file.way"]) == ("fetch", "store")
    assert facts(stores)["runner.file.bytes"] == 8
    assert receiver.resources[-1].items() >= {"service.name": "traced", "deployment.environment.name": "test"}.items()


def test_log_lines_carry_the_ids_of_the_trace_and_of_the_span_they_were_written_in(traced: Runner, receiver: Receiver) -> None:
    body = {"url": traced.post("/files", content=b"12").json()["url"]}
    traced.post("/", body, headers={"traceparent": CALLERS, "x-fal-request-id": "logged"})
    finished = traced.wait_for("request.finished", request_id="logged")
    span = receiver.wait_for("POST /", runner__request__id="logged")
    think = receiver.below(span)["think"]
    (printed,) = traced.events("app.output", request_id="logged")
    (warned,) = traced.events("hard", request_id="logged")

    assert (finished["trace_id"], finished["span_id"]) == (TRACE, span.span_id.hex())
    assert (printed["trace_id"], printed["span_id"]) == (TRACE, think.span_id.hex())
    assert (warned["trace_id"], warned["span_id"]) == (TRACE, think.span_id.hex())
    assert "trace_id" not in traced.events("app.ready")[0]


def test_an_error_is_on_the_span_with_its_traceback(traced: Runner, receiver: Receiver) -> None:
    traced.post("/bug")
    span = receiver.wait_for("POST /bug")

    (event,) = span.events
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "a bug")
    assert facts(span)["error.type"] == "runner_server_error"
    assert facts(event).items() >= {"exception.type": "LookupError", "exception.message": "a bug"}.items()
    assert "in bug" in facts(event)["exception.stacktrace"]


def test_a_callers_mistake_is_no_error_of_the_server(traced: Runner, receiver: Receiver) -> None:
    traced.post("/", {"url": 3}, headers={"x-fal-request-id": "wrong"})
    traced.get("/nowhere", headers={"x-fal-request-id": "lost"})
    wrong = receiver.wait_for("POST /", runner__request__id="wrong")
    lost = receiver.wait_for("GET", runner__request__id="lost")

    assert [span.status.code for span in (wrong, lost)] == [Status.STATUS_CODE_UNSET] * 2
    assert facts(wrong)["http.response.status_code"] == 422
    assert (facts(lost)["error.type"], "http.route" in facts(lost)) == ("404", False)


def test_a_stopped_request_says_why_what_stopped_it_and_how_long_that_took(traced: Runner, receiver: Receiver) -> None:
    traced.post("/spin")
    span = receiver.wait_for("POST /spin")

    told = facts(span)
    assert (told["http.response.status_code"], told["error.type"]) == (504, "request_timeout")
    assert told["runner.cancel.reason"] == "request_timeout"
    assert told["runner.cancel.layer"] in ("module", "back-edge", "asynchronous")
    assert told["runner.cancel.seconds"] > 0
    assert span.events == []


def test_async_methods_and_sockets_have_spans_and_probes_have_none(traced: Runner, receiver: Receiver) -> None:
    traced.get("/health/live")
    traced.post("/async")
    with connect(traced.url.replace("http", "ws") + "/echo", proxy=None, additional_headers={"traceparent": CALLERS}) as socket:
        socket.send(msgspec.msgpack.encode({}))
        socket.recv()
    echo, soon = receiver.wait_for("GET /echo"), receiver.wait_for("POST /async")

    assert {"waiting", "lane", "encode"} <= set(receiver.below(soon))
    assert echo.trace_id.hex() == TRACE
    assert facts(echo).items() >= {"runner.items": 1, "runner.socket.ended": "client"}.items()
    assert not [span for span in receiver.spans if "health" in span.name]


def test_a_job_goes_on_in_the_trace_of_its_submit_even_after_a_crash(receiver: Receiver, tmp_path: Path) -> None:
    app, mark = written(tmp_path, APP), tmp_path / "mark"
    arguments = ["--data-dir", str(tmp_path / "data")]
    with serving(app, *arguments, env=environment(receiver)) as first:
        job = first.post(f"/queue/local/traced/once?mark={mark}", headers={"traceparent": CALLERS}).json()["request_id"]
        first.wait_for("app.output", text="dying")
        submit = receiver.wait_for("POST /queue/local/traced/{rest:path}")
        first.process.kill()
    lazy = environment(receiver) | {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_SERVICE_NAME": "by name"}
    with serving(app, *arguments, env=lazy) as second:
        second.wait_for("request.finished", request_id=job)
        code = second.stop()
    ran = receiver.wait_for("process /once", messaging__message__id=job)  # sent at the end

    assert (submit.trace_id.hex(), submit.parent_span_id.hex()) == (TRACE, CALLER)
    assert (ran.trace_id, ran.parent_span_id, ran.kind) == (submit.trace_id, submit.span_id, Span.SPAN_KIND_CONSUMER)
    assert {"waiting", "lane"} <= set(receiver.below(ran))
    assert (code, receiver.resources[-1]["service.name"]) == (0, "by name")


def test_a_receiver_that_is_gone_does_not_hold_up_the_end(receiver: Receiver, tmp_path: Path) -> None:
    gone = environment(receiver) | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with serving(written(tmp_path, APP), env=gone) as deaf:
        deaf.post("/async")
        assert deaf.stop() == 0

    assert deaf.events("traces.lost")


def test_off_by_default_and_by_the_standards_switches() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}

    assert wanted({}) == []
    assert wanted({"OTEL_SERVICE_NAME": "x"}) == []
    assert wanted(endpoint) == ["otlp"]
    assert wanted(endpoint | {"OTEL_SDK_DISABLED": "true"}) == []
    assert wanted(endpoint | {"OTEL_TRACES_EXPORTER": "none"}) == []
    assert wanted({"OTEL_TRACES_EXPORTER": "console, otlp"}) == ["console", "otlp"]


def test_off_it_is_asked_for_nothing_and_imports_nothing(tmp_path: Path) -> None:
    source = APP.replace("from opentelemetry import trace\n", "import sys\n") + """
    @runner.endpoint("/loaded")
    def loaded(self) -> list[str]:
        return [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    with serving(written(tmp_path, source)) as plain:
        assert plain.post("/loaded").json() == []
        (listed,) = plain.events("plugins.loaded")
        assert any(line.startswith("traces ") for line in listed["plugins"])


class Plain(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return "served"


def test_without_the_packages_it_says_so_and_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with capture_logs() as logs:
        service = runner.asgi(Plain)

    assert service.enter is enter_request
    (told,) = logs
    assert (told["event"], "onerunner[traces]" in told["help"]) == ("traces.unavailable", True)


def test_an_exporter_that_nobody_offers_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "smoke-signals")

    with pytest.raises(runner.ConfigError, match=r"OTEL_TRACES_EXPORTER asks for 'smoke-signals'.* for example otlp"):
        runner.asgi(Plain)


def test_a_propagator_that_nobody_offers_stops_the_start_and_no_request() -> None:
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", HOUSE / "examples" / "hello.py", "--check"],
        env={**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_PROPAGATORS": "smoke-signals"},
        capture_output=True, text=True, timeout=GUARD_SECONDS,
    )  # fmt: skip

    assert done.returncode == 2
    assert "plugin traces: its hook enter_requests failed" in done.stderr
    assert "smoke-signals" in done.stderr
