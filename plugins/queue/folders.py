"""One process per folder: the second is told who has it.

A record lock of POSIX: it ends with its process, however that ends, and children forked by the app
do not inherit it, as they would one of `flock`. But it knows only processes, and is gone with the
first descriptor of its file that is closed; so what this process has stands in `_ours`.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ...schemas.queue import StoreTaken

_ours: set[Path] = set()


class FolderLock:
    """The right to use `folder`, which exists by the time of `take`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the folder, unless that was done. Raises StoreTaken while another process, or another lock here, has it."""
        if self._descriptor is not None:
            return
        if self._folder.resolve() in _ours:
            raise taken(self._folder, os.getpid())
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pid = os.read(descriptor, 20).decode("ascii", "replace")
            os.close(descriptor)
            raise taken(self._folder, pid) from None
        except OSError:
            os.close(descriptor)
            raise
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        _ours.add(self._folder.resolve())

    def let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _ours.discard(self._folder.resolve())


def taken(folder: Path, pid: int | str) -> StoreTaken:
    return StoreTaken(f"{folder} is used by another runner (pid {pid}); give one of them another --data-dir")
