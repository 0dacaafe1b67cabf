"""Targets: which app a test means, a class or its name, and how `import fal` works in a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import runner

from ...schemas.settings import Settings
from ..loading import find_class, offer, split
from ..registry import ask, load_plugins
from .errors import TestingError


def offer_modules() -> None:
    """Let apps import what plugins offer, `fal` above all, where no package of that name is installed."""
    for modules in ask(load_plugins(Settings()), "provide_modules", names={name: getattr(runner, name) for name in runner.__all__}):
        offer(modules)


def resolve(target: type | str, folder: Path | None = None) -> type:
    """The class that `target` is, or names as the command line would: `app:MyApp`, `path/to/app.py:MyApp`.

    Names are looked up from `folder`, by default the current one.
    """
    if isinstance(target, type):
        return target
    if not isinstance(target, str):
        kind = type(target).__name__
        raise TestingError(f"AppClient takes the app's class or its name, not an object of {kind}; for example AppClient({kind}) or 'app:{kind}'")
    folder = folder or Path.cwd()
    place, _ = split(target)
    if place.endswith(".py"):
        file = (folder / place).resolve()
        target = str(file) + target[len(place) :]
        known = sys.modules.get(file.stem)
        if known is not None and Path(getattr(known, "__file__", None) or "").resolve() == file:
            target = file.stem + target[len(str(file)) :]  # imported already, and there is one class of that name
        folder = file.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    plugins = load_plugins(Settings())

    def describe(found: Any) -> Any:
        return runner.describe_app(found) if issubclass(found, runner.App) else plugins.hook.describe_app(target=found)

    return find_class(target, describe)
