"""`--reload`: what an edit does to a runner, by what it changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runner.plugins.reloading.editions import Edition
from runner.plugins.reloading.reach import judge
from serving import Runner, serving

APP = '''\
"""An app."""

import functools
import os

import runner
from helpers import shout as loud

GREETING = "Hello"
SIZE = 3
TWICE = SIZE * 2


def load(size: int) -> list[int]:
    return list(range(size))


def polite(name: str) -> str:
    return f"{GREETING}, {name}"


def length(name: str) -> int:
    return len(name)


@functools.cache
def kept(name: str) -> int:
    return length(name)


class Greeter(runner.App):
    def setup(self) -> None:
        self.model = load(SIZE)

    @runner.endpoint("/")
    def greet(self, name: str) -> dict[str, object]:
        return {"text": polite(name), "size": len(self.model), "process": os.getpid()}

    @runner.endpoint("/loud")
    def shout(self, name: str) -> str:
        return loud(name)
'''
HELPERS = """\
def shout(name: str) -> str:
    return name.upper()


def unused() -> None: ...
"""

SWAPPED = {
    "the body of an endpoint": ('"text": polite(name)', '"text": polite(name).upper()'),
    "a function that only endpoints call": ('{GREETING}, {name}"', '{GREETING}, dear {name}"'),
    "a value that only they read": ('"Hello"', '"Good day"'),
    "a comment and the numbers of lines": ("SIZE = 3\n", "# how large\nSIZE = 3\n"),
    "the docstring of the module": ('"""An app."""', '"""The app."""'),
    "a function that is new": ("def polite", "def other() -> int:\n    return 1\n\n\ndef polite"),
    "an import that is new": ("import os\n", "import json\nimport os\n"),
    "a class that is new": ("class Greeter", "class Thing:\n    pass\n\n\nclass Greeter"),
    "a function in another module": ("name.upper()", "name.title()"),
    "a function that is gone": ("\n\ndef unused() -> None: ...\n", ""),
}
RESTARTED = {
    "setup itself": ("load(SIZE)", "load(SIZE + 1)", "Greeter.setup changed, and the loaded app uses it"),
    "what setup calls": ("list(range(size))", "list(range(size))[:1]", "load changed, and the loaded app uses Greeter.setup, which uses it"),
    "what setup reads": ("SIZE = 3", "SIZE = 4", "SIZE changed, and"),
    "what is kept by a decorator": ("return length(name)", "return length(name) + 1", "kept changed, and @cache may keep what it was"),
    "what a kept result was made with": ("return len(name)", "return len(name) + 1", "length changed, and kept uses it"),
    "the parameters of an endpoint": ("def greet(self, name: str)", "def greet(self, name: str, age: int = 1)", "the declaration of Greeter.greet changed"),
    "the path of an endpoint": ('"/loud"', '"/louder"', "the declaration of Greeter.shout changed"),
    "an endpoint that is new": ('    @runner.endpoint("/loud")', '    @runner.endpoint("/new")\n    def new(self) -> int:\n        return 1\n\n    @runner.endpoint("/loud")', "Greeter.new is new"),
    "an endpoint that streams now": ("        return loud(name)", "        yield loud(name)", "the declaration of Greeter.shout changed"),
    "a setting of the app": ("    def setup", "    max_multiplexing = 2\n\n    def setup", "Greeter.max_multiplexing is new"),
    "a statement that runs on import": ("class Greeter", 'print("hello")\n\n\nclass Greeter', "the statement in line 31 is new"),
    "a name that is there twice": ("class Greeter", "def load(size: int) -> list[int]:\n    return []\n\n\nclass Greeter", "load is defined twice"),
    "setup that looks names up": ("self.model = load(SIZE)", 'self.model = globals()["load"](SIZE)', "Greeter.setup changed"),
    "a base class": ("class Greeter(runner.App)", "class Greeter(runner.App, object)", "the definition of Greeter changed"),
}  # fmt: skip


def judged(old: str, new: str) -> str:
    files = {"app.py": APP, "helpers.py": HELPERS}
    assert sum(old in text for text in files.values()) == 1
    edited = {file: Edition(file, text.replace(old, new)) for file, text in files.items() if old in text}
    _, doubt = judge({file: Edition(file, text) for file, text in files.items()}, edited)
    return doubt


@pytest.mark.parametrize("what", SWAPPED)
def test_what_the_model_was_not_made_with_is_swapped(what: str) -> None:
    assert judged(*SWAPPED[what]) == ""


@pytest.mark.parametrize("what", RESTARTED)
def test_what_the_model_routes_or_types_were_made_with_needs_a_restart_with_its_reason(what: str) -> None:
    old, new, reason = RESTARTED[what]

    assert judged(old, new).startswith(reason)


def test_names_that_setup_puts_together_at_run_time_are_a_doubt() -> None:
    source = APP.replace("load(SIZE)", 'getattr(self, "lo" + "ad")')
    edited = source.replace('"text": polite', '"words": polite')

    _, doubt = judge({"app.py": Edition("app.py", source)}, {"app.py": Edition("app.py", edited)})

    assert doubt == "Greeter.setup looks names up at run time"


@contextmanager
def developing(folder: Path) -> Iterator[Runner]:
    (folder / "app.py").write_text(APP)
    (folder / "helpers.py").write_text(HELPERS)
    with serving("app", "--reload", cwd=folder) as runner:
        runner.wait_for("reload.watching")
        yield runner
        runner.stop()  # the parent, and so its child


def edit(folder: Path, old: str, new: str, *, file: str = "app.py") -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_new_code_of_endpoints_is_served_by_the_process_that_has_the_model(tmp_path: Path) -> None:
    with developing(tmp_path) as runner:
        before = runner.post("/", {"name": "Ann"}).json()
        edit(tmp_path, '{GREETING}, {name}"', '{GREETING}, dear {name}"')
        swapped = runner.wait_for("reload.swapped")
        edit(tmp_path, '"Hello"', '"Good day"')
        runner.wait_for("reload.swapped", times=2)
        edit(tmp_path, "name.upper()", "name.swapcase()", file="helpers.py")
        runner.wait_for("reload.swapped", times=3)

        assert swapped["names"] == ["polite"]
        assert runner.post("/", {"name": "Ann"}).json() == {**before, "text": "Good day, dear Ann"}
        assert runner.post("/loud", {"name": "Ann"}).json() == "aNN"
        assert len(runner.events("app.ready")) == 1


def test_a_file_that_python_cannot_read_changes_nothing_and_says_where(tmp_path: Path) -> None:
    with developing(tmp_path) as runner:
        edit(tmp_path, "return loud(name)", "return loud(name")
        refused = runner.wait_for("reload.refused")
        assert runner.post("/loud", {"name": "Ann"}).json() == "ANN"

        edit(tmp_path, "return loud(name", "return loud(name) + '!'")
        runner.wait_for("reload.swapped")

        assert "line" in refused["reason"]
        assert "was never closed" in refused["reason"]
        assert runner.post("/loud", {"name": "Ann"}).json() == "ANN!"


def test_what_the_model_was_made_with_restarts_the_process_behind_the_open_socket(tmp_path: Path) -> None:
    with developing(tmp_path) as runner:
        before = runner.post("/", {"name": "Ann"}).json()
        edit(tmp_path, "SIZE = 3", "SIZE = 4")
        restarting = runner.wait_for("reload.restarting")
        runner.wait_for("app.ready", times=2)
        after = runner.post("/", {"name": "Ann"}).json()

        assert restarting["reason"].startswith("SIZE changed, and ")
        assert after["size"] == 4
        assert after["process"] != before["process"]


def test_an_app_that_cannot_be_loaded_or_set_up_waits_for_the_next_change(tmp_path: Path) -> None:
    with developing(tmp_path) as runner:
        edit(tmp_path, "import functools\n", "import functools\nimport nowhere\n")
        edit(tmp_path, "SIZE = 3", "SIZE = 4")
        runner.wait_for("reload.waiting")
        edit(tmp_path, "import nowhere\n", "")
        edit(tmp_path, "load(SIZE)", "load(SIZE) / 0")
        runner.wait_for("setup.failed")
        runner.wait_for("reload.watching", times=2)
        edit(tmp_path, "load(SIZE) / 0", "load(SIZE)")
        runner.wait_for("app.ready", times=2)

        assert "No module named 'nowhere'" in runner.log
        assert runner.post("/", {"name": "Ann"}).json()["size"] == 4
