"""Scaffold: `runner new NAME` writes a small project that is served, tested and built as it stands.

What it writes stands below, as it will be read; NAME, the class and the versions are filled in.
"""

from __future__ import annotations

import importlib.metadata
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..schemas.app import derive_alias
from ..schemas.problems import ConfigError

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)*")
TAKEN = {"Input", "Output"}  # by the project's own models

APP = '''\
"""@NAME@: say here in a line what it does.

Serve it: runner app:@CLASS@
Test it:  python -m pytest
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import runner


class Input(msgspec.Struct):
    prompt: Annotated[str, msgspec.Meta(min_length=1, max_length=1000, description="Text to work on.")]
    steps: Annotated[int, msgspec.Meta(ge=1, le=100, description="Times to go over it.")] = 10


class Output(msgspec.Struct):
    text: str


class @CLASS@(runner.App):
@ALIAS@    max_multiplexing = 1  # requests that run at once

    def setup(self) -> None:
        """Load the model: called once, before the first request."""
        self.model = str.title

    @runner.endpoint("/")
    def generate(self, input: Input) -> Output:
        text = input.prompt
        for _ in range(input.steps):
            runner.checkpoint()  # a caller who left is noticed here; calls of torch modules do it by themselves
            text = self.model(text)
        return Output(text=text)

    @runner.endpoint("/stream")
    def stream(self, input: Input) -> Iterator[Output]:
        for word in input.prompt.split():
            yield Output(text=self.model(word))
'''
TEST = '''\
from __future__ import annotations

import pytest
from runner.testing import AppClient, AppClientError, cancel_at

import app


def test_it_answers(app_client: AppClient[app.@CLASS@]) -> None:
    assert app_client.generate(prompt="hello world") == app.Output(text="Hello World")


def test_it_streams(app_client: AppClient[app.@CLASS@]) -> None:
    assert [output.text for output in app_client.stream(prompt="hello world")] == ["Hello", "World"]


def test_an_empty_prompt_is_refused(app_client: AppClient[app.@CLASS@]) -> None:
    with pytest.raises(AppClientError) as refused:
        app_client.generate(prompt="")

    assert (refused.value.status_code, refused.value.detail[0]["loc"]) == (422, ["body", "prompt"])


def test_nothing_is_left_when_a_caller_leaves(app_client: AppClient[app.@CLASS@]) -> None:
    cancel_at(3)(app_client.generate, prompt="hello world", steps=5)


def test_the_server_serves_it(runner_server: AppClient[app.@CLASS@]) -> None:
    assert runner_server.generate(prompt="hello world") == app.Output(text="Hello World")
'''
PROJECT = """\
[tool.pytest.ini_options]
runner_app = "app:@CLASS@" # the app of the fixtures app_client and runner_server
pythonpath = ["."]
addopts = ["--strict-markers", "--strict-config"]

[tool.ruff]
line-length = 120
lint.select = ["E", "F", "I", "B", "UP"]

[tool.mypy]
strict = true
files = ["app.py", "test_app.py"]
"""
DOCKERFILE = """\
# The server's image, which its checkout builds with `docker build -t runner .`, and the app in it:
#
#     docker build -t @NAME@ .
#     docker run --rm -p 8000:8000 @NAME@        (--gpus all for a GPU)
ARG RUNNER=runner
FROM ${RUNNER}
USER root
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
USER runner
COPY app.py .
CMD ["app:@CLASS@"]
"""
GITHUB = """\
name: test
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
          cache: pip
          cache-dependency-path: requirements*.txt
      - run: pip install -r requirements-dev.txt
      - run: runner app:@CLASS@ --check
      - run: ruff check .
      - run: mypy
      - run: python -m pytest
"""
GITLAB = """\
test:
  image: python:3.12-slim
  cache:
    paths: [.pip]
  script:
    - pip install --cache-dir .pip -r requirements-dev.txt
    - runner app:@CLASS@ --check
    - ruff check .
    - mypy
    - python -m pytest
"""
IGNORED = ".runner/\n.venv/\n__pycache__/\n.mypy_cache/\n.pytest_cache/\n.ruff_cache/\n"


def main(arguments: Sequence[str]) -> int:
    """`runner new NAME`. Raises ConfigError for a name that will not do, or one that is there already."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("new takes one name, that of the project; for example: runner new my-app")
    name = arguments[0]
    folder, words = Path(name), words_of(name)
    class_name = class_of(name, words)
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"new {name}: {folder} exists already; choose another name, or remove it first")
    script = Path(sys.argv[0])
    command = "runner" if script.name == "runner" else f"python {script.resolve()}"
    alias = "-".join(words).lower()
    fields = {"NAME": name, "CLASS": class_name, "ALIAS": "" if derive_alias(class_name) == alias else f'    app_name = "{alias}"\n'}
    try:
        for path, text in files().items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(re.sub(r"@([A-Z]+)@", lambda found: fields[found[1]], text))
    except OSError as error:
        raise ConfigError(f"new {name}: {error.filename}: {error.strerror}") from None
    sys.stdout.write(
        f"{name}/ is written: {', '.join(files())}\n\n    cd {name}\n    python -m pytest\n    {command} app:{class_name}\n"
    )
    return 0


def files() -> dict[str, str]:
    """What a project consists of, by its path in it."""
    return {
        "app.py": APP,
        "test_app.py": TEST,
        "requirements.txt": _pins("onerunner", "msgspec"),
        "requirements-dev.txt": "-r requirements.txt\n" + _pins("pytest", "ruff", "mypy"),
        "pyproject.toml": PROJECT,
        "Dockerfile": DOCKERFILE,
        ".github/workflows/test.yml": GITHUB,
        ".gitlab-ci.yml": GITLAB,
        ".gitignore": IGNORED,
    }


def _pins(*packages: str) -> str:
    """Each package at the version that is installed here; without one where there is none."""
    lines = []
    for package in packages:
        try:
            lines.append(f"{package}=={importlib.metadata.version(package)}\n")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package}\n")
    return "".join(lines)


def words_of(name: str) -> list[str]:
    """The words in the name of a project. Raises ConfigError for a name that will not do."""
    if not NAME.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lstrip("0123456789-") or "my-app"
        raise ConfigError(f"new {name}: a name begins with a letter and has letters, digits, '-' and '_' in it; for example {near}")
    return re.findall(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])", name)


def class_of(name: str, words: Sequence[str]) -> str:
    """The class for a project of these words: my-app gives MyApp."""
    class_name = "".join(word[0].upper() + word[1:] for word in words)
    if keyword.iskeyword(class_name):
        raise ConfigError(f"new {name}: {class_name} is a word of Python's; for example {name}-app")
    return f"{class_name}App" if class_name in TAKEN else class_name
