"""The parts of `fal.toolkit` that need nothing but Python, git and anyio.

The persistent folder is /data, as on fal, where this process may write there; else `fal` in the
user's cache folder, because a laptop has no /data.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from ...schemas.problems import ConfigError
from ...schemas.request import Request

log = logging.getLogger("runner.fal")


def persistent_dir() -> Path:
    """Where weights and repositories outlive the process."""
    data = Path("/data")
    if data.is_dir() and os.access(data, os.W_OK):
        return data
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fal"


FAL_PERSISTENT_DIR = persistent_dir()
FAL_REPOSITORY_DIR = FAL_PERSISTENT_DIR / ".fal" / "repos"
FAL_MODEL_WEIGHTS_DIR = FAL_PERSISTENT_DIR / ".fal" / "model_weights"


class FalTookitException(Exception):
    """Base of the toolkit's exceptions. The spelling is fal's."""


class FileUploadException(FalTookitException):
    """A file could not be stored."""


class FileUploadFallbackException(FileUploadException):
    """A file could not be stored, neither where it should be nor in any fallback."""


class KVStoreException(FalTookitException):
    """fal's key-value store failed. Nothing here raises it; apps may catch it."""


class DownloadError(Exception):
    """A file could not be fetched."""


def clone_repository(
    https_url: str,
    *,
    commit_hash: str | None = None,
    target_dir: str | Path | None = None,
    repo_name: str | None = None,
    force: bool = False,
    include_to_path: bool = False,
) -> Path:
    """Clone a git repository and return its folder, which appears there whole or not at all.

    A clone of the same `commit_hash` is used again unless `force`. With `include_to_path` the
    folder is put first on `sys.path`. Raises ValueError for a `commit_hash` under eight characters
    and CalledProcessError, git's own words in its `stderr`, when git fails.
    """
    if commit_hash is not None and len(commit_hash) < 8:
        raise ValueError(f"commit_hash {commit_hash!r} is too short; give eight characters or more")
    parent = Path(target_dir or FAL_REPOSITORY_DIR)
    name = repo_name or Path(https_url).stem + (f"-{commit_hash[:8]}" if commit_hash else "")
    folder = parent / name
    if force or not _holds(folder, commit_hash):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.") as scratch:
            fresh = Path(scratch) / "new"
            log.info("cloning %s", https_url)
            _git("clone", "--recursive", "--", https_url, str(fresh))
            if commit_hash:
                _git("-C", str(fresh), "checkout", "--detach", commit_hash)
                _git("-C", str(fresh), "submodule", "update", "--init", "--recursive")
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            try:
                fresh.rename(folder)
            except OSError:
                if not _holds(folder, commit_hash):  # else another process was first
                    raise
    if include_to_path and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return folder


def _holds(folder: Path, commit_hash: str | None) -> bool:
    if commit_hash is None or not folder.is_dir():
        return False
    try:
        return _git("-C", str(folder), "rev-parse", "HEAD").startswith(commit_hash)
    except subprocess.CalledProcessError:
        return False


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        raise ConfigError("clone_repository needs git; install it in the image, for example apt-get install git")
    done = subprocess.run(
        ["git", "-c", "advice.detachedHead=false", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        log.error("git failed: %s", done.stderr.strip())
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
    return done.stdout


@asynccontextmanager
async def cancel_on_disconnect(request: Any) -> AsyncIterator[None]:
    """Stop the body when the caller of `request` leaves, and go on after it.

    This runner stops endpoints by itself, so with its own Request there is nothing left to do;
    Starlette's is watched.
    """
    if isinstance(request, Request) or not hasattr(request, "receive"):
        yield
        return
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


BOUNDS = ("width", "height", "area", "frames", "duration", "fps", "aspect_ratio")
UNSHOWN = frozenset({"timeout"})  # how to fetch, not what a caller may send


@dataclasses.dataclass(frozen=True)
class _Limits:
    def __post_init__(self) -> None:
        for bound in BOUNDS:
            low, high = getattr(self, f"min_{bound}", None), getattr(self, f"max_{bound}", None)
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{bound} ({low}) is above max_{bound} ({high})")
        ratios = [getattr(self, name, None) for name in ("min_aspect_ratio", "max_aspect_ratio")]
        if (ratios[0] is None) != (ratios[1] is None):
            raise ValueError("min_aspect_ratio and max_aspect_ratio go together: give both or neither")


@dataclasses.dataclass(frozen=True)
class ImageSizeConstraints(_Limits):
    """The sizes a model can make, shown to callers in the schema; nothing enforces them."""

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    multiple_of: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class ImageValidationConfig(_Limits):
    """The pictures that an app takes, shown as `ImageSizeConstraints` are. `timeout` is not shown."""

    max_file_size: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    timeout: float = 20.0


@dataclasses.dataclass(frozen=True)
class VideoValidationConfig(_Limits):
    """The films that an app takes; durations in seconds."""

    max_file_size: int | None = None
    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    min_aspect_ratio: float | None = None
    max_aspect_ratio: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_duration: float | None = None
    max_duration: float | None = None
    min_fps: float | None = None
    max_fps: float | None = None


@dataclasses.dataclass(frozen=True)
class VideoNormalizationConfig(_Limits):
    """What a model makes of a film that does not fit before it looks at it."""

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    min_area: int | None = None
    max_area: int | None = None
    max_duration: float | None = None
    fps: float | None = None


def to_xfal(limits: Any) -> dict[str, Any]:
    """The limits that are set, as they stand under `x-fal` in a schema."""
    values = dataclasses.asdict(limits)
    return {k: v for k, v in values.items() if v is not None and k not in UNSHOWN}


@dataclasses.dataclass
class RetryConfig:
    """How often the queue tries again, by what went wrong."""

    timeout: int | None = None
    server_error: int | None = None
    connection_error: int | None = None

    def to_dict(self) -> dict[str, dict[str, int]]:
        given = {k: {"retries": max(v, 0)} for k, v in dataclasses.asdict(self).items() if v is not None}
        if not given:
            raise ValueError("RetryConfig needs a condition, for example RetryConfig(server_error=3)")
        return given


class ContainerImage:
    """A Dockerfile that an app names for fal's platform.

    Accepted and kept, never built: what an app runs in is the operator's choice here.
    """

    def __init__(self, dockerfile_str: str, **options: Any) -> None:
        if not dockerfile_str.strip():
            raise ValueError("the Dockerfile is empty; for example ContainerImage('FROM python:3.11')")
        self.dockerfile_str = dockerfile_str
        self.options = options

    @classmethod
    def from_dockerfile_str(cls, text: str, **options: Any) -> ContainerImage:
        return cls(text, **options)

    @classmethod
    def from_dockerfile(cls, path: str, **options: Any) -> ContainerImage:
        return cls(Path(path).read_text(), **options)

    def add_dockerignore(
        self, patterns: Sequence[str] | None = None, path: str | os.PathLike[str] | None = None
    ) -> None:
        """Accepted without effect: nothing is built."""
        if (patterns is None) == (path is None):
            raise ValueError("give either patterns or path")
