"""Each line that is logged or printed says for which request; each request has one line of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pluggy
import pytest
import structlog
from runner.plugins import hookspecs, observability
from runner.plugins.logs import channel
from runner.plugins.observability import Journal, configure_logging
from runner.schemas.events import Finished, Stopped
from runner.schemas.request import Request, enter_request
from runner.schemas.service import ServiceView
from runner.schemas.settings import Settings
from structlog.testing import capture_logs


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    channel.close()
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


class Service:
    """As much of a service as the plugin looks at."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.output_observers = ()


def a_service() -> ServiceView:
    return cast(ServiceView, Service())


@contextlib.asynccontextmanager
async def living(service: ServiceView | None = None) -> AsyncIterator[Callable[[Finished], None]]:
    """The time between a service's start and its end; gives the function told of requests."""
    service = service or a_service()
    observe = observability.observe_requests(service)
    async with observability.lifespan(service):
        yield observe


def within(request_id: str, do: Callable[..., Any], *arguments: Any) -> Any:
    """Call `do` as code of that request."""

    def run() -> Any:
        enter_request(Request(request_id))
        return do(*arguments)

    return contextvars.copy_context().run(run)


def finished(request_id: str = "r1", **changed: Any) -> Finished:
    fields = {"method": "POST", "path": "/paint", "endpoint": "/paint", "status": 200, "seconds": 0.0125}
    return Finished(request_id=request_id, **{**fields, **changed})


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return lines


def output_of(logs: Any) -> list[tuple[str | None, str, str]]:
    return [
        (e.get("request_id"), e["stream"], e["text"]) for e in logs if e["event"] == "app.output"
    ]


async def test_the_plugin_answers_known_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    plugins = pluggy.PluginManager("runner")
    plugins.add_hookspecs(hookspecs)
    plugins.register(observability)
    service = a_service()

    plugins.check_pending()
    (observe,) = plugins.hook.observe_requests(service=service)
    (lifespan,) = plugins.hook.lifespan(service=service)
    async with lifespan:
        observe(finished())

    assert len(json_lines(capsys)) == 1


# --- log lines


def test_a_json_line_says_when_how_grave_what_and_for_whom(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    within("r1", structlog.get_logger().info, "model.loaded")

    (line,) = json_lines(capsys)
    assert list(line) == ["timestamp", "level", "event", "request_id"]
    assert (line["level"], line["event"], line["request_id"]) == ("info", "model.loaded", "r1")
    assert line["timestamp"].endswith("Z")


def test_a_line_outside_any_request_has_no_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    structlog.get_logger().info("server.listening")

    assert "request_id" not in json_lines(capsys)[0]


async def test_a_line_from_a_worker_thread_carries_its_requests_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json")
    enter_request(Request("r1"))

    await anyio.to_thread.run_sync(structlog.get_logger().info, "model.ran")

    assert json_lines(capsys)[0]["request_id"] == "r1"


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")

    structlog.get_logger().info("small.talk")
    logging.getLogger("library").info("small talk")
    structlog.get_logger().warning("disk.full")

    assert [line["event"] for line in json_lines(capsys)] == ["disk.full"]


def test_an_exception_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    try:
        raise ValueError("no such colour")
    except ValueError:
        structlog.get_logger().exception("request.failed")

    assert json_lines(capsys)[0]["exception"].endswith("ValueError: no such colour")


@pytest.mark.parametrize("value", [object(), "\udc80", float("nan"), {1: object()}, {(1, 2): {3}}, 2**70])
def test_no_value_is_too_odd_to_be_logged(capsys: pytest.CaptureFixture[str], value: Any) -> None:
    configure_logging("json")

    structlog.get_logger().info("it.happened", value=value)

    assert json_lines(capsys)[0]["event"] == "it.happened"


def test_the_standard_librarys_logging_goes_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    within("r1", logging.getLogger("library").log, 35, "%d%% full", 99)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("library").exception("failed")

    full, failed = json_lines(capsys)
    assert (full["event"], full["level"], full["logger"]) == ("99% full", "warning", "library")
    assert full["request_id"] == "r1"
    assert "ValueError: broken" in failed["exception"]


def test_a_console_that_is_no_terminal_gets_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")

    within("r1", structlog.get_logger().info, "model.loaded")

    line = capsys.readouterr().err
    assert "model.loaded" in line
    assert "request_id=r1" in line
    assert "\x1b" not in line


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging("console")

    structlog.get_logger().info("model.loaded")
    a_journal(finished(status=500)).write_all()

    assert "\x1b[31m500" in terminal.getvalue()
    assert all("\x1b" in line for line in terminal.getvalue().splitlines())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# --- what the app prints


async def test_prints_of_five_requests_at_once_keep_apart_and_setups_belong_to_none() -> None:
    everyone = anyio.Event()
    waiting = 0

    async def paint(request_id: str) -> None:
        nonlocal waiting
        enter_request(Request(request_id))
        print(f"{request_id} begins ", end="")  # noqa: T201
        waiting += 1
        if waiting == 5:
            everyone.set()
        await everyone.wait()
        await anyio.to_thread.run_sync(print, f"{request_id} paints")
        print("and ends", file=sys.stdout)  # noqa: T201

    with capture_logs() as logs:
        async with living():
            print("setup")  # noqa: T201
            async with anyio.create_task_group() as requests:
                for n in range(5):
                    requests.start_soon(paint, f"r{n}")

    lines = output_of(logs)
    assert lines[0] == (None, "stdout", "setup")
    assert sorted(lines[1:]) == sorted(
        (f"r{n}", "stdout", text) for n in range(5) for text in (f"r{n} paints", f"r{n} begins and ends")
    )


async def test_what_is_written_to_stderr_is_told_apart() -> None:
    with capture_logs() as logs:
        async with living():
            within("r1", sys.stderr.write, "careful\n")

    assert output_of(logs) == [("r1", "stderr", "careful")]


async def test_prints_are_logged_whatever_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "error")

    async with living():
        print("still here")  # noqa: T201

    assert [line["text"] for line in json_lines(capsys)] == ["still here"]


async def test_a_line_waits_for_its_end_and_empty_ones_are_dropped() -> None:
    with capture_logs() as logs:
        async with living():
            sys.stdout.write("one\n\nt")
            sys.stdout.flush()
            assert output_of(logs) == [(None, "stdout", "one")]
            sys.stdout.write("wo\nthree")

    assert [text for _, _, text in output_of(logs)] == ["one", "two", "three"]


async def test_an_unfinished_line_ends_with_its_request() -> None:
    with capture_logs() as logs:
        async with living() as observe:
            within("r1", sys.stdout.write, "the first")
            within("r2", sys.stdout.write, "the second")
            observe(finished("r1"))
            with anyio.fail_after(5):
                while not output_of(logs):
                    await anyio.lowlevel.checkpoint()
            before = output_of(logs)

    assert before == [("r1", "stdout", "the first")]
    assert output_of(logs)[1:] == [("r2", "stdout", "the second")]


async def test_of_a_progress_bar_the_last_state_is_logged() -> None:
    with capture_logs() as logs:
        async with living():
            for percent in (1, 50, 100):
                sys.stderr.write(f"\r{percent}%")
            sys.stderr.write("\nwindows\r\n")

    assert [text for _, _, text in output_of(logs)] == ["100%", "windows"]


async def test_a_line_without_end_is_cut() -> None:
    with capture_logs() as logs:
        async with living():
            sys.stdout.write("x" * 200_000)
            seen = len(output_of(logs))
            sys.stdout.write("\n")

    assert (seen, len(output_of(logs))) == (1, 1)


async def test_listeners_hear_each_line_with_its_request() -> None:
    heard: list[tuple[str | None, str, str]] = []
    service = a_service()
    observability.on_output(service, lambda request_id, stream, text, when: heard.append((request_id, stream, text)))

    with capture_logs():
        async with living(service):
            within("r1", print, "hello")

    assert heard == [("r1", "stdout", "hello")]


async def test_a_listener_that_prints_or_fails_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    def listener(*line: Any) -> None:
        print("heard it")  # noqa: T201
        raise ValueError("deaf")

    service = a_service()
    observability.on_output(service, listener)

    with capture_logs() as logs:
        async with living(service):
            print("hello")  # noqa: T201

    assert [e["event"] for e in logs] == ["app.output", "output.listener_failed"]
    assert capsys.readouterr().out == "heard it\n"


async def test_an_app_that_configures_structlog_to_print_is_not_caught_in_a_circle(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with living():
        structlog.configure(
            processors=[structlog.processors.KeyValueRenderer()],
            logger_factory=structlog.PrintLoggerFactory(),
        )
        structlog.get_logger().info("its.own")

    assert "its.own" in capsys.readouterr().err


async def test_the_streams_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr

    with capture_logs():
        async with living():
            during = sys.stdout, sys.stderr
            kept = sys.stdout

    assert (sys.stdout, sys.stderr) == before
    assert during[0] is not before[0]
    assert kept.write("") == 0  # whoever kept it may go on


async def test_a_stream_that_the_app_replaced_is_left_to_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # puts it back in the end

    with capture_logs():
        async with living():
            theirs = io.StringIO()
            sys.stdout = theirs

    assert sys.stdout is theirs


async def test_the_stand_in_behaves_as_a_stream(capfd: pytest.CaptureFixture[str]) -> None:
    original = sys.stdout
    async with living():
        stream = sys.stdout
        told = stream.encoding, stream.errors, stream.fileno(), stream.name, stream.buffer
        assert isinstance(stream, io.TextIOBase)
        assert stream.writable()
        assert not stream.isatty()
        stream.close()
        assert not stream.closed
        with pytest.raises(TypeError):
            stream.write(cast(str, b"bytes"))

    assert told == (
        original.encoding, original.errors, original.fileno(), original.name, original.buffer,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_setup_may_start_threads_and_processes_that_print(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    async with living():
        sys.stdout.write("the parent's, ")
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join()
        await anyio.to_thread.run_sync(run_child_process)
        await anyio.to_thread.run_sync(run_program)
        sys.stdout.write("to the end")

    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["text"] for line in lines] == ["from a thread", "from a child", "the parent's, to the end"]
    assert out == "from a program\n"


def run_child_process() -> None:
    child = multiprocessing.get_context("fork").Process(target=print, args=("from a child",), kwargs={"end": ""})
    child.start()
    child.join()
    assert child.exitcode == 0


def run_program() -> None:
    subprocess.run([sys.executable, "-c", "print('from a program')"], stdout=sys.stdout, check=True)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_listeners_are_not_called_in_a_forked_child(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    service = a_service()

    def listener(*line: Any) -> None:
        os.write(writing, b"x")

    observability.on_output(service, listener)

    async with living(service):
        await anyio.to_thread.run_sync(run_child_process)
        print("mine")  # noqa: T201
    os.close(writing)

    heard = os.read(reading, 10)
    os.close(reading)
    assert heard == b"x"


# --- one line per request


def a_journal(*records: Finished) -> Journal:
    journal = Journal()
    for record in records:
        journal.add(record)
    return journal


async def test_a_request_has_one_line_with_all_that_happened(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    async with living() as observe:
        observe(finished(waited=0.001, bytes_out=17, client="10.0.0.1:999"))

    (line,) = json_lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info", "event": "request.finished", "request_id": "r1", "method": "POST",
        "path": "/paint", "endpoint": "/paint", "status": 200, "ms": 12.5, "waited_ms": 1.0,
        "bytes": 17, "client": "10.0.0.1:999",
    }  # fmt: skip


async def test_a_stopped_request_says_why_where_and_how_long_it_took(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json")
    stopped = Stopped(reason="client_disconnected", layer="module", seconds=0.0042, swallowed=1)

    async with living() as observe:
        observe(finished(status=499, error_type="client_disconnected", stopped=stopped))

    (line,) = json_lines(capsys)
    assert line["error_type"] == line["reason"] == "client_disconnected"
    assert (line["layer"], line["cancel_ms"], line["swallowed"]) == ("module", 4.2, 1)


async def test_a_line_comes_soon_without_another_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    async with living() as observe:
        observe(finished())
        assert json_lines(capsys) == []
        with anyio.fail_after(5):
            while not (lines := json_lines(capsys)):
                await anyio.lowlevel.checkpoint()

    assert lines[0]["event"] == "request.finished"


async def test_no_line_is_lost_at_the_end_nor_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    many = 3 * observability.BATCH_LINES + 1

    async with living() as observe:
        for n in range(many):
            observe(finished(f"r{n}"))
    observe(finished("late"))

    assert [e["request_id"] for e in json_lines(capsys)] == [*(f"r{n}" for n in range(many)), "late"]


@pytest.mark.parametrize("format", ["json", "console"])
def test_probes_are_told_at_debug_level_only(capsys: pytest.CaptureFixture[str], format: Any) -> None:
    probe, own = finished("probe", path="/health", endpoint=None), finished("own", path="/health")

    for level in ("info", "debug"):
        configure_logging(format, level)
        a_journal(probe, own).write_all()

    told = ["probe" in line for line in capsys.readouterr().err.splitlines()]
    assert told == [False, True, False]


def test_nothing_is_told_of_requests_above_info_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console", "warning")

    a_journal(finished()).write_all()

    assert capsys.readouterr().err == ""


def test_a_person_reads_method_path_status_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("console")
    stopped = Stopped(reason="request_timeout", layer="scope", seconds=0.001)

    a_journal(finished(), finished(status=504, error_type="request_timeout", stopped=stopped)).write_all()

    good, late = capsys.readouterr().err.splitlines()
    assert "[info     ] request.finished POST /paint 200 ms=12.5" in good
    assert "request_id=r1" in good
    assert "error_type=request_timeout reason=request_timeout layer=scope cancel_ms=1.0" in late


def test_a_callers_text_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for format in ("console", "json"):
        configure_logging(cast(Any, format))
        a_journal(finished("r\n1", path="/\x1b[2J\nrequest.finished \udc80")).write_all()

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_a_test_sees_the_line_with_capture_logs() -> None:
    configure_logging("json")

    with capture_logs() as logs:
        a_journal(finished(waited=0.5)).write_all()

    (event,) = logs
    assert (event["event"], event["log_level"]) == ("request.finished", "info")
    assert (event["request_id"], event["waited_ms"]) == ("r1", 500.0)
    assert "client" not in event


def test_a_broken_stderr_harms_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging("json")
    closed = io.StringIO()
    closed.close()

    for stream in (closed, None, SimpleNamespace()):
        monkeypatch.setattr(sys, "stderr", stream)
        a_journal(finished()).write_all()
        structlog.get_logger().info("it.happened")


async def test_two_services_in_one_process_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    before = sys.stdout

    async with living() as first, living() as second:
        first(finished("r1"))
        second(finished("r2"))
        print("once")  # noqa: T201

    lines = json_lines(capsys)
    assert [e["text"] for e in lines if e["event"] == "app.output"] == ["once"]
    assert {e["request_id"] for e in lines if e["event"] == "request.finished"} == {"r1", "r2"}
    assert sys.stdout is before


async def test_under_another_server_logging_is_set_up_while_the_service_lives() -> None:
    structlog.reset_defaults()

    async with living():
        during = structlog.is_configured()

    assert during
    assert not structlog.is_configured()


def test_a_request_that_ends_outside_the_loop_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")

    a_journal(finished())

    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert len(json_lines(capsys)) == 1
