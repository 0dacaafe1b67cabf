"""Metrics: what an operator's Prometheus reads, on `/metrics` and on the app's `metrics_port`.

Names and labels of fal's runner and platform (contract 11.2) as far as one process knows them, and
ours, `runner_…`. What the app registers with prometheus_client appears beside them. A finished
request costs a place in a list; it is counted when somebody reads, or once a second.
`metrics_port` is served by a thread of its own: it answers also while the event loop does not.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
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

COUNT_SECONDS = 1.0  # at most so late is a request counted
UNCOUNTED = 1000  # finished requests that may pile up before anybody has read
COUNTED_AT_ONCE = 100  # some 0.3 ms of work
LAG_SECONDS = 0.25  # between looks at how late the event loop is
CANCEL_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RUN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
STATES = {State.STARTING: "pending", State.READY: "running", State.UNHEALTHY: "running"}  # fal's words; else dead


class Plugin:
    """The metrics of one service. Its own registry holds ours; what apps register is read beside it."""

    def __init__(self) -> None:
        self._finished: deque[Finished] = deque()  # not counted yet
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
        return self._finished.append

    @hookimpl
    def lifespan(self, service: ServiceView) -> AbstractAsyncContextManager[None]:
        return self._counting(service)

    def _made(self) -> Meter:
        if self._meter is None:
            assert self._service is not None
            self._meter = Meter(self._service)
        return self._meter

    def _read(self) -> tuple[bytes, str]:
        meter = self._made()
        meter.count(self._finished)
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
        """See how late the loop comes back, and count what has finished."""
        count_at = 0.0
        while True:
            due = time.perf_counter() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            now = time.perf_counter()
            self._worst_lag = max(self._worst_lag, now - due)
            if now > count_at and (self._meter is not None or len(self._finished) > UNCOUNTED):
                count_at = now + COUNT_SECONDS
                for _ in range(len(self._finished) // COUNTED_AT_ONCE + 1):
                    self._made().count(self._finished, COUNTED_AT_ONCE)
                    await asyncio.sleep(0)  # requests come first: all at once would hold them up for 25 ms


class Meter:
    """The registry and its metrics, by their names in Prometheus."""

    def __init__(self, service: ServiceView) -> None:
        from prometheus_client import (
            REGISTRY,
            CollectorRegistry,
            Counter,
            Gauge,
            Histogram,
            generate_latest,
        )
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        self._service = service
        self._generate, self._media_type = generate_latest, CONTENT_TYPE_LATEST
        self.registry = registry = CollectorRegistry()
        registry.register(Chained(REGISTRY))
        registry.register(Tallies(service.tallies))
        registry.register(Batches(service.batches))
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
        self._series: dict[tuple[str, str, int, str | None], tuple[Any, ...]] = {}
        self._requests = Counter(
            "http_requests_total", "HTTP requests by outcome.", ["method", "path", "status_code", "app_name"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds", "From the head read to the last byte handed over.",
            ["method", "path", "status_code", "app_name"], registry=registry, buckets=RUN_BUCKETS,
        )  # fmt: skip
        # ours
        self._items = Counter("runner_items_total", "Events of streams, and messages to the clients of sockets.", ["endpoint"], registry=registry)
        self._sockets = Counter("runner_sockets_ended_total", "Sockets by why they ended.", ["endpoint", "why"], registry=registry)
        self._waited = Histogram("runner_waited_seconds", "In the line before a place was free.", ["endpoint"], registry=registry, buckets=WAIT_BUCKETS)
        self._cancel = Histogram(
            "runner_cancel_seconds", "From the wish to stop until the place was free.", ["reason", "layer"], registry=registry, buckets=CANCEL_BUCKETS
        )
        self._swallowed = Counter("runner_cancels_swallowed_total", "Cancels that the app's code caught and went on after.", registry=registry)
        self._bytes = Counter("runner_response_bytes_total", "Bytes of answers.", ["endpoint"], registry=registry)
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

    def count(self, finished: deque[Finished], most: int = sys.maxsize) -> None:
        """Count what has finished since the last time, in order, up to `most`."""
        app = self._service.app.alias
        with suppress(IndexError):  # empty; two readers may share the work
            for _ in range(most):
                one = finished.popleft()
                path = one.endpoint or one.route or "other"  # never as asked: callers would make labels without end
                key = one.method, path, one.status, one.endpoint
                if (series := self._series.get(key)) is None:
                    series = self._series[key] = self._series_of(one, path, app)
                requests, seconds, waited, sent = series
                requests.inc()
                seconds.observe(one.seconds)
                if one.endpoint is not None:
                    waited.observe(one.waited)
                    sent.inc(one.bytes_out)
                if one.items is not None:
                    self._items.labels(path).inc(one.items)
                if one.ended is not None:
                    self._sockets.labels(path, one.ended).inc()
                if one.stopped is not None:
                    self._cancel.labels(one.stopped.reason, one.stopped.layer).observe(one.stopped.seconds)
                    self._swallowed.inc(one.stopped.swallowed)

    def _series_of(self, one: Finished, path: str, app: str) -> tuple[Any, ...]:
        """What requests like `one` are counted in; looking it up by its labels each time takes longer than counting."""
        labels = (one.method, path, str(one.status), app)
        own = (self._waited.labels(one.endpoint), self._bytes.labels(one.endpoint)) if one.endpoint is not None else (None, None)
        return self._requests.labels(*labels), self._seconds.labels(*labels), *own

    def text(self) -> tuple[bytes, str]:
        return self._generate(self.registry), self._media_type


class Chained:
    """What another registry holds, as one collector."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def collect(self) -> Iterator[Any]:
        yield from self._other.collect()


class Tallies:
    """What plugins count, as gauges: `waiting` of the tally `queue` is `runner_queue_waiting`."""

    def __init__(self, tallies: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, tally in self._tallies.items():
            for what, value in tally().items():
                yield GaugeMetricFamily(f"runner_{name}_{what}", f"{what} of the {name}, as its plugin counts.", value=value)


class Batches:
    """How large the batches of each endpoint were; `_count` is how many ran, `_sum` the requests in them."""

    def __init__(self, batches: Mapping[str, Mapping[int, int]]) -> None:
        self._batches = batches

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        if not self._batches:
            return
        family = HistogramMetricFamily("runner_batch_size", "Requests in a batch, when it began.", labels=["endpoint"])
        for endpoint, sizes in self._batches.items():
            known = sorted(sizes.items())
            buckets = [(str(float(most)), sum(times for size, times in known if size <= most)) for most in SIZE_BUCKETS]
            buckets.append(("+Inf", sum(times for _, times in known)))
            family.add_metric([endpoint], buckets, sum(size * times for size, times in known))
        yield family
