"""The durable queue: a job once accepted is never lost, and fal's clients find fal's queue API.

`answering` speaks HTTP, `dispatching` moves jobs from `line` through the app's places to their
end, `sqlite` keeps them; `retries` says what is tried again and `runner.schemas.queue` where a job
can stand. Nothing is written to the data folder before the first submit. Another store may take
SQLite's place (hook `queue_store`); the jobs of one store belong to one process at a time.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from weakref import WeakKeyDictionary

from ...schemas.events import OnOutput
from ...schemas.problems import ConfigError, ServerError
from ...schemas.queue import QueueStore
from ...schemas.service import Mount, Route, ServiceView
from ..hookspecs import hookimpl
from .answering import Answers
from .dispatching import Dispatcher
from .retries import wanted
from .sqlite import SqliteStore

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
    return Answers(service, dispatcher_of(service)).routes()


@hookimpl
def mount_app(service: ServiceView) -> list[Mount]:
    """The queue where fal's clients call it: at the root of a host that begins with `queue.`."""
    app_id = service.settings.app_id or f"local/{service.app.alias}"
    return [Mount(prefix=f"/{app_id}", host="queue.*", onto=f"/queue/{app_id}")]


@hookimpl
def observe_output(service: ServiceView) -> OnOutput:
    return dispatcher_of(service).on_output


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return dispatcher_of(service).running()
