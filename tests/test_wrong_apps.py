"""What an author sees of an app that is wrong: a sentence that says what to write, or his own traceback. Never ours.

One table. Most rows are tried with `--check`; those that go wrong later are served. The whole table is
tried once, in forks of one process (`wrong.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from serving import HOUSE

HEAD = "import runner\nfrom typing import Any\nfrom collections.abc import AsyncIterator, Iterator\n"  # three lines
APP = HEAD + "class MyApp(runner.App):\n    @runner.endpoint('/')\n    def run(self) -> str: return 'x'\n"
SERVE = ("--port", "0", "--ready-fd", "READY", "--log-format", "json")
FAILED = "app could not be imported:\n"
TRACE = FAILED + "Traceback (most recent call last):\n"


class Wrong(NamedTuple):
    name: str
    source: str | Mapping[str, str]  # of app.py, after HEAD; or every file
    told: str  # what stderr says after "runner: ", all of it; of an app that is served, what the log holds
    target: str = "app"
    code: int = 2
    arguments: Sequence[str] = ("--check",)

    @property
    def files(self) -> Mapping[str, str]:
        return {"app.py": HEAD + self.source} if isinstance(self.source, str) else self.source


def method(signature: str = "self", given: str = "str", *, mark: str = "@runner.endpoint('/')", body: str = "...", define: str = "def", attribute: str = "") -> str:
    """MyApp with one method: `class` is line 4, its mark line 6."""
    return f"class MyApp(runner.App):\n    {attribute}\n    {mark}\n    {define} run({signature}) -> {given}: {body}\n"


def plain(mark: str) -> str:
    return method(mark=mark)


NO_METHOD = "class MyApp(runner.App):\n    def setup(self): ...\n"
TWO = "class First(runner.App):\n    @runner.endpoint('/')\n    def run(self) -> str: ...\nclass Second(First): ...\n"

TABLE = [
    # --- which app
    Wrong("no app", "x = 1\n", 'app has no app; write class MyApp(runner.App) with @runner.endpoint("/") on a method'),
    Wrong("two apps", TWO, "app has 2 apps with endpoints (First, Second); name one, for example app:Second"),
    Wrong("no endpoint", NO_METHOD, 'MyApp has no endpoint; put @runner.endpoint("/") on a method'),
    Wrong("a class of that name does not exist", {"app.py": APP}, "app has no class 'MyAp' (did you mean MyApp?); it has MyApp", "app:MyAp"),
    Wrong("no class at all", "x = 1\n", "app has no class 'MyApp'; it has no class of its own", "app:MyApp"),
    Wrong("a class that is no app", "class Other: ...\n", "Other is not an app; write class Other(runner.App)", "app:Other"),
    Wrong("an instance", {"app.py": APP + "app = MyApp()\n"}, "app:app is an object of MyApp; name the class, of which the server makes one: app:MyApp", "app:app"),
    Wrong("a function", "def serve(): ...\n", "app:serve is a function, not a class; it has no class of its own", "app:serve"),
    Wrong("no target", {}, "the following arguments are required: MODULE:CLASS; try: runner app:MyApp --port 8000", ""),
    Wrong("no module before the class", {}, "before the ':' stands the app's module or file; for example app:MyApp or path/to/app.py:MyApp", ":MyApp"),
    Wrong("no such module", {}, "there is no module 'nowhere' in DIR; say where it is with --app-dir, or give path/to/app.py:MyApp", "nowhere:App"),
    Wrong("no such file", {}, "there is no file DIR/nowhere.py; give an existing one, for example examples/hello.py", "nowhere.py:App"),
    Wrong("a folder", {"sub/x.py": ""}, "sub is a folder; name the file in it, for example sub/x.py:MyApp", "sub"),
    Wrong("another kind of file", {"app.txt": ""}, "app.txt is not a Python file, as its name does not end in .py; for example app.py:MyApp", "app.txt:MyApp"),
    Wrong("a path without its .py", {"sub/x.py": APP}, "'sub/x' is neither a module nor a file that ends in .py; for example app:MyApp or path/to/app.py:MyApp", "sub/x:MyApp"),
    Wrong("a file that shadows runner", {"runner.py": APP}, "runner.py has the name of this server, which 'runner' means; rename it, for example app.py", "runner:MyApp"),
    Wrong("a file that shadows Python", {"sys.py": APP}, "sys.py has the name of a module of Python's or of a package (built in), which 'sys' means; rename it, for example app.py", "sys:MyApp"),
    # --- the command line
    Wrong("a wrong app dir", {}, "--app-dir nope: there is no such folder; give the one that holds the app, for example --app-dir examples", arguments=("--app-dir", "nope")),
    Wrong("a wrong port", {}, "--port: 'x' will not do: Expected `int`, got `str`; for example 8000", arguments=("--port", "x")),
    Wrong("an unknown built-in plugin", {}, "--no-plugin nope: there is no such plugin; known are ", arguments=("--no-plugin", "nope")),
    Wrong("an unknown plugin", {}, "plugin nope could not be loaded: ModuleNotFoundError: No module named 'nope'; give a file, a module or module:object, for example --plugin my_package.metrics:plugin", arguments=("--plugin", "nope")),
    Wrong("a wrong host", {"app.py": APP}, "--host 256.0.0.1 --port 0: ", arguments=("--host", "256.0.0.1", "--port", "0")),
    # --- marks
    Wrong("a path without a slash", plain("@runner.endpoint('run')"), "app.py, line 6: @endpoint: the path 'run' must be text that begins with '/', such as '/generate'"),
    Wrong("a path that is no text", plain("@runner.endpoint(3)"), "app.py, line 6: @endpoint: the path 3 must be text that begins with '/', such as '/generate'"),
    Wrong("a mark without brackets", plain("@runner.endpoint"), "app.py, line 6: @endpoint needs a path in brackets; write @endpoint('/') above def run"),
    Wrong("a path left open", plain("@runner.endpoint('/x/{id')"), "app.py, line 6: @endpoint: the path '/x/{id' opens a part that it does not close; for example '/items/{id}'"),
    Wrong("a path part nobody takes", plain("@runner.endpoint('/x/{id}')"), "MyApp.run: the path '/x/{id}' has a part {id} that no parameter takes; for example def run(self, id: str)"),
    Wrong("one path twice", "class MyApp(runner.App):\n    @runner.endpoint('/')\n    def a(self) -> str: ...\n    @runner.endpoint('/')\n    def b(self) -> str: ...\n", "MyApp.a and .b both answer '/'; give one another path"),
    Wrong("two marks", plain("@runner.endpoint('/')\n    @runner.endpoint('/b')"), "app.py, line 6: MyApp.run is marked twice; an endpoint has one path"),
    Wrong("an unknown argument of a mark", plain("@runner.endpoint('/', methods=['GET'])"), TRACE + '  File "DIR/app.py", line 4, in <module>\n    class MyApp(runner.App):\n  File "DIR/app.py", line 6, in MyApp\n    @runner.endpoint(\'/\', methods=[\'GET\'])\nTypeError: endpoint() got an unexpected keyword argument \'methods\'', code=1),
    Wrong("a wrong on_disconnect", plain("@runner.endpoint('/', on_disconnect='stop')"), "app.py, line 6: on_disconnect is 'stop'; it is 'cancel' or 'finish'"),
    Wrong("a timeout that is text", plain("@runner.endpoint('/', timeout='60')"), "app.py, line 6: timeout is '60'; it is a number of seconds above 0, such as 60"),
    Wrong("a timeout below zero", plain("@runner.endpoint('/', timeout=-1)"), "app.py, line 6: timeout is -1; it is a number of seconds above 0, such as 60"),
    Wrong("a staticmethod", method("x: int", mark="@runner.endpoint('/')\n    @staticmethod"), "app.py, line 6: run is a staticmethod; an endpoint is a plain method: def run(self, …)"),
    Wrong("a staticmethod, marked within", method("x: int", mark="@staticmethod\n    @runner.endpoint('/')"), "MyApp.run is a staticmethod; an endpoint is a plain method: def run(self, …)"),
    Wrong("a classmethod", method("cls", mark="@runner.endpoint('/')\n    @classmethod"), "app.py, line 6: run is a classmethod; an endpoint is a plain method: def run(self, …)"),
    Wrong("a property", method("self", mark="@runner.endpoint('/')\n    @property"), "app.py, line 6: run is a property; an endpoint is a plain method: def run(self, …)"),
    Wrong("an endpoint called setup", "class MyApp(runner.App):\n    @runner.endpoint('/')\n    def setup(self) -> str: ...\n", "MyApp.setup is an endpoint, but the server itself calls setup; give the endpoint another name"),
    # --- signatures
    Wrong("an undefined annotation", method("self, x: Promt"), TRACE + '  File "DIR/app.py", line 4, in <module>\n    class MyApp(runner.App):\n  File "DIR/app.py", line 7, in MyApp\n    def run(self, x: Promt) -> str: ...\nNameError: name \'Promt\' is not defined', code=1),
    Wrong("an undefined annotation in quotes", method("self, x: 'Promt'"), "MyApp.run: the annotation names 'Promt', which is not defined where the class is; import it, or define it at the top of the module"),
    Wrong("an annotation that is no type", method("self, x: 3"), "MyApp.run: values of 3 cannot cross the wire; use a msgspec.Struct, a pydantic model, a dataclass or a builtin"),
    Wrong("a type that cannot be sent", method("self", "Exception"), "MyApp.run: values of <class 'Exception'> cannot cross the wire; use a msgspec.Struct, a pydantic model, a dataclass or a builtin"),
    Wrong("a list of such", "class Strange: ...\n" + method("self, x: list[Strange]"), "MyApp.run: values of list[app.Strange] cannot cross the wire; use a msgspec.Struct, a pydantic model, a dataclass or a builtin"),
    Wrong("a pydantic type without a schema", "import pydantic\nclass Strange: ...\nclass M(pydantic.BaseModel):\n    model_config = {'arbitrary_types_allowed': True}\n    s: Strange\n" + method("self, x: M"), "MyApp.run: its types cannot be described: Cannot generate a JsonSchema for core_schema.IsInstanceSchema (<class 'app.Strange'>)"),
    Wrong("no self", method(""), "MyApp.run takes no self; for example def run(self, prompt: str)"),
    Wrong("star arguments", method("self, *prompts: str"), "MyApp.run: *prompts says nothing of what callers may send; name each parameter, for example def run(self, prompt: str)"),
    Wrong("arguments by place only", method("self, a: int, /"), "MyApp.run: arguments are passed by name, so 'a' cannot stand before a '/'; for example def run(self, a)"),
    Wrong("a raw socket that is sync", method("self, websocket", "None", mark="@runner.endpoint('/ws', is_websocket=True)"), "MyApp.run: the WebSocket endpoint '/ws' must be an async method, and its one parameter must be annotated WebSocket: async def run(self, websocket: WebSocket) -> None"),
    Wrong("a sync method for a stream of inputs", method("self, x: AsyncIterator[dict]", "dict", mark="@runner.realtime('/rt')"), "MyApp.run takes an AsyncIterator, which only an async method can read: async def run(self, …)"),
    Wrong("a generator annotated as one answer", method("self, x: dict", "dict", mark="@runner.realtime('/rt')", body="yield x"), "MyApp.run yields, and its annotation says that it returns once; write -> Iterator[…]"),
    Wrong("a realtime type that comes later", method("self, x: 'Frame'", "dict", mark="@runner.realtime('/rt')"), "app.py, line 6: MyApp.run: the annotation names 'Frame', which is not defined yet; define it above the class"),
    Wrong("a batch of none", method("self, x: dict", "dict", mark="@runner.realtime('/rt', max_batch_size=0)"), "MyApp.run: max_batch_size is 0; a batch has at least 1 input"),
    # --- health checks
    Wrong("a health check that is True", plain("@runner.endpoint('/h', health_check=True)"), "app.py, line 6: health_check is True; it is a HealthCheck, such as runner.HealthCheck(timeout_seconds=5)"),
    Wrong("a health check that yields", method("self", "AsyncIterator[int]", mark="@runner.endpoint('/h', health_check=runner.HealthCheck())", define="async def", body="yield 1"), "MyApp.run is the health check and yields; it answers once: return, or raise when the app is not well"),
    Wrong("a health check that asks", method("self, x: int", mark="@runner.endpoint('/h', health_check=runner.HealthCheck())"), "MyApp.run is the health check and asks for x; it is called with nothing"),
    Wrong("two health checks", "class MyApp(runner.App):\n    @runner.endpoint('/a', health_check=runner.HealthCheck())\n    def a(self) -> str: ...\n    @runner.endpoint('/b', health_check=runner.HealthCheck())\n    def b(self) -> str: ...\n", "MyApp has two health checks; an app has at most one"),
    # --- the class
    Wrong("an __init__", "class MyApp(runner.App):\n    def __init__(self): ...\n", "app.py, line 4: MyApp overrides __init__; write setup(self) instead"),
    Wrong("no places", method(attribute="max_multiplexing = 0"), "MyApp.max_multiplexing is 0: expected int >= 1; for example max_multiplexing = 1"),
    Wrong("places in words", method(attribute="max_multiplexing = 'two'"), "MyApp.max_multiplexing is 'two': expected int, got str; for example max_multiplexing = 1"),
    Wrong("a request_timeout below zero", method(attribute="request_timeout = -5"), "MyApp.request_timeout is -5: expected float > 0.0; for example request_timeout = 60"),
    Wrong("an unknown app_auth", method(attribute="app_auth = 'secret'"), "MyApp.app_auth is 'secret': invalid enum value 'secret'; for example app_auth = 'private'"),
    Wrong("a misspelt attribute", method(attribute="max_multiplexng = 4"), "MyApp.max_multiplexng is no option; did you mean max_multiplexing? An attribute of the app's own needs another name"),
    Wrong("a misspelt class keyword", "class MyApp(runner.App, request_timout=3):\n    @runner.endpoint('/')\n    def run(self) -> str: ...\n", "MyApp.request_timout is no option; did you mean request_timeout? An attribute of the app's own needs another name"),
    Wrong("a setup that asks", "class MyApp(runner.App):\n    def setup(self, device): ...\n    @runner.endpoint('/')\n    def run(self) -> str: ...\n", "MyApp.setup asks for device, and the server gives nothing: def setup(self)"),
    Wrong("a setup that yields", "class MyApp(runner.App):\n    def setup(self): yield\n    @runner.endpoint('/')\n    def run(self) -> str: ...\n", "MyApp.setup yields, so nothing of it would run; it is a plain method, and what ends it is teardown(self)"),
    Wrong("a class that cannot be made", "class MyApp(runner.App):\n    def __new__(cls): raise OSError('no licence')\n    @runner.endpoint('/')\n    def run(self) -> str: ...\n", "MyApp() failed:\nTraceback (most recent call last):\n  File \"DIR/app.py\", line 5, in __new__\n    def __new__(cls): raise OSError('no licence')\nOSError: no licence", code=1),
    Wrong("fal.function", "import fal\n@fal.function('x')\ndef run(): ...\n", 'app.py, line 5: fal.function sends one function to fal\'s platform, which this runner is not; serve it as a class: class MyApp(fal.App) with @fal.endpoint("/") on a method'),
    # --- importing
    Wrong("a syntax error", "class MyApp(runner.App)\n    x = 1\n", FAILED + '  File "DIR/app.py", line 4\n    class MyApp(runner.App)\nSyntaxError: expected \':\'', code=1),
    Wrong("a syntax error in a module of the app", {"app.py": "import helper\n", "helper.py": "def x(:\n"}, TRACE + '  File "DIR/app.py", line 1, in <module>\n    import helper\n  File "DIR/helper.py", line 1\n    def x(:\nSyntaxError: invalid syntax', code=1),
    Wrong("a missing dependency", "import no_such_package.part\n", TRACE + "  File \"DIR/app.py\", line 4, in <module>\n    import no_such_package.part\nModuleNotFoundError: No module named 'no_such_package'\nhelp: no_such_package is neither installed here nor in DIR: pip install it, or say with --app-dir where it is", code=1),
    Wrong("an error in a module of the app", {"app.py": "import helper\n", "helper.py": "raise OSError('no disk')\n"}, TRACE + '  File "DIR/app.py", line 1, in <module>\n    import helper\n  File "DIR/helper.py", line 1, in <module>\n    raise OSError(\'no disk\')\nOSError: no disk', code=1),
    Wrong("a relative import", {"app.py": "from .helper import x\n", "helper.py": "x = 1\n"}, "app.py could not be imported:\nTraceback (most recent call last):\n  File \"DIR/app.py\", line 1, in <module>\n    from .helper import x\nImportError: attempted relative import with no known parent package\nhelp: a file given by its path has no package; name it as a module: package.app:MyApp, with --app-dir the folder that holds the package", "app.py", 1),
    Wrong("a circular import", {"app.py": "from helper import x\nclass MyApp: ...\n", "helper.py": "from app import MyApp\nx = 1\n"}, TRACE + "  File \"DIR/app.py\", line 1, in <module>\n    from helper import x\n  File \"DIR/helper.py\", line 1, in <module>\n    from app import MyApp\nImportError: cannot import name 'MyApp' from partially initialized module 'app' (most likely due to a circular import) (DIR/app.py)\nhelp: two modules import each other; move what both need into a third", code=1),
    Wrong("sys.exit at import", "import sys\nsys.exit(3)\n", "app.py, line 5: sys.exit(3) was called while app was imported; put what runs it below if __name__ == '__main__':"),
    Wrong("NUL bytes", {"app.py": "hex:" + b"x = 1\0\n".hex()}, FAILED + "SyntaxError: source code string cannot contain null bytes", code=1),
    Wrong("another encoding", {"app.py": "hex:" + "x = 'é'\n".encode("latin-1").hex()}, FAILED + '  File "DIR/app.py", line 1\n    x = \'�\'\nSyntaxError: (unicode error) \'utf-8\' codec can\'t decode byte 0xe9 in position 0: unexpected end of data\nhelp: save the file as UTF-8', code=1),
    Wrong("Ctrl-C at import", "raise KeyboardInterrupt\n", "", code=130),
    # --- what is right, though it may look wrong
    Wrong("printing at import", {"app.py": "print('loading')\n" + APP}, "", code=0),
    Wrong("no annotation", method("self, prompt"), "", code=0),
    Wrong("a default that JSON cannot show", method("self, x: str = object()"), "", code=0),
    # --- when it is served
    Wrong("a setup that raises", {"app.py": APP + "    def setup(self): raise OSError('no weights')\n"}, '"event":"setup.failed","exception":"Traceback (most recent call last):\\n  File \\"DIR/app.py\\", line 7, in setup\\n', code=1, arguments=SERVE),
    Wrong("a setup that returns False", {"app.py": APP + "    def setup(self): return False\n"}, '"event":"setup.returned","value":false,"help":"what setup returns is not looked at; raise when it failed"', code=0, arguments=SERVE),
    Wrong("a teardown that raises", {"app.py": APP + "    def teardown(self): raise OSError('no way')\n"}, '"event":"teardown.failed","exception":"Traceback (most recent call last):\\n  File \\"DIR/app.py\\", line 7, in teardown\\n', code=0, arguments=SERVE),
]  # fmt: skip
OURS = [str(HOUSE / part) for part in ("runner.py", "plugins", "schemas")]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    cases = [{"files": case.files, "arguments": [*filter(None, [case.target]), *case.arguments]} for case in TABLE]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNER_", "FAL_"))}
    done = subprocess.run(
        [sys.executable, HOUSE / "tests" / "wrong.py"],
        input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=100, env={**environment, "PYTHONPATH": str(HOUSE)},
    )  # fmt: skip
    return dict(zip((case.name for case in TABLE), json.loads(done.stdout), strict=True))


def one_line_each(text: str) -> str:
    """A traceback with one line of source for each frame: how many there are, and under which carets, differs by Python."""
    lines = text.splitlines()
    return "\n".join(line for before, line in zip(["", *lines], lines, strict=False) if not line.startswith("    ") or before.startswith("  File"))


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
def test_an_author_is_told_what_is_wrong(case: Wrong, results: dict[str, Any]) -> None:
    """Check 27 is among them; check 5 too."""
    code, _, stderr = results[case.name]

    assert code == case.code
    assert not any(place in stderr for place in OURS)
    if case.arguments is SERVE:
        assert case.told in stderr
    elif not case.told:
        assert stderr == ""
    else:
        told = one_line_each(stderr).removeprefix("runner: ")
        assert stderr.startswith("runner: ")
        assert told == case.told or (told.startswith(case.told) and case.told.endswith(" "))


def test_the_table_has_what_an_author_may_do_wrong() -> None:
    assert len(TABLE) >= 60
    assert len({case.name for case in TABLE}) == len(TABLE)
