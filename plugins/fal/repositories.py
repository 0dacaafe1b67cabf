"""The real fal package's own names for where files go, while an app of it is served: all mean our store.

Without this its `File.from_bytes` and `Image.from_pil` would upload to fal's platform, with a key
that nobody here has.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...schemas.files import safe_name
from ...schemas.storing import store_output, type_and_name

OURS = ("fal_v3", "fal")  # the package folds its older names onto the first


@contextmanager
def own_repositories(app: Any) -> Iterator[None]:
    """Let `app`, when it is one of the package, put its files into our store."""
    package = any((kind.__module__, kind.__name__) == ("fal.app", "App") for kind in type(app).__mro__)
    try:
        known = importlib.import_module("fal.toolkit.file.file").BUILT_IN_REPOSITORIES if package else None
    except (ImportError, AttributeError):  # another version of the package; its own uploads stay
        known = None
    if known is None:
        yield
        return
    kind = _repository(importlib.import_module("fal.toolkit.file.types").FileRepository)
    before = {name: known[name] for name in OURS if name in known}
    known.update(dict.fromkeys(before, kind))
    try:
        yield
    finally:
        known.update(before)


def _repository(base: type) -> type:
    """Our store as a repository of the package."""

    def save(self: Any, data: Any, *arguments: Any, object_lifecycle_preference: Any = None, **options: Any) -> str:
        return _stored(data.data, data.content_type, data.file_name, object_lifecycle_preference)

    def save_file(
        self: Any, file_path: Any, content_type: str, *arguments: Any, object_lifecycle_preference: Any = None, **options: Any
    ) -> tuple[str, None]:
        path = Path(file_path)
        return _stored(path, content_type, path.name, object_lifecycle_preference), None

    return type("RunnerRepository", (base,), {"save": save, "save_file": save_file})


def _stored(source: bytes | Path, content_type: str | None, name: str | None, wishes: Any) -> str:
    content_type, name = type_and_name(content_type, safe_name(name))
    url = store_output(source, content_type, name, wishes)
    if url is None:
        raise RuntimeError("this runner keeps no files: its plugin files is left out")
    return url
