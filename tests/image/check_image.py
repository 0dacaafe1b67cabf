"""The image, built and run as an operator would, without a Docker engine: `make image-test`.

buildah builds the Dockerfile on a Debian made by debootstrap (kept in CACHE between runs) and runs
it with chroot isolation, which shares the host's network. How this machine's pip is set up goes
into the build as a secret and as mounts. Not shown here: the default base image, and Docker's own
timing of the health check.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pages import DOCS, fences

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("RUNNER_IMAGE_CACHE", "/var/tmp/onerunner-image"))
BUILDAH = ["buildah", "--root", f"{CACHE}/storage", "--runroot", f"{CACHE}/run"]
BASE, IMAGE = "localhost/onerunner-base:bookworm", "localhost/onerunner:test"
# Where packages come from. What else this machine sets (constraints, say) is no concern of the image.
PASSED_ON = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "proxy", "timeout")
START_SECONDS = 60
STOP_SECONDS = 20
MB = 1_000_000


def buildah(*arguments: str | Path) -> str:
    done = subprocess.run([*BUILDAH, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"buildah {arguments[0]}:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def base() -> str:
    """A Debian with Python, a CA bundle and nothing more."""
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if missing:
        pytest.exit(f"no {' and no '.join(missing)} here: apt-get install -y buildah debootstrap", returncode=1)
    if os.geteuid() != 0:
        pytest.exit("debootstrap and chroot need root: sudo make image-test", returncode=1)
    known = subprocess.run([*BUILDAH, "inspect", "--type", "image", BASE], capture_output=True)
    if known.returncode != 0:
        files = CACHE / "rootfs"
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir(parents=True)
        packages = "python3,python3-venv,ca-certificates"
        made = ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(files)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(files / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(files / "var/lib/apt/lists", ignore_errors=True)
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, files, "/")
        buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(files)
    return BASE


@pytest.fixture(scope="session")
def image(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(IMAGE, ROOT, base, tmp_path_factory.mktemp("pip"))


def build(name: str, context: Path, base: str, private: Path) -> str:
    buildah(
        "bud", "--isolation", "chroot", "--layers", "--format", "docker", "--build-arg", f"BASE={base}",
        *pip_settings(private), "--tag", name, context,
    )  # fmt: skip
    return name


def pip_settings(private: Path) -> list[str]:
    """Options that give the build this machine's pip settings: a secret, and mounts for local files."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        scope, _, key = name.partition(".")
        if scope in ("global", "install", ":env:") and key in PASSED_ON:
            found[key] = str(ast.literal_eval(value))
    mounts: list[str] = []

    def mounted(folder: Path) -> str:
        inside = f"/mnt/{len(mounts)}"
        mounts.append(f"--volume={folder}:{inside}:ro")
        return inside

    for key in ("index-url", "extra-index-url", "find-links"):
        places = []
        for place in found.get(key, "").split():
            local = place.startswith(("file://", "/"))
            path = Path(urlsplit(place).path)
            if local and key == "find-links":
                place = mounted(path)
            elif local:  # an index links to files beside itself
                place = f"file://{mounted(path.parent)}/{path.name}"
            places.append(place)
        if places:
            found[key] = "\n    ".join(places)
    if "cert" in found:
        (private / "cert").mkdir(exist_ok=True)
        shutil.copy(found["cert"], private / "cert/ca.pem")
        found["cert"] = f"{mounted(private / 'cert')}/ca.pem"
    file = private / "pip.conf"
    file.touch(mode=0o600)
    file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in found.items()))
    return [f"--secret=id=pip,src={file}", *mounts]


def described(image: str) -> Any:
    return json.loads(buildah("inspect", "--type", "image", image))


@pytest.fixture
def container(image: str) -> Iterator[str]:
    """A container of the image with examples/hello.py as /app/app.py."""
    name = buildah("from", image)
    yield name
    buildah("rm", name)


def inside(container: str, *command: str, env: dict[str, str] | None = None) -> list[str]:
    """The command line that runs `command` in the container, as the image's own user."""
    app = f"{ROOT}/examples/hello.py:/app/app.py:ro"
    variables = [f"--env={name}={value}" for name, value in (env or {}).items()]
    return [*BUILDAH, "run", "--isolation", "chroot", "--volume", app, *variables, container, "--", *command]


def entrypoint(image: str) -> list[str]:
    found: list[str] = described(image)["Docker"]["config"]["Entrypoint"]
    return found


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone when the block ends, whatever happened in it."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, StopIteration):
                    os.kill(served_by(process.pid), signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
                process.kill()


def served_by(pid: int) -> int:
    """The runner's own process below `pid`: the first one that is not a program which starts it."""
    while Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].startswith((b"buildah", b"unshare")):
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
        pid = int(next(iter(children)))
    return pid


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def fetch(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        return json.load(response)


def until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            fetch(port, "/health/ready")
        except OSError as error:  # nobody listens yet, or 503
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"not ready on port {port}; exit code {process.poll()}; it said:\n{log.read_text()[-4000:]}")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def served(image: str, container: str, port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`docker run -e RUNNER_PORT=… IMAGE app:MyApp`, ready."""
    command = inside(container, *entrypoint(image), "app:MyApp", env={"RUNNER_PORT": str(port)})
    with running(command, tmp_path / "log") as process:
        until_ready(port, process, tmp_path / "log")
        yield process


def test_it_answers_a_request(served: subprocess.Popen[bytes], port: int) -> None:
    assert fetch(port, "/", {"prompt": "image"}) == {"text": "Hello, image!"}


def test_it_runs_as_a_user_without_powers(served: subprocess.Popen[bytes]) -> None:
    status = status_of(served_by(served.pid))

    assert status["Uid"].split() == ["1000"] * 4
    assert int(status["CapEff"], 16) == 0


def test_its_health_check_passes_once_it_is_ready_and_not_without_it(
    served: subprocess.Popen[bytes], image: str, container: str, port: int
) -> None:
    kind, *command = described(image)["Docker"]["config"]["Healthcheck"]["Test"]

    while_serving = subprocess.run(inside(container, *command, env={"RUNNER_PORT": str(port)}))
    elsewhere = subprocess.run(inside(container, *command, env={"RUNNER_PORT": str(free_port())}), stderr=subprocess.DEVNULL)

    assert kind == "CMD"  # no shell in between
    assert while_serving.returncode == 0
    assert elsewhere.returncode == 1


def test_sigterm_ends_it_with_code_zero(served: subprocess.Popen[bytes]) -> None:
    os.kill(served_by(served.pid), signal.SIGTERM)

    assert served.wait(STOP_SECONDS) == 0


def test_sigterm_ends_it_when_it_is_process_1(image: str, container: str, port: int, tmp_path: Path) -> None:
    """The kernel drops signals that process 1 has no handler for, and `docker stop` then waits and kills."""
    app = Path(buildah("mount", container)) / "app"
    shutil.copy(ROOT / "examples/hello.py", app / "app.py")
    config = described(image)["Docker"]["config"]
    env = dict(item.split("=", 1) for item in config["Env"]) | {"RUNNER_PORT": str(port)}
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--root", str(app.parent), "--wd", "/app"]
    command = [*namespace, "--setuid", "1000", "--setgid", "1000", "env", *(f"{k}={v}" for k, v in env.items())]
    log = tmp_path / "log"

    with running([*command, *config["Entrypoint"], "app:MyApp"], log) as process:
        until_ready(port, process, log)
        runner = served_by(process.pid)
        seen_by_itself = status_of(runner)["NSpid"].split()[-1]
        os.kill(runner, signal.SIGTERM)
        code = process.wait(STOP_SECONDS)

    assert seen_by_itself == "1"
    assert code == 0, log.read_text()[-4000:]


def test_an_image_made_as_the_guide_says_serves_its_app(image: str, port: int, tmp_path: Path) -> None:
    for fence in fences(DOCS / "deploying.md"):
        if (name := fence.attributes.get("title")) in ("Dockerfile", "app.py", "requirements.txt"):
            (tmp_path / name).write_text(fence.text.replace("FROM runner\n", f"FROM {image}\n"))
    derived = "localhost/onerunner:guide"
    buildah("bud", "--isolation", "chroot", "--format", "docker", "--tag", derived, tmp_path)
    container = buildah("from", derived)
    try:
        config = described(derived)["Docker"]["config"]
        env = [f"--env=RUNNER_PORT={port}"]
        command = [*BUILDAH, "run", "--isolation", "chroot", *env, container, "--", *config["Entrypoint"], *config["Cmd"]]
        with running(command, tmp_path / "log") as process:
            until_ready(port, process, tmp_path / "log")
            assert fetch(port, "/", {"name": "image"}) == "hello image"
            os.kill(served_by(process.pid), signal.SIGTERM)
            assert process.wait(STOP_SECONDS) == 0
        assert config["User"] == "runner"
    finally:
        buildah("rm", container)
        buildah("rmi", derived)


def test_arguments_after_the_image_reach_the_runner(image: str, container: str, port: int, tmp_path: Path) -> None:
    command = inside(container, *entrypoint(image), "app:MyApp", "--port", str(port))

    with running(command, tmp_path / "log") as process:
        until_ready(port, process, tmp_path / "log")


def test_without_an_app_it_says_so_and_ends_with_code_two(image: str, container: str) -> None:
    done = subprocess.run(inside(container, *entrypoint(image)), capture_output=True, text=True, timeout=START_SECONDS)

    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_it_listens_to_the_world_on_port_8000(image: str) -> None:
    config = described(image)["Docker"]["config"]

    assert {"RUNNER_HOST=0.0.0.0", "RUNNER_PORT=8000"} <= set(config["Env"])
    assert (config["WorkingDir"], config["User"]) == ("/app", "runner")
    assert config["Cmd"] in (None, [])


def test_pip_settings_of_the_build_are_not_in_it(image: str, container: str, tmp_path: Path) -> None:
    pip_settings(tmp_path)
    files = Path(buildah("mount", container))
    hosts = {urlsplit(word).hostname for word in (tmp_path / "pip.conf").read_text().split()} - {None}

    assert not [file for file in ("etc/pip.conf", "root/.config/pip", "root/.pip") if (files / file).exists()]
    assert not [host for host in hosts if str(host) in json.dumps(described(image))]
    assert not [path for path in (files / "mnt").rglob("*") if path.is_file()]


def test_an_edit_to_our_source_reuses_the_layers_of_the_dependencies(image: str, base: str, tmp_path: Path) -> None:
    tree, private = tmp_path / "tree", tmp_path / "private"
    private.mkdir()
    tree.mkdir()
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt", "README.md", "runner.py"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, tree)
    for name in ("plugins", "schemas", "typings"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True)
    with (tree / "runner.py").open("a") as source:
        source.write(f"\n# edited {time.time_ns()}\n")

    edited = build("localhost/onerunner:edited", tree, base, private)

    before, after = layers(image), layers(edited)
    changed = [place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert changed == [changed[0]], "one layer holds our source"
    assert changed[0] > len(layers(base)), "the dependencies stand before it"
    buildah("rmi", edited)


def layers(image: str) -> list[str]:
    found: list[str] = described(image)["Docker"]["rootfs"]["diff_ids"]
    return found


def test_it_adds_less_than_100_megabytes_to_its_base(image: str, base: str) -> None:
    added = bytes_of(image) - bytes_of(base)

    assert added < 100 * MB, f"{added / MB:.0f} MB"


def bytes_of(image: str) -> int:
    container = buildah("from", image)
    try:
        total = subprocess.run(["du", "--summarize", "--bytes", buildah("mount", container)], capture_output=True, text=True)
        return int(total.stdout.split()[0])
    finally:
        buildah("rm", container)
