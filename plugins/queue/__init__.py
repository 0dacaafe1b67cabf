"""The durable queue: a job once accepted is never lost, and fal's clients find fal's queue API.

`answering` speaks HTTP, `dispatching` moves jobs from `line` through the app's places to their
end, `sqlite` keeps them; `retries` says what is tried again and `runner.schemas.queue` where a job
can stand; `webhooks` tells of the end. Nothing is written to the data folder before the first submit. Another store may take
SQLite's place (hook `queue_store`); the jobs of one store belong to one process at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import anyio

from ...schemas.events import OnOutput
from ...schemas.problems import ConfigError, HTTPError, ServerError
from ...schemas.queue import QueueStore
from ...schemas.request import Request
from ...schemas.response import Response, json_response
from ...schemas.service import Mount, Route, ServiceView
from ..hookspecs import hookimpl
from .answering import Answers
from .dispatching import Dispatcher
from .retries import wanted
from .sqlite import SqliteStore

if TYPE_CHECKING:
    from .webhooks import Webhooks

# The hooks are asked apart and must come to the same dispatcher.
_dispatchers: WeakKeyDictionary[ServiceView, Dispatcher] = WeakKeyDictionary()


def dispatcher_of(service: ServiceView) -> Dispatcher:
    if service not in _dispatchers:
        assert service.queue_store is not None  # ours answers for want of another
        _dispatchers[service] = Dispatcher(service, service.queue_store)
    return _dispatchers[service]


@hookimpl
def queue_store(service: ServiceView) -> QueueStore:
    settings = service.settings
    return SqliteStore(Path(settings.data_dir) / "queue", durability=settings.durability)


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    try:
        wanted({}, service.app.options)
    except ServerError as error:
        raise ConfigError(f"{service.app.name}.{error}") from None
    service.tallies["queue"] = dispatcher_of(service).tally

    async def jwks(request: Request) -> Response:
        from .webhooks import Keys

        keys = Keys(signing_key_of(service))
        try:
            return json_response(await anyio.to_thread.run_sync(keys.jwks), headers={"cache-control": "max-age=3600"})
        except (ImportError, OSError) as error:
            raise HTTPError(503, f"webhooks are not signed here: {error}") from error

    return [*Answers(service, dispatcher_of(service)).routes(), Route(method="GET", path="/.well-known/jwks.json", answer=jwks)]


@hookimpl
def mount_app(service: ServiceView) -> list[Mount]:
    """The queue where fal's clients call it: at the root of a host that begins with `queue.`."""
    app_id = service.settings.app_id or f"local/{service.app.alias}"
    return [Mount(prefix=f"/{app_id}", host="queue.*", onto=f"/queue/{app_id}")]


@hookimpl
def observe_output(service: ServiceView) -> OnOutput | None:
    return None if service.app.options.private_logs else dispatcher_of(service).on_output


def signing_key_of(service: ServiceView) -> Path:
    return Path(service.settings.data_dir) / "webhooks.pem"


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return running(service)


@asynccontextmanager
async def running(service: ServiceView) -> AsyncIterator[None]:
    """Run jobs, and deliver their webhooks from the first that is owed."""
    dispatcher = dispatcher_of(service)
    started: list[Webhooks] = []
    delivering: list[asyncio.Task[None]] = []

    def look() -> None:
        if not started:
            from .webhooks import (  # not before: they would cost every cold start some milliseconds
                Keys,
                Webhooks,
            )

            allowed = service.settings.allow_private_hosts
            started.append(Webhooks(dispatcher.store, Keys(signing_key_of(service)), allowed_hosts=allowed))
            delivering.append(asyncio.get_running_loop().create_task(started[0].deliver()))
        started[0].look()

    dispatcher.on_open = look
    dispatcher.on_over = lambda job: look() if job.webhook else None
    async with dispatcher.running():
        try:
            yield
        finally:
            for task in delivering:
                task.cancel()
            if delivering:
                await asyncio.wait(delivering)
