"""An endpoint as its author declared it: data, no machinery."""

from __future__ import annotations

import typing
from collections import abc
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from .batch import Batch
from .health import HealthCheck
from .problems import ConfigError

OnDisconnect = Literal["cancel", "finish"]
Retry = Literal["never", "safe"]
Source = Literal["body", "query", "path", "header", "cookie", "request", "response", "foreign"]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What `@endpoint` and `@realtime` write on a method, under the name `route_signature`.

    The first thirteen fields are those of fal's route signature, in its order; the rest are ours.
    """

    path: str
    is_websocket: bool = False
    health_check: HealthCheck | None = None
    input_modal: Any = None
    output_modal: Any = None
    realtime_mode: str | None = None
    content_type: str = "application/msgpack"
    buffering: int | None = None
    session_timeout: float | None = None  # seconds between inputs
    max_batch_size: int = 1
    emit_timings: bool = False
    encode_message: Callable[[Any], bytes | str] | None = None
    decode_message: Callable[[bytes], Any] | None = None
    timeout: float | None = None  # seconds for one run; None: the app's `request_timeout`
    on_disconnect: OnDisconnect = "cancel"
    retry: Retry = "never"
    batch: Batch | None = None


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """One parameter of an endpoint's method and where its value comes from."""

    name: str
    type: Any
    source: Source
    alias: str  # its name on the wire
    default: Any = msgspec.NODEFAULT

    @property
    def required(self) -> bool:
        return self.default is msgspec.NODEFAULT


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One path of an app. Says what to serve, holds no machinery.

    Of a batched one, types are those of a member: of an element of the lists that its method knows.
    """

    path: str
    name: str  # of the method
    mark: Mark
    parameters: tuple[Parameter, ...] = ()
    output: Any = Any  # of one item when `streams`
    embed: bool = False  # body parameters are keys of one object, each under its name
    is_async: bool = False
    streams: bool = False
    timeout: float | None = None  # seconds; None: for as long as the client waits
    description: str = ""

    @property
    def on_disconnect(self) -> OnDisconnect:
        return self.mark.on_disconnect

    def body_parameters(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.source == "body")


def check_path(path: object, *, of: str) -> str:
    """Return `path` if a route may be called so; a ConfigError that shows a valid one otherwise."""
    if callable(path):
        raise ConfigError(f"{of} needs a path in brackets; write {of}('/') above def {getattr(path, '__name__', 'run')}")
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigError(f"{of}: the path {path!r} must be text that begins with '/', such as '/generate'")
    if path.count("{") != path.count("}"):
        raise ConfigError(f"{of}: the path {path!r} opens a part that it does not close; for example '/items/{{id}}'")
    return path


def realtime_mode(taken: Any, given: Any) -> str:
    """What a realtime method does, told by the annotations of its input and its answer (fal's names)."""
    incoming = (typing.get_origin(taken) or taken) in (abc.AsyncIterator, abc.AsyncGenerator)
    outgoing = typing.get_origin(given) or given
    if incoming:
        return "bidi" if outgoing in (abc.AsyncIterator, abc.AsyncGenerator) else "client_streaming"
    streams = (abc.AsyncIterator, abc.AsyncGenerator, abc.Iterator, abc.Generator, abc.Iterable)
    return "server_streaming" if outgoing in streams else "unary"
