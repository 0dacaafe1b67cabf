"""The plugins of one service: found, checked, asked, and blamed.

A plugin manager belongs to one service; nothing here is global. pluggy holds the plugins and
checks their hooks; the questions are put by `ask`, `first` and `fold`, one plugin at a time, so that
an error can say whose it is. An error of a request is traced to its plugin afterwards, by the
frames that it came through: that costs the requests that go well nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from ..schemas.problems import ConfigError
from ..schemas.response import Response
from ..schemas.service import Mount, Route, ServiceView
from ..schemas.settings import Settings
from . import hookspecs
from .logs import get_logger

log = get_logger("runner")

# In order of registration: the first is asked first where order counts, and of two that answer
# the same path the later one wins. `--no-plugin NAME` leaves one out.

BUILT_IN = (
    "types", "files", "s3", "cors", "playground", "keys", "gpu", "fal", "queue", "health", "openapi", "events", "progress",
    "metrics", "traces", "watchdog", "observability", "http1", "reloading",
)  # fmt: skip

def _has(*names: str) -> Callable[[Any], bool]:
    return lambda answer: all(hasattr(answer, name) for name in names)


def _holds(kind: type) -> Callable[[Any], bool]:
    return lambda answer: isinstance(answer, Sequence) and all(isinstance(one, kind) for one in answer)


# What hooks return that return no function: how it is recognized, and what is said of another answer.
RETURNED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "provide_modules": (_has("items"), 'modules by name, such as {"mine": module}'),
    "describe_app": (_has("marks", "make"), "what runner.describe_app(MyApp) gives"),
    "type_codec": (_has("decode", "convert", "encode", "schema"), "a codec: an object with decode, convert, encode and schema"),
    "file_store": (_has("place", "write", "read"), "a store: an object with place, write and read"),
    "mount_app": (_holds(Mount), 'a list, such as [runner.Mount(prefix="/v1")]'),
    "register_routes": (_holds(Route), 'a list, such as [runner.Route(method="GET", path="/name", answer=answer)]'),
    "connection_protocol": (_has("connect", "close"), "an object with connect and close"),
    "queue_store": (_has("submit", "change", "load"), "a store, as runner.QueueStore has it"),
    "health_checks": (_has("items"), 'async functions by name, such as {"disk": look}'),
    "lifespan": (_has("__aenter__", "__aexit__"), "an async context manager; contextlib.asynccontextmanager makes one"),
}
FUNCTION = (callable, "a function, which is then called for each request")
THE_APP = ("runner.plugins.calling", "runner.plugins.lanes", "runner.plugins.realtime")  # they call what its author wrote


T = TypeVar("T")


class Plugins(pluggy.PluginManager):
    """The plugins of one service, and the versions of those that were installed."""

    def __init__(self) -> None:
        super().__init__("runner")
        self.add_hookspecs(hookspecs)
        self.versions: dict[str, str] = {}

    def listed(self, *, own_version: str) -> list[str]:
        """`name version (hooks)` of each plugin, as registered."""
        listed = []
        for name, plugin in self.list_name_plugin():
            hooks = ", ".join(sorted(hook.name for hook in self.get_hookcallers(plugin) or ()))
            version = self.versions.get(name) or getattr(plugin, "__version__", own_version if name in BUILT_IN else "?")
            listed.append(f"{name} {version} ({hooks})")
        return listed

    def hooks_listed(self) -> list[str]:
        """`hook: plugins (what their order means)` of each hook that somebody answers, as registered."""
        names = {hook: [i.plugin_name for i in getattr(self.hook, hook).get_hookimpls()] for hook in hookspecs.ORDER}
        return [f"{hook}: {', '.join(names[hook])} ({order})" for hook, order in hookspecs.ORDER.items() if names[hook]]


def load_plugins(settings: Settings, *others: Any) -> Plugins:
    """The plugins of one service: the built-in ones, those installed, those named in the settings, `others`.

    Raises ConfigError for a plugin that is unknown, cannot be loaded, or has a hook that no
    specification knows.
    """
    plugins = Plugins()
    installed = {point.name: point for point in importlib.metadata.entry_points(group="runner")}
    if unknown := set(settings.no_plugin) - set(BUILT_IN) - set(installed):
        known = ", ".join([*BUILT_IN, *(f"{name} (installed)" for name in installed)])
        raise ConfigError(f"--no-plugin {sorted(unknown)[0]}: there is no such plugin; known are {known}")
    for name in BUILT_IN:
        if name not in settings.no_plugin:
            module = importlib.import_module(f".{name}", __package__)
            plugins.register(_made(module), name)
    for name, point in installed.items():
        if name not in settings.no_plugin:
            _add(plugins, name, point.load)
            plugins.versions[name] = point.dist.version if point.dist else "?"
    for name in settings.plugin:
        _add(plugins, name, partial(_named_plugin, name))
    for number, other in enumerate(others):
        name = getattr(other, "__name__", type(other).__name__)
        _add(plugins, f"{name}-{number}" if plugins.has_plugin(name) else name, partial(_made, other))
    return plugins


def _add(plugins: Plugins, name: str, load: Callable[[], Any]) -> None:
    try:
        plugin = _made(load())
        plugins.register(plugin, name)
        plugins.check_pending()
    except ConfigError as error:
        raise _named(name, error) from error.__cause__
    except pluggy.PluginValidationError as error:
        raise ConfigError(f"plugin {name} could not be loaded: {error}; docs/hooks.md has every hook") from error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f" ({Path(where.filename).name}, line {where.lineno})" if "importlib" not in where.filename and where.filename != __file__ else ""
        hint = "; give a file, a module or module:object, for example --plugin my_package.metrics:plugin" if isinstance(error, ImportError) else ""
        raise ConfigError(f"plugin {name} could not be loaded: {type(error).__name__}: {error}{at}{hint}") from error
    if not plugins.get_hookcallers(plugin):
        raise ConfigError(f"plugin {name} answers no hook; put @runner.hookimpl on a function that is named like one, such as wrap_call")


def _named(name: str, error: ConfigError) -> ConfigError:
    """`error`, saying which plugin it is of; the built-in ones speak of settings and of the app."""
    return error if name in BUILT_IN else ConfigError(f"plugin {name}: {error}")


def _made(found: Any) -> Any:
    """A plugin may be a class, or the class `Plugin` of a module: then each service makes one, and what it keeps is its own."""
    if isinstance(found, ModuleType):
        found = getattr(found, "Plugin", found)
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


def answers(plugins: pluggy.PluginManager, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
    """Every plugin's answer to one question with its name, first registered first, those of None left out.

    Raises ConfigError that names the plugin which failed, or whose answer is not what the hook asks for.
    """
    implementations = getattr(plugins.hook, hook).get_hookimpls()
    given = ((i.plugin_name, _answer(i, hook, arguments)) for i in implementations)
    return [(name, answer) for name, answer in given if answer is not None]


def ask(plugins: pluggy.PluginManager, hook: str, **arguments: Any) -> list[Any]:
    """The answers alone."""
    return [answer for _, answer in answers(plugins, hook, **arguments)]


def first(plugins: pluggy.PluginManager, hook: str, **arguments: Any) -> Any:
    """The answer of whoever was registered last and has one, so that a later plugin may replace an earlier one."""
    implementations = reversed(getattr(plugins.hook, hook).get_hookimpls())
    return next((answer for i in implementations if (answer := _answer(i, hook, arguments)) is not None), None)


def fold(plugins: pluggy.PluginManager, hook: str, inner: T, **arguments: Any) -> T:
    """`inner`, wrapped by each plugin's answer; the first registered is the outermost."""
    for name, wrap in reversed(answers(plugins, hook, **arguments)):
        try:
            inner = wrap(inner)
        except Exception as error:
            raise ConfigError(f"plugin {name}: what its hook {hook} returned failed with {error!r}") from error
        if not callable(inner):
            raise ConfigError(f"plugin {name}: what its hook {hook} returned gave {type(inner).__name__}; it returns the new function")
    return inner


async def entered(stack: AsyncExitStack, plugins: pluggy.PluginManager, service: ServiceView) -> None:
    """Enter the context of each plugin, the first registered first. Raises ConfigError that names whose failed."""
    for name, context in answers(plugins, "lifespan", service=service):
        try:
            await stack.enter_async_context(context)
        except Exception as error:
            await stack.aclose()  # first: on the error's way out, task groups of those entered would wrap it
            if isinstance(error, ConfigError):
                raise _named(name, error) from error.__cause__
            raise ConfigError(f"plugin {name}: its lifespan failed on entering with {error!r}") from error


def _answer(implementation: pluggy.HookImpl, hook: str, arguments: Mapping[str, Any]) -> Any:
    name = implementation.plugin_name
    try:
        answer = implementation.function(**{argument: arguments[argument] for argument in implementation.argnames})
    except ConfigError as error:
        raise _named(name, error) from error.__cause__
    except Exception as error:
        raise ConfigError(f"plugin {name}: its hook {hook} failed with {error!r}") from error
    if inspect.iscoroutine(answer):
        answer.close()
        raise ConfigError(f"plugin {name}: its hook {hook} is async; write def, and return what is to be called")
    is_one, wanted = RETURNED.get(hook, FUNCTION)
    if answer is not None and not is_one(answer):
        raise ConfigError(f"plugin {name}: its hook {hook} gave {type(answer).__name__}; it returns {wanted}, or None")
    return answer


class Failures:
    """What plugins raised while requests ran, by plugin. Owned by the service; `/metrics` reads `counts`."""

    def __init__(self, plugins: pluggy.PluginManager, app: str) -> None:
        self.counts: Counter[str] = Counter({name: 0 for name, _ in plugins.list_name_plugin()})
        self._plugins, self._app = plugins, app

    def blame(self, error: BaseException) -> dict[str, str]:
        """`plugin`, for the log, when it was one's code that raised `error`; it is counted then."""
        name = self._whose(error)
        if name is None:
            return {}
        self.counts[name] += 1
        return {"plugin": name}

    def mapped(self, error: BaseException, maps: Iterable[Callable[[BaseException], Response | None]]) -> Response | None:
        """What the first of `maps` that knows `error` answers. One that fails itself is told, and knows nothing."""
        for look in maps:
            try:
                if (response := look(error)) is not None:
                    return response
            except Exception as second:
                log.error("plugin.failed", hook="map_error", **self.blame(second), exc_info=second)
        return None

    def _whose(self, error: BaseException) -> str | None:
        """The plugin whose frame is nearest to where `error` was raised, unless the app was called in between."""
        homes = {_home(plugin): name for name, plugin in self._plugins.list_name_plugin()}
        homes.pop(self._app, None)  # app and plugin in one file: nobody can tell
        for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
            module = str(frame.f_globals.get("__name__"))
            if module in THE_APP:
                return None
            while module not in homes and "." in module:
                module = module.rpartition(".")[0]
            if module in homes:
                return homes[module]
        return None


def _home(plugin: Any) -> str:
    return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
