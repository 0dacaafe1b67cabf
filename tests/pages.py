"""The pages of docs/ as a reader uses them: files are written, lines of shell are run, answers compared.

A fence says what it is:

    ```python title="app.py"     a file: written to the reader's folder
    ```sh                        lines for a shell; `runner ...` starts a runner, the rest must succeed
    ```text, ```json             right after `sh`: what it prints; … stands for anything
    ```python                    a part of a class, or statements: see tests/test_guide.py
    ```sh unrun="why"            not run, for the reason given
    ```sh exit="22"              fails so, as curl does when it is answered with an error
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from serving import GUARD_SECONDS, HOUSE, Runner, running

DOCS = HOUSE / "docs"
FENCE = re.compile(r"^( *)```(\w*)([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
PORTS = ("8000", "9000")  # as the pages write them: the runner's, and a receiver's
BIN = Path(sys.executable).parent
# As an author's shell has it: a request that is answered with an error fails.
PRELUDE = """set -euo pipefail
curl() { command curl --fail-with-body --silent --show-error --noproxy '*' "$@"; }
"""


class Fence(NamedTuple):
    """One block of a page."""

    page: str
    line: int
    language: str
    attributes: Mapping[str, str]
    text: str
    expected: str | None  # what a block of shell prints, when the page says so

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def fences(page: Path) -> list[Fence]:
    """The blocks of a page, in order."""
    source = page.read_text()
    found = [*FENCE.finditer(source)]
    blocks = []
    for at, match in enumerate(found):
        indent, language, info, text = match.groups()
        after = found[at + 1] if at + 1 < len(found) else None
        shown = after is not None and after[2] in ("text", "json", "http") and not source[match.end() : after.start()].strip()
        blocks.append(
            Fence(
                page=str(page.relative_to(HOUSE)),
                line=source[: match.start()].count("\n") + 1,
                language=language,
                attributes=dict(ATTRIBUTE.findall(info)),
                text=re.sub(rf"^{indent}", "", text, flags=re.MULTILINE),
                expected=after[4] if shown and after is not None and language == "sh" else None,
            )
        )
    return blocks


def assert_printed(printed: str, expected: str, place: str) -> None:
    """What a block printed is what its page shows; `…` there stands for anything."""
    lines = [" ".join(line.split()) for line in expected.strip().splitlines()]
    pattern = r"\n*".join(re.escape(line).replace("…", ".*?") for line in lines)
    said = "\n".join(" ".join(line.split()) for line in printed.strip().splitlines())
    assert re.fullmatch(pattern, said, re.DOTALL), f"{place} printed\n{printed}\nthe page says\n{expected}"


class Reader:
    """Somebody who does in one folder what a page says, from its first block to its last."""

    def __init__(self, folder: Path, runner: Runner | None = None) -> None:
        self.folder, self._stack = folder, ExitStack()
        self.runner = runner  # that was started already: the page's own line is passed over
        self._given = runner is not None
        self._ports = {"9000": str(free_port())}
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "FAL_", "PIP_REQUIRE"))}
        self._env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200", "HOME": str(folder), "LC_ALL": "C.UTF-8"}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the runner of the page as an operator would, so that what it started ends with it."""
        if self.runner is not None and self.runner.process.poll() is None:
            self.runner.stop()
        self._stack.close()

    def keep(self) -> None:
        """The runner that runs now serves for the rest: lines that start one are passed over."""
        self._given = True

    def write(self, fence: Fence) -> Path:
        file = self.folder / fence.attributes["title"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.with_ports(fence.text))
        return file

    def with_ports(self, text: str) -> str:
        if self.runner is not None:
            text = text.replace("localhost:8000", f"127.0.0.1:{self.runner.port}")
        return text.replace("localhost:9000", f"127.0.0.1:{self._ports['9000']}").replace("9000", self._ports["9000"])

    def read(self, blocks: Sequence[Fence]) -> None:
        for fence in blocks:
            if "title" in fence.attributes:
                self.write(fence)
            elif fence.language == "sh" and "unrun" not in fence.attributes:
                self.run(fence)

    def run(self, fence: Fence) -> None:
        script: list[str] = []
        for line in joined(fence.text):
            if re.match(r"(\w+=\S+ )*runner (?!new\b)(?!.*--(check|openapi|help))", line):
                if not self._given:
                    self.start(line)
            else:
                script.append(line)
        if not script:
            return
        text = self.with_ports("\n".join(script))
        done = subprocess.run(
            ["bash", "-c", PRELUDE + text], cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=GUARD_SECONDS, check=False
        )
        log = self.runner.log if self.runner is not None else ""
        assert done.returncode == int(fence.attributes.get("exit", "0")), f"{fence.place}: {text}\n{done.stdout}{done.stderr}\n{log}"
        if fence.expected is not None:
            assert_printed(done.stdout + (done.stderr if done.returncode else ""), self.with_ports(fence.expected), fence.place)

    def start(self, line: str) -> None:
        """Start the runner of a page, and stop the one before it."""
        self.stop()
        words = shlex.split(re.sub(r"\s+#.*$", "", line))
        env = dict(word.split("=", 1) for word in words if re.match(r"\w+=", word) and words.index(word) < words.index("runner"))
        arguments = words[words.index("runner") + 1 :]
        command = [str(BIN / "python"), str(HOUSE / "runner.py"), *(self.with_ports(a) for a in arguments), "--port", "0", "--log-format", "json"]
        self.runner = self._stack.enter_context(running(command, cwd=self.folder, env=env | {"PATH": self._env["PATH"]}))
        self.runner.wait_for("app.ready")


def joined(text: str) -> Iterator[str]:
    """Lines of shell, those that end with a backslash joined to the next, here-documents kept whole."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip() + " "
            continue
        yield pending
        pending = ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))
