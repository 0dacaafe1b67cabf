"""Receiving: files that callers put into the store, of any size, with a megabyte or two in memory.

`POST /files` takes raw bytes or a form and answers with a File. Beside it stands what fal's clients
speak (contract 4.4), on every host: they send it to `rest.fal.ai` and `v3.fal.media`, which a
gateway routes here. Whoever may call this server gets a token, and the plugin keys knows it again.
A large file comes in parts, see `parts`.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import msgspec

from ...schemas.files import safe_name
from ...schemas.problems import HTTPError
from ...schemas.request import Request
from ...schemas.response import Response, json_response
from ...schemas.service import Route
from ...schemas.settings import Settings
from ...schemas.storing import (
    FileDepot,
    FileDescription,
    FileSink,
    lifetime_of,
    safe_media_type,
    type_and_name,
)
from ...schemas.tokens import Tokens
from .depot import FALS
from .forms import FormReader
from .headers import decoded, essence_of, parameters
from .parts import PartSent, Uploads

T = TypeVar("T")
TOKEN_SECONDS = 3600
GATEWAYS_CDN = "https://v3.fal.media"
BATCH = 1024 * 1024  # bytes written at once
FORM = "multipart/form-data"


class Wanted(msgspec.Struct, kw_only=True):
    """What a client says of a file that it is about to send."""

    content_type: str | None = None
    file_name: str | None = None


class Sent(msgspec.Struct, kw_only=True):
    """What a client says once all parts are sent."""

    parts: list[PartSent]


class Receiving:
    """What answers those who bring files. Keeps nothing itself."""

    def __init__(self, depot: FileDepot, settings: Settings) -> None:
        self._depot, self._store = depot, depot.store
        self._uploads = uploads_of(depot, settings)
        self._tokens = Tokens(settings.auth_key)
        self._has_public_url = bool(settings.public_url)

    def routes(self) -> list[Route]:
        def route(method: str, path: str, answer: Callable[[Request], Awaitable[Response]], *, streams_in: bool = False) -> Route:
            return Route(method=method, path=path, answer=answer, streams_in=streams_in)

        in_cdn = "/files/{id}/{name}/multipart/{upload}"
        return [
            route("POST", "/files", self.take, streams_in=True),
            route("POST", "/storage/auth/token", self.token),
            route("POST", "/storage/upload/initiate", self.initiate),
            route("POST", "/storage/upload/initiate-multipart", self.initiate),
            route("POST", "/files/upload", self.upload, streams_in=True),
            route("POST", "/files/upload/multipart", self.begin),
            route("PUT", "/uploads/{upload}", self.put, streams_in=True),
            route("GET", "/uploads/{upload}", self.progress),
            route("PUT", "/uploads/{upload}/{part:int}", self.part, streams_in=True),
            route("PUT", f"{in_cdn}/{{part:int}}", self.part, streams_in=True),
            route("POST", "/uploads/{upload}/complete", self.complete),
            route("POST", f"{in_cdn}/complete", self.complete),
        ]

    # --- ours

    async def take(self, request: Request) -> Response:
        """A raw body, or each file of a form, becomes a file: `{"url", "content_type", …}`, a list for several."""
        if essence_of(request.headers.get("content-type")) != FORM:
            place = await self._kept(request, _body(request))
            return json_response(place, status=201, headers={"location": place["url"]})
        form = FormReader(_body(request), request.headers["content-type"])
        kept = []
        while (part := await form.next_part()) is not None:
            if part.file_name is not None:
                kept.append(await self._kept(request, form.data(), part.content_type, part.file_name))
        if not kept:
            raise HTTPError(400, "the form holds no file; for example curl -F file=@picture.png")
        return json_response(kept[0] if len(kept) == 1 else kept, status=201, headers={"location": kept[0]["url"]})

    async def _kept(
        self, request: Request, chunks: AsyncIterator[bytes], content_type: str | None = None, name: str | None = None
    ) -> dict[str, Any]:
        file = description(request, content_type, name)
        place = self._store.place(file)
        size = await self._taken(chunks, functools.partial(self._store.write, place))
        return {
            "url": self._depot.absolute(place.url, request),
            "content_type": file.content_type,
            "file_name": file.name,
            "file_size": size,
        }

    # --- fal's clients

    async def token(self, request: Request) -> Response:
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=TOKEN_SECONDS)
        token = {
            "token": self._tokens.make(TOKEN_SECONDS),
            "token_type": "Bearer",
            "base_url": self._base(request),
            "expires_at": expires.isoformat(timespec="seconds"),
        }
        return json_response(token)

    async def upload(self, request: Request) -> Response:
        kept = await self._kept(request, _body(request))
        return json_response({**kept, "access_url": kept["url"]})

    async def begin(self, request: Request) -> Response:
        """An upload in parts, whose parts go below the address that the file will have."""
        place = self._store.place(description(request))
        url = f"{self._base(request)}/files/{place.key}/{quote(place.file.name, safe='')}"
        upload = await _in_thread(self._uploads.begin, place, url)
        return json_response({"access_url": url, "uploadId": upload})

    async def initiate(self, request: Request) -> Response:
        """An upload whose sender is told two addresses: where to put it, and where it will be read."""
        wanted = _read(request, Wanted)
        place = self._store.place(description(request, wanted.content_type, wanted.file_name))
        url = self._depot.absolute(place.url, request)
        upload = await _in_thread(self._uploads.begin, place, url)
        return json_response({"upload_url": f"{self._base(request)}/uploads/{upload}", "file_url": url})

    async def put(self, request: Request) -> Response:
        upload = request.path_parameters["upload"]
        about = await _in_thread(functools.partial(self._uploads.about, upload, open=True))
        await self._taken(_body(request), functools.partial(self._store.write, about.place))
        await _in_thread(self._uploads.finish, upload)
        return json_response({"url": about.url})

    async def part(self, request: Request) -> Response:
        number = int(request.path_parameters["part"])
        sink = await _in_thread(self._uploads.part, request.path_parameters["upload"], number)
        await self._taken(_body(request), lambda: sink)
        etag = f'"{sink.etag}"'
        # Some clients read the header, others the body (contract 4.4).
        return json_response({"partNumber": number, "etag": etag}, headers={"etag": etag})

    async def progress(self, request: Request) -> Response:
        """Which parts are here, so that their sender can go on."""
        upload = request.path_parameters["upload"]
        about = await _in_thread(self._uploads.about, upload)
        parts = await _in_thread(self._uploads.parts, upload)
        listed = [{"partNumber": number, "etag": f'"{etag}"', "size": size} for number, etag, size in parts]
        return json_response({"url": about.url, "complete": about.done, "parts": listed})

    async def complete(self, request: Request) -> Response:
        sent = _read(request, Sent)
        about = await _in_thread(self._uploads.complete, request.path_parameters["upload"], sent.parts)
        return json_response({"url": about.url, "access_url": about.url})

    async def _taken(self, chunks: AsyncIterator[bytes], begin: Callable[[], FileSink]) -> int:
        size = await pour(chunks, begin)
        self._depot.traffic.count("uploaded", size)
        return size

    def _base(self, request: Request) -> str:
        """Where this client shall send the rest of its upload.

        One that came through the gateway trusts the gateway's certificate, and ours perhaps not.
        """
        base = self._depot.absolute("/", request).rstrip("/")
        through_gateway = FALS.search(request.headers.get("host", "")) is not None
        return GATEWAYS_CDN if through_gateway and base.startswith("https:") and not self._has_public_url else base


def uploads_of(depot: FileDepot, settings: Settings) -> Uploads:
    return Uploads(Path(settings.data_dir) / "files" / "uploads", depot.store, settings.max_file_bytes)


def description(request: Request, content_type: str | None = None, name: str | None = None) -> FileDescription:
    """What `request` brings: its type and name as said here, else as its headers say."""
    headers = request.headers
    told = headers.get("x-fal-file-name") or parameters(headers.get("content-disposition", "")).get("filename", "")
    name = safe_name(name or decoded(told.encode("latin-1")))
    said = content_type or (None if essence_of(headers.get("content-type")) == FORM else headers.get("content-type"))
    content_type, name = type_and_name(said, name)
    return FileDescription(name=name, content_type=safe_media_type(content_type), seconds=lifetime_of(request.lifecycle_preference))


async def pour(chunks: AsyncIterator[bytes], begin: Callable[[], FileSink]) -> int:
    """Write all of `chunks` in a thread while the next ones come in; return their size, or leave nothing."""
    sink = await _in_thread(begin)
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] = loop.create_future()
    writing.set_result(None)
    size = 0
    try:
        async for batch in _batches(chunks):
            size += len(batch)
            await asyncio.shield(writing)  # a cancel must not forget the thread that still writes
            writing = loop.run_in_executor(None, sink.write, batch)
        await asyncio.shield(writing)
        await _in_thread(sink.commit)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([writing])
            await _in_thread(sink.abort)
        raise
    return size


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, about a megabyte at a time: each write and each hash asks for the GIL once more."""
    batch: list[bytes] = []
    size = 0
    async for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= BATCH:
            yield b"".join(batch)
            batch, size = [], 0
    if batch:
        yield b"".join(batch)


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(function, *arguments)


def _body(request: Request) -> AsyncIterator[bytes]:
    assert request.stream is not None
    return aiter(request.stream)


def _read(request: Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HTTPError(400, f"the body is not what this path takes: {error}") from None
