"""Reloading, for those who write an app: `--reload`.

When a file of the app changes, what changed decides. New bodies of endpoints, and of what only they
call, are put into the process that runs: the model stays loaded. Whatever the loaded model was made
with, or the routes and types, needs a restart, which the parent of `--supervise` does behind the
open socket. In doubt it is a restart, and the log says why. A file that Python cannot read changes
nothing; the last good code serves on.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

from ...schemas.exits import RELOADED
from ...schemas.problems import ConfigError
from ...schemas.service import ServiceView
from ...schemas.settings import Settings
from ..hookspecs import hookimpl
from ..logs import get_logger

log = get_logger("runner.reload")

LOADING_SINCE = time.time_ns()  # this module is imported before the app is


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    if not service.settings.reload:
        return None
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("--reload needs the package watchfiles; pip install 'onerunner[reload]'")
    from .watching import watched  # only who develops needs it

    return watched(service)


@contextmanager
def waiting_for_a_better_one(settings: Settings) -> Iterator[None]:
    """With `--reload`, an app that cannot be loaded is told, and the next change awaited instead of the end."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if not settings.reload:
            raise
        text = f"runner: {error}\n" if isinstance(error, ConfigError) else "".join(traceback.format_exception(error))
        sys.stderr.write(text)
        _wait_for_change(settings)
        raise SystemExit(RELOADED) from None


def _wait_for_change(settings: Settings) -> None:
    from watchfiles import watch

    from .watching import LOOK_MILLISECONDS, QUIET_MILLISECONDS, modules_of_app, stamp_of

    folders: set[Any] = {sys.path[0], *(Path(file).parent for _, file in modules_of_app())}
    folders |= {Path(name).resolve().parent for name in settings.plugin if Path(name).is_file()}
    log.info("reload.waiting", folders=sorted(map(str, folders)), help="change a file and it is tried again")
    for changes in watch(*folders, recursive=False, step=QUIET_MILLISECONDS, rust_timeout=LOOK_MILLISECONDS, yield_on_timeout=True):
        files = (str(file) for folder in folders for file in Path(folder).glob("*.py"))
        if changes or any((stamp := stamp_of(file)) and stamp[0] > LOADING_SINCE for file in files):
            return
