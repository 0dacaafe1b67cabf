"""Apps of the real fal package, served as they are.

Their class says what to serve in fal's own terms; here it is put in ours. The one instance is made
the way fal's platform makes it, and its `current_request` reads the request that we serve.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import threading
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from ...schemas.app import AppSpec, derive_alias, read_options
from ...schemas.endpoint import Mark, check_path
from ...schemas.health import HealthCheck
from ...schemas.problems import ConfigError
from ...schemas.request import Request, current_request

log = logging.getLogger("runner.fal")

AGENT = "IS_ISOLATE_AGENT"  # the stock App refuses to be made without it
UNSERVED = ("_add_extra_routes", "_add_extra_middlewares")
SIGNATURE = Mark.__struct_fields__[:13]  # fal's route signature, in its order
_agent_lock = threading.Lock()


def describe_fal_app(target: type) -> AppSpec | None:
    """How to serve `target` if it is a `fal.App` of the real package; None otherwise.

    Raises ConfigError for an app without endpoints, two on one path, or a wrong option.
    """
    base = next((k for k in target.__mro__ if (k.__module__, k.__name__) == ("fal.app", "App")), None)
    if base is None:
        return None
    name = target.__name__
    marks: dict[str, Mark] = {}
    taken: dict[str, str] = {}
    for method, function in inspect.getmembers(target, inspect.isfunction):
        signature = getattr(function, "route_signature", None)
        if signature is None:
            continue
        mark = _mark(signature, of=f"{name}.{method}")
        if mark.path in taken:
            raise ConfigError(f"{name}.{taken[mark.path]} and .{method} both answer {mark.path!r}; give one another path")
        taken[mark.path], marks[method] = method, mark
    if not marks:
        raise ConfigError(f'{name} has no endpoint; put @fal.endpoint("/") on a method')
    for hook in UNSERVED:
        if getattr(target, hook, None) is not getattr(base, hook, None):
            log.warning("%s.%s is not called: this runner has no FastAPI app to hand it", name, hook)
    return AppSpec(
        name=name,
        alias=getattr(target, "app_name", None) or derive_alias(name),
        make=functools.partial(_make, target),
        marks=dict(sorted(marks.items(), key=lambda item: item[1].path)),
        options=read_options(_attributes(target), of=name),
        module=target.__module__,
    )


def _attributes(target: Any) -> dict[str, Any]:
    """The options: class attributes, and class keywords, which fal keeps in `host_kwargs`."""
    attributes = dict(target.host_kwargs)
    for name in dir(target):
        if not name.startswith("__") and (value := getattr(target, name)) is not None:
            attributes[name] = value
    return attributes


def _mark(signature: Any, *, of: str) -> Mark:
    if isinstance(signature, Mark):
        return signature
    given = {name: getattr(signature, name, None) for name in SIGNATURE}
    values = {name: value for name, value in given.items() if value is not None}
    values["path"] = check_path(values.get("path"), of=of)
    if "health_check" in values:
        values["health_check"] = _health_check(values["health_check"], of=of)
    return Mark(**values)


def _health_check(check: Any, *, of: str) -> HealthCheck:
    given = {name: getattr(check, name, None) for name in HealthCheck.__struct_fields__}
    try:
        return msgspec.convert({k: v for k, v in given.items() if v is not None}, HealthCheck)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{of}: health_check: {error}; for example fal.HealthCheck(timeout_seconds=5)") from None


def _make(target: Any) -> Any:
    """The one instance, as fal's agent makes it."""
    with _agent_lock:
        before = os.environ.get(AGENT)
        os.environ[AGENT] = before or "1"
        try:
            instance = target()
        finally:
            if before is None:
                del os.environ[AGENT]
            else:
                os.environ[AGENT] = before
    for name, function in inspect.getmembers(target, inspect.isfunction):
        if (original := getattr(function, "original_func", None)) is not None:
            # fal's decorator put its own WebSocket session around the method; ours runs instead
            setattr(instance, name, original.__get__(instance))
    instance._current_request_context = Context(importlib.import_module("fal.app").RequestContext)
    return instance


class Context:
    """Stands where the stock App keeps its context variable, and reads ours.

    One RequestContext per request, so that what an endpoint writes into its headers stays there.
    """

    def __init__(self, make: Any) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Request, Any] = WeakKeyDictionary()

    def get(self) -> Any:
        request = current_request()
        context = self._made.get(request)
        if context is None:
            context = self._made[request] = self._make(
                request_id=request.request_id,
                endpoint=request.endpoint,
                lifecycle_preference=request.lifecycle_preference,
                headers=request.headers,
            )
        return context
