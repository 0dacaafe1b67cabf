"""Tries wrong apps, each in a process of its own that is forked from one with the server imported.

Reads a JSON list of `{"files": {path: text}, "arguments": [...]}` on stdin; a text that begins with
`hex:` is bytes. Writes a list of `[exit code, stdout, stderr]`, with the folder of each as DIR. One that
is served, not checked, is stopped by SIGTERM once it is ready.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import pydantic  # noqa: F401 # what apps import is imported once
from runner.plugins.registry import load_plugins

import runner

AT_ONCE = 4


def begun(case: dict, folder: Path) -> tuple[int, int]:
    """The process that tries `case`, and where it says that it is ready."""
    for path, text in case["files"].items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode())
    ready, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, ready
    try:
        os.chdir(folder)
        for descriptor, name in ((1, ".stdout"), (2, ".stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), descriptor)
        os.set_inheritable(told, True)
        arguments = [argument.replace("READY", str(told)) for argument in case["arguments"]]
        try:
            code = runner.main(arguments)
        except SystemExit as error:
            code = error.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, ready: int, folder: Path) -> list:
    if os.read(ready, 1000):
        os.kill(pid, signal.SIGTERM)
    os.close(ready)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outputs = [(folder / name).read_text(errors="replace").replace(str(folder), "DIR") for name in (".stdout", ".stderr")]
    return [code, *outputs]


def main() -> None:
    load_plugins(runner.Settings())
    cases, results, running = json.load(sys.stdin), [], []
    with tempfile.TemporaryDirectory() as root:
        for number, case in enumerate(cases):
            folder = Path(root).resolve() / f"case{number}"
            folder.mkdir()
            running.append((*begun(case, folder), folder))
            if len(running) == AT_ONCE:
                results.append(ended(*running.pop(0)))
        results += [ended(*each) for each in running]
    json.dump(results, sys.stdout)


main()
