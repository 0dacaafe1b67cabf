"""Keys: with `--auth-key`, only callers who show one of the keys, or a token made from them, are served.

That goes for endpoints, streams, the queue, files and WebSockets alike: `Authorization: Key …` or
`Bearer …`, or a token in the query `fal_jwt_token`. Open to everybody stay health checks, the
public key of webhooks, downloads, and uploads at the unguessable address that a key was shown for.
Without keys everybody may call, and a warning says so where others can reach the port.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from ..schemas.problems import HTTPError
from ..schemas.request import Request
from ..schemas.response import Response, json_response
from ..schemas.routes import compiled
from ..schemas.service import Route, ServiceView
from ..schemas.tokens import Tokens, is_known
from .hookspecs import hookimpl
from .logs import get_logger

log = get_logger("runner.keys")

OPEN = {
    "GET": re.compile(r"/health(/live|/ready)?|/\.well-known/jwks\.json|/files/[^/]+/[^/]+"),
    "PUT": re.compile(r"/uploads/\w{32,}(/\d+)?|/files/[^/]+/[^/]+/multipart/\w{32,}/\d+"),
    "POST": re.compile(r"/uploads/\w{32,}/complete|/files/[^/]+/[^/]+/multipart/\w{32,}/complete"),
}
OPEN["HEAD"] = OPEN["GET"]
NO_TOKENS = ("/tokens", "/tokens/", "/storage/auth/token")  # a token shall not beget others
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LONGEST_SECONDS = 24 * 3600


class Wanted(msgspec.Struct):
    """What a client says of the token it wants."""

    allowed_apps: list[str] = []
    token_expiration: float = 120.0


@hookimpl
def intercept_requests(service: ServiceView) -> Callable[[Request], Response | None] | None:
    keys = service.settings.auth_key
    if not keys:
        return None
    tokens, alias = Tokens(keys), service.app.alias
    endpoints = [compiled(endpoint.path) for endpoint in service.endpoints]

    def is_open(request: Request) -> bool:
        pattern = OPEN.get(request.method or "")
        if pattern is None or not pattern.fullmatch(request.path):
            return False
        return not any(endpoint.fullmatch(request.path) for endpoint in endpoints)

    def refused(request: Request) -> Response | None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip()
        if kind.lower() in ("key", "bearer") and given and is_known(given, keys):
            return None
        if request.path not in NO_TOKENS:
            candidates = [given] if kind.lower() == "bearer" else []
            if any(tokens.allows(token, alias) for token in (*candidates, *request.query.get("fal_jwt_token", ()))):
                return None
            if is_open(request):
                return None
        told = "the key is not known here" if given else "a key is needed: Authorization: Key …"
        return json_response({"detail": told}, status=401, headers={"www-authenticate": "Key"})

    return refused


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    tokens = Tokens(service.settings.auth_key)

    def make(request: Request) -> Response:
        """A bare JSON string, as the JavaScript client needs it (contract 6.3)."""
        try:
            wanted = msgspec.json.decode(request.body or b"{}", type=Wanted)
        except msgspec.DecodeError as error:
            raise HTTPError(422, f'{error}; for example {{"allowed_apps": ["my-app"], "token_expiration": 120}}') from None
        seconds = min(max(wanted.token_expiration, 1.0), LONGEST_SECONDS)
        return json_response(tokens.make(seconds, [app.rpartition("/")[2] for app in wanted.allowed_apps]))

    return [Route(method="POST", path=path, answer=make) for path in ("/tokens", "/tokens/")]


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return warned(service)


@asynccontextmanager
async def warned(service: ServiceView) -> AsyncIterator[None]:
    settings = service.settings
    if not settings.auth_key and settings.host not in LOOPBACK:
        log.warning("keys.none", host=settings.host, hint="whoever reaches this port may call; set RUNNER_AUTH_KEY")
    yield
