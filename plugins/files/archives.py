"""Archives: a zip file as a folder that is gone with the File, unpacked within limits.

What counts is what comes out, not what the archive says of itself: unpacking stops at the limits
below. Names that lead out of the folder are cut (zipfile does that) and links are not made.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...schemas.files import File

MiB = 1024 * 1024
MOST_BYTES = 4 * 1024 * MiB  # unpacked
MOST_RATIO = 200  # unpacked to packed; text seldom shrinks below a twentieth
FREE_OF_RATIO = 256 * MiB  # unpacked, up to which any ratio will do
MOST_ENTRIES = 100_000
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)


class CompressedFile(File):
    """A File that is a zip archive. Iterating over it gives the paths of the files in it."""

    _folder: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        """Every file in it, by path. They exist as long as this object."""
        return self.glob("**/*")

    iter = __iter__

    def glob(self, pattern: str) -> Iterator[Path]:
        """The files in it whose path within the archive matches `pattern`, such as "*.png" or "**/*.txt"."""
        return (path for path in sorted(self._unpacked().glob(pattern)) if path.is_file())

    def _unpacked(self) -> Path:
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix="runner-zip-"))
            try:
                with self.open() as source:
                    unpack(source, folder)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, Unpackable):
                    raise self.invalid(f"Archive could not be unpacked: {error}", type="file_load_error") from None
                raise
            self._folder = folder
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return self._folder


class Unpackable(Exception):
    """Why an archive was not unpacked, in words for whoever sent it."""


def unpack(source: BinaryIO, folder: Path) -> None:
    """Unpack the zip archive `source` into `folder`. Raises Unpackable, leaving what was unpacked so far."""
    try:
        packed = source.seek(0, 2)
        most = min(MOST_BYTES, max(FREE_OF_RATIO, packed * MOST_RATIO))
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_ENTRIES:
                raise Unpackable(f"it holds more than {MOST_ENTRIES} files")
            for entry in entries:
                most -= _extract(archive, entry, folder, most)
    except BROKEN as error:
        raise Unpackable(str(error) or type(error).__name__) from None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, most: int) -> int:
    parts = [part for part in entry.filename.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return 0
    target = folder.joinpath(*parts)
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(entry) as packed, target.open("wb") as unpacked:
        while chunk := packed.read(MiB):
            size += len(chunk)
            if size > most:
                raise Unpackable("it unpacks to more bytes than this server allows")
            unpacked.write(chunk)
    return size
