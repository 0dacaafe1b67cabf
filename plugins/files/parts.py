"""Uploads in parts: each part a file, until all are there and become one file of the store.

    files/uploads/{id}/about.json       where it will lie, and `done` once it lies there
    files/uploads/{id}/00001.{digest}   a part, named by its number and its ETag

A part that is sent again replaces the one before. All of it outlives the process, so an upload
goes on where it was; `GET /uploads/{id}` says which parts are here. The id is the permission. What
nobody touched for a day is swept.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ...schemas.problems import HTTPError
from ...schemas.storing import FilePlace, FileStore, file_chunks, store_file
from .store import ABANDONED_SECONDS, RESERVE, HashedFile, no_room, told_when_full

UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
MOST_PARTS = 10_000  # S3's number
PART_NAME = re.compile(r"(\d{5})\.([0-9a-f]{64})")


class About(msgspec.Struct, kw_only=True):
    """What is known of an upload. `url` is what its sender is told to be the file's address."""

    place: FilePlace
    url: str
    done: bool = False


class PartSent(msgspec.Struct, kw_only=True, rename="camel"):
    """A part as SDKs name it."""

    part_number: int
    etag: str


class Uploads:
    """The uploads that are under way. Owns its folder; nothing is made there before the first one."""

    def __init__(
        self,
        folder: Path,
        store: FileStore,
        most_bytes: int,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._folder, self._store, self._most_bytes = folder, store, most_bytes
        self._free_bytes = free_bytes
        self._completing = threading.Lock()  # a client that did not wait for its answer asks again

    def begin(self, place: FilePlace, url: str) -> str:
        """Make a new upload that will end at `place`; return its id."""
        upload = secrets.token_hex(16)
        with told_when_full():
            (self._folder / upload).mkdir(parents=True)
            self._tell(upload, About(place=place, url=url))
        return upload

    def about(self, upload: str, *, open: bool = False) -> About:
        """What is known of it. Raises HTTPError 404, or with `open` 410 once it is done."""
        try:
            if not UPLOAD_ID.fullmatch(upload):
                raise FileNotFoundError
            about = msgspec.json.decode((self._folder / upload / "about.json").read_bytes(), type=About)
        except (FileNotFoundError, msgspec.MsgspecError):
            raise HTTPError(404, "there is no such upload, or no longer") from None
        if open and about.done:
            raise HTTPError(410, "this upload is complete; begin a new one for other bytes")
        return about

    def part(self, upload: str, number: int) -> PartSink:
        """What writes part `number`, from 1."""
        self.about(upload, open=True)
        if not 1 <= number <= MOST_PARTS:
            raise HTTPError(400, f"parts are numbered from 1 to {MOST_PARTS}")
        with told_when_full():
            return PartSink(self._folder / upload, number, self._make_room)

    def parts(self, upload: str) -> list[tuple[int, str, int]]:
        """Number, ETag and size of each part that is here whole."""
        return [(int(match[1]), match[2], path.stat().st_size) for match, path in self._parts(upload)]

    def complete(self, upload: str, listed: Sequence[PartSent]) -> About:
        """Make one file of the parts. Raises HTTPError 400 unless `listed` are here as they were sent."""
        with self._completing:
            about = self.about(upload)
            if not about.done:
                store_file(self._store, about.place, _joined(self._chosen(upload, listed)))
                self.finish(upload)
        return about

    def _chosen(self, upload: str, listed: Sequence[PartSent]) -> list[Path]:
        here = {int(match[1]): (match[2], path) for match, path in self._parts(upload)}
        chosen = sorted(listed, key=lambda part: part.part_number)
        if [part.part_number for part in chosen] != sorted({part.part_number for part in chosen}) or not chosen:
            raise HTTPError(400, "give each part once, as {\"parts\": [{\"partNumber\": 1, \"etag\": …}]}")
        for part in chosen:
            etag, _ = here.get(part.part_number, ("", None))
            if part.etag.strip().removeprefix("W/").strip('"') != etag:
                raise HTTPError(400, f"part {part.part_number} is not here with the ETag {part.etag}; send it again")
        paths = [here[part.part_number][1] for part in chosen]
        if sum(path.stat().st_size for path in paths) > self._most_bytes:
            raise HTTPError(413, f"the parts are larger than {self._most_bytes} bytes, the limit of this server")
        return paths

    def finish(self, upload: str) -> None:
        """Note that its file is in the store; its parts are no longer needed."""
        about = self.about(upload)
        about.done = True
        self._tell(upload, about)
        for _, path in self._parts(upload):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what nobody has touched for a day."""
        for folder in self._folder.iterdir() if self._folder.exists() else ():
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(folder)

    def _tell(self, upload: str, about: About) -> None:
        file = self._folder / upload / "about.json"
        fresh = file.with_name(f".about.{secrets.token_hex(4)}")
        fresh.write_bytes(msgspec.json.encode(about))
        fresh.rename(file)

    def _parts(self, upload: str) -> Iterator[tuple[re.Match[str], Path]]:
        for path in sorted((self._folder / upload).iterdir()):
            if (match := PART_NAME.fullmatch(path.name)) is not None:
                yield match, path

    def _make_room(self, size: int, *, look: bool) -> None:
        if look and self._free_bytes(self._folder) - size < RESERVE:
            raise no_room("its disk is full")


class PartSink:
    """One part while it is written."""

    def __init__(self, folder: Path, number: int, make_room: Callable[..., None]) -> None:
        self._folder, self._number = folder, number
        self._file = HashedFile(folder / f".{number:05}.{secrets.token_hex(4)}", make_room)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self) -> None:
        file = self._file
        file.close()
        target = self._folder / f"{self._number:05}.{file.digest}"
        file.path.rename(target)
        for other in self._folder.glob(f"{self._number:05}.*"):
            if other != target:
                other.unlink(missing_ok=True)

    def abort(self) -> None:
        self._file.delete()

    @property
    def etag(self) -> str:
        return self._file.digest


def _joined(paths: Sequence[Path]) -> Iterable[bytes]:
    for path in paths:
        yield from file_chunks(path)
