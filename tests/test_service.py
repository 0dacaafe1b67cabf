"""The contract of a runner, seen from the wire (contract 2; checks 1 to 3 and 9 to 23)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate
from serving import Runner, serving, written

APPS = Path(__file__).parent / "apps"
BUG = {"detail": "Internal Server Error"}


@pytest.fixture(scope="module")
def contract() -> Iterator[Runner]:
    with serving(f"{APPS / 'contract.py'}:Contract") as runner:
        yield runner


def fault_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 422, response.text
    assert response.headers["x-fal-billable-units"] == "0"
    (fault,) = response.json()["detail"]
    assert "url" not in fault
    return dict(fault)


# --- paths


@pytest.mark.parametrize("path", ["/", "/run/local/contract", "/run/local/contract/"])
def test_check_1_an_endpoint_answers_at_its_path_and_under_the_app_id(contract: Runner, path: str) -> None:
    response = contract.post(path, {"prompt": "x"})

    assert (response.status_code, response.content) == (200, b'{"text":"x"}')


def test_check_1_the_app_id_is_at_the_root_for_the_host_fal_run(contract: Runner) -> None:
    assert contract.post("/local/contract", {"prompt": "x"}, headers={"host": "fal.run"}).json() == {"text": "x"}
    assert contract.post("/local/contract", {"prompt": "x"}).status_code == 404
    assert contract.post("/run/local/other", {"prompt": "x"}).status_code == 404


def test_the_app_id_can_be_chosen(tmp_path: Path) -> None:
    with serving(f"{APPS / 'contract.py'}:Contract", "--app-id", "acme/painter") as runner:
        assert runner.post("/run/acme/painter/scalar?prompt=x").json() == "x"


def test_check_2_another_method_on_an_endpoint_is_405(contract: Runner) -> None:
    response = contract.get("/")

    assert (response.status_code, response.content) == (405, b'{"detail":"Method Not Allowed"}')
    assert response.headers["allow"] == "POST"


def test_check_3_an_unknown_path_is_404_and_costs_nothing(contract: Runner) -> None:
    response = contract.post("/x", {})

    assert (response.status_code, response.content) == (404, b'{"detail":"Path /x not found"}')
    assert response.headers["x-fal-billable-units"] == "0"


@pytest.mark.parametrize("prefix", ["", "/run/local/contract"])
def test_a_slash_too_many_is_redirected_to_the_path_that_the_caller_meant(contract: Runner, prefix: str) -> None:
    response = contract.post(f"{prefix}/two/?a=b", {})

    assert response.status_code == 307
    assert response.headers["location"] == f"{prefix}/two?a=b"


def test_parts_of_a_path_are_arguments(contract: Runner) -> None:
    assert contract.post("/items/12").json() == 12
    fault = fault_of(contract.post("/items/x"))
    assert (fault["type"], fault["loc"]) == ("int_parsing", ["path", "number"])


def test_a_browser_may_call_and_read_the_request_id(contract: Runner) -> None:
    asked = {
        "origin": "http://page.example", "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-fal-runner-hint",
    }  # fmt: skip
    with contract.client() as client:
        preflight = client.options("/limits", headers=asked)
    answer = contract.post("/nope", {}, headers={"origin": "http://page.example"})

    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-fal-runner-hint"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for response in (preflight, answer):
        assert response.headers["access-control-allow-origin"] == "http://page.example"
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "x-fal-request-id" in response.headers["access-control-expose-headers"]


# --- input


def test_check_13_where_arguments_come_from(contract: Runner) -> None:
    assert contract.post("/mapping", {"any": [1]}).json() == {"any": [1]}
    assert contract.post("/list", [1, 2]).json() == [1, 2]
    assert contract.post("/two", {"first": {"prompt": "x"}, "second": {"n": 2}}).json() == {"first": "x", "second": 2}
    assert contract.post("/scalar?prompt=x").json() == "x"
    assert contract.post("/scalar", {"prompt": "kinder than fal"}).json() == "kinder than fal"
    assert fault_of(contract.post("/scalar"))["loc"] == ["query", "prompt"]
    assert contract.post("/optional").json() is None
    assert contract.post("/optional", {"prompt": "x"}).json() == "x"
    assert contract.post("/nothing", content=b"what is this").json() is None
    assert contract.post("/", {"prompt": "x", "extra": 1}).json() == {"text": "x"}


def test_check_15_a_missing_field(contract: Runner) -> None:
    response = contract.post("/", {"promt": "x"})

    expected = b'{"detail":[{"type":"missing","loc":["body","prompt"],"msg":"Field required","input":{"promt":"x"}}]}'
    assert (response.status_code, response.content) == (422, expected)
    assert response.headers["x-fal-billable-units"] == "0"


@pytest.mark.parametrize(
    ("path", "body", "kind", "loc", "ctx"),
    [
        ("/", {"prompt": 5}, "string_type", ["body", "prompt"], None),
        ("/limits", {"n": 5}, "less_than_equal", ["body", "n"], {"le": 4}),
        ("/limits", {"kind": "c"}, "literal_error", ["body", "kind"], {"expected": "'a' or 'b'"}),
        ("/", [1], "model_attributes_type", ["body"], None),
        ("/list", [1, "x"], "int_parsing", ["body", 1], None),
        ("/", None, "missing", ["body"], None),
    ],
)
def test_a_wrong_input_names_its_field(contract: Runner, path: str, body: Any, kind: str, loc: list[Any], ctx: Any) -> None:
    """Contract 2.4."""
    content = json.dumps(body) if body is not None else ""
    fault = fault_of(contract.post(path, content=content, headers={"content-type": "application/json"}))

    assert (fault["type"], fault["loc"], fault.get("ctx")) == (kind, loc, ctx)


def test_check_16_invalid_json_says_where(contract: Runner) -> None:
    fault = fault_of(contract.post("/", content='{"prompt": nope}', headers={"content-type": "application/json"}))

    assert (fault["type"], fault["loc"], fault["input"]) == ("json_invalid", ["body", 11], {})


@pytest.mark.parametrize("content_type", ["application/json", "image/png"])
def test_check_17_a_picture_instead_of_json_is_counted_not_echoed(contract: Runner, content_type: str) -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))

    response = contract.post("/", content=png, headers={"content-type": content_type})

    assert response.status_code == 422
    assert f"<binary {len(png)} bytes>" in response.text


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("", "application/json"),
        ("{", "application/json"),
        ('{"prompt": "x"}', "text/plain"),
        (b'{"prompt": "\xff"}', "application/json"),
        ('{"prompt": NaN}', "application/json"),
        ("[" * 10_000 + "]" * 10_000, "application/json"),
        ('{"prompt": ' + "[" * 10_000 + "]" * 10_000 + "}", "application/json"),
        ('{"prompt": "a", "prompt": "b"}', "application/json"),
        ('{"prompt": ' + "9" * 5000 + "}", "application/json"),
        ('{"prompt": 1e999}', "application/json"),
        ('{"prompt": "\\ud800"}', "application/json"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/mapping", "/two", "/scalar", "/fail"])
def test_whatever_is_wrong_with_a_body_the_caller_is_told(contract: Runner, path: str, body: Any, content_type: str) -> None:
    """Behaviour 12."""
    response = contract.post(path, content=body, headers={"content-type": content_type})

    assert 200 <= response.status_code < 500
    if response.status_code != 200:
        assert response.json()["detail"]
    assert contract.post("/", {"prompt": "next"}).json() == {"text": "next"}


def test_a_large_input_arrives_whole(contract: Runner) -> None:
    """Behaviour 14."""
    prompt = "x" * (7 * 1024 * 1024)

    assert contract.post("/", {"prompt": prompt}).json() == {"text": prompt}


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    """Behaviour 13."""
    import gzip

    import zstandard

    bomb = json.dumps({"prompt": "x" * 5_000_000}).encode()
    with serving(f"{APPS / 'contract.py'}:Contract", "--max-body-bytes", "1000000") as runner:
        answers = [
            runner.post("/", content=bomb),
            runner.post("/", content=gzip.compress(bomb), headers={"content-encoding": "gzip"}),
            runner.post("/", content=zstandard.compress(bomb), headers={"content-encoding": "zstd"}),
            runner.post("/", content=(part for part in [bomb[:600_000], bomb[600_000:1_200_000]])),
        ]
        small = json.dumps({"prompt": "small"}).encode()
        coded = [
            runner.post("/", content=gzip.compress(small), headers={"content-encoding": "gzip", "content-type": "application/json"}),
            runner.post("/", content=zstandard.compress(small), headers={"content-encoding": "zstd", "content-type": "application/json"}),
        ]

    assert [answer.status_code for answer in answers] == [413] * 4
    assert all("1000000 bytes" in answer.json()["detail"] for answer in answers)
    assert [answer.json() for answer in coded] == [{"text": "small"}] * 2


# --- the request an endpoint runs for


def test_check_14_the_request_id_is_the_same_everywhere(contract: Runner) -> None:
    response = contract.post("/header", headers={"x-fal-request-id": "my-id"})

    assert response.json() == ["my-id", "my-id"]
    assert response.headers["x-fal-request-id"] == "my-id"
    assert contract.wait_for("request.finished", request_id="my-id")["path"] == "/header"


@pytest.mark.parametrize("path", ["/meet", "/meet-async"])
def test_check_10_concurrent_requests_see_their_own_ids(contract: Runner, path: str) -> None:
    with ThreadPoolExecutor() as callers:
        answers = list(callers.map(lambda name: contract.post(path, headers={"x-fal-request-id": name}).json(), ["one", "two"]))

    assert answers == [["one", "one"], ["two", "two"]]


def test_a_request_without_headers_never_sees_those_of_the_one_before(contract: Runner) -> None:
    """Behaviour 15, check 33."""
    full = {
        "x-fal-endpoint": "owner/app/", "x-custom": "mine",
        "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}',
    }  # fmt: skip

    first = contract.post("/context", headers=full).json()
    malformed = contract.post("/context", headers={"x-fal-object-lifecycle-preference": "{"}).json()
    second = contract.post("/context").json()

    assert (first["endpoint"], first["custom"]) == ("owner/app/", "mine")
    assert first["lifecycle"] == {"expiration_duration_seconds": 60}
    assert (second["endpoint"], second["lifecycle"], second["custom"]) == (None, None, None)
    assert malformed["lifecycle"] is None


def test_a_client_that_closes_after_its_answer_has_not_hung_up(contract: Runner) -> None:
    answers = [contract.post("/", {"prompt": "x"}, headers={"connection": "close"}) for _ in range(20)]

    lines = [contract.wait_for("request.finished", request_id=a.headers["x-fal-request-id"]) for a in answers]
    assert {line["status"] for line in lines} == {200}


def test_a_cdn_token_that_an_endpoint_renews_reaches_the_caller(contract: Runner) -> None:
    """Contract 1.4."""
    renewed = contract.post("/renew", headers={"x-fal-cdn-token": "old"})
    passed = contract.post("/context", headers={"x-fal-cdn-token": "old"})

    assert renewed.headers["x-fal-cdn-token"] == "new"
    assert "x-fal-cdn-token" not in passed.headers


# --- failures


@pytest.mark.parametrize("path", ["/fail", "/fail-async"])
@pytest.mark.parametrize(
    ("kind", "status", "body"),
    [
        ("app", 401, {"detail": "no entry"}),
        ("field", 422, {"detail": [{"loc": ["body", "prompt"], "msg": "too rude", "type": "value_error"}]}),
        ("field billed wrongly", 500, BUG),
        ("cancelled", 499, {"detail": "Request cancelled by the client."}),
        ("gpu", 503, {"detail": "GPU error"}),
        ("out of memory", 503, {"detail": "CUDA error: out of memory"}),
        ("triton", 503, {"detail": "GPU error"}),
        ("bug", 500, BUG),
        ("exit", 500, BUG),
        ("interrupt", 500, BUG),
        ("base", 500, BUG),
        ("cancel", 500, BUG),
        ("deep", 418, {"detail": {"reason": "teapot"}}),
    ],
)
def test_checks_18_to_22_what_a_raised_error_answers(contract: Runner, path: str, kind: str, status: int, body: Any) -> None:
    """Also behaviours 17 to 19: the traceback is in the log, not in the answer, and the server lives."""
    response = contract.post(path, {"kind": kind})

    assert (response.status_code, response.json()) == (status, body)
    assert "traceback" not in response.text.lower()
    if kind in ("bug", "exit", "base", "triton"):
        request_id = response.headers["x-fal-request-id"]
        logged = contract.wait_for("request.failed", request_id=request_id)
        assert "Traceback" in logged["exception"]
    assert contract.post("/", {"prompt": "next"}).json() == {"text": "next"}


@pytest.mark.parametrize(("kind", "units"), [("field billed", "5"), ("field billed in part", "0.00001230"), ("field", None)])
def test_check_18_billable_units(contract: Runner, kind: str, units: str | None) -> None:
    assert contract.post("/fail", {"kind": kind}).headers.get("x-fal-billable-units") == units


def test_check_22_a_bug_prints_its_traceback_as_one_json_line(contract: Runner) -> None:
    contract.post("/fail", {"kind": "bug"})

    contract.wait_for("request.failed")
    chunks = [json.loads(line)["traceback"] for line in contract.printed if line.startswith('{"traceback"')]
    assert any(chunk.startswith("ValueError: a bug") for chunk in chunks)


def test_check_23_an_answer_that_does_not_fit_its_annotation_is_a_bug_of_the_app(contract: Runner) -> None:
    response = contract.post("/misfit")

    assert (response.status_code, response.json()) == (500, BUG)
    logged = contract.wait_for("response.invalid", request_id=response.headers["x-fal-request-id"])
    assert "response.text" in logged["problem"]


def test_headers_set_on_the_response_reach_the_caller(contract: Runner) -> None:
    response = contract.post("/units")

    assert (response.json(), response.headers["x-fal-billable-units"]) == ("billed", "7")


# --- around it


def test_check_9_health_gives_the_version(contract: Runner) -> None:
    assert contract.get("/health").json()["version"] == "unknown"


@pytest.mark.parametrize("define", ["def", "async def"])
def test_check_9_an_own_health_is_asked(tmp_path: Path, define: str) -> None:
    app = written(
        tmp_path,
        f"""
import runner
class Own(runner.App):
    {define} health(self): return {{"version": "7", "weights": "loaded"}}
    @runner.endpoint("/")
    def run(self) -> str: return "x"
""",
    )
    with serving(app) as runner:
        answer = runner.get("/health")
        said = answer.json()

    assert "x-fal-runner-hints" not in answer.headers, "check 11: this app gives none"
    assert (said["version"], said["weights"], said["status"]) == ("7", "loaded", "ready")


def test_check_11_hints_are_on_every_answer(contract: Runner) -> None:
    answers = [contract.post("/", {"prompt": "x"}), contract.post("/", {}), contract.get("/health")]

    assert [answer.headers["x-fal-runner-hints"] for answer in answers] == ["a,b"] * 3


def test_checks_24_and_25_the_document_of_a_running_app_is_valid_and_stays_as_it_is(contract: Runner) -> None:
    first, second = contract.get("/openapi.json"), contract.get("/openapi.json")

    assert first.content == second.content
    document = first.json()
    validate(document)
    paths = document["x-fal-order-paths"]
    assert paths == [*sorted(path for path in paths if path not in ("/health", "/realtime")), "/health", "/realtime"]
    assert document["components"]["schemas"]["Limits"]["x-fal-order-properties"] == ["n", "kind"]
    protocol = document["paths"]["/realtime"]["x-fal-protocol"]
    assert (protocol["type"], protocol["realtimeMode"], protocol["contentType"]) == ("realtime", "unary", "application/msgpack")
    assert document["paths"]["/realtime"]["post"]["operationId"] == "realtime_post"
    assert document["components"]["schemas"]["Secretive"]["properties"]["debug"]["ui"] == {"hidden": True}


def test_check_26_a_hidden_field_is_accepted(contract: Runner) -> None:
    assert contract.post("/secretive", {"prompt": "x", "debug": True}).json() is True


def test_check_61_every_answer_has_a_request_id(contract: Runner) -> None:
    answers = [
        contract.post("/", {"prompt": "x"}), contract.post("/", {}), contract.get("/"), contract.get("/nope"),
        contract.post("/fail", {"kind": "bug"}), contract.get("/health"), contract.get("/openapi.json"),
    ]  # fmt: skip

    ids = [answer.headers["x-fal-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("hostile", ["\x00", "x" * 5000, "a\x7fb"])
def test_a_request_id_that_cannot_be_shown_is_replaced(contract: Runner, hostile: str) -> None:
    try:
        response = contract.post("/", {"prompt": "x"}, headers={"x-fal-request-id": hostile})
    except httpx.LocalProtocolError:
        pytest.skip("no client sends it")

    assert response.status_code == 400 or response.headers["x-fal-request-id"] != hostile
