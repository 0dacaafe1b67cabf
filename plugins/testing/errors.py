"""What a test reads of an answer, and the error it gets when the answer is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...schemas.problems import ConfigError


class AppClientError(Exception):
    """The app answered with something else than success, or did not start.

    `message`, `status_code` and `headers` are those of fal's error of this name. `detail` is the
    `detail` of the body (a sentence, or the faults of a 422), `error_type` its kind where the server
    names one, `request_id` the request's, and `logs` what the app printed and logged for it, as far
    as this process could see. `status_code` is 0 when there was no answer.
    """

    def __init__(
        self,
        message: str,
        status_code: int = 0,
        headers: Mapping[str, str] | None = None,
        *,
        detail: Any = None,
        error_type: str | None = None,
        logs: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message, self.status_code, self.headers = message, status_code, dict(headers or {})
        self.detail, self.error_type, self.logs = detail, error_type, list(logs)

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-fal-request-id")

    def __str__(self) -> str:
        shown = "".join(f"\n  {line}" for lines in self.logs for line in lines.splitlines())
        return f"{self.message}\nThe log of this request:{shown}" if shown else self.message


class TestingError(ConfigError):
    """The test asks for what cannot be: an app that cannot be imported, a socket of a plain endpoint."""


class Answer(msgspec.Struct, frozen=True):
    """One whole answer as it came over the wire, whatever its status."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def error(self, method: str, url: str, logs: Sequence[str] = ()) -> AppClientError:
        """This answer as the error that a failed call raises."""
        detail, error_type = parts_of_error(self.body)
        message = f"Failed to {method} {url}: {self.status} {self.text}"
        error_type = error_type or self.headers.get("x-fal-error-type")
        return AppClientError(message, self.status, self.headers, detail=detail, error_type=error_type, logs=logs)


def parts_of_error(body: bytes) -> tuple[Any, str | None]:
    """The `detail` and the `error_type` in an error body; its text when it is no JSON object."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode(errors="replace"), None
    if not isinstance(value, dict):
        return value, None
    return value.get("detail", value), value.get("error_type")
