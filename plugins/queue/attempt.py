"""One attempt at a job: the request that it is to the service, and what comes back of it."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
import msgspec

from ...schemas.asgi import Message, Scope
from ...schemas.problems import ServerError
from ...schemas.queue import Job
from ...schemas.response import Response


class Answer:
    """What the service sends for a job, put together; ASGI's two functions for a request without a wire."""

    def __init__(self, body: bytes) -> None:
        self._input: bytes | None = body
        self.status = 500
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    @property
    def media_type(self) -> str | None:
        return self.headers.get("content-type")

    async def receive(self) -> Message:
        if self._input is None:
            await anyio.sleep_forever()  # a job has no client who could hang up
        body, self._input = self._input, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")


def scope_of(job: Job) -> Scope:
    """The ASGI scope of a job: a POST to its endpoint where its caller found us, with the headers that came with it."""
    origin = urlsplit(job.origin)
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in job.headers]
    headers.append((b"x-fal-request-id", job.id.encode("latin-1")))
    if origin.netloc:
        headers.append((b"host", origin.netloc.encode("latin-1", "replace")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": origin.scheme or "http",
        "path": origin.path + job.path,
        "raw_path": (origin.path + job.path).encode(),
        "query_string": job.query.encode("latin-1"),
        "root_path": origin.path,
        "headers": headers,
        "client": None,
        "server": None,
    }


def problem_of(answer: Response | Answer) -> tuple[str, str]:
    """`error` and `error_type` of a failed job, for its status (contract 7.4, 7.8)."""
    error_type = answer.headers.get("x-fal-error-type")
    try:
        body = msgspec.json.decode(bytes(answer.body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        detail = "; ".join(str(fault.get("msg", fault)) if isinstance(fault, dict) else str(fault) for fault in detail)
    if error_type is None:
        error_type = {499: "client_cancelled", 504: "request_timeout", 503: "runner_server_error"}.get(
            answer.status, "runner_server_error" if answer.status >= 500 else "bad_request"
        )
    return str(detail or f"Invalid status code: {answer.status}"), error_type


def lost(told: str) -> Response:
    return ServerError(503, told, "runner_disconnected").response()


def internal_error() -> Response:
    return ServerError(500, "Internal Server Error", "internal_error").response()
