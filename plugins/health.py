"""How the service is, as probes and people ask: `/health`, `/health/live`, `/health/ready`."""

from __future__ import annotations

import inspect
from typing import Any

from ..schemas.health import State
from ..schemas.request import Request
from ..schemas.response import Response, json_response
from ..schemas.service import Route, ServiceView
from .hookspecs import hookimpl


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    health = service.health

    def shown() -> State:
        lanes = service.lanes
        busy = health.state is State.READY and lanes["running"] >= lanes["places"]
        return State.BUSY if busy else health.state

    def report() -> dict[str, Any]:
        told = {"reason": health.reason} if health.reason else {}
        return {"status": shown(), **told, "lanes": dict(service.lanes)}

    async def answer(request: Request) -> Response:
        """The state, and what the app's own `health()` says of itself once it is set up."""
        body: dict[str, Any] = {}
        if health.takes_requests:
            said = service.instance.health()
            said = await said if inspect.isawaitable(said) else said
            body = said if isinstance(said, dict) else {"health": said}
        return json_response(report() | body, status=200 if health.takes_requests else 503)

    def live(request: Request) -> Response:
        return json_response({"status": shown()}, status=503 if health.state is State.FAILED else 200)

    def ready(request: Request) -> Response:
        return json_response(report(), status=200 if health.state is State.READY else 503)

    return [
        Route(method="GET", path="/health", answer=answer),
        Route(method="GET", path="/health/live", answer=live),
        Route(method="GET", path="/health/ready", answer=ready),
    ]
