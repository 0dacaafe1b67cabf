"""Traces: what an operator's OpenTelemetry backend sees of each request.

Off, and without any cost, until one of the standard variables says where spans go:
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER`. The packages
are those of the extra `traces`; they read the other `OTEL_…` variables themselves (service name,
sampler, headers, batches, propagators). A request has one span, and below it `waiting`, `files`, `lane` and
`encode`. A caller's `traceparent` is continued. A job of the queue continues the trace of its submit, also
after a restart and in each attempt. An app's own spans hang below the request's. Names and attributes
are those of the semantic conventions for HTTP servers and messaging; ours begin with `runner.`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from ..schemas.events import Finished
from ..schemas.problems import ConfigError, RequestCancelled
from ..schemas.request import Request
from ..schemas.service import ServiceView
from .hookspecs import hookimpl
from .logs import get_logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind

log = get_logger("runner.traces")

SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROBES = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})  # asked every few seconds, told of by nobody
FLUSH_SECONDS = 1.0  # at the end, for what is not sent yet
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
Facts = Mapping[str, str | int | float]


def wanted(environment: Mapping[str, str]) -> list[str]:
    """The exporters that the environment asks for, by the names of the specification; none when it asks for nothing."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or not any(map(environment.get, SWITCHES)):
        return []
    names = [name.strip().lower() for name in (environment.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return [name for name in names if name not in ("", "none")]


class Plugin:
    """The tracing of one service. `enter_requests` is asked first, and makes it."""

    def __init__(self) -> None:
        self._exporters = wanted(os.environ)
        self._tracing: Tracing | None = None

    @hookimpl
    def enter_requests(self, service: ServiceView) -> Callable[[Request], None] | None:
        if not self._exporters:
            return None
        try:
            import opentelemetry.sdk.trace  # noqa: F401
        except ImportError:  # the variables may be there for others: it is no reason not to serve
            log.warning("traces.unavailable", help="OTEL_… asks for traces; pip install 'onerunner[traces]', or set OTEL_SDK_DISABLED=true")
            self._exporters = []
            return None
        self._tracing = Tracing(service, [made_exporter(name, os.environ) for name in self._exporters])
        return self._tracing.enter

    @hookimpl
    def observe_requests(self, service: ServiceView) -> Callable[[Finished], None] | None:
        return finish if self._tracing is not None else None

    @hookimpl
    def lifespan(self, service: ServiceView) -> AbstractAsyncContextManager[None] | None:
        return self._tracing.running() if self._tracing is not None else None


def made_exporter(name: str, environment: Mapping[str, str]) -> Any:
    """The exporter that some installed package offers under this name. Raises ConfigError when none does."""
    if name == "otlp":
        protocol = next((environment[p] for p in PROTOCOLS if environment.get(p)), "http/protobuf").strip()
        name = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}.get(protocol, protocol)
    found = [*entry_points(group="opentelemetry_traces_exporter", name=name)]
    if not found:
        known = sorted({entry.name for entry in entry_points(group="opentelemetry_traces_exporter")})
        raise ConfigError(f"OTEL_TRACES_EXPORTER asks for {name!r}, which no package offers; installed: {', '.join(known)}; for example otlp")
    return found[0].load()()


class Tracing:
    """Owns the provider of one service. The exporters' threads run between `running`'s ends."""

    def __init__(self, service: ServiceView, exporters: list[Any]) -> None:
        from opentelemetry import (  # the second reads OTEL_PROPAGATORS: a wrong one stops the start
            context,
            propagate,
            trace,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._exporters = exporters
        self.context, self.propagate, self.trace = context, propagate, trace
        named = {} if _is_named() else {SERVICE_NAME: service.settings.app_id or service.app.alias}
        self.provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(self.provider)  # an app's own spans go the same way
        self.tracer = self.provider.get_tracer("runner")
        self._passed_over = PROBES - {endpoint.path for endpoint in service.endpoints}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        for exporter in self._exporters:
            self.provider.add_span_processor(BatchSpanProcessor(exporter))
        log.info("traces.on", exporters=[type(exporter).__name__ for exporter in self._exporters])
        try:
            yield
        finally:
            await self._flush()

    async def _flush(self) -> None:
        """Send what is left, for as long as that does not hold up the end."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self.provider.shutdown()
            with suppress(RuntimeError):  # the loop did not wait so long
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=shut_down, name="runner-traces-flush", daemon=True).start()
        try:
            await asyncio.wait_for(sent.wait(), FLUSH_SECONDS)
        except TimeoutError:
            log.warning("traces.lost", reason=f"the last spans could not be sent within {FLUSH_SECONDS:g} s")

    def enter(self, request: Request) -> None:
        """Begin the span of `request`, and make it the one that its work finds."""
        if request.from_within or request.path in self._passed_over:
            return
        came_with = self.propagate.extract(request.headers, context=self.context.Context())
        kinds = self.trace.SpanKind
        if request.begin is not None:
            kind, name, facts = kinds.CONSUMER, f"process {request.path}", _job_facts(request)
        else:
            kind, name, facts = kinds.SERVER, _method(request), _http_facts(request)
        request.trace = made = RequestTrace(self, request, came_with, kind, name, facts)
        self.context.attach(made.context)


def _is_named() -> bool:
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


def _method(request: Request) -> str:
    method = request.method or "GET"  # a socket's handshake
    return method if method in METHODS else "HTTP"


def _http_facts(request: Request) -> dict[str, str | int | float]:
    scope = request.scope
    method = request.method or "GET"
    facts: dict[str, str | int | float] = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.path": request.path,
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        "runner.request.id": request.id or "",
    }
    if method not in METHODS:
        facts["http.request.method_original"] = method
    if host := request.headers.get("host"):
        name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
        facts["server.address"] = name
        if port.isdecimal():
            facts["server.port"] = int(port)
    if client := scope.get("client"):
        facts["client.address"] = client[0]
    if agent := request.headers.get("user-agent"):
        facts["user_agent.original"] = agent
    return facts


def _job_facts(request: Request) -> dict[str, str | int | float]:
    return {
        "messaging.system": "runner",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": request.path,
        "messaging.message.id": request.id or "",
        "runner.request.id": request.id or "",
    }


class RequestTrace:
    """See `runner.schemas.tracing.Trace`. Made as the request is entered, finished by `finish`."""

    def __init__(self, tracing: Tracing, request: Request, parent: Context, kind: SpanKind, name: str, facts: Facts) -> None:
        self._tracing, self._tracer, self._request, self._name = tracing, tracing.tracer, request, name
        self._began, self._began_ns = time.perf_counter(), time.time_ns()
        self._is_job = request.begin is not None
        self._span = self._tracer.start_span(name, context=parent, kind=kind, attributes=dict(facts), start_time=self._began_ns)
        self.context = tracing.trace.set_span_in_context(self._span, parent)
        self._error: BaseException | None = None

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def span_id(self) -> str:
        return f"{self._span.get_span_context().span_id:016x}"

    def ids(self) -> tuple[str, str]:
        own, here = self._span.get_span_context(), self._tracing.trace.get_current_span().get_span_context()
        return self.trace_id, f"{(here if here.trace_id == own.trace_id else own).span_id:016x}"

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._tracing.propagate.inject(carrier, self.context)
        return carrier

    @contextmanager
    def part(self, name: str, facts: Facts) -> Iterator[None]:
        with self._tracer.start_as_current_span(name, context=self.context, attributes=dict(facts)):
            yield

    def failed(self, error: BaseException) -> None:
        if not isinstance(error, RequestCancelled):
            self._error = error
            self._span.record_exception(error)

    def _at(self, moment: float) -> int:
        """Nanoseconds since 1970 of a moment of `time.perf_counter`."""
        return self._began_ns + int((moment - self._began) * 1e9)

    def end(self, finished: Finished) -> None:
        """Say what became of the request, and for how long it waited and ran."""
        request, span, route = self._request, self._span, finished.endpoint or finished.route
        if span.is_recording():
            if finished.method != "WS":
                self._lane(request.place)
            if route:
                span.set_attribute("http.route", route)
                span.update_name(f"process {route}" if self._is_job else f"{self._name} {route}")
            span.set_attribute("http.response.status_code", finished.status)
            span.set_attribute("http.response.body.size", finished.bytes_out)
            if finished.items is not None:
                span.set_attribute("runner.items", finished.items)
            if finished.ended is not None:
                span.set_attribute("runner.socket.ended", finished.ended)
            if finished.status >= 400:
                error = self._error if finished.status >= 500 else None
                kind = finished.error_type or (type(error).__qualname__ if error is not None else str(finished.status))
                span.set_attribute("error.type", kind)
            if finished.status >= 500:
                span.set_status(self._tracing.trace.StatusCode.ERROR, str(self._error) if self._error is not None else None)
            if (stopped := finished.stopped) is not None:
                span.set_attribute("runner.cancel.reason", stopped.reason)
                span.set_attribute("runner.cancel.layer", stopped.layer)
                span.set_attribute("runner.cancel.seconds", stopped.seconds)
        span.end(self._began_ns + int(finished.seconds * 1e9))
        self._error = None
        self._request = Request()  # the two would keep each other alive

    def _lane(self, place: Any) -> None:
        if place is None:
            return
        self._past("waiting", place.asked, place.began or place.ended)
        if place.began:
            self._past("lane", place.began, place.ended)

    def _past(self, name: str, began: float, ended: float) -> None:
        span = self._tracer.start_span(name, context=self.context, start_time=self._at(began))
        span.end(self._at(ended) if ended else None)


def finish(finished: Finished) -> None:
    if isinstance(finished.trace, RequestTrace):
        finished.trace.end(finished)
