"""The queue's store: what it keeps when the process dies, and what it says when the disk is full."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runner.plugins.queue.contract import Reopen, StoreContract, job, outcome, to
from runner.plugins.queue.sqlite import SqliteStore
from runner.schemas.queue import ENDS, MOVES, JobMove, JobState, Unstorable
from serving import HOUSE


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Reopen]:
    """A store whose forerunner is gone: its lock is let go as the system does when a process dies."""
    opened: list[SqliteStore] = []

    def make() -> SqliteStore:
        for store in opened:
            store._committer.lock.let_go()
        opened.append(SqliteStore(tmp_path / "queue"))
        return opened[-1]

    yield make
    for store in opened:
        store._committer._asked.put(None)
        if (thread := store._committer._thread) is not None:
            thread.join()


class TestSqlite(StoreContract):
    """SQLite passes what every store must pass."""


def test_no_move_leads_out_of_an_end_and_every_state_but_the_first_is_led_to() -> None:
    assert not [move for move, ways in MOVES.items() for state in ways if state in ENDS]
    assert {state for ways in MOVES.values() for state in ways.values()} == set(JobState)


async def test_a_folder_that_is_in_use_is_refused_by_name(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path), SqliteStore(tmp_path)
    await first.open()
    with pytest.raises(Unstorable, match=rf"{tmp_path} is used by another runner \(pid {os.getpid()}\)"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_when_the_disk_is_full_submits_are_refused_and_what_runs_may_end(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.submit(job(), b"{}")
    await store.change("one", to(JobMove.BEGIN))
    full = True

    def fill(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0] if full else 1 << 30
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await store._do(fill)
    async def submit_until_it_is_full() -> None:
        for number in range(200):
            await store.submit(job(f"filler {number}"), b"x" * 5000)

    with pytest.raises(Unstorable, match="full"):
        await submit_until_it_is_full()
    with pytest.raises(Unstorable, match="full"):
        await store.submit(job("another"), b"x" * 5000)
    assert await store.change("one", to(JobMove.FINISH, outcome=outcome(b"fits in the page that its input leaves")))
    full = False
    await store._do(fill)
    await store.submit(job("another"), b"x" * 5000)
    await store.close()


async def test_large_payloads_that_no_row_names_go_with_the_next_start(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.submit(job(), b"x" * 300_000)
    await store.close()
    (tmp_path / "payloads" / "orphan").write_bytes(b"x")

    await store.open()

    assert len(list((tmp_path / "payloads").iterdir())) == 1
    assert await store.input("one") == b"x" * 300_000
    await store.close()


async def test_a_folder_that_cannot_be_made_is_refused_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    store = SqliteStore(tmp_path / "data" / "queue")
    with pytest.raises(Unstorable, match="Not a directory"):
        await store.open()
    (tmp_path / "data").unlink()

    assert await store.open() == []
    await store.close()


def test_the_contract_is_run_by_the_module_that_the_manual_shows(tmp_path: Path) -> None:
    """As whoever writes a store would, beside a good store and one that forgets what it was told at each start."""
    manual = (HOUSE / "docs" / "queue.md").read_text()
    (snippet,) = re.findall(r"```python\n(import pytest\nfrom my_store .+?)```", manual, re.DOTALL)
    for name, disk in (("my_store", "KEPT.setdefault(folder, Disk())"), ("forgetful", "Disk()")):
        source = f"from stores import Disk, MemoryStore\nKEPT = {{}}\ndef MyStore(folder): return MemoryStore({disk})\n"
        (tmp_path / f"{name}.py").write_text(source)
        (tmp_path / f"test_{name}.py").write_text(snippet.replace("my_store", name))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOUSE / "tests"), str(HOUSE)]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "anyio.pytest_plugin", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-rA"]
    told = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60).stdout

    tests = {name for name in vars(StoreContract) if name.startswith("test_")}
    passed = set(re.findall(r"^PASSED test_my_store.py::TestMyStore::(\w+)", told, re.MULTILINE))
    assert passed == tests, told
    assert "FAILED test_forgetful.py::TestMyStore::test_what_was_submitted_is_there_after_the_process_was_killed" in told
