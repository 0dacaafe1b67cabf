"""A method's signature, read once: where each argument comes from, and what comes back."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from ...schemas.endpoint import Endpoint, Mark, Parameter, Source
from ...schemas.problems import ConfigError
from ...schemas.request import Request
from ...schemas.response import Response
from .batches import STREAMS, hints_of_one
from .shapes import is_typeddict

INJECTED = {"Request", "HTTPConnection", "WebSocket", "Response", "BackgroundTasks"}  # starlette's
MARKERS: dict[str, Source] = {
    "Header": "header", "Query": "query", "Path": "path", "Cookie": "cookie", "Body": "body",
}  # fmt: skip
SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set, collections.deque)


@dataclasses.dataclass(frozen=True)
class Header:
    """As the default of a parameter: its value is the request header of that name.

    `x_fal_request_id: str = runner.Header(None)` reads `x-fal-request-id`. Without a default the
    header is required. `alias` names it outright; `convert_underscores=False` keeps them.
    """

    default: Any = msgspec.NODEFAULT
    alias: str | None = None
    convert_underscores: bool = True


def describe(function: Callable[..., Any], mark: Mark, *, owner: type | str) -> Endpoint:
    """What `function`, a method marked by `mark`, takes and gives. Raises ConfigError naming it."""
    where = f"{owner if isinstance(owner, str) else owner.__name__}.{function.__name__}"
    hints = _hints(function, owner, where)
    if mark.batch is not None:
        hints = hints_of_one(function, hints, mark, where)
    in_path = set(re.findall(r"{(\w+)[^}]*}", mark.path))
    parameters: list[Parameter] = []
    embed = False
    for parameter in _parameters(function, where):
        if parameter.kind is parameter.VAR_POSITIONAL and mark.realtime_mode is not None:
            continue  # the rest of a batch: inputs like the first
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"{where}: *{parameter.name} says nothing of what callers may send; name each parameter, "
                f"for example def {function.__name__}(self, prompt: str)"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(
                f"{where}: arguments are passed by name, so {parameter.name!r} cannot stand before a '/'; "
                f"for example def {function.__name__}(self, {parameter.name})"
            )
        hint = hints.get(parameter.name, Any)
        if mark.is_websocket and typing.get_origin(hint) in STREAMS:
            hint = (*typing.get_args(hint), Any)[0]
        found, wants_embed = _parameter(parameter, hint, in_path, where)
        embed = embed or wants_embed
        parameters.append(found)
    missing = in_path - {p.name for p in parameters} - {p.alias for p in parameters}
    if missing:
        name = sorted(missing)[0]
        raise ConfigError(
            f"{where}: the path {mark.path!r} has a part {{{name}}} that no parameter takes; "
            f"for example def {function.__name__}(self, {name}: str)"
        )
    bodies = [p for p in parameters if p.source == "body"]
    output, streams = _output(function, hints.get("return", Any))
    return Endpoint(
        path=mark.path,
        name=function.__name__,
        mark=mark,
        parameters=tuple(parameters),
        output=output,
        embed=embed or len(bodies) > 1,
        is_async=inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
        streams=streams,
        timeout=mark.timeout,
        description=inspect.getdoc(function) or "",
    )


def _parameters(function: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a bound method has nothing to bind
        parameters = []
    else:
        if inspect.ismethod(function):
            return parameters
    if not parameters:
        raise ConfigError(f"{where} takes no self; for example def {function.__name__}(self, prompt: str)")
    return parameters[1:]


def _parameter(
    parameter: inspect.Parameter, hint: Any, in_path: set[str], where: str
) -> tuple[Parameter, bool]:
    name, default = parameter.name, parameter.default
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if (injected := _injected(plain)) is not None:
        return Parameter(name=name, type=plain, source=injected, alias=name, default=None), False
    marker = None
    if _is_marker(default):
        marker, default = default, _marker_default(default)
    elif typing.get_origin(hint) is Annotated:
        markers = [m for m in typing.get_args(hint)[1:] if _is_marker(m)]
        if markers:
            marker = markers[-1]
            others = [m for m in typing.get_args(hint)[1:] if m is not marker]
            hint = Annotated[(plain, *others)] if others else plain
            if default is parameter.empty:
                default = _marker_default(marker)
    if type(default).__name__ == "Depends" or type(marker).__name__ == "Depends":
        raise ConfigError(f"{where}: {name} uses Depends, which is not supported; compute it in the method")
    if default is parameter.empty:
        default = msgspec.NODEFAULT
    if marker is None:
        source: Source = "path" if name in in_path else "query" if _is_scalar(hint) else "body"
        return Parameter(name=name, type=hint, source=source, alias=name, default=default), False
    source = "header" if isinstance(marker, Header) else MARKERS[type(marker).__name__]
    alias = getattr(marker, "alias", None) or name
    if source == "header" and not getattr(marker, "alias", None):
        alias = name.replace("_", "-") if getattr(marker, "convert_underscores", True) else name
    if not isinstance(marker, Header) and marker.metadata:
        hint = Annotated[(hint, *marker.metadata)]  # the limits: ge, max_length, pattern …
    found = Parameter(name=name, type=hint, source=source, alias=alias, default=default)
    return found, bool(getattr(marker, "embed", False))


def _is_marker(value: Any) -> bool:
    if isinstance(value, Header):
        return True
    kind = type(value)
    return kind.__name__ in {*MARKERS, "Depends"} and kind.__module__.partition(".")[0] == "fastapi"


def _marker_default(marker: Any) -> Any:
    if callable(factory := getattr(marker, "default_factory", None)):
        return factory()
    default = getattr(marker, "default", msgspec.NODEFAULT)
    if default is ... or type(default).__name__ == "PydanticUndefinedType":
        return msgspec.NODEFAULT
    return default


def _injected(hint: Any) -> Source | None:
    if not isinstance(hint, type):
        return None
    if issubclass(hint, Request):
        return "request"
    if issubclass(hint, Response):
        return "response"
    for base in hint.__mro__:
        if base.__module__.partition(".")[0] in {"starlette", "fastapi"} and base.__name__ in INJECTED:
            return "foreign"
    return None


def _is_scalar(hint: Any) -> bool:
    """FastAPI's rule: whatever is not an object, a mapping or a sequence is a scalar."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _is_scalar(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return all(_is_scalar(member) for member in typing.get_args(hint))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, (str, bytes, enum.Enum)):
        return True
    if issubclass(kind, (*SEQUENCES, collections.abc.Mapping, msgspec.Struct)) or is_typeddict(kind):
        return False
    own = hasattr(kind, "__from_json__") or hasattr(kind, "__pydantic_fields__")
    return not (own or dataclasses.is_dataclass(kind))


def _output(function: Callable[..., Any], hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) is Annotated and typing.get_origin(typing.get_args(hint)[0]) in STREAMS:
        hint = typing.get_args(hint)[0]
    generates = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if (origin := typing.get_origin(hint) or hint) in STREAMS:
        return (*typing.get_args(hint), Any)[0], True
    if hint is type(None) or hint is None or _injected(origin) in ("response", "foreign"):
        return Any, generates  # as FastAPI: nothing to check
    return hint, generates


def _hints(function: Callable[..., Any], owner: type | str, where: str) -> dict[str, Any]:
    known = {} if isinstance(owner, str) else dict(vars(owner)) | {owner.__name__: owner}
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        known[free] = cell.cell_contents
    known = {k: v for k, v in known.items() if not inspect.isfunction(v)}
    while True:
        try:
            return typing.get_type_hints(function, localns=known, include_extras=True)
        except NameError as error:
            if error.name is None or error.name in known:
                raise
            found = _in_callers(error.name)
            if found is None:
                raise ConfigError(
                    f"{where}: the annotation names {error.name!r}, which is not defined where the class is; "
                    "import it, or define it at the top of the module"
                ) from None
            known[error.name] = found
        except TypeError as error:
            raise ConfigError(f"{where}: an annotation is not a type: {error}; for example prompt: str") from None


def _in_callers(name: str) -> Any:
    """A class of a function that is still running: where tests and notebooks define theirs."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if name in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None
