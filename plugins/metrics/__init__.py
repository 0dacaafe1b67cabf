"""Metrics: what an operator's Prometheus reads, on `/metrics` and on the app's `metrics_port`.

Names and labels of fal's runner and platform (contract 11.2) as far as one process knows them, and
ours, `runner_…`. What the app registers with prometheus_client appears beside them. A finished
request is added to plain numbers (`counts`), which become metrics when somebody reads (`families`,
`machine`). `metrics_port` is served by a thread of its own: it answers also while the event loop does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ...schemas.events import Finished
from ...schemas.problems import ConfigError
from ...schemas.request import Request
from ...schemas.response import Response
from ...schemas.service import Route, ServiceView
from ..hookspecs import hookimpl
from ..logs import get_logger
from .counts import Counts, Minute

log = get_logger("runner.metrics")

LAG_SECONDS = 0.25  # between looks at how late the event loop is


class Plugin:
    """The metrics of one service. Its own registry holds ours; what apps register is read beside it."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._minute: Minute | None = None
        self._registry: Any = None  # made when first read: prometheus_client takes 30 ms to import
        self._service: ServiceView | None = None
        self._worst_lag = 0.0  # seconds, since the last reading

    @hookimpl
    def register_routes(self, service: ServiceView) -> list[Route]:
        self._service = service
        self._minute = Minute(self.counts, service)

        def answer(request: Request) -> Response:
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            request.quiet = True
            return Response(generate_latest(self.registry()), media_type=CONTENT_TYPE_LATEST)

        return [Route(method="GET", path="/metrics", answer=answer)]

    @hookimpl
    def observe_requests(self, service: ServiceView) -> Callable[[Finished], None]:
        return self.counts.add

    @hookimpl
    def lifespan(self, service: ServiceView) -> AbstractAsyncContextManager[None]:
        return self._counting(service)

    def registry(self) -> Any:
        """All metrics of this service, as prometheus_client collects them."""
        if self._registry is None:
            from prometheus_client import REGISTRY, CollectorRegistry

            from .families import App, Batches, Counted, Runner, Tallies
            from .machine import Cuda, Disk, Process

            assert self._service is not None
            assert self._minute is not None
            service, app_id = self._service, self._service.settings.app_id or f"local/{self._service.app.alias}"
            self._registry = CollectorRegistry()
            for collector in (
                REGISTRY, App(service, app_id, self._minute), Counted(self.counts, service.app.alias), Runner(service, self.counts, self._lag),
                Tallies(service.tallies), Batches(service.batches),
                Process(app_id), Disk(service.settings.data_dir), Cuda(app_id, self.counts),
            ):  # fmt: skip
                self._registry.register(Chained(collector))
        return self._registry

    def _lag(self) -> float:
        worst, self._worst_lag = self._worst_lag, 0.0
        return worst

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
            listener = prometheus_client.start_http_server(port, addr=host, registry=self.registry())
        except OSError as error:
            raise ConfigError(f"metrics_port {port}: {error.strerror}; choose a free one, for example metrics_port = 9091") from None
        log.info("metrics.listening", url=f"http://{host}:{port}/metrics")
        return listener

    async def _keep_time(self) -> None:
        """See how late the loop comes back, and keep what was counted a minute ago."""
        assert self._minute is not None
        while True:
            now = time.perf_counter()
            self._minute.look(now)
            await asyncio.sleep(LAG_SECONDS)
            self._worst_lag = max(self._worst_lag, time.perf_counter() - now - LAG_SECONDS)


class Chained:
    """A collector that has no names of its own to be compared: what an app adds to its registry comes later."""

    def __init__(self, other: Any) -> None:
        self.collect = other.collect
