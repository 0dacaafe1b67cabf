"""The queue over HTTP, by a real runner (contract 7.3 to 7.9 and 8; checks 46 to 62; behaviours 43 to 48)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Runner, serving, written

APP = """
import asyncio, os, time
from collections.abc import Iterator
import runner

class Jobs(runner.App, name="jobs"):
    request_timeout = 20

    def setup(self):
        self.tries = {}

    @runner.endpoint("/")
    def run(self, prompt: str) -> dict:
        print("prompt is", prompt)
        request = runner.current_request()
        return {"prompt": prompt, "id": request.id, "mine": request.headers.get("x-mine"), "key": request.headers.get("authorization")}

    @runner.endpoint("/gate")
    def gate(self, path: str, word: str = "") -> str:
        print("begun", word)
        while not os.path.exists(path):
            time.sleep(0.002)
        return word

    @runner.endpoint("/steps")
    def steps(self, path: str) -> str:
        print("begun")
        runner.progress(3, 4)
        while not os.path.exists(path):
            time.sleep(0.002)
        return "done"

    @runner.endpoint("/own")
    def own(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        raise runner.HTTPError(499, "the author stopped it")

    @runner.endpoint("/own/cancel")
    def stop(self, path: str = runner.Header(alias="x-path"), x_fal_request_id: str = runner.Header()) -> str:
        print("cancel of", x_fal_request_id)
        open(path, "w").close()
        return "ok"

    @runner.endpoint("/items")
    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    @runner.endpoint("/slow-items")
    def slow_items(self, path: str) -> Iterator[int]:
        yield 1
        while not os.path.exists(path):
            time.sleep(0.002)
        yield 2

    @runner.endpoint("/status")
    def status(self, status: int, word: str, times: int = 100, needs: str = "") -> runner.Response:
        self.tries[word] = self.tries.get(word, 0) + 1
        print("try", word)
        if self.tries[word] > times:
            return runner.Response(b'"at last"', 200, {}, "application/json")
        headers = {"x-fal-needs-retry": needs} if needs else {}
        return runner.Response(b'{"detail": "not now"}', status, headers, "application/json")

    @runner.endpoint("/bug")
    def bug(self) -> str:
        raise ValueError("a bug")

    @runner.endpoint("/short", timeout=0.2)
    def short(self) -> str:
        while True:
            time.sleep(0.002)

    @runner.endpoint("/large")
    def large(self, size: int, text: str = "") -> str:
        return "x" * size + str(len(text))
"""
BASE = "/queue/local/jobs"


class Queue:
    """The queue of a runner, as a caller who knows no SDK uses it."""

    def __init__(self, runner: Runner, client: httpx.Client) -> None:
        self.runner, self.client = runner, client

    def submit(self, path: str = "/", body: Any = None, **options: Any) -> dict[str, Any]:
        response = self.client.post(BASE + path.rstrip("/"), json=body if body is not None else {"prompt": "x"}, **options)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def ended(self, id: str, **options: Any) -> httpx.Response:
        """The result, once the status stream has ended."""
        self.follow(id)
        return self.client.get(f"{BASE}/requests/{id}", **options)

    def follow(self, id: str, logs: str = "0") -> list[dict[str, Any]]:
        response = self.client.get(f"{BASE}/requests/{id}/status/stream", params={"logs": logs})
        assert response.status_code == 200
        return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]

    def status(self, id: str, **query: str) -> httpx.Response:
        return self.client.get(f"{BASE}/requests/{id}/status", params=query)

    def cancel(self, id: str) -> httpx.Response:
        return self.client.put(f"{BASE}/requests/{id}/cancel")

    def begun(self, id: str, **fields: Any) -> None:
        """Wait until the app has printed for this job."""
        self.runner.wait_for("app.output", request_id=id, **fields)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("app"), APP)


@pytest.fixture(scope="module")
def served(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with serving(app, "--data-dir", str(tmp_path_factory.mktemp("data"))) as runner:
        yield runner


@pytest.fixture
def queue(served: Runner) -> Iterator[Queue]:
    with served.client() as client:
        yield Queue(served, client)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What `/gate` waits for; opened at the end, should the test have forgotten it."""
    return tmp_path / "gate"


@pytest.fixture(autouse=True)
def nothing_left_behind(gate: Path) -> Iterator[None]:
    yield
    gate.touch()


# --- submit


def test_check_46_submit_gives_absolute_urls_under_the_callers_origin_and_prefix(queue: Queue) -> None:
    told = queue.submit()
    id = told["request_id"]

    assert told["status"] == "IN_QUEUE"
    assert told["queue_position"] == 0
    assert told["gateway_request_id"] == id
    base = f"{queue.runner.url}{BASE}/requests/{id}"
    assert (told["response_url"], told["status_url"], told["cancel_url"]) == (base, f"{base}/status", f"{base}/cancel")
    assert queue.ended(id).json()["prompt"] == "x"


def test_at_a_host_that_begins_with_queue_the_queue_is_at_the_root(queue: Queue) -> None:
    host = {"host": "queue.example.com:8443"}
    told = queue.client.post("/local/jobs/items?n=2", headers=host).json()

    assert told["status_url"] == f"http://queue.example.com:8443/local/jobs/requests/{told['request_id']}/status"
    queue.follow(told["request_id"])
    found = queue.client.get(f"/local/jobs/requests/{told['request_id']}", headers=host)
    assert found.text == "data: 0\n\ndata: 1\n\n"


def test_forwarded_headers_count_from_a_trusted_proxy_only(app: Path, queue: Queue, tmp_path: Path) -> None:
    forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "models.example", "x-forwarded-prefix": "/gpu/"}
    assert queue.submit(headers=forwarded)["status_url"].startswith(queue.runner.url)

    with serving(app, "--trusted-proxy", "127.0.0.0/8", "--data-dir", str(tmp_path)) as runner, runner.client() as client:
        told = Queue(runner, client).submit(headers=forwarded)
    assert told["cancel_url"].startswith(f"https://models.example/gpu{BASE}/requests/")


def test_the_input_is_not_looked_at_before_its_turn(queue: Queue) -> None:
    id = queue.submit("/", {"promt": "x"})["request_id"]
    result = queue.ended(id)

    assert result.status_code == 422
    assert result.json()["detail"][0]["loc"] == ["body", "prompt"]
    status = queue.status(id).json()
    assert (status["status"], status["error_type"]) == ("COMPLETED", "bad_request")
    assert "Field required" in status["error"]


def test_an_unknown_path_is_accepted_and_ends_as_404(queue: Queue) -> None:
    assert queue.ended(queue.submit("/nowhere")["request_id"]).json() == {"detail": "Path /nowhere not found"}
    assert queue.ended(queue.submit(BASE)["request_id"]).json() == {"detail": f"Path {BASE} not found"}
    assert queue.client.post("/queue/local/another").status_code == 404


def test_the_endpoint_gets_the_callers_headers_but_not_the_key(queue: Queue) -> None:
    id = queue.submit(headers={"x-mine": "yes", "authorization": "Key secret"})["request_id"]

    assert queue.ended(id).json() == {"prompt": "x", "id": id, "mine": "yes", "key": None}


def test_a_callers_own_request_id_is_the_jobs_the_first_time(queue: Queue) -> None:
    mine = {"x-fal-request-id": "my-own.id"}
    first, second = queue.submit(headers=mine)["request_id"], queue.submit(headers=mine)["request_id"]

    assert first == "my-own.id"
    assert second != first
    assert queue.ended(second).json()["id"] == second


def test_behaviour_46_one_key_and_body_is_one_job_and_another_body_is_refused(queue: Queue) -> None:
    key = {"idempotency-key": "k-1"}
    first, again = queue.submit("/", {"prompt": "a"}, headers=key), queue.submit("/", {"prompt": "a"}, headers=key)
    other = queue.client.post(BASE, json={"prompt": "b"}, headers=key)
    somebody_else = queue.submit("/", {"prompt": "b"}, headers={**key, "authorization": "Key other"})

    assert first["request_id"] == again["request_id"]
    assert other.status_code == 422
    assert first["request_id"] in other.json()["detail"]
    assert somebody_else["request_id"] != first["request_id"]


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"x-fal-request-timeout": "soon"}, ""),
        ({"x-fal-request-timeout": "0.1"}, ""),
        ({"x-fal-request-start-timeout": "nan"}, ""),
        ({"x-fal-queue-priority": "highest"}, ""),
        ({"x-fal-retry-config": "{"}, ""),
        ({"x-fal-retry-config": '{"weather": {"retries": 1}}'}, ""),
        ({}, "fal_max_queue_length=few"),
        ({}, "fal_webhook=ftp://example.com"),
        ({}, "fal_webhook=https://"),
    ],
)
def test_check_62_a_malformed_wish_is_400_with_detail_and_error_type(queue: Queue, headers: Mapping[str, str], query: str) -> None:
    response = queue.client.post(f"{BASE}?{query}", json={"prompt": "x"}, headers=dict(headers))

    assert response.status_code == 400
    assert response.json()["error_type"] == response.headers["x-fal-error-type"] == "bad_request"
    assert response.json()["detail"]


# --- status and result


def test_check_47_status_is_202_until_it_is_completed(queue: Queue, gate: Path) -> None:
    running = queue.submit("/gate", {"path": str(gate)})["request_id"]
    queue.begun(running)
    waiting = [queue.submit("/gate", {"path": str(gate)})["request_id"] for _ in range(2)]

    in_queue, in_progress = queue.status(waiting[1]), queue.status(running)
    gate.touch()
    queue.follow(waiting[1])
    completed = queue.status(waiting[1])

    assert (in_queue.status_code, in_queue.json()["status"], in_queue.json()["queue_position"]) == (202, "IN_QUEUE", 1)
    assert (in_progress.status_code, in_progress.json()["status"], in_progress.json()["logs"]) == (202, "IN_PROGRESS", [])
    assert (completed.status_code, completed.json()["status"], completed.json()["logs"]) == (200, "COMPLETED", [])
    assert completed.json()["metrics"]["inference_time"] > 0
    for response in (in_queue, in_progress, completed):
        assert {"request_id", "response_url", "status_url", "cancel_url"} <= set(response.json())


def test_a_status_guesses_the_wait_once_a_run_was_measured(queue: Queue, gate: Path) -> None:
    gate.touch()
    queue.follow(queue.submit("/gate", {"path": str(gate)})["request_id"])
    gate.unlink()
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])

    assert queue.submit("/gate", {"path": str(gate)})["estimated_wait_seconds"] >= 0


@pytest.mark.parametrize("asked", ["1", "true"])
def test_check_48_logs_come_when_asked(queue: Queue, asked: str) -> None:
    id = queue.submit()["request_id"]
    queue.follow(id)

    (line,) = queue.status(id, logs=asked).json()["logs"]
    assert (line["message"], line["level"], line["source"]) == ("prompt is x", "STDOUT", "USER")
    assert line["labels"]["fal_request_id"] == id
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00", line["timestamp"])
    assert queue.status(id, logs="0").json()["logs"] == queue.status(id, logs="false").json()["logs"] == []


def test_check_49_trailing_slashes_are_served_without_redirect(queue: Queue) -> None:
    submitted = queue.client.post(f"{BASE}/", json={"prompt": "x"})
    id = submitted.json()["request_id"]
    queue.follow(id)

    assert submitted.status_code == 200
    for path in ("/status/", "/", "", "/response", "/response/"):
        assert queue.client.get(f"{BASE}/requests/{id}{path}").status_code == 200
    assert queue.client.get(f"{BASE}/some/sub/path/requests/{id}/status").status_code == 200
    assert queue.client.put(f"{BASE}/requests/{id}/cancel/").status_code == 400


def test_check_50_the_status_stream_tells_each_change_and_each_line_once_and_ends(queue: Queue, gate: Path) -> None:
    first = queue.submit("/gate", {"path": str(gate)})["request_id"]
    queue.begun(first)
    second = queue.submit("/gate", {"path": str(gate), "word": "second"})["request_id"]

    with queue.client.stream("GET", f"{BASE}/requests/{second}/status/stream?logs=1") as response:
        lines = response.iter_lines()
        events = [json.loads(next(lines).removeprefix("data: "))]
        gate.touch()
        events += [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]

    assert response.headers["content-type"] == "text/event-stream"
    assert (events[0]["status"], events[-1]["status"]) == ("IN_QUEUE", "COMPLETED")
    assert [line["message"] for event in events for line in event.get("logs", [])] == ["begun second"]


def test_check_51_the_result_is_the_runners_answer_and_400_before_it(queue: Queue, gate: Path) -> None:
    id = queue.submit("/gate", {"path": str(gate), "word": "done"})["request_id"]
    queue.begun(id)
    early = queue.client.get(f"{BASE}/requests/{id}")
    gate.touch()
    results = [queue.ended(id) for _ in range(2)]

    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
    assert [(r.status_code, r.content, r.headers["content-type"]) for r in results] == [(200, b'"done"', "application/json")] * 2
    assert results[0].headers["x-fal-request-id"] == id


def test_check_52_a_failed_job_is_completed_with_error_and_error_type(queue: Queue) -> None:
    id = queue.submit("/bug")["request_id"]
    result = queue.ended(id)

    assert (result.status_code, result.json()) == (500, {"detail": "Internal Server Error"})
    assert result.headers["x-fal-error-type"] == "runner_server_error"
    status = queue.status(id)
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    assert (status.json()["error"], status.json()["error_type"]) == ("Internal Server Error", "runner_server_error")


def test_large_inputs_and_outputs_are_kept_whole(queue: Queue) -> None:
    result = queue.ended(queue.submit("/large", {"size": 3_000_000, "text": "y" * 2_000_000})["request_id"])

    assert result.json() == "x" * 3_000_000 + "2000000"


@pytest.mark.parametrize("path", ["/requests/{}", "/requests/{}/status", "/requests/{}/status/stream"])
def test_an_unknown_id_is_404_and_says_so(queue: Queue, path: str) -> None:
    response = queue.client.get(BASE + path.format("nobody"))

    assert (response.status_code, response.json()["status"]) == (404, "NOT_FOUND")
    assert "x-fal-request-id" in response.headers


def test_other_methods_are_405_and_say_which_are_allowed(queue: Queue) -> None:
    answers = [queue.client.get(f"{BASE}/items"), queue.client.put(f"{BASE}/requests/x/status"), queue.client.get(f"{BASE}/requests/x/cancel")]

    assert [(a.status_code, a.headers["allow"]) for a in answers] == [(405, "POST"), (405, "GET"), (405, "PUT")]


def test_behaviour_43_a_running_job_shows_its_progress(queue: Queue, gate: Path) -> None:
    id = queue.submit("/steps", {"path": str(gate)})["request_id"]
    queue.begun(id)
    while "progress" not in (status := queue.status(id).json()):
        assert status["status"] == "IN_PROGRESS"
    gate.touch()

    assert status["progress"] == {"done": 3.0, "total": 4.0}
    assert "progress" not in queue.ended(id).json()


def test_behaviour_32_a_job_has_an_event_log_that_can_be_resumed(queue: Queue, gate: Path) -> None:
    id = queue.submit("/steps", {"path": str(gate)})["request_id"]
    queue.begun(id)
    gate.touch()
    queue.ended(id)
    whole = queue.client.get(f"/requests/{id}/events").text
    rest = queue.client.get(f"/requests/{id}/events", headers={"last-event-id": "2"}).text

    kinds = re.findall(r"^event: (\w+)$", whole, re.MULTILINE)
    assert kinds[:3] == ["queued", "started", "log"]
    assert kinds[-2:] == ["output", "completed"]
    assert whole.endswith(rest)
    assert re.findall(r"^id: (\d+)$", whole, re.MULTILINE) == [str(n + 1) for n in range(len(kinds))]


def test_a_job_that_is_tried_again_has_one_end_in_its_event_log(queue: Queue) -> None:
    id = queue.submit("/status", {"status": 503, "word": "one end", "times": 1})["request_id"]
    queue.ended(id)
    kinds = re.findall(r"^event: (\w+)$", queue.client.get(f"/requests/{id}/events").text, re.MULTILINE)

    assert kinds == ["queued", "started", "log", "started", "log", "output", "completed"]


def test_health_and_metrics_tell_of_the_queue(queue: Queue, gate: Path) -> None:
    before = queue.client.get("/health").json()["queue"]
    queue.ended(queue.submit("/bug")["request_id"])
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
    queue.submit()
    health, metrics = queue.client.get("/health").json()["queue"], queue.client.get("/metrics").text
    gate.touch()

    assert (health["waiting"], health["running"]) == (1, 1)
    assert health["failed_total"] == before["failed_total"] + 1
    assert "\nrunner_queue_waiting 1.0\n" in metrics
    assert f"\nrunner_queue_failed_total {health['failed_total']:.1f}\n" in metrics
    assert "/queue/local/jobs/{rest:path}" in metrics
    assert "/requests/" not in metrics.replace("/requests/{id}/events", "")


# --- timeouts and retries


def test_check_53_who_cannot_begin_in_time_ends_as_504_and_the_one_before_is_served(queue: Queue, gate: Path) -> None:
    first = queue.submit("/gate", {"path": str(gate), "word": "first"})["request_id"]
    queue.begun(first)
    second = queue.submit("/gate", {"path": str(gate)}, headers={"x-fal-request-timeout": "0.2"})["request_id"]
    late = queue.ended(second)
    gate.touch()

    assert (late.status_code, late.headers["x-fal-request-timeout-type"], late.json()["error_type"]) == (504, "user", "request_timeout")
    assert queue.status(second).json()["error_type"] == "request_timeout"
    assert queue.ended(first).json() == "first"


def test_the_newer_name_of_the_start_timeout_wins(queue: Queue, gate: Path) -> None:
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
    headers = {"x-fal-request-timeout": "500", "x-fal-request-start-timeout": "0.2"}

    assert queue.ended(queue.submit("/", headers=headers)["request_id"]).status_code == 504


def test_check_54_a_run_that_takes_too_long_is_504_and_the_app_goes_on(queue: Queue) -> None:
    id = queue.submit("/short", headers={"x-fal-no-retry": "1"})["request_id"]

    assert (queue.ended(id).status_code, queue.ended(id).json()["error_type"]) == (504, "request_timeout")
    assert queue.ended(queue.submit()["request_id"]).status_code == 200


@pytest.mark.parametrize(
    ("case", "body", "headers", "tries", "status"),
    [
        ("503 is tried again", {"status": 503, "times": 2}, {}, 3, 200),
        ("504 is tried again", {"status": 504, "times": 1}, {}, 2, 200),
        ("500 is not", {"status": 500}, {}, 1, 500),
        ("nor is 404", {"status": 404}, {}, 1, 404),
        ("the caller wants none", {"status": 503}, {"x-fal-no-retry": "yes"}, 1, 503),
        ("the caller wants one", {"status": 503}, {"x-fal-retry-config": '{"server_error": {"retries": 1}}'}, 2, 503),
        ("of another kind", {"status": 503, "times": 1}, {"x-fal-retry-config": '{"timeout": {"retries": 0}}'}, 2, 200),
        ("the answer wants it", {"status": 500, "times": 1, "needs": "1"}, {"x-fal-no-retry": "1"}, 2, 200),
        ("the answer does not", {"status": 503, "needs": "0"}, {}, 1, 503),
    ],
)
def test_check_58_what_is_tried_again(
    queue: Queue, case: str, body: dict[str, Any], headers: dict[str, str], tries: int, status: int
) -> None:
    id = queue.submit("/status", {**body, "word": case}, headers=headers)["request_id"]
    result = queue.ended(id)

    assert result.status_code == status
    queue.runner.wait_for("app.output", text=f"try {case}", times=tries)
    assert len(queue.runner.events("app.output", text=f"try {case}")) == tries
    assert {line["request_id"] for line in queue.runner.events("app.output", text=f"try {case}")} == {id}


def test_check_58_an_app_says_what_is_tried_again(tmp_path: Path) -> None:
    options = "request_timeout = 20\n    skip_retry_conditions = ['timeout']\n    retry_config = {'server_error': {'retries': 1}}"
    app = written(tmp_path, APP.replace("request_timeout = 20", options))
    with serving(app, "--data-dir", str(tmp_path)) as runner, runner.client() as client:
        queue = Queue(runner, client)
        for word, status, tries in (("a", 504, 1), ("b", 503, 2)):
            assert queue.ended(queue.submit("/status", {"status": status, "word": word})["request_id"]).status_code == status
            assert len(runner.events("app.output", text=f"try {word}")) == tries


# --- cancel


def test_check_55_a_job_that_is_cancelled_in_the_line_never_begins(queue: Queue, gate: Path) -> None:
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
    id = queue.submit("/gate", {"path": str(gate), "word": "never"})["request_id"]
    answer = queue.cancel(id)
    again = queue.cancel(id)
    gate.touch()
    queue.ended(queue.submit()["request_id"])

    assert (answer.status_code, answer.json()) == (200, {"status": "OK"})
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert not queue.runner.events("app.output", request_id=id)
    result = queue.ended(id)
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
    assert queue.status(id).json()["error_type"] == "client_cancelled"


def test_check_55_a_running_job_without_an_own_cancel_endpoint_is_stopped(queue: Queue, gate: Path) -> None:
    id = queue.submit("/gate", {"path": str(gate)})["request_id"]
    queue.begun(id)
    answer = queue.cancel(id)

    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert queue.ended(id).status_code == 499
    assert queue.cancel(id).status_code == 400


def test_check_55_an_own_cancel_endpoint_is_called_with_the_jobs_id(queue: Queue, gate: Path) -> None:
    id = queue.submit("/own", {"path": str(gate)}, headers={"x-path": str(gate)})["request_id"]
    queue.begun(id)
    assert queue.cancel(id).status_code == 202

    result = queue.ended(id)
    assert (result.status_code, result.json()) == (499, {"detail": "the author stopped it"})
    queue.begun(id, text=f"cancel of {id}")


def test_check_56_an_unknown_id_cannot_be_cancelled(queue: Queue) -> None:
    answer = queue.cancel("nobody")

    assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})


def test_check_57_a_caller_who_leaves_after_submit_changes_nothing(queue: Queue, gate: Path) -> None:
    with queue.runner.client() as caller:
        id = Queue(queue.runner, caller).submit("/gate", {"path": str(gate), "word": "on its own"})["request_id"]
        queue.begun(id)
    gate.touch()

    assert queue.ended(id).json() == "on its own"


def test_behaviour_28_a_reader_who_leaves_the_status_stream_changes_nothing(queue: Queue, gate: Path) -> None:
    id = queue.submit("/gate", {"path": str(gate), "word": "on its own"})["request_id"]
    with queue.runner.client() as reader, reader.stream("GET", f"{BASE}/requests/{id}/status/stream") as stream:
        next(stream.iter_lines())
    queue.runner.wait_for("request.finished", path=f"{BASE}/requests/{id}/status/stream", error_type="client_disconnected")
    gate.touch()

    assert queue.ended(id).json() == "on its own"


# --- the line


def test_check_59_low_priority_runs_after_normal(queue: Queue, gate: Path) -> None:
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
    low = {"x-fal-queue-priority": "low"}
    wanted = [("low 1", low), ("normal 1", {}), ("low 2", low), ("normal 2", {})]
    ids = [queue.submit("/gate", {"path": str(gate), "word": word}, headers=headers)["request_id"] for word, headers in wanted]
    positions = [queue.status(id).json()["queue_position"] for id in ids]
    gate.touch()
    for id in ids:
        queue.follow(id)

    assert positions == [2, 0, 3, 1]
    begun = [line["text"] for line in queue.runner.events("app.output") if line.get("request_id") in ids]
    assert begun == ["begun normal 1", "begun normal 2", "begun low 1", "begun low 2"]


def test_check_59_a_caller_may_refuse_to_wait_behind_too_many(queue: Queue, gate: Path) -> None:
    queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
    for _ in range(2):
        queue.submit("/gate", {"path": str(gate)})
    within = queue.client.post(f"{BASE}?fal_max_queue_length=2", json={"prompt": "x"})
    beyond = queue.client.post(f"{BASE}?fal_max_queue_length=2", json={"prompt": "x"})

    assert within.status_code == 200
    assert (beyond.status_code, beyond.headers["retry-after"]) == (429, "1")
    assert beyond.json()["error_type"] == "concurrent_requests_limit"


def test_a_line_that_is_full_refuses_with_429(app: Path, tmp_path: Path, gate: Path) -> None:
    with serving(app, "--data-dir", str(tmp_path), "--max-queued-jobs", "1") as runner, runner.client() as client:
        queue = Queue(runner, client)
        queue.begun(queue.submit("/gate", {"path": str(gate)})["request_id"])
        queue.submit()
        assert client.post(BASE, json={"prompt": "x"}).status_code == 429
        gate.touch()


def test_direct_requests_are_served_while_the_queue_is_long(queue: Queue, gate: Path) -> None:
    first = queue.submit("/gate", {"path": str(gate), "word": "1"})["request_id"]
    queue.begun(first)
    ids = [queue.submit("/gate", {"path": str(gate), "word": "more"})["request_id"] for _ in range(20)]
    gate.touch()
    assert queue.client.post("/?prompt=direct").status_code == 200

    for id in ids:
        queue.follow(id)


def test_check_61_every_reply_has_the_jobs_id(queue: Queue) -> None:
    submitted = queue.client.post(BASE, json={"prompt": "x"})
    id = submitted.json()["request_id"]
    answers = [submitted, queue.ended(id), queue.status(id), queue.cancel(id)]

    assert [answer.headers["x-fal-request-id"] for answer in answers] == [id] * 4


# --- from start to stop


def test_jobs_are_accepted_while_the_app_starts(tmp_path: Path, gate: Path) -> None:
    wait = f"self.tries = {{}}\n        while not os.path.exists({str(gate)!r}): time.sleep(0.002)"
    app = written(tmp_path, APP.replace("self.tries = {}", wait))
    with serving(app, "--data-dir", str(tmp_path / "data"), ready=False) as runner, runner.client() as client:
        queue = Queue(runner, client)
        id = queue.submit()["request_id"]
        assert queue.status(id).json()["status"] == "IN_QUEUE"
        gate.touch()
        assert queue.ended(id).status_code == 200


def test_nothing_is_written_before_the_first_submit(app: Path, tmp_path: Path) -> None:
    with serving(app, "--data-dir", str(tmp_path / "data")) as runner:
        assert runner.post("/?prompt=x").status_code == 200
        assert runner.get(f"{BASE}/requests/nobody").status_code == 404
        assert not (tmp_path / "data").exists()


def test_a_stop_lets_the_running_job_end_and_the_next_start_goes_on(app: Path, tmp_path: Path, gate: Path) -> None:
    with serving(app, "--data-dir", str(tmp_path / "data")) as first, first.client() as client:
        queue = Queue(first, client)
        running = queue.submit("/gate", {"path": str(gate), "word": "running"})["request_id"]
        queue.begun(running)
        waiting = queue.submit("/gate", {"path": str(gate), "word": "waiting"})["request_id"]
        first.signal()
        first.wait_for("server.stopping")
        assert client.post("/?prompt=x").status_code == 503
        assert client.post(BASE, json={"prompt": "x"}).status_code == 503
        gate.touch()
        assert first.wait() == 0
        assert not first.events("app.output", request_id=waiting)

    with serving(app, "--data-dir", str(tmp_path / "data")) as second, second.client() as client:
        queue = Queue(second, client)
        assert queue.ended(running).json() == "running"
        assert queue.ended(waiting).json() == "waiting"
        assert not second.events("app.output", request_id=running)


def test_a_stop_puts_back_the_job_that_does_not_end(tmp_path: Path, gate: Path) -> None:
    app = written(tmp_path, APP.replace("request_timeout = 20", "termination_grace_period_seconds = 0.5"))
    with serving(app, "--data-dir", str(tmp_path / "data")) as first, first.client() as client:
        queue = Queue(first, client)
        id = queue.submit("/gate", {"path": str(gate), "word": "again"})["request_id"]
        queue.begun(id)
        assert first.stop() == 0
    gate.touch()

    with serving(app, "--data-dir", str(tmp_path / "data")) as second, second.client() as client:
        assert Queue(second, client).ended(id).json() == "again"


def test_two_runners_do_not_share_a_data_folder(app: Path, tmp_path: Path, served: Runner) -> None:
    with serving(app, "--data-dir", str(tmp_path)) as first, serving(app, "--data-dir", str(tmp_path)) as second:
        assert first.post(BASE, {"prompt": "x"}).status_code == 200
        refused = second.post(BASE, {"prompt": "x"})

        assert refused.status_code == 507
        assert f"used by another runner (pid {first.process.pid})" in refused.json()["detail"]
        assert second.post("/?prompt=x").status_code == 200


def test_a_stranger_keeps_the_jobs_elsewhere(app: Path, tmp_path: Path) -> None:
    source = "import runner\nfrom stores import Disk, MemoryStore\n@runner.hookimpl\ndef queue_store(service): return MemoryStore(Disk())\n"
    plugin = written(tmp_path, source, "elsewhere.py")
    arguments = ("--plugin", str(plugin), "--data-dir", str(tmp_path / "data"))
    with serving(app, *arguments, env={"PYTHONPATH": str(Path(__file__).parent)}) as runner, runner.client() as client:
        queue = Queue(runner, client)
        assert queue.ended(queue.submit()["request_id"]).status_code == 200
        assert not (tmp_path / "data" / "queue").exists()


def test_check_50_a_silent_status_stream_gets_comments_and_a_stored_stream_none(app: Path, tmp_path: Path, gate: Path) -> None:
    with serving(app, "--data-dir", str(tmp_path), "--ping-seconds", "0.05") as runner, runner.client() as client:
        queue = Queue(runner, client)
        id = queue.submit("/slow-items", {"path": str(gate)})["request_id"]
        with client.stream("GET", f"{BASE}/requests/{id}/status/stream") as response:
            for line in response.iter_lines():
                if line == ": ping":
                    gate.touch()
        assert gate.exists()
        assert client.get(f"{BASE}/requests/{id}").text == "data: 1\n\ndata: 2\n\n"


def test_a_job_is_kept_as_long_as_the_operator_says(app: Path, tmp_path: Path) -> None:
    with serving(app, "--data-dir", str(tmp_path)) as first, first.client() as client:
        id = Queue(first, client).submit()["request_id"]
        Queue(first, client).follow(id)
        first.stop()
    with serving(app, "--data-dir", str(tmp_path), "--queue-expiry-seconds", "0.001") as second:
        second.wait_for("queue.swept", jobs=1)
        assert second.get(f"{BASE}/requests/{id}/status").status_code == 404


