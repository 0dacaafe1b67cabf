"""A request's prints and log lines are its own, and ours are there whatever the app does (contract 11.1; behaviour 20)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving import Runner, serving, written

APP = """
import asyncio, concurrent.futures, logging, sys, threading
import structlog
import runner

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # as a package does unasked, say
EARLY = logging.StreamHandler()  # it keeps the stream of this moment
EARLY.setFormatter(logging.Formatter("early %(message)s"))
early = logging.getLogger("early")
early.addHandler(EARLY)
early.propagate = False

class Library(threading.Thread):
    def __init__(self, word): 
        super().__init__()
        self.word = word
    def run(self): print("subclass", self.word)

def speak(word):
    print("printed", word)
    print("to stderr", word, file=sys.stderr)
    early.warning(word)
    logging.getLogger("library").info("logged %s", word)
    structlog.get_logger().warning("structured", word=word)
    try:
        raise LookupError(word)
    except LookupError:
        logging.exception("failed")
    for thread in (threading.Thread(target=print, args=("thread", word)), Library(word)):
        thread.start()
        thread.join()

class Talking(runner.App, max_multiplexing=5{options}):
    def setup(self):
        self.everyone = threading.Barrier(5)
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.pool.submit(print, "pool is up").result()
        print("setting up")
        {setup}

    @runner.endpoint("/alone")
    def alone(self, word: str) -> str:
        speak(word)
        return word

    @runner.endpoint("/")
    def run(self, word: str) -> str:
        self.everyone.wait()
        speak(word)
        self.pool.submit(print, "pool", word).result()
        self.everyone.wait()
        return word

    @runner.endpoint("/async")
    async def on_loop(self, word: str) -> str:
        await asyncio.sleep(0)
        speak(word)
        await asyncio.get_running_loop().run_in_executor(self.pool, print, "pool", word)
        await asyncio.to_thread(print, "to_thread", word)
        return word

    @runner.endpoint("/bug")
    def bug(self) -> str:
        raise LookupError("a bug")
"""
# What libraries do to those who import them.
HIJACK = """
        import io, logging.config, structlog.processors
        structlog.configure(processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.PrintLoggerFactory())
        logging.basicConfig(force=True, level=logging.INFO, format="theirs %(message)s")
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True, "root": {"level": "INFO", "handlers": ["theirs"]},
            "handlers": {"theirs": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}}})
        logging.getLogger("library").disabled = False  # it was imported later, say
        self.kept = sys.stderr
        sys.stderr = io.StringIO()
"""


def said(word: str, *, pool: str) -> list[str]:
    traceback = "LookupError: " + word
    lines = [f"printed {word}", f"to stderr {word}", f"early {word}", f"logged {word}", f"structured word={word}"]
    return [*lines, traceback, f"thread {word}", f"subclass {word}", f"{pool} {word}"]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("talking")
    app = written(folder, APP.replace("{options}", "").replace("{setup}", "pass"))
    with serving(app, "--data-dir", str(folder / "data")) as runner:
        yield runner


def lines_of(runner: Runner, request_id: str | None) -> list[dict[str, Any]]:
    return [line for line in runner.lines if line["event"] != "raw" and line.get("request_id") == request_id]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    """What each line says, its traceback by the last line."""
    found = []
    for line in lines:
        text = line.get("text") or line["event"] + (f" word={line['word']}" if "word" in line else "")
        found.append(line["exception"].splitlines()[-1] if "exception" in line else text)
    return found


def test_behaviour_20_five_requests_at_once_print_and_log_each_under_its_own_id_and_setup_under_none(talking: Runner) -> None:
    words = [f"w{n}" for n in range(5)]
    with ThreadPoolExecutor(5) as callers:
        list(callers.map(lambda word: talking.post(f"/?word={word}", headers={"x-fal-request-id": word}), words))
    for word in words:
        talking.wait_for("request.finished", request_id=word)

    for word in words:
        (*lines, last) = texts(lines_of(talking, word))
        assert sorted(lines) == sorted(said(word, pool="pool"))
        assert last == "request.finished"
    assert {"setting up", "pool is up"} <= set(texts(lines_of(talking, None)))
    assert not [line for line in talking.lines if line["event"] == "raw"], "what goes past the log belongs to nobody"


def test_an_async_methods_lines_and_those_of_threads_it_starts_are_its_requests(talking: Runner) -> None:
    talking.post("/async?word=soon", headers={"x-fal-request-id": "async"})
    talking.wait_for("request.finished", request_id="async")

    lines = texts(lines_of(talking, "async"))
    assert sorted(lines[:-1]) == sorted([*said("soon", pool="pool"), "to_thread soon"])


def jobs_logs(runner: Runner, path: str) -> list[dict[str, Any]]:
    job = runner.post(f"/queue/local/talking{path}").json()
    with runner.client() as client, client.stream("GET", job["status_url"] + "/stream?logs=1") as told:
        list(told.iter_lines())
    found: list[dict[str, Any]] = runner.get(job["status_url"] + "?logs=1").json()["logs"]
    assert all(line["labels"] == {"fal_request_id": job["request_id"], "fal_endpoint": path.partition("?")[0]} for line in found)
    return found


def test_a_jobs_logs_are_what_it_printed_and_what_it_logged_by_level(talking: Runner) -> None:
    """Contract 11.1; check 48. Our own lines, such as the one on the bug, are not the caller's to read."""
    found = [(line["level"], line["message"]) for line in jobs_logs(talking, "/alone?word=x")]

    assert found[:5] == [
        ("STDOUT", "printed x"), ("STDERR", "to stderr x"), ("STDERR", "early x"),
        ("INFO", "logged x"), ("WARN", "structured word=x"),
    ]  # fmt: skip
    level, message = found[5]
    assert level == "ERROR"
    assert message.startswith("failed\nTraceback")
    assert message.endswith("LookupError: x")
    assert found[6:] == [("STDOUT", "thread x"), ("STDOUT", "subclass x")]
    assert jobs_logs(talking, "/bug") == []


def test_private_logs_are_kept_from_callers(tmp_path: Path) -> None:
    """And a library that turns structlog, `logging` and `sys.stderr` to itself in `setup()` does not silence our log."""
    app = written(tmp_path, APP.replace("{options}", ", private_logs=True").replace("{setup}", HIJACK.strip()))
    with serving(app, "--data-dir", str(tmp_path / "data")) as runner:
        assert jobs_logs(runner, "/alone?word=x") == []
        finished = runner.wait_for("request.finished", path="/alone")
        runner.post("/bug", headers={"x-fal-request-id": "bug"})
        failed = runner.wait_for("request.failed", request_id="bug")
        runner.wait_for("request.finished", request_id="bug")
        code = runner.stop()

    texts = {line["text"] for line in runner.events("app.output", request_id=finished["request_id"])}
    assert {"printed x", "thread x", "subclass x"} <= texts
    assert "word='x' event='structured'" in texts, "their own way, and yet the request's"
    assert "LookupError: a bug" in failed["exception"]
    assert code == 0
    assert runner.events("app.ready")
