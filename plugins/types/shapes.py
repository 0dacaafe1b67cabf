"""The shape of a type: what faults and schemas are read from, in the author's order.

msgspec's own `inspect` sorts the values of a Literal and forgets aliases; callers read both.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import types
import typing
from typing import Annotated, Any, Literal, NamedTuple, NewType, TypeVar, Union

import msgspec

Kind = Literal[
    "any", "none", "bool", "int", "float", "str", "bytes", "scalar", "enum", "literal",
    "list", "set", "frozenset", "tuple", "dict", "object", "array", "union", "custom",
]  # fmt: skip

UNIONS = (Union, types.UnionType)
LISTS = {list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection}
SETS = {set, collections.abc.Set, collections.abc.MutableSet}
MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}
SIMPLE: dict[Any, Kind] = {
    Any: "any", object: "any", None: "none", type(None): "none", bool: "bool", int: "int",
    float: "float", str: "str", bytes: "bytes", bytearray: "bytes",
}  # fmt: skip
SCALARS = {"datetime", "date", "time", "timedelta", "Decimal", "UUID"}
LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")


class Field(NamedTuple):
    name: str  # on the wire
    shape: Shape
    required: bool
    default: Any  # as Python holds it; NODEFAULT when it is made anew or absent
    attribute: str = ""


@dataclasses.dataclass(eq=False)
class Shape:
    kind: Kind
    type: Any
    items: tuple[Shape, ...] = ()
    fields: tuple[Field, ...] = ()
    values: tuple[Any, ...] = ()
    limits: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # title, description, examples …
    label: str = ""  # how pydantic calls it among the members of a union
    closed: bool = False  # unknown fields are refused
    tag: tuple[str, Any] | None = None
    documentation: str = ""


class Shapes:
    """Builds shapes; one of each object type, so that recursive types end."""

    def __init__(self) -> None:
        self.objects: dict[Any, Shape] = {}

    def of(self, type_: Any) -> Shape:
        if isinstance(type_, NewType):
            return self.of(type_.__supertype__)
        if type(type_).__name__ == "TypeAliasType":
            return self.of(type_.__value__)
        if isinstance(type_, TypeVar):
            return self.of(type_.__bound__) if type_.__bound__ else Shape("any", Any, label="any")
        origin, arguments = typing.get_origin(type_), typing.get_args(type_)
        if origin is Annotated:
            return _with_metadata(self.of(arguments[0]), arguments[1:])
        if getattr(origin, "__name__", "") in {"Required", "NotRequired", "ReadOnly", "Final", "ClassVar"}:
            return self.of(arguments[0])
        if origin is Literal:
            return Shape("literal", type_, values=arguments, label=f"literal[{','.join(map(repr, arguments))}]")
        if origin in UNIONS:
            return self._union(type_, arguments)
        try:
            if (kind := SIMPLE.get(type_)) is not None:
                return Shape(kind, type_, label=kind)
        except TypeError:  # not hashable
            return Shape("custom", type_, label=str(type_))
        return self._container(type_, origin or type_, arguments) or self._class(type_, origin or type_)

    def _union(self, type_: Any, arguments: tuple[Any, ...]) -> Shape:
        members = [self.of(a) for a in arguments if a is not msgspec.UnsetType]
        flat = [m for member in members for m in (member.items if member.kind == "union" and not member.extra else (member,))]
        if len(flat) == 1:
            return flat[0]
        return Shape("union", type_, items=tuple(flat), label=f"union[{','.join(m.label for m in flat)}]")

    def _container(self, type_: Any, origin: Any, arguments: tuple[Any, ...]) -> Shape | None:
        items = tuple(self.of(a) for a in arguments if a is not Ellipsis)
        inner = ",".join(i.label for i in items) or "any"
        anything = Shape("any", Any, label="any")
        if origin in LISTS or origin is collections.deque:
            return Shape("list", type_, items or (anything,), label=f"list[{inner}]")
        if origin in SETS or origin is frozenset:
            kind: Kind = "frozenset" if origin is frozenset else "set"
            return Shape(kind, type_, items or (anything,), label=f"{kind}[{inner}]")
        if origin in MAPPINGS or origin is collections.OrderedDict or origin is collections.defaultdict:
            inner = inner if items else "any,any"
            return Shape("dict", type_, items or (anything, anything), label=f"dict[{inner}]")
        if origin is tuple:
            if not arguments or arguments[-1] is Ellipsis:
                shape = Shape("tuple", type_, items or (anything,), label=f"tuple[{inner}, ...]")
                shape.values = (Ellipsis,)
                return shape
            return Shape("tuple", type_, items, label=f"tuple[{', '.join(i.label for i in items)}]")
        return None

    def _class(self, type_: Any, origin: Any) -> Shape:
        if not isinstance(origin, type):
            return Shape("custom", type_, label=str(type_))
        if issubclass(origin, enum.Enum):
            values = tuple(member.value for member in origin)
            return Shape("enum", type_, values=values, label="enum", documentation=_doc(origin))
        if origin.__name__ in SCALARS and origin.__module__ in {"datetime", "decimal", "_pydecimal", "uuid"}:
            return Shape("scalar", type_, label=origin.__name__.lower())
        if type_ in self.objects:
            return self.objects[type_]
        if issubclass(origin, msgspec.Struct):
            return self._struct(type_, origin)
        if dataclasses.is_dataclass(origin):
            return self._object(type_, origin, self._dataclass_fields)
        if is_typeddict(origin):
            return self._object(type_, origin, self._typeddict_fields)
        if issubclass(origin, tuple) and hasattr(origin, "_fields"):
            shape = self._object(type_, origin, self._namedtuple_fields)
            shape.kind = "array"
            return shape
        return Shape("custom", type_, label=origin.__name__)

    def _object(self, type_: Any, origin: Any, fields: Any) -> Shape:
        shape = self.objects[type_] = Shape("object", type_, label=origin.__name__, documentation=_doc(origin))
        shape.fields = tuple(fields(origin))
        return shape

    def _struct(self, type_: Any, origin: Any) -> Shape:
        config = origin.__struct_config__
        shape = self.objects[type_] = Shape(
            "array" if config.array_like else "object", type_, label=origin.__name__, documentation=_doc(origin)
        )
        shape.closed = config.forbid_unknown_fields
        if config.tag is not None:
            shape.tag = (config.tag_field, config.tag)
        fields = []
        for f in msgspec.structs.fields(type_):
            default = f.default
            if f.default_factory is not msgspec.NODEFAULT:
                default = _made(f.default_factory)
            fields.append(Field(f.encode_name, self.of(f.type), f.required, default, f.name))
        shape.fields = tuple(fields)
        return shape

    def _dataclass_fields(self, origin: Any) -> typing.Iterator[Field]:
        hints = typing.get_type_hints(origin, include_extras=True)
        for f in dataclasses.fields(origin):
            if not f.init:
                continue
            default = f.default
            if f.default_factory is not dataclasses.MISSING:
                default = _made(f.default_factory)
            required = default is dataclasses.MISSING
            yield Field(f.name, self.of(hints[f.name]), required, msgspec.NODEFAULT if required else default, f.name)

    def _typeddict_fields(self, origin: Any) -> typing.Iterator[Field]:
        for name, hint in typing.get_type_hints(origin, include_extras=True).items():
            yield Field(name, self.of(hint), name in origin.__required_keys__, msgspec.NODEFAULT)

    def _namedtuple_fields(self, origin: Any) -> typing.Iterator[Field]:
        hints = typing.get_type_hints(origin, include_extras=True)
        for name in origin._fields:
            default = origin._field_defaults.get(name, msgspec.NODEFAULT)
            yield Field(name, self.of(hints.get(name, Any)), default is msgspec.NODEFAULT, default, name)


def is_typeddict(type_: Any) -> bool:
    """Also true of `typing_extensions.TypedDict`, which `typing.is_typeddict` does not know on 3.11."""
    return isinstance(type_, type) and issubclass(type_, dict) and hasattr(type_, "__required_keys__")


def _with_metadata(shape: Shape, metadata: tuple[Any, ...]) -> Shape:
    limits, extra = dict(shape.limits), dict(shape.extra)
    for meta in metadata:
        if not isinstance(meta, msgspec.Meta):
            continue
        limits |= {name: value for name in LIMITS if (value := getattr(meta, name)) is not None}
        for name in ("title", "description", "examples"):
            if (value := getattr(meta, name)) is not None:
                extra[name] = value
        extra |= meta.extra_json_schema or {}
    label = shape.label
    if limits and shape.kind in {"int", "float", "str"}:
        label = f"constrained-{shape.kind}"
    return dataclasses.replace(shape, limits=limits, extra=extra, label=label)


def _made(factory: Any) -> Any:
    try:
        return factory()
    except Exception:  # its own business; the schema only loses a default
        return msgspec.NODEFAULT


def _doc(cls: type) -> str:
    text = cls.__dict__.get("__doc__") or ""
    generated = text.startswith(f"{cls.__name__}(") or text in (enum.Enum.__doc__, "An enumeration.")
    return "" if generated else inspect.cleandoc(text)
