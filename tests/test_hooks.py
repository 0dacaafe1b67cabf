"""Every hook has a page in docs/plugins with its exact signature, and a stranger's plugin can use it."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy
import pytest
from pages import DOCS, Reader, fences
from runner.plugins import hookspecs
from runner.plugins.queue.contract import StoreContract
from runner.plugins.registry import BUILT_IN
from serving import HOUSE, serving, written

import runner

APP = """
import runner
class Plain(runner.App):
    @runner.endpoint("/")
    def run(self, name: str = "you") -> str:
        if name == "odd":
            raise LookupError("odd")
        return name
"""


def hooks() -> dict[str, str]:
    """Each hook's signature as written in hookspecs.py."""
    found = {}
    for name, function in vars(hookspecs).items():
        if hasattr(function, "runner_spec"):
            source = " ".join(line.strip() for line in inspect.getsource(function).split('"""')[0].splitlines())
            found[name] = re.sub(r"^.*?(def .*?):$", r"\1", source.strip())
    return found


def test_each_hook_has_a_page_with_its_exact_signature() -> None:
    pages = {page.stem: fences(page)[0].text.strip() for page in (DOCS / "plugins").glob("*.md")}

    assert pages == hooks()
    assert set(re.findall(r"\(plugins/(\w+)\.md\)", (DOCS / "hooks.md").read_text())) == set(hooks())


def test_the_order_of_plugins_is_told_for_every_hook() -> None:
    assert set(hookspecs.ORDER) == set(hooks())


def test_every_hook_says_when_it_is_asked() -> None:
    for name in hooks():
        assert "Asked once" in (getattr(hookspecs, name).__doc__ or ""), name


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(
        tmp_path_factory.mktemp("plugin"),
        """
import asyncio, contextlib, contextvars, sys, types
import runner

__version__ = "1.2.3"

@runner.hookimpl
def provide_modules(names):
    module = types.ModuleType("gift")
    module.App = names["App"]
    return {"gift": module}

@runner.hookimpl
def describe_app(target):
    if getattr(target, "is_served_by_a_stranger", False):
        return runner.describe_app(type(target.__name__, (target, runner.App), {"__module__": target.__module__}))

class Money:
    def __init__(self, cents): self.cents = cents

class MoneyCodec:
    def decode(self, body): return Money(int(body))
    def convert(self, value, *, text=False): return Money(int(value))
    def encode(self, value): return b"%d" % value.cents
    def schema(self, *, output): return {"type": "integer"}, {}

@runner.hookimpl
def type_codec(type):
    if type.__name__ == "Money":
        return MoneyCodec()

class Shelf:
    def __init__(self): self.files = {}
    def place(self, file): return runner.FilePlace(key="k", url="https://shelf.example/" + file.name, file=file)
    def write(self, place): return Box(self.files, place)
    def read(self, url): return None

class Box:
    def __init__(self, files, place): self.files, self.place, self.held = files, place, b""
    def write(self, chunk): self.held += chunk
    def commit(self): self.files[self.place.url] = self.held
    def abort(self): pass

@runner.hookimpl
def file_store(settings):
    global shelf
    shelf = Shelf()
    return shelf

@runner.hookimpl
def wrap_bind(endpoint, service):
    def wrap(bind):
        def read(request):
            arguments = bind(request)
            if arguments.get("name") == "nobody":
                raise runner.HTTPError(403, "nobody may not call")
            return arguments
        return read
    return wrap

@runner.hookimpl
def wrap_call(endpoint):
    def wrap(call):
        async def called(request, arguments):
            response = await call(request, arguments)
            response.headers["x-wrapped"] = endpoint.path
            return response
        return called
    return wrap

@runner.hookimpl
def intercept_requests(service):
    return lambda request: runner.Response("stop", 402) if "x-stop" in request.headers else None

@runner.hookimpl
def mount_app(service):
    return [runner.Mount(prefix="/under")]

@runner.hookimpl
def register_routes(service):
    def greet(request):
        return runner.Response("hello " + request.path_parameters["who"])
    return [runner.Route(method="GET", path="/greet/{who}", answer=greet),
            runner.Route(method="GET", path="/health/live", answer=lambda request: runner.Response("mine"))]

@runner.hookimpl
def map_error(service):
    return lambda error: runner.Response("not found", 410) if isinstance(error, LookupError) else None

ENTERED = contextvars.ContextVar("entered", default="")

@runner.hookimpl
def enter_requests(service):
    return lambda request: ENTERED.set(request.path)

@runner.hookimpl
def observe_errors(service):
    def hear(error):
        if isinstance(error, LookupError):
            error.answer_headers = {"x-heard": str(error)}
    return hear

@runner.hookimpl
def response_headers(service):
    return lambda request: [(b"x-app", service.app.name.encode()), (b"x-entered", ENTERED.get().encode())]

@runner.hookimpl
def observe_requests(service):
    return lambda finished: print("observed", finished.path, finished.status)

class Teapot(asyncio.Protocol):
    def __init__(self, hand_over): self.hand_over = hand_over
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data):
        if not data.startswith(b"BREW"):
            return self.hand_over(self.transport, data)
        self.transport.write(b"HTTP/1.1 418 Teapot\\r\\n\\r\\n")
        self.transport.close()

class Teapots:
    def connect(self, app, hand_over): return Teapot(hand_over)
    async def close(self, seconds): print("teapots closed")

@runner.hookimpl
def connection_protocol(service):
    return Teapots()

@runner.hookimpl
def observe_output(service):
    heard = sys.modules[__name__].heard = []
    return lambda request_id, stream, line, when: heard.append((request_id is None, stream, line))

@runner.hookimpl
def queue_store(service):
    return None

@runner.hookimpl
def sign_webhooks(service):
    return None

@runner.hookimpl
def health_checks(service):
    async def look():
        print("looked")
        return None
    return {"stranger": look}

@runner.hookimpl
def lifespan(service):
    @contextlib.asynccontextmanager
    async def around():
        print("entered")
        yield
        print("left")
    return around()
""",
        "stranger.py",
    )


def test_a_strangers_plugin_answers_every_hook(stranger: Path, tmp_path: Path) -> None:
    app = written(
        tmp_path,
        APP.replace("import runner\n", "import runner, stranger, gift\nassert gift.App is runner.App\n")
        + """
    @runner.endpoint("/money")
    def money(self, amount: stranger.Money) -> stranger.Money:
        print("heard")
        return stranger.Money(amount.cents * 2)
    @runner.endpoint("/file")
    def file(self) -> list:
        file = runner.File.from_bytes(b"on the shelf", file_name="a.txt")
        return [file.url, stranger.shelf.files[file.url].decode()]
    def teardown(self):
        assert (False, "stdout", "heard") in stranger.heard
        assert (True, "stdout", "entered") in stranger.heard
        print("teardown")
class Foreign:
    is_served_by_a_stranger = True
    @runner.endpoint("/")
    def run(self) -> str: return "foreign"
""",
    )
    env = {"PYTHONPATH": str(stranger.parent)}
    with serving(f"{app}:Plain", "--plugin", "stranger", "--health-seconds", "0.05", env=env) as served:
        assert served.post("/?name=me").json() == "me"
        assert served.post("/?name=nobody").status_code == 403
        odd = served.post("/?name=odd")
        assert (odd.status_code, odd.headers["x-heard"]) == (410, "odd")
        assert served.post("/under/?name=me").headers["x-wrapped"] == "/"
        assert served.post("/money?amount=21").json() == 42
        assert served.post("/file").json() == ["https://shelf.example/a.txt", "on the shelf"]
        assert served.post("/files", content=b"x", headers={"x-fal-file-name": "b.txt"}).json()["url"] == "https://shelf.example/b.txt"
        assert served.get("/files/x/y").status_code == 404
        assert served.post("/", headers={"x-stop": "1"}).status_code == 402
        assert served.get("/greet/you").text == "hello you"
        assert served.get("/health/live").text == "mine"
        assert served.get("/nowhere").headers["x-app"] == "Plain"
        assert served.get("/nowhere").headers["x-entered"] == "/nowhere"
        with socket.create_connection(("127.0.0.1", served.port)) as caller:
            caller.sendall(b"BREW /coffee HTTP/1.1\r\n\r\n")
            assert caller.recv(100).startswith(b"HTTP/1.1 418")
        served.wait_for("app.output", text="looked")
        served.stop()
    with serving(f"{app}:Foreign", "--plugin", "stranger", env=env) as foreign:
        assert foreign.post("/").json() == "foreign"

    said = [line["text"] for line in served.events("app.output")]
    assert "observed /nowhere 404" in said
    assert said[0] == "entered"
    assert said[-3:] == ["teapots closed", "teardown", "left"]
    (listed,) = served.events("plugins.loaded")
    assert any(line.startswith("stranger 1.2.3 (connection_protocol, describe_app, enter_requests, file_store, health_checks") for line in listed["plugins"])


def test_the_stranger_answers_all_hooks_that_there_are(stranger: Path) -> None:
    source = stranger.read_text()

    assert set(re.findall(r"@runner.hookimpl\ndef (\w+)", source)) == set(hooks())


OWN_APPS = ("provide_modules", "describe_app", "type_codec")  # their examples need one that no plugin beside them bears


def test_the_example_of_each_hook_works_beside_all_others(tmp_path: Path) -> None:
    shared = [page for page in sorted((DOCS / "plugins").glob("*.md")) if page.stem not in OWN_APPS]
    with Reader(tmp_path) as reader:
        reader.write(fences(DOCS / "hooks.md")[0])
        blocks = {page.stem: fences(page) for page in shared}
        plugins = [reader.write(fence).name for found in blocks.values() for fence in found if fence.text.count("@runner.hookimpl")]
        reader.start("runner app:Greeter --health-seconds 0.05 --allow-private-hosts localhost:9000 " + " ".join(f"--plugin {p}" for p in plugins))
        assert reader.runner is not None
        reader.keep()
        for found in blocks.values():
            reader.read(found)

        reader.runner.wait_for("health_check.failed", check="maintenance")
        notice = tmp_path / "runner.url"
        assert notice.exists()
        assert reader.runner.stop() == 0
        assert not notice.exists()
        assert not (tmp_path / ".runner" / "queue").exists()


class TestTheStoreOfTheExample(StoreContract):
    """It passes what every store must pass; all of it lives in one process, so opening it again gives the same."""

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Any]:
        (source,) = [fence for fence in fences(DOCS / "plugins" / "queue_store.md") if "title" in fence.attributes]
        scope: dict[str, Any] = {}
        exec(compile(source.text, source.place, "exec"), scope)
        store = scope["Memory"]()
        return lambda: store


@pytest.mark.parametrize("hook", OWN_APPS)
def test_the_example_that_brings_its_own_app_works(tmp_path: Path, hook: str) -> None:
    with Reader(tmp_path) as reader:
        reader.read(fences(DOCS / "plugins" / f"{hook}.md"))


AROUND = """
import contextlib
@contextlib.asynccontextmanager
async def around():
    raise OSError("no port")
    yield
@runner.hookimpl
def lifespan(): return around()
"""


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("@runner.hookimpl\ndef wrap_cal(endpoint): ...", "unknown hook 'wrap_cal'"),
        ("@runner.hookimpl\ndef wrap_call(enpoint): ...", "enpoint"),
        ("@runner.hookimpl\ndef lifespan(service): raise ValueError('no')", "lifespan failed with ValueError('no')"),
        ("@runner.hookimpl\ndef register_routes(service): raise ValueError('no')", "its hook register_routes failed with ValueError('no')"),
        ("@runner.hookimpl\nasync def wrap_call(endpoint): ...", "its hook wrap_call is async; write def"),
        ("this is no python", "invalid syntax"),
        ("def wrap_call(): ...", "answers no hook; put @runner.hookimpl on a function"),
        ("raise ValueError('no disk')", "could not be loaded: ValueError: no disk (broken.py, line 2)"),
        ("import not_there", "could not be loaded: ModuleNotFoundError: No module named 'not_there'"),
        ("@runner.hookimpl\ndef type_codec(type): raise ValueError('no')", "its hook type_codec failed with ValueError('no')"),
        ("@runner.hookimpl\ndef queue_store(service): raise ValueError('no')", "its hook queue_store failed with"),
        ("@runner.hookimpl\ndef wrap_call(): return lambda call: None", "what its hook wrap_call returned gave NoneType"),
        ("@runner.hookimpl\ndef wrap_call(): return lambda call: 1 / 0", "what its hook wrap_call returned failed with ZeroDivisionError"),
        ("@runner.hookimpl\ndef intercept_requests(): return 1", "its hook intercept_requests gave int; it returns a function"),
        (AROUND, "its lifespan failed on entering with OSError('no port')"),
    ],
)
async def test_a_broken_plugin_stops_the_start_and_is_named(tmp_path: Path, source: str, told: str) -> None:
    class Plain(runner.App):
        @runner.endpoint("/")
        def run(self, name: str = "you") -> str:
            return name

    plugin = str(written(tmp_path, f"import runner\n{source}\n", "broken.py"))
    with pytest.raises(runner.ConfigError) as stopped:
        async with runner.asgi(Plain, runner.Settings(plugin=[plugin], data_dir=str(tmp_path / "data"))).running():
            raise AssertionError("it started")

    assert told in str(stopped.value)
    assert f"plugin {plugin}" in str(stopped.value)


@pytest.mark.parametrize("source", ["import not_there", "@runner.hookimpl\ndef lifespan(): raise OSError('no port')", AROUND])
def test_what_is_wrong_with_a_plugin_is_one_line_and_exit_code_2(tmp_path: Path, source: str) -> None:
    app = written(tmp_path, APP)
    written(tmp_path, f"import runner\n{source}\n", "broken.py")
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", app, "--plugin", "broken.py", "--port", "0", "--log-level", "error"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert (done.returncode, done.stderr.count("\n"), done.stderr[:24]) == (2, 1, "runner: plugin broken.py")


FAILING = """
import runner

def raising(*arguments, **named):
    raise ZeroDivisionError("the plugin's")

def on(name, function):
    return lambda request, *more: raising() if request.headers.get("x-fail") == name else function(request, *more)

@runner.hookimpl
def intercept_requests(service):
    return on("intercept", lambda request: None)

@runner.hookimpl
def response_headers(service):
    return on("headers", lambda request: [(b"x-well", b"yes")])

@runner.hookimpl
def wrap_bind(endpoint):
    return lambda bind: on("bind", bind)

@runner.hookimpl
def wrap_call(endpoint):
    return lambda call: on("call", call)

@runner.hookimpl
def register_routes(service):
    return [runner.Route(method="GET", path="/own", answer=on("route", lambda request: runner.Response("well")))]

@runner.hookimpl
def map_error(service):
    return lambda error: raising() if isinstance(error, LookupError) else None

@runner.hookimpl
def observe_requests(service):
    return lambda finished: raising() if finished.path == "/seen" else None
"""


def test_a_plugin_that_raises_in_a_request_fails_that_request_and_is_named_and_counted(tmp_path: Path) -> None:
    app = written(tmp_path, APP + """
    @runner.endpoint("/own-fault")
    def own_fault(self) -> str:
        return 1 / 0
    @runner.endpoint("/seen")
    def seen(self) -> str:
        return "seen"
    @runner.endpoint("/items")
    def items(self):
        yield from "ab"
""")
    plugin = str(written(tmp_path, FAILING, "failing.py"))
    with serving(app, "--plugin", plugin) as served:
        for times, (name, path) in enumerate([("intercept", "/"), ("headers", "/"), ("bind", "/"), ("call", "/")], 1):
            failed = served.post(path, headers={"x-fail": name})
            assert (failed.status_code, failed.json()) == (500, {"detail": "Internal Server Error"}), name
            assert "ZeroDivisionError: the plugin's" in served.wait_for("request.failed", plugin=plugin, times=times)["exception"]
            assert served.post("/?name=next").json() == "next"
        assert served.get("/own", headers={"x-fail": "route"}).status_code == 500
        served.wait_for("request.failed", plugin=plugin, times=5)

        assert served.post("/?name=odd").status_code == 500
        served.wait_for("plugin.failed", hook="map_error", plugin=plugin)
        assert "plugin" not in served.wait_for("request.failed", times=6), "it was the app that raised LookupError"
        assert served.post("/seen").json() == "seen"
        served.wait_for("plugin.failed", hook="observe_requests", plugin=plugin)
        served.wait_for("request.finished", path="/seen")
        assert served.post("/own-fault").status_code == 500
        assert "plugin" not in served.wait_for("request.failed", endpoint="/own-fault")
        assert served.post("/items", headers={"x-fail": "headers"}).status_code == 500
        assert served.post("/items").text == 'data: "a"\n\ndata: "b"\n\n'
        assert f'runner_plugin_failures_total{{plugin="{plugin}"}} 8.0' in served.get("/metrics").text


def test_an_installed_plugin_is_found_named_and_can_be_left_out(tmp_path: Path) -> None:
    app = written(tmp_path, APP)
    written(tmp_path, "import runner\nclass Plugin:\n    @runner.hookimpl\n    def mount_app(self): return [runner.Mount(prefix='/x')]\n", "parcel.py")
    for name, target in (("parcel", "parcel:Plugin"), ("hollow", "nowhere:Plugin")):
        metadata = tmp_path / name / f"{name}-4.5.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 4.5\n")
        (metadata / "entry_points.txt").write_text(f"[runner]\n{name} = {target}\n")

    def checked(*arguments: str, also: str = "") -> tuple[int, str]:
        path = f"{tmp_path}:{tmp_path / 'parcel'}{also}"
        done = subprocess.run(
            [sys.executable, HOUSE / "runner.py", app, "--check", *arguments], env=os.environ | {"PYTHONPATH": path},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    assert "\nplugin parcel 4.5 (mount_app)\n" in checked()[1]
    without = checked("--no-plugin", "parcel", "--plugin", "parcel:Plugin")[1]
    assert "\nplugin parcel 4.5" not in without
    assert "\nplugin parcel:Plugin ? (mount_app)\n" in without
    code, told = checked(also=f":{tmp_path / 'hollow'}")
    assert (code, "plugin hollow could not be loaded: ModuleNotFoundError: No module named 'nowhere'" in told) == (2, True), told


def test_objects_are_plugins_too_also_two_of_one_class() -> None:
    class Mounted:
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        @runner.hookimpl
        def mount_app(self) -> list[runner.Mount]:
            return [runner.Mount(prefix=self.prefix)]

    class Plain(runner.App):
        @runner.endpoint("/")
        def run(self) -> str:
            return "plain"

    service = runner.asgi(Plain, plugins=[Mounted("/one"), Mounted("/two")])

    (mounts,) = [line for line in service.plugins.hooks_listed() if line.startswith("mount_app: ")]
    assert mounts.endswith("Mounted, Mounted-1 (the longest prefix counts)")


def test_check_tells_who_answers_each_hook_in_which_order(tmp_path: Path) -> None:
    app = written(tmp_path, APP)
    for name in ("outer", "inner"):
        written(tmp_path, "import runner\n@runner.hookimpl\ndef wrap_call(): return lambda call: call\n", f"{name}.py")
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", app, "--check", "--plugin", "outer.py", "--plugin", "inner.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    lines = done.stdout.splitlines()
    (wraps,) = [line for line in lines if line.startswith("hook wrap_call: ")]
    assert wraps.endswith(", outer.py, inner.py (the first is outermost)")
    assert [line.split()[1] for line in lines if line.startswith("plugin ")][-2:] == ["outer.py", "inner.py"]


def test_a_built_in_plugin_can_be_left_out(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP), "--no-plugin", "openapi", "--no-plugin", "cors") as served:
        assert served.get("/openapi.json").status_code == 404
        assert "access-control-allow-origin" not in served.post("/", headers={"origin": "http://x"}).headers


def test_what_built_in_plugins_use_of_the_floors_below_is_exported() -> None:
    rooms = [HOUSE / "plugins" / name for name in BUILT_IN]
    used: set[str] = set()
    for file in [file for room in rooms for file in (room.rglob("*.py") if room.is_dir() else [room.with_suffix(".py")])]:
        for names in re.findall(r"from \.+(?:schemas\.\w+|hookspecs) import \(?([^)\n]+|[^)]+\))", file.read_text()):
            used |= {name.strip().partition(" as ")[0] for name in names.strip("()").replace("\n", " ").split(",") if name.strip()}

    public = {name for name in used if not name.startswith("_")}
    assert public - set(runner.__all__) == set(), "a stranger's plugin could not do what ours does"


def test_each_name_that_runner_exports_is_there_once() -> None:
    assert len(set(runner.__all__)) == len(runner.__all__)
    assert all(hasattr(runner, name) for name in runner.__all__)


def test_pluggy_would_refuse_what_we_refuse() -> None:
    manager = pluggy.PluginManager("runner")
    manager.add_hookspecs(hookspecs)

    assert set(hooks()) == {name for name in vars(manager.hook) if not name.startswith("_")}
