"""Runners that are killed again and again at random moments under load, and what must be true afterwards.

`python tests/crashing.py 2000` is the long version of what `test_queue_crash.py` does. A cycle costs
a tenth of a second: each runner is forked by a process that has imported all of it (and runs `main`
as ever), inherits its listening socket as `--supervise` has it, and its callers never stop calling;
`AT_ONCE` of them, each with a data folder of its own, share the cores. What became of the jobs is
read from the stores at the end. The seed settles who asks for what and when a kill comes, not what
the machine makes of it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent.parent))

from runner.plugins.queue.sqlite import SqliteStore
from runner.schemas.queue import Job, JobOutcome, JobState
from serving import GUARD_SECONDS, HOUSE, inherited, written

APP = """
import os, time
import runner

DIARY = os.open({diary!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def noted(event, word):
    os.write(DIARY, f"{{event}} {{runner.current_request().id}} {{word}}\\n".encode())

class Crashing(runner.App, name="crashing"):
    max_multiplexing = 2
    termination_grace_period_seconds = 5

    @runner.endpoint("/once")
    def once(self, word: str, seconds: float, more: str = "") -> str:
        noted("began", word)
        time.sleep(seconds)
        noted("ended", word)
        return word.upper()

    @runner.endpoint("/safe", retry="safe")
    def safe(self, word: str, seconds: float, more: str = "") -> str:
        return self.once(word, seconds)
"""
FORKING = """
import os, sys
import runner, runner.plugins.server, runner.plugins.observability
from runner.plugins.registry import load_plugins
from runner.schemas.settings import Settings

load_plugins(Settings())  # imports what takes long
for line in sys.stdin:
    if not (pid := os.fork()):
        os._exit(runner.main(sys.argv[1:]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
BASE = "/queue/local/crashing"
AT_ONCE = 2  # runners
CALLERS = 3  # of each
BURST = 8  # jobs that a caller submits before it looks at one of them
LARGE = 100_000  # bytes that make an input a file of its own
STARTING_SECONDS, LOADED_SECONDS = 0.15, 0.2  # within which a kill comes: from its start, from its first accepted job


class Wish(NamedTuple):
    """What a caller wanted of an accepted job."""

    path: str
    word: str


class Load:
    """The callers of one runner, and what it told them. They call until they are told to stop, whoever answers."""

    def __init__(self, port: int, seed: str) -> None:
        self.accepted: dict[str, Wish] = {}
        self.cancels: dict[str, set[str]] = defaultdict(set)  # what each cancel was answered, "" when it was not
        self.results: dict[str, tuple[int, bytes]] = {}
        self.keyed: dict[str, set[str]] = defaultdict(set)  # the ids that were told for one idempotency key
        self.problems: list[str] = []
        self._port, self._news, self._ends = port, threading.Condition(), False
        self._threads = [threading.Thread(target=self._call, args=(random.Random(f"{seed}-{n}"), n)) for n in range(CALLERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        for thread in self._threads:
            thread.join(GUARD_SECONDS)

    def wait_for_more_than(self, count: int) -> bool:
        """Wait until so many jobs were accepted; whether they were, in time."""
        with self._news:
            return self._news.wait_for(lambda: len(self.accepted) > count or bool(self.problems), GUARD_SECONDS)

    def _call(self, chance: random.Random, number: int) -> None:
        count = 0
        while not self._ends and not self.problems:
            count += 1
            with suppress(OSError, http.client.HTTPException, json.JSONDecodeError):  # it was killed
                self._talk(chance, f"{number}-{count}")

    def _talk(self, chance: random.Random, name: str) -> None:
        """Some jobs, a cancel perhaps, and one result."""
        try:
            with closing(Caller(self._port)) as caller:
                ids = [self._submit(caller, chance, f"w-{name}-{at}") for at in range(chance.randint(1, BURST))]
                if chance.random() < 0.3:
                    self._cancel(caller, chance.choice(ids))
                id = chance.choice(ids)
                caller.ask("GET", f"{BASE}/requests/{id}/status/stream")
                self._look(caller, id)
        except AssertionError as error:
            self.problems.append(str(error))

    def _submit(self, caller: Caller, chance: random.Random, word: str) -> str:
        """One job. A caller who gave a key asks again when it got no answer."""
        path, key = chance.choice(("/once", "/safe")), word if chance.random() < 0.3 else ""
        more = "x" * LARGE if chance.random() < 0.05 else ""
        body = json.dumps({"word": word, "seconds": chance.choice((0, 0.001, 0.01)), "more": more})
        while True:
            try:
                status, answer = caller.ask("POST", BASE + path, body, {"idempotency-key": key} if key else {})
                told = json.loads(answer)
                break
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                if not key or self._ends:
                    raise
                caller.close()  # the next request opens it anew
        assert status == 200, f"a submit was answered {status} {answer!r}"
        id = str(told["request_id"])
        if key:
            self.keyed[key].add(id)
        with self._news:
            self.accepted[id] = Wish(path, word)
            self._news.notify_all()
        return id

    def _cancel(self, caller: Caller, id: str) -> None:
        self.cancels[id].add("")
        status, answer = caller.ask("PUT", f"{BASE}/requests/{id}/cancel")
        self.cancels[id].add(str(json.loads(answer)["status"]))
        assert status in (200, 202, 400), f"{id} was accepted, and its cancel answered {status}"

    def _look(self, caller: Caller, id: str) -> None:
        result = caller.ask("GET", f"{BASE}/requests/{id}")
        assert result[0] in (200, 499, 503), f"{id} was accepted, and its result is {result}"
        assert self.results.setdefault(id, result) == result, f"the result of {id} has changed"


class Caller:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GUARD_SECONDS)

    def ask(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        self.connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
        response = self.connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self.connection.close()


class Forker:
    """A process that has imported the runner, and forks one when asked. One lives at a time."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FORKING, *arguments],
                cwd=folder, env={**inherited(), "PYTHONPATH": str(HOUSE)}, pass_fds=[int(arguments[-1])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._pid = 0

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")[-8000:]

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._pid = self._told()

    def end(self, number: signal.Signals) -> int:
        """Send this signal; return the exit code."""
        os.kill(self._pid, number)
        code, self._pid = self._told(), 0
        return code

    def _told(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the forking process has ended:\n{self.log}"
        return int(line)

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._process.communicate(timeout=GUARD_SECONDS)


@contextmanager
def forking(folder: Path) -> Any:
    """A forker for the app of `folder`, and the port that its runners answer on."""
    app = written(folder, APP.format(diary=str(folder / "diary")))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as door:
        arguments = [str(app), "--data-dir", str(folder / "data"), "--log-level", "warning", "--listen-fd", str(door.fileno())]
        forker = Forker(folder, arguments)
        try:
            yield forker, door.getsockname()[1]
        finally:
            forker.close()


def crash(folder: Path, rounds: int, seed: int) -> Counter[str]:
    """Kill runners `rounds` times in all, then let their jobs end. Returns how they ended; asserts that this is right."""
    shares = [rounds // AT_ONCE + (number < rounds % AT_ONCE) for number in range(AT_ONCE)]
    folders = [folder / str(number) for number in range(AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(crash_one, folders, shares, [f"{seed}-{number}" for number in range(AT_ONCE)]), Counter())


def crash_one(folder: Path, rounds: int, seed: str) -> Counter[str]:
    folder.mkdir()
    chance = random.Random(seed)
    with forking(folder) as (forker, port):
        with Load(port, seed) as load:
            for _ in range(rounds):
                accepted, loaded = len(load.accepted), chance.random() < 0.8
                forker.start()
                if loaded:
                    assert load.wait_for_more_than(accepted), f"nothing was accepted any more:\n{forker.log}"
                threading.Event().wait(chance.random() ** 2 * (LOADED_SECONDS if loaded else STARTING_SECONDS))
                assert forker.end(signal.SIGKILL) == -signal.SIGKILL, f"it ended by itself:\n{forker.log}"
            load._ends = True
            forker.start()
        assert not load.problems, load.problems
        shown = ended(port, folder / "data" / "queue", load)
        assert forker.end(signal.SIGTERM) == 0, forker.log
    assert not list((folder / "data" / "queue").glob("payloads/*")), "inputs of ended jobs are still there"
    return judged(load, kept(folder / "data" / "queue"), shown, (folder / "diary").read_text().splitlines())


def ended(port: int, folder: Path, load: Load) -> dict[str, tuple[dict[str, Any], int, bytes]]:
    """Wait for the end of every job. Returns status and result, as served, of those that make the best stories."""

    def follow(caller: Caller, id: str) -> dict[str, Any]:
        status, events = caller.ask("GET", f"{BASE}/requests/{id}/status/stream")
        assert status == 200, f"{id} was accepted and is lost"
        statuses = [json.loads(line[6:]) for line in events.decode().splitlines() if line.startswith("data: ")]
        assert [told["status"] for told in statuses].count("COMPLETED") == 1
        return dict(statuses[-1])

    with closing(Caller(port)) as caller, closing(sqlite3.connect(folder / "queue.db")) as reading:
        caller.ask("GET", f"{BASE}/requests/nobody/status")  # from now on the store is open
        for (id,) in reading.execute("SELECT id FROM jobs WHERE ended IS NULL ORDER BY number").fetchall():
            follow(caller, id)
        odd = [id for (id,) in reading.execute("SELECT id FROM jobs WHERE state <> 'done'").fetchall()]
        return {id: (follow(caller, id), *caller.ask("GET", f"{BASE}/requests/{id}")) for id in [*odd[:50], *list(load.accepted)[-50:]]}


def kept(folder: Path) -> dict[str, tuple[Job, JobOutcome]]:
    """All jobs of a store that nobody uses any more."""
    with closing(sqlite3.connect(folder / "queue.db")) as reading:
        assert reading.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ids = [id for (id,) in reading.execute("SELECT id FROM jobs").fetchall()]

    async def read() -> dict[str, tuple[Job, JobOutcome]]:
        store = SqliteStore(folder)
        assert await store.open() == [], "some jobs have not ended"
        jobs = await asyncio.gather(*map(store.load, ids))
        outcomes = await asyncio.gather(*map(store.outcome, ids))
        await store.close()
        return {job.id: (job, outcome) for job, outcome in zip(jobs, outcomes, strict=True) if job and outcome}

    found = asyncio.run(read())
    assert found.keys() == set(ids), "an ended job has no outcome"
    return found


def judged(
    load: Load,
    jobs: dict[str, tuple[Job, JobOutcome]],
    shown: dict[str, tuple[dict[str, Any], int, bytes]],
    diary: list[str],
) -> Counter[str]:
    """How the accepted jobs ended; asserts that each did in the one way that it may."""
    assert not (lost := load.accepted.keys() - jobs.keys()), f"{lost} were accepted and are lost"
    began, finished = Counter[str](), Counter[str]()
    runs_of: dict[str, set[str]] = defaultdict(set)
    for event, id, word in map(str.split, diary):
        (began if event == "began" else finished)[id] += 1
        runs_of[word].add(id)
    assert all(len(ids) == 1 for ids in load.keyed.values()), "two jobs for one key"
    assert all(len(runs_of[word]) <= 1 for word in load.keyed), "two jobs for one key ran"

    outcomes: Counter[str] = Counter()
    for id, (job, outcome) in jobs.items():
        assert began[id] <= min(job.attempts, 1 if job.path == "/once" else 2), f"{id} at {job.path} began {began[id]} times"
        match job.state:
            case JobState.DONE:
                assert finished[id] >= 1
                assert id not in load.accepted or outcome.body == json.dumps(load.accepted[id].word.upper()).encode()
                how = "done" if job.crashes == 0 else "done the second time"
            case JobState.CANCELLED:
                assert id in load.cancels
                how = "cancelled"
            case JobState.FAILED:
                assert (job.path, job.error_type, outcome.status, job.attempts) == ("/once", "runner_disconnected", 503, 1)
                how = "lost with the process"
            case _:
                assert (job.state, job.path, job.crashes) == (JobState.PARKED, "/safe", 2)
                how = "parked"
        if "OK" in load.cancels.get(id, ()):  # told so while it waited
            assert job.state is JobState.CANCELLED
            assert began[id] <= job.crashes
        if id in load.results:
            assert load.results[id] == (outcome.status, outcome.body), f"the result of {id} has changed"
        if id in shown:
            status, code, body = shown[id]
            assert (code, body) == (outcome.status, outcome.body)
            assert (status.get("error"), status.get("error_type")) == (job.error, job.error_type)
        if id in load.accepted:
            outcomes[how] += 1
    return outcomes


if __name__ == "__main__":
    rounds, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    sys.stdout.write(f"{rounds} kills, seed {seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        outcomes = crash(Path(folder), rounds, seed)
    sys.stdout.write(f"{sum(outcomes.values())} jobs accepted: {dict(outcomes)}\n")
