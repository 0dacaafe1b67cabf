"""runner: serve a class with a model in it. The one name that authors import.

    import runner

    class MyApp(runner.App):
        def setup(self): ...

        @runner.endpoint("/")
        def generate(self, input: Input) -> Output: ...

The story so far: names, then the marks and rules of an app. Assembly and the service follow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

__path__ = [str(Path(__file__).parent)]  # `plugins/` and `schemas/` are runner.plugins, runner.schemas

from runner.plugins.hookspecs import hookimpl
from runner.plugins.types import Header
from runner.schemas.app import AppSpec, derive_alias, read_options
from runner.schemas.endpoint import Mark, OnDisconnect, check_path
from runner.schemas.health import HealthCheck
from runner.schemas.problems import (
    ConfigError,
    HTTPError,
    InvalidInput,
    RequestCancelled,
    RunnerError,
)
from runner.schemas.request import Request, current_request
from runner.schemas.response import Response

__all__ = [
    "App",
    "ConfigError",
    "HTTPError",
    "Header",
    "HealthCheck",
    "InvalidInput",
    "Request",
    "RequestCancelled",
    "Response",
    "RunnerError",
    "current_request",
    "describe_app",
    "endpoint",
    "hookimpl",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def endpoint(
    path: str,
    *,
    is_websocket: bool = False,
    health_check: HealthCheck | None = None,
    timeout: float | None = None,
    on_disconnect: OnDisconnect = "cancel",
) -> Callable[[Function], Function]:
    """Mark a method as what answers `POST path`. The method itself is left as it is.

    `timeout` is in seconds for one run and beats the app's `request_timeout`. Raises ConfigError
    for a path without its leading slash, a second mark on one method, a wrong `on_disconnect`, a
    `timeout` that is not positive, or a health check on a WebSocket.
    """
    if on_disconnect not in ("cancel", "finish"):
        raise ConfigError(f"on_disconnect is {on_disconnect!r}; it is 'cancel' or 'finish'")
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"timeout is {timeout}; it is a number of seconds above 0, such as 60")
    if is_websocket and health_check is not None:
        raise ConfigError(f"{path}: a WebSocket cannot be the health check; give it a POST endpoint of its own")
    mark = Mark(
        path=check_path(path, of="@endpoint"),
        is_websocket=is_websocket,
        health_check=health_check,
        timeout=timeout,
        on_disconnect=on_disconnect,
    )

    def put_on(function: Function) -> Function:
        if hasattr(function, "route_signature"):
            raise ConfigError(f"{function.__qualname__} is marked twice; an endpoint has one path")
        function.route_signature = mark  # type: ignore[attr-defined]
        return function

    return put_on


class App:
    """The base of an app. Options are class attributes or class keywords, named as fal names them.

    Overriding `__init__` is refused: the service makes the one instance; load models in `setup()`.
    """

    app_name: str = ""
    version: str = "unknown"

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__()
        if "__init__" in cls.__dict__:
            raise ConfigError(f"{cls.__name__} overrides __init__; write setup(self) instead")
        for option, value in options.items():
            setattr(cls, option, value)
        if getattr(cls, "app_files_context_dir", None) and not getattr(cls, "app_files", None):
            raise ConfigError(f"{cls.__name__}: app_files_context_dir needs app_files beside it")
        if getattr(cls, "app_files", None) and getattr(cls, "image", None):
            raise ConfigError(f"{cls.__name__}: app_files and image exclude each other")
        cls.app_name = cls.app_name or name or derive_alias(cls.__name__)

    def setup(self) -> Any:
        """Load the model. Called once, before any request; sync or async."""

    def teardown(self) -> Any:
        """Let go of what `setup` took. Called once, after the last request; sync or async."""

    def handle_exit(self) -> None:
        """Hear of a stop at once, before running requests have ended."""

    def health(self) -> Any:
        """What `GET /health` says of the app itself; sync or async."""
        return {"version": self.version}

    def provide_hints(self) -> list[str]:
        """Texts for the `X-Fal-Runner-Hints` header; none unless overridden."""
        raise NotImplementedError

    @property
    def current_request(self) -> Request:
        return current_request()


def describe_app(target: type[App]) -> AppSpec:
    """Return what to serve of `target`. Raises ConfigError when it has no endpoint or two share a path."""
    marks: dict[str, Mark] = {}
    taken: dict[str, str] = {}
    for name in sorted(dir(target)):
        mark = getattr(getattr(target, name, None), "route_signature", None)
        if not isinstance(mark, Mark):
            continue
        if mark.path in taken:
            raise ConfigError(
                f"{target.__name__}.{taken[mark.path]} and .{name} both answer {mark.path!r}; give one another path"
            )
        taken[mark.path], marks[name] = name, mark
    if not marks:
        raise ConfigError(f'{target.__name__} has no endpoint; put @runner.endpoint("/") on a method')
    if sum(mark.health_check is not None for mark in marks.values()) > 1:
        raise ConfigError(f"{target.__name__} has two health checks; an app has at most one")
    attributes = {name: getattr(target, name) for name in dir(target) if not name.startswith("__")}
    return AppSpec(
        name=target.__name__,
        alias=target.app_name,
        make=target,
        marks=dict(sorted(marks.items(), key=lambda item: item[1].path)),
        options=read_options(attributes, of=target.__name__),
        module=target.__module__,
    )
