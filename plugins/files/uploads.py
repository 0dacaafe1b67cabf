"""Uploads: a form, or the raw bytes of a file, read as the value that a JSON body would have become.

The endpoint's types say what a form may fill: a part with a file name is a File, a text is what its
field takes it for (a number, a list, the URL of a File), and the codec has the last word on all of
it. A raw body goes to the one place where a File stands; fields beside it may come in the query.
"""

from __future__ import annotations

import collections.abc
import enum
import re
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from ...schemas.endpoint import Endpoint
from ...schemas.files import File, safe_name
from ...schemas.problems import HTTPError
from ...schemas.request import Request
from ...schemas.service import Bind
from .headers import decoded, essence_of, parameters
from .places import class_of, fields_of, holds_files, is_file, members_of

MOST_PARTS = 1000  # of a form; more than any person fills in
MOST_HEADER_BYTES = 2048  # of one part; a name of 255 characters fits
FORM, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
ANY_BYTES = "application/octet-stream"  # what senders say who do not know
SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set)
YES, NO = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}
ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "absent"})()


class Part(NamedTuple):
    """One part of a form: a text, or the bytes of a file."""

    name: str
    value: str | bytes | File


def accept_uploads(endpoint: Endpoint, bind: Bind) -> Bind:
    """`bind`, for an endpoint that takes Files: it reads forms and raw files as well as JSON."""
    intake = Intake(endpoint)

    def bind_upload(request: Request) -> dict[str, Any]:
        essence = essence_of(request.headers.get("content-type"))
        if not request.body or _is_json(essence):
            return bind(request)
        body, query = request.body, request.query
        parts = form_of(request, essence)
        # Bodies that are not JSON go to the codec as they are: here, as the value they stand for.
        request.body = intake.raw(request, essence) if parts is None else intake.filled(parts)
        request.query = query if parts is None else intake.beside(parts) | query
        try:
            return bind(request)
        finally:
            request.body, request.query = body, query

    return bind_upload


class Intake:
    """What a form or a raw body may fill of one endpoint. Settled at assembly."""

    def __init__(self, endpoint: Endpoint) -> None:
        bodies = endpoint.body_parameters()
        scalars = {p.alias: p.type for p in endpoint.parameters if p.source == "query"}
        self._alias = bodies[0].alias
        self._type: Any = None  # of a body that is no record: a File, or a list of them
        if endpoint.embed:
            self._fields = {p.alias: p.type for p in bodies} | scalars
        else:
            kinds = [class_of(member) or object for member in members_of(bodies[0].type)]
            self._fields = {name: hint for kind in kinds for _, name, hint in fields_of(kind)}
            if not self._fields and not any(issubclass(kind, Mapping) for kind in kinds):
                self._type = bodies[0].type
        self._query = scalars.keys() - self._fields.keys()
        places = [name for name, hint in self._fields.items() if holds_files(hint)]
        self._place = places[0] if len(places) == 1 and is_file(self._fields[places[0]]) else None

    def filled(self, parts: list[Part]) -> Any:
        """The value that a form stands for."""
        parts = [part for part in parts if part.name not in self._query]
        if self._type is None:
            return self._record(parts)
        given = [part.value for part in parts if part.name == self._alias or isinstance(part.value, File)]
        # Without a file it is the File's own object that was sent: url=…, content_type=….
        return _meant(self._type, given) if given else {part.name: part.value for part in parts} or b""

    def beside(self, parts: list[Part]) -> dict[str, list[str]]:
        """What a form says to parameters that are otherwise read from the query."""
        told: dict[str, list[str]] = {}
        for part in parts:
            if part.name in self._query and isinstance(part.value, str):
                told.setdefault(part.name, []).append(part.value)
        return told

    def raw(self, request: Request, essence: str | None) -> Any:
        """The value with the body as its one File; the body itself where there is no such place."""
        if self._place is None and not (self._type is not None and is_file(self._type)):
            return request.body
        file = _file(request.body, None if essence == URLENCODED else essence, _named_by(request))
        if self._place is None:
            return file
        asked = {name: request.query[name] for name in self._fields if name in request.query}
        return self._record([Part(n, v) for n, values in asked.items() for v in values]) | {self._place: file}

    def _record(self, parts: list[Part]) -> dict[str, Any]:
        given: dict[str, list[Any]] = {}
        for part in parts:
            given.setdefault(part.name, []).append(part.value)
        meant = {name: _meant(self._fields.get(name, Any), values) for name, values in given.items()}
        return {name: value for name, value in meant.items() if value is not ABSENT}


def form_of(request: Request, essence: str | None) -> list[Part] | None:
    """The parts when the body is a form. Raises HTTPError 400 when it is a broken one."""
    if essence == FORM:
        return form_parts(request.body, request.headers["content-type"])
    if essence == URLENCODED and re.fullmatch(rb"[!-~]*", request.body):
        return _pairs(request.body)
    return None  # also for bytes that curl calls urlencoded for want of a better word


def form_parts(body: bytes, content_type: str) -> list[Part]:
    """The parts of a multipart/form-data body (RFC 7578). Raises HTTPError 400 when it is not whole."""
    boundary = parameters(content_type).get("boundary", "")
    if not boundary or len(boundary) > 200:
        raise _broken("its Content-Type names no boundary")
    fence = b"\r\n--" + boundary.encode()
    parts: list[Part] = []
    seen = 0
    at = len(fence) - 2 if body.startswith(fence[2:]) else _past(body, fence, 0, len(body))
    while body[at : at + 2] != b"--":
        start = _past(body, b"\r\n", at, at + MOST_HEADER_BYTES)
        if body[at : start - 2].strip(b" \t"):
            raise _broken("something follows its boundary")
        # A part without headers begins with the empty line that ends them.
        end = _past(body, b"\r\n\r\n", start - 2, start + MOST_HEADER_BYTES)
        after = _past(body, fence, end, len(body))
        if part := _part(decoded(body[start : end - 4]), body[end : after - len(fence)]):
            parts.append(part)
        if (seen := seen + 1) > MOST_PARTS:
            raise _broken(f"it has more than {MOST_PARTS} parts")
        at = after
    return parts


def _part(head: str, data: bytes) -> Part | None:
    headers: dict[str, str] = {}
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    told = parameters(headers.get("content-disposition", ""))
    if "name" not in told:
        raise _broken("a part has no name")
    name, file_name = (told.get(key, "").replace("%22", '"') for key in ("name", "filename"))
    if "filename" in told:
        # Browsers send an empty part for a file that nobody chose.
        return Part(name, _file(data, essence_of(headers.get("content-type")), file_name)) if data or file_name else None
    return Part(name, _text(data))


def _file(data: bytes, content_type: str | None, file_name: str | None) -> File:
    return File.received(data, content_type if content_type != ANY_BYTES else None, safe_name(file_name))


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data  # the field it is for will say that it is no text


def _pairs(body: bytes) -> list[Part]:
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_PARTS)
    except ValueError:
        raise _broken(f"it has more than {MOST_PARTS} parts") from None
    return [Part(name, value) for name, value in pairs]


def _named_by(request: Request) -> str | None:
    told = parameters(request.headers.get("content-disposition", ""))
    return told.get("filename") or request.headers.get("x-fal-file-name")


def _past(body: bytes, mark: bytes, start: int, end: int) -> int:
    found = body.find(mark, start, end)
    if found < 0:
        raise _broken("it ends too early, or a part's head is too long")
    return found + len(mark)


def _broken(reason: str) -> HTTPError:
    return HTTPError(400, f"the form cannot be read: {reason}")


def _is_json(essence: str | None) -> bool:
    return essence is not None and (
        essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))
    )


# A form has texts only. What a text means is asked of the field's type, and the codec has the last word.


def _meant(type_: Any, given: list[Any]) -> Any:
    """What `given`, all that a form has under one name, is as a value of `type_`."""
    element = next((_element(m) for m in members_of(type_) if _element(m) is not None), None)
    if element is None:
        meant = [_meaning(type_, value) for value in given]
        return meant[0] if len(meant) == 1 else meant
    if len(given) == 1 and isinstance(given[0], str) and isinstance(whole := _from_json(given[0]), list):
        return whole
    return [meaning for value in given if (meaning := _meaning(element, value)) is not ABSENT]


def _meaning(type_: Any, value: Any) -> Any:
    members = members_of(type_)
    if not isinstance(value, str) or any(_takes_text(member, value) for member in members):
        return value
    if not value:
        return ABSENT  # a browser sends an empty text for what nobody filled in
    if bool in members and int not in members and value.lower() in YES | NO:
        return value.lower() in YES
    return _from_json(value)


def _takes_text(member: Any, text: str) -> bool:
    if typing.get_origin(member) is Literal:
        return text in typing.get_args(member)
    kind = class_of(member)
    if kind is None or issubclass(kind, (str, bytes)):
        return True
    if issubclass(kind, enum.Enum):
        return any(text == choice.value for choice in kind)
    if issubclass(kind, File):
        return bool(text)
    return not (issubclass(kind, (int, float, Mapping, *SEQUENCES)) or fields_of(kind))


def _element(member: Any) -> Any:
    """The type of the items when `member` is some kind of list, else None."""
    kind = class_of(member)
    if kind is None or issubclass(kind, (str, bytes)) or not issubclass(kind, SEQUENCES):
        return None
    return (*typing.get_args(member), Any)[0]


def _from_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return text
