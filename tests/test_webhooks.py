"""Webhooks: what the receiver gets, how often, and whom we never call (contract 7.11, check 60, behaviour 47)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from runner.plugins.queue.contract import job, outcome, to
from runner.plugins.queue.webhooks import ATTEMPTS, Keys, Webhooks
from runner.schemas.queue import JobMove
from serving import GUARD_SECONDS, Runner, serving, written
from stores import Disk, MemoryStore
from structlog.testing import capture_logs

APP = """
import runner
class Hooked(runner.App, name="hooked"):
    @runner.endpoint("/")
    def run(self, prompt: str) -> dict:
        return {"text": prompt.upper()}
    @runner.endpoint("/text")
    def text(self) -> runner.Response:
        return runner.Response("no JSON", 200, {}, "text/plain")
"""


class Hook(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent; answers 200, or what `answers` says first."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[Hook] = queue.SimpleQueue()
        self.answers: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = handler.rfile.read(int(handler.headers["content-length"]))
                self.got.put(Hook(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body))
                handler.send_response(self.answers.pop(0) if self.answers else 200)
                handler.send_header("location", "/elsewhere")
                handler.end_headers()

            def log_message(handler, *arguments: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def next(self) -> Hook:
        return self.got.get(timeout=GUARD_SECONDS)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        thread = threading.Thread(target=receiver.serve_forever)
        thread.start()
        yield receiver
        receiver.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("app"), APP)


@pytest.fixture(scope="module")
def served(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("data")
    with serving(app, "--data-dir", str(folder), "--allow-private-hosts", "127.0.0.1") as runner:
        yield runner


def submit(runner: Runner, url: str, path: str = "", body: Any = None) -> str:
    response = runner.post(f"/queue/local/hooked{path}", body or {"prompt": "x"}, params={"fal_webhook": url})
    assert response.status_code == 200, response.text
    return str(response.json()["request_id"])


def assert_signed(hook: Hook, jwks: Any) -> None:
    """As fal's documentation tells receivers to check."""
    names = ("request-id", "user-id", "timestamp")
    parts = [*(hook.headers[f"x-fal-webhook-{name}"] for name in names), hashlib.sha256(hook.body).hexdigest()]
    x = jwks["keys"][0]["x"]
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)))
    key.verify(bytes.fromhex(hook.headers["x-fal-webhook-signature"]), "\n".join(parts).encode())


def test_check_60_the_receiver_gets_the_output_signed(served: Runner, receiver: Receiver) -> None:
    id = submit(served, receiver.url)
    hook = receiver.next()

    assert hook.path == "/hook?a=1"
    assert hook.told == {"request_id": id, "gateway_request_id": id, "status": "OK", "payload": {"text": "X"}}
    assert hook.headers["x-fal-webhook-request-id"] == id
    assert hook.headers["content-type"] == "application/json"
    assert_signed(hook, served.get("/.well-known/jwks.json").json())


def test_check_60_the_receiver_gets_the_error_of_a_failed_job(served: Runner, receiver: Receiver) -> None:
    submit(served, receiver.url, body={"promt": "x"})
    told = receiver.next().told

    assert (told["status"], told["error"]) == ("ERROR", "Invalid status code: 422")
    assert told["payload"]["detail"][0]["type"] == "missing"


def test_an_output_that_is_not_json_is_not_in_the_payload(served: Runner, receiver: Receiver) -> None:
    submit(served, receiver.url, "/text")
    told = receiver.next().told

    assert (told["status"], told["payload"]) == ("OK", None)
    assert "text/plain" in told["payload_error"]


def test_behaviour_47_a_webhook_outlives_the_process(app: Path, tmp_path: Path, receiver: Receiver) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers here
        taken.bind(("127.0.0.1", 0))
        arguments = ("--data-dir", str(tmp_path), "--allow-private-hosts", "127.0.0.1")
        with serving(app, *arguments) as first:
            id = submit(first, f"http://127.0.0.1:{taken.getsockname()[1]}/")
            first.wait_for("webhook.failed", request_id=id, attempts=1)
            first.process.kill()
            first.wait()
        with serving(app, *arguments) as second:
            second.wait_for("webhook.failed", request_id=id, attempts=2)


def test_behaviour_47_private_addresses_are_not_called_unless_allowed(app: Path, tmp_path: Path, receiver: Receiver) -> None:
    with serving(app, "--data-dir", str(tmp_path)) as runner:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1"):
            id = submit(runner, f"http://{host}:{receiver.server_port}/")
            problem = runner.wait_for("webhook.failed", request_id=id)["problem"]
            assert "host is" in problem

    assert receiver.got.empty()


# --- how often, by a clock that does not wait


async def delivered(store: MemoryStore, receiver: Receiver, folder: Path) -> None:
    """Deliver until nothing is owed."""
    webhooks = Webhooks(store, Keys(folder / "key.pem"), allowed_hosts=["127.0.0.1"], pause=lambda attempts: 0.0)
    with anyio.fail_after(GUARD_SECONDS):
        task = asyncio.ensure_future(webhooks.deliver())
        while await store.deliveries():
            await asyncio.wait([task], timeout=0.01)
        task.cancel()
        await asyncio.wait([task])


async def owing(url: str) -> MemoryStore:
    store = MemoryStore(Disk())
    await store.submit(job(webhook=url), b"{}")
    await store.change("one", to(JobMove.FINISH, outcome=outcome(b"1")))
    return store


@pytest.mark.parametrize(
    ("answers", "times"),
    [([], 1), ([500, 503, 200], 3), ([429, 408, 204], 3), ([404], 1), ([410], 1), ([302, 200], 2), ([500] * 20, ATTEMPTS)],
)
async def test_behaviour_47_what_is_tried_again(receiver: Receiver, tmp_path: Path, answers: list[int], times: int) -> None:
    receiver.answers = list(answers)

    await delivered(await owing(receiver.url), receiver, tmp_path)

    hooks = [receiver.next() for _ in range(times)]
    assert receiver.got.empty()
    assert {hook.path for hook in hooks} == {"/hook?a=1"}  # redirects are not followed


def test_the_signing_key_stays_the_same_and_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "data" / "webhooks.pem"

    assert Keys(file).jwks() == Keys(file).jwks()
    assert file.stat().st_mode & 0o777 == 0o600


async def test_behaviour_47_one_webhook_that_cannot_even_be_tried_keeps_no_other(receiver: Receiver, tmp_path: Path) -> None:
    store = await owing("http://[no-address")
    await store.submit(job("two", webhook=receiver.url), b"{}")
    await store.change("two", to(JobMove.FINISH, outcome=outcome(b"2")))

    with capture_logs() as logged:
        await delivered(store, receiver, tmp_path)

    assert receiver.next().told["request_id"] == "two"
    assert receiver.got.empty()
    assert [line["request_id"] for line in logged if line["event"] == "webhook.given_up"] == ["one"]


async def test_an_outbox_in_which_nothing_comes_to_its_end_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = await owing(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        webhooks = Webhooks(store, Keys(tmp_path / "key.pem"), allowed_hosts=["127.0.0.1"])
        before = webhooks.stuck()
        task = asyncio.ensure_future(webhooks.deliver())
        with anyio.fail_after(GUARD_SECONDS):
            caller, _ = await anyio.to_thread.run_sync(silent.accept)
        under_way = webhooks.stuck()
        monkeypatch.setattr("runner.plugins.queue.webhooks.STUCK_SECONDS", 0.0)
        stuck = webhooks.stuck()
        caller.close()
        task.cancel()
        await asyncio.wait([task])

    assert (before, under_way) == (None, None)
    assert stuck is not None
    assert stuck.startswith("no webhook came to its end")
