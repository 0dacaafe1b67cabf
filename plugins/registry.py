"""The plugins of one service: found, checked, and asked.

A plugin manager belongs to one service; nothing here is global. pluggy holds the plugins and
checks their hooks; the questions are put by `ask`, one plugin at a time, so that an error can say
whose it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from ..schemas.problems import ConfigError
from ..schemas.settings import Settings
from . import hookspecs

# In order of registration: the first is asked first where order counts, and of two that answer
# the same path the later one wins. `--no-plugin NAME` leaves one out.

BUILT_IN = (
    "types", "files", "s3", "cors", "playground", "keys", "gpu", "fal", "queue", "health", "openapi", "events", "progress",
    "metrics", "traces", "watchdog", "observability", "http1", "reloading",
)  # fmt: skip


def load_plugins(settings: Settings) -> pluggy.PluginManager:
    """The plugins of one service: the built-in ones, those installed, those named in the settings.

    Raises ConfigError for a plugin that is unknown, cannot be loaded, or has a hook that no
    specification knows.
    """
    plugins = pluggy.PluginManager("runner")
    plugins.add_hookspecs(hookspecs)
    if unknown := set(settings.no_plugin) - set(BUILT_IN):
        raise ConfigError(f"--no-plugin {sorted(unknown)[0]}: built-in plugins are {', '.join(BUILT_IN)}")
    for name in BUILT_IN:
        if name not in settings.no_plugin:
            module = importlib.import_module(f".{name}", __package__)
            plugins.register(_made(getattr(module, "Plugin", module)), name)
    try:
        plugins.load_setuptools_entrypoints("runner")
        for name in settings.plugin:
            plugins.register(_made(_named_plugin(name)), name)
        plugins.check_pending()
    except (pluggy.PluginValidationError, ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"a plugin could not be loaded: {error}; for example --plugin my_package.metrics:plugin") from error
    return plugins


def _made(found: Any) -> Any:
    """A plugin may be a class: then each service makes its own, and what it keeps is its own."""
    return found() if isinstance(found, type) else found


def _named_plugin(name: str) -> Any:
    module, _, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    loaded = load_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def load_file(file: Path) -> ModuleType:
    """The module in `file`, known by its stem unless that name is taken. Raises ConfigError without one."""
    if not file.is_file():
        raise ConfigError(f"there is no file {file}; give an existing one, for example examples/hello.py")
    name = file.stem if file.stem not in sys.modules else f"{file.stem}_{abs(hash(file.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def list_plugins(plugins: pluggy.PluginManager, *, own_version: str) -> list[str]:
    """`name version (hooks)` of each plugin, as registered."""
    versions = {name: dist.version for plugin, dist in plugins.list_plugin_distinfo() if (name := plugins.get_name(plugin))}
    listed = []
    for name, plugin in plugins.list_name_plugin():
        hooks = ", ".join(sorted(hook.name for hook in plugins.get_hookcallers(plugin) or ()))
        version = versions.get(name) or getattr(plugin, "__version__", own_version if name in BUILT_IN else "?")
        listed.append(f"{name} {version} ({hooks})")
    return listed


def ask(plugins: pluggy.PluginManager, hook: str, **arguments: Any) -> list[Any]:
    """Every plugin's answer to one question, first registered first, those of None left out.

    Raises ConfigError that names the plugin which failed, or whose answer is a coroutine.
    """
    answers = []
    for implementation in getattr(plugins.hook, hook).get_hookimpls():
        known = {name: arguments[name] for name in implementation.argnames}
        try:
            answer = implementation.function(**known)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"plugin {implementation.plugin_name}: its hook {hook} failed with {error!r}") from error
        if inspect.iscoroutine(answer):
            answer.close()
            raise ConfigError(f"plugin {implementation.plugin_name}: its hook {hook} is async; write def, and return what is to be called")
        if answer is not None:
            answers.append(answer)
    return answers


