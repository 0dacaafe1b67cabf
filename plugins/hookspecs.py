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
    from ..schemas.connection import ConnectionProtocol
    from ..schemas.endpoint import Endpoint
    from ..schemas.events import Finished, OnOutput
    from ..schemas.queue import QueueStore
    from ..schemas.request import Request
    from ..schemas.response import Response
    from ..schemas.service import BindWrapper, Check, Mount, Route, ServiceView, Wrapper
    from ..schemas.settings import Settings
    from ..schemas.storing import FileStore

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
def file_store(settings: Settings) -> FileStore | None:
    """Return what keeps the files of this service: outputs, and uploads.

    Asked once, before the app is made. Of several stores the one registered last is used, so a
    plugin may replace ours. None: not mine. A store should open nothing before it is used.
    """


@hookspec
def wrap_bind(endpoint: Endpoint, service: ServiceView) -> BindWrapper | None:
    """Return a function that turns how this endpoint reads its arguments into another way.

    Asked once per endpoint. None leaves the endpoint alone. First registered is outermost.
    Raise InvalidInput inside the function you return to answer 422.
    """


@hookspec
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper | None:
    """Return a function that turns this endpoint's call into another call.

    Asked once per endpoint. A call takes the request and the bound arguments and gives the
    Response. None leaves the endpoint alone. First registered is outermost; the innermost waits
    for a place in the lane and runs the author's method. Raising inside the call you return fails
    that one request.
    """


@hookspec
def intercept_requests(service: ServiceView) -> Callable[[Request], Response | None] | None:
    """Return a function that sees every HTTP request first; what it returns is the answer.

    Asked once; the function is called on the event loop before the body is read, so it must be
    quick. Returning None lets the request pass. First registered sees it first.
    """


@hookspec
def mount_app(service: ServiceView) -> list[Mount] | None:
    """Return prefixes under which the app's paths, and the server's own, answer as well.

    Asked once. None: none. Of two that match, the longer prefix counts.
    """


@hookspec
def register_routes(service: ServiceView) -> list[Route] | None:
    """Return paths that the service answers beside the app's own, which win over them.

    Asked once, when the app's endpoints are known. None: no paths. Of two plugins with the same
    method and path the one registered last wins, so a plugin may replace a built-in path.
    """


@hookspec
def map_error(service: ServiceView) -> Callable[[BaseException], Response | None] | None:
    """Return a function that turns an exception of an endpoint into an answer, or None: not mine.

    Asked once; the function is called for exceptions that are not `RunnerError`s. The first answer wins.
    """


@hookspec
def observe_errors(service: ServiceView) -> Callable[[BaseException], None] | None:
    """Return a function that is told of every exception that ends a run of the app, cancels too.

    Asked once; called where the run ended, in the lane's thread or on the event loop, before anybody
    else gets the place, so it must be quick. `service.give_up` keeps others from beginning. None: not interested.
    """


@hookspec
def enter_requests(service: ServiceView) -> Callable[[Request], None] | None:
    """Return a function that is called first with every request, in the task that will serve it.

    Asked once; called on the event loop, for jobs of the queue and for sockets too, so it must be
    quick and must not raise. What it sets in context variables holds for all that the request does.
    None: not interested.
    """


@hookspec
def response_headers(service: ServiceView) -> Callable[[Request], list[tuple[bytes, bytes]]] | None:
    """Return a function whose headers are added to every HTTP answer.

    Asked once; the function is called for each answer, before its head is sent, and must be quick.
    None: no headers.
    """


@hookspec
def observe_requests(service: ServiceView) -> Callable[[Finished], None] | None:
    """Return a function that is told of every request when it is over.

    Asked once; called on the event loop, so it must be quick and must not raise. None: not interested.
    """


@hookspec(firstresult=True)
def connection_protocol(service: ServiceView) -> ConnectionProtocol | None:
    """Return what reads the connections of the server first, and hands over what it does not answer.

    Asked once. The first answer wins, last registered first, so a plugin may replace ours. Without
    any, hypercorn reads them all. None: not mine. Not used when another ASGI server carries the app.
    """


@hookspec
def observe_output(service: ServiceView) -> OnOutput | None:
    """Return a function that is told of every line that the app prints or logs, with the id of its request.

    Asked once; called in the thread that prints, at once, so it must be quick. What it raises is
    logged. Nobody is told without the plugin observability. None: not interested.
    """


@hookspec(firstresult=True)
def queue_store(service: ServiceView) -> QueueStore | None:
    """Return where the queue keeps its jobs.

    Asked once. The first answer wins, last registered first; ours keeps them below `data_dir`.
    `runner.plugins.queue.contract` has the tests that every store must pass. None: not mine.
    """


@hookspec
def health_checks(service: ServiceView) -> Mapping[str, Check] | None:
    """Return async functions that say what is wrong with the app, or None while all is well, by name.

    Asked once; each is called at the interval of the regular checks, and one that raises or takes
    too long has failed. None: nothing to check.
    """


@hookspec
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    """Return a context that is entered before `setup()` and left after `teardown()`.

    Asked once. First registered is entered first. An error on entering stops the start.
    """
