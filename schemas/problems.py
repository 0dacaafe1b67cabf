"""Errors, sorted by blame; each knows what its caller reads.

    RunnerError                 raised on purpose; anything else is a bug and answers 500
    ├── ConfigError             the author or the operator: wrong before the first request, exit code 2
    ├── InvalidInput            the caller: 422 with one fault per field
    ├── InvalidOutput           the author: the value returned does not fit its annotation, 500
    ├── HTTPError               an author's own status and detail
    │   └── ServerError         ours, with fal's `error_type` in body and header
    └── RequestCancelled *      nobody: the caller left, asked to stop, or ran out of time

    * a BaseException outside the family, so that an author's `except Exception` lets it pass.

The wire shapes are fal's: a `detail` that is a sentence or a list of faults, and for errors of
the platform an `error_type`, repeated in the `X-Fal-Error-Type` header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .response import Response, json_response


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with an input, in pydantic's terms: `loc` is its path from `body` or `query`."""

    type: str
    loc: tuple[str | int, ...]
    msg: str
    input: Any = msgspec.UNSET
    ctx: dict[str, Any] | None = None


class RunnerError(Exception):
    """Base of the errors that are raised on purpose."""

    status = 500

    def response(self) -> Response:
        """The answer its caller reads."""
        return json_response({"detail": str(self)}, status=self.status)


class ConfigError(RunnerError, ValueError):
    """A setting, a class or a plugin is wrong. Raised before serving; `main` prints it and exits with 2."""


class InvalidInput(RunnerError):
    """The caller's input does not fit the endpoint. Answers 422 and costs nothing."""

    status = 422

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, f.loc))}: {f.msg}" for f in faults))
        self.faults = faults

    def response(self) -> Response:
        return json_response(
            {"detail": [printable(msgspec.to_builtins(fault, enc_hook=str, builtin_types=(bytes, bytearray, memoryview))) for fault in self.faults]},
            status=422,
            headers={"x-fal-billable-units": "0"},
        )


class InvalidOutput(RunnerError):
    """What the endpoint returned does not fit its return annotation: a bug of the app, answers 500."""

    def response(self) -> Response:
        return json_response({"detail": "Internal Server Error"}, status=500)


class HTTPError(RunnerError):
    """Answer this status and detail. Raise it anywhere below an endpoint; it reaches the caller as it is."""

    def __init__(
        self, status: int, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    def response(self) -> Response:
        return json_response({"detail": self.detail}, status=self.status, headers=self.headers)


class ServerError(HTTPError):
    """An error of the server itself, named by one of fal's `error_type` codes."""

    def __init__(
        self, status: int, detail: str, error_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, {"X-Fal-Error-Type": error_type, **(headers or {})})
        self.error_type = error_type

    def response(self) -> Response:
        body = {"detail": self.detail, "error_type": self.error_type}
        return json_response(body, status=self.status, headers=self.headers)


def not_taking(why: str, *, closes: bool = False) -> ServerError:
    """503: nothing is begun at present. With `closes` another connection may lead to who does."""
    headers = {"Retry-After": "1", "X-Fal-Needs-Retry": "1"}
    if closes:
        headers["connection"] = "close"
    return ServerError(503, why, "runner_scheduling_failure", headers)


def stopped_problem(reason: str) -> Response:
    """The answer to a request that was stopped, by the reason its token has (contract 7.8 and 8)."""
    if reason == "request_timeout":
        error = ServerError(504, "the request took longer than its timeout", "request_timeout")
    elif reason == "draining":
        headers = {"Retry-After": "1", "connection": "close"}
        error = ServerError(503, "the server is stopping", "runner_disconnected", headers)
    else:
        error = ServerError(499, "Request cancelled by the client.", "client_cancelled")
    return error.response()


class RequestCancelled(BaseException):
    """This request is over: its caller left, asked to stop, or ran out of time.

    Raised inside the author's code, in the thread that does the work. Let it pass; use `finally`
    to clean up. A BaseException, so that `except Exception` cannot swallow it.
    """


def printable(value: Any) -> Any:
    """An input as it may be echoed: bytes counted, surrogates and non-finite numbers made text.

    The rules are those of fal's runner (its `test_request_validation_errors`).
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<binary {len(value)} bytes>"
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode() if not value.isascii() else value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(printable(key)): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [printable(item) for item in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)
