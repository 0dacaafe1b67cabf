"""Watching: from a file that changed to new code in the process, or to a restart and its reason."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

from ...schemas.exits import RELOADED
from ...schemas.service import ServiceView
from ..logs import get_logger
from . import LOADING_SINCE
from .editions import Edition
from .reach import judge
from .swap import swap

log = get_logger("runner.reload")

Stamp = tuple[int, int] | None  # nanoseconds since 1970, bytes; None: not there
QUIET_MILLISECONDS = 50  # without another change, after which a file is taken to be written
LOOK_MILLISECONDS = 1000  # the files are looked at without a notice too


@asynccontextmanager
async def watched(service: ServiceView) -> AsyncIterator[None]:
    watching = asyncio.create_task(Reloading(service).watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


class Reloading:
    """Owns the editions that are in use. One per service, lived on its loop."""

    def __init__(self, service: ServiceView) -> None:
        self._service = service
        self._editions: dict[str, Edition] = {}
        self._plugins = {str(Path(name).resolve()) for name in service.settings.plugin if name.endswith(".py")}
        self._configured = {str(Path(name).resolve()) for name in ("runner.toml", "pyproject.toml") if Path(name).is_file()}
        self._stamps: dict[str, Stamp] = {}
        self._learn()
        self.changed()

    async def watch(self) -> None:
        from watchfiles import awatch

        if late := [file for file in self._editions if (stamp := stamp_of(file)) and stamp[0] > LOADING_SINCE]:
            return self._restart(f"{Path(late[0]).name} changed while the app was loaded")
        while True:
            folders = {str(Path(file).parent) for file in (*self._editions, *self._plugins, *self._configured)}
            log.info("reload.watching", folders=sorted(folders))
            async for _ in awatch(*folders, recursive=False, step=QUIET_MILLISECONDS, rust_timeout=LOOK_MILLISECONDS, yield_on_timeout=True):
                if paths := self.changed():
                    self.look(paths)
                if not {str(Path(file).parent) for file in self._editions} <= folders:
                    break  # a module from another folder was imported

    def changed(self) -> set[str]:
        """The files that are others than when last asked. The notices only wake us: some get lost, or come before we listen."""
        now = {file: stamp_of(file) for file in (*self._editions, *self._plugins, *self._configured)}
        changed = {file for file, stamp in now.items() if file in self._stamps and stamp != self._stamps[file]}
        self._stamps = now
        return changed

    def look(self, paths: Iterable[str]) -> None:
        """Some files may have changed: swap, or ask for a restart."""
        began = time.perf_counter()
        if touched := sorted((self._plugins | self._configured) & set(paths)):
            return self._restart(f"{Path(touched[0]).name} changed")
        new: dict[str, Edition] = {}
        for file in self._editions.keys() & set(paths):
            try:
                source = Path(file).read_text()
                if source.strip() and source != self._editions[file].source:
                    new[file] = Edition(file, source)
            except (OSError, UnicodeDecodeError, SyntaxError) as error:
                where = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
                log.error("reload.refused", file=file, reason=f"{where}{getattr(error, 'msg', error)}", help="the last good code serves on")
                return
        if not new:
            return
        changes, doubt = judge(self._editions, new)
        if doubt:
            return self._restart(doubt)
        modules = {file: module for module, file in modules_of_app()}
        for file, edition in new.items():
            try:
                if doubt := swap(modules[file], edition, changes[file]):
                    return self._restart(doubt)
            except Exception as error:
                log.error("reload.refused", file=file, exc_info=error, help="the last good code serves on")
                return
            self._editions[file] = edition
        self._learn()
        names = [name for each in changes.values() for name in each.names]
        log.info("reload.swapped", files=sorted(new), names=names, milliseconds=round((time.perf_counter() - began) * 1000, 1))

    def _restart(self, reason: str) -> None:
        self._service.health.replace(RELOADED, reason)

    def _learn(self) -> None:
        """Take up modules that were imported since."""
        for _, file in modules_of_app():
            if file not in self._editions:
                try:
                    self._editions[file] = Edition(file, Path(file).read_text())
                except (OSError, UnicodeDecodeError, SyntaxError):
                    continue  # it has changed since it was imported; the next change will tell


def stamp_of(file: str) -> Stamp:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def modules_of_app() -> Iterator[tuple[ModuleType, str]]:
    """The modules that came from the app's folder, which is first on `sys.path`."""
    folder = sys.path[0]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{folder}/") and file.endswith(".py") and "site-packages" not in file and name.partition(".")[0] not in ("runner", "__main__", "__mp_main__"):
            yield module, file
