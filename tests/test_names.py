"""One import name: the app's own `schemas` and `plugins` are its own, ours are runner's, however it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from serving import HOUSE, running, written

APP = """
import plugins, schemas
import runner
import runner.plugins.types, runner.schemas.health

assert (plugins.mine, schemas.mine) == ("plugins", "schemas")

class Own(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return f"{schemas.mine} {runner.schemas.health.State.READY}"
"""
BUILD = "import sys; from hatchling.build import {0}; print({0}(sys.argv[1]))"


def unpacked(kind: str, folder: Path) -> Path:
    """What `pip install` lays down of a wheel or of an editable install."""
    subprocess.run([sys.executable, "-c", BUILD.format(kind), folder], check=True, cwd=HOUSE, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("build_editable", tmp_path_factory.mktemp("editable"))


@pytest.mark.parametrize("form", ["checkout", "checkout as module", "wheel", "editable"])
def test_an_app_with_its_own_schemas_and_plugins_gets_its_own(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    written(tmp_path, APP)
    written(tmp_path, "mine = 'schemas'\n", "schemas.py")
    written(tmp_path, "mine = 'plugins'\n", "plugins.py")
    arguments = ["app:Own", "--port", "0", "--log-format", "json"]
    command, cwd, env = [HOUSE / "runner.py", *arguments], tmp_path, {}
    if form == "checkout as module":
        command, cwd = ["-m", "runner", *arguments, "--app-dir", tmp_path], HOUSE
    elif form == "wheel":
        command, env = ["-m", "runner", *arguments], {"PYTHONPATH": str(request.getfixturevalue("wheel"))}
    elif form == "editable":
        (links,) = request.getfixturevalue("editable").glob("*.pth")
        command, env = ["-m", "runner", *arguments], {"PYTHONPATH": links.read_text().strip()}

    with running([sys.executable, *command], cwd=cwd, env=env) as runner:
        runner.wait_for("app.ready")
        assert runner.post("/").json() == "schemas ready"


def test_the_apps_folder_is_searched_and_ours_is_not(tmp_path: Path) -> None:
    written(tmp_path, "import runner\nimport plugins\n")
    done = subprocess.run([sys.executable, HOUSE / "runner.py", "app"], cwd=tmp_path, capture_output=True, text=True)

    assert "ModuleNotFoundError: No module named 'plugins'" in done.stderr


def test_a_file_elsewhere_brings_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    written(folder, APP)
    written(folder, "mine = 'schemas'\n", "schemas.py")
    written(folder, "mine = 'plugins'\n", "plugins.py")
    for target in ("deep/er/app.py:Own", "deep/er/app.py::Own", "deep/er/app.py", str(folder / "app.py")):
        done = subprocess.run(
            [sys.executable, HOUSE / "runner.py", target, "--check"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout.startswith("app Own, called local/own\n"), done.stderr


def test_the_wheel_holds_one_top_level_name_and_the_module_that_pytest_loads(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"runner", "onerunner_pytest.py"}
    ours = {str(path.relative_to(HOUSE)) for room in ("plugins", "schemas") for path in (HOUSE / room).rglob("*.py")}
    held = {str(path.relative_to(wheel / "runner")) for path in (wheel / "runner").rglob("*.py")}
    assert held == ours | {"__init__.py", "__main__.py", "testing.py"}


def test_the_wheel_holds_the_page_of_the_playground(wheel: Path) -> None:
    page = Path("plugins") / "playground" / "page"

    assert {file.name for file in (wheel / "runner" / page).iterdir()} == {file.name for file in (HOUSE / page).iterdir()}


def test_an_editable_install_is_the_checkout_itself(editable: Path) -> None:
    assert {path.suffix for path in editable.iterdir()} == {".pth", ".dist-info"}
    (links,) = editable.glob("*.pth")
    assert os.path.samefile(Path(links.read_text().strip()) / "runner" / "__init__.py", HOUSE / "runner.py")


def test_importing_runner_brings_no_server_and_no_torch() -> None:
    program = "import sys, runner; assert not {'torch', 'hypercorn', 'pydantic', 'httpcore'} & set(sys.modules), set(sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True, cwd=HOUSE)


@pytest.mark.parametrize("form", ["checkout", "wheel", "editable"])
def test_the_testing_kit_is_runner_testing(form: str, request: pytest.FixtureRequest) -> None:
    place = HOUSE
    if form == "wheel":
        place = request.getfixturevalue("wheel")
    elif form == "editable":
        (links,) = request.getfixturevalue("editable").glob("*.pth")
        place = Path(links.read_text().strip())
    program = (
        "import runner.testing; from runner.testing import AppClient; import onerunner_pytest\n"
        "assert runner.testing.AppClient is AppClient is runner.plugins.testing.AppClient\n"
        "print(runner.testing.__file__)"
    )
    path = [str(place), *([str(HOUSE / "typings")] if form == "checkout" else [])]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/", env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    )

    assert done.stdout.startswith(str(place))


def test_run_as_a_script_there_is_one_app_class(tmp_path: Path) -> None:
    written(
        tmp_path,
        "import sys, runner\nassert not hasattr(sys.modules['__main__'], 'Service') or sys.modules['__main__'] is not runner\n"
        "class Own(runner.App):\n    @runner.endpoint('/')\n    def run(self) -> str: return 'x'\n",
    )
    done = subprocess.run([sys.executable, HOUSE / "runner.py", "app:Own", "--check"], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
