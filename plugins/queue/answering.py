"""What the queue answers over HTTP: submit, status, its stream, result, cancel (contract 7.3 to 7.9)."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import msgspec

from ...schemas.health import State
from ...schemas.origins import Origins
from ...schemas.problems import HTTPError, ServerError
from ...schemas.queue import Job, JobState, LogLine, Priority, Unstorable
from ...schemas.request import Request
from ...schemas.response import EVENTS, Response, json_response
from ...schemas.routes import compiled
from ...schemas.service import Route, ServiceView
from .dispatching import Dispatcher, Live
from .retries import wanted

LONGEST_ID = 100
ID = re.compile(r"[\w-][\w.-]*")
REQUEST = re.compile(r"(?:.+/)?requests/(?P<id>[^/]+)(?:/(?P<what>status/stream|status|response|cancel))?/?")
START_TIMEOUTS = ("x-fal-request-start-timeout", "x-fal-request-timeout")  # the first that is there counts
OURS = frozenset({  # headers that are not the endpoint's
    *START_TIMEOUTS, "accept-encoding", "authorization", "connection", "content-encoding", "content-length", "cookie",
    "expect", "host", "idempotency-key", "keep-alive", "origin", "proxy-authorization", "referer", "te", "trailer",
    "transfer-encoding", "upgrade", "x-fal-idempotency-key", "x-fal-no-retry", "x-fal-queue-priority",
    "x-fal-request-id", "x-fal-retry-config", "x-fal-store-io", "x-fal-target-url",
})  # fmt: skip
OUR_QUERY = ("fal_webhook", "fal_max_queue_length", "fal_jwt_token")
CANCEL_STATUS = {"OK": 200, "CANCELLATION_REQUESTED": 202, "ALREADY_COMPLETED": 400, "NOT_FOUND": 404}
WIRE = {JobState.WAITING: "IN_QUEUE", JobState.RUNNING: "IN_PROGRESS"}  # everything else: COMPLETED
NO_SUCH_REQUEST = {"status": "NOT_FOUND", "detail": "there is no such request; results are kept for a while only"}


class Answers:
    """The queue's paths of one service."""

    def __init__(self, service: ServiceView, dispatcher: Dispatcher) -> None:
        self._service, self._dispatcher = service, dispatcher
        self._app_id = service.settings.app_id or f"local/{service.app.alias}"
        self._origins = Origins(service.settings.trusted_proxy)
        self._paths = [compiled(endpoint.path) for endpoint in service.endpoints]

    def routes(self) -> list[Route]:
        base = f"/queue/{self._app_id}"
        below = base + "/{rest:path}"
        submits = [Route(method="POST", path=path, answer=self.submit) for path in (base, f"{base}/", below)]
        return [*submits, Route(method="GET", path=below, answer=self.look), Route(method="PUT", path=below, answer=self.cancel)]

    # --- submit

    async def submit(self, request: Request) -> Response:
        self._refuse_when_it_stops()
        job, body = self._new_job(request), request.body
        self._refuse_when_full(request)
        try:
            kept = await self._kept(job, body)
        except Unstorable as error:
            raise ServerError(507, f"the job cannot be stored: {error}", "internal_error", {"Retry-After": "10"}) from error
        if kept.id != job.id and kept.digest != job.digest:
            raise HTTPError(422, f"the idempotency key was used for another request, {kept.id}; use a new one for a new input")
        request.id = kept.id
        return json_response(self._told(request, kept) | {"gateway_request_id": kept.gateway_id})

    async def _kept(self, job: Job, body: bytes) -> Job:
        try:
            return await self._dispatcher.submit(job, body)
        except KeyError:  # somebody's own `x-fal-request-id`, a second time
            id = str(uuid4())
            return await self._dispatcher.submit(msgspec.structs.replace(job, id=id, gateway_id=id), body)

    def _new_job(self, request: Request) -> Job:
        headers, now = request.headers, time.time()
        given = request.id or ""
        id = given if len(given) <= LONGEST_ID and ID.fullmatch(given) else str(uuid4())
        path, query = self._endpoint_path(request), _query(request)
        traced = request.trace.headers() if request.trace is not None else {}  # its job goes on in the same trace
        passed = {name: value for name, value in headers.items() if name not in OURS and not name.startswith("x-forwarded-")}
        key = headers.get("idempotency-key") or headers.get("x-fal-idempotency-key")
        return Job(
            id=id,
            gateway_id=id,
            path=path,
            query=query,
            origin=self._origins.of(request),
            headers=tuple({**passed, **traced}.items()),
            submitted=now,
            start_by=_start_by(headers, now),
            priority=_priority(headers),
            webhook=_webhook(request),
            key=_digest(headers.get("authorization", "").encode(), key.encode()) if key else None,
            digest=_digest(path.encode(), query.encode(), request.body) if key else "",
            keeps=headers.get("x-fal-store-io", "").strip() != "0",
            retries=wanted(headers, self._service.app.options),
        )

    def _endpoint_path(self, request: Request) -> str:
        """The endpoint's path as declared: with a slash at the end only if it has one."""
        path = "/" + request.path_parameters.get("rest", "")
        if not any(pattern.fullmatch(path) for pattern in self._paths):
            path = path.rstrip("/") or "/"
        return path

    def _refuse_when_it_stops(self) -> None:
        if self._service.health.state in (State.DRAINING, State.FAILED):
            headers = {"Retry-After": "1", "connection": "close"}
            raise ServerError(503, "the server is stopping", "runner_scheduling_failure", headers)

    def _refuse_when_full(self, request: Request) -> None:
        longest, waiting = self._service.settings.max_queued_jobs, self._dispatcher.waiting()
        if waiting >= longest:
            raise ServerError(429, f"{waiting} requests wait already", "concurrent_requests_limit", {"Retry-After": "10"})
        if given := request.query.get("fal_max_queue_length"):
            if not given[0].isdecimal():
                raise ServerError(400, "fal_max_queue_length must be a number, such as 100", "bad_request")
            if waiting > int(given[0]):
                raise ServerError(
                    429, f"{waiting} requests wait, more than {given[0]}", "concurrent_requests_limit", {"Retry-After": "1"}
                )

    # --- status and result

    async def look(self, request: Request) -> Response:
        match = REQUEST.fullmatch(request.path_parameters["rest"])
        if match is None or match["what"] == "cancel":
            allow = "PUT" if match else "POST"
            raise HTTPError(405, "Method Not Allowed", {"Allow": allow})
        live = await self._find(match["id"])
        if live is None:
            return json_response(NO_SUCH_REQUEST, status=404)
        request.id = live.job.id
        if match["what"] == "status":
            logs = live.logs if _wants_logs(request) else []
            status = self._status(request, live.job, logs)
            if live.job.state is JobState.RUNNING and (progress := live.progress()) is not None:
                status["progress"] = progress
            return json_response(status, status=200 if live.job.is_over else 202)
        if match["what"] == "status/stream":
            self._service.running_now.only_reads(request)
            events = self._events(request, live, logs=_wants_logs(request))
            return Response(headers={"cache-control": "no-cache"}, media_type=EVENTS, stream=events)
        return await self._result(live.job)

    async def _find(self, id: str) -> Live | None:
        try:
            return await self._dispatcher.find(id)
        except Unstorable as error:
            raise ServerError(503, f"the queue cannot be read: {error}", "internal_error", {"Retry-After": "1"}) from error

    def _told(self, request: Request, job: Job) -> dict[str, Any]:
        """What submit and every status say of a job."""
        base = f"{self._base(request)}/requests/{job.id}"
        told: dict[str, Any] = {
            "status": WIRE.get(job.state, "COMPLETED"),
            "request_id": job.id,
            "response_url": base,
            "status_url": f"{base}/status",
            "cancel_url": f"{base}/cancel",
        }
        if job.state is JobState.WAITING:
            told["queue_position"] = self._dispatcher.position(job)
            if (seconds := self._dispatcher.expected_wait(job)) is not None:
                told["estimated_wait_seconds"] = seconds
        return told

    def _base(self, request: Request) -> str:
        """Origin and path of the app's queue, as the caller wrote them."""
        path = request.scope.get("path", "")
        at = path.find(f"/{self._app_id}")
        before = path[:at].removeprefix(request.scope.get("root_path", "")) if at > 0 else ""
        return f"{self._origins.of(request)}{before}/{self._app_id}"

    def _status(self, request: Request, job: Job, logs: list[LogLine]) -> dict[str, Any]:
        told = self._told(request, job)
        if job.state is JobState.WAITING:
            return told
        told["logs"] = logs
        if job.is_over:
            seconds = job.ended - job.began if job.ended is not None and job.began is not None else 0.0
            told["metrics"] = {"inference_time": round(max(0.0, seconds), 6)}
            if job.error is not None:
                told |= {"error": job.error, "error_type": job.error_type}
        return told

    async def _events(self, request: Request, live: Live, *, logs: bool) -> AsyncGenerator[bytes, None]:
        """The status after every change; each log line once, since the clients append them (contract 7.5)."""
        news = self._dispatcher.watch(live)
        try:
            async for job, lines in news:
                status = msgspec.to_builtins(self._status(request, job, lines if logs else []))
                yield f"data: {json.dumps(status)}\n\n".encode()
        finally:
            await news.aclose()

    async def _result(self, job: Job) -> Response:
        if not job.is_over:
            return json_response({"detail": "Request is still in progress"}, status=400)
        try:
            outcome = await self._dispatcher.store.outcome(job.id)
        except Unstorable as error:
            raise ServerError(503, f"the result cannot be read: {error}", "internal_error", {"Retry-After": "1"}) from error
        if outcome is None:
            return json_response(NO_SUCH_REQUEST, status=404)
        headers = dict(outcome.headers)
        if job.error_type is not None and outcome.status >= 500:
            headers.setdefault("x-fal-error-type", job.error_type)
        return Response(outcome.body, outcome.status, headers, outcome.media_type or None)

    # --- cancel

    async def cancel(self, request: Request) -> Response:
        match = REQUEST.fullmatch(request.path_parameters["rest"])
        if match is None or match["what"] != "cancel":
            raise HTTPError(405, "Method Not Allowed", {"Allow": "GET" if match else "POST"})
        request.id = match["id"] if ID.fullmatch(match["id"]) else request.id
        try:
            outcome = await self._dispatcher.cancel(match["id"])
        except Unstorable as error:
            raise ServerError(507, f"the cancel cannot be stored: {error}", "internal_error", {"Retry-After": "10"}) from error
        if outcome == "NOT_FOUND":  # no job: a direct request may have the id
            outcome = self._service.running_now.cancel(match["id"])
        return json_response({"status": outcome}, status=CANCEL_STATUS[outcome])


def _query(request: Request) -> str:
    return urlencode([(name, value) for name, values in request.query.items() if name not in OUR_QUERY for value in values])


def _start_by(headers: Mapping[str, str], now: float) -> float | None:
    name = next((name for name in START_TIMEOUTS if name in headers), None)
    if name is None:
        return None
    try:
        seconds = float(headers[name])
    except ValueError:
        seconds = 0.0
    if not 0.1 < seconds < 1e9:
        raise ServerError(400, f"{name} must be a number of seconds above 0.1, such as 30", "bad_request")
    return now + seconds


def _priority(headers: Mapping[str, str]) -> Priority:
    match headers.get("x-fal-queue-priority", "normal").strip().lower():
        case "normal":
            return "normal"
        case "low":
            return "low"
    raise ServerError(400, "X-Fal-Queue-Priority must be normal or low", "bad_request")


def _webhook(request: Request) -> str | None:
    if not (given := request.query.get("fal_webhook")):
        return None
    try:
        parts = urlsplit(given[0])
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or not given[0].isprintable():
        raise ServerError(400, "fal_webhook must be an http or https URL, such as https://example.com/hook", "bad_request")
    return given[0]


def _wants_logs(request: Request) -> bool:
    return request.query.get("logs", ["0"])[-1].strip().lower() in ("1", "true")


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"%d:" % len(part) + part)
    return whole.hexdigest()
