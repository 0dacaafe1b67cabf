"""Supervising: a small parent that holds the listening socket and keeps one runner behind it.

`--supervise` turns the process into this script, which needs nothing but the standard library and
imports neither the app nor torch. The runner is its child and takes connections from the socket;
when it dies, whatever the cause, another is started, with a growing pause between failures.
Meanwhile connections wait in the socket's backlog instead of being refused.

SIGTERM and SIGINT go to the child, which drains; its exit code is the parent's. The second one kills
it. A child that ends with code 2 would fail alike again and is not replaced; neither is one after
`MOST_FAILURES` in a row that never became ready. One that ends to take up changed code is replaced at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

MOST_FAILURES = 10  # in a row without being ready; numbers out of the air
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 30.0
WRONG_SETTING = 2
RELOADED = 73  # of schemas/exits.py, which this script cannot import
READY_VARIABLE = "RUNNER_SUPERVISOR_FD"  # where the child writes a byte once it is ready
SUCCEEDS_VARIABLE = "RUNNER_SUPERVISOR_SUCCEEDS"  # "1" once a child was ready: the next has its callers wait while it starts


class Supervisor:
    """The parent. Owns the socket and at most one child."""

    def __init__(self, socket: int, command: list[str]) -> None:
        self._socket, self._command = socket, [*command, "--listen-fd", str(socket)]
        self._json = "json" in (os.environ.get("RUNNER_LOG_FORMAT"), *_after("--log-format", command))
        self._child = 0  # process id; 0: none runs
        self._stopping = False
        self._was_ready = False  # any child so far

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        failures = 0
        while True:
            code, was_ready = self._run_child()
            if self._stopping or code == WRONG_SETTING:
                return code
            if code == RELOADED:
                continue
            failures = 0 if was_ready else failures + 1
            if failures >= MOST_FAILURES:
                self._tell("error", "supervisor.gave_up", code=code, failures=failures)
                return code
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**failures) if failures else 0.0
            self._tell("error", "supervisor.child_ended", code=code, was_ready=was_ready, pause_seconds=pause)
            self._pause(pause)
            if self._stopping:
                return 0

    def _run_child(self) -> tuple[int, bool]:
        """Start one and wait for its end; return its exit code, 128 + N for signal N, and if it was ready."""
        news, told = os.pipe()
        os.set_inheritable(told, True)
        environment = {**os.environ, READY_VARIABLE: str(told), SUCCEEDS_VARIABLE: "1" if self._was_ready else ""}
        self._child = os.posix_spawn(self._command[0], self._command, environment)
        os.close(told)
        status = self._wait()
        self._child = 0
        was_ready = os.read(news, 1) != b""
        self._was_ready |= was_ready
        os.close(news)
        code = os.waitstatus_to_exitcode(status)
        return (code if code >= 0 else 128 - code), was_ready

    def _wait(self) -> int:
        """Wait for the child. As process 1 of a container we are also sent the orphans of others."""
        while True:
            process, status = os.wait()
            if process == self._child:
                return status

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))  # a signal does not end a sleep

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stopping:
            if self._child:
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
            os._exit(128 + number)
        self._stopping = True
        os.close(self._socket)  # nobody will take the connections that come now
        if self._child:
            os.kill(self._child, signal.SIGTERM)

    def _tell(self, level: str, event: str, **fields: object) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"timestamp": stamp, "level": level, "event": event, **fields})
        if not self._json:
            line = f"{stamp} [{level}] {event} " + " ".join(f"{name}={value}" for name, value in fields.items())
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _after(flag: str, command: list[str]) -> list[str]:
    """The value of `flag` on a command line, as a list of none or one."""
    for place, word in enumerate(command):
        if word == flag:
            return command[place + 1 : place + 2]
        if word.startswith(f"{flag}="):
            return [word.partition("=")[2]]
    return []


if __name__ == "__main__":
    raise SystemExit(Supervisor(int(sys.argv[1]), sys.argv[2:]).run())
