"""Files: fetched for the endpoint that reads them, kept for the caller who gets them.

In: a URL in an input is an order to our network, given by a stranger. So a host is resolved once,
every address it has must be one that all the internet can reach, and the connection goes to the
address that was checked, under the host's name (RFC 9110 Host, TLS SNI): a name that resolves
elsewhere a moment later changes nothing. Each redirect starts again from there. Hosts in
`allow_private_hosts` are exempt, and files of our own store are read from it without a connection.
Proxies named in the environment are not asked: they would resolve for us. The download runs in the
thread that reads, when it reads, and ends within a moment once the request is cancelled. An upload
is the same input in another dress: see `uploads`.

Out: a File that an endpoint makes is stored at once (`store`) and answers under an unguessable URL
(`serving`) until it expires. Callers put large inputs there themselves (`receiving`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from ...schemas.endpoint import Endpoint
from ...schemas.files import Download, Loc
from ...schemas.request import Request, current_request
from ...schemas.service import BindWrapper, Call, Route, ServiceView, Wrapper
from ...schemas.settings import Settings
from ...schemas.storing import FileDepot, FileStore, enter_depot
from ..hookspecs import hookimpl
from ..logs import get_logger
from .archives import CompressedFile
from .depot import Depot
from .fetching import Fetcher
from .parts import Uploads
from .pictures import Image
from .places import files_in, holds_files
from .receiving import Receiving, uploads_of
from .serving import Serving
from .sound import Audio
from .store import LocalStore
from .uploads import accept_uploads

__all__ = [
    "Audio", "CompressedFile", "Depot", "Fetcher", "Image", "accept_uploads", "attach", "file_store", "files_in",
    "holds_files", "lifespan", "register_routes", "wrap_bind", "wrap_call",
]  # fmt: skip

log = get_logger("runner.files")

SWEEP_SECONDS = 60.0
REMAINS_EVERY = 24 * 60  # sweeps; the first is one of them


@hookimpl
def file_store(settings: Settings) -> FileStore:
    return LocalStore(Path(settings.data_dir) / "files", most_bytes=settings.max_stored_bytes, seconds=settings.file_seconds)


@hookimpl
def register_routes(service: ServiceView) -> list[Route] | None:
    """What callers put and get. Getting is the store's own business when it is not ours."""
    if service.depot is None:
        return None
    routes = Receiving(service.depot, service.settings).routes()
    if isinstance(service.depot.store, LocalStore):
        routes.append(Route(method="GET", path="/files/{id}/{name}", answer=Serving(service.depot.store).answer))
    return routes


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    """Let Files that know of no request find the depot, and sweep the store now and then."""
    return _open(service.depot, service.settings) if service.depot is not None else None


@asynccontextmanager
async def _open(depot: FileDepot, settings: Settings) -> AsyncIterator[None]:
    try:
        with enter_depot(depot):
            async with anyio.create_task_group() as group:
                group.start_soon(_sweep_often, depot.store, uploads_of(depot, settings))
                yield
                group.cancel_scope.cancel()
    finally:
        if isinstance(depot.store, LocalStore):
            depot.store.close()


async def _sweep_often(store: FileStore, uploads: Uploads) -> None:
    for turn in itertools.count():
        try:
            await anyio.to_thread.run_sync(uploads.sweep)
            if isinstance(store, LocalStore):
                if turn % REMAINS_EVERY == 0:
                    await anyio.to_thread.run_sync(store.sweep_remains)
                if gone := await anyio.to_thread.run_sync(store.sweep):
                    log.info("files.expired", files=gone)
        except Exception as error:
            log.error("files.not_swept", exc_info=error)
        await anyio.sleep(SWEEP_SECONDS)


@hookimpl
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper | None:
    """Give every File of a request the means to fetch it; what holds no File is left alone.

    Those of a batched endpoint are fetched before their request joins a batch: one that cannot be
    fails its own request and no other.
    """
    depot = service.depot
    places = [
        (p.name, ("body", p.alias) if endpoint.embed else ("body",))
        for p in endpoint.body_parameters()
        if holds_files(p.type)
    ]
    if not places or depot is None:
        return None

    def wrapper(call: Call) -> Call:
        async def call_with_files(request: Request, arguments: dict[str, Any]) -> Any:
            for name, loc in places:
                attach(arguments.get(name), loc, request, depot.fetch)
                if endpoint.mark.batch is not None:
                    for _, file in files_in(arguments.get(name), loc):
                        (await file.open_async()).close()
            return await call(request, arguments)

        return call_with_files

    return wrapper


@hookimpl
def wrap_bind(endpoint: Endpoint, service: ServiceView) -> BindWrapper | None:
    """Let callers upload the File that an endpoint takes."""
    if not any(holds_files(p.type) for p in endpoint.body_parameters()):
        return None
    return functools.partial(accept_uploads, endpoint)


def attach(value: Any, loc: Loc, request: Request, fetch: Download) -> None:
    """Let the Files in `value` be fetched for `request`; `loc` is where `value` stands in the input."""

    def gone() -> bool:
        # Ask whoever reads: a File that is a field's default is one object for all requests.
        # Threads that an author starts may know of no request; they work for the one it came with.
        here = current_request()
        return (here if here.id is not None else request).cancelled

    for at, file in files_in(value, loc):
        file.attach(fetch, loc=at, gone=gone)
