"""The default store: files below the data folder, each content once, found by an unguessable id.

    files/blobs/ab/abcd…      the bytes, named by their digest (BLAKE3, or SHA-256 where that is not installed)
    files/partial/…           what is being written; swept when whoever wrote it is gone
    files/index.sqlite        id, digest, name, type and expiry of each file

A file is on disk in full before its id is known, and leaves the index before its bytes go, each in
one transaction that also moves or deletes the bytes: a kill at any moment leaves no id without
bytes, and at worst bytes that the next sweep takes. Several processes may share the folder. Nothing
is made on disk before a file is kept. A power cut may cost the files of the last moments.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import re
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from ...schemas.files import Content
from ...schemas.problems import HTTPError
from ...schemas.storing import FileDescription, FilePlace, FileSink

MiB = 1024 * 1024
RESERVE = 256 * MiB  # of the disk, which others need too; a number out of the air
LOOK_EVERY = 8 * MiB  # written, until the disk's free space is asked for again
ABANDONED_SECONDS = 24 * 3600  # without a write, after which a partial file is nobody's
OUR_PATH = re.compile(r"/files/([0-9a-f]{32})/([^/]+)")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCHEMA = """
create table if not exists files (
    id text primary key, digest text not null, size integer not null,
    name text not null, type text not null, expires real
) strict;
create index if not exists by_digest on files (digest);
create index if not exists by_expiry on files (expires) where expires is not null;
"""


class MakeRoom(Protocol):
    """Counts bytes that are about to be written; `look` when the disk itself should be asked. Raises HTTPError 507."""

    def __call__(self, size: int, *, look: bool) -> None: ...


class Found(NamedTuple):
    """A file of the store, open for reading. Whoever asked for it closes `file`."""

    file: BinaryIO
    size: int
    digest: str
    name: str
    content_type: str
    expires: float | None  # seconds since the epoch


class LocalStore:
    """Files in one folder. Owns all that is in it; safe to use from any thread."""

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int = 0,
        seconds: float = 0,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`most_bytes` 0: all but a reserve of the disk. `seconds` 0: files that wish no end have none."""
        self.folder = folder
        self.now = now
        self._most_bytes, self._seconds = most_bytes, seconds
        self._free_bytes = free_bytes
        self._lock = threading.RLock()
        self._index: sqlite3.Connection | None = None
        self._used = 0  # bytes, as last counted, and what this process has added since
        self._writing = 0

    # --- what every store can do

    def place(self, file: FileDescription) -> FilePlace:
        key = secrets.token_hex(16)
        return FilePlace(key=key, url=f"/files/{key}/{quote(file.name, safe='')}", file=file)

    def write(self, place: FilePlace) -> FileSink:
        with told_when_full():
            return Partial(self, place)

    def read(self, url: str) -> Content | None:
        """Any host will do: whoever knows an id of ours means the file that has it."""
        match = OUR_PATH.search(urlsplit(url).path)
        found = self.find(match[1]) if match and match.end() == len(urlsplit(url).path) else None
        if found is None or match is None or unquote(match[2]) != found.name:
            return None
        return Content(file=found.file, size=found.size, content_type=found.content_type, file_name=found.name)

    # --- what this one is asked besides

    def find(self, key: str) -> Found | None:
        """The file of this id, unless it has expired."""
        if not self._exists():
            return None
        with self._lock:
            row = self.index.execute("select digest, size, name, type, expires from files where id = ?", (key,)).fetchone()
        if row is None or (row[4] is not None and row[4] <= self.now()):
            return None
        digest, size, name, content_type, expires = row
        try:
            file = self.blob(digest).open("rb", buffering=0)
        except FileNotFoundError:  # swept between the two lines above, or by hand
            return None
        return Found(file, size, digest, name, content_type, expires)

    def sweep(self) -> int:
        """Delete what has expired. Returns how many files are gone."""
        if not self._exists():
            return 0
        with self._lock:
            with self._transaction() as index:
                gone = index.execute("delete from files where expires <= ? returning digest", (self.now(),)).fetchall()
                for digest in {digest for (digest,) in gone}:
                    if index.execute("select 1 from files where digest = ? limit 1", (digest,)).fetchone() is None:
                        self.blob(digest).unlink(missing_ok=True)
            if gone:
                self._used = self._count()
        return len(gone)

    def sweep_remains(self) -> None:
        """Delete what killed processes left: bytes that no file has, and what nobody finished. Reads all names."""
        if not self._exists():
            return
        for folder in (self.folder / "blobs").iterdir():  # one by one: nobody waits for all of them
            with self._lock, self._transaction() as index:
                first, last = folder.name, folder.name + "g"
                rows = index.execute("select distinct digest from files where digest between ? and ?", (first, last))
                known = {digest for (digest,) in rows}
                for blob in folder.iterdir():
                    if blob.name not in known:
                        blob.unlink(missing_ok=True)
        with self._lock:
            self._used = self._count()
        for partial in self._partial().iterdir():
            with suppress(FileNotFoundError):
                if self.now() - partial.stat().st_mtime > ABANDONED_SECONDS:
                    partial.unlink()

    def close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    # --- what Partial needs

    def make_room(self, size: int, *, look: bool) -> None:
        """Count `size` bytes that are about to be written. Raises HTTPError 507 when they are too many."""
        with self._lock:
            if self._most_bytes and self._used + self._writing + size > self._most_bytes:
                if self.index.execute("select 1 from files where expires <= ? limit 1", (self.now(),)).fetchone():
                    self.sweep()
                if self._used + self._writing + size > self._most_bytes:
                    raise no_room("its files take as much as they may")
            if look and self._free_bytes(self.folder) - size < RESERVE:
                raise no_room("its disk is full")
            self._writing += size

    def forget(self, size: int) -> None:
        with self._lock:
            self._writing -= size

    def keep(self, partial: Path, digest: str, size: int, place: FilePlace) -> None:
        """Make the whole file at `partial` readable under its place."""
        seconds = place.file.seconds if place.file.seconds is not None else self._seconds
        expires = self.now() + seconds if seconds else None
        with self._lock, self._transaction() as index:
            if index.execute("select 1 from files where id = ?", (place.key,)).fetchone() is not None:
                raise HTTPError(410, "this place is taken; begin a new upload for other bytes")
            blob = self.blob(digest)
            if blob.exists():
                partial.unlink()
            else:
                blob.parent.mkdir(exist_ok=True)
                partial.rename(blob)
                self._used += size
            row = (place.key, digest, size, place.file.name, place.file.content_type, expires)
            index.execute("insert into files values (?, ?, ?, ?, ?, ?)", row)

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest[:2] / digest

    def new_partial(self, key: str) -> Path:
        with self._lock:
            assert self.index  # makes the folders
        return self._partial() / f"{key}.{secrets.token_hex(4)}"

    @property
    def index(self) -> sqlite3.Connection:
        """The index, opened when it is first needed. Only under the lock."""
        if self._index is None:
            for folder in (self.folder / "blobs", self._partial()):
                folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)  # a name here is a permission to read
            self._index = sqlite3.connect(self.folder / "index.sqlite", check_same_thread=False, isolation_level=None, timeout=30)
            self._index.execute("pragma journal_mode = wal")
            self._index.execute("pragma synchronous = normal")
            self._index.executescript(SCHEMA)
            self._used = self._count()
        return self._index

    def _exists(self) -> bool:
        return self._index is not None or (self.folder / "index.sqlite").exists()

    def _partial(self) -> Path:
        return self.folder / "partial"

    def _count(self) -> int:
        (size,) = self.index.execute("select coalesce(sum(size), 0) from (select distinct digest, size from files)").fetchone()
        return int(size)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and alone: `immediate` keeps other processes out until it is over."""
        index = self.index
        index.execute("begin immediate")
        try:
            yield index
        except BaseException:
            index.execute("rollback")
            raise
        index.execute("commit")


class Partial:
    """A file of the store while it is written. Owned by whoever writes it."""

    def __init__(self, store: LocalStore, place: FilePlace) -> None:
        self._store, self._place = store, place
        self._file = HashedFile(store.new_partial(place.key), store.make_room)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self) -> None:
        file = self._file
        with told_when_full():
            file.close()
            self._store.keep(file.path, file.digest, file.size, self._place)
        self._store.forget(file.counted)

    def abort(self) -> None:
        self._file.delete()
        self._store.forget(self._file.counted)


class Hash(Protocol):
    def update(self, chunk: bytes, /) -> Any: ...
    def hexdigest(self) -> str: ...


@functools.cache
def digest_kind() -> Callable[[], Hash]:
    """The hash that names contents. SHA-256 was half of what an upload cost; BLAKE3 is four times as fast.

    A folder may have known both: two contents share a name under neither, nor across them.
    """
    try:
        from blake3 import blake3
    except ModuleNotFoundError:
        return hashlib.sha256
    return blake3


class HashedFile:
    """A new file, its digest counted as it is written; `make_room` may refuse what comes next."""

    def __init__(self, path: Path, make_room: MakeRoom) -> None:
        self.path, self._make_room = path, make_room
        self.size = self.counted = self._looked = 0
        self._hash = digest_kind()()
        self._file = path.open("xb", buffering=0)

    def write(self, chunk: bytes) -> None:
        look = self.size >= self._looked
        self._make_room(len(chunk), look=look)
        self.counted += len(chunk)
        if look:
            self._looked = self.size + LOOK_EVERY
        left = memoryview(chunk)
        with told_when_full():
            while left:
                left = left[self._file.write(left) :]
        self.size += len(chunk)
        self._hash.update(chunk)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


@contextmanager
def told_when_full() -> Iterator[None]:
    """Make a full disk the caller's answer 507, whoever noticed it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room("its disk is full") from error
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        raise no_room("its disk is full") from error


def no_room(reason: str) -> HTTPError:
    return HTTPError(507, f"this server has no room for the file: {reason}")
