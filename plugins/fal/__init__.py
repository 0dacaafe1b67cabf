"""fal compatibility: apps written for fal run here unchanged.

Without the fal package an app's `import fal` finds a module made of our own names (`modules.py`);
with it, its `fal.App` classes are served (`installed.py`). Errors answer as fal's runner answers
them (`errors.py`). What fal's platform does around a runner, deploying and scaling, is not here.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from types import ModuleType
from typing import Any

from ...schemas.app import AppSpec
from ...schemas.health import State
from ...schemas.request import Request
from ...schemas.response import Response
from ...schemas.service import Mount, ServiceView
from ..hookspecs import hookimpl
from .imported import when_imported
from .installed import describe_fal_app
from .proxy import make_proxy
from .repositories import own_repositories

__all__ = ["describe_app", "intercept_requests", "lifespan", "map_error", "mount_app", "provide_modules", "response_headers"]

log = logging.getLogger("runner.fal")

HINTS = b"x-fal-runner-hints"
CDN_TOKEN = "x-fal-cdn-token"
MODULES = (
    "fal", "fal.api", "fal.app", "fal.container", "fal.exceptions", "fal.realtime", "fal.ref", "fal.sdk",
    "fal.toolkit", "fal.toolkit.audio", "fal.toolkit.audio.audio", "fal.toolkit.constraints", "fal.toolkit.exceptions",
    "fal.toolkit.file", "fal.toolkit.file.file", "fal.toolkit.file.types", "fal.toolkit.image", "fal.toolkit.image.image",
    "fal.toolkit.pydantic", "fal.toolkit.types", "fal.toolkit.utils", "fal.toolkit.utils.download_utils",
    "fal.toolkit.utils.endpoint", "fal.toolkit.video", "fal.toolkit.video.video",
)  # fmt: skip
serving: dict[str, Any] = {"app": None}  # of this process, for a `fal.ref` that is made later
RUNNER_STATES = {State.READY: "RUNNING", State.DRAINING: "TERMINATING", State.FAILED: "TERMINATING"}


@hookimpl
def provide_modules(names: Mapping[str, Any]) -> Mapping[str, ModuleType]:
    return Offered(names)


class Offered(Mapping[str, ModuleType]):
    """The modules by name, none of which is made before one is asked for: most apps ask for none."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    @cached_property
    def _made(self) -> dict[str, ModuleType]:
        made = importlib.import_module(".modules", __package__).build_modules(self._names)
        made["fal.ref"].current_app = serving["app"]
        return made  # type: ignore[no-any-return]

    def __getitem__(self, name: str) -> ModuleType:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


@hookimpl
def describe_app(target: type) -> AppSpec | None:
    return describe_fal_app(target)


@hookimpl
def map_error(service: ServiceView) -> Callable[[BaseException], Response | None]:
    def answer(error: BaseException) -> Response | None:
        answer_to: Callable[[BaseException], Response | None] = importlib.import_module(".errors", __package__).answer_to
        return answer_to(error)

    return answer


@hookimpl
def intercept_requests(service: ServiceView) -> Callable[[Request], Response | None]:
    return make_proxy()


@hookimpl
def response_headers(service: ServiceView) -> Callable[[Request], list[tuple[bytes, bytes]]]:
    """`X-Fal-Runner-Hints`, asked of the app for every answer, and a CDN token that the endpoint has renewed."""
    told: set[str] = set()
    gives_none = False

    def once(key: str, message: str, *arguments: Any, **options: Any) -> None:
        if key not in told:
            told.add(key)
            log.warning(message, *arguments, **options)

    def hints(request: Request) -> list[tuple[bytes, bytes]]:
        nonlocal gives_none
        if gives_none:
            return []
        app = service.instance
        name = type(app).__name__
        try:
            kept = []
            for hint in app.provide_hints():
                if hint.isprintable() and hint.encode("latin-1", "ignore").decode("latin-1") == hint:
                    kept.append(hint)
                else:
                    once(f"hint {hint}", "%s: the hint %r is dropped, a header cannot hold it", name, hint)
            return [(HINTS, ",".join(kept).encode("latin-1"))]
        except NotImplementedError:
            gives_none = True
            return []
        except Exception:
            once("error", "%s.provide_hints failed; answers go out without hints", name, exc_info=True)
            return []

    def headers(request: Request) -> list[tuple[bytes, bytes]]:
        if gives_none and not request.headers_were_read:
            return []
        return hints(request) + _new_cdn_token(request)

    return headers


def _new_cdn_token(request: Request) -> list[tuple[bytes, bytes]]:
    """The token that the endpoint wrote into its request's headers, for the caller to go on with (contract 1.4)."""
    if not request.headers_were_read:
        return []
    token = request.headers.get(CDN_TOKEN, "")
    sent = dict(request.scope.get("headers", ())).get(CDN_TOKEN.encode(), b"").decode("latin-1")
    return [(CDN_TOKEN.encode(), token.encode("latin-1"))] if token != sent and token.isprintable() else []


@hookimpl
def mount_app(service: ServiceView) -> list[Mount]:
    """The app under its id, where fal's clients call it: below /run, and at the root for the host fal.run."""
    app_id = service.settings.app_id or f"local/{service.app.alias}"
    return [Mount(prefix=f"/run/{app_id}"), Mount(prefix=f"/{app_id}", host="fal.run")]


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return _current(service)


@asynccontextmanager
async def _current(service: ServiceView) -> AsyncIterator[None]:
    """Keep what apps look up process-wide: `fal.ref`'s current app and FAL_RUNNER_STATE."""

    def state_is(state: State) -> None:
        if state in RUNNER_STATES:
            os.environ["FAL_RUNNER_STATE"] = RUNNER_STATES[state]

    os.environ["FAL_RUNNER_STATE"] = "SETUP"
    service.health.watch(state_is)
    ref: Any = sys.modules.get("fal.ref")
    serving["app"] = service.instance
    if ref is not None:
        ref.current_app = service.instance

    def tell_client(client: Any) -> None:
        if hasattr(client, "set_get_current_app"):  # its calls pass on two headers of the request
            client.set_get_current_app(lambda: service.instance)

    forget = when_imported("fal_client", tell_client)
    try:
        with own_repositories(service.instance):
            yield
    finally:
        forget()
        serving["app"] = None
        ref = sys.modules.get("fal.ref")
        if ref is not None:
            ref.current_app = None
