"""One thread that owns an SQLite database, and commits in one go what was asked since it last looked.

Many callers so share one commit, and the event loop never waits for the disk. A second thread moves
the write-ahead log into the database while the first goes on writing; what little came meanwhile
the first moves itself, and the log begins anew. Inline that took a tenth of a second each time.

Some space is held in reserve: when the disk is full, what is not vital is refused and the reserve
lets what is vital go on. Two processes cannot share a folder: the second finds it locked.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio

from ...schemas.queue import Unstorable
from .folders import FolderLock

LARGEST_BATCH = 512  # changes that share a commit
RESERVE_BYTES = 4 * 1024 * 1024
LOG_BYTES = 16 * 1024 * 1024  # of write-ahead log, before it is moved into the database; larger ones made for longer stalls

Change = Callable[[sqlite3.Connection], Any]


class Operation:
    """Something to do in the next transaction, and who waits for it."""

    __slots__ = ("do", "future", "is_vital")

    def __init__(self, do: Change, future: asyncio.Future[Any], is_vital: bool) -> None:
        self.do, self.future, self.is_vital = do, future, is_vital


class Committer:
    """The database `queue.db` in one folder. Its thread starts with the first operation and ends with `close`."""

    def __init__(self, folder: Path, tables: str, version: int, *, power: bool) -> None:
        self.folder, self._tables, self._version, self._power = folder, tables, version, power
        self.file = folder / "queue.db"
        self._next: list[Operation] = []  # asked in this turn of the loop
        self._asked: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: sqlite3.Connection | None = None  # this and what follows: the thread's
        self.lock = FolderLock(folder)
        self._moving: threading.Thread | None = None  # moves the log into the database
        self._move_at = LOG_BYTES
        self.is_full = False  # the reserve was let go

    # --- on the loop

    async def do(self, change: Change, *, is_vital: bool = False) -> Any:
        """What `change` gives, once it is committed. It may be called again when another of its batch failed.

        Raises Unstorable, or what `change` raised: KeyError and Unstorable only before it has written.
        """
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, args=(loop,), name="runner-queue", daemon=True)
            self._thread.start()
        if not self._next:  # one wake-up of the thread for all that is asked in this turn
            loop.call_soon(self._hand_over)
        future = loop.create_future()
        self._next.append(Operation(change, future, is_vital))
        return await future

    def _hand_over(self) -> None:
        asked, self._next = self._next, []
        self._asked.put(asked)

    async def close(self) -> None:
        if self._thread is not None:
            self._hand_over()
            self._asked.put(None)
            await anyio.to_thread.run_sync(self._thread.join)
            self._thread = None

    # --- in the thread

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        ends = False
        while not ends:
            asked = self._asked.get()
            batch: list[Operation] = []
            with suppress(queue.Empty):
                while asked is not None:
                    batch += asked
                    if len(batch) >= LARGEST_BATCH:
                        break
                    asked = self._asked.get_nowait()
            ends = asked is None  # from `close`, and so the last
            results = self._all(batch)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_tell, batch, results)
            del asked, batch, results  # bodies, while nobody asks
            self._keep_log_short()
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
                return [unstorable(error, self.folder)]
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
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        connection = self._connected()
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > self._version:
                raise Unstorable(f"{self.folder} was written by a newer runner; give another --data-dir")
            connection.executescript(self._tables)
            connection.execute(f"PRAGMA user_version = {self._version}")
            self.make_reserve()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._power else 'NORMAL'}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA journal_size_limit = 0")  # a log that began anew is as short as it looks
        return connection

    def _shut(self) -> None:
        if self._moving is not None:
            self._moving.join()
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None
        self.lock.let_go()

    # --- the write-ahead log

    def _keep_log_short(self) -> None:
        """Have a long log moved into the database; what came in the meantime is moved here, and the log begins anew."""
        if self._connection is None:
            return
        if self._moving is not None:
            if not self._moving.is_alive():
                self._moving = None
                _move_log(self._connection)
            return
        size = 0
        with suppress(OSError):
            size = os.stat(f"{self.file}-wal").st_size
        if size < LOG_BYTES:
            self._move_at = LOG_BYTES
        elif size >= self._move_at:
            self._move_at = size + LOG_BYTES  # somebody reads: it cannot begin anew yet
            moving = threading.Thread(target=self._move, name="runner-queue-log", daemon=True)
            with suppress(RuntimeError):  # there cannot be another thread now
                moving.start()
                self._moving = moving

    def _move(self) -> None:
        with suppress(sqlite3.Error), closing(self._connected()) as connection:
            for _ in range(2):  # what came during the first time is little, and during the second less
                _move_log(connection)

    # --- room at the end

    def make_reserve(self) -> None:
        """Hold room for what is vital. Raises OSError when there is none."""
        reserve = self.folder / "reserve"
        if not reserve.exists() or reserve.stat().st_size < RESERVE_BYTES:
            try:
                with reserve.open("wb") as opened:
                    os.posix_fallocate(opened.fileno(), 0, RESERVE_BYTES)
            except OSError:
                with suppress(OSError):
                    reserve.unlink()
                raise
        self.is_full = False

    def _let_reserve_go(self, error: Exception) -> bool:
        """Make room for what must be kept; False when that is not the trouble, or was done before."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or self.is_full:
            return False
        self.is_full = True
        with suppress(OSError):
            (self.folder / "reserve").unlink()
            return True
        return False


def _move_log(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):  # the disk is full: the log grows on
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _tell(batch: list[Operation], results: list[Any]) -> None:
    for operation, result in zip(batch, results, strict=True):
        if operation.future.done():
            continue
        if isinstance(result, Exception):
            operation.future.set_exception(result)
        else:
            operation.future.set_result(result)


def unstorable(error: Exception, folder: Path) -> Unstorable:
    """What a store says of `error`."""
    problem = error.strerror if isinstance(error, OSError) else str(error)
    told = Unstorable(f"{problem}: {folder}")
    told.__cause__ = error
    return told
