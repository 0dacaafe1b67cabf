"""Files in and out: a URL, a data: URI, an upload, or bytes that the endpoint made.

A `File` stands for bytes that may lie elsewhere. Parsing one checks its URL and never downloads.
`as_bytes()`, `open()`, `save()` and their async twins fetch it once, into a temporary file without
a name, which is gone when nobody holds the File. What cannot be fetched is the caller's fault: an
InvalidInput at the field where the File stood. `from_bytes` and `from_path` make a File that
callers can fetch: it is stored there and then, and what cannot be stored raises.

How to download and where to store is not decided here: that is the `FileDepot` of the running service
(see `storing`). Outside a service a File that was made stays in memory and shows itself as a data:
URI. Reading and storing blocks its thread; async endpoints use the twins that end in `_async`.

On the wire a File is `{"url", "content_type", "file_name", "file_size"}` or just the URL as a
string. `__from_json__`, `__to_json__` and `__json_schema__` are what a codec needs to know of it;
inside pydantic models the class describes itself.
"""

from __future__ import annotations

import asyncio
import binascii
import io
import mimetypes
import os
import re
import shutil
import tempfile
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol, Self
from urllib.parse import unquote_to_bytes, urlsplit

from .problems import Fault, InvalidInput, RequestCancelled
from .request import current_request
from .storing import (
    OWN,
    PLAIN_ERRAND,
    Errand,
    Repository,
    depot_of,
    path_of,
    put,
    safe_media_type,
    type_and_name,
)

Loc = tuple[str | int, ...]
INVALID_URL = "value must be a valid URL"
NEVER_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
WHITE_SPACE = b" \t\r\n"
TURN_SECONDS = 0.05  # how often a reader who waits for another's download looks whether it is still wanted
SHOWN = 100  # characters of a URL in messages; data: URIs run to megabytes


class Unfetchable(Exception):
    """Why a URL could not be read, in words for the caller who sent it."""


class Content:
    """Bytes in an open file, and what their source said of them: a temporary one without a name, or `file`.

    Owned by the File they were fetched for. The file is closed with its last reader, and the
    temporary one is gone then.
    """

    def __init__(
        self,
        *,
        content_type: str | None = None,
        file_name: str | None = None,
        file: BinaryIO | None = None,
        size: int = 0,
        folder: str | None = None,
    ) -> None:
        self.content_type, self.file_name, self.size = content_type, file_name, size
        with file or tempfile.TemporaryFile(prefix="runner-", buffering=0, dir=folder) as opened:
            # A number, as a file object in a cycle is told to be unclosed before whoever holds it is asked.
            self._descriptor = os.dup(opened.fileno())

    def append(self, chunk: bytes) -> None:
        """Add to the end. Only for whoever fills it, before anybody reads."""
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size += len(chunk)

    def reader(self) -> BinaryIO:
        """The bytes from their start, for one reader; each has a position of its own."""
        return io.BufferedReader(_Reader(self), 128 * 1024)

    def at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`."""
        return os.pread(self._descriptor, size, position)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()


class Download(Protocol):
    """Fetches a URL of http or https; raises Unfetchable, or RequestCancelled once `gone()` is true."""

    def __call__(self, url: str, gone: Callable[[], bool], errand: Errand = PLAIN_ERRAND) -> Content: ...


class File:
    """A file that a caller sent, by URL, as a data: URI or as an upload; or one that goes to a caller.

    `content_type`, `file_name` (its last part only) and `file_size` (bytes) are what the caller
    said; reading fills in what is missing and corrects the size. Reading blocks: async endpoints
    use `as_bytes_async()` or `open_async()`.
    """

    fields: ClassVar[tuple[str, ...]] = ("url", "content_type", "file_name", "file_size")
    ui: ClassVar[str | None] = None  # the playground's widget
    errand: ClassVar[Errand] = PLAIN_ERRAND  # how it is downloaded

    def __init__(
        self,
        url: str,
        content_type: str | None = None,
        file_name: str | None = None,
        file_size: int | None = None,
    ) -> None:
        """Raises ValueError unless `url` is one of http, https or data."""
        self._url: str | None = checked_url(url)
        self._content: Content | bytes | None = None
        self._download: Download | None = None
        self._loc: Loc = ("body",)
        self._gone: Callable[[], bool] = _never
        self._turn = threading.Lock()  # whoever reads first fetches; the others wait for it
        self.content_type = content_type or _media_type(self._url)
        self.file_name = safe_name(file_name)
        self.file_size = file_size

    @classmethod
    def received(cls, data: bytes, content_type: str | None = None, file_name: str | None = None) -> Self:
        """A file that came with its request. It is stored only when it is sent on to a caller."""
        guessed = mimetypes.guess_type(file_name)[0] if file_name else None
        file = cls("data:,", content_type or guessed or "application/octet-stream", file_name, len(data))
        file._url, file._content = None, data
        return file

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Repository = OWN,
        fallback_repository: Repository | list[Repository] | None = None,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
    ) -> Self:
        """Store `data` where callers can fetch it. Type and name are guessed from each other.

        `repository` is "fal_v3" (the server's own store), "in_memory" (a data: URI) or a
        FileRepository; `fallback_repository` is tried next. How long the file lives is said by the
        headers of `request`, or else of the current request. Raises HTTPError 507 when there is no
        room, ValueError for an unknown repository, and what a repository of the author's raises.
        """
        content_type, name = type_and_name(content_type, safe_name(file_name))
        file = cls.received(data, content_type, name)
        places = _places(repository, fallback_repository, save_kwargs, fallback_save_kwargs)
        file._url = put(data, safe_media_type(content_type), name, places, request)
        return file

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        content_type: str | None = None,
        repository: Repository = OWN,
        multipart: bool | None = None,
        fallback_repository: Repository | list[Repository] | None = None,
        request: Any = None,
        save_kwargs: dict[str, Any] | None = None,
        fallback_save_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Store a copy of the file at `path`, as `from_bytes` does, with bounded memory.

        `multipart` and its `options` say how fal's client uploads, and change nothing here. A type
        that was not given is guessed from the name, where fal would say application/octet-stream.
        """
        source = path_of(path)
        content_type, name = type_and_name(content_type, safe_name(source.name))
        places = _places(repository, fallback_repository, save_kwargs, fallback_save_kwargs)
        url = put(source, safe_media_type(content_type), name, places, request)
        if url is None:
            return cls.received(source.read_bytes(), content_type, name)
        return cls(url, content_type, name, source.stat().st_size)

    @classmethod
    async def from_bytes_async(cls, *arguments: Any, **options: Any) -> Self:
        """As `from_bytes`, without blocking the event loop."""
        return await asyncio.to_thread(cls.from_bytes, *arguments, **options)

    @classmethod
    async def from_path_async(cls, *arguments: Any, **options: Any) -> Self:
        """As `from_path`, without blocking the event loop."""
        return await asyncio.to_thread(cls.from_path, *arguments, **options)

    @property
    def url(self) -> str:
        """Where it lies. An upload has no address of its own and shows itself as a data: URI."""
        if self._url is not None:
            return self._url
        assert isinstance(self._content, bytes)
        return f"data:{self.content_type};base64,{b64encode(self._content).decode()}"

    def as_bytes(self) -> bytes:
        """All of it, fetched now if it was not before. Raises InvalidInput at the file's field."""
        with self.open() as file:
            return file.read()

    async def as_bytes_async(self) -> bytes:
        """As `as_bytes`, without blocking the event loop; cancelling it ends the download."""
        reader = await self.open_async()
        with reader:
            return await asyncio.to_thread(reader.read)

    async def open_async(self) -> BinaryIO:
        """As `open`, without blocking the event loop; cancelling it ends the download."""
        left = threading.Event()
        try:
            await asyncio.to_thread(self._fetched, lambda: left.is_set() or self._gone())
        finally:
            left.set()
        return self.open()

    def open(self) -> BinaryIO:
        """A new reader at the start, seekable, fetched now if it was not before."""
        content = self._fetched(self._gone)
        return io.BytesIO(content) if isinstance(content, bytes) else content.reader()

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write it to `path`. FileExistsError when something is there and shall stay."""
        target = Path(path)
        with self.open() as source:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not overwrite:
                target.open("xb").close()  # the name is ours now: nobody else can take it meanwhile
            partial = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}")
            try:
                with partial.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1024 * 1024)
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)
                if not overwrite:
                    target.unlink(missing_ok=True)
                raise
        return target

    async def save_async(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """As `save`, without blocking the event loop; cancelling it ends the download."""
        with await self.open_async():
            return await asyncio.to_thread(self.save, path, overwrite=overwrite)

    def invalid(self, message: str, *, type: str = "file_load_error") -> InvalidInput:
        """The error to raise when the bytes are not what this endpoint needs: 422 at the field."""
        shown = f"<binary {self.file_size} bytes>" if self._url is None else shortened(self._url)
        return InvalidInput([Fault(type=type, loc=self._loc, msg=message, input=shown)])

    def attach(self, download: Download, *, loc: Loc, gone: Callable[[], bool]) -> None:
        """Say how to fetch it, where in the input it stood, and when nobody wants it any more."""
        self._download, self._loc, self._gone = download, loc, gone

    def _fetched(self, gone: Callable[[], bool]) -> Content | bytes:
        if self._content is not None:
            return self._content
        if self._url is not None and not is_data(self._url) and _on_event_loop():
            raise RuntimeError(
                f"reading {shortened(self._url)} here would stop the event loop until it is downloaded; "
                "write `await file.as_bytes_async()`, or declare the endpoint with def instead of async def"
            )
        while not self._turn.acquire(timeout=TURN_SECONDS):
            if gone():
                raise RequestCancelled
        try:
            if self._content is None:
                self._content = self._fetch(gone)
            return self._content
        except Unfetchable as error:
            raise self.invalid(f"File could not be read: {error}", type="file_download_error") from None
        finally:
            self._turn.release()

    def _fetch(self, gone: Callable[[], bool]) -> Content | bytes:
        assert self._url is not None
        if is_data(self._url):
            data = decode_data_uri(self._url)
            self.file_size = len(data)
            return data
        depot = depot_of(current_request())
        download = self._download or (depot.fetch if depot else None)
        if download is None:
            raise RuntimeError("this File came with no request, so nothing here may download it")
        content = download(self._url, gone, self.errand)
        self.content_type = self.content_type or content.content_type or "application/octet-stream"
        self.file_name = self.file_name or content.file_name
        self.file_size = content.size
        return content

    def __repr__(self) -> str:
        url = shortened(self._url) if self._url is not None else f"<binary {self.file_size} bytes>"
        named = (f"{name}={value!r}" for name in self.fields[1:] if (value := getattr(self, name)) is not None)
        return f"{type(self).__name__}({', '.join((repr(url), *named))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.fields)

    @classmethod
    def _of(cls, file: File) -> Self:
        """`file` as this kind of File: an upload learns only from its field that it is sound."""
        if isinstance(file, cls):
            return file
        made = cls("data:,", file.content_type, file.file_name, file.file_size)
        made._url, made._content, made._download = file._url, file._content, file._download
        made._loc, made._gone = file._loc, file._gone
        return made

    @classmethod
    def __from_json__(cls, value: Any) -> Self:
        """What a codec calls. ValueError for a bad URL, InvalidInput for a bad object."""
        if isinstance(value, File):
            return cls._of(value)
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Mapping):
            return cls(**_checked_fields(cls.fields, value))
        msg = "Input should be a URL, or an object with a url"
        raise InvalidInput([Fault(type="file_type", loc=(), msg=msg, input=value)])

    def _store(self) -> None:
        """Give an upload that goes out an address, once. Without a service it stays a data: URI."""
        if self._url is None and isinstance(self._content, bytes):
            name = self.file_name or type_and_name(self.content_type, None)[1]
            self._url = put(self._content, safe_media_type(self.content_type), name, [(OWN, {})])

    def __to_json__(self) -> dict[str, Any]:
        self._store()
        return {name: getattr(self, name) for name in self.fields}

    @classmethod
    def __json_schema__(cls) -> dict[str, Any]:
        properties: dict[str, Any] = {
            "url": {"type": "string", "title": "Url", "description": "http, https or data URL of the file."}
        }
        for name in cls.fields[1:]:
            plain = "integer" if name in INTEGERS else "string"
            title = name.replace("_", " ").title()
            properties[name] = {"anyOf": [{"type": plain}, {"type": "null"}], "default": None, "title": title}
        schema = {"type": "object", "title": cls.__name__, "properties": properties, "required": ["url"]}
        return schema | ({"ui": {"field": cls.ui}} if cls.ui else {})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        # A core schema is plain data, so describing ourselves to pydantic needs no pydantic.
        def no_info(function: Callable[..., Any]) -> dict[str, Any]:
            return {"type": "no-info", "function": function}

        fields: dict[str, Any] = {
            name: {
                "type": "typed-dict-field",
                "schema": {"type": "nullable", "schema": {"type": "int" if name in INTEGERS else "str"}},
                "required": False,
            }
            for name in cls.fields[1:]
        }
        url = {"type": "function-after", "function": no_info(checked_url), "schema": {"type": "str"}}
        fields["url"] = {"type": "typed-dict-field", "schema": url, "required": True}

        def parse(value: Any, rest: Callable[[Any], dict[str, Any]]) -> File:
            if isinstance(value, File):
                return cls._of(value)
            return cls(value) if isinstance(value, str) else cls(**rest(value))

        return {
            "ref": f"{cls.__module__}.{cls.__qualname__}:{id(cls)}",  # a component of its own in schemas
            "type": "function-wrap",
            "function": no_info(parse),
            "schema": {"type": "typed-dict", "fields": fields},
            "serialization": {"type": "function-plain", "function": cls.__to_json__},
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        return cls.__json_schema__()


class Video(File):
    """A File that is a film."""

    ui = "video"


INTEGERS = {"file_size", "width", "height"}


def _places(
    repository: Repository,
    fallback: Repository | list[Repository] | None,
    options: dict[str, Any] | None,
    fallback_options: dict[str, Any] | None,
) -> list[tuple[Repository, dict[str, Any]]]:
    others = fallback if isinstance(fallback, list) else [] if fallback is None else [fallback]
    return [(repository, options or {}), *((other, fallback_options or {}) for other in others)]


def checked_url(url: str) -> str:
    """`url` without white space around it; ValueError unless it is a URL of http, https or data."""
    url = url.strip()
    if is_data(url):
        if "," in url and _has_utf8(url):
            return url
        raise ValueError(INVALID_URL)
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, brackets that hold no address
        valid = False
    if not valid or NEVER_IN_URLS.search(url) or not _has_utf8(url):
        raise ValueError(INVALID_URL)
    return url


def is_data(url: str) -> bool:
    """Whether `url` holds its bytes itself."""
    return url[:5].lower() == "data:"


def decode_data_uri(url: str) -> bytes:
    """The bytes in a data: URI (RFC 2397). Raises Unfetchable for base64 that is not whole and clean."""
    head, _, payload = url[5:].partition(",")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        encoded = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii")
        # Lines are broken by many encoders, so white space is no fault.
        return binascii.a2b_base64(encoded.translate(None, WHITE_SPACE), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Unfetchable(f"the data: URI is not valid base64 ({error})") from None


def safe_name(name: str | None) -> str | None:
    """The last part of `name`, with nothing that means something to a file system; None if nothing is left."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", re.split(r"[/\\]", name or "")[-1]).strip()
    return name[-200:] if name.strip(".") else None


def shortened(url: str) -> str:
    """`url` as it may stand in a message."""
    return url if len(url) <= SHOWN else f"{url[:SHOWN]}… ({len(url)} characters)"


class _Reader(io.RawIOBase):
    def __init__(self, content: Content) -> None:
        self._content, self._position = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._content.at(self._position, len(buffer))
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._content.size}[whence]
        if start + offset < 0:
            raise ValueError("cannot seek to before the start")
        self._position = start + offset
        return self._position


def _media_type(url: str) -> str | None:
    if not is_data(url):
        return None
    return url[5 : url.index(",")].partition(";")[0].strip().lower() or "text/plain"


def _checked_fields(names: tuple[str, ...], value: Mapping[Any, Any]) -> dict[str, Any]:
    faults: list[Fault] = []
    if "url" not in value:
        faults.append(Fault(type="missing", loc=("url",), msg="Field required", input=value))
    for name in names:
        given = value.get(name)
        wanted, words = (int, "integer") if name in INTEGERS else (str, "string")
        absent = name not in value or (given is None and name != "url")
        if not absent and (not isinstance(given, wanted) or isinstance(given, bool)):
            kind = "int_type" if wanted is int else "string_type"
            msg = f"Input should be a valid {words}"
            if wanted is int and isinstance(given, str) and not given.strip().isdecimal():
                kind, msg = "int_parsing", f"{msg}, unable to parse string as an integer"
            faults.append(Fault(type=kind, loc=(name,), msg=msg, input=given))
    if not faults:
        try:
            checked_url(value["url"])
        except ValueError as error:
            msg, ctx = f"Value error, {error}", {"error": str(error)}
            faults.append(Fault(type="value_error", loc=("url",), msg=msg, input=value["url"], ctx=ctx))
    if faults:
        raise InvalidInput(faults)
    return {name: value[name] for name in names if name in value}


def _has_utf8(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and nothing can send."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _never() -> bool:
    return False
