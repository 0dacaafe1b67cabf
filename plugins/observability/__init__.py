"""What the server tells: log lines, one line per request, and what the app prints.

Log lines go to stderr, for people or as JSON, each with the id of the request it was written for;
the standard library's `logging` goes the same way. While the service lives, `print` in the app
becomes `app.output` lines, so that each is known to belong to its request. A request's own line
costs the request only a place in a batch; the batch is written every hundredth of a second
and when the service ends. Bytes that go round Python (subprocesses, C libraries) are not seen.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import structlog

from ...schemas.events import Finished, OnOutput
from ...schemas.service import ServiceView
from ...schemas.settings import Settings
from ..hookspecs import hookimpl
from ..logs import channel
from .journal import BATCH_LINES, BATCH_SECONDS, Journal
from .lines import configure_logging, take_structlog
from .output import captured, stand_in

__all__ = [
    "BATCH_LINES", "BATCH_SECONDS", "Journal", "configure_logging", "lifespan", "observe_requests", "on_output", "prepare",
]  # fmt: skip

# Both hooks are asked apart and must come to the same journal.
_journals: WeakKeyDictionary[Any, Journal] = WeakKeyDictionary()


def journal_of(service: ServiceView) -> Journal:
    return _journals.setdefault(service, Journal())


def on_output(service: ServiceView, listener: OnOutput) -> None:
    """Call `listener(request_id, stream, text, when)` with every line that the app prints.

    It is called in the thread that prints, at once; it must be quick. What it raises is logged.
    """
    journal_of(service).output.listeners.append(listener)


def prepare(settings: Settings) -> None:
    """Open the log and stand in for the streams. Called by `main`, before the app is imported."""
    configure_logging(settings.log_format, settings.log_level)
    stand_in()


@hookimpl
def observe_requests(service: ServiceView) -> Callable[[Finished], None]:
    return journal_of(service).add


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None]:
    return _observed(service)


@asynccontextmanager
async def _observed(service: ServiceView) -> AsyncIterator[None]:
    journal, settings = journal_of(service), service.settings
    journal.output.listeners.extend(service.output_observers)
    if channel.is_open:
        take_structlog()  # anew: some packages, fal's among them, turn it to themselves when imported, and drop what is below a warning
    ours = not (channel.is_open or structlog.is_configured())  # no `main`: another server carries us
    if ours:
        configure_logging(
            settings.log_format, settings.log_level, stdlib=not logging.root.handlers
        )
    try:
        with captured(journal.output):
            yield
    finally:
        journal.close()
        if ours:
            channel.close()
            structlog.reset_defaults()
