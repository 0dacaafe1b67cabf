"""What an operator's Prometheus reads (contract 11.2; check 70), and that what the docs ask of it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import promql_parser as promql
import pytest
import yaml
from metered import Samples, Worked, of, worked
from runner.plugins.metrics.counts import Counts, Minute
from runner.plugins.metrics.machine import Cuda
from runner.schemas.events import Finished
from serving import HOUSE

import runner

DOCS = HOUSE / "docs"


@pytest.fixture(scope="module")
def metered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worked]:
    with worked(tmp_path_factory.mktemp("metered")) as done:
        yield done


def test_requests_are_counted_by_endpoint_and_outcome(metered: Worked) -> None:
    found = metered.after

    assert of(found, "http_requests_total", method="POST", path="/", status_code="200", app_name="metered") == 5
    assert of(found, "http_request_duration_seconds_count", path="/", status_code="200") == 5
    assert of(found, "http_requests_total", path="/bug", status_code="500") == 1
    assert of(found, "http_requests_total", path="other", status_code="404") == 1
    assert of(found, "runner_response_bytes_total", endpoint="/") == 5 * len('"served"')


def test_waiting_and_running_are_histograms_by_endpoint(metered: Worked) -> None:
    found = metered.after

    assert of(found, "runner_waited_seconds_count", endpoint="/") == of(found, "runner_ran_seconds_count", endpoint="/") == 5
    assert of(found, "runner_waited_seconds_bucket", endpoint="/until", le="+Inf") == 2
    assert of(found, "runner_ran_seconds_sum", endpoint="/spin") >= 0.1
    assert of(found, "runner_cancel_seconds_count", reason="request_timeout") == 1


def test_streams_and_sockets_are_shown_while_open_and_counted_when_they_end(metered: Worked) -> None:
    during, after = metered.during, metered.after

    assert of(during, "runner_streams_open", kind="events") == 2
    assert of(during, "runner_streams_open", kind="socket") == 1
    assert [of(after, "runner_streams_open", kind=kind) for kind in ("events", "socket")] == [0, 0]
    assert of(after, "runner_items_total", endpoint="/count") == 5
    assert of(after, "runner_items_total", endpoint="/until") == 4
    assert of(after, "runner_items_total", endpoint="/echo") == 1
    assert of(after, "runner_sockets_ended_total", endpoint="/echo", why="client") == 1


def test_the_lane_the_queue_and_the_health_are_shown_as_they_are(metered: Worked) -> None:
    during, after = metered.during, metered.after

    assert [of(during, f"runner_lane_{what}") for what in ("places", "running", "waiting", "ghosts")] == [2, 2, 1, 0]
    assert [of(after, f"runner_lane_{what}") for what in ("places", "running", "waiting", "ghosts")] == [2, 0, 0, 0]
    assert [of(found, "runner_queue_waiting") for found in (during, after)] == [1, 0]
    assert of(after, "runner_queue_done_total") == 1
    assert of(during, "http_requests_in_progress", method="POST") == 3
    assert [of(after, "runner_health", state=state) for state in ("ready", "starting", "draining")] == [1, 0, 0]
    assert of(after, "runner_ready") == 1
    assert of(after, "runner_loop_lag_seconds") >= 0
    assert of(after, "runner_data_free_bytes") > 0


def test_bytes_of_files_are_counted_by_the_way_they_went(metered: Worked) -> None:
    ways = {way: of(metered.after, "runner_file_bytes_total", way=way) for way in ("uploaded", "fetched", "made", "served")}

    assert ways == {"uploaded": 100, "fetched": 100, "made": 200, "served": 200}


def test_what_fals_platform_shows_is_there_under_its_names(metered: Worked) -> None:
    """Contract 11.2: all gauges, some of the last minute, all with the application."""
    during, after, mine = metered.during, metered.after, {"application": "local/metered"}

    assert of(after, "fal_app_runners", state="running", machine_type="GPU-H100", **mine) == 1
    assert of(after, "fal_app_runners", state="dead", **mine) == 0
    assert of(during, "fal_app_queue_size", **mine) == 2
    assert of(during, "fal_app_concurrent_requests", **mine) == 2
    assert of(after, "fal_app_requests_completed", method="POST", status="500", **mine) == 1
    assert of(during, "fal_app_requests_received", method="POST", **mine) == 4
    assert of(after, "fal_app_requests_received", method="POST", **mine) == 11  # the job among them
    assert of(after, "fal_app_request_latency", le="+Inf", **mine) == 12  # the socket too
    assert 0 <= of(after, "fal_app_request_latency", le="0.1", **mine) <= 11
    assert of(after, "fal_app_runner_memory_usage_bytes", **mine) > 20e6
    assert of(after, "fal_app_runner_cpu_usage_percent", **mine) >= 0
    assert of(after, "fal_app_runner_gpu_count", **mine) == 0


def test_check_70_the_metrics_port_has_the_apps_own_metrics_and_answers_while_the_loop_does_not(metered: Worked) -> None:
    assert of(metered.frozen, "fal_app_info", version="7") == 1
    assert of(metered.frozen, "my_pictures_painted_total") == 5
    assert of(metered.frozen, "http_requests_in_progress", method="POST") == 1


class Plain(runner.App):
    @runner.endpoint("/")
    def run(self) -> str:
        return "served"


def test_metrics_can_be_left_out() -> None:
    plain = runner.asgi(Plain, runner.Settings(no_plugin=["metrics"]))

    assert "GET" not in plain.routes.known("/metrics")


def test_the_last_minute_forgets_what_came_before() -> None:
    counts = Counts()
    minute = Minute(counts, SimpleNamespace(running_now=[]))  # type: ignore[arg-type]

    for second in range(0, 200, 2):
        minute.look(float(second))
        counts.add(Finished(request_id="r", method="POST", path="/", endpoint="/", status=200, seconds=0.3))
    passed = minute.passed(200.0)

    assert 30 <= passed.completed["POST", 200] <= 33
    assert passed.received["POST"] == sum(passed.latency) == passed.completed["POST", 200]


GIB = 2**30


class Cuda2:
    """Two devices as `torch.cuda` shows them; the names and the sums are ours, the numbers made up."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    memory_allocated = staticmethod(lambda n: (n + 1) * GIB)
    memory_reserved = staticmethod(lambda n: (n + 2) * GIB)
    max_memory_allocated = staticmethod(lambda n: (n + 3) * GIB)
    mem_get_info = staticmethod(lambda n: (60 * GIB, 80 * GIB))
    utilization = staticmethod(lambda n: 50 * n)


def families(monkeypatch: pytest.MonkeyPatch, cuda: Any, counts: Counts) -> Samples:
    monkeypatch.setitem(__import__("sys").modules, "torch", SimpleNamespace(cuda=cuda))
    return {(s.name, frozenset(s.labels.items())): s.value for family in Cuda("local/x", counts).collect() for s in family.samples}


def test_where_there_is_cuda_its_memory_and_use_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = families(monkeypatch, Cuda2, Counts())

    assert of(found, "runner_cuda_memory_allocated_bytes", device="1") == 2 * GIB
    assert of(found, "runner_cuda_memory_reserved_bytes", device="0") == 2 * GIB
    assert of(found, "runner_cuda_memory_peak_bytes") == 4 * GIB
    assert of(found, "runner_cuda_memory_used_bytes", device="0") == 20 * GIB
    assert of(found, "runner_cuda_utilization_percent", device="1") == 50
    assert of(found, "fal_app_runner_gpu_utilization_percent", application="local/x") == 25
    assert of(found, "fal_app_runner_vram_usage_percent", application="local/x") == 25
    assert of(found, "fal_app_runner_gpu_count", application="local/x") == 2


def test_a_gpu_is_left_alone_until_the_app_uses_it_and_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = type("Idle", (Cuda2,), {"is_initialized": staticmethod(lambda: False)})
    mute = type("Mute", (Cuda2,), {"utilization": staticmethod(lambda n: 1 // 0)})

    assert {name for name, _ in families(monkeypatch, idle, Counts())} == {"fal_app_runner_gpu_count"}
    names = {name for name, _ in families(monkeypatch, mute, Counts())}
    assert "runner_cuda_memory_used_bytes" in names
    assert "runner_cuda_utilization_percent" not in names


# --- what the docs say, against what is there


def shown(metered: Worked, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Every sample's name with the labels it has been seen with: of a CPU runner, and of two GPUs."""
    counts = Counts()
    counts.add(Finished(request_id="r", method="POST", path="/", endpoint="/", status=200, seconds=1.0, peak_bytes=GIB))
    from runner.plugins.metrics.families import Counted

    peaks = {(s.name, frozenset(s.labels.items())): s.value for f in Counted(counts, "x").collect() for s in f.samples if "cuda" in s.name}
    found: dict[str, set[str]] = {}
    for scrape in (metered.during, metered.after, families(monkeypatch, Cuda2, counts), peaks):
        for name, labels in scrape:
            found.setdefault(name, set()).update(label for label, _ in labels)
    return found


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that a PromQL query reads, with the labels it asks of it: in braces, and in `by` around it."""

    def walk(node: Any, by: set[str]) -> Iterator[tuple[str, set[str]]]:
        match node:
            case promql.VectorSelector():
                yield node.name, by | {matcher.name for matcher in node.matchers.matchers}
            case promql.MatrixSelector():
                yield from walk(node.vector_selector, by)
            case promql.AggregateExpr():
                named = set(node.modifier.labels) if node.modifier is not None else set()
                assert node.modifier is None or node.modifier.type == promql.AggModifierType.By, "write `by`, so that it can be checked"
                yield from walk(node.expr, named)
            case promql.BinaryExpr():
                yield from walk(node.lhs, by)
                yield from walk(node.rhs, by)
            case promql.Call():
                for argument in node.args:
                    yield from walk(argument, by)
            case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
                yield from walk(node.expr, by)
            case promql.NumberLiteral() | promql.StringLiteral():
                pass
            case _:
                raise AssertionError(f"{type(node)} is not read here")

    yield from walk(promql.parse(query), set())


ADDED = {"job", "instance"}  # by Prometheus, to every series


def check(query: str, there: dict[str, set[str]]) -> None:
    read = list(selectors(query))
    assert read, query
    for name, labels in read:
        assert name in there or name == "up", f"{name} is in no scrape: {query}"
        assert labels <= there.get(name, set()) | ADDED, f"{name} has no {labels - there.get(name, set()) - ADDED}: {query}"


def test_every_query_of_the_dashboard_reads_what_is_there(metered: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    there, board = shown(metered, monkeypatch), json.loads((DOCS / "grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]

    for query in queries:
        check(query.replace("$__rate_interval", "5m"), there)
    for variable in board["templating"]["list"]:
        for name, label in re.findall(r"label_values\((\w+)(?:\{[^}]*\})?, (\w+)\)", str(variable.get("query", ""))):
            assert label in there[name] | ADDED
    assert len(queries) > 20
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["description"] for panel in panels)
    spots = [panel["gridPos"] for panel in board["panels"]]
    assert all(spot["x"] + spot["w"] <= 24 for spot in spots)
    cells = [(x, y) for spot in spots for x in range(spot["x"], spot["x"] + spot["w"]) for y in range(spot["y"], spot["y"] + spot["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"


def test_every_alert_reads_what_is_there_and_says_what_to_do(metered: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    there, rules = shown(metered, monkeypatch), yaml.safe_load((DOCS / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]

    for alert in alerts:
        check(alert["expr"], there)
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"]
        assert len(alert["annotations"]["description"]) > 40
        assert promql.parse_duration(alert["for"])
    assert len({alert["alert"] for alert in alerts}) == len(alerts) > 6
    page = (DOCS / "operate.md").read_text()
    assert all(alert["alert"] in page for alert in alerts)


def test_every_metric_is_in_the_page_for_operators_with_its_labels(metered: Worked, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "operate.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    listed: dict[str, set[str]] = {}
    for names, labels in re.findall(r"^\| (`[^|]+) \|([^|]*)\|", page, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            listed[name] = set(re.findall(r"\w+", labels))
    there: dict[str, set[str]] = {}
    for name, labels in shown(metered, monkeypatch).items():
        family = re.sub(r"_(bucket|count|sum)$", "", name) if name.rpartition("_")[0] + "_bucket" in shown(metered, monkeypatch) else name
        if family.startswith(("runner_", "fal_", "http_")):
            there.setdefault(family, set()).update(labels - {"le"} if family != "fal_app_request_latency" else labels)

    assert listed == there


def test_a_query_that_reads_what_is_not_there_is_found() -> None:
    there = {"runner_ready": set[str](), "http_requests_total": {"path"}}
    for wrong in ("runner_reday", "sum by (path) (runner_ready)", 'http_requests_total{code="500"}', "rate(http_request_total[5m])"):
        with pytest.raises(AssertionError):
            check(wrong, there)
    check('sum by (path, job) (rate(http_requests_total{instance=~"$instance"}[5m])) / ignoring (x) runner_ready', there)
