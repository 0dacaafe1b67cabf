"""A runner that is killed again and again at random moments under load, and what must be true afterwards.

`python tests/crashing.py 2000` is the long version of what `test_queue_crash.py` does.
"""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving import GUARD_SECONDS, Runner, serving, written

APP = """
import os, time
import runner

DIARY = os.open({diary!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def noted(event):
    os.write(DIARY, f"{{event}} {{runner.current_request().id}}\\n".encode())

class Crashing(runner.App, name="crashing"):
    max_multiplexing = 2
    termination_grace_period_seconds = 5

    @runner.endpoint("/once")
    def once(self, word: str, seconds: float) -> str:
        noted("began")
        time.sleep(seconds)
        noted("ended")
        return word.upper()

    @runner.endpoint("/safe", retry="safe")
    def safe(self, word: str, seconds: float) -> str:
        return self.once(word, seconds)
"""
BASE = "/queue/local/crashing"
CALLERS = 4


class Load:
    """Callers who submit until the server is gone, and what was accepted from them."""

    def __init__(self, seed: int) -> None:
        self.accepted: dict[str, tuple[str, str]] = {}  # path and word by id
        self._random = random.Random(seed)
        self._count = 0

    def while_it_lives(self, runner: Runner) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._submit, args=(runner.port, self._random.random())) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        return threads

    def _submit(self, port: int, seed: float) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GUARD_SECONDS)
        with suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
            while True:
                path, word = chance.choice(("/once", "/safe")), f"{seed}-{chance.random()}"
                body = json.dumps({"word": word, "seconds": chance.choice((0, 0.001, 0.01))})
                connection.request("POST", BASE + path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                told = json.loads(response.read())
                assert response.status == 200, told
                self.accepted[told["request_id"]] = path, word
        connection.close()


def crash(folder: Path, rounds: int, seed: int) -> Counter[str]:
    """Kill a runner `rounds` times, then let one end all jobs. Returns how they ended; asserts that this is right."""
    diary, chance, load = folder / "diary", random.Random(seed), Load(seed)
    app = written(folder, APP.format(diary=str(diary)))
    for _ in range(rounds):
        with serving(app, "--data-dir", str(folder / "data"), ready=chance.random() < 0.8) as runner:
            runner.wait_for("server.listening")
            callers = load.while_it_lives(runner)
            with suppress(subprocess.TimeoutExpired):
                runner.process.wait(chance.random() ** 2 * 0.8)  # a random moment, more often an early one
                raise AssertionError(f"the runner ended by itself:\n{runner.log}")
            runner.process.kill()
            for caller in callers:
                caller.join(GUARD_SECONDS)
    with serving(app, "--data-dir", str(folder / "data")) as runner, runner.client() as client:
        ends = {id: ended(client, id) for id in load.accepted}
    return judged(load.accepted, ends, diary.read_text().splitlines())


def ended(client: Any, id: str) -> tuple[dict[str, Any], Any]:
    """The last status and the result of a job."""
    stream = client.get(f"{BASE}/requests/{id}/status/stream")
    assert stream.status_code == 200, f"{id} was accepted and is lost"
    statuses = [json.loads(line.removeprefix("data: ")) for line in stream.text.splitlines() if line.startswith("data: ")]
    assert [status["status"] for status in statuses].count("COMPLETED") == 1
    return statuses[-1], client.get(f"{BASE}/requests/{id}").json()


def judged(accepted: dict[str, tuple[str, str]], ends: dict[str, tuple[dict[str, Any], Any]], diary: list[str]) -> Counter[str]:
    lines = Counter(diary)
    outcomes: Counter[str] = Counter()
    for id, (path, word) in accepted.items():
        status, result = ends[id]
        began, finished = lines[f"began {id}"], lines[f"ended {id}"]
        assert status["status"] == "COMPLETED"
        assert began <= (1 if path == "/once" else 2), f"{id} at {path} began {began} times"
        if "error" not in status:
            assert result == word.upper()
            assert finished >= 1
            outcomes["done" if began == 1 else "done the second time"] += 1
            continue
        assert status["error_type"] == "runner_disconnected", status
        outcomes["lost with the process" if path == "/once" else "parked"] += 1
        assert path == "/once" or "twice" in status["error"]
    return outcomes


if __name__ == "__main__":
    rounds, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = crash(Path(folder), rounds, seed)
    sys.stdout.write(f"{rounds} kills, seed {seed}: {sum(outcomes.values())} jobs accepted, {dict(outcomes)}\n")
