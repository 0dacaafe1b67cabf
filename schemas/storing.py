"""Storing: what a File needs of the server around it, and where a file may be put.

A `FileStore` keeps bytes and says under which URL everybody reads them; it is what the
`file_store` hook gives. A `FileDepot` is one service's door to it: it knows the address that callers
use, and fetches. A File finds its depot through the request that it is made for. Threads that an
author starts know of no request, so the depots of running services also stand in one list of the
process; outside a service it is empty, and Files stay in memory.
"""

from __future__ import annotations

import logging
import mimetypes
import os
import re
import threading
import uuid
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import quote

import msgspec

from .request import Request, current_request, lifecycle_of
from .tracing import part_of

if TYPE_CHECKING:
    from .files import Content

log = logging.getLogger("runner.files")

ANY_TYPE = "application/octet-stream"
MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:\s*;\s*[\w.-]+=[\w./ \"+-]+)*", re.ASCII)
# What browsers only show. Anything else, such as HTML, SVG, XML and PDF, may hold scripts.
SHOWN = re.compile(r"(?:audio|video)/.+|image/(?!svg).+|text/(?:plain|csv)|application/(?:json|octet-stream|zip)|model/gltf.*")
CHUNK = 1024 * 1024  # bytes that are read and written at once


class FileDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is to be kept, as its readers will be told of it."""

    name: str
    content_type: str = ANY_TYPE
    seconds: float | None = None  # it may be deleted afterwards; None: the store's default


class FilePlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file will lie. `key` is unguessable; `url` is absolute, or a path of this server."""

    key: str
    url: str
    file: FileDescription


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """How one download is to be done. By an author's order the server's limits for callers do not hold."""

    most_bytes: int | None = None
    seconds: float | None = None
    by_author: bool = False
    headers: dict[str, str] = {}  # sent along, to the first host only where they are credentials
    folder: str | None = None  # for the temporary file; None: the system's


PLAIN_ERRAND = Errand()


class FileSink(Protocol):
    """A file being written. Nobody sees it before `commit`; after `abort` nothing of it is left.

    Used by one thread at a time. `write` and `commit` raise HTTPError 507 when there is no room.
    """

    def write(self, chunk: bytes) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class FileStore(Protocol):
    """Keeps files. All of it may block, so it is called in threads; it is used by many at once."""

    def place(self, file: FileDescription) -> FilePlace:
        """A new place for such a file. Costs nothing until something is written there."""
        ...

    def write(self, place: FilePlace) -> FileSink: ...

    def read(self, url: str) -> Content | None:
        """The bytes behind `url` when it is one of this store's; None for all other URLs."""
        ...


class FileTraffic:
    """Bytes of files that went each way since the start. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = {"fetched": 0, "made": 0, "uploaded": 0}  # for inputs, as outputs, by callers

    def count(self, way: Literal["fetched", "made", "uploaded"], size: int) -> None:
        with self._lock:
            self.bytes[way] += size


class FileDepot(Protocol):
    """One service's door to the world of files."""

    store: FileStore
    traffic: FileTraffic

    def fetch(self, url: str, gone: Callable[[], bool], errand: Errand = PLAIN_ERRAND) -> Content:
        """The bytes behind `url`, its own or another's. Raises Unfetchable, or RequestCancelled once `gone()`."""
        ...

    def absolute(self, url: str, request: Request) -> str:
        """`url` of a FilePlace as the caller of `request` can use it."""
        ...


_running: list[FileDepot] = []  # of this process's services, the one that started last at the end


@contextmanager
def enter_depot(depot: FileDepot) -> Iterator[None]:
    """Let Files that know of no request find `depot`, for as long as its service runs."""
    _running.append(depot)
    try:
        yield
    finally:
        _running.remove(depot)


def depot_of(request: Request) -> FileDepot | None:
    """The depot of the service that `request` is of, or the one that started last in this process."""
    return request.depot or (_running[-1] if _running else None)


def store_file(store: FileStore, place: FilePlace, chunks: Iterable[bytes]) -> None:
    """Write all of `chunks` to `place`, or nothing."""
    sink = store.write(place)
    try:
        for chunk in chunks:
            sink.write(chunk)
        sink.commit()
    except BaseException:
        sink.abort()
        raise


def file_chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def type_and_name(content_type: str | None, name: str | None) -> tuple[str, str]:
    """The type and the name of a file of which not both were said: each is guessed from the other."""
    content_type = content_type or (mimetypes.guess_type(name)[0] if name else None) or ANY_TYPE
    if name is None:
        name = uuid.uuid4().hex + (mimetypes.guess_extension(content_type.partition(";")[0]) or ".bin")
    return content_type, name


def safe_media_type(content_type: str | None) -> str:
    """`content_type` if a header may carry it, else the type that says nothing."""
    text = (content_type or "").strip()
    return text if len(text) <= 200 and MEDIA_TYPE.fullmatch(text) else ANY_TYPE


def content_disposition(name: str, content_type: str) -> str:
    """The Content-Disposition of a file that strangers made: what a browser could run is a download.

    The name is plain, and beside it as RFC 8187 has it when that is not enough.
    """
    kind = "inline" if SHOWN.fullmatch(content_type.partition(";")[0].strip().lower()) else "attachment"
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    exact = "" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}"
    return f'{kind}; filename="{plain}"{exact}'


# --- repositories: fal's names for where a file is put


class FileData:
    """A file as a repository of the author's own is given it."""

    def __init__(self, data: bytes, content_type: str | None = None, file_name: str | None = None) -> None:
        self.data = data
        self.content_type, self.file_name = type_and_name(content_type, file_name)


class FileRepository:
    """Base for a place of the author's own. `save` is all it needs; `save_file` reads the file for it."""

    def save(self, data: FileData, object_lifecycle_preference: dict[str, Any] | None = None, **options: Any) -> str:
        """Put `data` somewhere and return its URL."""
        raise NotImplementedError

    def save_file(
        self,
        file_path: str | Path,
        content_type: str,
        object_lifecycle_preference: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[str, FileData | None]:
        """Put the file at `file_path` somewhere; return its URL, and its bytes if they were read."""
        data = FileData(Path(file_path).read_bytes(), content_type, Path(file_path).name)
        return self.save(data, object_lifecycle_preference=object_lifecycle_preference, **options), data


Repository = str | FileRepository
OWN = "fal_v3"
SAME = {"fal_v3", "fal", "fal_v2", "cdn"}  # all of them are the store of this server
DEPRECATED = {"fal_v2", "cdn"}
CLOUDS = {"gcp_storage", "r2"}


def put(
    source: bytes | Path,
    content_type: str,
    name: str,
    repositories: Sequence[tuple[Repository, Mapping[str, Any]]],
    request: Any = None,
) -> str | None:
    """Put `source` into the first repository that takes it and return its URL; the last failure is raised.

    None: this is no running service, and it was the server's own store that was asked for.
    `request`, when given, says how long the file shall live, instead of the current one.
    """
    wanted: dict[Repository, Mapping[str, Any]] = {}
    for repository, options in repositories:
        wanted.setdefault(checked(repository), options)
    wishes = lifecycle_of(request.headers) if request is not None else current_request().lifecycle_preference
    for attempt, (repository, options) in enumerate(wanted.items(), 1):
        try:
            return _put(source, content_type, name, repository, dict(options), wishes)
        except Exception as error:
            if attempt == len(wanted):
                raise
            log.warning("%s could not be put into %s: %s", name, repository, error)
    return None


def checked(repository: Repository) -> Repository:
    """`repository`, by the name that counts. ValueError when it is none."""
    if not isinstance(repository, str):
        return repository
    if repository in DEPRECATED:
        warnings.warn(f"the repository {repository!r} is deprecated; fal_v3 is used", DeprecationWarning, stacklevel=5)
    if repository in SAME:
        return OWN
    if repository in CLOUDS:
        raise ValueError(f"this runner does not put files into {repository!r} by itself; start it with --file-store s3://bucket")
    if repository != "in_memory":
        raise ValueError(f'"{repository}" is not a valid built-in file repository')
    return repository


def _put(
    source: bytes | Path, content_type: str, name: str, repository: Repository, options: dict[str, Any], wishes: dict[str, Any] | None
) -> str | None:
    if repository == "in_memory":
        data = source if isinstance(source, bytes) else source.read_bytes()
        return f"data:{content_type};base64,{b64encode(data).decode()}"
    if not isinstance(repository, str):
        if isinstance(source, bytes):
            return repository.save(FileData(source, content_type, name), object_lifecycle_preference=wishes, **options)
        return repository.save_file(source, content_type, object_lifecycle_preference=wishes, **options)[0]
    return store_output(source, content_type, name, wishes)


def store_output(source: bytes | Path, content_type: str, name: str, wishes: Mapping[str, Any] | None) -> str | None:
    """Put `source` into the service's own store and return its URL; None when no service runs."""
    request = current_request()
    depot = depot_of(request)
    if depot is None:
        return None
    file = FileDescription(name=name, content_type=safe_media_type(content_type), seconds=lifetime_of(wishes))
    place, size = depot.store.place(file), len(source) if isinstance(source, bytes) else source.stat().st_size
    with part_of(request, "files", {"runner.file.way": "store", "runner.file.bytes": size}):
        store_file(depot.store, place, [source] if isinstance(source, bytes) else file_chunks(source))
    depot.traffic.count("made", size)
    return depot.absolute(place.url, request)


def lifetime_of(wishes: Mapping[str, Any] | None) -> float | None:
    """How long a file shall live, as a lifecycle preference says; None when it does not."""
    seconds = (wishes or {}).get("expiration_duration_seconds")
    good = isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds < 1e11
    return float(seconds) if good and seconds is not None else None


def path_of(path: str | os.PathLike[str]) -> Path:
    """`path`, which is a file. FileNotFoundError otherwise, before anything is stored."""
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    return found
