"""runner: serve a class with a model in it. The one name that authors import.

    import runner

    class MyApp(runner.App):
        def setup(self): ...

        @runner.endpoint("/")
        def generate(self, input: Input) -> Output: ...

The story in five parts: the names; an app and its endpoints; assembly, where every question is
asked once; the service, which answers requests; the command line. A request is followed from
`Service._http` to `_answer`, through the call that `assemble` froze for its path, into
`plugins/calling.py` and `plugins/lanes.py`, and back to `_send`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

HOUSE = str(Path(__file__).parent)
__path__ = [HOUSE, f"{HOUSE}/typings/runner"]  # `plugins/` and `schemas/` are runner.plugins, runner.schemas
__version__ = "0.1.0"

if __name__ == "__mp_main__":  # a child that multiprocessing spawned; `main` took our folder off its path
    sys.path.insert(0, HOUSE)

from runner.plugins.batching import make_batched_call
from runner.plugins.bodies import (
    Disconnected,
    Stream,
    has_body,
    lingering,
    read_body,
    refuse_two_framings,
    take_body,
)
from runner.plugins.calling import make_call, start_within
from runner.plugins.cancellation import Token, checkpoint, shield
from runner.plugins.driving import Drivers
from runner.plugins.eventlog import EventLog, EventLogs
from runner.plugins.files import Audio, CompressedFile, Depot, Image
from runner.plugins.hookspecs import hookimpl
from runner.plugins.life import Life
from runner.plugins.loading import (
    load_app,
    make_instance,
    offer,
    prepare_path,
    start_spawned_children_with,
)
from runner.plugins.logs import get_logger
from runner.plugins.progress import preview, progress
from runner.plugins.realtime import Limits as SocketLimits
from runner.plugins.realtime import Open, Talk, Wire, make_talk
from runner.plugins.registry import Failures, Plugins, ask, entered, first, fold, load_plugins
from runner.plugins.reloading import waiting_for_a_better_one
from runner.plugins.replying import AddHeaders, Reply
from runner.plugins.stopping import Running, cancel_path
from runner.plugins.telling import Teller, tell_all
from runner.plugins.types import Header, bind, describe
from runner.schemas import names
from runner.schemas.app import AppSpec, derive_alias, read_options
from runner.schemas.asgi import Receive, Scope, Send
from runner.schemas.batch import Batch
from runner.schemas.codec import Codec
from runner.schemas.connection import ConnectionProtocol, Shortcuts
from runner.schemas.declared import (
    check_called,
    check_endpoint,
    check_options,
    marked_methods,
    put_mark,
)
from runner.schemas.endpoint import Endpoint, Mark, OnDisconnect, Retry, check_path, realtime_mode
from runner.schemas.events import OnOutput
from runner.schemas.health import Health, HealthCheck, State
from runner.schemas.ids import asked_id, new_ids
from runner.schemas.names import *  # noqa: F403 # all that plugins need of the lowest floor
from runner.schemas.problems import (
    ConfigError,
    HTTPError,
    InvalidOutput,
    RequestCancelled,
    RunnerError,
    stopped_problem,
)
from runner.schemas.queue import QueueStore, SignWebhook
from runner.schemas.request import Request, current_request, enter_request, entering
from runner.schemas.response import Response, json_response
from runner.schemas.routes import Routes
from runner.schemas.service import Answer, Check
from runner.schemas.settings import Settings, read_settings
from runner.schemas.tracebacks import trimmed

__all__ = [
    *names.__all__,
    "App", "Audio", "CompressedFile", "EventLog", "Header", "Image", "Service", "asgi", "assemble", "checkpoint",
    "describe_app", "endpoint", "get_logger", "hookimpl",
    "main", "preview", "progress", "realtime", "shield",
]  # fmt: skip

log = get_logger("runner")

# --- an app and its endpoints ------------------------------------------------------------------

Function = TypeVar("Function", bound=Callable[..., Any])


def endpoint(
    path: str,
    *,
    is_websocket: bool = False,
    health_check: HealthCheck | None = None,
    timeout: float | None = None,
    on_disconnect: OnDisconnect = "cancel",
    retry: Retry = "never",
    batch: Batch | None = None,
) -> Callable[[Function], Function]:
    """Mark a method as what answers `POST path`. The method itself is left as it is.

    `timeout` is in seconds for one run and beats the app's `request_timeout`. `retry="safe"` says
    that a job of the queue may run a second time when the process died during the first. With
    `batch` the method takes and gives lists, one element per caller: see docs/batching.md. Raises
    ConfigError for a path without its leading slash, a second mark on one method, a wrong
    `on_disconnect` or `retry`, a `timeout` that is not positive, or a health check on a WebSocket.
    """
    if on_disconnect not in ("cancel", "finish"):
        raise ConfigError(f"on_disconnect is {on_disconnect!r}; it is 'cancel' or 'finish'")
    if retry not in ("never", "safe"):
        raise ConfigError(f"retry is {retry!r}; it is 'never', or 'safe' when running twice does no harm")
    check_options(timeout=timeout, health_check=health_check)
    if is_websocket and health_check is not None:
        raise ConfigError(f"{path}: a WebSocket cannot be the health check; give it a POST endpoint of its own")
    mark = Mark(
        path=check_path(path, of="@endpoint"),
        is_websocket=is_websocket,
        health_check=health_check,
        timeout=timeout,
        on_disconnect=on_disconnect,
        retry=retry,
        batch=batch,
    )

    return lambda function: put_mark(function, mark)


def realtime(
    path: str,
    *,
    buffering: int | None = None,
    session_timeout: float | None = None,
    input_modal: Any = None,
    output_modal: Any = None,
    max_batch_size: int = 1,
    content_type: str = "application/msgpack",
    encode_message: Callable[[Any], bytes | str] | None = None,
    decode_message: Callable[[bytes], Any] | None = None,
) -> Callable[[Function], Function]:
    """Mark a method as what a WebSocket at `path` talks to, message by message.

    The names of its types must exist by then. Raises ConfigError as `endpoint` does.
    """
    check_path(path, of="@realtime")

    def put_on(function: Function) -> Function:
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise ConfigError(
                f"{function.__qualname__}: the annotation names {error.name!r}, which is not defined yet; "
                "define it above the class"
            ) from None
        given = hints.pop("return", Any)
        taken = next(iter(hints.values()), Any)
        mark = Mark(
            path=path,
            is_websocket=True,
            input_modal=input_modal,
            output_modal=output_modal,
            realtime_mode=realtime_mode(taken, given),
            content_type=content_type,
            buffering=buffering,
            session_timeout=session_timeout,
            max_batch_size=max_batch_size,
            encode_message=encode_message,
            decode_message=decode_message,
        )
        return put_mark(function, mark)

    return put_on


class App:
    """The base of an app. Options are class attributes or class keywords, named as fal names them.

    Overriding `__init__` is refused: the service makes the one instance; load models in `setup()`.
    """

    app_name: str = ""
    version: str = "unknown"

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            raise ConfigError(f"{cls.__name__} overrides __init__; write setup(self) instead")
        for option, value in options.items():
            setattr(cls, option, value)
        if getattr(cls, "app_files_context_dir", None) and not getattr(cls, "app_files", None):
            raise ConfigError(f"{cls.__name__}: app_files_context_dir needs app_files beside it")
        if getattr(cls, "app_files", None) and getattr(cls, "image", None):
            raise ConfigError(f"{cls.__name__}: app_files and image exclude each other")
        cls.app_name = cls.app_name or name or derive_alias(cls.__name__)

    def setup(self) -> Any:
        """Load the model. Called once, before any request; sync or async."""

    def teardown(self) -> Any:
        """Let go of what `setup` took. Called once, after the last request; sync or async."""

    def handle_exit(self) -> None:
        """Hear of a stop at once, before running requests have ended."""

    def health(self) -> Any:
        """What `GET /health` says of the app itself; sync or async."""
        return {"version": self.version}

    def provide_hints(self) -> list[str]:
        """Texts for the `X-Fal-Runner-Hints` header; none unless overridden."""
        raise NotImplementedError

    @property
    def current_request(self) -> Request:
        return current_request()

    @classmethod
    def get_endpoints(cls) -> list[str]:
        """The paths of the endpoints, as fal's method of this name gives them."""
        return [mark.path for mark in marked_methods(cls).values()]


def describe_app(target: type[App]) -> AppSpec:
    """Return what to serve of `target`. Raises ConfigError when it has no endpoint or two share a path."""
    marks = marked_methods(target)
    check_called(target)
    attributes = {name: getattr(target, name) for name in dir(target) if not name.startswith("__")}
    return AppSpec(
        name=target.__name__,
        alias=target.app_name,
        make=target,
        marks=marks,
        options=read_options(attributes, of=target.__name__),
        module=target.__module__,
    )


# --- assembly ----------------------------------------------------------------------------------


def assemble(app: AppSpec, settings: Settings, plugins: Plugins) -> Service:
    """Put every question to every plugin now, so that no request has to."""
    service = Service(app, settings, plugins)
    cancels = {cancel_path(endpoint.path): endpoint.path for endpoint in service.endpoints if not endpoint.mark.is_websocket}
    for endpoint in service.endpoints:
        check_endpoint(endpoint, getattr(service.instance, endpoint.name), of=app.name)
        if endpoint.mark.is_websocket:
            service.sockets.add("GET", endpoint.path, (endpoint, service.talk_of(endpoint)))
            continue
        cancelled, check = cancels.get(endpoint.path), endpoint.mark.health_check
        answer = service.answer_of(endpoint, aside=cancelled is not None or check is not None)
        if cancelled is None:
            service.routes.add("POST", endpoint.path, Answer(answer, endpoint))
            if check is not None and check.method == "GET":
                service.routes.add("GET", endpoint.path, Answer(answer, endpoint))
        else:
            service.running_now.handlers[cancelled] = Answer(answer)
            service.routes.add("POST", endpoint.path, Answer(service.running_now.after(answer)))
    for path in cancels:
        service.routes.add("POST", path, Answer(service.running_now.by_id))
    service.queue_store = first(plugins, "queue_store", service=service)
    service.webhook_signers = tuple(ask(plugins, "sign_webhooks", service=service))
    for routes in reversed(ask(plugins, "register_routes", service=service)):
        for route in routes:
            service.routes.add(route.method, route.path, Answer(route.answer, streams_in=route.streams_in, path=route.path))
    for mounts in ask(plugins, "mount_app", service=service):
        service.routes.mount(mounts)
        service.sockets.mount(mounts)
    service.enter = entering(ask(plugins, "enter_requests", service=service))
    service.interceptors = tuple(ask(plugins, "intercept_requests", service=service))
    service.added_headers = tuple(ask(plugins, "response_headers", service=service))
    service.error_maps = tuple(reversed(ask(plugins, "map_error", service=service)))
    service.life.on_error = tell_all(ask(plugins, "observe_errors", service=service))
    for checks in ask(plugins, "health_checks", service=service):
        service.health_checks |= checks
    service.teller.observers = tuple(ask(plugins, "observe_requests", service=service))
    service.connections = first(plugins, "connection_protocol", service=service)
    service.output_observers = tuple(ask(plugins, "observe_output", service=service))
    return service


# --- the service -------------------------------------------------------------------------------

NEVER_SECONDS = 1e7  # timers take no infinity


class Service:
    """One app, assembled: an ASGI application, and the owner of what its requests share.

    `assemble` fills in what is public and not set here; afterwards nothing of it changes.
    """

    enter: Callable[[Request], None] = staticmethod(enter_request)
    interceptors: tuple[Callable[[Request], Response | None], ...] = ()
    added_headers: tuple[AddHeaders, ...] = ()
    error_maps: tuple[Callable[[BaseException], Response | None], ...] = ()
    connections: ConnectionProtocol | None = None
    output_observers: tuple[OnOutput, ...] = ()
    queue_store: QueueStore | None = None
    webhook_signers: tuple[SignWebhook, ...] = ()

    def __init__(self, app: AppSpec, settings: Settings, plugins: Plugins) -> None:
        self.app, self.settings, self.plugins = app, settings, plugins
        self.failures = Failures(plugins, app.module)
        self.health = Health()
        self.url = ""  # set by the server that listens
        stores = ask(plugins, "file_store", settings=settings)
        self.depot = Depot(stores[-1], settings, lambda: self.url) if stores else None
        self.instance = make_instance(app)
        self.life = Life(self.instance, app.options, settings, self.health)
        self.lane, self.give_up = self.life.lane, self.life.give_up
        self.running_now = Running(app.options.cancel_grace_seconds)
        self.tallies: dict[str, Callable[[], Mapping[str, float]]] = {}
        self.batches: dict[str, dict[int, int]] = {}
        self.routes: Routes[Answer] = Routes()
        self.sockets: Routes[tuple[Endpoint, Open]] = Routes()
        self.endpoints: tuple[Endpoint, ...] = tuple(
            describe(getattr(self.instance, name), mark, owner=type(self.instance)) for name, mark in app.marks.items()
        )
        self.logs = EventLogs()
        self.health_checks: dict[str, Check] = {}
        self._codecs: dict[Any, Codec] = {}
        self.teller = Teller(self.failures.blame)
        self._ids = new_ids()
        self._new_scope: Callable[[], anyio.CancelScope] = anyio.CancelScope
        self._drivers = Drivers(self._stopped, self._over, _outlived)
        self._talks: set[Talk] = set()

    @property
    def lanes(self) -> Mapping[str, int]:
        return self.lane.occupancy

    def codec(self, type: Any) -> Codec:
        """The codec of `type`. Raises ConfigError when no plugin knows it."""
        try:
            return self._codecs[type]
        except KeyError:
            pass
        except TypeError:  # not hashable, such as Annotated with a dict in it
            return self._new_codec(type)
        self._codecs[type] = codec = self._new_codec(type)
        return codec

    def _new_codec(self, type: Any) -> Codec:
        codec: Codec | None = first(self.plugins, "type_codec", type=type)
        if codec is None:
            raise ConfigError(f"values of {type!r} cannot cross the wire; use a msgspec.Struct, a pydantic model, a dataclass or a builtin")
        return codec

    def answer_of(self, endpoint: Endpoint, *, aside: bool) -> Callable[[Request], Awaitable[Response]]:
        """What answers `endpoint`, frozen: its arguments are read and its call, wrapped by plugins, is made.

        With `aside` it runs beside the app's places, as what looks after other requests must.
        """
        timeout = endpoint.timeout or self.app.options.request_timeout
        lane = self.life.aside if aside else self.lane
        try:
            read = bind(endpoint, self.codec)
            parts = (endpoint, getattr(self.instance, endpoint.name), self.codec(endpoint.output), lane, timeout, self.settings.ping_seconds)
            call = make_call(*parts) if endpoint.mark.batch is None else make_batched_call(*parts, self.batches.setdefault(endpoint.path, {}))
        except ConfigError as error:
            raise ConfigError(f"{self.app.name}.{endpoint.name}: {error}") from error
        read = fold(self.plugins, "wrap_bind", read, endpoint=endpoint, service=self)
        call = fold(self.plugins, "wrap_call", call, endpoint=endpoint, service=self)

        def answer(request: Request) -> Awaitable[Response]:
            if not self.health.takes_requests:
                return late(request)
            return call(request, read(request))

        async def late(request: Request) -> Response:
            await self.life.admit(start_within(request))
            return await call(request, read(request))

        return answer

    def talk_of(self, endpoint: Endpoint) -> Open:
        """What serves sockets of `endpoint`, frozen."""
        limits = SocketLimits(self.settings.max_message_bytes, self.settings.max_messages_per_second)
        timeout = endpoint.timeout or self.app.options.request_timeout
        return make_talk(endpoint, getattr(self.instance, endpoint.name), self.codec, self.lane, timeout, limits)

    # --- one request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._socket(scope, receive, send)

    def take(self, exchange: Shortcuts) -> None:
        """Answer a request of a connection of ours, from its first step on. The driver has its one cancel scope."""
        request = Request(token=Token(), depot=self.depot, shortcuts=exchange)
        request.id = asked_id(request) or next(self._ids)
        reply = Reply(request, exchange.send, self.added_headers, self.settings.ping_seconds)
        self.running_now.add(request)
        exchange.task = self._drivers.run(self._answer(request, exchange.receive, reply), request.token, reply)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        request = Request(scope=scope, path=path, token=Token())
        request.id = asked_id(request) or next(self._ids)
        await self.perform(request, receive, send)

    async def perform(self, request: Request, receive: Receive, send: Send) -> None:
        """Answer one request within its one cancel scope, which nobody else opens or owns."""
        request.depot = self.depot
        is_job = request.begin is not None  # nobody is at the other end: what is sent is stored
        ping_seconds = NEVER_SECONDS if is_job else self.settings.ping_seconds
        reply = Reply(request, send, () if is_job else self.added_headers, ping_seconds)
        self.running_now.add(request)
        try:
            with self._new_scope() as cancel_scope:
                request.token.on_cancel(cancel_scope.cancel)
                await self._answer(request, receive, reply)
            await self._stopped(reply)
        finally:
            self._over(reply)

    async def _stopped(self, reply: Reply) -> None:
        """What is left to say to the caller of a request that was stopped, out of its scope."""
        token = reply.request.token
        if token.cancelled and token.reason != "client_disconnected":
            await reply.cut_short(stopped_problem(token.reason or ""))

    def _over(self, reply: Reply, error: BaseException | None = None) -> None:
        request = reply.request
        self.running_now.ended(request)
        if request.log is not None and request.begin is None:  # a job may be tried again
            request.log.append("completed", reply.outcome())
        self.teller.tell(request, reply, reply.began)
        if request.shortcuts is not None:
            request.shortcuts.over(error)

    async def _answer(self, request: Request, receive: Receive, reply: Reply) -> None:
        """Find what answers, run it, send what it gives; whatever is raised becomes an answer too."""
        watch: Callable[[], object] | None = None
        body_read = False
        self.enter(request)
        try:
            is_job = request.begin is not None  # let in when it was submitted, and for endpoints only
            if request.shortcuts is None:  # whose connection refuses them
                refuse_two_framings(request)
            response = None
            for look in () if is_job or request.from_within else self.interceptors:
                if (response := look(request)) is not None:
                    break
            if response is None:
                found = self.routes.find(request)
                if is_job and found.endpoint is None:
                    raise HTTPError(404, f"Path {request.path} not found", {"x-fal-billable-units": "0"})
                reply.endpoint, reply.route = found.endpoint, found.path
                if found.streams_in:
                    request.stream = Stream(receive, request.scope["headers"], self.settings.max_file_bytes)
                elif request.method not in ("GET", "HEAD"):
                    whole = request.shortcuts.take_body() if request.shortcuts is not None else None
                    limit = self.settings.max_body_bytes
                    request.body = take_body(whole, request, limit) if whole is not None else await read_body(receive, request, limit)
                    body_read = True
                if found.endpoint is not None:
                    self.running_now.begins(request, found.endpoint)
                    if found.endpoint.on_disconnect == "cancel" and not request.from_within:
                        watch = self._watch(request, receive, reply)
                answered = found.answer(request)
                response = answered if isinstance(answered, Response) else await answered
                if response.stream is not None and found.endpoint is None:
                    watch = self._watch(request, receive, reply)
            if not reply.send_at_once(response):
                await reply.send(response)
        except Disconnected:
            request.token.cancel("client_disconnected")
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _from_outside(request):
                raise
            response = self._failure(request, error)
            await reply.fail(response if body_read or not has_body(request) else lingering(response, receive))
        finally:
            if watch is not None:
                watch()

    def _watch(self, request: Request, receive: Receive, reply: Reply) -> Callable[[], object] | None:
        """Cancel `request` when its client hangs up; return what ends the watch, if somebody must."""

        def hung_up() -> None:
            if not reply.ended:
                self.running_now.stop(request, "client_disconnected")

        if (shortcuts := request.shortcuts) is not None:
            shortcuts.on_hangup(hung_up)
            return None

        async def until_hangup() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            hung_up()

        return asyncio.get_running_loop().create_task(until_hangup()).cancel

    def _failure(self, request: Request, error: BaseException) -> Response:
        """What the caller reads of `error`. What nobody expected is logged with its traceback."""
        if request.trace is not None:
            request.trace.failed(error)
        if isinstance(error, RequestCancelled):
            return stopped_problem(request.token.reason or "client_cancelled")
        if isinstance(error, RunnerError) and not isinstance(error, ConfigError):
            if isinstance(error, InvalidOutput):
                log.error("response.invalid", endpoint=request.path, problem=str(error))
            response = error.response()
        else:
            mapped = self.failures.mapped(error, self.error_maps)
            response = mapped or json_response({"detail": "Internal Server Error"}, status=500)
            if response.status >= 500:
                log.error("request.failed", endpoint=request.path, **self.failures.blame(error), exc_info=trimmed(error))
            if response.status == 500:
                response.headers.setdefault("x-fal-error-type", "runner_server_error")
        response.headers.update(getattr(error, "answer_headers", ()))  # what plugins add to its answer
        return response

    # --- one socket

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket within its one cancel scope, as a request is served."""
        began = time.perf_counter()
        token = Token()
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        request = Request(scope=scope, path=path, token=token)
        request.id = asked_id(request) or next(self._ids)
        self.enter(request)
        wire = Wire(scope, receive, send, request.id or "")
        self.running_now.add(request)
        try:
            with anyio.CancelScope() as cancel_scope:
                token.on_cancel(cancel_scope.cancel)
                await self._talk(request, wire)
            if token.cancelled and not (wire.gone or wire.closed):
                problem = stopped_problem(token.reason or "")
                await wire.fail(problem, problem_text(problem), token.reason or "failed")
        finally:
            self.running_now.ended(request)
            if wire.gone and wire.why is None:
                wire.why = "client"
            self.teller.tell(request, wire, began)

    async def _talk(self, request: Request, wire: Wire) -> None:
        """Find who talks to this client and let them; whatever is raised becomes an ending."""
        talk: Talk | None = None
        try:
            refusal = next((r for look in self.interceptors if (r := look(request)) is not None), None)
            if refusal is not None:
                return await wire.refuse(refusal)
            wire.endpoint, open_talk = self.sockets.find(request)
            if not self.health.takes_requests:
                await self.life.admit(start_within(request))
            self.running_now.begins(request, wire.endpoint)
            talk = open_talk(request, wire, lambda: self.running_now.stop(request, "client_disconnected"))
            self._talks.add(talk)
            wire.why = await talk.run()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _from_outside(request):
                raise
            await wire.fail(self._failure(request, error), str(error) or type(error).__name__)
        finally:
            if talk is not None:
                self._talks.discard(talk)

    # --- from start to stop

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The app's whole life, and the plugins' around it."""
        self._new_scope = type(anyio.CancelScope())  # the loop's own class, which anyio would look up each time
        self._drivers.open()
        async with AsyncExitStack() as contexts:
            contexts.push_async_callback(self._drivers.close)
            await entered(contexts, self.plugins, self)
            log.info("plugins.loaded", plugins=self.plugins.listed(own_version=__version__))
            await contexts.enter_async_context(self.life.lived())
            yield

    async def drain(self) -> None:
        """Take no more requests, and let those that run come to an end."""
        self.health.become(State.DRAINING)
        for talk in list(self._talks):
            talk.wind_up()
        await self.life.drain(self.running_now)

    async def beside(self, function: Callable[[], Any]) -> Any:
        """Call a function of the app past its places, a sync one in a thread."""
        return await self.life.beside(function)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """The same under another ASGI server: requests are taken as soon as setup is through."""
        await receive()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.running())
            except Exception as error:
                log.error("start.failed", exc_info=error)
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.drain()
        await send({"type": "lifespan.shutdown.complete"})


def problem_text(response: Response) -> str:
    """The sentence in an error body of ours."""
    return str(msgspec.json.decode(response.body)["detail"])


def _outlived(reply: Reply) -> bool:
    """Whether threads that the work started run on, in which anyio still looks at its scope."""
    return bool(getattr(reply.request.place, "children", ()))


def _from_outside(request: Request) -> bool:
    """Whether a CancelledError is ours or the server's, not one that an endpoint let slip."""
    task = asyncio.current_task()
    return request.token.cancelled or (task is not None and task.cancelling() > 0)


# --- the command line --------------------------------------------------------------------------


def asgi(target: type, settings: Settings | None = None, plugins: Sequence[Any] = ()) -> Service:
    """`target` as a plain ASGI application, lifespan included, for a test or any other server."""
    settings = settings or Settings()
    manager = load_plugins(settings, *plugins)
    app = _described(target, manager)
    if app is None:
        raise ConfigError(f"{target.__name__} is not an app; write class {target.__name__}(runner.App)")
    return assemble(app, settings, manager)


def _described(target: type, plugins: Plugins) -> AppSpec | None:
    app: AppSpec | None = describe_app(target) if issubclass(target, App) else first(plugins, "describe_app", target=target)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one app as the arguments say. Returns the exit code: 2 for a wrong setting or class."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["new"]:
            return int(importlib.import_module("runner.plugins.scaffold").main(arguments[1:]))
        target, settings, action = read_settings(arguments, os.environ, Path.cwd())
        if (settings.supervise or settings.reload) and settings.listen_fd < 0 and action is None:
            importlib.import_module("runner.plugins.server").supervise(settings)
        if "observability" not in settings.no_plugin:
            importlib.import_module("runner.plugins.observability").prepare(settings)
        prepare_path(target, settings.app_dir, HOUSE)
        start_spawned_children_with(__file__)
        plugins = load_plugins(settings)
        for modules in ask(plugins, "provide_modules", names={name: globals()[name] for name in __all__}):
            offer(modules)
        with waiting_for_a_better_one(settings):
            app = load_app(target, lambda found: _described(found, plugins))
            service = assemble(app, settings, plugins)
        if action == "openapi":
            return _print_openapi(service)
        if action == "check":
            return _print_check(service)
        return int(importlib.import_module("runner.plugins.server").run(service, settings))
    except ConfigError as error:
        sys.stderr.write(f"runner: {error}\n")
        return error.exit_code


def _print_openapi(service: Service) -> int:
    if (document := _document(service)) is None:
        raise ConfigError("--openapi needs the plugin openapi; leave out --no-plugin openapi")
    sys.stdout.write(document + "\n")
    return 0


def _document(service: Service) -> str | None:
    try:
        response = service.routes.known("/openapi.json")["GET"].answer(Request())
    except KeyError:
        return None
    assert isinstance(response, Response)
    return response.body.decode()


def _print_check(service: Service) -> int:
    _document(service)  # what cannot be described is told now
    lines = [f"app {service.app.name}, called {service.settings.app_id or f'local/{service.app.alias}'}"]
    for endpoint in service.endpoints:
        kind = "WS  " if endpoint.mark.is_websocket else "POST"
        lines.append(f"{kind} {endpoint.path}  {service.app.name}.{endpoint.name}")
    lines += [f"plugin {line}" for line in service.plugins.listed(own_version=__version__)]
    lines += [f"hook {line}" for line in service.plugins.hooks_listed()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__mp_main__":
    sys.path.remove(HOUSE)

if __name__ == "__main__":
    # As a script this file is `__main__`, yet apps import `runner`. Go there at once,
    # so that only one `App` is ever used.
    from runner import main

    raise SystemExit(main())
