"""The outbox of one service: when its webhooks begin to be delivered, and whether they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...schemas.queue import Job, QueueStore
from ...schemas.service import ServiceView

if TYPE_CHECKING:
    from .webhooks import Webhooks

COUNTS = ("webhooks_delivered_total", "webhooks_failed_total", "webhooks_given_up_total")  # attempts, since the start


def signing_key_of(service: ServiceView) -> Path:
    return Path(service.settings.data_dir) / "webhooks.pem"


class Outbox:
    """Owns the task that delivers. It begins when the store is open, since webhooks may be owed from before."""

    def __init__(self, service: ServiceView, store: QueueStore) -> None:
        self._service, self._store = service, store
        self._webhooks: Webhooks | None = None
        self._delivering: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The store is open."""
        from .webhooks import Keys, Webhooks  # not before: each cold start would pay for it

        allowed = self._service.settings.allow_private_hosts
        self._webhooks = Webhooks(self._store, Keys(signing_key_of(self._service)), allowed_hosts=allowed)
        self._delivering = asyncio.get_running_loop().create_task(self._webhooks.deliver())

    def ended(self, job: Job) -> None:
        if job.webhook and self._webhooks is not None:
            self._webhooks.look()

    async def check(self) -> str | None:
        """Why webhooks are not delivered though they are due, or None. A receiver who does not answer is no reason."""
        if self._webhooks is None or self._delivering is None:
            return None
        if self._delivering.done():
            return "webhooks are not delivered any more: see the log"
        return self._webhooks.stuck()

    def tally(self) -> Mapping[str, float]:
        if self._webhooks is None:
            return {"webhooks_owed": 0.0, **dict.fromkeys(COUNTS, 0.0)}
        return {"webhooks_owed": float(self._webhooks.owed), **self._webhooks.counts}

    async def end(self) -> None:
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.wait([self._delivering])
