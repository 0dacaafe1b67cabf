"""The plugins of examples/plugins, each in a running server: that they work, and that they fail properly."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import HOUSE, Runner, serving, written

PLUGINS = HOUSE / "examples" / "plugins"
SECRETS = [base64.b64encode(bytes([n]) * 24).decode() for n in (1, 2)]

APP = """
import runner
from msgspec import Struct
from pydantic import BaseModel

class Text(Struct):
    words: str
    loud: bool = False

class Nested(BaseModel):
    inner: dict[str, int]
    file: runner.File

class Counting(runner.App):
    cache_seconds = {"/count": 600, "/size": 600, "/fails": 600}
    calls = 0

    @runner.endpoint("/count")
    def count(self, input: Text, response: runner.Response) -> str:
        self.calls += 1
        response.headers["x-set"] = "by the app"
        return f"{input.words} {self.calls}"

    @runner.endpoint("/size")
    def size(self, input: Nested) -> int:
        self.calls += 1
        return self.calls

    @runner.endpoint("/fails")
    def fails(self, input: Text) -> str:
        raise runner.HTTPError(404, "none")

    @runner.endpoint("/uncached")
    def uncached(self) -> str:
        return "fresh"

    @runner.endpoint("/file")
    def file(self) -> runner.File:
        return runner.File.from_bytes(b"made by the app", content_type="text/plain", file_name="a b.txt")
"""


class Receiver(ThreadingHTTPServer):
    """A server elsewhere: takes files by PUT and webhooks by POST, and keeps what it got."""

    def __init__(self) -> None:
        self.got: queue.Queue[tuple[str, str, dict[str, str], bytes]] = queue.Queue()
        self.answers = 201
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.put((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(self.server.answers)
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_PUT

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A runner with a cache, an upload target and signed webhooks."""
    folder = tmp_path_factory.mktemp("plugins")
    here = f"http://127.0.0.1:{receiver.server_port}"
    env = {"PUT_URL": f"{here}/files/", "PUT_TOKEN": "let-me", "WEBHOOK_SECRET": " ".join(f"whsec_{s}" for s in SECRETS)}
    plugins = [argument for name in ("result_cache", "put_files", "signed_webhooks") for argument in ("--plugin", str(PLUGINS / f"{name}.py"))]
    with serving(written(folder, APP), *plugins, "--allow-private-hosts", "127.0.0.1", cwd=folder, env=env) as runner:
        yield runner


def test_each_example_is_one_file_below_80_lines() -> None:
    assert {file.name: len(file.read_text().splitlines()) for file in PLUGINS.iterdir() if file.suffix != ".py"} == {}
    assert all(len(file.read_text().splitlines()) < 80 for file in PLUGINS.glob("*.py"))


def test_the_cache_knows_an_input_by_its_content(served: Runner) -> None:
    first = served.post("/count", {"words": "sea"})
    again = served.post("/count", content=b'{ "loud": false, "words": "sea" }', headers={"content-type": "application/json"})
    other = served.post("/count", {"words": "sea", "loud": True})
    forced = served.post("/count", {"words": "sea"}, headers={"cache-control": "no-cache"})
    after = served.post("/count", {"words": "sea"})

    assert first.headers["cache-status"] == "runner; fwd=miss; stored"
    assert (again.json(), again.headers["cache-status"][:16]) == (first.json(), "runner; hit; ttl")
    assert again.headers["content-type"] == "application/json"
    assert (other.headers["cache-status"], other.json() != first.json()) == ("runner; fwd=miss; stored", True)
    assert (forced.headers["cache-status"], forced.json() != first.json()) == ("runner; fwd=request; stored", True)
    assert after.json() == forced.json()
    assert [answer.headers["x-set"] for answer in (first, again)] == ["by the app"] * 2
    event = served.post("/count", {"words": "sea"}, headers={"accept": "text/event-stream"})
    assert (event.headers["cache-status"], event.text[:7]) == ("runner; fwd=bypass", "data: \"")


def test_the_cache_reads_files_and_keeps_no_errors(served: Runner) -> None:
    def asked(content: bytes, number: int = 1) -> str:
        uri = "data:text/plain;base64," + base64.b64encode(content).decode()
        return served.post("/size", {"inner": {"a": number}, "file": uri}).headers["cache-status"].partition(";")[2][:9].strip()

    assert [asked(b"one"), asked(b"one"), asked(b"two"), asked(b"one", 2)] == ["fwd=miss", "hit; ttl", "fwd=miss", "fwd=miss"]
    assert [served.post("/fails", {"words": "x"}).headers.get("cache-status") for _ in range(2)] == [None, None]
    assert "cache-status" not in served.post("/uncached").headers


def test_files_of_the_app_and_of_callers_are_put_to_the_target(served: Runner, receiver: Receiver) -> None:
    made = served.post("/file").json()
    method, path, headers, body = receiver.got.get(timeout=30)
    assert (method, body, headers["authorization"], headers["content-type"]) == ("PUT", b"made by the app", "Bearer let-me", "text/plain")
    assert made["url"] == f"http://127.0.0.1:{receiver.server_port}{path}"
    assert path.endswith("/a%20b.txt")

    sent = os.urandom(3 * 1024**2)
    put = served.post("/files", content=sent, headers={"x-fal-file-name": "large.bin"}).json()
    _, path, _, body = receiver.got.get(timeout=30)
    assert put["url"].endswith(path)
    assert body == sent


def test_what_the_target_refuses_fails_its_request_and_no_url_is_given(served: Runner, receiver: Receiver) -> None:
    receiver.answers = 403
    try:
        refused = served.post("/file")
    finally:
        receiver.answers = 201
    receiver.got.get(timeout=30)

    assert refused.status_code == 507
    assert "a b.txt could not be put to" in refused.json()["detail"]
    assert "it answered 403" in refused.json()["detail"]
    assert served.post("/uncached").json() == "fresh"


def test_a_webhook_carries_a_signature_for_each_secret(served: Runner, receiver: Receiver) -> None:
    hook = f"http://127.0.0.1:{receiver.server_port}/hook"
    job = served.post(f"/queue/local/counting/uncached?fal_webhook={hook}", {}).json()["request_id"]
    _, path, headers, body = receiver.got.get(timeout=30)

    assert (path, headers["webhook-id"], json.loads(body)["payload"]) == ("/hook", job, "fresh")
    signed = f"{job}.{headers['webhook-timestamp']}.".encode() + body
    expected = [base64.b64encode(hmac.digest(base64.b64decode(secret), signed, hashlib.sha256)).decode() for secret in SECRETS]
    assert headers["webhook-signature"] == " ".join(f"v1,{one}" for one in expected)
    assert "x-fal-webhook-signature" in headers


def test_keys_are_asked_for_and_each_caller_has_a_quota_that_survives_a_restart(tmp_path: Path) -> None:
    app = written(tmp_path, APP)
    keys = {name: {"sha256": hashlib.sha256(f"{name}-key".encode()).hexdigest(), "per_day": n} for name, n in (("ada", 2), ("grace", 9))}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    arguments = [app, "--plugin", str(PLUGINS / "api_keys.py")]

    def asked(runner: Runner, name: str, path: str = "/uncached") -> tuple[int, str | None]:
        answer = runner.post(path, {}, headers={"authorization": f"Key {name}-key"})
        return answer.status_code, answer.headers.get("x-quota-remaining")

    with serving(*arguments, cwd=tmp_path) as runner:
        refused = runner.post("/uncached")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Key")
        assert asked(runner, "mallory") == (401, None)
        assert runner.get("/health/ready").status_code == 200
        assert asked(runner, "ada") == (200, "1")
        assert asked(runner, "ada", "/queue/local/counting/uncached") == (200, "0")
        used_up = runner.post("/uncached", headers={"authorization": "Key ada-key"})
        assert (used_up.status_code, used_up.json()["detail"]) == (429, "ada has used all 2 calls of today")
        assert 0 < int(used_up.headers["retry-after"]) <= 24 * 3600
        assert runner.get("/openapi.json", headers={"authorization": "Key ada-key"}).status_code == 200
        assert asked(runner, "grace") == (200, "8")
        runner.signal(9)
        runner.wait()
    with serving(*arguments, "--plugin", str(PLUGINS / "rate_limits.py"), cwd=tmp_path, env={"RATE": "3", "RATE_SECONDS": "3600"}) as runner:
        assert asked(runner, "ada") == (429, "0")
        assert_rates_are_limited(runner)


def assert_rates_are_limited(runner: Runner) -> None:
    """With RATE=3 in an hour; each caller has its own."""
    answers = [runner.post("/uncached", headers={"authorization": "Key grace-key"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"default";q=3;w=3600'
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [f'"default";r={n}' for n in (2, 1, 0, 0)]
    assert 0 < int(answers[3].headers["retry-after"]) <= 1200
    assert "more than 3 requests in 3600 s" in answers[3].json()["detail"]
    assert runner.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("plugin", "env", "told"),
    [
        ("api_keys", {"KEYS_FILE": "nowhere.json"}, "KEYS_FILE=nowhere.json: FileNotFoundError"),
        ("rate_limits", {"RATE": "0"}, "RATE is at least 1"),
        ("rate_limits", {"RATE": "many"}, "RATE and RATE_SECONDS are numbers"),
        ("put_files", {"PUT_URL": "files"}, "PUT_URL is 'files'; it is where files go"),
        ("signed_webhooks", {"WEBHOOK_SECRET": "whsec_c2hvcnQ="}, "WEBHOOK_SECRET is whsec_ and 24 bytes or more"),
    ],
)
def test_a_wrong_setting_of_a_plugin_is_one_line(tmp_path: Path, plugin: str, env: dict[str, str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, HOUSE / "runner.py", written(tmp_path, APP), "--plugin", PLUGINS / f"{plugin}.py", "--check"],
        cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=30,
    )  # fmt: skip

    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"runner: plugin {PLUGINS / plugin}.py: {told}")
