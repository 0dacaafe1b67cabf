"""The fast HTTP/1.1 lane: in order, in time, within bounds, and gone when asked to go (behaviours 33, 51, 52)."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from runner.plugins.http1 import Limits
from runner.plugins.http1.heads import head
from runner.schemas.asgi import Receive, Scope, Send
from runner.schemas.connection import SHORTCUTS
from serving import serving, written
from wire import Answers, Recorder, reply, wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


# --- answers


async def test_head_and_body_arrive_with_their_length_and_a_date() -> None:
    async with wire(Recorder()) as server:
        answers = Answers(await server.exchange(POST + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc"))

    assert (answers.statuses, answers.bodies) == ([200], [b"abc"])
    assert answers.headers[0].keys() == {b"date", b"content-length", b"connection"}


async def test_a_body_of_unknown_length_is_chunked_and_ends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async with wire(app) as server:
        answers = Answers(await server.exchange(LAST))

    assert answers.headers[0][b"transfer-encoding"] == b"chunked"
    assert (answers.bodies, answers.whole) == ([b"onetwo"], 1)


async def test_the_head_of_a_stream_does_not_wait_for_its_first_part() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await went_on.wait()
        await send({"type": "http.response.body", "body": b"x"})

    went_on = anyio.Event()
    async with wire(app) as server, server.client() as client:
        await client.send(LAST)
        await client.until(b"\r\n\r\n")
        went_on.set()
        assert await client.rest() == b"1\r\nx\r\n0\r\n\r\n"


async def test_for_http_1_0_the_end_of_a_stream_is_the_end_of_the_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with wire(app) as server:
        raw = await server.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    assert b"transfer-encoding" not in raw
    assert b"\r\nconnection: close\r\n\r\nonetwo" in raw


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
async def test_an_answer_that_has_no_body_sends_none_and_the_next_one_follows(method: bytes, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/last":
            return await reply(send, b"last")
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})

    async with wire(app) as server:
        raw = await server.exchange(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n" + LAST)

    assert b"body" not in raw
    assert raw.endswith(b"last")


@pytest.mark.parametrize("cut", ["before", "within", "length", "short", "long"])
async def test_half_an_answer_is_never_taken_for_a_whole_one(cut: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if cut == "before":
            raise RuntimeError("no answer")
        length = [] if cut == "within" else [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"abcdef" if cut == "long" else b"abc", "more_body": cut != "short"})

    async with wire(app) as server:
        raw = await server.exchange(GET + LAST)

    if cut == "before":
        assert Answers(raw).statuses == [500]
    else:
        assert raw.count(b"HTTP/1.1") <= 1 or Answers(raw).statuses == [500]
        assert not raw.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("header", [(b"x", b"a\r\nset-cookie: b"), (b"x", b"a\nb"), (b"x", b"a\x00"), (b"x y", b"a"), (b"", b"a")])
def test_a_header_of_the_app_cannot_split_an_answer(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="header"):
        head(200, [header])


async def test_a_close_of_the_app_closes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"x", 200, (b"connection", b"close"))

    async with wire(app) as server:
        answers = Answers(await server.exchange(GET + LAST))

    assert answers.statuses == [200]
    assert answers.headers[0][b"connection"] == b"close"


async def test_close_beats_keep_alive_in_http_1_0_too() -> None:
    app = Recorder()
    async with wire(app) as server:
        await server.exchange(b"GET /a HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n" + LAST)

    assert app.requests == [("GET", "/a", b"")]


# --- requests


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time() -> None:
    running: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.append(scope["path"])
        assert len(running) == 1
        await asyncio.sleep(0)
        running.clear()
        await reply(send, scope["path"].encode())

    async with wire(app) as server:
        asked = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(2000))
        answers = Answers(await server.exchange(asked + LAST))

    assert answers.bodies == [*(b"/%d" % n for n in range(2000)), b"/last"]


async def test_a_bad_request_behind_good_ones_is_answered_after_them() -> None:
    async with wire(Recorder()) as server:
        answers = Answers(await server.exchange(GET + GET + b"nonsense\r\n\r\n"))

    assert answers.statuses == [200, 200, 400]


async def test_who_expects_100_is_told_to_go_on_when_the_app_reads() -> None:
    app = Recorder()
    async with wire(app) as server, server.client() as client:
        await client.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        answers = Answers(await client.rest())

    assert answers.bodies == [b"abc"]


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_nobody_is_told_to_go_on_who_did_not_ask_or_could_not_understand(version: bytes) -> None:
    expect = b"Expect: 100-continue\r\n" if version == b"1.0" else b""
    async with wire(Recorder()) as server:
        raw = await server.exchange(b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + expect + b"Content-Length: 3\r\nConnection: close\r\n\r\nabc")

    assert raw.count(b"HTTP/1.1") == 1


async def test_an_app_that_answers_without_reading_tells_nobody_to_go_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"no", 413)

    async with wire(app) as server:
        answers = Answers(await server.exchange(POST + b"Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n"))

    assert answers.statuses == [413]
    assert answers.headers[0][b"connection"] == b"close"


async def test_a_refusal_reaches_a_client_that_still_sends() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await reply(send, b"no", 413)

    async with wire(app) as server, server.client() as client:
        await client.send(POST + b"Content-Length: 3000000\r\n\r\n")
        await client.until(b"no")
        await client.send(b"x" * 3_000_000)
        assert await client.rest() == b""


async def test_a_large_body_arrives_in_parts_and_waits_for_the_app() -> None:
    parts: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            parts.append(len(message["body"]))
            more = message["more_body"]
            await asyncio.sleep(0)
        await reply(send, b"done")

    size = 20_000_000
    async with wire(app) as server, server.client() as client:
        await client.send(POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % size + b"x" * size)
        answers = Answers(await client.rest())

    assert answers.bodies == [b"done"]
    assert sum(parts) == size
    assert max(parts) < 1_000_000


async def test_a_reader_that_stops_stops_its_writer_and_nobody_else() -> None:
    written_parts = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written_parts
        if scope["path"] != "/":
            return await reply(send, b"other")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            written_parts += 1
            if scope["extensions"][SHORTCUTS].gone:
                return

    async with wire(app) as server, server.client() as slow:
        await slow.send(GET)
        await slow.until(b"\r\n\r\n")
        assert Answers(await server.exchange(LAST)).bodies == [b"other"]
        stood = -1
        while stood != written_parts:  # the kernel's buffers fill, then it stands still
            stood = written_parts
            assert Answers(await server.exchange(LAST)).bodies == [b"other"]

    assert written_parts < 1000


async def test_answers_that_nobody_reads_hold_up_the_requests_behind_them() -> None:
    answered = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        scope["extensions"][SHORTCUTS].answer(200, [], b"x" * 1_000_000)
        answered += 1

    async with wire(app) as server, server.client() as slow:
        await slow.send(GET * 100)
        await slow.until(b"\r\n\r\n")
        for _ in range(20):
            await server.exchange(b"nonsense\r\n\r\n")
        held_up_at = answered
        await slow.send(LAST)
        rest = await slow.rest()

    assert held_up_at < 50
    assert (answered, rest.count(b"HTTP/1.1 200")) == (101, 100)


# --- hanging up


async def test_a_hang_up_is_told_by_the_callback_and_by_receive() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["extensions"][SHORTCUTS].on_hangup(lambda: told.append("callback"))
        begun.set()
        told.append((await receive())["type"])
        over.set()

    begun, over = anyio.Event(), anyio.Event()
    async with wire(app) as server:
        async with server.client() as client:
            await client.send(GET)
            await begun.wait()
        await over.wait()

    assert told == ["callback", "http.disconnect"]


async def test_after_its_answer_a_client_that_leaves_has_not_hung_up() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["extensions"][SHORTCUTS].on_hangup(lambda: told.append("gone"))
        await reply(send)

    async with wire(app) as server:
        await server.exchange(LAST)

    assert told == []


# --- time


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET", 408),
        (b"PRI * HT", 408),
        (GET + b"GET / HT", 408),
        (POST + b"Content-Length: 10\r\n\r\nabc", 408),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", 408),
    ],
)
async def test_who_takes_too_long_is_told_and_closed(sent: bytes, status: int | None) -> None:
    limits = Limits(head_seconds=0.05, body_seconds=0.05, idle_seconds=0.05)
    async with wire(Recorder(), limits) as server:
        answers = Answers(await server.exchange(sent))

    assert [s for s in answers.statuses if s != 200] == ([status] if status else [])


async def test_one_byte_now_and_then_does_not_buy_more_time_for_a_head() -> None:
    async with wire(Recorder(), Limits(head_seconds=0.3)) as server, server.client() as client:
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tasks:

                async def drip() -> None:
                    while True:
                        client.writer.write(b"x")
                        await anyio.sleep(0.01)

                await client.send(b"GET / HTTP/1.1\r\nX: ")
                tasks.start_soon(drip)
                answers = Answers(await client.rest())
                tasks.cancel_scope.cancel()

    assert not scope.cancelled_caught
    assert answers.statuses == [408]


async def test_an_app_that_takes_its_time_is_not_the_clients_fault() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep(0.3)
        await reply(send, b"late")

    limits = Limits(head_seconds=0.05, body_seconds=0.05, idle_seconds=0.05)
    async with wire(app, limits) as server:
        answers = Answers(await server.exchange(LAST))

    assert answers.bodies == [b"late"]


# --- handing over and stopping


async def test_prior_knowledge_of_http_2_goes_to_hypercorn_however_it_arrives() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    async with wire(Recorder()) as server, server.client() as client:
        for byte in preface:
            await client.send(bytes((byte,)))
        frame = await client.reader.readexactly(9)

    assert frame[3] == 4  # its SETTINGS


async def test_an_upgrade_behind_other_requests_is_handed_over_in_its_turn_with_all_that_follows() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            return await reply(send, b"plain")
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive())["text"] + " " + scope["path"]})
        await send({"type": "websocket.close", "code": 1000})

    asked = (
        b"GET /talk?x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    frame = b"\x81\x82\x00\x00\x00\x00hi"  # text, masked with zeros
    async with wire(app) as server, server.client() as client:
        await client.send(GET + asked)
        assert (await client.until(b"plain")).startswith(b"HTTP/1.1 200")
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        await client.send(frame)
        assert await client.reader.readexactly(10) == b"\x81\x08hi /talk"


async def test_when_it_stops_the_present_answer_is_finished_and_idle_connections_close() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await went_on.wait()
        await reply(send, b"x" * 3_000_000)

    begun, went_on = anyio.Event(), anyio.Event()
    async with wire(app) as server, server.client() as idle, server.client() as busy:
        await busy.send(GET)
        await begun.wait()
        server.stop.set()
        assert await idle.rest() == b""
        went_on.set()
        answers = Answers(await busy.rest())

    assert [len(body) for body in answers.bodies] == [3_000_000]
    assert answers.headers[0][b"connection"] == b"close"


async def test_a_closed_connection_leaves_nothing_behind() -> None:
    import gc

    from runner.plugins.http1.connection import Connection

    async with wire(Recorder()) as server:
        for _ in range(20):
            await server.exchange(GET + LAST)
    gc.collect()

    assert [found for found in gc.get_objects() if type(found) is Connection] == []


# --- with the whole runner

APP = """
import runner
class Echo(runner.App):
    @runner.endpoint("/")
    def run(self, name: str = "you") -> str: return name
    @runner.endpoint("/stream")
    def stream(self):
        yield from range(3)
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def curl(*arguments: Any) -> str:
    return subprocess.run(["curl", "-sS", "--max-time", "20", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_over_tls_alpn_chooses_and_both_versions_are_served(tmp_path: Path, certificate: Path) -> None:
    """Behaviour 52."""
    with serving(written(tmp_path, APP), "--tls-cert", str(certificate / "cert.pem"), "--tls-key", str(certificate / "key.pem")) as served:
        port = served.port
        asked = ("-X", "POST", "--cacert", certificate / "cert.pem", "-w", " %{http_version}", f"https://localhost:{port}/?name=x")
        answers = [curl("--http2", *asked), curl("--http1.1", *asked)]
        stream = curl("--http2", "-X", "POST", "--cacert", certificate / "cert.pem", f"https://localhost:{port}/stream")
        trusted = ssl.create_default_context(cafile=certificate / "cert.pem")
        with httpx.Client(verify=trusted, trust_env=False) as client:
            statuses = {client.post(f"https://localhost:{port}/").status_code for _ in range(3)}

    assert answers == ['"x" 2', '"x" 1.1']
    assert stream.count("data: ") == 3
    assert statuses == {200}


def test_http_2_in_the_clear_by_prior_knowledge_and_by_upgrade_serves_endpoints_and_streams(tmp_path: Path) -> None:
    """Behaviour 52."""
    with serving(written(tmp_path, APP)) as served:
        known = curl("--http2-prior-knowledge", "-X", "POST", "-w", " %{http_version}", f"{served.url}/?name=x")
        stream = curl("--http2-prior-knowledge", "-X", "POST", f"{served.url}/stream")
        upgraded = curl("--http2", "-w", " %{http_version}", "-o", "/dev/null", f"{served.url}/health")
        with_body = curl("--http2", "-H", "content-type: application/json", "-d", '{"name": "y"}', f"{served.url}/")

    assert known == '"x" 2'
    assert stream.count("data: ") == 3
    assert upgraded == " 2"
    assert with_body == '"y"'


def test_a_client_of_http_2_that_leaves_leaves_no_connection_open(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as served, served.client() as client:
        descriptors = Path(f"/proc/{served.process.pid}/fd")
        client.get("/health/live")
        before = len(list(descriptors.iterdir()))
        for _ in range(5):
            curl("--http2-prior-knowledge", "-X", "POST", f"{served.url}/")
        asked = 0
        while len(list(descriptors.iterdir())) > before and asked < 500:  # the last one may still be closing
            asked += client.get("/health/live").is_success
        after = len(list(descriptors.iterdir()))

    assert after <= before
