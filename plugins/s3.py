"""Files in a bucket: Amazon S3 and what speaks like it, for several runners or small disks.

    python runner.py app:MyApp --file-store s3://my-bucket/files            (pip install 'onerunner[s3]')

Credentials, region and endpoint come from the environment, as for every S3 client (AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). A file's object is `{prefix}/{day}/{key}/{name}`; `day` is
the one after which it may go, and objects of past days are deleted once an hour.

Callers read it under `--file-store-url` when the bucket is public there. Otherwise they get a URL
that is signed for the file's life, or, since S3 signs for a week at most, a path of this server
that leads to a freshly signed one. A file is written to a temporary file first and sent whole, so
that nobody sees half of it.
"""

from __future__ import annotations

import datetime
import errno
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextlib import suppress as suppressed
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import anyio

from ..schemas.files import Content, safe_name
from ..schemas.problems import ConfigError, HTTPError
from ..schemas.request import Request
from ..schemas.response import Response
from ..schemas.service import Route, ServiceView
from ..schemas.settings import Settings
from ..schemas.storing import FileDescription, FilePlace, content_disposition
from .hookspecs import hookimpl
from .logs import get_logger

if TYPE_CHECKING:
    from obstore.store import S3Store

log = get_logger("runner.s3")

MiB = 1024 * 1024
WEEK = 7 * 24 * 3600.0  # for which S3 signs at most
FOR_EVER = "99991231"
SWEEP_SECONDS = 3600.0
PART_BYTES, PARTS_AT_ONCE = 8 * MiB, 4
OUR_KEY = re.compile(r"(?:^|/)((\d{8})[0-9a-f]{32})/([^/]+)$")


@hookimpl
def file_store(settings: Settings) -> Bucket | None:
    """The bucket that `--file-store` names. ConfigError when its client is not installed."""
    if not settings.file_store:
        return None
    try:
        from obstore.store import S3Store
    except ModuleNotFoundError:
        raise ConfigError("--file-store s3://… needs obstore; pip install 'onerunner[s3]'") from None
    parts = urlsplit(settings.file_store)
    plain_http: Any = {"allow_http": True}  # an endpoint of one's own, on one's own network
    client = S3Store(parts.netloc, prefix=parts.path.strip("/") or None, client_options=plain_http)
    return Bucket(client, public_url=settings.file_store_url.rstrip("/"), seconds=settings.file_seconds)


@hookimpl
def register_routes(service: ServiceView) -> list[Route] | None:
    """Our own address of files that live longer than a signature."""
    bucket = service.depot.store if service.depot is not None else None
    if not isinstance(bucket, Bucket):
        return None

    async def lead_on(request: Request) -> Response:
        url = await anyio.to_thread.run_sync(bucket.signed_again, f"{request.path_parameters['id']}/{request.path_parameters['name']}")
        if url is None:
            raise HTTPError(404, "there is no such file, or no longer")
        return Response(b"", 307, {"location": url, "cache-control": "no-store"})

    return [Route(method="GET", path="/files/{id}/{name}", answer=lead_on)]


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    bucket = service.depot.store if service.depot is not None else None
    return _swept(bucket) if isinstance(bucket, Bucket) else None


@asynccontextmanager
async def _swept(bucket: Bucket) -> AsyncIterator[None]:
    async def sweep_often() -> None:
        while True:
            try:
                if gone := await anyio.to_thread.run_sync(bucket.sweep):
                    log.info("files.expired", files=gone)
            except Exception as error:  # the bucket may not be reached just now
                log.error("files.not_swept", problem=str(error))
            await anyio.sleep(SWEEP_SECONDS)

    async with anyio.create_task_group() as group:
        group.start_soon(sweep_often)
        yield
        group.cancel_scope.cancel()


class Bucket:
    """A FileStore in a bucket. Keeps nothing itself."""

    def __init__(
        self,
        client: S3Store,
        *,
        public_url: str = "",
        seconds: float = 0,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._client, self._public_url, self._seconds, self._now = client, public_url, seconds, now

    def place(self, file: FileDescription) -> FilePlace:
        seconds = file.seconds if file.seconds is not None else self._seconds
        day = FOR_EVER
        with suppressed(OverflowError):  # after the year 9999
            day = f"{self._now() + datetime.timedelta(seconds=seconds):%Y%m%d}" if seconds else FOR_EVER
        key = day + secrets.token_hex(16)
        return FilePlace(key=key, url=self._url(key, file.name, seconds), file=file)

    def write(self, place: FilePlace) -> Object:
        return Object(self._client, f"{place.key[:8]}/{place.key}/{place.file.name}", place.file)

    def read(self, url: str) -> Content | None:
        """Any host will do, as for the store on disk: the key is what nobody guesses."""
        path = self._path(unquote(urlsplit(url).path))
        if path is None:
            return None
        import obstore

        try:
            found = obstore.get(self._client, path)
        except FileNotFoundError:
            return None
        content = Content(content_type=found.attributes.get("Content-Type"), file_name=safe_name(path.rpartition("/")[2]))
        try:
            for chunk in found.stream(min_chunk_size=MiB):
                content.append(chunk)
        except BaseException:
            content.close()
            raise
        return content

    def signed_again(self, key_and_name: str) -> str | None:
        """A URL good for a week, or for what is left of the file's life; None when it is over."""
        path = self._path(key_and_name)
        if path is None:
            return None
        import obstore

        try:
            obstore.head(self._client, path)
        except FileNotFoundError:
            return None
        return self._signed(path, WEEK)

    def sweep(self) -> int:
        """Delete the objects whose day is over. Returns how many."""
        import obstore

        today, gone = f"{self._now():%Y%m%d}", 0
        for prefix in obstore.list_with_delimiter(self._client)["common_prefixes"]:
            day = prefix.strip("/").rpartition("/")[2]
            if re.fullmatch(r"\d{8}", day) and day < today:
                for batch in obstore.list(self._client, prefix=f"{day}/"):
                    obstore.delete(self._client, [item["path"] for item in batch])
                    gone += len(batch)
        return gone

    def _url(self, key: str, name: str, seconds: float) -> str:
        path = f"{key[:8]}/{key}/{name}"
        if self._public_url:
            return f"{self._public_url}/{quote(path)}"
        if not seconds or seconds > WEEK:
            return f"/files/{key}/{quote(name, safe='')}"
        return self._signed(path, seconds)

    def _signed(self, path: str, seconds: float) -> str:
        import obstore

        return obstore.sign(self._client, "GET", path, datetime.timedelta(seconds=max(1.0, seconds)))

    def _path(self, text: str) -> str | None:
        """The object that `text`, the end of a URL's path, means; None when its day is over or it is not ours."""
        match = OUR_KEY.search(text)
        if match is None or match[2] < f"{self._now():%Y%m%d}":
            return None
        return f"{match[2]}/{match[1]}/{match[3]}"


class Object:
    """A file of the bucket while it is written."""

    def __init__(self, client: S3Store, path: str, file: FileDescription) -> None:
        self._client, self._path, self._file = client, path, file
        self._content = Content()

    def write(self, chunk: bytes) -> None:
        with told_in_http():
            self._content.append(chunk)

    def commit(self) -> None:
        import obstore

        attributes: Any = {
            "Content-Type": self._file.content_type,
            "Content-Disposition": content_disposition(self._file.name, self._file.content_type),
        }
        with told_in_http(), self._content.reader() as reader:
            obstore.put(
                self._client, self._path, reader,
                attributes=attributes, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE,
            )  # fmt: skip
        self._content.close()

    def abort(self) -> None:
        self._content.close()


@contextmanager
def told_in_http() -> Any:
    """Make what goes wrong on the way to the bucket an answer that says so."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise HTTPError(502, "the store for files does not take this one now") from error
        raise HTTPError(507, "this server has no room for the file: its disk is full") from error
    except Exception as error:
        raise HTTPError(502, "the store for files does not take this one now") from error
