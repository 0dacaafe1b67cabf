"""The pytest plugin and `runner new`: a project as an author has it, its tests run by a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from serving import HOUSE, written

PYTHON = Path(sys.executable)
OTHERS = ("hypothesispytest", "schemathesis", "anyio")  # plugins that take long to import


def run(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "FAL_", "PYTEST_"))}
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, PYTHON, "-m", "pytest", "-p", "no:cacheprovider", *(part for name in OTHERS for part in ("-p", f"no:{name}")), *arguments)


def runner_new(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, PYTHON, HOUSE / "runner.py", "new", *arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    done = run(folder, PYTHON.with_name("runner"), "new", "word_counter")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("word_counter/ is written: app.py, test_app.py, requirements.txt, ")
    assert done.stdout.endswith("\n    cd word_counter\n    python -m pytest\n    runner app:WordCounter\n")
    return folder / "word_counter"


# --- runner new


def test_a_new_project_passes_its_own_test_and_its_own_checks(project: Path) -> None:
    """Not mypy, which it passes too, since that takes as long as all of this file."""
    tested = pytest_in(project, "-q")
    checked = run(project, PYTHON, "-m", "ruff", "check", "--no-cache", ".")
    formatted = run(project, PYTHON, "-m", "ruff", "format", "--no-cache", "--check", ".")

    assert (tested.returncode, tested.stdout.splitlines()[-1].partition(" in ")[0]) == (0, "5 passed"), tested.stdout
    assert (checked.returncode, formatted.returncode) == (0, 0), checked.stdout + formatted.stdout


def test_a_new_project_holds_what_it_takes_to_ship_it(project: Path) -> None:
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file() and "cache" not in str(path)}
    pins = (project / "requirements.txt").read_text().split()

    assert files == {
        "app.py", "test_app.py", "requirements.txt", "requirements-dev.txt", "pyproject.toml", "Dockerfile",
        ".github/workflows/test.yml", ".gitlab-ci.yml", ".gitignore",
    }  # fmt: skip
    assert [pin.partition("==")[0] for pin in pins] == ["onerunner", "msgspec"]
    assert all(pin.partition("==")[2] for pin in pins)
    assert 'CMD ["app:WordCounter"]' in (project / "Dockerfile").read_text()
    assert "runner app:WordCounter --check" in (project / ".github/workflows/test.yml").read_text()
    assert not any("@" in (project / file).read_text().replace("actions/checkout@v4", "").replace("actions/setup-python@v5", "").replace("@runner.endpoint", "") for file in files)


@pytest.mark.parametrize(
    ("name", "class_name", "alias"),
    [("my-app", "MyApp", ""), ("gpt4_app", "Gpt4App", "gpt4-app"), ("SDXLModel", "SDXLModel", "sdxl-model"), ("input", "InputApp", "input")],
)
def test_the_name_of_a_project_becomes_that_of_its_class_and_of_its_app(tmp_path: Path, name: str, class_name: str, alias: str) -> None:
    from runner.plugins.scaffold import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main([name]) == 0
    source = (tmp_path / name / "app.py").read_text()

    assert f"class {class_name}(runner.App):" in source
    assert (f'app_name = "{alias}"' in source) == bool(alias)


def test_what_is_wrong_with_a_name_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    told = {
        ("bad name",): "new bad name: a name begins with a letter and has letters, digits, '-' and '_' in it; for example bad-name",
        ("../up",): "new ../up: a name begins with a letter and has letters, digits, '-' and '_' in it; for example up",
        ("none",): "new none: None is a word of Python's; for example none-app",
        ("there",): "new there: there exists already; choose another name, or remove it first",
        (): "new takes one name, that of the project; for example: runner new my-app",
        ("--help",): "new takes one name, that of the project; for example: runner new my-app",
    }
    program = (
        "import runner, json, sys, io\nsaid = []\n"
        f"for arguments in {[list(arguments) for arguments in told]!r}:\n"
        "    sys.stderr = io.StringIO()\n    said.append([runner.main(['new', *arguments]), sys.stderr.getvalue()])\n"
        "print(json.dumps(said))"
    )
    done = run(tmp_path, PYTHON, "-c", program, PYTHONPATH=str(HOUSE))

    assert json.loads(done.stdout) == [[2, f"runner: {line}\n"] for line in told.values()]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# --- the plugin

APP = """
import fal
import runner

class Greeter(fal.App):
    def setup(self):
        self.calls = 0

    @fal.endpoint("/")
    def greet(self, name: str) -> str:
        self.calls += 1
        print("greeting", name)
        if name == "nobody":
            raise LookupError("who?")
        return f"hello {name}"

    @fal.endpoint("/calls")
    def count(self) -> int:
        return self.calls

class Other(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return "other"
"""
TESTS = """
import sys
import pytest
import runner
from greeter import Other
from runner.testing import AppClient

def test_it_greets(app_client):
    assert app_client.greet("Ada") == "hello Ada"

def test_the_app_is_shared(app_client):
    assert app_client.count() == 1

@pytest.mark.runner_app("greeter:Greeter", fresh=True)
def test_one_of_its_own(app_client):
    assert app_client.count() == 0

@pytest.mark.runner_app(app=Other)
def test_another_app(app_client):
    assert app_client.run() == "other"

@pytest.mark.runner_app("greeter:Greeter", settings={"auth_key": ["secret"]}, headers={"authorization": "Key secret"})
def test_options(app_client):
    assert app_client.count() == 0

def test_a_server(runner_server):
    assert runner_server.url.startswith("http://127.0.0.1:")
    assert runner_server.greet(name="Bob") == "hello Bob"

def test_what_is_printed_is_captured(app_client, capsys):
    app_client.greet("Cy")
    assert capsys.readouterr().out == "greeting Cy\\n"

def test_logs_of_a_job(app_client):
    job = app_client.greet.submit(name="Di")
    job.result()
    assert job.logs == ["greeting Di"]

@pytest.mark.gpu
def test_on_a_gpu():
    raise AssertionError

def test_that_fails(app_client):
    print("printed by the test")
    app_client.greet("nobody")
"""


def test_the_fixtures_give_the_app_that_is_named_and_a_failure_shows_its_log(tmp_path: Path) -> None:
    written(tmp_path, APP, "greeter.py")
    written(tmp_path, TESTS, "test_greeter.py")
    written(tmp_path, '[pytest]\nrunner_app = greeter.py:Greeter\naddopts = --strict-markers\n', "pytest.ini")
    done = pytest_in(tmp_path, "-rs")
    report = done.stdout

    assert "1 failed, 8 passed, 1 skipped" in report, report
    assert "needs a CUDA device, and torch 2" in report
    failed = report[report.index("test_that_fails") :]
    assert 'app_client.greet("nobody")' in failed
    assert "E       runner.testing.AppClientError: Failed to POST http://app.test/: 500" in failed
    assert "printed by the test\ngreeting nobody\n" in failed
    log = failed[failed.index("Captured runner log") :]
    assert "stdout: greeting nobody" in log
    assert "LookupError: who?" in log
    assert "POST / 500" in log
    assert "greeting Ada" not in log
    assert str(HOUSE / "plugins") not in log


def test_a_project_that_merely_has_runner_installed_notices_nothing(tmp_path: Path) -> None:
    """Neither runner nor torch is imported, and a marker of the same name means what it meant; who asks and names no app is told how."""
    written(
        tmp_path,
        """
import sys
import pytest
@pytest.mark.gpu
def test_their_own_marker():
    assert not {"runner", "torch", "hypercorn", "msgspec"} & set(sys.modules)
def test_that_asks(app_client):
    pass
""",
        "test_theirs.py",
    )
    written(tmp_path, "[pytest]\nmarkers = gpu: ours\naddopts = --strict-markers\n", "pytest.ini")
    report = pytest_in(tmp_path, "-q").stdout

    assert "1 passed, 1 error" in report, report
    assert "app_client does not know which app it is of; name the app: in pyproject.toml" in report
    assert '@pytest.mark.runner_app("app:MyApp")' in report
