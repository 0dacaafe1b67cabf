"""The OpenAPI document of an app, as fal's clients and playground read it: `/openapi.json`.

It says what FastAPI would say of the same class, plus fal's own keys: the order of paths and of
properties, and what a websocket speaks. It is made when first asked for and then kept.
The title is the class's name and the version its `version` attribute, where fal says "FastAPI"
and "0.1.0": no client looks at them, people do. Streams are described as what they are here,
`text/event-stream`, whose events have one item each as their `data`, or a list of all of them as
JSON. OpenAPI 3.1 has no word for events; the schema of one has the form that OpenAPI 3.2 gives it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ..schemas.endpoint import Endpoint, Parameter
from ..schemas.problems import ConfigError, RunnerError
from ..schemas.request import Request
from ..schemas.response import JSON, Response
from ..schemas.service import Route, ServiceView
from .hookspecs import hookimpl

REFERENCE = "#/components/schemas/"
CARRIERS = ("path", "query", "header", "cookie")  # where OpenAPI's `parameters` may come from
VALIDATION_ERRORS: dict[str, dict[str, Any]] = {
    "HTTPValidationError": {
        "properties": {
            "detail": {
                "items": {"$ref": f"{REFERENCE}ValidationError"},
                "type": "array",
                "title": "Detail",
            }
        },
        "type": "object",
        "title": "HTTPValidationError",
    },
    "ValidationError": {
        "properties": {
            "loc": {
                "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "type": "array",
                "title": "Location",
            },
            "msg": {"type": "string", "title": "Message"},
            "type": {"type": "string", "title": "Error Type"},
            "input": {"title": "Input"},
            "ctx": {"type": "object", "title": "Context"},
        },
        "type": "object",
        "required": ["loc", "msg", "type"],
        "title": "ValidationError",
    },
}

Schema = dict[str, Any]


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    made: list[tuple[bytes, str]] = []

    def answer(request: Request) -> Response:
        if not made:
            body = msgspec.json.encode(document(service), enc_hook=str)
            made.append((body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'))
        body, tag = made[0]
        headers = {"etag": tag, "cache-control": "no-cache"}
        known = [t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(b"", 304, headers)
        return Response(body, 200, headers, JSON)

    return [Route(method="GET", path="/openapi.json", answer=answer)]


def document(service: ServiceView) -> dict[str, Any]:
    """The document: HTTP paths sorted, then `/health`, then websockets."""
    components = Components()
    sockets = [e for e in service.endpoints if e.mark.is_websocket]
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in sorted(service.endpoints, key=lambda e: _bare(e.path)):
        if not endpoint.mark.is_websocket:
            with _named(endpoint, service):
                paths.setdefault(_bare(endpoint.path), {})["post"] = _operation(endpoint, service, components)
    own_health = paths.pop("/health", {})
    paths["/health"] = {"get": _health(), **own_health}
    for endpoint in sockets:
        item = paths.setdefault(_bare(endpoint.path), {})
        item["x-fal-protocol"] = _protocol(endpoint)
        with _named(endpoint, service):
            mirror = _mirror(endpoint, service, components) if endpoint.mark.realtime_mode else None
        if mirror is not None:
            item.setdefault("post", mirror)
    version = getattr(service.instance, "version", None)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": service.app.name,
            "version": version if isinstance(version, str) and version != "unknown" else "0.1.0",
        },
        "paths": paths,
        "components": {"schemas": components.finished()},
        "x-fal-order-paths": list(paths),
    }


@contextmanager
def _named(endpoint: Endpoint, service: ServiceView) -> Iterator[None]:
    """Say whose types they are that have no schema; `--check` tells the author before a caller meets it."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{service.app.name}.{endpoint.name}: its types cannot be described: {str(error).splitlines()[0]}") from error


def _operation(endpoint: Endpoint, service: ServiceView, components: Components) -> dict[str, Any]:
    operation_id = re.sub(r"\W", "_", endpoint.name + _bare(endpoint.path)) + "_post"
    operation: dict[str, Any] = {"summary": endpoint.name.replace("_", " ").title()}
    if endpoint.description:
        operation["description"] = endpoint.description
    operation["operationId"] = operation_id
    carried = [p for p in endpoint.parameters if p.source in CARRIERS]
    if carried:
        operation["parameters"] = [_parameter(p, service, components) for p in carried]
    if bodies := endpoint.body_parameters():
        operation["requestBody"] = (
            _embedded_body(bodies, operation_id, service, components)
            if endpoint.embed
            else _whole_body(bodies[0], service, components)
        )
    answer = _schema(endpoint.output, service, components, output=True)
    if answer and "$ref" not in answer:
        answer["title"] = f"Response_{operation_id}".replace("_", " ").title()
    content = _stream(answer) if endpoint.streams else {JSON: {"schema": answer}}
    operation["responses"] = {"200": {"description": "Successful Response", "content": content}}
    if carried or bodies:
        faults = components.add({"$ref": f"{REFERENCE}HTTPValidationError"}, VALIDATION_ERRORS)
        operation["responses"]["422"] = {
            "description": "Validation Error",
            "content": {JSON: {"schema": faults}},
        }
    return operation


def _stream(item: dict[str, Any]) -> dict[str, Any]:
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": item}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {
        "text/event-stream": {"schema": event},
        JSON: {"schema": {"type": "array", "items": item}},
    }


def _parameter(p: Parameter, service: ServiceView, components: Components) -> dict[str, Any]:
    schema = _titled(_with_default(_schema(p.type, service, components), p, service), p.alias)
    made = {"name": p.alias, "in": p.source, "required": p.required or p.source == "path", "schema": schema}
    if "description" in schema:
        made["description"] = schema["description"]
    return made


def _whole_body(p: Parameter, service: ServiceView, components: Components) -> dict[str, Any]:
    schema = _titled(_with_default(_schema(p.type, service, components), p, service), p.alias)
    body: dict[str, Any] = {"content": {JSON: {"schema": schema}}}
    return body | {"required": True} if p.required else body


def _embedded_body(
    bodies: tuple[Parameter, ...], operation_id: str, service: ServiceView, components: Components
) -> dict[str, Any]:
    properties, found = {}, {}
    for p in bodies:
        schema = _schema(p.type, service, components)
        properties[p.alias] = _titled(_with_default(schema, p, service), p.alias)
    name = f"Body_{operation_id}"
    required = [p.alias for p in bodies if p.required]
    found[name] = {"properties": properties, "type": "object", "title": name}
    if required:
        found[name]["required"] = required
    body: dict[str, Any] = {"content": {JSON: {"schema": components.add({"$ref": REFERENCE + name}, found)}}}
    return {"required": True, **body} if required else body


def _health() -> dict[str, Any]:
    return {
        "summary": "Health",
        "operationId": "health_health_get",
        "responses": {"200": {"description": "Successful Response", "content": {JSON: {"schema": {}}}}},
    }


def _protocol(endpoint: Endpoint) -> dict[str, Any]:
    mark = endpoint.mark
    protocol: dict[str, Any] = {
        "type": "realtime" if mark.realtime_mode else "websocket",
        "operationId": endpoint.name,
        "config": {
            "buffering": mark.buffering,
            "sessionTimeout": mark.session_timeout,
            "maxBatchSize": mark.max_batch_size,
        },
    }
    if mark.realtime_mode:
        protocol |= {"contentType": mark.content_type, "realtimeMode": mark.realtime_mode}
    return protocol


def _mirror(endpoint: Endpoint, service: ServiceView, components: Components) -> dict[str, Any] | None:
    """The realtime endpoint as a `post`, so that tools which know no sockets see its types."""
    inputs = [p.type for p in endpoint.parameters if p.source in (*CARRIERS, "body")]
    taken = _schema(endpoint.mark.input_modal or next(iter(inputs), Any), service, components)
    given = _schema(endpoint.mark.output_modal or endpoint.output, service, components, output=True)
    if not taken and not given:
        return None
    mirror: dict[str, Any] = {
        "operationId": f"{endpoint.name}_post",
        "summary": f"Realtime endpoint: {endpoint.name}",
        "description": endpoint.description,
    }
    if taken:
        mirror["requestBody"] = {"content": {JSON: {"schema": taken}}}
    answer: dict[str, Any] = {"description": "WebSocket message response"}
    if given:
        answer["content"] = {JSON: {"schema": given}}
    mirror["responses"] = {"200" if given else "204": answer}
    return mirror


def _schema(type: Any, service: ServiceView, components: Components, *, output: bool = False) -> Schema:
    return components.add(*service.codec(type).schema(output=output), output=output)


def _with_default(schema: Schema, p: Parameter, service: ServiceView) -> Schema:
    if p.required or p.default is None or p.default is msgspec.UNSET:
        return schema
    try:
        default = msgspec.json.decode(service.codec(p.type).encode(p.default))
    except RunnerError:  # a default of another type than declared
        return schema
    return {**schema, "default": default}


def _titled(schema: Schema, name: str) -> Schema:
    return schema if "$ref" in schema else {"title": name.title().replace("_", " "), **schema}


def _bare(path: str) -> str:
    """`path` without what follows the names of its parts: `/files/{name:path}` is `/files/{name}`."""
    return re.sub(r"{(\w+):[^}]*}", r"{\1}", path)


class Components:
    """The named schemas of a document: one name each, and each name one schema.

    Codecs know only their own type, so two may use one name for different schemas. The first
    keeps it; another is called `Name-Output` when only answers use it, else `Name-2` and so on.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], str] = {}
        self._schemas: dict[str, Schema] = {}

    def add(self, schema: Schema, found: dict[str, Schema], *, output: bool = False) -> Schema:
        """Take in the components of `schema` and return it, its references renamed where needed."""
        names = {name: self._name(name, _whole(name, found), output) for name in found}
        for name, component in found.items():
            if names[name] not in self._schemas:
                self._schemas[names[name]] = _renamed(component, names)
        renamed: Schema = _renamed(schema, names)
        return renamed

    def _name(self, name: str, whole: str, output: bool) -> str:
        if (name, whole) not in self._names:
            taken = set(self._names.values())
            plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)  # what OpenAPI allows
            free, number = plain, 2
            if free in taken and output:
                free = f"{plain}-Output"
            while free in taken:
                free, number = f"{plain}-{number}", number + 1
            self._names[name, whole] = free
        return self._names[name, whole]

    def finished(self) -> dict[str, Schema]:
        """All of them by name, each with the order of its properties."""
        for schema in self._schemas.values():
            _mark_order(schema)
        return dict(sorted(self._schemas.items()))


def _whole(name: str, found: dict[str, Schema]) -> str:
    """The component and all that it refers to, as text: equal for equal schemas."""
    reached: dict[str, Schema] = {}
    waiting = [name]
    while waiting:
        if (here := waiting.pop()) in found and here not in reached:
            reached[here] = found[here]
            waiting += _references(found[here])
    return json.dumps(reached, sort_keys=True, default=str)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for item in schema for name in _references(item)]
    if not isinstance(schema, dict):
        return []
    here = schema.get("$ref")
    named = [here.removeprefix(REFERENCE)] if isinstance(here, str) else []
    return named + [name for item in schema.values() for name in _references(item)]


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    """A copy, its references by their new names (a discriminator's mapping holds some too)."""
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if isinstance(schema, dict):
        return {key: _renamed(item, names) for key, item in schema.items()}
    if isinstance(schema, str) and schema.startswith(REFERENCE):
        name = schema.removeprefix(REFERENCE)
        return REFERENCE + names.get(name, name)
    return schema


def _mark_order(schema: Schema) -> None:
    for part in schema.get("allOf", ()):
        _mark_order(part)
    if "properties" in schema:
        schema["x-fal-order-properties"] = list(schema["properties"])
