"""How the service is, as probes and people ask, and how it finds out by itself.

`/health`, `/health/live` and `/health/ready` answer at once, whatever the lanes do. Every
`health_seconds` the runner checks the app: the endpoint that its author marked with a HealthCheck,
called past the limit of places, or else `App.health()`; and what plugins add. Failures in a row up to
the threshold make it unhealthy: `/health/ready` says 503, so that nothing more is sent here, while
requests that come all the same are served. The next check that passes makes it ready again.

An endpoint's answer with the header `x-fal-runner-health-check: true` has the app checked at once, and
there one failure is enough (contract 9.3); one with `x-fal-stop-runner: true` has the process replaced (contract
2.6). The callers see neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

import anyio

from ..schemas.asgi import Message, Scope
from ..schemas.endpoint import Endpoint
from ..schemas.exits import ASKED, UNHEALTHY
from ..schemas.foreign import ForeignResponse
from ..schemas.health import HealthCheck, State
from ..schemas.request import Request
from ..schemas.response import Response, json_response
from ..schemas.service import Call, Check, Route, ServiceView, Wrapper
from .cancellation import Token
from .hookspecs import hookimpl
from .logs import get_logger

log = get_logger("runner.health")

START_PERIOD_SECONDS, TIMEOUT_SECONDS, THRESHOLD = 30, 5, 3  # fal's defaults (contract 9.1)
TRIGGER, STOP = "x-fal-runner-health-check", "x-fal-stop-runner"
APP = "app"  # the cause under which the app itself ails



@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    health = service.health

    def shown() -> State:
        lanes = service.lanes
        busy = health.state is State.READY and lanes["running"] >= lanes["places"]
        return State.BUSY if busy else health.state

    def report() -> dict[str, Any]:
        told = {"reason": health.reason} if health.reason else {}
        return {"status": shown(), **told, "lanes": dict(service.lanes), **{name: dict(tally()) for name, tally in service.tallies.items()}}

    async def answer(request: Request) -> Response:
        """The state, and what the app's own `health()` says of itself once it is set up."""
        if not health.takes_requests:
            return json_response(report(), status=503)
        try:
            with anyio.fail_after(TIMEOUT_SECONDS):
                said = await service.beside(service.instance.health)
        except Exception as error:
            log.error("health.failed", exc_info=error)
            return json_response(report() | {"status": State.UNHEALTHY, "reason": f"health() failed: {error!r}"}, status=500)
        return json_response(report() | (said if isinstance(said, dict) else {"health": said}))

    def live(request: Request) -> Response:
        return json_response({"status": shown()}, status=503 if health.state is State.FAILED else 200)

    def ready(request: Request) -> Response:
        return json_response(report(), status=200 if health.state is State.READY else 503)

    return [
        Route(method="GET", path="/health", answer=answer),
        Route(method="GET", path="/health/live", answer=live),
        Route(method="GET", path="/health/ready", answer=ready),
    ]


@hookimpl
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper:
    """Act on the triggers that an endpoint put on its answer, or on what it raised, and keep them from the caller."""

    def act(headers: Any) -> None:
        if TRIGGER in headers and _taken(headers, TRIGGER):
            service.health.suspect()
        if STOP in headers and _taken(headers, STOP):
            service.give_up(ASKED, f"{endpoint.path} answered with {STOP}")

    def wrapper(call: Call) -> Call:
        async def called(request: Request, arguments: dict[str, Any]) -> Response:
            try:
                response = await call(request, arguments)
            except Exception as error:
                if headers := getattr(error, "headers", None):
                    act(headers)
                raise
            if response.headers:
                act(response.headers)
            if isinstance(response, ForeignResponse):
                act(response.app.headers)
            return response

        return called

    return wrapper


def _taken(headers: Any, name: str) -> bool:
    """Take a header off, whose value is as fal reads it: true, 1, false or 0."""
    value = headers[name]
    del headers[name]
    return value.strip().lower() in ("true", "1")


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return _checked(service)


@asynccontextmanager
async def _checked(service: ServiceView) -> AsyncIterator[None]:
    checkup = Checkup(service)
    regular = asyncio.create_task(checkup.run())
    try:
        yield
    finally:
        regular.cancel()
        await asyncio.wait([regular])


class Checkup:
    """The regular look at one app. Owns the count of failures in a row, by cause."""

    def __init__(self, service: ServiceView) -> None:
        self._service = service
        self._endpoint = next((e for e in service.endpoints if e.mark.health_check is not None), None)
        self._declared = (self._endpoint and self._endpoint.mark.health_check) or HealthCheck()
        self._timeout = _given(self._declared.timeout_seconds, TIMEOUT_SECONDS)
        self._threshold = _given(self._declared.failure_threshold, THRESHOLD)
        least = max(START_PERIOD_SECONDS, service.app.options.startup_timeout or 0)
        self._start_period = _given(self._declared.start_period_seconds, least)
        self._checks: Mapping[str, Check] = {APP: self._app, **service.health_checks}
        self._failures = dict.fromkeys(self._checks, 0)
        self._born = time.monotonic()
        self._wanted = anyio.Event()
        service.health.watch_suspicion(lambda: self._wanted.set())

    async def run(self) -> None:
        """Check at the interval, and at once when somebody suspects."""
        while True:
            with anyio.move_on_after(self._service.settings.health_seconds):
                await self._wanted.wait()
            suspected, self._wanted = self._wanted.is_set(), anyio.Event()
            if not self._service.health.takes_requests:
                continue
            for cause, check in self._checks.items():
                if suspected or cause != APP or self._declared.call_regularly:
                    await self._look(cause, check, threshold=1 if suspected else self._threshold, suspected=suspected)

    async def _look(self, cause: str, check: Check, *, threshold: float, suspected: bool) -> None:
        wrong = await self._outcome(check)
        if wrong is None:
            self._failures[cause] = 0
            self._service.health.recover(cause)
            return
        young = time.monotonic() - self._born < self._start_period
        log.warning("health_check.failed", check=cause, reason=wrong, counts=suspected or not young)
        if young and not suspected:
            return
        self._failures[cause] += 1
        if self._failures[cause] >= threshold:
            self._service.health.ail(cause, f"{cause}: {wrong}")
            if self._service.settings.listen_fd >= 0:  # somebody stands ready to start another
                self._service.health.replace(UNHEALTHY, f"{cause}: {wrong}")

    async def _outcome(self, check: Check) -> str | None:
        try:
            with anyio.move_on_after(self._timeout) as scope:
                return await check()
        except Exception as error:
            return f"it raised {error!r}"
        return f"it took longer than {self._timeout} s" if scope.cancelled_caught else None

    async def _app(self) -> str | None:
        if self._endpoint is None:
            await self._service.beside(self._service.instance.health)
            return None
        status = await asked(self._service, self._endpoint.path, self._declared.method or "POST")
        return None if 200 <= status < 300 else f"{self._endpoint.path} answered {status}"


def _given(declared: float | None, default: float) -> float:
    return default if declared is None else declared


async def asked(service: ServiceView, path: str, method: str) -> int:
    """Call one of the app's endpoints without a socket, and return its status."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    identity = str(uuid4())
    scope: Scope = {
        "type": "http", "method": method, "path": path, "query_string": b"",
        "headers": [(b"x-fal-request-id", identity.encode())],
    }  # fmt: skip
    request = Request(identity, scope=scope, path=path, token=Token())
    request.from_within = True
    await service.perform(request, receive, send)
    return statuses[0] if statuses else 0
