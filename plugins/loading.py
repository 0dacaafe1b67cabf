"""Loading: from `MODULE:CLASS` on the command line to the class, with the app's own folder first.

The app's modules are the app's: our folder leaves `sys.path`, so that an app with a `schemas.py`
or a `plugins.py` of its own gets its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from ..schemas.app import AppSpec
from ..schemas.exits import SETUP_FAILED
from ..schemas.problems import ConfigError
from ..schemas.tracebacks import own_frames, own_traceback
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
    """How to serve the app that `target` names, as `find_class` finds it. Raises ConfigError, also for what its module raises."""
    describe = cache(describe)  # plugins are asked once for each class
    app = describe(find_class(target, describe))
    assert app is not None
    return app


def find_class(target: str, describe: Describe) -> type:
    """The app that `MODULE:CLASS` or `path/to/app.py:CLASS` names; the class may be left out if there is one.

    Raises ConfigError that says what was not found, and ImportFailed with what the module itself raised.
    """
    place, class_name = split(target)
    module = _module(place)
    return _named(module, place, class_name, describe) if class_name else _only_app(module, place, describe)


def _named(module: ModuleType, place: str, class_name: str, describe: Describe) -> type:
    chosen = getattr(module, class_name, None)
    classes = [name for name, value in vars(module).items() if _is_own_class(value, module)]
    if isinstance(chosen, type):
        if describe(chosen) is None:
            raise ConfigError(f"{class_name} is not an app; write class {class_name}(runner.App)")
        return chosen
    kind = type(chosen).__name__
    if kind in classes:
        raise ConfigError(f"{place}:{class_name} is an object of {kind}; name the class, of which the server makes one: {place}:{kind}")
    if chosen is not None:
        raise ConfigError(f"{place}:{class_name} is a {kind}, not a class; {_has(place, classes)}")
    import difflib  # only who is wrong needs it

    near = difflib.get_close_matches(class_name, classes, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"{place} has no class {class_name!r}{hint}; {_has(place, classes)}")


def _has(place: str, classes: list[str]) -> str:
    return f"it has {', '.join(classes)}" if classes else "it has no class of its own"


def _only_app(module: ModuleType, place: str, describe: Describe) -> type:
    apps: list[type] = []
    faults: list[ConfigError] = []
    for value in list(vars(module).values()):
        if not _is_own_class(value, module):
            continue
        try:
            if describe(value) is not None:
                apps.append(value)
        except ConfigError as error:  # as a rule a base class without endpoints
            faults.append(error)
    if len(apps) == 1:
        return apps[0]
    if apps:
        names = ", ".join(app.__name__ for app in apps)
        raise ConfigError(f"{place} has {len(apps)} apps with endpoints ({names}); name one, for example {place}:{apps[-1].__name__}")
    if faults:
        raise faults[0]
    raise ConfigError(f'{place} has no app; write class MyApp(runner.App) with @runner.endpoint("/") on a method')


def split(target: str) -> tuple[str, str]:
    """Where the app is, and its class or ""."""
    place, _, class_name = target.replace("::", ":").rpartition(":") if ":" in target else (target, "", "")
    return place, class_name


def file_of(target: str) -> Path | None:
    place, _ = split(target)
    return Path(place).resolve() if place.endswith(".py") else None


def _module(place: str) -> ModuleType:
    """The module at `place`, imported. What goes wrong in the author's code is told in his own frames."""
    _refuse_other_files(place)
    try:
        if place.endswith(".py"):
            return load_file(Path(place).resolve())
        module = importlib.import_module(place)
    except ConfigError as error:
        raise ConfigError(located(error)) from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise ImportFailed(f"{place} could not be imported", error) from None
        raise ConfigError(
            f"there is no module {place!r} in {sys.path[0]}; say where it is with --app-dir, or give path/to/app.py:MyApp"
        ) from None
    except SystemExit as error:
        raise ConfigError(
            located(error, f"sys.exit({error.code!r}) was called while {place} was imported; put what runs it below if __name__ == '__main__':")
        ) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BaseException as error:
        raise ImportFailed(f"{place} could not be imported", error) from None
    _refuse_namesakes(module, place)
    return module


def _refuse_other_files(place: str) -> None:
    """Say so when `place` is a path, and not that of a Python file."""
    if not place:
        raise ConfigError("before the ':' stands the app's module or file; for example app:MyApp or path/to/app.py:MyApp")
    path = Path(place)
    if path.is_dir() and ("/" in place or not place.isidentifier() or not any((path / f).exists() for f in ("__init__.py", "__main__.py"))):
        files = sorted(file.name for file in path.glob("*.py"))
        example = f"{path}/{files[0]}:MyApp" if files else f"{path}/app.py:MyApp"
        raise ConfigError(f"{place} is a folder; name the file in it, for example {example}")
    if not place.endswith(".py") and path.is_file():
        raise ConfigError(f"{place} is not a Python file, as its name does not end in .py; for example app.py:MyApp")
    if not place.endswith(".py") and ("/" in place or not all(part.isidentifier() for part in place.split("."))):
        raise ConfigError(f"{place!r} is neither a module nor a file that ends in .py; for example app:MyApp or path/to/app.py:MyApp")


def _refuse_namesakes(module: ModuleType, place: str) -> None:
    """Say so when the app's file has the name of a module that was there first."""
    name = place.partition(".")[0]
    own = Path(sys.path[0], f"{name}.py")
    file = getattr(sys.modules[name], "__file__", None)
    if own.is_file() and (file is None or not os.path.samefile(own, file)):
        what = "this server" if name == "runner" else f"a module of Python's or of a package ({file or 'built in'})"
        raise ConfigError(f"{own.name} has the name of {what}, which {place!r} means; rename it, for example app.py")


class ImportFailed(ConfigError):
    """The author's code raised before anything was served: his own traceback, without the frames that are not his."""

    exit_code = SETUP_FAILED

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(f"{what}:\n{own_traceback(error)}{_help(error)}")


def make_instance(app: AppSpec) -> Any:
    """The one instance. Raises ImportFailed when the author's class cannot be made."""
    try:
        return app.make()
    except ConfigError:
        raise
    except Exception as error:
        raise ImportFailed(f"{app.name}() failed", error) from None


def located(error: BaseException, message: str = "") -> str:
    """The message of `error`, after the line of the author's code that brought it about."""
    frames = own_frames(error)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {message or error}" if frames else message or str(error)


def _help(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        root = error.name.partition(".")[0]
        return f"\nhelp: {root} is neither installed here nor in {sys.path[0]}: pip install it, or say with --app-dir where it is"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return "\nhelp: a file given by its path has no package; name it as a module: package.app:MyApp, with --app-dir the folder that holds the package"
    if isinstance(error, ImportError) and "circular import" in str(error):
        return "\nhelp: two modules import each other; move what both need into a third"
    if isinstance(error, UnicodeDecodeError) or (isinstance(error, SyntaxError) and "utf-8" in str(error)):
        return "\nhelp: save the file as UTF-8"
    return ""


def _is_own_class(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__
