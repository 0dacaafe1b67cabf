"""Loading: from `MODULE:CLASS` on the command line to the class, with the app's own folder first.

The app's modules are the app's: our folder leaves `sys.path`, so that an app with a `schemas.py`
or a `plugins.py` of its own gets its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from ..schemas.app import AppSpec
from ..schemas.problems import ConfigError
from .registry import load_file

Describe = Callable[[type], AppSpec | None]  # None: not an app

def prepare_path(target: str, app_dir: str, house: str) -> None:
    """Put the app's folder first on `sys.path` and take `house`, ours, off it."""
    file = file_of(target)
    folder = Path(app_dir) if app_dir != "." or file is None else file.parent
    if not folder.is_dir():
        raise ConfigError(
            f"--app-dir {app_dir}: there is no such folder; give the one that holds the app, for example --app-dir examples"
        )
    ours = os.path.realpath(house)
    others = (entry for entry in sys.path if os.path.realpath(entry or ".") != ours)
    sys.path[:] = [str(folder.resolve()), *others]


def start_spawned_children_with(file: str) -> None:
    """Have `multiprocessing` run `file` first in a child it spawns, whatever script started us."""
    script = sys.modules["__main__"]
    script.__file__, script.__spec__ = file, None


def offer(modules: Mapping[str, ModuleType]) -> None:
    """Let the app import these, unless a package of that name is installed. None is made before it is asked for."""
    absent = {root for name in modules if (root := name.partition(".")[0]) not in sys.modules and importlib.util.find_spec(root) is None}
    sys.meta_path.append(_Offer(modules, absent))


class _Offer:
    """Finds modules that need no file. With the first one its whole package is there, as if all were imported."""

    def __init__(self, modules: Mapping[str, ModuleType], roots: set[str]) -> None:
        self._modules, self._roots = modules, roots

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        known = name.partition(".")[0] in self._roots and name in self._modules
        return ModuleSpec(name, self) if known else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        root = module.__name__.partition(".")[0]
        sys.modules.update({name: made for name, made in self._modules.items() if name.partition(".")[0] == root})


def load_app(target: str, describe: Describe) -> AppSpec:
    """The app that `MODULE:CLASS` or `path/to/app.py:CLASS` names; the class may be left out if there is one.

    What the module itself raises passes through; ConfigError says what was not found.
    """
    place, class_name = split(target)
    module = _module(place)
    if class_name:
        chosen = getattr(module, class_name, None)
        if not isinstance(chosen, type):
            classes = [name for name, value in vars(module).items() if _is_own_class(value, module)]
            raise ConfigError(f"{place} has no class {class_name!r}; it has {', '.join(classes) or 'none'}")
        app = describe(chosen)
        if app is None:
            raise ConfigError(f"{class_name} is not an app; write class {class_name}(runner.App)")
        return app
    apps = [app for value in vars(module).values() if _is_own_class(value, module) and (app := _described(value, describe))]
    if len(apps) != 1:
        names = ", ".join(app.name for app in apps) or "none"
        raise ConfigError(f"{place} has {len(apps)} apps with endpoints ({names}); name one, for example {place}:MyApp")
    return apps[0]


def split(target: str) -> tuple[str, str]:
    """Where the app is, and its class or ""."""
    place, _, class_name = target.replace("::", ":").rpartition(":") if ":" in target else (target, "", "")
    return place, class_name


def file_of(target: str) -> Path | None:
    place, _ = split(target)
    return Path(place).resolve() if place.endswith(".py") else None


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        return load_file(Path(place).resolve())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the app's own import of something that is not installed
        raise ConfigError(
            f"there is no module {place!r} in {sys.path[0]}; say where it is with --app-dir, or give path/to/app.py:MyApp"
        ) from None


def _is_own_class(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def _described(value: type, describe: Describe) -> AppSpec | None:
    try:
        return describe(value)
    except ConfigError:  # a base class without endpoints
        return None
