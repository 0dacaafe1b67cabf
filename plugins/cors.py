"""CORS: any page may call this server, as it may call fal's.

All origins, methods and headers are allowed, with credentials (contract 2.1, 7.1). Headers that
the browser clients read are exposed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..schemas.asgi import RawHeaders
from ..schemas.request import Request
from ..schemas.response import Response
from ..schemas.service import ServiceView
from .hookspecs import hookimpl

EXPOSED = (
    "x-fal-request-id, x-fal-billable-units, x-fal-error-type, x-fal-request-timeout-type, "
    "x-fal-runner-hints, x-fal-served-from, x-runner-retried, retry-after, etag, content-range, content-disposition"
)
METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
PREFLIGHT_SECONDS = "600"  # Chromium keeps no answer longer than two hours; a wrong one should not stay


@hookimpl
def intercept_requests(service: ServiceView) -> Callable[[Request], Response | None]:
    return preflight


def preflight(request: Request) -> Response | None:
    """The answer to a browser that asks whether it may call."""
    if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
        return None
    headers = {
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": request.headers.get("access-control-request-headers", "*"),
        "access-control-max-age": PREFLIGHT_SECONDS,
    }
    return Response(b"", 204, headers)


@hookimpl
def response_headers(service: ServiceView) -> Callable[[Request], RawHeaders]:
    return allowed


def allowed(request: Request) -> RawHeaders:
    """What lets the page that asked read the answer; nothing for callers that are no browsers."""
    origin = request.header(b"origin")
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", EXPOSED.encode()),
        (b"vary", b"Origin"),
    ]
