"""Binding: a request's body, query, path and headers become the arguments of one method.

The common endpoint, one model that is the whole body, costs one decoder call. Everything else
takes the long way, which reads all parameters and reports the faults of all of them together.
"""

from __future__ import annotations

import copy
import email.message
import functools
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from ...schemas.codec import Codec
from ...schemas.endpoint import Endpoint, Parameter
from ...schemas.problems import Fault, InvalidInput
from ...schemas.request import Request
from ...schemas.response import Response
from .text import parse_fast

Bind = Callable[[Request], dict[str, Any]]
ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "absent"})()


def bind(endpoint: Endpoint, codec_for: Callable[[Any], Codec]) -> Bind:
    """Return the function that reads a request into the keyword arguments of `endpoint`.

    It raises InvalidInput with every fault, each `loc` beginning with body, query, path or header.
    """
    parameters = endpoint.parameters
    if not parameters:
        return lambda request: {}
    if len(parameters) == 1 and parameters[0].source == "body" and not endpoint.embed:
        return _bind_body(parameters[0], codec_for(parameters[0].type))
    readers = [_reader(p, endpoint, codec_for) for p in parameters]

    def bind_all(request: Request) -> dict[str, Any]:
        reading = _Reading(request)
        arguments: dict[str, Any] = {}
        faults: list[Fault] = []
        for name, read in readers:
            try:
                arguments[name] = read(reading)
            except InvalidInput as error:
                faults += error.faults
        if faults:
            raise InvalidInput(list({(f.type, f.loc): f for f in faults}.values()))
        return arguments

    return bind_all


def foreign_response(arguments: Mapping[str, Any]) -> Any:
    """The starlette Response among bound `arguments`, whose headers and status the caller merges."""
    return next((v for v in arguments.values() if _is_starlette(type(v), "Response")), None)


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
        self._problem: InvalidInput | None = None
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
                    self._problem = _below(error, "body")
        if self._problem is not None:
            raise self._problem
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
    else:
        scalar = parameter.source == "query"
        return _default(parameter, loc, body if scalar and isinstance(body, dict) else None)
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
        values = _cookie(request, alias)
    elif (value := request.headers.get(alias.lower())) is not None:
        values = [part.strip() for part in value.split(",")] if many else [value]
    if not values:
        return ABSENT
    return values if many else values[-1]


def _cookie(request: Request, name: str) -> list[str]:
    try:
        cookies = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return []
    return [cookies[name].value] if name in cookies else []


def _default(parameter: Parameter, loc: tuple[str, ...], value: Any) -> Any:
    if parameter.required:
        raise InvalidInput([Fault(type="missing", loc=loc, msg="Field required", input=value)])
    default = parameter.default
    if default is None or isinstance(default, (str, int, float)):
        return default
    return copy.deepcopy(default)


def _below(error: InvalidInput, *loc: str) -> InvalidInput:
    return InvalidInput(
        [
            Fault(type=f.type, loc=(*loc, *f.loc), msg=f.msg, input=f.input, ctx=f.ctx)
            for f in error.faults
        ]
    )


def _says_json(request: Request) -> bool:
    for name, value in request.scope.get("headers", ()):
        if name == b"content-type":
            return value == b"application/json" or _is_json(value)
    return False


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


def _is_starlette(type_: type, name: str) -> bool:
    return any(
        base.__name__ == name and base.__module__.startswith("starlette.") for base in type_.__mro__
    )


def _foreign(type_: type) -> Callable[[_Reading], Any]:
    if not (_is_starlette(type_, "Request") or _is_starlette(type_, "HTTPConnection")):

        def make(reading: _Reading) -> Any:
            made = type_()
            if _is_starlette(type_, "Response"):
                del made.headers["content-length"]
                made.status_code = None  # nobody has chosen one yet, as in FastAPI
            return made

        return make

    def request_of(reading: _Reading) -> Any:
        replayed = False

        async def receive() -> dict[str, Any]:
            nonlocal replayed
            if replayed:
                return {"type": "http.disconnect"}
            replayed = True
            return {"type": "http.request", "body": reading.request.body, "more_body": False}

        scope = {**reading.request.scope, "path_params": dict(reading.request.path_parameters)}
        return type_(scope, receive) if _is_starlette(type_, "Request") else type_(scope)

    return request_of
