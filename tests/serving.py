"""A real runner for a test: `python runner.py`, on a free port, its log read line by line.

Nothing here waits by sleeping: the log says when something has happened. `WITHOUT=http1` in the
environment of pytest leaves that plugin out of every runner started here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HOUSE = Path(__file__).parent.parent
GUARD_SECONDS = 30  # against a test that hangs; nothing is expected to take so long

Line = dict[str, Any]


class Runner:
    """A running process and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[Line] = []  # as logged; what is not JSON has the event "raw"
        self.printed: list[str] = []  # on the real stdout
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(process.stderr, self._logged), daemon=True),
            threading.Thread(target=self._read, args=(process.stdout, self.printed.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, keep: Any) -> None:
        with stream:
            for raw in stream:
                with self._news:
                    keep(raw.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()

    def _logged(self, text: str) -> None:
        try:
            line = json.loads(text)
        except ValueError:
            line = {"event": "raw", "text": text}
        self.lines.append(line)

    def events(self, event: str, **fields: Any) -> list[Line]:
        """The lines so far with this event and these fields."""
        return [line for line in self.lines if line.get("event") == event and fields.items() <= line.items()]

    def wait_for(self, event: str, *, times: int = 1, **fields: Any) -> Line:
        """The `times`-th such line, waiting until it is logged."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.events(event, **fields)) >= times, GUARD_SECONDS):
                raise AssertionError(f"{event} {fields} was not logged; the log:\n{self.log}")
        return self.events(event, **fields)[times - 1]

    def wait_for_printed(self, pattern: str, *, times: int) -> list[Any]:
        """What `pattern` finds on stdout, waiting until it does so `times` times."""
        with self._news:
            if not self._news.wait_for(lambda: len(re.findall(pattern, "\n".join(self.printed))) >= times, GUARD_SECONDS):
                raise AssertionError(f"{pattern} was not printed; it was:\n" + "\n".join(self.printed))
            return re.findall(pattern, "\n".join(self.printed))

    @property
    def log(self) -> str:
        """Its last lines, for a test that fails."""
        return "\n".join(line["text"] if line["event"] == "raw" else json.dumps(line) for line in self.lines[-60:])

    @property
    def url(self) -> str:
        return str(self.wait_for("server.listening")["url"])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=GUARD_SECONDS, trust_env=False, **options)

    def post(self, path: str = "/", body: Any = None, **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        with self.client() as client:
            return client.post(path, **({"json": body} if body is not None else {}), **options)

    def call(self, path: str, request_id: str, body: bytes = b"") -> socket.socket:
        """A request whose caller can hang up: the connection that it was sent on."""
        caller = socket.create_connection(("127.0.0.1", self.port), GUARD_SECONDS)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-fal-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: application/json\r\n" if body else ""
        caller.sendall(f"{head}{kind}\r\n".encode() + body)
        return caller

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once the process has ended and all its output is read."""
        code = self.process.wait(GUARD_SECONDS)
        for reader in self._readers:
            reader.join(GUARD_SECONDS)
        return code

    def stop(self) -> int:
        self.signal()
        return self.wait()


def inherited() -> dict[str, str]:
    """The environment for a runner: ours without what would set it up."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "FAL_"))}
    return {**kept, "RUNNER_NO_PLUGIN": os.environ["WITHOUT"]} if os.environ.get("WITHOUT") else kept


@contextmanager
def running(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Iterator[Runner]:
    """The process of `command`; killed at the end if it still runs."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env={**inherited(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    runner = Runner(process)
    try:
        yield runner
    finally:
        if process.poll() is None:
            process.kill()
        runner.wait()


@contextmanager
def serving(
    app: str | Path, *arguments: str, cwd: Path | None = None, ready: bool = True, env: Mapping[str, str] | None = None
) -> Iterator[Runner]:
    """`python runner.py APP` on a free port, with a JSON log; ready to be called unless told otherwise."""
    command = [sys.executable, HOUSE / "runner.py", app, "--port", "0", "--log-format", "json", *arguments]
    with running(command, cwd=cwd, env=env) as runner:
        if ready:
            runner.wait_for("app.ready")
        yield runner


def written(folder: Path, source: str, name: str = "app.py") -> Path:
    """`source` as a file that `serving` takes."""
    file = folder / name
    file.write_text(source)
    return file
