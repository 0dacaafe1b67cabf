"""The outbox of one service: when its webhooks begin to be delivered, and whether they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ...schemas.queue import Job, QueueStore, Unstorable
from ...schemas.service import ServiceView
from ..logs import get_logger

if TYPE_CHECKING:
    from .webhooks import Webhooks

log = get_logger("runner.webhooks")

COUNTS = ("webhooks_delivered_total", "webhooks_failed_total", "webhooks_given_up_total")  # attempts, since the start


def signing_key_of(service: ServiceView) -> Path:
    return Path(service.settings.data_dir) / "webhooks.pem"


class Outbox:
    """Owns the task that delivers, and imports what that takes when the first webhook is owed."""

    def __init__(self, service: ServiceView, store: QueueStore) -> None:
        self._service, self._store = service, store
        self._webhooks: Webhooks | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    def begin(self) -> None:
        """The store is open, and webhooks may be owed from before."""
        self._delivering = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        with suppress(Unstorable):  # then `deliver` sees
            if not await self._store.deliveries():
                await self._first.wait()
        module: Any = await anyio.to_thread.run_sync(import_module, ".webhooks", __package__)  # some milliseconds of work
        keys = module.Keys(signing_key_of(self._service))
        service = self._service
        allowed, signers, blame = service.settings.allow_private_hosts, service.webhook_signers, service.failures.blame
        self._webhooks = module.Webhooks(self._store, keys, allowed_hosts=allowed, signers=signers, blame=blame)
        try:
            await self._webhooks.deliver()
        except Exception as error:
            log.error("webhooks.stopped", exc_info=error)

    def ended(self, job: Job) -> None:
        if job.webhook:
            self._first.set()
            if self._webhooks is not None:
                self._webhooks.look()

    async def check(self) -> str | None:
        """Why webhooks are not delivered though they are due, or None. A receiver who does not answer is no reason."""
        if self._delivering is not None and self._delivering.done():
            return "webhooks are not delivered any more: see the log"
        return self._webhooks.stuck() if self._webhooks is not None else None

    def tally(self) -> Mapping[str, float]:
        if self._webhooks is None:
            return {"webhooks_owed": 0.0, **dict.fromkeys(COUNTS, 0.0)}
        return {"webhooks_owed": float(self._webhooks.owed), **self._webhooks.counts}

    async def end(self) -> None:
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
