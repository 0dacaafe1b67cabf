"""Inputs: the arguments of a Python call become a request, as the endpoint's signature reads it.

Nothing is checked here that the server checks: a test must be able to send what is wrong. Only what
could never reach the endpoint, an argument it does not have, is a TypeError, as in any call.
Where the signature says File, bytes, a `pathlib.Path`, a picture of PIL and a `runner.File` will do.
"""

from __future__ import annotations

import dataclasses
import io
import mimetypes
import os
import typing
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from ...schemas.endpoint import Endpoint, Parameter
from ...schemas.files import File
from ..files.places import class_of, fields_of, members_of
from ..types.codecs import to_json

UPLOAD_BYTES = 4 * 1024 * 1024  # a larger file is uploaded first, as the SDKs do; smaller ones travel in the JSON
INJECTED = ("request", "response", "foreign")
MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "", b"fLaC": "audio/flac", b"OggS": "audio/ogg"}
RIFF = {b"WAVE": "audio/wav", b"WEBP": "image/webp"}


class Upload(msgspec.Struct):
    """A large file on its way: `url` of `described` is set once the server has it."""

    described: dict[str, Any]
    data: bytes


class Outgoing(msgspec.Struct, kw_only=True):
    """A request, ready but for the files that must be uploaded before."""

    path: str
    value: Any = msgspec.UNSET  # of the JSON body
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    uploads: list[Upload] = msgspec.field(default_factory=list)

    def body(self) -> bytes:
        return b"" if self.value is msgspec.UNSET else encode(self.value)


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=to_json)


def arrange(endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any]) -> Outgoing:
    """The request that `endpoint(*arguments, **fields)` means.

    Positional arguments fill the body first, so that one model or mapping is the whole of it. Names
    are those of parameters, or else fields of the one model that is the body.
    """
    given = _given(endpoint, arguments, fields)
    outgoing = Outgoing(path=endpoint.path)
    bodies = endpoint.body_parameters()
    embedded: dict[str, Any] = {}
    query: list[tuple[str, Any]] = []
    cookies: list[str] = []
    for parameter in endpoint.parameters:
        if parameter.name not in given:
            continue
        name, value = parameter.alias, wire(given[parameter.name], parameter.type, outgoing.uploads)
        if parameter.source == "body" and not endpoint.embed:
            outgoing.value = value
        elif parameter.source == "body" or (parameter.source == "query" and (endpoint.embed or not bodies)):
            embedded[name] = value
        elif parameter.source == "query":
            query += [(name, as_text(each)) for each in (value if isinstance(value, list | tuple) else [value])]
        elif parameter.source == "header":
            outgoing.headers[name] = as_text(value)
        elif parameter.source == "cookie":
            cookies.append(f"{name}={as_text(value)}")
        elif parameter.source == "path":
            outgoing.path = _filled(outgoing.path, name, as_text(value))
    if embedded:
        outgoing.value = embedded
    if query:
        outgoing.path += "?" + urlencode(query)
    if cookies:
        outgoing.headers["cookie"] = "; ".join(cookies)
    return outgoing


def _given(endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values by parameter."""
    parameters = [p for p in endpoint.parameters if p.source not in INJECTED]
    parameters.sort(key=lambda p: p.source != "body")
    bodies = endpoint.body_parameters()
    whole = bodies[0] if len(bodies) == 1 and not endpoint.embed else None
    if len(arguments) > len(parameters):
        raise TypeError(f"{endpoint.name}() takes {len(parameters)} values and got {len(arguments)}; {_takes(endpoint, parameters)}")
    given = dict(zip((p.name for p in parameters), arguments, strict=False))
    by_name = {p.name: p for p in parameters}
    rest: dict[str, Any] = {}
    for name, value in fields.items():
        known = by_name.get(name)
        if known is not None and not (known is whole and _is_field(name, value, known.type)):
            if name in given:
                raise TypeError(f"{endpoint.name}() got {name!r} twice")
            given[name] = value
        elif whole is not None:
            rest[name] = value
        else:
            raise TypeError(f"{endpoint.name}() has no {name!r}; {_takes(endpoint, parameters)}")
    if rest and whole is not None:
        before = given.get(whole.name, {})
        if not isinstance(before, Mapping):
            raise TypeError(f"{endpoint.name}() got {whole.name!r} and fields of it; give one or the other")
        given[whole.name] = {**before, **rest}
    return given


def _takes(endpoint: Endpoint, parameters: Sequence[Parameter]) -> str:
    return f"it takes {', '.join(p.name for p in parameters) or 'nothing'}"


def _is_field(name: str, value: Any, hint: Any) -> bool:
    """Whether `name`, also the name of the parameter, means a field of its model."""
    return name in field_hints(hint) and not isinstance(value, Mapping) and not _is_model(value)


def _is_model(value: Any) -> bool:
    kind = type(value)
    return isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_fields__")


def _filled(path: str, name: str, text: str) -> str:
    start = path.find("{" + name)
    end = path.find("}", start)
    return path if start < 0 else path[:start] + quote(text, safe="/" if ":path" in path[start:end] else "") + path[end + 1 :]


def as_text(value: Any) -> str:
    """A plain value as queries, headers and paths have it."""
    if isinstance(value, str):
        return value
    return encode(value).decode().strip('"')


# --- values


def wire(value: Any, hint: Any, uploads: list[Upload]) -> Any:
    """`value` as it can be encoded: where `hint` has a File, what stands for one becomes a File's JSON."""
    members = members_of(hint)
    if any(_is_file(member) for member in members) and (described := _described(value, uploads)) is not None:
        return described
    arguments = [argument for member in members for argument in typing.get_args(member) if argument is not ...]
    if isinstance(value, Mapping):
        hints = field_hints(hint)
        return {name: wire(each, hints.get(name, arguments[-1] if arguments else Any), uploads) for name, each in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [wire(each, arguments[0] if arguments else Any, uploads) for each in value]
    return value


def field_hints(hint: Any) -> dict[str, Any]:
    """The types of a model's fields, by the names they have in Python and on the wire."""
    hints: dict[str, Any] = {}
    for kind in map(class_of, members_of(hint)):
        for attribute, name, found in fields_of(kind) if kind is not None else ():
            hints[attribute] = hints[name] = found
    return hints


def _is_file(member: Any) -> bool:
    kind = class_of(member)
    return kind is not None and issubclass(kind, File)


def _described(value: Any, uploads: list[Upload]) -> dict[str, Any] | None:
    """The JSON of a file, or None when `value` is not one."""
    if isinstance(value, File):
        if value._url is not None or not isinstance(value._content, bytes):
            return {"url": value.url, "content_type": value.content_type, "file_name": value.file_name}
        return _file(value._content, value.content_type, value.file_name, uploads)
    if isinstance(value, bytes | bytearray | memoryview):
        return _file(bytes(value), None, None, uploads)
    if isinstance(value, os.PathLike):
        path = Path(value)
        return _file(path.read_bytes(), mimetypes.guess_type(path.name)[0], path.name, uploads)
    if type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "save"):
        sink = io.BytesIO()
        value.save(sink, "PNG")
        return _file(sink.getvalue(), "image/png", None, uploads)
    return None


def _file(data: bytes, content_type: str | None, name: str | None, uploads: list[Upload]) -> dict[str, Any]:
    content_type = content_type or _sniffed(data)
    described: dict[str, Any] = {"url": "", "content_type": content_type} | ({"file_name": name} if name else {})
    if len(data) > UPLOAD_BYTES:
        uploads.append(Upload(described, data))
    else:
        described["url"] = f"data:{content_type};base64,{b64encode(data).decode()}"
    return described


def _sniffed(data: bytes) -> str:
    kind = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    return (RIFF.get(data[8:12]) if kind == "" else kind) or "application/octet-stream"
