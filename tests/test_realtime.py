"""Realtime and raw WebSockets, seen from the wire (contract 6; checks 37 to 44; behaviours 35 and 36)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from serving import GUARD_SECONDS, Runner, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

APPS = Path(__file__).parent / "apps"
TIMEOUT = {"type": "x-fal-error", "error": "TIMEOUT", "reason": "no inputs, reconnect when needed!"}


@pytest.fixture(scope="module")
def talks() -> Iterator[Runner]:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner:
        yield runner


def talking(runner: Runner, path: str, **options: Any) -> ClientConnection:
    return connect(runner.url.replace("http", "ws") + path, proxy=None, max_size=None, **options)


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(msgpack.packb(message))


def receive(socket: ClientConnection) -> Any:
    frame = socket.recv(timeout=GUARD_SECONDS)
    return json.loads(frame) if isinstance(frame, str) else msgpack.unpackb(frame)


def until_closed(socket: ClientConnection) -> tuple[list[Any], int]:
    """All that still comes, and the code it ends with."""
    got: list[Any] = []
    with suppress(ConnectionClosed):
        while True:
            got.append(receive(socket))
    return got, socket.close_code or 0


def failed(reason: str) -> dict[str, str]:
    return {"type": "x-fal-error", "error": "INTERNAL_ERROR", "reason": reason}


# --- one answer for one message


@pytest.mark.parametrize("prefix", ["", "/run/local/talks"])
@pytest.mark.parametrize("path", ["/realtime", "/async"])
def test_check_37_messages_are_answered_in_order(talks: Runner, prefix: str, path: str) -> None:
    with talking(talks, prefix + path) as socket:
        for n in (1, 2, 3):
            send(socket, n=n, data=b"\x00\xff", text="né 😀")
        answers = [receive(socket) for _ in range(3)]

        assert socket.response.headers["x-fal-request-id"]
    assert answers == [{"n": n * 2, "data": b"\x00\xff!", "text": "né 😀"} for n in (1, 2, 3)]


def test_types_may_be_pydantic_models_dicts_or_nothing_at_all(talks: Runner) -> None:
    with talking(talks, "/model") as model, talking(talks, "/raw") as raw, talking(talks, "/mapping") as mapping:
        send(model, n=1, data=b"x")
        send(raw, any=[1, b"x"])
        send(mapping, any=[1, b"x"])

        assert receive(model) == {"n": 2, "data": b"x!"}
        assert receive(raw) == {"got": {"any": [1, b"x"]}, "kind": "dict"}
        assert receive(mapping) == {"any": [1, b"x"]}


def test_tensors_become_numbers(talks: Runner) -> None:
    with talking(talks, "/tensor") as socket:
        send(socket)

        assert receive(socket) == {"sum": 3.0, "all": [1.0, 2.0]}


def test_who_sends_json_text_is_answered_in_kind(talks: Runner) -> None:
    with talking(talks, "/realtime") as socket:
        socket.send('{"n": 1, "text": "né"}')

        assert json.loads(socket.recv()) == {"n": 2, "data": "IQ==", "text": "né"}


@pytest.mark.parametrize(
    ("path", "message", "reason"),
    [
        ("/realtime", msgpack.packb({"m": 1}), "n: Field required"),
        ("/realtime", b"\xc1", "message: not msgpack: MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)"),
        ("/realtime", "{", "message: not JSON: Input data was truncated"),
        ("/fails", msgpack.packb({"n": 1}), "no 1"),
        ("/misfit", msgpack.packb({"n": 1}), "a realtime method gives dicts or models, not int"),
    ],
)
def test_check_39_what_goes_wrong_is_told_and_ends_the_session(talks: Runner, path: str, message: Any, reason: str) -> None:
    with talking(talks, path) as socket:
        socket.send(message)

        assert until_closed(socket) == ([failed(reason)], 1000)


def test_inputs_before_a_bad_one_are_still_answered(talks: Runner) -> None:
    with talking(talks, "/realtime") as socket:
        send(socket, n=1)
        socket.send(b"\xc1")

        got, _ = until_closed(socket)

    assert got[0]["n"] == 2
    assert got[1]["error"] == "INTERNAL_ERROR"


def test_the_log_says_how_a_session_ended(talks: Runner) -> None:
    for path, ended, status in (("/fails", "failed", 500), ("/impatient", "idle", 101), ("/server", "completed", 101)):
        with talking(talks, path, additional_headers={"x-fal-request-id": f"log-{ended}"}) as socket:
            send(socket, n=1)
            until_closed(socket)

        line = talks.wait_for("request.finished", request_id=f"log-{ended}")
        assert (line["ended"], line["status"], line["method"], line["path"]) == (ended, status, "WS", path)
        assert line["items"] == (0 if ended == "failed" else 1)
    assert "no 1" in talks.wait_for("request.failed", request_id="log-failed")["exception"]


def test_check_38_silence_is_told_and_ends_the_session(talks: Runner) -> None:
    with talking(talks, "/impatient") as socket:
        send(socket, n=1)

        got, code = until_closed(socket)

    assert (got[0]["n"], got[1:], code) == (1, [TIMEOUT], 1000)


def test_work_that_outlasts_the_silence_is_given_as_much_time_again_and_not_more(talks: Runner) -> None:
    with talking(talks, "/late") as socket:
        send(socket, n=0)

        assert until_closed(socket) == ([TIMEOUT], 1000)


def test_a_method_may_say_that_its_client_is_gone(talks: Runner) -> None:
    with talking(talks, "/leaves") as socket:
        send(socket, n=1)

        assert until_closed(socket) == ([], 1000)


@pytest.mark.parametrize("path", ["/buffered", "/held?max_buffering=1"])
def test_check_43_of_the_inputs_that_wait_only_the_newest_are_kept(talks: Runner, path: str) -> None:
    with talking(talks, path) as socket:
        held = len(talks.events("app.output", text="holding"))
        send(socket, n=0)
        talks.wait_for("app.output", text="holding", times=held + 1)
        for n in range(1, 6):
            send(socket, n=n)
        assert socket.ping().wait(GUARD_SECONDS)  # all were read
        talks.post("/open?what=async")
        first, second = receive(socket), receive(socket)

    assert (first["n"], second["n"]) == (0, 5)


def test_without_a_limit_every_input_that_waits_is_kept(talks: Runner) -> None:
    with talking(talks, "/held") as socket:
        send(socket, n=0)
        for n in range(1, 6):
            send(socket, n=n)
        talks.post("/open?what=async")

        assert [receive(socket)["n"] for _ in range(6)] == list(range(6))


def batches(talks: Runner, numbers: list[int], answers: int) -> list[list[int]]:
    """What ten inputs become that wait behind one that is held."""
    with talking(talks, "/batch") as socket:
        held = len(talks.events("app.output", text="holding"))
        send(socket, n=0)
        talks.wait_for("app.output", text="holding", times=held + 1)
        for n in numbers:
            send(socket, n=n)
        assert socket.ping().wait(GUARD_SECONDS)
        talks.post("/open")
        return [receive(socket)["batch"] for _ in range(answers + 1)][1:]


def test_check_40_ten_waiting_inputs_with_a_limit_of_four_make_4_4_2(talks: Runner) -> None:
    assert batches(talks, list(range(1, 11)), 3) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_check_40_an_input_that_does_not_fit_the_first_begins_the_next_batch(talks: Runner) -> None:
    assert batches(talks, [1, 2, 100, 3, 4], 2) == [[1, 2], [100, 3, 4]]


def test_check_42_an_author_s_own_encoding_is_used_both_ways(talks: Runner) -> None:
    with talking(talks, "/codec") as socket:
        socket.send(b'{"wrapped": {"a": 1}}')
        socket.send('{"wrapped": {"a": 2}}')

        assert [json.loads(socket.recv()) for _ in range(2)] == [{"wrapped": {"got": {"a": n}}} for n in (1, 2)]


# --- streaming


@pytest.mark.parametrize("path", ["/server", "/server-async"])
def test_check_41_one_input_many_outputs(talks: Runner, path: str) -> None:
    with talking(talks, path) as socket:
        send(socket, n=3)

        got, code = until_closed(socket)

    assert [each["n"] for each in got[:3]] == [0, 1, 2]
    assert (got[3:], code) == ([TIMEOUT], 1000)


def test_check_41_many_inputs_one_output(talks: Runner) -> None:
    with talking(talks, "/client-stops") as stopped, talking(talks, "/client") as timed:
        for n in (1, 2, 3):
            send(timed, n=n)
        for n in (1, 2, 3):
            send(stopped, n=n)
        send(stopped, n=4, text="stop")

        (by_time, *end), code = until_closed(timed)
        (by_itself, *same_end), same_code = until_closed(stopped)

    assert (by_time["n"], by_itself["n"]) == (6, 10)
    assert (end, code) == (same_end, same_code) == ([TIMEOUT], 1000)


def test_check_41_both_ways(talks: Runner) -> None:
    with talking(talks, "/bidi") as socket:
        send(socket, n=1)
        assert [receive(socket)["n"] for _ in range(2)] == [2, 3]
        send(socket, n=5)
        got, code = until_closed(socket)

    assert [each["n"] for each in got[:2]] == [6, 7]
    assert (got[2:], code) == ([TIMEOUT], 1000)


def test_a_stream_of_frames_that_fails_says_so(talks: Runner) -> None:
    with talking(talks, "/server-fails") as socket:
        send(socket, n=1)

        got, code = until_closed(socket)

    assert (got[0]["n"], got[1:], code) == (1, [failed("out of frames")], 1000)


# --- leaving


def vanish(socket: ClientConnection) -> None:
    """Drop the connection without a close frame."""
    socket.socket.shutdown(2)


@pytest.mark.parametrize("path", ["/spins", "/waits"])
def test_who_leaves_stops_the_call_that_runs_for_them(talks: Runner, path: str) -> None:
    word = {"/spins": "spun", "/waits": "waited"}[path]
    said = len(talks.events("app.output", text=word))
    with talking(talks, path, additional_headers={"x-fal-request-id": f"left{path}"}) as socket:
        began = {"/spins": "spinning", "/waits": "waiting"}[path]
        send(socket, n=1)
        talks.wait_for("app.output", text=began)
        vanish(socket)

    line = talks.wait_for("request.finished", request_id=f"left{path}")
    talks.wait_for("app.output", text=word, times=said + 1)
    assert (line["ended"], line["reason"]) == ("client", "client_disconnected")


def test_behaviour_36_ten_clients_that_vanish_leave_nothing_behind() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner:
        paths = ["/realtime", "/server-endless", "/bidi", "/client", "/ws", "/ws-starlette", "/ws-busy", "/async", "/spins", "/waits"]

        def descriptors() -> int:
            return len(list((Path("/proc") / str(runner.process.pid) / "fd").iterdir()))

        def all_ten() -> int:
            before = len(runner.events("request.finished", method="WS"))
            for count, path in enumerate(paths, before + 1):
                with talking(runner, path) as socket:
                    if not path.startswith("/ws"):
                        send(socket, n=1)
                    vanish(socket)
                runner.wait_for("request.finished", method="WS", times=count)
            return descriptors()

        first, *later = [all_ten() for _ in range(3)]
        assert max(later) <= first + 3  # a connection may still be closing
        assert runner.post("/open").status_code == 200
        with talking(runner, "/realtime") as socket:
            send(socket, n=1)
            assert receive(socket)["n"] == 2


def test_a_server_that_stops_ends_idle_sessions_at_once() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks") as runner, talking(runner, "/realtime") as socket:
        send(socket, n=1)
        receive(socket)
        runner.signal()

        assert until_closed(socket) == ([TIMEOUT], 1000)
        assert runner.wait() == 0


# --- limits


def test_a_message_over_the_limit_closes_with_1009() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks", "--max-message-bytes", "1000") as runner:
        with talking(runner, "/realtime") as socket:
            send(socket, n=1, data=b"x" * 900)
            assert receive(socket)["n"] == 2
            send(socket, n=1, data=b"x" * 2000)
            assert until_closed(socket) == ([], 1009)
        assert runner.wait_for("request.finished", path="/realtime")


def test_messages_that_come_too_fast_wait_and_none_is_lost() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks", "--max-messages-per-second", "50") as runner, talking(runner, "/realtime") as socket:
        for n in range(80):
            send(socket, n=n)

        assert [receive(socket)["n"] for n in range(80)] == [n * 2 for n in range(80)]


def test_nothing_is_compressed(talks: Runner) -> None:
    with talking(talks, "/realtime", compression="deflate") as socket:
        assert "sec-websocket-extensions" not in socket.response.headers


# --- the handshake


@pytest.mark.parametrize("path", ["/nope", "/open", "/ws-refuses"])
def test_what_is_no_socket_refuses_the_handshake(talks: Runner, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, talking(talks, path):
        pass

    assert refused.value.response.status_code == 403


GUARDED = """
import runner
from runner.plugins.hookspecs import hookimpl

@hookimpl
def intercept_requests(service):
    def look(request):
        token = request.query.get("fal_jwt_token", [""])[0] or request.headers.get("authorization", "").removeprefix("Key ")
        return None if token == "good" else runner.json_response({"detail": "no entry"}, status=401)
    return look
"""


def test_check_44_one_check_guards_requests_and_sockets_by_header_and_by_token(tmp_path: Path) -> None:
    guard = tmp_path / "guard.py"
    guard.write_text(GUARDED)
    with serving(f"{APPS / 'talks.py'}:Talks", "--plugin", str(guard)) as runner:
        for path, headers in (("/realtime", {"authorization": "Key good"}), ("/realtime?fal_jwt_token=good", {})):
            with talking(runner, path, additional_headers=headers) as socket:
                send(socket, n=1)
                assert receive(socket)["n"] == 2
        with pytest.raises(InvalidStatus) as refused, talking(runner, "/realtime"):
            pass
        with talking(runner, "/realtime?fal_jwt_token=bad") as socket:
            told = until_closed(socket)
        answer = runner.post("/open")

    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body or b"") == {"detail": "no entry"}
    assert told == ([{"status": "error", "error": "Unauthorized"}], 1008)
    assert answer.status_code == 401


def test_check_44_with_keys_a_socket_opens_by_key_and_by_token_and_not_otherwise() -> None:
    with serving(f"{APPS / 'talks.py'}:Talks", "--auth-key", "id:secret") as runner:
        key = {"authorization": "Key id:secret"}
        token = runner.post("/tokens/", {"allowed_apps": ["talks"], "token_expiration": 120}, headers=key).json()
        for path, headers in (("/realtime", key), (f"/run/local/talks/realtime?fal_jwt_token={token}", {})):
            with talking(runner, path, additional_headers=headers) as socket:
                send(socket, n=1)
                assert receive(socket)["n"] == 2
        with pytest.raises(InvalidStatus) as refused, talking(runner, "/realtime"):
            pass
        with talking(runner, "/realtime?fal_jwt_token=forged") as socket:
            told = until_closed(socket)

    assert refused.value.response.status_code == 401
    assert told == ([{"status": "error", "error": "Unauthorized"}], 1008)


# --- raw sockets


@pytest.mark.parametrize("prefix", ["", "/run/local/talks"])
def test_a_raw_socket_is_its_author_s(talks: Runner, prefix: str) -> None:
    with talking(talks, f"{prefix}/ws?q=1") as socket:
        assert socket.response.headers["x-own"] == "yes"
        assert json.loads(socket.recv()) == {"path": "/ws", "q": "1"}
        socket.send("a")
        socket.send(b"b")
        assert [socket.recv(), socket.recv()] == [b"A", b"B"]
        socket.send("bye")
        assert until_closed(socket) == ([], 1000)


def test_a_raw_socket_may_be_starlette_s(talks: Runner) -> None:
    with talking(talks, "/ws-starlette", additional_headers={"x-fal-request-id": "starlette"}) as socket:
        socket.send("a")
        assert socket.recv() == "A"

    line = talks.wait_for("request.finished", request_id="starlette")
    assert (line["ended"], line["status"]) == ("client", 101)
    assert not talks.events("request.failed", request_id="starlette")


@pytest.mark.parametrize(("word", "code"), [("crash", 1011), ("close", 4001)])
def test_a_raw_socket_ends_with_the_code_that_tells_why(talks: Runner, word: str, code: int) -> None:
    with talking(talks, "/ws") as socket:
        socket.recv()
        socket.send(word)

        assert until_closed(socket) == ([], code)


def test_a_raw_socket_that_does_not_listen_is_stopped_when_its_client_leaves(talks: Runner) -> None:
    with talking(talks, "/ws-busy"):
        pass

    talks.wait_for("app.output", text="busy no more")


# --- in the document


def test_check_25_realtime_is_in_the_document_with_its_protocol_and_a_mirror(talks: Runner) -> None:
    document = talks.get("/openapi.json").json()

    modes = {path: item.get("x-fal-protocol", {}).get("realtimeMode") for path, item in document["paths"].items()}
    assert modes["/realtime"] == "unary"
    assert modes["/server"] == modes["/server-async"] == "server_streaming"
    assert (modes["/client"], modes["/bidi"]) == ("client_streaming", "bidi")
    assert document["paths"]["/buffered"]["x-fal-protocol"] == {
        "type": "realtime",
        "operationId": "buffered",
        "config": {"buffering": 1, "sessionTimeout": None, "maxBatchSize": 1},
        "contentType": "application/msgpack",
        "realtimeMode": "unary",
    }
    assert document["paths"]["/realtime"]["post"]["operationId"] == "double_post"
    assert document["paths"]["/bidi"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Frame")
    assert document["paths"]["/ws"] == {
        "x-fal-protocol": {
            "type": "websocket",
            "operationId": "ws",
            "config": {"buffering": None, "sessionTimeout": None, "maxBatchSize": 1},
        }
    }
