"""What an app written for fal finds here when the fal package is not installed."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import importlib
import importlib.machinery
import io
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import msgspec
import pluggy
import pytest
from runner.plugins import fal as fal_plugin
from runner.plugins import hookspecs
from runner.plugins.fal import (
    lifespan,
    map_error,
    provide_modules,
    response_headers,
)
from runner.plugins.fal.errors import catch_gpu_exceptions, print_traceback
from runner.plugins.fal.imported import when_imported
from runner.plugins.types import type_codec
from runner.schemas.app import derive_alias
from runner.schemas.health import Health, State
from runner.schemas.problems import ConfigError, InvalidInput, RunnerError
from runner.schemas.request import Request, _current
from runner.schemas.response import Response

import runner

NAMES = {name: getattr(runner, name) for name in runner.__all__}


@pytest.fixture
def fal(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`import fal`, as an app does it on a machine without the package."""
    modules = provide_modules(NAMES)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fal"]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["fal"]


def answer(error: BaseException) -> Response | None:
    """What the service sends for `error`: its own answer, else what the plugin maps it to."""
    if isinstance(error, RunnerError):
        return error.response()
    return map_error(service=None)(error)


def read(error: BaseException) -> tuple[int, Any, dict[str, str]]:
    response = answer(error)
    assert response is not None
    return response.status, msgspec.json.decode(response.body), response.headers


# names


def test_the_plugin_answers_its_hooks_as_they_are_specified() -> None:
    plugins = pluggy.PluginManager("runner")
    plugins.add_hookspecs(hookspecs)

    plugins.register(fal_plugin)

    plugins.check_pending()
    assert {hook.name for hook in plugins.get_hookcallers(fal_plugin) or ()} == {
        "describe_app", "intercept_requests", "lifespan", "map_error", "mount_app", "provide_modules", "response_headers",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("class_name", "alias"),
    [
        ("MyGoodApp", "my-good-app"),
        ("SDXLModel", "s-d-x-l-model"),
        ("GPT4App", "g-p-t-app"),
        ("myApp", "app"),
        ("gpt_4_turbo", "gpt-4-turbo"),
        ("app123", "app123"),
    ],
)
def test_an_app_is_named_after_its_class_as_fal_names_it(class_name: str, alias: str) -> None:
    """Contract 1.1, checklist 4."""
    assert derive_alias(class_name) == alias


@pytest.mark.parametrize("class_name", ["", "_", "__"])
def test_a_class_name_without_a_letter_gives_no_alias(class_name: str) -> None:
    """Contract 1.1."""
    with pytest.raises(ConfigError, match="app_name"):
        derive_alias(class_name)


def test_an_app_that_cannot_be_served_is_a_value_error(fal: ModuleType) -> None:
    """Checklist 5."""
    with pytest.raises(ValueError, match="Careless overrides __init__; write setup"):

        class Careless(fal.App):  # type: ignore[name-defined, misc]
            def __init__(self) -> None: ...

    with pytest.raises(ValueError, match="is marked twice"):

        class Twice(fal.App):  # type: ignore[name-defined, misc]
            @fal.endpoint("/a")
            @fal.endpoint("/b")
            def run(self) -> None: ...

    class Empty(fal.App):  # type: ignore[name-defined, misc]
        pass

    with pytest.raises(ValueError, match="Empty has no endpoint"):
        runner.describe_app(Empty)


def test_fal_names_are_our_own(fal: ModuleType) -> None:
    assert fal.App is runner.App
    assert fal.endpoint is runner.endpoint
    assert fal.HealthCheck is runner.HealthCheck
    assert importlib.import_module("fal.app").App is runner.App
    assert importlib.import_module("fal.sdk").HealthCheck is runner.HealthCheck


def test_the_example_app_is_a_runner_app(fal: ModuleType) -> None:
    """Contract 1.1; the example of the design, section 9."""
    namespace: dict[str, Any] = {"__name__": "example", "load_model": lambda: str.upper}
    source = """
import fal
from pydantic import BaseModel

class Input(BaseModel):
    prompt: str

class Output(BaseModel):
    text: str

class MyApp(fal.App):
    machine_type = "GPU-A100"

    def setup(self):
        self.model = load_model()

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        result = self.model(input.prompt)
        return Output(text=result)
"""

    exec(source, namespace)
    app = namespace["MyApp"]()
    app.setup()

    assert isinstance(app, runner.App)
    assert app.generate(namespace["Input"](prompt="hello")).text == "HELLO"


@pytest.mark.parametrize(
    "statement",
    [
        "from fal import App, ContainerImage, HealthCheck, cached, endpoint, function, realtime",
        "from fal.app import App, endpoint, realtime",
        "from fal.api import function",
        "from fal.container import ContainerImage",
        "from fal.exceptions import AppException, FieldException, RequestCancelledException",
        "from fal.exceptions import CUDAOutOfMemoryException, GPUException, catch_gpu_exceptions",
        "from fal.realtime import realtime",
        "from fal.ref import get_current_app, set_current_app",
        "from fal.sdk import HealthCheck, RetryConfig",
        "from fal.toolkit import FAL_MODEL_WEIGHTS_DIR, FAL_PERSISTENT_DIR, FAL_REPOSITORY_DIR, clone_repository",
        "from fal.toolkit import FalBaseModel, Field, Hidden, ImageSizeField, ImageSizeInput, get_image_size",
        "from fal.toolkit import Audio, AudioField, File, FileField, Image, ImageField, Video, VideoField",
        "from fal.toolkit import ImageValidationConfig, VideoNormalizationConfig, VideoValidationConfig",
        "from fal.toolkit.audio import Audio, AudioField",
        "from fal.toolkit.file import File, FileField",
        "from fal.toolkit.file.file import File",
        "from fal.toolkit.file.types import FileData, FileRepository",
        "from fal.toolkit import CompressedFile, download_file, download_model_weights, read_image_from_url",
        "from fal.toolkit.types import AudioInput, FileInput, ImageInput, VideoInput",
        "from fal.toolkit.utils.download_utils import download_file",
        "from fal.toolkit.image.image import read_image_from_url",
        "from fal.toolkit.image import Image, ImageField, ImageSize, ImageSizeInput, get_image_size",
        "from fal.toolkit.video import Video, VideoField",
        "from fal.toolkit.image.image import ImageSize",
        "from fal.toolkit.pydantic import FalBaseModel, Field, Hidden",
        "from fal.toolkit.exceptions import FileUploadException",
        "from fal.toolkit.utils import clone_repository",
        "from fal.toolkit.utils.download_utils import DownloadError",
        "from fal.toolkit.utils.endpoint import cancel_on_disconnect",
        "from fal import *",
        "import fal.toolkit.utils.endpoint",
    ],
)
def test_an_app_imports_what_it_uses_at_run_time(fal: ModuleType, statement: str) -> None:
    exec(statement, {})


def test_fal_realtime_is_the_decorator_although_a_module_has_its_name(fal: ModuleType) -> None:
    importlib.import_module("fal.realtime")

    assert fal.realtime is NAMES["realtime"]


@pytest.mark.parametrize(
    "statement",
    [
        "from fal.toolkit import KVStore",
        "from fal.toolkit.utils import KVStore",
    ],
)
def test_a_name_that_comes_later_fails_with_a_sentence_that_says_so(fal: ModuleType, statement: str) -> None:
    with pytest.raises(ImportError, match=r"this runner does not have fal\.toolkit.* yet; .*pip install fal"):
        exec(statement, {})


def test_the_files_of_fal_are_ours_and_of_one_family(fal: ModuleType) -> None:
    toolkit = fal.toolkit

    for name in ("File", "Image", "Audio", "Video", "CompressedFile"):
        assert getattr(toolkit, name) is getattr(runner, name)
    assert toolkit.Image is importlib.import_module("fal.toolkit.image.image").Image
    assert pickle.loads(pickle.dumps(toolkit.Image("https://example.com/a.png", width=3))).width == 3


def test_a_model_takes_a_file_of_fal_by_url_or_object(fal: ModuleType) -> None:
    """Checklist 30."""

    class Input(fal.toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        image: fal.toolkit.Image  # type: ignore[name-defined]

    Input.model_rebuild(_types_namespace={"fal": fal})
    codec = type_codec(Input)
    assert codec is not None
    for sent in ('"https://example.com/a.png"', '{"url":"https://example.com/a.png"}'):
        image = codec.decode(b'{"image":%s}' % sent.encode()).image
        assert (type(image), image.url) == (fal.toolkit.Image, "https://example.com/a.png")
    with pytest.raises(InvalidInput, match="image: Value error, value must be a valid URL"):
        codec.decode(b'{"image":"not_a_valid_url"}')
    assert codec.schema(output=False)[1]["Image"]["ui"] == {"field": "image"}


def test_outside_a_service_bytes_are_answered_as_a_data_uri(fal: ModuleType) -> None:
    """Checklist 29."""
    codec = type_codec(fal.toolkit.File)
    assert codec is not None

    sent = msgspec.json.decode(codec.encode(fal.toolkit.File.from_bytes(b"ab", "text/plain")))

    assert (sent["url"], sent["content_type"], sent["file_size"]) == ("data:text/plain;base64,YWI=", "text/plain", 2)


def test_an_unknown_name_lists_what_there_is(fal: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"no fal\.sync_dir; of fal it has .*App, .*endpoint.*pip install fal"):
        _ = fal.sync_dir
    with pytest.raises(ImportError, match=r"no fal\.sync_dir"):
        exec("from fal import sync_dir", {})
    assert not hasattr(fal, "sync_dir")


def test_fal_function_says_to_write_a_class(fal: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"class MyApp\(fal\.App\)"):
        fal.function("virtualenv", requirements=["torch"])


def test_a_container_image_is_accepted_and_kept(fal: ModuleType, tmp_path: Path) -> None:
    """Contract 1.2: the environment is the operator's."""
    (tmp_path / "Dockerfile").write_text("FROM python:3.11\n")

    image = fal.ContainerImage.from_dockerfile(str(tmp_path / "Dockerfile"), build_args={"A": "1"})
    image.add_dockerignore(patterns=["*.pyc"])

    assert image.dockerfile_str == "FROM python:3.11\n"
    with pytest.raises(ValueError, match="empty"):
        fal.ContainerImage.from_dockerfile_str(" ")


def test_a_retry_config_is_a_dict_of_conditions(fal: ModuleType) -> None:
    config = importlib.import_module("fal.sdk").RetryConfig

    assert config(server_error=3, timeout=-1).to_dict() == {
        "server_error": {"retries": 3},
        "timeout": {"retries": 0},
    }
    with pytest.raises(ValueError, match="condition"):
        config().to_dict()


def test_asking_for_a_model_without_pydantic_says_what_to_install(
    fal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "runner.plugins.fal.models", raising=False)
    monkeypatch.delattr("runner.plugins.fal.models", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic", None)

    with pytest.raises(ImportError, match="FalBaseModel needs pydantic 2; pip install pydantic"):
        exec("from fal.toolkit import FalBaseModel", {})


def test_the_names_of_the_fal_modules_are_known_before_they_are_made(fal: ModuleType) -> None:
    assert {name for name in sys.modules if name.partition(".")[0] == "fal"} == set(fal_plugin.MODULES)


def test_the_fal_module_does_not_import_pydantic_by_itself() -> None:
    program = (
        "import sys, runner, runner.plugins.fal as f;"
        "dict(f.provide_modules({'App': runner.App, 'HealthCheck': runner.HealthCheck}));"
        "print([m for m in ('pydantic', 'fastapi', 'fal', 'fal_client') if m in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )

    assert done.stdout == "[]\n"


# errors (contract 2.5)


def test_an_app_exception_answers_its_status_and_message(fal: ModuleType) -> None:
    """Checklist 19."""
    assert read(fal.exceptions.AppException("not yours", 401)) == (401, {"detail": "not yours"}, {})
    assert read(fal.exceptions.AppException(message="x", status_code=418))[0] == 418


@pytest.mark.parametrize(
    ("units", "header"), [(5, "5"), (0.0000123, "0.00001230"), ("2", "2.00000000"), (0, None), (None, None)]
)
def test_a_field_exception_bills_what_it_says(fal: ModuleType, units: Any, header: str | None) -> None:
    """Checklist 18."""
    status, body, headers = read(fal.exceptions.FieldException("prompt", "is rude", billable_units=units))

    assert status == 422
    assert body == {"detail": [{"loc": ["body", "prompt"], "msg": "is rude", "type": "value_error"}]}
    assert headers.get("x-fal-billable-units") == header


def test_billable_units_that_are_no_number_answer_500(fal: ModuleType) -> None:
    """Checklist 18."""
    error = fal.exceptions.FieldException("prompt", "is rude", billable_units="many")

    assert read(error)[:2] == (500, {"detail": "Internal Server Error"})


def test_a_cancelled_request_answers_499(fal: ModuleType) -> None:
    """Checklist 20."""
    cancelled = fal.exceptions.RequestCancelledException

    assert read(cancelled())[:2] == (499, {"detail": "Request cancelled by the client."})
    assert read(cancelled("bye"))[:2] == (499, {"detail": "bye"})


def test_gpu_exceptions_answer_503(fal: ModuleType) -> None:
    assert read(fal.exceptions.GPUException())[:2] == (503, {"detail": "GPU error"})
    assert read(fal.exceptions.CUDAOutOfMemoryException())[:2] == (503, {"detail": "CUDA error: out of memory"})


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "CUDA error: out of memory"),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at x"), "CUDA error: out of memory"),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR"), "CUDA error: out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."), "CUDA error: out of memory"),
        (RuntimeError("CUDA out of memory", 2), "GPU error"),
        (ValueError("CUDA out of memory"), "GPU error"),
        (ValueError("triton x"), "GPU error"),
        (RuntimeError("NCCL timeout"), "GPU error"),
    ],
)
def test_an_error_that_speaks_of_the_gpu_answers_503(error: Exception, detail: str) -> None:
    """Checklist 21."""
    assert read(error)[:2] == (503, {"detail": detail})


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError(7), KeyError("x"), KeyboardInterrupt("cuda")])
def test_any_other_error_is_left_to_the_service(error: BaseException) -> None:
    """Checklist 22: the service answers 500."""
    assert answer(error) is None


def test_a_cancellation_that_escapes_a_handler_answers_500() -> None:
    assert read(asyncio.CancelledError())[:2] == (500, {"detail": "Internal Server Error"})


def test_file_errors_of_fal_are_left_to_the_service(fal: ModuleType) -> None:
    assert answer(fal.exceptions.FileTooLargeError()) is None
    assert answer(fal.toolkit.FileUploadException("x")) is None


def foreign(module: str, name: str, **attributes: Any) -> Exception:
    """An exception as FastAPI or the fal package would define it."""
    error: Exception = type(name, (Exception,), {"__module__": module})()
    vars(error).update(attributes)
    return error


def test_an_http_exception_keeps_its_status_detail_and_headers() -> None:
    kind = {"module": "fastapi.exceptions", "name": "HTTPException"}

    error = foreign(**kind, status_code=409, detail={"why": ["busy"]}, headers={"Retry-After": "3"})

    assert read(error) == (409, {"detail": {"why": ["busy"]}}, {"retry-after": "3"})


def test_a_404_of_the_app_loses_its_headers() -> None:
    """Contract 2.1."""
    error = foreign("starlette.exceptions", "HTTPException", status_code=404, detail="no cat", headers={"X": "1"})

    assert read(error) == (404, {"detail": "no cat"}, {})


def test_a_plain_404_of_the_app_names_the_path() -> None:
    """Contract 2.1, checklist 3."""
    token = _current.set(Request("r", path="/cats/7"))
    try:
        error = foreign("starlette.exceptions", "HTTPException", status_code=404, detail="Not Found", headers=None)
        status, body, headers = read(error)
    finally:
        _current.reset(token)

    assert (status, body) == (404, {"detail": "Path /cats/7 not found"})
    assert headers["x-fal-billable-units"] == "0"


def test_a_status_that_allows_no_body_has_none() -> None:
    error = foreign("fastapi.exceptions", "HTTPException", status_code=204, detail="No Content", headers=None)

    response = answer(error)

    assert response is not None
    assert (response.status, response.body) == (204, b"")


def test_a_request_validation_error_of_the_app_answers_422_and_costs_nothing() -> None:
    """Contract 2.4."""
    faults = [{"type": "value_error", "loc": ("body", "x"), "msg": "bad", "input": b"\x89PNG", "ctx": {"n": float("nan")}}]
    error = foreign("fastapi.exceptions", "RequestValidationError", errors=lambda: faults)

    status, body, headers = read(error)

    assert status == 422
    assert body["detail"][0] == {
        "type": "value_error", "loc": ["body", "x"], "msg": "bad", "input": "<binary 4 bytes>", "ctx": {"n": "nan"},
    }  # fmt: skip
    assert headers["x-fal-billable-units"] == "0"


def test_a_class_of_the_app_that_is_only_called_http_exception_is_a_bug() -> None:
    assert answer(foreign("app", "HTTPException", status_code=409, detail="x", headers=None)) is None


def test_exceptions_can_be_printed_hashed_pickled_and_extended(fal: ModuleType) -> None:
    @dataclasses.dataclass
    class OutOfCredit(fal.exceptions.AppException):  # type: ignore[name-defined, misc]
        message: str = "no credit"
        status_code: int = 402

    error = fal.exceptions.FieldException(field="a", message="b", status_code=400)

    assert str(error) == "b"
    assert hash(error)
    assert pickle.loads(pickle.dumps(error)).field == "a"
    assert copy.copy(error).status_code == 400
    assert read(OutOfCredit())[:2] == (402, {"detail": "no credit"})


def test_catch_gpu_exceptions_raises_what_the_gpu_meant(fal: ModuleType) -> None:
    @catch_gpu_exceptions()
    def work(error: Exception) -> None:
        raise error

    own = fal.exceptions.GPUException("mine")

    with pytest.raises(fal.exceptions.CUDAOutOfMemoryException):
        work(RuntimeError("CUDA error: out of memory"))
    with pytest.raises(fal.exceptions.GPUException, match="GPU error"):
        work(RuntimeError("cublas is unhappy"))
    with pytest.raises(fal.exceptions.GPUException, match="mine"):
        work(own)
    with pytest.raises(KeyError):
        work(KeyError("x"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_an_unexpected_error_is_one_line_of_json_with_its_last_frame_first() -> None:
    """Checklist 22."""
    stream = io.StringIO()

    print_traceback(raised(ValueError("boom")), stream)

    text = json.loads(stream.getvalue())["traceback"]
    assert stream.getvalue().count("\n") == 1
    assert text.startswith("ValueError: boom\n")
    assert text.endswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("error", [ValueError("boom"), ValueError("triton x"), ConfigError("boom"), SystemExit(3)])
def test_an_error_that_nobody_expected_is_printed_once(
    capfd: pytest.CaptureFixture[str], error: BaseException
) -> None:
    """Checklist 21, 22: whether it answers 500 or, when it speaks of the GPU, 503."""
    map_error(service=None)(raised(error))

    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["traceback"].partition("\n")[0].endswith(f"{type(error).__name__}: {error}")


def test_an_answer_raised_on_purpose_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    error = foreign("fastapi.exceptions", "HTTPException", status_code=500, detail="x", headers=None)

    assert answer(raised(error)) is not None

    assert capfd.readouterr().out == ""


def test_nothing_is_printed_to_a_terminal() -> None:
    stream = Terminal()

    print_traceback(raised(ValueError("boom")), stream)

    assert stream.getvalue() == ""


# hints (contract 1.3)


def hints_of(provide: Any) -> Any:
    app = type("Hinting", (), {"provide_hints": lambda self: provide()})()
    headers = response_headers(service=SimpleNamespace(instance=app))
    return lambda: headers(Request())


def test_hints_are_asked_for_every_answer() -> None:
    """Checklist 11."""
    loaded: list[str] = ["a", "b"]
    hints = hints_of(lambda: loaded)

    assert hints() == [(b"x-fal-runner-hints", b"a,b")]
    loaded[:] = []
    assert hints() == [(b"x-fal-runner-hints", b"")]


def test_an_app_that_gives_no_hints_has_no_header() -> None:
    """Checklist 11."""
    assert response_headers(service=SimpleNamespace(instance=runner.App()))(Request()) == []


def test_a_hint_that_no_header_can_hold_is_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Checklist 11."""
    hints = hints_of(lambda: ["café", "日本", "a\r\nSet-Cookie: x"])

    assert hints() == hints() == [(b"x-fal-runner-hints", "café".encode("latin-1"))]
    assert len(caplog.records) == 2


def test_hints_that_fail_are_logged_once_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[str]:
        raise ValueError("no hints today")

    hints = hints_of(fail)

    assert hints() == hints() == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


# what apps look up process-wide (contract 1.3)


async def test_the_current_app_and_the_runner_state_follow_the_service(
    fal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checklist 7."""
    monkeypatch.setenv("FAL_RUNNER_STATE", "")
    monkeypatch.setitem(sys.modules, "fal_client", None)
    health, app = Health(), object()
    seen: list[str] = []

    async with lifespan(service=SimpleNamespace(health=health, instance=app)):
        seen.append(os.environ["FAL_RUNNER_STATE"])
        assert fal.ref.get_current_app() is app
        health.become(State.READY)
        seen.append(os.environ["FAL_RUNNER_STATE"])
        health.become(State.DRAINING)
        seen.append(os.environ["FAL_RUNNER_STATE"])

    assert seen == ["SETUP", "RUNNING", "TERMINATING"]
    assert fal.ref.get_current_app() is None


async def test_calls_of_fal_client_made_inside_an_app_know_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 1.4."""
    client: Any = ModuleType("fal_client")
    client.__spec__ = importlib.machinery.ModuleSpec("fal_client", None)
    client.set_get_current_app = lambda getter: vars(client).update(getter=getter)
    monkeypatch.setitem(sys.modules, "fal_client", client)
    monkeypatch.setenv("FAL_RUNNER_STATE", "")
    app = object()

    async with lifespan(service=SimpleNamespace(health=Health(), instance=app)):
        assert client.getter() is app


def test_fal_client_knows_the_app_when_the_app_imports_it_later_and_is_not_imported_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 1.4."""
    (tmp_path / "late_client.py").write_text("def set_get_current_app(getter):\n    globals()['getter'] = getter\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told: list[ModuleType] = []

    forget = when_imported("late_client", told.append)
    assert "late_client" not in sys.modules
    client = importlib.import_module("late_client")
    forget()

    assert told == [client]
    assert sys.modules.pop("late_client") is client


# toolkit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> tuple[str, list[str]]:
    """A repository of two commits: its address and their hashes."""
    folder = tmp_path / "model.git"
    folder.mkdir()
    git(folder, "init", "-q")
    hashes = []
    for text in ("one", "two"):
        (folder / "weights.txt").write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", text)
        hashes.append(git(folder, "rev-parse", "HEAD"))
    return folder.as_uri(), hashes


def test_a_repository_is_cloned_at_a_commit_and_used_again(
    fal: ModuleType, origin: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    url, (first, _) = origin
    clone = fal.toolkit.clone_repository

    folder = clone(url, commit_hash=first, target_dir=tmp_path / "repos", include_to_path=True)
    (folder / "mine.txt").touch()
    again = clone(url, commit_hash=first, target_dir=tmp_path / "repos")

    assert folder == again == tmp_path / "repos" / f"model-{first[:8]}"
    assert (folder / "weights.txt").read_text() == "one"
    assert (folder / "mine.txt").exists()
    assert sys.path[0] == str(folder)
    assert [p.name for p in (tmp_path / "repos").iterdir()] == [folder.name]


def test_a_forced_clone_replaces_the_folder(fal: ModuleType, origin: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = origin
    folder = fal.toolkit.clone_repository(url, target_dir=tmp_path / "repos", repo_name="m")
    (folder / "mine.txt").touch()

    fal.toolkit.clone_repository(url, target_dir=tmp_path / "repos", repo_name="m", force=True)

    assert not (folder / "mine.txt").exists()
    assert (folder / "weights.txt").read_text() == "two"


def test_a_clone_that_fails_leaves_nothing_and_shows_what_git_said(fal: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        fal.toolkit.clone_repository((tmp_path / "no.git").as_uri(), target_dir=tmp_path / "repos")

    assert "no.git" in caught.value.stderr
    assert list((tmp_path / "repos").iterdir()) == []


def test_a_short_commit_hash_is_refused(fal: ModuleType) -> None:
    with pytest.raises(ValueError, match="eight characters"):
        fal.toolkit.clone_repository("https://example.com/x.git", commit_hash="abc")


class Watched:
    """Starlette's Request, as far as a disconnect goes."""

    def __init__(self) -> None:
        self.left = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_cancel_on_disconnect_stops_its_body_when_the_caller_leaves(fal: ModuleType) -> None:
    request = Watched()
    reached: list[str] = []

    with anyio.fail_after(1):
        async with fal.toolkit.utils.endpoint.cancel_on_disconnect(request):
            reached.append("started")
            request.left.set()
            await anyio.sleep_forever()
            reached.append("finished")
        reached.append("after")

    assert reached == ["started", "after"]


async def test_cancel_on_disconnect_lets_a_body_finish_while_the_caller_stays(fal: ModuleType) -> None:
    with anyio.fail_after(1):
        async with fal.toolkit.utils.endpoint.cancel_on_disconnect(Watched()):
            await anyio.lowlevel.checkpoint()
        async with fal.toolkit.utils.endpoint.cancel_on_disconnect(Request("r")):
            await anyio.lowlevel.checkpoint()


# models (contract 3.2)


def test_hidden_fields_are_marked_and_ordered_fields_come_first(fal: ModuleType) -> None:
    """Checklist 26."""
    toolkit = fal.toolkit

    class Input(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        FIELD_ORDERS: ClassVar = ["prompt"]
        debug: bool = toolkit.Hidden(toolkit.Field(default=False))
        prompt: str

    schema = Input.model_json_schema()

    assert list(schema["properties"]) == ["prompt", "debug"]
    assert schema["properties"]["debug"]["ui"] == {"hidden": True}
    assert "ui" not in schema["properties"]["prompt"]
    assert Input(prompt="x", debug=True).debug is True


def test_the_fields_of_files_name_their_widget(fal: ModuleType) -> None:
    """Contract 3.2, checklist 26: also on a plain `str`, and without overwriting the author's own."""
    toolkit = fal.toolkit

    class Input(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        image_url: str = toolkit.ImageField(description="What to paint over.")
        sound: str = toolkit.AudioField(default="", ui={"important": True})
        data: str = toolkit.FileField(default="", json_schema_extra={"ui": {"field": "archive"}, "examples": ["a"]})
        clip: str = toolkit.VideoField(
            default="",
            constraints=toolkit.VideoValidationConfig(max_duration=9, min_aspect_ratio=0.5, max_aspect_ratio=2),
            combined_constraints=toolkit.VideoValidationConfig(max_frames=100),
            normalization=toolkit.VideoNormalizationConfig(),
        )

    shown = Input.model_json_schema()["properties"]

    assert shown["image_url"]["ui"] == {"field": "image"}
    assert shown["image_url"]["description"] == "What to paint over."
    assert shown["sound"]["ui"] == {"important": True, "field": "audio"}
    assert (shown["data"]["ui"], shown["data"]["examples"]) == ({"field": "archive"}, ["a"])
    assert shown["clip"]["ui"] == {"field": "video"}
    assert shown["clip"]["x-fal"] == {
        "max_duration": 9, "min_aspect_ratio": 0.5, "max_aspect_ratio": 2, "combined": {"max_frames": 100},
    }  # fmt: skip
    assert Input(image_url="x").image_url == "x"


def test_a_limit_of_a_picture_that_callers_need_not_know_is_not_shown(fal: ModuleType) -> None:
    limits = fal.toolkit.ImageValidationConfig(max_file_size=9, timeout=3)

    assert fal.toolkit.to_xfal(limits) == {"max_file_size": 9}


def test_the_marks_of_a_nested_model_reach_the_schema_of_the_outer_one(fal: ModuleType) -> None:
    toolkit = fal.toolkit

    class Inner(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        FIELD_ORDERS: ClassVar = ["b"]
        a: int = toolkit.Hidden(toolkit.Field(default=1))
        b: int = 2

    class Outer(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        inner: Inner

    Outer.model_rebuild(_types_namespace={"Inner": Inner})
    inner = Outer.model_json_schema()["$defs"]["Inner"]

    assert list(inner["properties"]) == ["b", "a"]
    assert inner["properties"]["a"]["ui"] == {"hidden": True}


def test_hidden_refuses_what_a_form_could_not_fill_in(fal: ModuleType) -> None:
    with pytest.raises(TypeError, match="Field"):
        fal.toolkit.Hidden(False)
    with pytest.raises(ValueError, match="default"):
        fal.toolkit.Hidden(fal.toolkit.Field())


def test_schema_ignores_still_works_and_warns(fal: ModuleType) -> None:
    toolkit = fal.toolkit

    with pytest.warns(DeprecationWarning, match="Hidden"):

        class Input(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
            SCHEMA_IGNORES: ClassVar = {"debug"}
            debug: bool = False

    assert Input.model_json_schema()["properties"]["debug"]["ui"] == {"hidden": True}


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
    ],
)
def test_an_image_size_may_be_a_preset(fal: ModuleType, preset: str, size: tuple[int, int]) -> None:
    found = fal.toolkit.get_image_size(preset)

    assert (found.width, found.height) == size
    assert fal.toolkit.get_image_size(found) is found


def test_what_is_no_image_size_is_a_type_error(fal: ModuleType) -> None:
    with pytest.raises(TypeError, match="huge"):
        fal.toolkit.get_image_size("huge")
    with pytest.raises(ValueError, match="less than or equal to 14142"):
        fal.toolkit.image.ImageSize(width=20000)


def test_an_image_size_field_shows_its_limits(fal: ModuleType) -> None:
    toolkit = fal.toolkit
    limits = toolkit.ImageSizeConstraints(max_width=2048, multiple_of=8)
    size_input = toolkit.ImageSizeInput

    class Input(toolkit.FalBaseModel):  # type: ignore[name-defined, misc]
        __annotations__ = {"image_size": size_input}
        image_size = toolkit.ImageSizeField(
            default="square", constraints=limits, ui={"important": True}, json_schema_extra={"ui": {"hint": "h"}}
        )

    shown = Input.model_json_schema()["properties"]["image_size"]

    assert shown["x-fal"] == {"max_width": 2048, "multiple_of": 8}
    assert shown["ui"] == {"hint": "h", "important": True}


def test_limits_that_nothing_can_meet_are_refused(fal: ModuleType) -> None:
    limits = fal.toolkit.ImageSizeConstraints

    with pytest.raises(ValueError, match="min_width"):
        limits(min_width=2, max_width=1)
    with pytest.raises(ValueError, match="together"):
        limits(min_aspect_ratio=1.0)
