"""Every hook is in docs/hooks.md with its exact signature, and a stranger's plugin can use it."""

from __future__ import annotations

import inspect
import re
import socket
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest
from runner.plugins import hookspecs
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


def test_the_page_on_hooks_has_each_with_its_exact_signature() -> None:
    page = (HOUSE / "docs" / "hooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n```python\n(.*?)\n```", page, re.MULTILINE | re.DOTALL))

    assert sections == hooks()


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


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("@runner.hookimpl\ndef wrap_cal(endpoint): ...", "unknown hook 'wrap_cal'"),
        ("@runner.hookimpl\ndef wrap_call(enpoint): ...", "enpoint"),
        ("@runner.hookimpl\ndef lifespan(service): raise ValueError('no')", "lifespan failed with ValueError('no')"),
        ("@runner.hookimpl\ndef register_routes(service): raise ValueError('no')", "its hook register_routes failed with ValueError('no')"),
        ("@runner.hookimpl\nasync def wrap_call(endpoint): ...", "its hook wrap_call is async; write def"),
        ("this is no python", "invalid syntax"),
    ],
)
def test_a_broken_plugin_stops_the_start_and_is_named(tmp_path: Path, source: str, told: str) -> None:
    app = written(tmp_path, APP)
    written(tmp_path, f"import runner\n{source}\n", "broken.py")
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", app, "--plugin", "broken.py", "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert told in done.stderr
    assert "broken" in done.stderr
    assert done.returncode == 2


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
