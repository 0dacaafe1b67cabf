"""fal's exceptions, and what their callers read.

`AppException`, `FieldException`, `RequestCancelledException` and the GPU family carry their own
answer. An exception nobody expected is looked at once more: when its text speaks of the GPU, the
answer is 503, so that whoever supervises the runner replaces it. All others answer 500.

The classes are dataclasses because apps extend them as such; unlike fal's they can be hashed and
pickled, and `str()` is the message even when the message is a default.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TextIO

from ...schemas.problems import RunnerError, printable
from ...schemas.request import current_request
from ...schemas.response import Response, json_response

CANCELLED = "Request cancelled by the client."
OUT_OF_MEMORY = "CUDA error: out of memory"
GPU_ERROR = "GPU error"
OUT_OF_MEMORY_SIGNS = (
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",
)
GPU_WORDS = ("cuda", "cudnn", "nvml", "nccl", "cublas", "cufft", "cusolver", "cusparse", "triton")
BODILESS = frozenset({204, 205, 304})


class FalServerlessException(Exception):
    """Base of fal's exceptions. One that is none of the kinds below answers 500."""

    def __post_init__(self) -> None:
        if dataclasses.is_dataclass(self):  # pickle calls the class with `args`
            self.args = tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.init)

    def __str__(self) -> str:
        return str(getattr(self, "message", None) or super().__str__())


@dataclass(eq=False)
class AppException(FalServerlessException, RunnerError):
    """Answer `status_code` with `message` as its detail."""

    message: str
    status_code: int

    def response(self) -> Response:
        return json_response({"detail": self.message}, status=self.status_code)


@dataclass(eq=False)
class FieldException(FalServerlessException, RunnerError):
    """Answer that one field of the input is wrong. Billed only when `billable_units` says so."""

    field: str
    message: str
    status_code: int = 422
    type: str = "value_error"
    billable_units: int | float | str | None = 0

    def to_pydantic_format(self) -> dict[str, list[dict[str, Any]]]:
        fault = {"loc": ["body", self.field], "msg": self.message, "type": self.type}
        return {"detail": [fault]}

    def response(self) -> Response:
        return field_answer(self.to_pydantic_format(), self.status_code, self.billable_units)


@dataclass(eq=False)
class RequestCancelledException(FalServerlessException, RunnerError):
    """Answer 499. For handlers that clean up after a cancel and want the caller to know."""

    message: str = CANCELLED

    def response(self) -> Response:
        return json_response({"detail": str(self)}, status=499)


@dataclass(eq=False)
class FileTooLargeError(FalServerlessException):
    message: str = "File is too large."


@dataclass(eq=False)
class AppFileUploadException(FalServerlessException):
    message: str
    relative_path: str


@dataclass(eq=False)
class GPUException(AppException):
    """The device is in trouble: 503, after which the runner should be replaced."""

    message: str = GPU_ERROR
    status_code: int = 503


@dataclass(eq=False)
class GPUOutOfMemoryException(GPUException):
    """The device's memory did not suffice."""


@dataclass(eq=False)
class CUDAOutOfMemoryException(GPUOutOfMemoryException):
    message: str = OUT_OF_MEMORY


class UnauthenticatedException(FalServerlessException):
    """fal's platform wants a key. Nothing here raises it; apps may catch it."""


class catch_gpu_exceptions(contextlib.ContextDecorator):
    """Within it, or in a function it decorates, errors of the GPU become a GPUException (503)."""

    def __enter__(self) -> catch_gpu_exceptions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None or isinstance(error, GPUException):
            return False
        said = gpu_error(error)
        if said == OUT_OF_MEMORY:
            raise CUDAOutOfMemoryException from error
        if said:
            raise GPUException from error
        return False


def gpu_error(error: BaseException) -> str | None:
    """What `error` says of the GPU, as its caller reads it; None when it says nothing.

    The rules are fal's and broad: a ValueError that merely mentions triton counts.
    """
    if isinstance(error, RuntimeError) and len(error.args) == 1 and isinstance(error.args[0], str):
        text = error.args[0]
        if ("CUDA" in text and "out of memory" in text) or any(s in text for s in OUT_OF_MEMORY_SIGNS):
            return OUT_OF_MEMORY
    text = str(error).lower()
    return GPU_ERROR if any(word in text for word in GPU_WORDS) else None


def answer_to(error: BaseException) -> Response | None:
    """The answer to an exception of an endpoint; None when it is just a bug, which answers 500.

    What nobody raised on purpose is also written to stdout, see `print_traceback`.
    """
    if (expected := _expected(error)) is not None:
        return expected
    print_traceback(error)
    if isinstance(error, Exception) and (said := gpu_error(error)) is not None:
        return json_response({"detail": said}, status=503)
    return None


def print_traceback(error: BaseException, stream: TextIO | None = None) -> None:
    """Write `error` as the one JSON line that collectors of fal's logs look for.

    Nothing is written to a terminal, where a person reads the log instead. `stream` is the
    process's real stdout unless given: what the app prints is put into its request's log.
    """
    stream = sys.__stdout__ if stream is None else stream
    if stream is None or stream.closed or stream.isatty():
        return
    chunks = traceback.format_exception(error)
    with contextlib.suppress(OSError):  # nobody reads stdout any more; the log has the traceback too
        stream.write(json.dumps({"traceback": "".join(reversed(chunks))}) + "\n")
        stream.flush()


def field_answer(body: Mapping[str, Any], status: int, units: Any) -> Response:
    """A fault of one field. `units`, when not zero, must be a number: the author's bug otherwise."""
    headers = {}
    if units:
        try:
            number = float(units)
        except (TypeError, ValueError):
            return json_response({"detail": "Internal Server Error"}, status=500)
        headers["x-fal-billable-units"] = format(number, ".0f" if isinstance(units, int) else ".8f")
    return json_response(body, status=status, headers=headers)


def _expected(error: Any) -> Response | None:
    """The answer to what FastAPI, Starlette or the fal package raise on purpose.

    None of the three is imported: their classes are known by module and name.
    """
    if isinstance(error, asyncio.CancelledError):
        return json_response({"detail": "Internal Server Error"}, status=500)
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if kind.__name__ == "HTTPException" and package in ("starlette", "fastapi"):
            return _http_answer(error.status_code, error.detail, error.headers)
        if kind.__name__ == "RequestValidationError" and package == "fastapi":
            return json_response(
                {"detail": printable(error.errors())}, status=422, headers={"x-fal-billable-units": "0"}
            )
        if kind.__module__.startswith("fal.exceptions"):
            if kind.__name__ == "AppException":
                return json_response({"detail": error.message}, status=error.status_code)
            if kind.__name__ == "FieldException":
                return field_answer(error.to_pydantic_format(), error.status_code, error.billable_units)
            if kind.__name__ == "RequestCancelledException":
                return json_response({"detail": error.message}, status=499)
    return None


def _http_answer(status: int, detail: Any, headers: Mapping[str, str] | None) -> Response:
    if status == 404:
        if detail != "Not Found":
            return json_response({"detail": detail}, status=404)  # fal drops the headers here
        detail = f"Path {current_request().path} not found"
        headers = {**(headers or {}), "x-fal-billable-units": "0"}
    if status < 200 or status in BODILESS:
        return Response(status=status, headers=headers)
    return json_response({"detail": detail}, status=status, headers=headers)
