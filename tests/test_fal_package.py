"""Apps of the real fal package are served as they are, and their errors answer as fal answers them.

fal pins versions that ours need not share, so these tests run in an environment of its own:
RUNNER_FAL_VENV, or `.venv-fal` beside the project's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import running

HERE = Path(__file__).parent.parent
APP = """
from __future__ import annotations
from typing import Iterator
import fal
from fal.sdk import RetryConfig
from pydantic import BaseModel

class Input(BaseModel):
    prompt: str

class Output(BaseModel):
    text: str

class GPT4App(fal.App, keep_alive=300, private_logs=True, max_multiplexing=3):
    machine_type = "GPU-A100"
    request_timeout = 60
    retry_config = RetryConfig(server_error=2)

    def setup(self):
        self.seen_in_setup = self.current_request.request_id

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        return Output(text=self.current_request.request_id)

    @fal.endpoint("/well", health_check=fal.HealthCheck(timeout_seconds=7, method="GET"))
    def well(self) -> dict:
        return {}

    @fal.realtime("/rt", buffering=3, session_timeout=9.0, max_batch_size=4)
    def step(self, input: Input) -> Iterator[Output]:
        yield Output(text=input.prompt)

class Named(fal.App, name="my-name"):
    @fal.endpoint("/")
    def run(self) -> str:
        return "x"

    def _add_extra_routes(self, app):
        super()._add_extra_routes(app)

class Empty(fal.App):
    pass

class Twice(fal.App):
    @fal.endpoint("/")
    def one(self) -> str: ...
    @fal.endpoint("/")
    def two(self) -> str: ...
"""

Check = Callable[[str], Any]


@pytest.fixture(scope="session")
def fal_python() -> Path:
    folder = Path(os.environ.get("RUNNER_FAL_VENV") or HERE / ".venv-fal")
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"no fal package: {python} is missing; make it with python3 -m venv .venv-fal && "
            ".venv-fal/bin/pip install -c tests/fal-constraints.txt fal -e ."
        )
    return python


@pytest.fixture
def in_fal(fal_python: Path, tmp_path: Path) -> Check:
    """Run a program beside the app above, in the environment with fal; what it puts in `out`."""
    (tmp_path / "app.py").write_text(APP)

    def run(program: str) -> Any:
        source = f"import json, os, sys\nfrom runner.plugins.fal import *\nimport app\n{program}\nsys.__stdout__.write(json.dumps(out))\n"
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{HERE}{os.pathsep}{tmp_path}", "HOME": str(tmp_path)}
        done = subprocess.run(
            [fal_python, "-c", source], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])  # before it, what the program printed

    return run


def test_an_app_is_described_by_its_name_marks_and_options(in_fal: Check) -> None:
    """Contract 1.1, 1.2."""
    out = in_fal(
        "import msgspec\n"
        "spec = describe_app(app.GPT4App)\n"
        "names = ('max_multiplexing', 'request_timeout', 'private_logs', 'termination_grace_period_seconds')\n"
        "out = [spec.name, spec.alias, spec.module, {m: k.path for m, k in spec.marks.items()},"
        " {n: getattr(spec.options, n) for n in names}, spec.options.retry_config.to_dict()]"
    )

    assert out == [
        "GPT4App",
        "g-p-t-app",
        "app",
        {"generate": "/", "step": "/rt", "well": "/well"},
        {"max_multiplexing": 3, "request_timeout": 60, "private_logs": True, "termination_grace_period_seconds": 5},
        {"server_error": {"retries": 2}},
    ]


def test_marks_carry_what_the_decorators_said(in_fal: Check) -> None:
    """Contract 1.1, 6.1, 9.1."""
    out = in_fal(
        "marks = describe_app(app.GPT4App).marks\n"
        "rt, well = marks['step'], marks['well'].health_check\n"
        "out = [rt.is_websocket, rt.realtime_mode, rt.input_modal.__name__, rt.output_modal.__name__, rt.buffering,"
        " rt.session_timeout, rt.max_batch_size, rt.content_type,"
        " well.timeout_seconds, well.method, well.call_regularly, well.failure_threshold]"
    )

    assert out == [
        True, "server_streaming", "Input", "Output", 3, 9.0, 4, "application/msgpack", 7, "GET", True, None,
    ]  # fmt: skip


def test_a_name_given_in_the_class_statement_is_the_alias(in_fal: Check) -> None:
    """Contract 1.1."""
    assert in_fal("out = describe_app(app.Named).alias") == "my-name"


def test_extra_routes_are_announced_as_not_served(in_fal: Check) -> None:
    out = in_fal(
        "import logging\n"
        "told = []\n"
        "logging.getLogger('runner.fal').addFilter(lambda r: told.append(r.getMessage()))\n"
        "describe_app(app.Named); describe_app(app.GPT4App)\n"
        "out = told"
    )

    assert out == ["Named._add_extra_routes is not called: this runner has no FastAPI app to hand it"]


@pytest.mark.parametrize(
    ("name", "said"), [("Empty", "Empty has no endpoint"), ("Twice", "Twice.one and .two both answer '/'")]
)
def test_an_app_that_cannot_be_served_is_refused_by_name(in_fal: Check, name: str, said: str) -> None:
    """Contract 1.1, checklist 5."""
    out = in_fal(
        "from runner.schemas.problems import ConfigError\n"
        f"try: describe_app(app.{name})\n"
        "except ConfigError as error: out = str(error)"
    )

    assert said in out


def test_other_classes_are_not_ours(in_fal: Check) -> None:
    assert in_fal("import runner\nout = [describe_app(app.Input), describe_app(type('A', (runner.App,), {}))]") == [None, None]


def test_the_instance_is_made_as_on_the_platform_and_the_environment_restored(in_fal: Check) -> None:
    """Contract 1.5."""
    out = in_fal(
        "made = describe_app(app.GPT4App).make()\n"
        "os.environ['IS_ISOLATE_AGENT'] = 'mine'\n"
        "describe_app(app.GPT4App).make()\n"
        "after = os.environ.pop('IS_ISOLATE_AGENT')\n"
        "describe_app(app.GPT4App).make()\n"
        "out = [type(made) is app.GPT4App, 'IS_ISOLATE_AGENT' in os.environ, after]"
    )

    assert out == [True, False, "mine"]


def test_current_request_is_the_request_that_is_served(in_fal: Check) -> None:
    """Contract 1.4, checklist 10 and 33."""
    out = in_fal(
        "import threading, contextvars\n"
        "from runner.schemas.request import Request, enter_request\n"
        "made = describe_app(app.GPT4App).make()\n"
        "made.setup()\n"
        "headers = [(b'X-Fal-Endpoint', b'me/app/'), (b'x-fal-object-lifecycle-preference', b'{\"a\": 1}')]\n"
        "seen = []\n"
        "def serve(name):\n"
        "    enter_request(Request(name, scope={'headers': headers}))\n"
        "    made.current_request.headers['x-fal-cdn-token'] = name\n"
        "    both = threading.Barrier(2, timeout=5)\n"
        "    barrier.wait()\n"
        "    r = made.current_request\n"
        "    text = app.GPT4App.generate(made, app.Input(prompt='')).text\n"
        "    seen.append([r.request_id, text, r.endpoint, r.lifecycle_preference, r.headers['x-fal-cdn-token']])\n"
        "barrier = threading.Barrier(2, timeout=5)\n"
        "threads = [threading.Thread(target=serve, args=(n,)) for n in 'ab']\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "outside = made.current_request\n"
        "out = [made.seen_in_setup, sorted(seen), [outside.request_id, outside.headers]]"
    )

    assert out == [
        None,
        [["a", "a", "me/app/", {"a": 1}, "a"], ["b", "b", "me/app/", {"a": 1}, "b"]],
        [None, {}],
    ]


def test_a_pickled_app_leaves_its_request_behind(in_fal: Check) -> None:
    """Contract 1.4."""
    out = in_fal(
        "import pickle\n"
        "made = describe_app(app.GPT4App).make()\n"
        "made.weights = [1]\n"
        "back = pickle.loads(pickle.dumps(made))\n"
        "out = [back.weights, back.current_request]"
    )

    assert out == [[1], None]


def test_a_realtime_method_is_the_authors_own_and_not_fals_session(in_fal: Check) -> None:
    out = in_fal(
        "made = describe_app(app.GPT4App).make()\n"
        "out = [o.text for o in made.step(app.Input(prompt='hello'))]"
    )

    assert out == ["hello"]


def test_the_current_app_is_known_to_the_package_while_it_is_served(in_fal: Check) -> None:
    """Contract 1.3."""
    out = in_fal(
        "import asyncio, fal.ref\n"
        "from types import SimpleNamespace\n"
        "from runner.schemas.health import Health\n"
        "made = describe_app(app.GPT4App).make()\n"
        "async def serve():\n"
        "    async with lifespan(service=SimpleNamespace(health=Health(), instance=made)):\n"
        "        return fal.ref.get_current_app() is made\n"
        "out = [asyncio.run(serve()), fal.ref.get_current_app()]"
    )

    assert out == [True, None]


RAISED = """
import asyncio
from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fal.exceptions import *
from fal.toolkit.exceptions import FileUploadException
ERRORS = [
    AppException("not yours", 401),
    FieldException("prompt", "is rude"),
    FieldException("prompt", "is rude", status_code=400, type="rude", billable_units=5),
    FieldException("prompt", "is rude", billable_units=0.0000123),
    FieldException("prompt", "is rude", billable_units="many"),
    RequestCancelledException("bye"),
    GPUException(),
    CUDAOutOfMemoryException(),
    HTTPException(409, {"why": ["busy"]}, {"x-mine": "1"}),
    HTTPException(404, "no cat", {"x-mine": "1"}),
    HTTPException(404),
    HTTPException(204),
    RequestValidationError([{"type": "t", "loc": ("body", "x"), "msg": "m", "input": b"ab"}]),
    RuntimeError("CUDA out of memory"),
    RuntimeError("CUDA out of memory", 1),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
    ValueError("triton x"),
    ValueError("boom"),
    FileTooLargeError(),
    FileUploadException("x"),
]
SHOWN = ("x-fal-billable-units", "x-mine")
"""

THEIRS = """
os.environ["IS_ISOLATE_AGENT"] = "1"
import contextlib, io
import fal
from fastapi import Body
from starlette.testclient import TestClient

class Raises(fal.App):
    @fal.endpoint("/raise")
    def fail(self, n: int) -> str:
        raise ERRORS[n]

with contextlib.redirect_stdout(io.StringIO()):
    with TestClient(Raises()._build_app(), raise_server_exceptions=False) as client:
        answers = [client.post(f"/raise?n={n}") for n in range(len(ERRORS))]
out = [[a.status_code, a.text, {k: a.headers[k] for k in SHOWN if k in a.headers}] for a in answers]
"""

OURS = """
from runner.schemas.request import Request, enter_request
from runner.schemas.response import json_response
enter_request(Request("r", path="/raise"))
answer_to = map_error(service=None)
answers = [answer_to(e) or json_response({"detail": "Internal Server Error"}, status=500) for e in ERRORS]
out = [[a.status, a.body.decode(), {k: a.headers[k] for k in SHOWN if k in a.headers}] for a in answers]
"""


def test_every_error_answers_as_fal_itself_answers_it(in_fal: Check) -> None:
    """Contract 2.1, 2.5; checklist 18 to 22. The package's own server is asked, in one process."""
    theirs, ours = in_fal(RAISED + THEIRS), in_fal(RAISED + OURS)

    assert len(theirs) == len(ours) == 20
    assert [read(*answer) for answer in ours] == [read(*answer) for answer in theirs]


SERVED = """
import fal
from fal.exceptions import FieldException, AppException, RequestCancelledException
from fal.toolkit import Image, FalBaseModel, Field, Hidden
from fastapi import BackgroundTasks, HTTPException, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

class Input(BaseModel):
    prompt: str = Field(min_length=1)
    steps: int = Field(default=4, ge=1, le=8)

class Output(BaseModel):
    text: str
    seed: int | None = None

class Picture(FalBaseModel):
    image: Image
    debug: bool = Hidden(Field(default=False))

class Painter(fal.App, keep_alive=300, max_concurrency=2):
    machine_type = "GPU-A100"
    requirements = ["torch"]
    request_timeout = 60

    def setup(self):
        self.ready = True

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        assert self.ready
        return Output(text=input.prompt.upper())

    @fal.endpoint("/async")
    async def generate_async(self, input: Input, request: Request, response: Response) -> Output:
        response.headers["x-fal-billable-units"] = "3"
        response.status_code = 202
        return Output(text=request.headers["x-mine"] + (await request.body()).decode())

    @fal.endpoint("/context")
    def context(self, x_fal_request_id: str = Header(None)) -> dict:
        return {"header": x_fal_request_id, "context": self.current_request.request_id}

    @fal.endpoint("/raised")
    def raised(self, n: int) -> str:
        raise [
            HTTPException(409, {"why": "busy"}, {"x-mine": "1"}),
            FieldException("prompt", "is rude", billable_units=2),
            AppException("no credit", 402),
            RequestCancelledException("bye"),
            RuntimeError("CUDA out of memory"),
            ValueError("boom"),
        ][n]

    @fal.endpoint("/json")
    def json(self) -> dict:
        return JSONResponse({"a": 1}, status_code=201, headers={"x-mine": "1"})

    @fal.endpoint("/stream")
    def stream(self, input: Input):
        def events():
            for i in range(input.steps):
                yield f"data: {i}\\n\\n"
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/astream")
    async def astream(self, input: Input) -> StreamingResponse:
        async def events():
            for i in range(input.steps):
                yield f"data: {i}\\n\\n"
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.endpoint("/picture")
    def picture(self, input: Picture) -> Picture:
        return input

    @fal.endpoint("/wrong")
    def wrong(self, input: Input) -> Output:
        return {"txt": 1}

    @fal.endpoint("/later")
    def later(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(print, "done afterwards")
        return "now"

    @fal.endpoint("/two")
    def two(self, a: Input, b: Output, q: int = 1) -> list:
        return [a.prompt, b.text, q]

    @fal.endpoint("/none")
    def none(self, anything: dict) -> None:
        return None

    @fal.endpoint("/cats/{name}")
    def cat(self, name: str) -> str:
        if name == "none":
            raise HTTPException(404)
        return name

    def provide_hints(self):
        return ["a", "b"]
"""

TEXT = {"content-type": "application/json"}


def asked(path: str, *bodies: Any, method: str = "POST", **headers: str) -> list[list[Any]]:
    """One request per body; bytes go as they are, all else as JSON, and a lone path without a body."""
    sent = {**TEXT, **{name.replace("_", "-"): value for name, value in headers.items()}}
    texts = [(b if isinstance(b, bytes) else json.dumps(b).encode()).decode("latin-1") for b in bodies] or [""]
    return [[method, path, text, sent] for text in texts]


REQUESTS = [
    *asked("/", {"prompt": "a"}, {"prompt": "a", "steps": "3", "more": 1}, {"prompt": "", "steps": 9}, {"prompt": None}, {}),
    *asked("/", {"prompt": 3, "steps": True}, [], "text", 3, None, b"", b"{", b'{"prompt":"a",}'),
    *asked("/", b'{"prompt":"a"}', content_type="text/plain"),
    *asked("/", b'{"prompt":"a"}', content_type="application/vnd.mine+json"),
    *asked("/async", {"prompt": "a"}, x_mine="m"),
    *asked("/context", x_fal_request_id="r1"),
    *(request for n in (0, 1, 2, 3, 4, 5, "x", "") for request in asked(f"/raised?n={n}")),
    *asked("/raised"),
    *asked("/json"),
    *asked("/stream", {"prompt": "a", "steps": 3}),
    *asked("/astream", {"prompt": "a"}),
    *asked("/picture", *({"image": image, "debug": True} for image in (
        "https://example.com/a.png", {"url": "https://example.com/a.png", "width": 3}, "not_a_valid_url", 3, None, {},
    ))),
    *asked("/wrong", {"prompt": "a"}),
    *asked("/later"),
    *asked("/two?q=z", {"a": {"prompt": "a"}, "b": {"text": "b"}}, {"a": {}}, [], None, b"", b"{"),
    *asked("/two", {"a": {"prompt": "a"}, "b": {"text": "b"}}),
    *asked("/none", {"a": 1}, [], None),
    *asked("/cats/tom"),
    *asked("/cats/none"),
    *asked("/nope"),
    *asked("/stream", method="GET"),
]  # fmt: skip
COMPARED = ("content-type", "x-fal-billable-units", "x-mine", "allow")

ASK_FAL = """
os.environ["IS_ISOLATE_AGENT"] = "1"
import contextlib, io
import served
from starlette.testclient import TestClient

requests = json.loads(open("requests.json").read())
with contextlib.redirect_stdout(io.StringIO()):
    with TestClient(served.Painter()._build_app(), raise_server_exceptions=False) as client:
        answers = [client.request(m, p, headers=h, content=b.encode("latin-1")) for m, p, b, h in requests]
out = [[a.status_code, a.text, dict(a.headers)] for a in answers]
"""


def test_an_app_of_the_package_answers_over_http_as_fals_own_server_answers(
    fal_python: Path, in_fal: Check, tmp_path: Path
) -> None:
    """Contract 2; checklist 2, 3, 13 to 15, 18 to 23, 30. One unchanged app, asked twice: fal's server, and ours."""
    (tmp_path / "served.py").write_text(SERVED)
    (tmp_path / "requests.json").write_text(json.dumps(REQUESTS))
    expected = in_fal(ASK_FAL)
    command = [fal_python, HERE / "runner.py", tmp_path / "served.py", "--port", "0", "--log-format", "json"]
    with running(command) as runner, runner.client() as client:
        runner.wait_for("app.ready")
        found = [
            client.request(method, path, headers=headers, content=text.encode("latin-1"))
            for method, path, text, headers in REQUESTS
        ]
        assert runner.stop() == 0

    for request, ours, (status, text, headers) in zip(REQUESTS, found, expected, strict=True):
        assert (ours.status_code, value_of(ours.text)) == (status, value_of(text)), request
        for name in COMPARED:
            assert ours.headers.get(name) == headers.get(name), (request, name)
    printed = [line for line in runner.printed if line.startswith('{"traceback"')]
    assert len(printed) == 2  # the out-of-memory and the bug: checklist 22
    assert "ValueError: boom" in printed[1]


def test_the_openapi_document_of_an_app_of_the_package_is_that_of_fals_own_server(
    fal_python: Path, in_fal: Check, tmp_path: Path
) -> None:
    """Contract 3.1 and 3.2, checklist 24 and 26; but for the title, nulls as defaults, bytes and names of inputs."""
    (tmp_path / "served.py").write_text(SERVED)
    theirs = in_fal(
        "os.environ['IS_ISOLATE_AGENT'] = '1'\n"
        "import contextlib, io, served\n"
        "with contextlib.redirect_stdout(io.StringIO()): out = served.Painter()._build_app().openapi()"
    )
    command = [fal_python, HERE / "runner.py", tmp_path / "served.py", "--openapi"]
    ours = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert theirs["info"].pop("title") == "FastAPI"
    assert ours["info"].pop("title") == "Painter"
    ours["components"]["schemas"]["Image"]["properties"].pop("file_data")
    theirs["components"]["schemas"]["Image-Input"]["properties"].pop("file_data")
    assert without_null_defaults(ours) == without_null_defaults(json.loads(json.dumps(theirs).replace("-Input", "")))
    assert ours["x-fal-order-paths"] == theirs["x-fal-order-paths"]


def without_null_defaults(document: Any) -> Any:
    if isinstance(document, list):
        return [without_null_defaults(item) for item in document]
    if isinstance(document, dict):
        return {k: without_null_defaults(v) for k, v in document.items() if (k, v) != ("default", None)}
    return document


def value_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(status: int, body: str, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
    return status, json.loads(body) if body else None, headers


MAKES_FILES = """
import fal
from fal.toolkit import File, Image
from PIL import Image as Pictures
from pydantic import BaseModel

class Output(BaseModel):
    image: Image
    file: File
    path: File

class Painter(fal.App):
    @fal.endpoint("/")
    def paint(self) -> Output:
        with open("made.txt", "w") as file:
            file.write("from a path")
        return Output(
            image=Image.from_pil(Pictures.new("RGB", (4, 2), "red"), "jpeg"),
            file=File.from_bytes(b"bytes", "text/plain", "a.txt"),
            path=File.from_path("made.txt", "text/plain"),
        )
"""


def test_check_28_files_that_an_app_of_the_package_makes_lie_in_our_store(fal_python: Path, tmp_path: Path) -> None:
    (tmp_path / "painter.py").write_text(MAKES_FILES)
    command = [fal_python, HERE / "runner.py", "painter.py", "--port", "0", "--log-format", "json", "--data-dir", str(tmp_path)]
    with running(command, cwd=tmp_path) as runner:
        runner.wait_for("app.ready")
        answer = runner.post("/", headers={"x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}'}).json()
        kept = {name: runner.get(file["url"]) for name, file in answer.items()}

    assert {name: file.status_code for name, file in kept.items()} == {"image": 200, "file": 200, "path": 200}
    assert all(file["url"].startswith(f"{runner.url}/files/") for file in answer.values())
    assert (kept["file"].text, kept["path"].text, kept["image"].content[:2]) == ("bytes", "from a path", b"\xff\xd8")
    assert int(kept["file"].headers["cache-control"].partition("max-age=")[2].partition(",")[0]) <= 60


def test_the_testing_kit_drives_an_app_of_the_real_package(in_fal: Check) -> None:
    """Contract 10."""
    out = in_fal(
        "from runner.testing import AppClient, AppClientError\n"
        "with AppClient(app.GPT4App) as client:\n"
        "    answer = client.generate.with_headers({'x-fal-request-id': 'mine'})(app.Input(prompt='x'))\n"
        "    with client.step() as socket:\n"
        "        came = socket.call(prompt='y')\n"
        "    try:\n        client.generate(prompt=1)\n    except AppClientError as error:\n        status = error.status_code\n"
        "    out = [client.application, type(answer).__name__, answer.text, came.text, status]"
    )

    assert out == ["local/g-p-t-app", "Output", "mine", "y", 422]
