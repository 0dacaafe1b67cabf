"""A runner that dies or falls ill is replaced, and nobody is refused meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from runner.schemas import exits
from serving import GUARD_SECONDS, HOUSE, Runner, running, written

APP = """
import ctypes, os, pathlib, resource, signal, threading, time
import runner

HERE = pathlib.Path(__file__).parent

class AcceleratorError(RuntimeError):
    "As torch has it, without seconds of importing it."

class Mortal(runner.App):
    max_multiplexing = 8
    termination_grace_period_seconds = 1

    def setup(self):
        self.hoard = []
        if (HERE / "broken").exists():
            (HERE / "broken").unlink()
            raise OSError("no weights, this once")
        (HERE / "ill").unlink(missing_ok=True)

    @runner.endpoint("/")
    def run(self) -> int:
        return os.getpid()

    @runner.endpoint("/die")
    def die(self, how: str, response: runner.Response) -> str:
        if how == "exit":
            os._exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "abort":
            ctypes.CDLL(None).abort()
        if how == "gpu":
            raise AcceleratorError("CUDA error: an illegal memory access was encountered")
        if how == "memory":
            used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
            while True:
                self.hoard.append(bytearray(2**23))
        if how == "ill":
            (HERE / "ill").touch()
        if how == "stop":
            response.headers["x-fal-stop-runner"] = "true"
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
    """Fifty callers who keep calling, each time on a new connection, and what became of each of their calls.

    An outcome is the process that answered, "refused", "cut", or the body of an error.
    """

    def __init__(self, runner: Runner) -> None:
        self.outcomes: list[list[Any]] = [[] for _ in range(50)]
        self._port, self._enough = runner.port, False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._call_all()))

    async def _call_all(self) -> None:
        await asyncio.gather(*(self._call_on(outcomes) for outcomes in self.outcomes))

    async def _call_on(self, outcomes: list[Any]) -> None:
        while not self._enough:
            outcomes.append(await self._call())

    async def _call(self) -> Any:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            return "refused"
        try:
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        except ConnectionError:
            return "cut"
        finally:
            writer.close()
        if not body:
            return "cut"
        return json.loads(body) if b" 200 " in head.partition(b"\r\n")[0] else f"{head[9:12].decode()} {body.decode()}"

    def answered_by(self, pid: int) -> bool:
        """Whether every caller has been answered by this process."""
        return all(pid in outcomes for outcomes in self.outcomes)

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._enough = True
        self._thread.join(GUARD_SECONDS)


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with supervised(tmp_path_factory.mktemp("mortal")) as runner:
        yield runner


OURS = ("runner_scheduling_failure", "runner_disconnected", "request_timeout")


@pytest.mark.parametrize(
    ("path", "code", "is_sudden"),
    [
        ("/die?how=exit", 0, True),
        ("/die?how=kill", 128 + signal.SIGKILL, True),
        ("/die?how=abort", 128 + signal.SIGABRT, True),
        ("/die?how=ill", 70, False),
        ("/die?how=gpu", 74, False),
        ("/stuck", 71, False),
        ("/die?how=memory", 75, False),
        ("/die?how=setup", 3, True),
        ("/die?how=stop", 76, False),
    ],
)
def test_a_child_that_dies_is_replaced_and_nobody_is_refused(mortal: Runner, path: str, code: int, is_sudden: bool) -> None:
    """Only who was inside the dying child fails, and reads why unless the process was gone at once."""
    deaths = 2 if path == "/die?how=setup" else 1  # the next one fails to set up
    seen = len(mortal.events("app.ready"))
    dead = len(mortal.events("supervisor.child_ended"))
    first = call(mortal).json()
    with Callers(mortal) as callers:
        while not callers.answered_by(first):
            pass
        with suppress(httpx.TransportError):
            call(mortal, path)
        ended = mortal.wait_for("supervisor.child_ended", times=dead + 1)
        mortal.wait_for("app.ready", times=seen + 1)
        second = call(mortal).json()
        while not callers.answered_by(second):
            pass

    assert ended["was_ready"] is True
    if code != 75:
        assert ended["code"] == code
    elif ended["code"] not in (70, 75):  # without memory a health check may be the first to fail, or a library that then aborts
        assert ended["code"] >= 128
        is_sudden = True
    assert first != second
    for outcomes in callers.outcomes:
        failures = [outcome for outcome in outcomes if not isinstance(outcome, int)]
        assert len(failures) <= deaths, outcomes
        for failure in failures:
            assert failure != "refused"
            assert failure == "cut" if is_sudden and deaths == 1 else failure == "cut" or any(kind in failure for kind in (*OURS, "GPU error"))
            assert is_sudden or failure != "cut"
        pids = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert pids == sorted(pids, key=[first, second].index), "nobody is answered by the dead"


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


def test_a_child_drains_when_its_parent_is_gone(tmp_path: Path) -> None:
    with supervised(tmp_path) as runner:
        runner.process.kill()
        runner.wait_for("server.stopped")

        assert runner.events("server.stopping", signal="SIGTERM")


def test_a_wrong_app_is_not_tried_again(tmp_path: Path) -> None:
    command = [sys.executable, HOUSE / "runner.py", "nowhere:App", "--supervise", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert done.returncode == 2
    assert done.stderr.startswith("runner: there is no module 'nowhere'")


def test_each_exit_code_is_documented_once_and_no_other() -> None:
    page = (HOUSE / "docs" / "operate.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    codes = [value for name, value in vars(exits).items() if name.isupper()]

    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == sorted(codes)


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
