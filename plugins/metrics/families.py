"""Families: the plain numbers as Prometheus names them, collected when somebody reads."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import utils
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from ...schemas.health import State
from ...schemas.service import ServiceView
from .counts import RUN_BUCKETS, Counts, Minute, Spread

STATES = {State.STARTING: "pending", State.READY: "running", State.UNHEALTHY: "running"}  # fal's words; else dead
Key = str | tuple[Any, ...]
in_go: Callable[[float], str] = utils.floatToGoString  # a bound as every Prometheus client writes it


def _labels(key: Key) -> list[str]:
    return [str(part) for part in (key if isinstance(key, tuple) else (key,))]


def gauge(name: str, help: str, labels: Sequence[str], values: Mapping[Any, float]) -> Any:
    family = GaugeMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        family.add_metric(_labels(key), value)
    return family


def counter(name: str, help: str, labels: Sequence[str], values: Mapping[Any, float]) -> Any:
    family = CounterMetricFamily(name, help, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(_labels(key), value)
    return family


def histogram(name: str, help: str, labels: Sequence[str], values: Mapping[Any, Spread]) -> Any:
    family = HistogramMetricFamily(name, help, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(_labels(key), value.buckets(in_go), value.total)
    return family


class App:
    """What fal's runner and platform show of an app. The platform's are gauges, and of the last minute."""

    def __init__(self, service: ServiceView, app_id: str, minute: Minute) -> None:
        self._service, self._id, self._minute = service, app_id, minute

    def collect(self) -> Iterator[Any]:
        service, id = self._service, self._id
        yield gauge("fal_app_info", "The app that this process serves.", ["version"], {str(getattr(service.instance, "version", "unknown")): 1})
        machine, now = str(getattr(service.instance, "machine_type", "")), STATES.get(service.health.state, "dead")
        states = {(id, state, machine): float(state == now) for state in ("pending", "running", "dead")}
        yield gauge("fal_app_runners", "Runners by state.", ["application", "state", "machine_type"], states)
        queued = service.tallies["queue"]()["waiting"] if "queue" in service.tallies else 0
        yield gauge("fal_app_queue_size", "Requests and jobs that wait for a place.", ["application"], {id: service.lanes["waiting"] + queued})
        yield gauge("fal_app_concurrent_requests", "Requests that run.", ["application"], {id: service.lanes["running"]})
        passed = self._minute.passed(time.perf_counter())
        done = {(id, *key): count for key, count in passed.completed.items()}
        yield gauge("fal_app_requests_completed", "Requests to endpoints that ended in the last minute.", ["application", "method", "status"], done)
        came = {(id, method): count for method, count in passed.received.items()}
        yield gauge("fal_app_requests_received", "Requests to endpoints that came in the last minute.", ["application", "method"], came)
        bounds = [in_go(bound) for bound in (*RUN_BUCKETS, math.inf)]
        below = {(id, bound): count for bound, count in zip(bounds, accumulate(passed.latency), strict=True)}
        yield gauge("fal_app_request_latency", "Requests of the last minute that took no longer than `le` seconds.", ["application", "le"], below)


class Counted:
    """`Counts`: names and labels of fal's runner first, then ours."""

    def __init__(self, counts: Counts, app: str) -> None:
        self._counts, self._app = counts, app

    def collect(self) -> Iterator[Any]:
        counts = self._counts
        by, seconds = ["method", "path", "status_code", "app_name"], {(*key[:3], self._app): value for key, value in list(counts.seconds.items())}
        yield counter("http_requests_total", "HTTP requests by outcome.", by, {key: sum(value.counts) for key, value in seconds.items()})
        yield histogram("http_request_duration_seconds", "From the head read to the last byte handed over.", by, seconds)
        yield histogram("runner_waited_seconds", "In the line before a place was free.", ["endpoint"], counts.waited)
        yield histogram("runner_ran_seconds", "In its place, from when it was free until the work was over.", ["endpoint"], counts.ran)
        yield histogram("runner_cancel_seconds", "From the wish to stop until the place was free.", ["reason", "layer"], counts.cancels)
        yield counter("runner_cancels_swallowed_total", "Cancels that the app's code caught and went on after.", [], {(): counts.swallowed})
        yield counter("runner_response_bytes_total", "Bytes of answers.", ["endpoint"], counts.sent)
        yield counter("runner_items_total", "Events of streams, and messages to the clients of sockets.", ["endpoint"], counts.items)
        yield counter("runner_sockets_ended_total", "Sockets by why they ended.", ["endpoint", "why"], counts.sockets)
        yield histogram("runner_cuda_peak_bytes", "CUDA memory of torch at most while a request ran.", ["endpoint"], counts.peaks)


class Runner:
    """How the service is at this moment."""

    def __init__(self, service: ServiceView, counts: Counts, lag: Callable[[], float]) -> None:
        self._service, self._counts, self._lag = service, counts, lag

    def collect(self) -> Iterator[Any]:
        service, lanes, here = self._service, self._service.lanes, [*self._service.running_now]
        methods = Counter(request.method for request in here if request.scope.get("type") == "http" and request.begin is None)
        app = service.app.alias
        progress = {(method, app): count for method, count in methods.items()}
        yield gauge("http_requests_in_progress", "HTTP requests that are not answered yet.", ["method", "app_name"], progress)
        yield gauge("runner_ready", "1 while probes are told to send requests.", [], {(): float(service.health.state is State.READY)})
        states = {str(state): float(service.health.state is state) for state in State if state is not State.BUSY}
        yield gauge("runner_health", "1 for the state that the runner is in.", ["state"], states)
        for what, help in (
            ("places", "Requests that may run at once."),
            ("running", "Places that are taken."),
            ("waiting", "Requests in the line."),
            ("ghosts", "Places held by work that outlived its cancel."),
        ):
            yield gauge(f"runner_lane_{what}", help, [], {(): lanes[what]})
        sockets = sum(request.scope.get("type") == "websocket" for request in here)
        streams = sum(request.streams for request in here)
        yield gauge("runner_streams_open", "Streams that go on: of events, and sockets.", ["kind"], {"events": streams, "socket": sockets})
        yield gauge("runner_loop_lag_seconds", "How late the event loop came back, at worst since the last reading.", [], {(): self._lag()})
        yield counter("runner_plugin_failures", "What plugins raised while requests ran.", ["plugin"], service.failures.counts)
        if service.depot is not None:
            ways = {**service.depot.traffic.bytes, "served": self._counts.served}
            help = "Bytes of files: fetched for inputs, made as outputs, uploaded by callers, served to them."
            yield counter("runner_file_bytes_total", help, ["way"], ways)


class Tallies:
    """What plugins count: `waiting` of the tally `queue` is `runner_queue_waiting`, and `…_total` is a counter."""

    def __init__(self, tallies: Mapping[str, Callable[[], Mapping[str, float]]]) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Any]:
        for name, tally in list(self._tallies.items()):
            for what, value in tally().items():
                family = counter if what.endswith("_total") else gauge
                yield family(f"runner_{name}_{what}", f"{what} of the {name}, as its plugin counts.", [], {(): value})


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
            buckets = [(str(float(most)), sum(times for size, times in known if size <= most)) for most in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
            buckets.append(("+Inf", sum(times for _, times in known)))
            family.add_metric([endpoint], buckets, sum(size * times for size, times in known))
        yield family
