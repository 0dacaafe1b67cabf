"""The durable queue: a job once accepted is never lost, and fal's clients find fal's queue API.

`answering` speaks HTTP, `dispatching` moves jobs from `line` through the app's places to their
end, `sqlite` keeps them; `retries` says what is tried again and `runner.schemas.queue` where a job
can stand; `webhooks` tells of the end, from when `outbox` says. Nothing is written to the data folder before the
first submit. Another store may take SQLite's place (hook `queue_store`); the jobs of one store belong to one
process at a time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import anyio

from ...schemas.events import OnOutput
from ...schemas.problems import ConfigError, HTTPError, ServerError
from ...schemas.queue import QueueStore
from ...schemas.request import Request
from ...schemas.response import Response, json_response
from ...schemas.service import Check, Mount, Route, ServiceView
from ..hookspecs import hookimpl
from .answering import Answers
from .dispatching import Dispatcher
from .outbox import Outbox, signing_key_of
from .retries import wanted
from .sqlite import SqliteStore


class Parts(NamedTuple):
    """What the queue of one service is made of."""

    dispatcher: Dispatcher
    outbox: Outbox


# The hooks are asked apart and must come to the same parts.
_parts: WeakKeyDictionary[ServiceView, Parts] = WeakKeyDictionary()


def parts_of(service: ServiceView) -> Parts:
    if service not in _parts:
        assert service.queue_store is not None  # ours answers for want of another
        _parts[service] = Parts(Dispatcher(service, service.queue_store), Outbox(service, service.queue_store))
    return _parts[service]


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
    dispatcher, outbox = parts_of(service)
    service.tallies["queue"] = lambda: {**dispatcher.tally(), **outbox.tally()}

    async def jwks(request: Request) -> Response:
        from .webhooks import Keys

        keys = Keys(signing_key_of(service))
        try:
            return json_response(await anyio.to_thread.run_sync(keys.jwks), headers={"cache-control": "max-age=3600"})
        except (ImportError, OSError) as error:
            raise HTTPError(503, f"webhooks are not signed here: {error}") from error

    return [*Answers(service, dispatcher).routes(), Route(method="GET", path="/.well-known/jwks.json", answer=jwks)]


@hookimpl
def mount_app(service: ServiceView) -> list[Mount]:
    """The queue where fal's clients call it: at the root of a host that begins with `queue.`."""
    app_id = service.settings.app_id or f"local/{service.app.alias}"
    return [Mount(prefix=f"/{app_id}", host="queue.*", onto=f"/queue/{app_id}")]


@hookimpl
def observe_output(service: ServiceView) -> OnOutput | None:
    return None if service.app.options.private_logs else parts_of(service).dispatcher.on_output


@hookimpl
def health_checks(service: ServiceView) -> Mapping[str, Check]:
    dispatcher, outbox = parts_of(service)
    return {"queue": dispatcher.check, "webhooks": outbox.check}


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return running(service)


@asynccontextmanager
async def running(service: ServiceView) -> AsyncIterator[None]:
    """Run jobs, and deliver their webhooks from the first that is owed."""
    dispatcher, outbox = parts_of(service)
    dispatcher.on_open, dispatcher.on_over = outbox.begin, outbox.ended
    async with dispatcher.running():
        try:
            yield
        finally:
            await outbox.end()
