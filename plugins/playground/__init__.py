"""The playground: `GET /` shows a browser the app, as a page to call every endpoint from.

The page is static, the same for every app: it reads `/openapi.json` and draws its form from that
alone. Its parts lie in `page/` and are served below a path that holds their digest, so that a
browser asks for each once. They are open even where a key is needed, since the page is where a
person types the key; what it then asks for is guarded as ever.

Text from a model must never become markup or script: the policy below allows no script but the
page's own files, no inline one, and no request to any other host; trusted types forbid `innerHTML`
outright. Files that callers stored here are refused to whoever wants to run them.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...schemas.asgi import RawHeaders
from ...schemas.endpoint import Endpoint
from ...schemas.problems import HTTPError
from ...schemas.request import Request
from ...schemas.response import Response, json_response
from ...schemas.service import Route, ServiceView
from ..hookspecs import hookimpl

PAGE = Path(__file__).parent / "page"
ASSETS, DISCOVERY = "/playground/", "/playground/discovery"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
YEAR = 365 * 24 * 3600
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
GUARDS = {
    "content-security-policy": POLICY,
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
RUNNABLE = ("audioworklet", "embed", "object", "paintworklet", "script", "serviceworker", "sharedworker", "style", "worker", "xslt")
TIMED = (b"x-runner-timings", b"1")  # what the page sends to be told how long a request waited and ran


class Part(NamedTuple):
    """One file of the page, as sent."""

    plain: bytes
    packed: bytes
    media_type: str


class Page(NamedTuple):
    html: Part
    parts: dict[str, Part]
    digest: str


@functools.cache
def page() -> Page:
    """All of the page, read when somebody first looks at it."""
    files = {file.name: file.read_bytes() for file in sorted(PAGE.iterdir()) if file.suffix in TYPES}
    html = (PAGE / "index.html").read_bytes()
    digest = hashlib.sha256(b"\0".join([html, *files.values()])).hexdigest()[:16]
    parts = {name: packed(data, f"{TYPES[Path(name).suffix]}; charset=utf-8") for name, data in files.items()}
    return Page(packed(html.replace(b"DIGEST", digest.encode()), "text/html; charset=utf-8"), parts, digest)


def packed(data: bytes, media_type: str) -> Part:
    return Part(data, gzip.compress(data, mtime=0), media_type)


@hookimpl
def intercept_requests(service: ServiceView) -> Callable[[Request], Response | None]:
    # An endpoint that answers GET itself, as a health check may, keeps its path.
    own_root = any(e.path == "/" and e.mark.health_check is not None and e.mark.health_check.method == "GET" for e in service.endpoints)

    def look(request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return None
        path = request.path
        if path == "/" and not own_root:
            accept = request.headers.get("accept", "")
            if "text/html" in accept:
                return sent(request, page().html, {**GUARDS, "cache-control": "no-cache", "vary": "accept, accept-encoding"})
            if "application/json" in accept:
                request.send_on(DISCOVERY, "")
        elif path.startswith("/files/") and request.headers.get("sec-fetch-dest") in RUNNABLE:
            return json_response({"detail": "files of callers are not run as part of a page"}, status=403)
        elif path.startswith(ASSETS) and path != DISCOVERY:
            return asset(request)
        return None

    return look


def asset(request: Request) -> Response | None:
    """The part that `/playground/{digest}/{name}` means; None, and so a 404, when it is not of this page."""
    digest, _, name = request.path.removeprefix(ASSETS).partition("/")
    part = page().parts.get(name)
    if part is None or digest != page().digest:
        return None
    return sent(request, part, {"cache-control": f"public, max-age={YEAR}, immutable", "vary": "accept-encoding", "x-content-type-options": "nosniff"})


def sent(request: Request, part: Part, headers: dict[str, str]) -> Response:
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(part.packed, 200, {**headers, "content-encoding": "gzip"}, part.media_type)
    return Response(part.plain, 200, headers, part.media_type)


# --- what the page asks, and any program may


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    def answer(request: Request) -> Response:
        return json_response(discovery(service), headers={"vary": "accept", "cache-control": "no-cache"})

    def root(request: Request) -> Response:
        """Neither a page nor JSON was asked for: where an endpoint lives, a GET is the wrong method."""
        raise HTTPError(405, "Method Not Allowed", {"Allow": "POST"})

    taken = any(endpoint.path == "/" for endpoint in service.endpoints)
    return [
        Route(method="GET", path=DISCOVERY, answer=answer),
        Route(method="GET", path="/", answer=root if taken else answer),
    ]


def discovery(service: ServiceView) -> dict[str, Any]:
    """The app in a few lines: its endpoints, and where the rest is said."""
    app_id = service.settings.app_id or f"local/{service.app.alias}"
    links = {
        "openapi": "/openapi.json", "health": "/health", "metrics": "/metrics", "queue": f"/queue/{app_id}",
        "fal": f"/run/{app_id}", "files": "/files", "events": "/requests/{id}/events",
    }  # fmt: skip
    left_out = service.settings.no_plugin
    return {
        "app": service.app.name,
        "app_id": app_id,
        "endpoints": [described(endpoint) for endpoint in service.endpoints],
        "links": {name: path for name, path in links.items() if name not in left_out},
    }


def described(endpoint: Endpoint) -> dict[str, Any]:
    summary, _, _ = endpoint.description.partition("\n")
    return {
        "method": "WS" if endpoint.mark.is_websocket else "POST",
        "path": endpoint.path,
        "summary": summary or endpoint.name.replace("_", " ").capitalize(),
        "streams": endpoint.streams,
    }


@hookimpl
def response_headers(service: ServiceView) -> Callable[[Request], RawHeaders]:
    """Tell the page how long its request waited for a place and ran, where it asks (W3C Server-Timing)."""

    def timings(request: Request) -> RawHeaders:
        if request.first.get(TIMED[0]) != TIMED[1]:
            return []
        place = request.place
        if place is None or not place.began:
            return []
        run = (time.perf_counter() - place.began) * 1000
        return [(b"server-timing", b"wait;dur=%.2f, run;dur=%.2f" % (place.waited * 1000, run))]

    return timings
