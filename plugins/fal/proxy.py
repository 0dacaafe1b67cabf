"""The endpoint that fal's JavaScript client calls as its `proxyUrl` (contract 7.10).

The client names the address it means in `x-fal-target-url`; what is fal's there is ours here. The
request is sent on to our own path before it is routed, so that it streams, is cancelled and is
refused as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from ...schemas.request import Request
from ...schemas.response import Response, json_response

PATH = "/api/fal/proxy"
TARGETS = {"fal.run": "/run", "queue.fal.run": "/queue", "rest.fal.ai": "", "rest.alpha.fal.ai": ""}
METHODS = ("GET", "POST", "PUT", "DELETE")


def make_proxy() -> Callable[[Request], Response | None]:
    def proxied(request: Request) -> Response | None:
        if request.path != PATH or request.method not in METHODS:
            return None
        try:
            target = urlsplit(request.headers.get("x-fal-target-url", ""))
            known = target.scheme == "https" and target.hostname in TARGETS and target.port in (None, 443)
        except ValueError:
            known = False
        if not known:
            return json_response("Invalid request", status=400)
        request.send_on(TARGETS[target.hostname or ""] + (unquote(target.path) or "/"), target.query)
        return None

    return proxied
