"""From the open socket to the exit code (contract 1.3; checks 6 to 8; behaviours 1 to 5 and 8)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serving import HOUSE, Runner, running, serving, written

GATED = """
import asyncio, os, threading, time
import runner

class Gated(runner.App):
    termination_grace_period_seconds = {grace}
    max_multiplexing = 8
    {options}

    {setup}

    def handle_exit(self):
        print("handle_exit")

    def teardown(self):
        print("teardown", os.environ.get("FAL_RUNNER_STATE"))

    @runner.endpoint("/")
    def run(self) -> str:
        return "done"

    @runner.endpoint("/until-file")
    def until_file(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.005)
        print("done")
        return "done"
"""


def gated(folder: Path, *, setup: str = "", grace: float = 5, options: str = "") -> Path:
    return written(folder, GATED.format(setup=setup or "def setup(self): pass", grace=grace, options=options))


def printed(runner: Runner) -> list[str]:
    return [line["text"] for line in runner.events("app.output")]


# --- starting


@pytest.mark.parametrize("define", ["def", "async def"])
def test_check_6_the_socket_opens_first_and_setup_ends_before_the_first_request(tmp_path: Path, define: str) -> None:
    """Behaviour 1: health says starting, then ready."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wait = "await asyncio.to_thread(open(GATE).read)" if define == "async def" else "open(GATE).read()"
    wait = wait.replace("open(GATE).read", f"__import__('pathlib').Path({str(gate)!r}).read_text")
    app = gated(tmp_path, setup=f"{define} setup(self): {wait}")

    with serving(app, ready=False) as runner:
        starting, live, ready, early = (
            runner.get("/health"), runner.get("/health/live"), runner.get("/health/ready"), runner.post("/"),
        )  # fmt: skip
        gate.write_text("go")
        runner.wait_for("app.ready")
        later = runner.post("/")
        health = runner.get("/health")

    assert (starting.status_code, starting.json()["status"]) == (503, "starting")
    assert (live.status_code, ready.status_code) == (200, 503)
    assert (early.status_code, early.json()["error_type"]) == (503, "runner_scheduling_failure")
    assert int(early.headers["retry-after"]) >= 1
    assert early.headers["x-fal-error-type"] == "runner_scheduling_failure"
    assert (later.json(), health.json()["status"]) == ("done", "ready")


@pytest.mark.parametrize("define", ["def", "async def"])
def test_check_6_a_failing_setup_is_said_and_ends_the_process(tmp_path: Path, define: str) -> None:
    """Behaviour 2: the log has the traceback and what was printed; requests meanwhile get 503."""
    app = gated(tmp_path, setup=f"{define} setup(self): print('loading'); raise OSError('no weights')")

    with serving(app, ready=False) as runner:
        failed = runner.wait_for("setup.failed")
        health, answer = runner.get("/health"), runner.post("/")
        code = runner.wait()

    assert "OSError: no weights" in failed["exception"]
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert "no weights" in health.json()["reason"]
    assert answer.status_code == 503
    assert printed(runner)[0] == "loading"
    assert "teardown" not in " ".join(printed(runner))
    assert code == 1


def test_a_setup_that_takes_longer_than_its_timeout_ends_the_process(tmp_path: Path) -> None:
    """Behaviour 1."""
    app = gated(tmp_path, setup="def setup(self): threading.Event().wait()", options="startup_timeout = 0.2")

    with serving(app, ready=False) as runner:
        failed = runner.wait_for("setup.failed")
        code = runner.wait()

    assert "startup_timeout, 0.2 s" in failed["reason"]
    assert code == 1


def test_check_7_the_state_is_in_the_environment(tmp_path: Path) -> None:
    app = gated(tmp_path, setup='def setup(self): print("setup", os.environ["FAL_RUNNER_STATE"])')
    with serving(app) as runner:
        code = runner.stop()

    assert [line for line in printed(runner) if line != "handle_exit"] == ["setup SETUP", "teardown TERMINATING"]
    assert code == 0


def test_lines_that_setup_prints_carry_no_request_id(tmp_path: Path) -> None:
    with serving(gated(tmp_path, setup='def setup(self): print("setting up")')) as runner:
        assert "request_id" not in runner.wait_for("app.output", text="setting up")


def test_setup_may_start_threads_and_processes_that_print(tmp_path: Path) -> None:
    """Behaviour 8."""
    app = written(
        tmp_path,
        """
import multiprocessing, subprocess, sys, threading
import runner

def child(kind):
    print("from", kind, flush=True)

class Parent(runner.App):
    def setup(self):
        thread = threading.Thread(target=child, args=("thread",))
        thread.start(); thread.join()
        for method in ("fork", "spawn", "forkserver"):
            process = multiprocessing.get_context(method).Process(target=child, args=(method,))
            process.start(); process.join()
            assert process.exitcode == 0, (method, process.exitcode)
        subprocess.run([sys.executable, "-c", "print('from subprocess')"], check=True)

    @runner.endpoint("/")
    def run(self) -> str:
        return "well"
""",
    )
    with serving("app:Parent", cwd=tmp_path) as runner:
        assert runner.post("/").json() == "well"
        code = runner.stop()

    assert "from thread" in printed(runner)
    assert code == 0
    everything = runner.log + "\n".join(runner.printed)
    for kind in ("fork", "spawn", "forkserver", "subprocess"):
        assert f"from {kind}" in everything
    assert app.exists()


def test_ready_fd_gets_one_line_with_the_address(tmp_path: Path) -> None:
    read, write = os.pipe()
    command = [sys.executable, HOUSE / "runner.py", gated(tmp_path), "--port", "0", "--ready-fd", str(write)]
    process = subprocess.Popen([str(c) for c in command], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            told = json.loads(pipe.read())
        answer = httpx.post(f"{told['url']}/", trust_env=False).json()
    finally:
        process.terminate()
        process.wait(20)

    assert (told["event"], told["pid"], answer) == ("ready", process.pid, "done")


# --- stopping


def test_check_8_sigterm_lets_running_requests_finish_and_then_tears_down(tmp_path: Path) -> None:
    """Behaviour 3: five requests running, all finish; new ones are refused; teardown runs once."""
    gate = tmp_path / "gate"
    with serving(gated(tmp_path)) as runner, ThreadPoolExecutor() as callers:
        url = runner.url
        answers = [callers.submit(runner.post, f"/until-file?path={gate}") for _ in range(5)]
        runner.wait_for("app.output", text="begun", times=5)
        runner.signal()
        runner.wait_for("app.output", text="handle_exit")
        refused = httpx.post(f"{url}/", trust_env=False)
        gate.touch()
        code = runner.wait()

    assert [answer.result().json() for answer in answers] == ["done"] * 5
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    said = printed(runner)
    assert said.index("handle_exit") < said.index("done")
    assert said.count("teardown TERMINATING") == 1
    assert said[-1] == "teardown TERMINATING"
    assert code == 0


def test_requests_that_outlast_the_grace_period_are_answered_and_the_process_ends(tmp_path: Path) -> None:
    """Behaviour 4."""
    never = tmp_path / "never"
    with serving(gated(tmp_path, grace=0.5)) as runner, ThreadPoolExecutor() as callers:
        answer = callers.submit(runner.post, f"/until-file?path={never}")
        runner.wait_for("app.output", text="begun")
        runner.signal()
        code = runner.wait()

    assert (answer.result().status_code, answer.result().json()["error_type"]) == (503, "runner_disconnected")
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Behaviour 4."""
    with serving(gated(tmp_path, grace=3600)) as runner, ThreadPoolExecutor() as callers:
        answer = callers.submit(runner.post, f"/until-file?path={tmp_path / 'never'}")
        runner.wait_for("app.output", text="begun")
        runner.signal(number)
        runner.wait_for("server.stopping")
        runner.signal(number)
        code = runner.wait()

    assert code == 128 + number
    assert isinstance(answer.exception(), httpx.TransportError)


def test_sigterm_during_setup_ends_cleanly(tmp_path: Path) -> None:
    """Behaviour 3."""
    setup = "def setup(self): print('loading'); threading.Event().wait()"
    with serving(gated(tmp_path, setup=setup, grace=0.5), ready=False) as runner:
        runner.wait_for("app.output", text="loading")
        code = runner.stop()

    assert code == 0
    assert "teardown TERMINATING" not in printed(runner)


def test_an_app_that_fails_to_stop_is_stopped_all_the_same(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        """
import threading
import runner
class Clinging(runner.App):
    termination_grace_period_seconds = 0.5
    def setup(self): threading.Thread(target=threading.Event().wait).start()
    def handle_exit(self): raise ValueError("no")
    def teardown(self): raise OSError("no")
    @runner.endpoint("/")
    def run(self) -> str: return "x"
""",
    )
    with serving(app) as runner:
        code = runner.stop()

    assert runner.events("handle_exit.failed")
    assert runner.events("teardown.failed")
    assert code == 0


# --- places and the line before them

PLACES = """
import threading
import runner
class Places(runner.App):
    max_multiplexing = {places}
    def setup(self): self.inside = self.most = 0; self.lock = threading.Lock(); self.gate = threading.Event()
    @runner.endpoint("/")
    def run(self) -> int:
        with self.lock:
            self.inside += 1; self.most = max(self.most, self.inside)
        with self.lock:
            self.inside -= 1
        return self.most
    @runner.endpoint("/hold")
    def hold(self) -> str:
        print("holding")
        self.gate.wait(20)
        return threading.current_thread().name
    @runner.endpoint("/open", health_check=runner.HealthCheck())
    async def open(self) -> str: return "x"
"""


def test_check_12_one_place_serves_200_callers_one_by_one_and_loses_none(tmp_path: Path) -> None:
    """Behaviour 49."""
    with serving(written(tmp_path, PLACES.format(places=1))) as runner, ThreadPoolExecutor(200) as callers:
        answers = list(callers.map(lambda _: runner.post("/"), range(200)))

    assert [answer.status_code for answer in answers] == [200] * 200
    assert {answer.json() for answer in answers} == {1}


def test_check_12_three_places_run_three_at_once(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        """
import threading
import runner
class Three(runner.App):
    max_multiplexing = 3
    def setup(self): self.meeting = threading.Barrier(3)
    @runner.endpoint("/")
    def run(self) -> int: return self.meeting.wait(20)
""",
    )
    with serving(app) as runner, ThreadPoolExecutor() as callers:
        answers = sorted(callers.map(lambda _: runner.post("/").json(), range(3)))

    assert answers == [0, 1, 2]


def test_check_12_health_never_waits_for_a_place(tmp_path: Path) -> None:
    """Behaviour 5: with all places taken by methods that block, health says busy, which is ready for probes."""
    with serving(written(tmp_path, PLACES.format(places=1))) as runner, ThreadPoolExecutor() as callers:
        held = callers.submit(runner.post, "/hold")
        runner.wait_for("app.output", text="holding")
        health, ready = runner.get("/health"), runner.get("/health/ready")
        live, metrics = runner.get("/health/live"), runner.get("/metrics")
        runner.process.kill()
        held.exception()

    assert (health.status_code, health.json()["status"]) == (200, "busy")
    assert health.json()["lanes"] == {"places": 1, "running": 1, "waiting": 0, "ghosts": 0}
    assert (ready.status_code, live.status_code, metrics.status_code) == (200, 200, 200)


def test_whoever_finds_the_line_full_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Behaviour 49."""
    app = written(tmp_path, PLACES.format(places=1))
    with serving(app, "--max-queued-requests", "1") as runner, ThreadPoolExecutor() as callers:
        held = callers.submit(runner.post, "/hold")
        runner.wait_for("app.output", text="holding")
        waiting = callers.submit(runner.post, "/hold")
        with runner.client() as client:
            while client.get("/health").json()["lanes"]["waiting"] == 0:
                pass
        refused = runner.post("/hold")
        runner.process.kill()
        held.exception()
        waiting.exception()

    assert (refused.status_code, refused.json()["error_type"]) == (429, "concurrent_requests_limit")
    assert int(refused.headers["retry-after"]) >= 1


def test_check_53_a_request_that_cannot_begin_in_time_is_refused(tmp_path: Path) -> None:
    """Behaviour 49: a deadline that would pass in the line."""
    with serving(written(tmp_path, PLACES.format(places=1))) as runner, ThreadPoolExecutor() as callers:
        held = callers.submit(runner.post, "/hold")
        runner.wait_for("app.output", text="holding")
        late = runner.post("/hold", headers={"x-fal-request-timeout": "0.2"})
        wrong = runner.post("/hold", headers={"x-fal-request-timeout": "soon"})
        runner.process.kill()
        held.exception()

    assert (late.status_code, late.json()["error_type"]) == (504, "request_timeout")
    assert late.headers["x-fal-request-timeout-type"] == "user"
    assert (wrong.status_code, wrong.json()["error_type"]) == (400, "bad_request")


def test_a_model_meets_one_thread_for_as_long_as_the_process_lives(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        """
import threading
import runner
class Loyal(runner.App):
    def setup(self): self.thread = threading.get_ident()
    @runner.endpoint("/")
    def run(self) -> bool: return threading.get_ident() == self.thread
""",
    )
    with serving(app) as runner:
        assert all(runner.post("/").json() for _ in range(20))


def test_behaviour_20_what_concurrent_requests_print_and_log_carries_their_ids(tmp_path: Path) -> None:
    app = written(
        tmp_path,
        """
import logging, threading
import runner
class Talking(runner.App):
    max_multiplexing = 5
    def setup(self): self.meeting = threading.Barrier(5); print("setup talks")
    @runner.endpoint("/")
    def run(self, name: str) -> str:
        self.meeting.wait(20)
        print("printed by", name)
        logging.getLogger("app").warning("logged by %s", name)
        return name
""",
    )
    names = [f"caller-{number}" for number in range(5)]
    with serving(app) as runner:
        with ThreadPoolExecutor() as callers:
            list(callers.map(lambda name: runner.post(f"/?name={name}", headers={"x-fal-request-id": name}), names))
        runner.stop()

    for name in names:
        assert runner.events("app.output", text=f"printed by {name}", request_id=name)
        assert runner.events("logged by " + name, request_id=name, level="warning")
    assert "request_id" not in runner.events("app.output", text="setup talks")[0]


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere:App"], "there is no module 'nowhere'"),
        (["app:Missing"], "app has no class 'Missing'; it has"),
        (["app:NotAnApp"], "NotAnApp is not an app; write class NotAnApp(runner.App)"),
        (["app"], "app has 2 apps with endpoints (First, Second); name one, for example app:MyApp"),
        (["nowhere.py:App"], "there is no file"),
        (["app:First", "--port", "x"], "--port: 'x' will not do"),
        (["app:First", "--no-plugin", "nope"], "--no-plugin nope: built-in plugins are types"),
        (["app:First", "--plugin", "nope"], "a plugin could not be loaded: No module named 'nope'"),
        (["app:First", "--app-dir", "nope"], "--app-dir nope: there is no such folder"),
        (["app:First", "--host", "256.0.0.1"], "--host 256.0.0.1 --port"),
        (["app:Unknown"], "Unknown.run: values of list[app.Strange] cannot cross the wire"),
        (["app:Socket"], "async def run(self, websocket: WebSocket)"),
        ([], "required: MODULE:CLASS"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    """Check 27 among them: a WebSocket endpoint that could not be called names its path and a right signature."""
    written(
        tmp_path,
        """
import runner
class NotAnApp: pass
class First(runner.App):
    @runner.endpoint("/")
    def run(self) -> str: return "x"
class Second(First): pass
class Strange: pass
def strange():
    class Unknown(runner.App):
        @runner.endpoint("/")
        def run(self, value: list[Strange]) -> str: return "x"
    class Socket(runner.App):
        @runner.endpoint("/socket", is_websocket=True)
        def run(self, websocket) -> None: ...
    return Unknown, Socket
Unknown, Socket = strange()
for hidden in (Unknown, Socket): hidden.__module__ = "elsewhere"
""",
    )
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )

    assert told in done.stderr
    assert done.stderr.startswith("runner: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


def test_the_log_level_and_format_are_as_asked(tmp_path: Path) -> None:
    with serving(gated(tmp_path), "--log-level", "warning", "--ready-fd", "2", ready=False) as runner:
        httpx.post(f"{runner.wait_for('ready')['url']}/", trust_env=False)
        runner.stop()
    assert {line["event"] for line in runner.lines} <= {"ready", "app.output"}

    with serving(gated(tmp_path), "--log-format", "console", "--ready-fd", "2", ready=False) as runner:
        httpx.post(f"{runner.wait_for('ready')['url']}/", trust_env=False)
        runner.stop()
    assert any("request.finished POST / 200" in line.get("text", "") for line in runner.lines)


def test_check_lists_endpoints_and_plugins_without_setting_up(tmp_path: Path) -> None:
    app = gated(tmp_path, setup="def setup(self): raise SystemExit('never')")
    done = subprocess.run([sys.executable, HOUSE / "runner.py", app, "--check"], capture_output=True, text=True, timeout=30)

    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "app Gated, called local/gated"
    assert "POST /until-file  Gated.until_file" in lines
    assert any(line.startswith("plugin health ") and "register_routes" in line for line in lines)


def test_openapi_is_printed_without_setting_up(tmp_path: Path) -> None:
    app = gated(tmp_path, setup="def setup(self): raise SystemExit('never')")
    done = subprocess.run([sys.executable, HOUSE / "runner.py", app, "--openapi"], capture_output=True, text=True, timeout=30)

    assert list(json.loads(done.stdout)["paths"]) == ["/", "/until-file", "/health"]


def test_a_port_that_is_taken_is_said_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, HOUSE / "runner.py", gated(tmp_path), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert f"--port {port}: Address already in use; --port 0 picks a free port" in done.stderr
    assert done.returncode == 2


def test_a_module_that_fails_to_import_shows_its_traceback(tmp_path: Path) -> None:
    app = written(tmp_path, "import runner\nraise OSError('no disk')\n")
    done = subprocess.run([sys.executable, HOUSE / "runner.py", app], capture_output=True, text=True, timeout=30)

    assert "OSError: no disk" in done.stderr
    assert done.returncode == 1


def test_tls_serves_https_and_http2(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(gated(tmp_path), "--tls-cert", str(certificate), "--tls-key", str(key)) as runner:
        url = runner.url
        done = subprocess.run(
            ["curl", "-s", "--http2", "--cacert", certificate, "-X", "POST", "-w", " %{http_version}", f"{url}/"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip

    assert url.startswith("https://")
    assert done.stdout == '"done" 2'


def test_two_requests_on_one_connection_and_the_next_after_a_refused_body(tmp_path: Path) -> None:
    with serving(gated(tmp_path)) as runner, runner.client() as client:
        assert client.post("/").json() == "done"
        assert client.post("/until-file", content=b"x" * 1000).status_code == 422
        assert client.post("/").json() == "done"


def test_the_command_is_a_console_script_and_a_module_too(tmp_path: Path) -> None:
    gated(tmp_path)
    script = Path(sys.executable).with_name("runner")
    for command in ([script], [sys.executable, "-m", "runner"]):
        with running([*command, "app:Gated", "--port", "0", "--log-format", "json"], cwd=tmp_path) as runner:
            runner.wait_for("app.ready")
            assert runner.post("/").json() == "done"
