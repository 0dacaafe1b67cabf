"""A runner that dies or falls ill is replaced, and nobody is refused meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from serving import GUARD_SECONDS, HOUSE, Runner, running, written

APP = """
import ctypes, os, pathlib, signal, threading, time
import runner

HERE = pathlib.Path(__file__).parent

class Mortal(runner.App):
    max_multiplexing = 8
    termination_grace_period_seconds = 1

    def setup(self):
        if (HERE / "broken").exists():
            (HERE / "broken").unlink()
            raise OSError("no weights, this once")
        (HERE / "ill").unlink(missing_ok=True)

    @runner.endpoint("/")
    def run(self) -> int:
        return os.getpid()

    @runner.endpoint("/die")
    def die(self, how: str) -> str:
        if how == "exit":
            os._exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "abort":
            ctypes.CDLL(None).abort()
        if how == "segfault":
            ctypes.string_at(0)
        if how == "ill":
            (HERE / "ill").touch()
        if how == "setup":
            (HERE / "broken").touch()
            os._exit(3)
        return how

    @runner.endpoint("/stuck", timeout=0.1)
    def stuck(self) -> str:
        ctypes.CDLL(None).sleep(600)

    @runner.endpoint("/well", health_check=runner.HealthCheck(failure_threshold=1, start_period_seconds=0))
    def well(self) -> str:
        if (HERE / "ill").exists():
            raise OSError("ill")
        return "well"
"""


@contextmanager
def supervised(folder: Path, *arguments: str) -> Iterator[Runner]:
    app = written(folder, APP)
    fast = ["--health-seconds", "0.1", "--stuck-seconds", "0.6"]
    command = [sys.executable, HOUSE / "runner.py", app, "--supervise", "--port", "0", "--log-format", "json", *fast, *arguments]
    with running(command) as runner:
        runner.wait_for("app.ready")
        try:
            yield runner
        finally:
            runner.process.terminate()
            runner.wait()


def call(runner: Runner, path: str = "/") -> httpx.Response:
    return runner.post(path)


class Callers:
    """Ten callers who keep calling, each time on a new connection, and what became of their calls."""

    def __init__(self, runner: Runner) -> None:
        self.outcomes: Counter[str] = Counter()
        self.pids: set[int] = set()
        self._runner = runner
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(10)]

    def _call(self) -> None:
        while not self._enough.is_set():
            try:
                response = self._runner.post("/")
                self.outcomes[str(response.status_code)] += 1
                if response.status_code == 200:
                    self.pids.add(response.json())
            except httpx.ConnectError:
                self.outcomes["refused"] += 1
            except httpx.TransportError:
                self.outcomes["cut"] += 1

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(GUARD_SECONDS)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/die?how=exit", 0),
        ("/die?how=kill", 128 + signal.SIGKILL),
        ("/die?how=abort", 128 + signal.SIGABRT),
        ("/die?how=segfault", 128 + signal.SIGSEGV),
        ("/die?how=ill", 70),
        ("/stuck", 71),
        ("/die?how=setup", 3),
    ],
)
def test_a_child_that_dies_is_replaced_and_nobody_is_refused(tmp_path: Path, path: str, code: int) -> None:
    with supervised(tmp_path) as runner:
        first = call(runner).json()
        with Callers(runner) as callers:
            with suppress(httpx.TransportError):
                call(runner, path)
            ended = runner.wait_for("supervisor.child_ended", code=code)
            runner.wait_for("app.ready", times=2)
            while call(runner).status_code != 200:
                pass
        second = call(runner).json()

    assert ended["was_ready"] is True
    assert first != second
    assert callers.outcomes["refused"] == 0
    assert callers.outcomes["200"] > 0
    if path in ("/die?how=ill",):
        assert callers.outcomes["cut"] == 0, "a child that knows its end drains"


def test_a_setup_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    with supervised(tmp_path) as runner:
        (tmp_path / "broken").touch()
        with pytest.raises(httpx.TransportError):
            call(runner, "/die?how=kill")
        failed = runner.wait_for("supervisor.child_ended", code=1)
        runner.wait_for("app.ready", times=2)

        assert failed["was_ready"] is False
        assert failed["pause_seconds"] > 0
        while call(runner).status_code != 200:
            pass


def test_sigterm_drains_the_child_and_ends_both(tmp_path: Path) -> None:
    with supervised(tmp_path) as runner:
        child = call(runner).json()
        code = runner.stop()

    assert code == 0
    assert not Path(f"/proc/{child}").exists()
    assert runner.events("server.stopped")


def test_a_second_signal_kills_both_at_once(tmp_path: Path) -> None:
    app = written(tmp_path, APP.replace("termination_grace_period_seconds = 1", "termination_grace_period_seconds = 3600"), "slow.py")
    command = [sys.executable, HOUSE / "runner.py", app, "--supervise", "--port", "0", "--log-format", "json", "--stuck-seconds", "900"]
    with running(command) as runner:
        runner.wait_for("app.ready")
        child = call(runner).json()
        with runner.call("/stuck", "held"):
            runner.signal()
            runner.wait_for("server.stopping")
            runner.signal()
            code = runner.wait()

    assert code == 128 + signal.SIGTERM
    assert not Path(f"/proc/{child}").exists()


def test_a_wrong_app_is_not_tried_again(tmp_path: Path) -> None:
    command = [sys.executable, HOUSE / "runner.py", "nowhere:App", "--supervise", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert done.stderr.startswith("runner: there is no module 'nowhere'")


def test_the_parent_is_small_and_holds_no_more_than_it_must(tmp_path: Path) -> None:
    with supervised(tmp_path) as runner:
        rollup = Path(f"/proc/{runner.process.pid}/smaps_rollup").read_text()
        maps = Path(f"/proc/{runner.process.pid}/maps").read_text()

    pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 20 * 1024, "KiB"
    assert "msgspec" not in maps
    assert "torch" not in maps


def test_environment_and_file_may_ask_for_it(tmp_path: Path) -> None:
    app = written(tmp_path, APP)
    (tmp_path / "runner.toml").write_text("supervise = true\n")
    for env in ({}, {"RUNNER_SUPERVISE": "true"}):
        command = [sys.executable, HOUSE / "runner.py", app, "--port", "0", "--log-format", "json"]
        with running(command, cwd=tmp_path, env=env) as runner:
            runner.wait_for("app.ready")
            assert call(runner).json() != runner.process.pid
            assert runner.stop() == 0
        (tmp_path / "runner.toml").unlink(missing_ok=True)


def test_a_listening_socket_can_be_handed_over(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        descriptor, port = server.fileno(), server.getsockname()[1]
        os.set_inheritable(descriptor, True)
        command = [sys.executable, str(HOUSE / "runner.py"), str(written(tmp_path, APP)), "--listen-fd", str(descriptor), "--ready-fd", "1"]
        process = subprocess.Popen(command, pass_fds=[descriptor], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        with process.stdout:
            told = json.loads(process.stdout.readline())
            answer = httpx.post(f"http://127.0.0.1:{port}/", trust_env=False).json()
        process.terminate()

        assert process.wait(GUARD_SECONDS) == 0
        assert told["url"] == f"http://127.0.0.1:{port}"
        assert answer == told["pid"]


def test_a_wrong_descriptor_is_said(tmp_path: Path) -> None:
    command = [sys.executable, HOUSE / "runner.py", written(tmp_path, APP), "--listen-fd", "77"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert (done.returncode, "--listen-fd 77: Bad file descriptor" in done.stderr) == (2, True)
