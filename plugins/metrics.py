"""Metrics: what an operator's Prometheus reads, on `/metrics` and on the app's `metrics_port`.

Names and labels of fal's runner and platform (contract 11.2) as far as one process knows them, and
ours, `runner_…`. What the app registers with prometheus_client appears beside them. A finished
request is added to plain numbers, which become metrics when somebody reads.
`metrics_port` is served by a thread of its own: it answers also while the event loop does not.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import structlog

from ..schemas.events import Finished
from ..schemas.health import State
from ..schemas.problems import ConfigError
from ..schemas.request import Request
from ..schemas.response import Response
from ..schemas.service import Route, ServiceView
from .hookspecs import hookimpl

log = structlog.get_logger("runner.metrics")

LAG_SECONDS = 0.25  # between looks at how late the event loop is
CANCEL_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
RUN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATES = {State.STARTING: "pending", State.READY: "running", State.UNHEALTHY: "running"}  # fal's words; else dead


class Plugin:
    """The metrics of one service. Its own registry holds ours; what apps register is read beside it."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._meter: Meter | None = None  # made when first read: prometheus_client takes 30 ms to import
        self._service: ServiceView | None = None
        self._worst_lag = 0.0  # seconds, since the last reading

    @hookimpl
    def register_routes(self, service: ServiceView) -> list[Route]:
        self._service = service

        def answer(request: Request) -> Response:
            body, media_type = self._read()
            return Response(body, media_type=media_type)

        return [Route(method="GET", path="/metrics", answer=answer)]

    @hookimpl
    def observe_requests(self, service: ServiceView) -> Callable[[Finished], None]:
        return self._counts.add

    @hookimpl
    def lifespan(self, service: ServiceView) -> AbstractAsyncContextManager[None]:
        return self._counting(service)

    def _made(self) -> Meter:
        if self._meter is None:
            assert self._service is not None
            self._meter = Meter(self._service, self._counts)
        return self._meter

    def _read(self) -> tuple[bytes, str]:
        meter = self._made()
        meter.loop_lag.set(self._worst_lag)
        self._worst_lag = 0.0
        return meter.text()

    @asynccontextmanager
    async def _counting(self, service: ServiceView) -> AsyncIterator[None]:
        port = service.app.options.metrics_port
        listener = self._listen(service.settings.host, port) if port is not None else None
        clock = asyncio.create_task(self._keep_time())
        try:
            yield
        finally:
            clock.cancel()
            await asyncio.wait([clock])
            if listener is not None:
                server, thread = listener
                server.shutdown()
                server.server_close()
                thread.join()

    def _listen(self, host: str, port: int) -> tuple[Any, Any]:
        import prometheus_client

        try:
            listener = prometheus_client.start_http_server(port, addr=host, registry=self._made().registry)
        except OSError as error:
            raise ConfigError(f"metrics_port {port}: {error.strerror}; choose a free one, for example metrics_port = 9091") from None
        log.info("metrics.listening", url=f"http://{host}:{port}/metrics")
        return listener

    async def _keep_time(self) -> None:
        """See how late the loop comes back."""
        while True:
            due = time.perf_counter() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._worst_lag = max(self._worst_lag, time.perf_counter() - due)


class Spread:
    """A histogram in the making."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self, text: Callable[[float], str]) -> list[tuple[str, float]]:
        """Each upper bound, and how many values lie below it."""
        bounds = (*self.bounds, math.inf)
        return [(text(bound), count) for bound, count in zip(bounds, accumulate(self.counts), strict=True)]


class Counts:
    """What has finished, in plain numbers, by what tells one kind of request from another. Added to on the loop."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, int], Spread] = {}  # by method, path as declared, status
        self.waited: dict[str, Spread] = {}  # by endpoint, as what follows
        self.sent: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.sockets: dict[tuple[str, str], int] = {}  # by endpoint and why they ended
        self.cancels: dict[tuple[str, str], Spread] = {}  # by reason and layer
        self.swallowed = 0

    def add(self, one: Finished) -> None:
        path = one.endpoint or one.route or "other"  # never as asked: callers would make labels without end
        key = one.method, path, one.status
        if (seconds := self.seconds.get(key)) is None:
            seconds = self.seconds[key] = Spread(RUN_BUCKETS)
        seconds.add(one.seconds)
        if one.endpoint is not None:
            if (waited := self.waited.get(path)) is None:
                waited = self.waited[path] = Spread(WAIT_BUCKETS)
                self.sent[path] = 0
            waited.add(one.waited)
            self.sent[path] += one.bytes_out
        if one.items is not None:
            self.items[path] = self.items.get(path, 0) + one.items
        if one.ended is not None:
            self.sockets[path, one.ended] = self.sockets.get((path, one.ended), 0) + 1
        if one.stopped is not None:
            by = one.stopped.reason, one.stopped.layer
            if (cancels := self.cancels.get(by)) is None:
                cancels = self.cancels[by] = Spread(CANCEL_BUCKETS)
            cancels.add(one.stopped.seconds)
            self.swallowed += one.stopped.swallowed


class Meter:
    """The registry and its metrics, by their names in Prometheus."""

    def __init__(self, service: ServiceView, counts: Counts) -> None:
        from prometheus_client import (
            REGISTRY,
            CollectorRegistry,
            Gauge,
            generate_latest,
        )
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        self._service = service
        self._generate, self._media_type = generate_latest, CONTENT_TYPE_LATEST
        self.registry = registry = CollectorRegistry()
        registry.register(Chained(REGISTRY))
        registry.register(Tallies(service.tallies))
        app_id = service.settings.app_id or f"local/{service.app.alias}"

        def gauge(name: str, help: str, read: Callable[[], float], **labels: str) -> None:
            made = Gauge(name, help, list(labels), registry=registry)
            (made.labels(**labels) if labels else made).set_function(read)

        # fal's runner and platform
        version = str(getattr(service.instance, "version", "unknown"))
        Gauge("fal_app_info", "The app that this process serves.", ["version"], registry=registry).labels(version).set(1)
        machine = str(getattr(service.instance, "machine_type", ""))
        runners = Gauge("fal_app_runners", "Runners by state.", ["application", "state", "machine_type"], registry=registry)
        for state in ("pending", "running", "dead"):
            runners.labels(app_id, state, machine).set_function(partial(self._is_in, state))
        gauge("fal_app_queue_size", "Requests that wait for a place.", lambda: service.lanes["waiting"], application=app_id)
        gauge("fal_app_concurrent_requests", "Requests that run.", lambda: service.lanes["running"], application=app_id)
        registry.register(Counted(counts, service.app.alias))
        # ours
        for what, help in (
            ("places", "Requests that may run at once."),
            ("running", "Places that are taken."),
            ("waiting", "Requests in the line."),
            ("ghosts", "Places held by work that outlived its cancel."),
        ):
            gauge(f"runner_lane_{what}", help, partial(self._in_lane, what))
        gauge("runner_ready", "1 while probes are told to send requests.", lambda: float(service.health.state is State.READY))
        self.loop_lag = Gauge("runner_loop_lag_seconds", "How late the event loop came back, at worst since the last reading.", registry=registry)
        self._add_cuda(Gauge)

    def _is_in(self, state: str) -> float:
        return float(STATES.get(self._service.health.state, "dead") == state)

    def _in_lane(self, what: str) -> float:
        return self._service.lanes[what]

    def _add_cuda(self, gauge: Any) -> None:
        """Memory of the devices that the app uses, read when asked; nothing where torch has no CUDA."""
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return
        for name, read in (("allocated", torch.cuda.memory_allocated), ("reserved", torch.cuda.memory_reserved), ("peak", torch.cuda.max_memory_allocated)):
            metric = gauge(f"runner_cuda_memory_{name}_bytes", f"CUDA memory {name} by torch.", ["device"], registry=self.registry)
            for device in range(torch.cuda.device_count()):
                metric.labels(str(device)).set_function(partial(read, device))

    def text(self) -> tuple[bytes, str]:
        return self._generate(self.registry), self._media_type


class Chained:
    """What another registry holds, as one collector."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def collect(self) -> Iterator[Any]:
        yield from self._other.collect()


class Counted:
    """`Counts` as one collector: names and labels of fal's runner first, then ours."""

    def __init__(self, counts: Counts, app: str) -> None:
        self._counts, self._app = counts, app

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
        from prometheus_client.utils import floatToGoString

        def counter(name: str, help: str, labels: list[str], values: Mapping[Any, float]) -> Any:
            family = CounterMetricFamily(name, help, labels=labels)
            for key, value in list(values.items()):
                family.add_metric([str(part) for part in (key if isinstance(key, tuple) else (key,))], value)
            return family

        def histogram(name: str, help: str, labels: list[str], values: Mapping[Any, Spread]) -> Any:
            family = HistogramMetricFamily(name, help, labels=labels)
            for key, value in list(values.items()):
                family.add_metric([str(part) for part in key], value.buckets(floatToGoString), value.total)
            return family

        counts = self._counts
        by, seconds = ["method", "path", "status_code", "app_name"], {(*key, self._app): value for key, value in list(counts.seconds.items())}
        yield counter("http_requests_total", "HTTP requests by outcome.", by, {key: sum(value.counts) for key, value in seconds.items()})
        yield histogram("http_request_duration_seconds", "From the head read to the last byte handed over.", by, seconds)
        yield counter("runner_items_total", "Events of streams, and messages to the clients of sockets.", ["endpoint"], counts.items)
        yield counter("runner_sockets_ended_total", "Sockets by why they ended.", ["endpoint", "why"], counts.sockets)
        waited = {(endpoint,): value for endpoint, value in list(counts.waited.items())}
        yield histogram("runner_waited_seconds", "In the line before a place was free.", ["endpoint"], waited)
        yield histogram("runner_cancel_seconds", "From the wish to stop until the place was free.", ["reason", "layer"], counts.cancels)
        yield counter("runner_cancels_swallowed_total", "Cancels that the app's code caught and went on after.", [], {(): counts.swallowed})
        yield counter("runner_response_bytes_total", "Bytes of answers.", ["endpoint"], counts.sent)


class Tallies:
    """What plugins count, as gauges: `waiting` of the tally `queue` is `runner_queue_waiting`."""

    def __init__(self, tallies: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, tally in self._tallies.items():
            for what, value in tally().items():
                yield GaugeMetricFamily(f"runner_{name}_{what}", f"{what} of the {name}, as its plugin counts.", value=value)
