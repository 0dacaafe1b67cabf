"""The queue's own store: one SQLite database below the data folder, no server to start.

`commits` owns the connection and lets many callers share one commit. Payloads above `INLINE_BYTES`
are files of their own, written before the row that names them. With `durability = "process"` what is
acknowledged survives the death of the process, with "power" also that of the machine (each commit
then waits for the disk).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple
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
from .commits import RESERVE_BYTES, Committer, unstorable

INLINE_BYTES = 64 * 1024
SWEPT_AT_ONCE = 200  # jobs; between two such steps others are served

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


class SqliteStore:
    """A `QueueStore` in one folder."""

    def __init__(self, folder: Path, *, durability: Literal["process", "power"] = "process") -> None:
        self._folder, self._payloads = folder, folder / "payloads"
        self._power = durability == "power"
        self._committer = Committer(folder, TABLES, VERSION, power=self._power)
        self._do = self._committer.do
        self._number = 0  # of the newest job; the committer's thread's

    @property
    def exists(self) -> bool:
        """Whether a runner kept jobs here before."""
        return self._committer.file.exists()

    # --- the store

    async def open(self) -> Sequence[Job]:
        def unfinished(connection: sqlite3.Connection) -> list[Job]:
            self._number = max(self._number, connection.execute("SELECT coalesce(max(number), 0) FROM jobs").fetchone()[0])
            rows = connection.execute("SELECT record FROM jobs WHERE ended IS NULL ORDER BY number")
            return [decode_job(record) for (record,) in rows]

        jobs: list[Job] = await self._do(unfinished)
        await anyio.to_thread.run_sync(self._remove_orphans, await self._do(_named_files))
        return jobs

    async def submit(self, job: Job, body: bytes) -> Job:
        inline, file = await self._placed(body)

        def insert(connection: sqlite3.Connection) -> Job:
            if self._committer.is_full:
                raise Unstorable("the disk is full")
            if job.key is not None and (known := _by_key(connection, job.key)) is not None:
                return known
            self._number += 1
            kept = msgspec.structs.replace(job, number=self._number)
            try:
                connection.execute(
                    "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, NULL, ?, ?)",
                    (kept.number, kept.id, kept.key, kept.state, encode(kept), kept.keeps, len(body)),
                )
            except sqlite3.IntegrityError:  # which leaves the rest of the transaction as it was
                raise KeyError(job.id) from None
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
        if self._committer.is_full:
            await self._do(lambda _: self._committer.make_reserve())
        return count

    async def check(self) -> None:
        def write(connection: sqlite3.Connection) -> None:
            if self._committer.is_full:
                self._committer.make_reserve()
            left = os.statvfs(self._folder)
            if left.f_bavail * left.f_frsize < RESERVE_BYTES:
                raise Unstorable(f"less than {RESERVE_BYTES >> 20} MiB are left: {self._folder}")
            connection.execute(f"PRAGMA user_version = {VERSION}")

        await self._do(write)

    async def close(self) -> None:
        await self._committer.close()

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
            raise unstorable(error, self._payloads) from error

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
            raise unstorable(error, self._payloads) from error

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
