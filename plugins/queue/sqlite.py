"""The queue's own store: one SQLite database below the data folder, no server to start.

One thread owns the connection. It takes whatever has been asked since it last looked and commits
it as one transaction, so that many callers share one commit; the event loop never waits for the
disk. Payloads above `INLINE_BYTES` are files of their own, written before the row that names
them. With `durability = "process"` what is acknowledged survives the death of the process, with
"power" also that of the machine (each commit then waits for the disk).

Some space is held in reserve: when the disk is full, submits are refused and the reserve lets
running jobs end. Two processes cannot share a folder: the second finds it locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import uuid4

import anyio
import msgspec

from ...schemas.queue import (
    Delivery,
    Job,
    JobChange,
    JobHeaders,
    JobOutcome,
    LogLine,
    Unstorable,
    advance_job,
)

INLINE_BYTES = 64 * 1024
LARGEST_BATCH = 512  # changes that share a commit
SWEPT_AT_ONCE = 200  # jobs; between two such steps others are served
RESERVE_BYTES = 4 * 1024 * 1024
PAGES_IN_WAL = 4000  # of 4 KiB, before they are moved into the database: 16 MiB

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT,
    state TEXT NOT NULL,
    record BLOB NOT NULL,
    ended REAL,
    keeps INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_key ON jobs (key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_not_over ON jobs (number) WHERE ended IS NULL;
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (ended, bytes) WHERE ended IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_not_kept ON jobs (ended) WHERE keeps = 0;
CREATE TABLE IF NOT EXISTS payloads (
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    about BLOB,
    body BLOB,
    file TEXT,
    PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliveries (
    id TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due REAL NOT NULL
) WITHOUT ROWID;
"""
VERSION = 1

Kind = Literal["input", "outcome"]
encode = msgspec.msgpack.encode
decode_job = msgspec.msgpack.Decoder(Job).decode


class About(msgspec.Struct, frozen=True):
    """An outcome without its body."""

    status: int
    media_type: str
    headers: JobHeaders
    logs: tuple[LogLine, ...]


class Payload(NamedTuple):
    """A row of `payloads`. The body is in one of the last two."""

    about: bytes
    body: bytes | None
    file: str | None


decode_about = msgspec.msgpack.Decoder(About).decode


class Operation:
    """Something to do in the next transaction, and who waits for it."""

    __slots__ = ("do", "future", "is_vital")

    def __init__(self, do: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any], *, is_vital: bool) -> None:
        self.do, self.future, self.is_vital = do, future, is_vital


class SqliteStore:
    """A `QueueStore` in one folder. Its thread starts with the first call and ends with `close`."""

    def __init__(self, folder: Path, *, durability: Literal["process", "power"] = "process") -> None:
        self._folder, self._payloads = folder, folder / "payloads"
        self._power = durability == "power"
        self._asked: queue.SimpleQueue[Operation | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None  # this and what follows: the thread's
        self._lock: int | None = None
        self._is_full = False  # the reserve was let go

    @property
    def exists(self) -> bool:
        """Whether a runner kept jobs here before."""
        return (self._folder / "queue.db").exists()

    # --- the store

    async def open(self) -> Sequence[Job]:
        def unfinished(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute("SELECT record FROM jobs WHERE ended IS NULL ORDER BY number")
            return [decode_job(record) for (record,) in rows]

        jobs: list[Job] = await self._do(unfinished)
        await anyio.to_thread.run_sync(self._remove_orphans, await self._do(_named_files))
        return jobs

    async def submit(self, job: Job, body: bytes) -> Job:
        inline, file = await self._placed(body)

        def insert(connection: sqlite3.Connection) -> Job:
            if self._is_full:
                raise Unstorable("the disk is full")
            if job.key is not None and (known := _by_key(connection, job.key)) is not None:
                return known
            if _load(connection, job.id) is not None:
                raise KeyError(job.id)
            number = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM jobs").fetchone()[0]
            kept = msgspec.structs.replace(job, number=number)
            connection.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, NULL, ?, ?)",
                (number, kept.id, kept.key, kept.state, encode(kept), kept.keeps, len(body)),
            )
            connection.execute("INSERT INTO payloads VALUES (?, 'input', NULL, ?, ?)", (kept.id, inline, file))
            return kept

        try:
            kept: Job = await self._do(insert)
        except Exception:  # cancelled it may be written yet
            await self._remove(file)
            raise
        if kept.id != job.id:
            await self._remove(file)
        return kept

    async def change(self, id: str, change: JobChange) -> Job | None:
        outcome = change.outcome
        inline, file = await self._placed(outcome.body) if outcome else (None, None)
        let_go: list[str | None] = []

        def apply(connection: sqlite3.Connection) -> Job | None:
            let_go[:] = [file]
            job = _load(connection, id)
            moved = advance_job(job, change) if job is not None else None
            if moved is None:
                return None
            size = len(outcome.body) if outcome else 0
            connection.execute(
                "UPDATE jobs SET state = ?, record = ?, ended = ?, bytes = iif(?, ?, bytes) WHERE number = ?",
                (moved.state, encode(moved), moved.ended, moved.is_over, size, moved.number),
            )
            if outcome is not None:
                about = encode(About(outcome.status, outcome.media_type, outcome.headers, outcome.logs))
                connection.execute("INSERT INTO payloads VALUES (?, 'outcome', ?, ?, ?)", (id, about, inline, file))
            let_go.clear()
            if moved.is_over:
                where = "WHERE id = ? AND kind = 'input'"
                let_go.extend(name for (name,) in connection.execute(f"SELECT file FROM payloads {where}", (id,)))
                connection.execute(f"DELETE FROM payloads {where}", (id,))
                if moved.webhook:
                    connection.execute("INSERT INTO deliveries VALUES (?, ?, 0, 0)", (id, moved.webhook))
            return moved

        try:
            moved: Job | None = await self._do(apply, is_vital=True)
        except Exception:
            await self._remove(file)
            raise
        for name in let_go:
            await self._remove(name)
        return moved

    async def load(self, id: str) -> Job | None:
        job: Job | None = await self._do(lambda connection: _load(connection, id))
        return job

    async def input(self, id: str) -> bytes:
        found = await self._do(lambda connection: _payload_of(connection, id, "input"))
        if found is None:
            raise KeyError(id)
        return await self._body(found)

    async def outcome(self, id: str) -> JobOutcome | None:
        found = await self._do(lambda connection: _payload_of(connection, id, "outcome"))
        if found is None:
            return None
        about, body = decode_about(found.about), await self._body(found)
        return JobOutcome(status=about.status, body=body, media_type=about.media_type, headers=about.headers, logs=about.logs)

    async def deliveries(self) -> Sequence[Delivery]:
        rows = await self._do(lambda c: c.execute("SELECT id, url, attempts, due FROM deliveries").fetchall())
        return [Delivery(id=id, url=url, attempts=attempts, due=due) for id, url, attempts, due in rows]

    async def deliver_later(self, id: str, due: float) -> None:
        await self._do(
            lambda c: c.execute("UPDATE deliveries SET attempts = attempts + 1, due = ? WHERE id = ?", (due, id)).rowcount,
            is_vital=True,
        )

    async def delivered(self, id: str) -> None:
        await self._do(lambda c: c.execute("DELETE FROM deliveries WHERE id = ?", (id,)).rowcount, is_vital=True)

    async def sweep(self, *, ended_before: float, let_go_before: float, budget_bytes: int) -> int:
        def forget_some(connection: sqlite3.Connection) -> tuple[int, list[str | None]]:
            over = "ended IS NOT NULL AND id NOT IN (SELECT id FROM deliveries) ORDER BY ended LIMIT ?"
            rows = connection.execute(f"SELECT id FROM jobs WHERE keeps = 0 AND ended < ? AND {over}", (let_go_before, SWEPT_AT_ONCE))
            gone = {id for (id,) in rows}
            if not gone:
                (held,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM jobs WHERE ended IS NOT NULL").fetchone()
                for id, ended, size in connection.execute(f"SELECT id, ended, bytes FROM jobs WHERE {over}", (SWEPT_AT_ONCE,)):
                    if ended >= ended_before and held <= budget_bytes:
                        break
                    gone.add(id)
                    held -= size
            named = [(id,) for id in gone]
            files = [file for id in named for (file,) in connection.execute("SELECT file FROM payloads WHERE id = ?", id)]
            for table in ("jobs", "payloads"):
                connection.executemany(f"DELETE FROM {table} WHERE id = ?", named)
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            return len(gone), files

        count = 0
        while True:
            gone, files = await self._do(forget_some, is_vital=True)
            for name in files:
                await self._remove(name)
            count += int(gone)
            if not gone:
                break
        if self._is_full:
            await self._do(lambda _: self._make_reserve())
        return count

    async def check(self) -> None:
        def write(connection: sqlite3.Connection) -> None:
            if self._is_full:
                self._make_reserve()
            left = os.statvfs(self._folder)
            if left.f_bavail * left.f_frsize < RESERVE_BYTES:
                raise Unstorable(f"less than {RESERVE_BYTES >> 20} MiB are left: {self._folder}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

        await self._do(write)

    async def close(self) -> None:
        if self._thread is not None:
            self._asked.put(None)
            await anyio.to_thread.run_sync(self._thread.join)
            self._thread = None

    # --- payloads that are files

    async def _placed(self, body: bytes) -> tuple[bytes | None, str | None]:
        """The body if its row shall hold it, else the name of the file that does now."""
        if len(body) <= INLINE_BYTES:
            return body, None
        return None, await anyio.to_thread.run_sync(self._write, body)

    async def _body(self, payload: Payload) -> bytes:
        if payload.body is not None:
            return payload.body
        assert payload.file is not None
        try:
            return await anyio.to_thread.run_sync((self._payloads / payload.file).read_bytes)
        except OSError as error:
            raise _unstorable(error, self._payloads) from error

    def _write(self, body: bytes) -> str:
        file = self._payloads / uuid4().hex
        try:
            self._payloads.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as opened:
                opened.write(body)
                if self._power:
                    opened.flush()
                    os.fsync(opened.fileno())
            return file.name
        except OSError as error:
            with suppress(OSError):
                file.unlink()
            raise _unstorable(error, self._payloads) from error

    async def _remove(self, file: str | None) -> None:
        if file is not None:
            with suppress(OSError):
                await anyio.to_thread.run_sync((self._payloads / file).unlink)

    def _remove_orphans(self, named: set[str]) -> None:
        """Remove files that no row names: their process died before it could write the row."""
        for file in self._payloads.glob("*"):
            if file.name not in named:
                with suppress(OSError):
                    file.unlink()

    # --- the thread

    async def _do(self, do: Callable[[sqlite3.Connection], Any], *, is_vital: bool = False) -> Any:
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, args=(loop,), name="runner-queue", daemon=True)
            self._thread.start()
        operation = Operation(do, loop.create_future(), is_vital=is_vital)
        self._asked.put(operation)
        return await operation.future

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        ends = False
        while not ends:
            batch = [self._asked.get()]
            with suppress(queue.Empty):
                while len(batch) < LARGEST_BATCH:
                    batch.append(self._asked.get_nowait())
            ends = None in batch  # from `close`, and so the last
            operations = [operation for operation in batch if operation is not None]
            results = self._all(operations)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_tell, operations, results)
            del batch, operations, results  # bodies, while nobody asks
        self._shut()

    def _all(self, batch: list[Operation]) -> list[Any]:
        """Do all of `batch` in one transaction, or each in its own when one of them spoils it."""
        try:
            return self._commit(batch)
        except Exception as error:
            if len(batch) > 1:
                return [self._all([operation])[0] for operation in batch]
            if isinstance(error, (sqlite3.Error, OSError)):
                if batch[0].is_vital and self._let_reserve_go(error):
                    return self._all(batch)
                return [_unstorable(error, self._folder)]
            return [error]

    def _commit(self, batch: list[Operation]) -> list[Any]:
        if not batch:
            return []
        connection = self._opened()
        results: list[Any] = []
        connection.execute("BEGIN IMMEDIATE")
        try:
            for operation in batch:
                try:
                    results.append(operation.do(connection))
                except (KeyError, Unstorable) as error:  # raised before anything was written
                    results.append(error)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return results

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        connection = sqlite3.connect(self._folder / "queue.db", isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._power else 'NORMAL'}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {PAGES_IN_WAL}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise Unstorable(f"{self._folder} was written by a newer runner; give another --data-dir")
            connection.executescript(TABLES)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            self._make_reserve()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(lock, 20).decode("ascii", "replace")
            os.close(lock)
            raise Unstorable(f"{self._folder} is used by another runner (pid {pid}); give one of them another --data-dir") from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock

    def _make_reserve(self) -> None:
        reserve = self._folder / "reserve"
        if not reserve.exists() or reserve.stat().st_size < RESERVE_BYTES:
            try:
                with reserve.open("wb") as opened:
                    os.posix_fallocate(opened.fileno(), 0, RESERVE_BYTES)
            except OSError:
                with suppress(OSError):
                    reserve.unlink()
                raise
        self._is_full = False

    def _let_reserve_go(self, error: Exception) -> bool:
        """Make room for what must be kept; False when that is not the trouble, or was done before."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or self._is_full:
            return False
        self._is_full = True
        with suppress(OSError):
            (self._folder / "reserve").unlink()
            return True
        return False

    def _shut(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _tell(batch: list[Operation], results: list[Any]) -> None:
    for operation, result in zip(batch, results, strict=True):
        if operation.future.done():
            continue
        if isinstance(result, Exception):
            operation.future.set_exception(result)
        else:
            operation.future.set_result(result)


def _unstorable(error: Exception, folder: Path) -> Unstorable:
    problem = error.strerror if isinstance(error, OSError) else str(error)
    unstorable = Unstorable(f"{problem}: {folder}")
    unstorable.__cause__ = error
    return unstorable


def _load(connection: sqlite3.Connection, id: str) -> Job | None:
    row = connection.execute("SELECT record FROM jobs WHERE id = ?", (id,)).fetchone()
    return decode_job(row[0]) if row else None


def _by_key(connection: sqlite3.Connection, key: str) -> Job | None:
    row = connection.execute("SELECT record FROM jobs WHERE key = ?", (key,)).fetchone()
    return decode_job(row[0]) if row else None


def _payload_of(connection: sqlite3.Connection, id: str, kind: Kind) -> Payload | None:
    row = connection.execute("SELECT about, body, file FROM payloads WHERE id = ? AND kind = ?", (id, kind)).fetchone()
    return Payload(*row) if row else None


def _named_files(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT file FROM payloads WHERE file IS NOT NULL")}
