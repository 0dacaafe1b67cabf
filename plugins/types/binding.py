"""Binding: a request's body, query, path and headers become the arguments of one method.

The common endpoint, one model that is the whole body, costs one decoder call. Everything else
takes the long way, which reads all parameters and reports the faults of all of them together.
"""

from __future__ import annotations

import copy
import email.message
import functools
import re
from collections.abc import Callable
from typing import Any

import anyio

from ...schemas.codec import Codec
from ...schemas.endpoint import Endpoint, Parameter
from ...schemas.foreign import is_starlette
from ...schemas.problems import Fault, InvalidInput
from ...schemas.request import Request
from ...schemas.response import Response
from .text import parse_fast

Bind = Callable[[Request], dict[str, Any]]
ORDER = ("request", "response", "foreign", "path", "query", "header", "cookie", "body")  # FastAPI's
ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "absent"})()


def bind(endpoint: Endpoint, codec_for: Callable[[Any], Codec]) -> Bind:
    """Return the function that reads a request into the keyword arguments of `endpoint`.

    It raises InvalidInput with every fault, each `loc` beginning with the source, in the order of
    FastAPI: path, query, header, cookie, body. A body that is no JSON is told alone, as there.
    """
    parameters = endpoint.parameters
    if not parameters:
        return lambda request: {}
    if len(parameters) == 1 and parameters[0].source == "body" and not endpoint.embed:
        return _bind_body(parameters[0], codec_for(parameters[0].type))
    in_order = sorted(parameters, key=lambda p: ORDER.index(p.source))
    readers = [_reader(p, endpoint, codec_for) for p in in_order]

    def bind_all(request: Request) -> dict[str, Any]:
        reading = _Reading(request)
        arguments: dict[str, Any] = {}
        faults: list[Fault] = []
        for name, read in readers:
            try:
                arguments[name] = read(reading)
            except InvalidInput as error:
                faults += error.faults
        if reading.problem is not None:
            raise reading.problem
        if faults:
            raise InvalidInput(faults)
        return arguments

    return bind_all


def _bind_body(parameter: Parameter, codec: Codec) -> Bind:
    name, decode = parameter.name, codec.decode

    def bind_body(request: Request) -> dict[str, Any]:
        body = request.body
        if not body:
            return {name: _default(parameter, ("body",), None)}
        try:
            return {name: decode(body) if _says_json(request) else codec.convert(body)}
        except InvalidInput as error:
            if _says_json(request) and body.strip() == b"null":
                return {name: _default(parameter, ("body",), None)}
            raise _below(error, "body") from None

    return bind_body


class _Reading:
    """One request while it is read: its JSON body is parsed once, when first asked for."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.problem: InvalidInput | None = None  # what is wrong with the JSON text
        self._json: Any = ABSENT
        self._parsed = False

    def json(self) -> Any:
        """The body: JSON if its type says so, else bytes, ABSENT when empty."""
        if not self._parsed:
            self._parsed = True
            body = self.request.body
            if body:
                try:
                    self._json = parse_fast(body) if _says_json(self.request) else body
                except InvalidInput as error:
                    self.problem = _below(error, "body")
        if self.problem is not None:
            raise self.problem
        return self._json


def _reader(
    parameter: Parameter, endpoint: Endpoint, codec_for: Callable[[Any], Codec]
) -> tuple[str, Callable[[_Reading], Any]]:
    source, alias = parameter.source, parameter.alias
    read: Callable[[_Reading], Any]
    if source == "request":

        def read(reading: _Reading) -> Any:
            return reading.request

    elif source == "response":

        def read(reading: _Reading) -> Any:
            return Response()

    elif source == "foreign":
        read = _foreign(parameter.type)
    else:
        codec = codec_for(parameter.type)
        whole = source == "body" and not endpoint.embed
        lenient = source == "query" and (endpoint.embed or not endpoint.body_parameters())
        many = _is_sequence(codec)

        def read(reading: _Reading) -> Any:
            if source == "body":
                return _from_body(reading, parameter, codec, whole)
            value = _text(reading.request, source, alias, many)
            if value is not ABSENT:
                try:
                    return codec.convert(value, text=True)
                except InvalidInput as error:
                    raise _below(error, source, alias) from None
            if lenient and isinstance(reading.json(), dict):
                return _from_body(reading, parameter, codec, False)
            return _default(parameter, (source, alias), None)

    return parameter.name, read


def _from_body(reading: _Reading, parameter: Parameter, codec: Codec, whole: bool) -> Any:
    body = reading.json()
    loc: tuple[str, ...] = ("body",) if whole else ("body", parameter.alias)
    if whole:
        if body is ABSENT:
            return _default(parameter, loc, None)
        value = body
    elif isinstance(body, dict) and parameter.alias in body:
        value = body[parameter.alias]
    elif isinstance(body, dict) or body is ABSENT:
        scalar = parameter.source == "query"
        return _default(parameter, loc, body if scalar and isinstance(body, dict) else None)
    else:  # a list or a number has no keys, not even for what has a default
        raise _missing(loc, None)
    try:
        return codec.convert(value)
    except InvalidInput as error:
        if whole and value is None:
            return _default(parameter, loc, None)
        raise _below(error, *loc) from None


def _text(request: Request, source: str, alias: str, many: bool) -> Any:
    values: list[str] = []
    if source == "query":
        values = request.query.get(alias, [])
    elif source == "path":
        values = [request.path_parameters[alias]] if alias in request.path_parameters else []
    elif source == "cookie":
        values = _cookies(request, alias)
    else:
        values = _headers(request, alias.lower())
        if not many:
            values = values[:1]
    if not values:
        return ABSENT
    return values if many else values[-1]


def _headers(request: Request, name: str) -> list[str]:
    raw = name.encode("latin-1", "replace")
    return [v.decode("latin-1") for n, v in request.scope.get("headers", ()) if n.lower() == raw]


def _cookies(request: Request, name: str) -> list[str]:
    """Read one by one, so that a cookie of somebody else that breaks the rules hides no other."""
    found = []
    for part in request.headers.get("cookie", "").split(";"):
        key, is_pair, value = part.partition("=")
        if is_pair and key.strip() == name:
            value = value.strip()
            quoted = len(value) > 1 and value[0] == value[-1] == '"'
            found.append(re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value)
    return found


def _default(parameter: Parameter, loc: tuple[str, ...], value: Any) -> Any:
    if parameter.required:
        raise _missing(loc, value)
    default = parameter.default
    if default is None or isinstance(default, (str, int, float)):
        return default
    return copy.deepcopy(default)


def _missing(loc: tuple[str, ...], value: Any) -> InvalidInput:
    return InvalidInput([Fault(type="missing", loc=loc, msg="Field required", input=value)])


def _below(error: InvalidInput, *loc: str) -> InvalidInput:
    return InvalidInput(
        [
            Fault(type=f.type, loc=(*loc, *f.loc), msg=f.msg, input=f.input, ctx=f.ctx)
            for f in error.faults
        ]
    )


def _says_json(request: Request) -> bool:
    value = request.first.get(b"content-type")
    return value == b"application/json" or (value is not None and _is_json(value))


@functools.lru_cache(maxsize=256)
def _is_json(content_type: bytes) -> bool:
    message = email.message.Message()
    message["content-type"] = content_type.decode("latin-1")
    subtype = message.get_content_subtype()
    of_application = message.get_content_maintype() == "application"
    return of_application and (subtype == "json" or subtype.endswith("+json"))


def _is_sequence(codec: Codec) -> bool:
    schema = codec.schema(output=False)[0]
    return any(s.get("type") == "array" for s in (schema, *schema.get("anyOf", ())))


def _foreign(type_: type) -> Callable[[_Reading], Any]:
    if not (is_starlette(type_, "Request") or is_starlette(type_, "HTTPConnection")):

        def make(reading: _Reading) -> Any:
            made = type_()
            if is_starlette(type_, "Response"):
                del made.headers["content-length"]
                made.status_code = None  # nobody has chosen one yet, as in FastAPI
            return made

        return make

    def request_of(reading: _Reading) -> Any:
        token = reading.request.token

        async def receive() -> dict[str, Any]:
            """The body was read; what may still come is the news that the request is over."""
            if not token.cancelled:
                over = anyio.Event()
                token.on_cancel(over.set)
                try:
                    await over.wait()
                finally:
                    token.forget(over.set)
            return {"type": "http.disconnect"}

        scope = {**reading.request.scope, "path_params": dict(reading.request.path_parameters)}
        if not is_starlette(type_, "Request"):
            return type_(scope)
        made = type_(scope, receive)
        made._body = reading.request.body  # where Starlette itself keeps a body that was read
        return made

    return request_of
