"""One import name: the app's own `schemas` and `plugins` are its own, ours are runner's."""

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parent.parent


def test_an_app_with_its_own_schemas_and_plugins_gets_its_own(tmp_path: Path) -> None:
    (tmp_path / "schemas.py").write_text("mine = 'schemas'\n")
    (tmp_path / "plugins.py").write_text("mine = 'plugins'\n")
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]; sys.path.append(sys.argv[2])\n"
        "import runner, schemas, plugins, runner.schemas.health, runner.plugins.types\n"
        "assert (schemas.mine, plugins.mine) == ('schemas', 'plugins')\n"
        "assert runner.schemas.health.State.READY == 'ready'\n"
    )

    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(HOUSE)], check=True, cwd=tmp_path)


def test_the_wheel_holds_one_top_level_name(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(HOUSE)]
    subprocess.run(pip, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    inside = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(inside)], check=True)

    assert {path.name for path in inside.iterdir() if not path.name.endswith(".dist-info")} == {"runner"}
    program = "import runner; from runner.schemas.health import State; assert 'site' in runner.__file__"
    subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{str(inside)!r}]; {program}"], check=True)


def test_importing_runner_brings_no_server_and_no_torch() -> None:
    program = "import sys, runner; assert not {'torch', 'hypercorn', 'pydantic'} & set(sys.modules), set(sys.modules)"

    subprocess.run([sys.executable, "-c", program], check=True, cwd=HOUSE)
