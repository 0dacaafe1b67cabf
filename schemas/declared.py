"""What an author declared, and what is wrong with it: found before anything is served, and said with what to write."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .endpoint import Endpoint, Mark
from .problems import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])
CALLED = ("setup", "teardown", "handle_exit", "provide_hints", "health")  # by the server, with nothing
KINDS: dict[type, str] = {staticmethod: "staticmethod", classmethod: "classmethod", property: "property"}


def check_options(*, timeout: Any, health_check: Any) -> None:
    """Refuse what `@endpoint` cannot mean."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise ConfigError(f"timeout is {timeout!r}; it is a number of seconds above 0, such as 60")
    if health_check is not None and (isinstance(health_check, type) or not hasattr(health_check, "failure_threshold")):
        raise ConfigError(f"health_check is {health_check!r}; it is a HealthCheck, such as runner.HealthCheck(timeout_seconds=5)")


def put_mark(function: Function, mark: Mark) -> Function:
    """Mark `function`, which stays as it is. Raises ConfigError for what cannot be an endpoint."""
    declared: Any = function
    if (kind := KINDS.get(type(declared))) is not None:
        name = getattr(getattr(declared, "fget", declared), "__name__", "run")
        raise ConfigError(f"{name} is a {kind}; an endpoint is a plain method: def {name}(self, …)")
    if not callable(declared):
        raise ConfigError(f"{mark.path}: {declared!r} is no function; an endpoint is a method: def run(self, prompt: str) -> str")
    if hasattr(declared, "route_signature"):
        raise ConfigError(f"{declared.__qualname__} is marked twice; an endpoint has one path")
    declared.route_signature = mark
    return function


def marked_methods(target: type) -> dict[str, Mark]:
    """The marks of an app's methods by name. Raises ConfigError when there are none, or two on one path."""
    marks: dict[str, Mark] = {}
    taken: dict[str, str] = {}
    for name in sorted(dir(target)):
        declared = inspect.getattr_static(target, name)
        mark = getattr(getattr(declared, "fget", getattr(declared, "__func__", declared)), "route_signature", None)
        if not isinstance(mark, Mark):
            continue
        if (kind := KINDS.get(type(declared))) is not None:
            raise ConfigError(f"{target.__name__}.{name} is a {kind}; an endpoint is a plain method: def {name}(self, …)")
        if name in CALLED[:-1]:
            raise ConfigError(f"{target.__name__}.{name} is an endpoint, but the server itself calls {name}; give the endpoint another name")
        if mark.path in taken:
            raise ConfigError(f"{target.__name__}.{taken[mark.path]} and .{name} both answer {mark.path!r}; give one another path")
        taken[mark.path], marks[name] = name, mark
    if not marks:
        raise ConfigError(f'{target.__name__} has no endpoint; put @runner.endpoint("/") on a method')
    if sum(mark.health_check is not None for mark in marks.values()) > 1:
        raise ConfigError(f"{target.__name__} has two health checks; an app has at most one")
    return dict(sorted(marks.items(), key=lambda item: item[1].path))


def check_called(target: type) -> None:
    """Refuse a `setup` and its like that the server could not call."""
    for name in CALLED:
        function = inspect.getattr_static(target, name, None)
        if function is None or getattr(function, "route_signature", None) is not None:
            continue
        if not callable(getattr(target, name)):
            raise ConfigError(f"{target.__name__}.{name} is {function!r}; it is a method: def {name}(self)")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(f"{target.__name__}.{name} yields, so nothing of it would run; it is a plain method, and what ends it is teardown(self)")
        if inspect.isfunction(function) and (asked := _required(function)):
            raise ConfigError(f"{target.__name__}.{name} asks for {', '.join(asked)}, and the server gives nothing: def {name}(self)")


def _required(function: Callable[..., Any]) -> list[str]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def check_endpoint(endpoint: Endpoint, method: Callable[..., Any], *, of: str) -> None:
    """Refuse an endpoint that could not be called as it is marked."""
    where, mark = f"{of}.{endpoint.name}", endpoint.mark
    yields = inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method)
    if mark.health_check is not None:
        if endpoint.streams:
            raise ConfigError(f"{where} is the health check and yields; it answers once: return, or raise when the app is not well")
        if asked := [p.name for p in endpoint.parameters if p.required and p.source not in ("request", "response", "foreign")]:
            raise ConfigError(f"{where} is the health check and asks for {', '.join(asked)}; it is called with nothing")
    if not mark.is_websocket:
        return
    typed = len(endpoint.parameters) == 1 and getattr(endpoint.parameters[0].type, "__name__", "") == "WebSocket"
    if mark.realtime_mode is None and not (endpoint.is_async and typed):
        raise ConfigError(
            f"{where}: the WebSocket endpoint {endpoint.path!r} must be an async method, and its one "
            f"parameter must be annotated WebSocket: async def {endpoint.name}(self, websocket: WebSocket) -> None"
        )
    if mark.realtime_mode in ("client_streaming", "bidi") and not endpoint.is_async:
        raise ConfigError(f"{where} takes an AsyncIterator, which only an async method can read: async def {endpoint.name}(self, …)")
    if mark.realtime_mode in ("unary", "client_streaming") and yields:
        kind = "AsyncIterator" if endpoint.is_async else "Iterator"
        raise ConfigError(f"{where} yields, and its annotation says that it returns once; write -> {kind}[…]")
    if mark.max_batch_size < 1:
        raise ConfigError(f"{where}: max_batch_size is {mark.max_batch_size}; a batch has at least 1 input")

