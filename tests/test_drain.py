"""A stop under load: who runs is answered, who comes is told, who only reads is let go (behaviours 3 and 4; check 8).

`make drain-test` runs this file on every Python that is at hand.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from pathlib import Path

import httpx
from serving import GUARD_SECONDS, Runner, serving, written

GRACE = 3

APP = f"""
import asyncio, os, pathlib, threading, time
import runner

class Busy(runner.App):
    max_multiplexing = 16
    termination_grace_period_seconds = {GRACE}

    def teardown(self):
        print("teardown")

    @runner.endpoint("/")
    def run(self) -> int:
        return sum(range(1000))

    @runner.endpoint("/until")
    def until(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        return "done"

    @runner.endpoint("/until-async")
    async def until_async(self, path: str) -> str:
        print("begun")
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        return "done"

    @runner.endpoint("/stream")
    def stream(self, path: str) -> runner.Iterator[str]:
        yield "begun"
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        yield "done"

    @runner.endpoint("/finish", on_disconnect="finish")
    def finish(self, path: str) -> runner.Iterator[str]:
        yield "begun"
        print("begun")
        while not os.path.exists(path):
            time.sleep(0.002)
        yield "done"

    @runner.endpoint("/deaf")
    def deaf(self) -> str:
        print("begun")
        __import__("ctypes").CDLL(None).sleep(600)
""".replace("runner.Iterator", "__import__('collections').abc.Iterator")


async def call_until_refused(client: httpx.AsyncClient) -> Counter[str]:
    """Call again and again, each answer followed by the next call, until the server is gone."""
    outcomes: Counter[str] = Counter()
    while True:
        try:
            response = await client.post("/")
        except httpx.ConnectError:
            return outcomes
        except httpx.TransportError as error:  # of a call that was sent when the connection was closed
            outcomes[type(error).__name__] += 1
            return outcomes
        outcomes[str(response.status_code)] += 1
        if response.status_code == 503:
            assert response.json()["error_type"] == "runner_scheduling_failure"
            assert response.headers["connection"] == "close"
            return outcomes


def test_behaviour_3_a_stop_under_load_answers_every_running_request_and_cuts_none(tmp_path: Path) -> None:
    """Check 8; 16 requests run, 20 callers go on calling; exit code 0, within the grace period and a second."""
    gate = tmp_path / "gate"

    async def load(runner: Runner) -> tuple[list[httpx.Response], list[Counter[str]]]:
        async with httpx.AsyncClient(base_url=runner.url, timeout=GUARD_SECONDS, trust_env=False, limits=httpx.Limits(max_connections=None)) as client:
            paths = ["/until", "/until-async", "/stream", "/finish"] * 3
            running = [asyncio.create_task(client.post(f"{path}?path={gate}")) for path in paths]
            await asyncio.to_thread(runner.wait_for, "app.output", text="begun", times=len(paths))
            calling = [asyncio.create_task(call_until_refused(client)) for _ in range(20)]
            await client.post("/")
            runner.signal()
            await asyncio.to_thread(runner.wait_for, "server.stopping")
            refused = await asyncio.gather(*calling)
            gate.touch()
            return await asyncio.gather(*running), refused

    with serving(written(tmp_path, APP)) as runner:
        answers, refused = asyncio.run(load(runner))
        code = runner.wait()

    assert [answer.status_code for answer in answers] == [200] * 12
    assert all(answer.text.endswith(('"done"', '"done"\n\n')) for answer in answers)
    assert {answer.headers.get("connection") for answer in answers if answer.headers.get("content-length")} == {"close"}
    outcomes = sum(refused, Counter())
    assert set(outcomes) == {"200", "503"}, "nobody is cut"
    assert outcomes["503"] == 20
    assert [line["text"] for line in runner.events("app.output")].count("teardown") == 1
    assert code == 0


def test_behaviour_4_a_stop_ends_in_time_whatever_holds_on(tmp_path: Path) -> None:
    """One call into C that does not end, and one that never looks up: both answered, and the process is gone."""
    with serving(written(tmp_path, APP)) as runner:
        callers = [runner.call(f"/{path}", path[:4]) for path in ("deaf", f"until?path={tmp_path / 'never'}")]
        runner.wait_for("app.output", text="begun", times=2)
        began = time.monotonic()
        runner.signal()
        code = runner.wait()
        took = time.monotonic() - began
        answers = [caller.recv(1000) for caller in callers]
        for caller in callers:
            caller.close()

    assert [b" 503 " in answer and b"runner_disconnected" in answer for answer in answers] == [True, True]
    assert code == 0
    assert took < GRACE + 1, "by its own timer, which no load delays by much"


def test_behaviour_4_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(written(tmp_path, APP)) as runner, runner.call("/deaf", "deaf"):
        runner.wait_for("app.output", text="begun")
        runner.signal()
        runner.wait_for("server.stopping")
        runner.signal()

        assert runner.wait() == 128 + signal.SIGTERM


def ids(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


def kinds(text: str) -> list[str]:
    return [kind for kind in re.findall(r"^event: (\w+)$", text, re.MULTILINE) if kind != "log"]


def test_readers_of_events_hold_no_drain_up_and_can_go_on_where_they_were(tmp_path: Path) -> None:
    """Behaviour 32: of a job that waits and one that is put back; the next process says what is lost."""
    app = written(tmp_path, APP.replace("max_multiplexing = 16", "max_multiplexing = 1").replace(f"seconds = {GRACE}", "seconds = 3600"))
    gate, folder = tmp_path / "gate", ("--data-dir", str(tmp_path / "data"))
    queue = "/queue/local/busy"
    with serving(app, *folder) as first, first.client() as client:
        direct = first.call(f"/until?path={gate}", "direct")
        first.wait_for("app.output", text="begun")
        id = client.post(f"{queue}/until?path={gate}").json()["request_id"]
        with client.stream("GET", f"/requests/{id}/events") as events, client.stream("GET", f"{queue}/until/requests/{id}/status/stream") as status:
            assert events.status_code == status.status_code == 200
            lines, statuses = events.iter_lines(), status.iter_lines()
            seen = [next(lines)]
            assert "IN_QUEUE" in next(statuses)
            first.signal()
            while first.get("/health/ready").json()["status"] != "draining":
                pass
            gate.touch()  # the direct request ends; the grace period would last an hour
            seen += list(lines)
            try:
                last = [line for line in statuses if line][-1]
            except httpx.RemoteProtocolError:
                last = ""
        direct.close()
        assert first.wait() == 0

    assert ids("\n".join(seen)) == [1]
    assert "COMPLETED" not in last
    gate.unlink()
    with serving(app, *folder) as second, second.client() as client:
        second.wait_for("app.output", text="begun")
        with client.stream("GET", f"/requests/{id}/events", headers={"last-event-id": "1"}) as events:
            gate.touch()
            text = "\n".join(events.iter_lines())
        fresh = client.get(f"/requests/{id}/events").text

    assert kinds(text) == ["gap", "queued", "started", "output", "completed"]
    assert ids(text) == sorted(set(ids(text)))
    assert ids(text)[0] > 1
    assert kinds(fresh) == ["queued", "started", "output", "completed"]
