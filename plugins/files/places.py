"""Places: where Files may stand in a type, and where they stand in a value."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NewType, TypeVar, cast

import msgspec

from ...schemas.files import File, Loc


def holds_files(type_: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether a value of `type_` may hold a File somewhere."""
    for member in members_of(type_):
        if isinstance(member, TypeVar):
            return True  # of a generic class: whatever it was made for
        if any(holds_files(argument, seen) for argument in typing.get_args(member)):
            return True
        kind = class_of(member)
        if kind is None or kind in seen:
            continue
        if issubclass(kind, File) or any(holds_files(hint, seen | {kind}) for _, _, hint in fields_of(kind)):
            return True
    return False


def fields_of(kind: type) -> list[tuple[str, str, Any]]:
    """The attribute, the name on the wire and the type of each field; none for what is no record."""
    if issubclass(kind, msgspec.Struct):
        return [(f.name, f.encode_name, f.type) for f in msgspec.structs.fields(kind)]
    if models := getattr(kind, "__pydantic_fields__", None):
        return [(name, _alias(name, field), field.annotation) for name, field in models.items()]
    if dataclasses.is_dataclass(kind) or hasattr(kind, "__required_keys__"):
        return [(name, name, hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()]
    return []


def files_in(value: object, loc: Loc) -> Iterator[tuple[Loc, File]]:
    """Every File in `value`, with its path in the input."""
    if isinstance(value, File):
        yield loc, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from files_in(item, (*loc, str(key)))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from files_in(item, (*loc, index))
    else:
        for attribute, name in _file_fields(cast(Any, type(value))):
            yield from files_in(getattr(value, attribute, None), (*loc, name))


@functools.lru_cache(maxsize=1024)
def _file_fields(kind: type) -> tuple[tuple[str, str], ...]:
    return tuple((attribute, name) for attribute, name, hint in fields_of(kind) if holds_files(hint))


def _alias(name: str, field: Any) -> str:
    alias = field.validation_alias or field.alias
    return alias if isinstance(alias, str) else name


def members_of(type_: Any) -> list[Any]:
    """What a value of `type_` may be, None apart."""
    if isinstance(type_, NewType):
        return members_of(type_.__supertype__)
    if type(type_).__name__ == "TypeAliasType":
        return members_of(type_.__value__)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is Annotated:
        return members_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in arguments for member in members_of(argument)]
    return [] if type_ in (None, types.NoneType, msgspec.UnsetType) else [type_]


def class_of(type_: Any) -> type | None:
    kind = typing.get_origin(type_) or type_
    return kind if isinstance(kind, type) else None


def is_file(type_: Any) -> bool:
    """Whether a value of `type_` is one File, or None."""
    members = [class_of(member) for member in members_of(type_)]
    return bool(members) and all(kind is not None and issubclass(kind, File) for kind in members)
