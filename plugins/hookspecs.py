"""Every hook: when it is asked, how often, what None means, what an error means.

All are asked while the service is assembled, never during a request, and return values or
functions that the request path then calls. A coroutine returned from a hook is refused.
An exception in a hook stops the start with the plugin's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from ..schemas.app import AppSpec
    from ..schemas.codec import Codec
    from ..schemas.endpoint import Endpoint
    from ..schemas.events import Finished
    from ..schemas.response import Response
    from ..schemas.service import Route, ServiceView, Wrapper

hookspec = pluggy.HookspecMarker("runner")
hookimpl = pluggy.HookimplMarker("runner")


@hookspec
def provide_modules(names: Mapping[str, Any]) -> Mapping[str, ModuleType] | None:
    """Return modules that apps may import under these names when no installed package has them.

    Asked once, before the app's file is loaded. `names` holds all that `runner` exports.
    """


@hookspec(firstresult=True)
def describe_app(target: type) -> AppSpec | None:
    """Return how to serve `target`, a class that is not a `runner.App`.

    Asked once, when the command line or `runner.asgi()` names such a class. None: not mine.
    """


@hookspec(firstresult=True)
def type_codec(type: Any) -> Codec | None:
    """Return what decodes, encodes and describes values of `type`.

    Asked once for every type in an endpoint's signature. The first answer wins, last registered
    first, so a plugin may replace ours. None: not mine. Nobody's type stops the start.
    """


@hookspec
def wrap_call(endpoint: Endpoint) -> Wrapper | None:
    """Return a function that turns this endpoint's call into another call.

    Asked once per endpoint. None leaves the endpoint alone. First registered is outermost.
    Raising inside the call you return fails that one request.
    """


@hookspec
def register_routes(service: ServiceView) -> list[Route] | None:
    """Return paths that the service answers beside the app's own, which win over them.

    Asked once, when the app's endpoints are known. None: no paths.
    """


@hookspec
def map_error(service: ServiceView) -> Callable[[BaseException], Response | None] | None:
    """Return a function that turns an exception of an endpoint into an answer, or None: not mine.

    Asked once; the function is called for exceptions that are not `RunnerError`s. The first answer wins.
    """


@hookspec
def response_headers(service: ServiceView) -> Callable[[], list[tuple[bytes, bytes]]] | None:
    """Return a function whose headers are added to every answer of an endpoint.

    Asked once; the function is called for each answer and must be quick. None: no headers.
    """


@hookspec
def observe_requests(service: ServiceView) -> Callable[[Finished], None] | None:
    """Return a function that is told of every request when it is over.

    Asked once; called on the event loop, so it must be quick and must not raise. None: not interested.
    """


@hookspec
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    """Return a context that is entered before `setup()` and left after `teardown()`.

    Asked once. First registered is entered first. An error on entering stops the start.
    """
