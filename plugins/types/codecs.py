"""The codecs: msgspec for its own kinds, pydantic for whatever holds one of its models."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any

import msgspec

from ...schemas.codec import Codec
from ...schemas.problems import ConfigError, Fault, InvalidInput, InvalidOutput
from . import faults, schema
from .shapes import Shape, Shapes, is_typeddict
from .text import invalid, parse, parse_fast, refuse_doubles

Schema = tuple[dict[str, Any], dict[str, dict[str, Any]]]
LARGEST_ARRAY = 1_000_000  # elements as JSON numbers; a number out of the air, ~20 MB of text
BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError)


def codec_of(type_: Any) -> Codec | None:
    """The codec of `type_`, or None when neither msgspec nor pydantic knows it."""
    if is_pydantic(type_):
        return PydanticCodec(type_)
    if any(shape.kind == "custom" and not _is_known(shape.type) for shape in _leaves(Shapes().of(type_))):
        return None
    try:
        return MsgspecCodec(type_)
    except TypeError as error:  # a union that msgspec cannot tell apart; pydantic tries each member
        try:
            return PydanticCodec(type_)
        except Exception:  # it is not installed, or the union lies inside a Struct
            raise ConfigError(f"{type_!r}: {error}{_hint(str(error))}") from None


def _hint(error: str) -> str:
    if "union" in error:
        return "; use a pydantic model here, or one list type such as list[float]"
    if "Can only set" in error:
        return "; put the limits on the type itself, for example Annotated[str, Meta(max_length=3)] | None"
    return ""


def is_pydantic(type_: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Whether pydantic must handle `type_`: a model, or something that holds one outside a Struct."""
    if typing.get_origin(type_) is Annotated:
        base, *metadata = typing.get_args(type_)
        theirs = {"pydantic", "pydantic_core", "annotated_types", "fastapi"}
        return any(type(m).__module__.partition(".")[0] in theirs for m in metadata) or is_pydantic(base, seen)
    if any(is_pydantic(a, seen) for a in typing.get_args(type_) if typing.get_origin(type_) is not typing.Literal):
        return True
    kind = typing.get_origin(type_) or type_
    if not isinstance(kind, type) or kind in seen:
        return False
    if hasattr(kind, "__get_pydantic_core_schema__") or hasattr(kind, "__pydantic_core_schema__"):
        return not hasattr(kind, "__from_json__")
    if not issubclass(kind, msgspec.Struct) and (dataclasses.is_dataclass(kind) or is_typeddict(kind)):
        try:
            hints = typing.get_type_hints(kind, include_extras=True)
        except NameError:
            return False
        return any(is_pydantic(hint, seen | {kind}) for hint in hints.values())
    return False


class MsgspecCodec:
    """Strict JSON types: an int is a good float; a bool is no int, and "5" is none either."""

    def __init__(self, type_: Any) -> None:
        self.type = type_
        self._shape = Shapes().of(type_)
        self._decode = msgspec.json.Decoder(type_, dec_hook=from_json).decode
        self._encode = msgspec.json.Encoder(enc_hook=to_json).encode
        self._ready = _encoded_as_they_are(self._shape)
        self._unchecked = self._shape.kind == "any"

    def decode(self, body: bytes) -> Any:
        try:
            value = self._decode(body)
        except (*BROKEN, InvalidInput):
            return self.convert(parse(body))
        refuse_doubles(body)
        return value

    def convert(self, value: Any, *, text: bool = False) -> Any:
        if text:
            value = faults.from_text(self._shape, value)
        try:
            return _convert(value, self.type)
        except (ValueError, TypeError, RecursionError, OverflowError, InvalidInput) as error:
            try:
                found = faults.find(self._shape, value, (), _convert)
            except RecursionError:
                raise invalid("Nested too deeply", 0) from None
            if not found:
                reason = str(error)
                found = [Fault(type="value_error", loc=(), msg=f"Value error, {reason}", input=value, ctx={"error": reason})]
            raise InvalidInput(found) from None

    def encode(self, value: Any) -> bytes:
        if self._unchecked or type(value) in self._ready:
            return _encoded(value, self._encode)
        try:
            plain = msgspec.to_builtins(value, enc_hook=to_json, str_keys=True)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise _unencodable(value, error) from None
        try:
            return _encoded(self.convert(plain), self._encode)
        except InvalidInput as error:
            raise _misfit(error.faults) from None

    def schema(self, *, output: bool) -> Schema:
        return schema.of(self._shape)


class PydanticCodec:
    """pydantic's own rules, on the value that JSON became, as FastAPI applies them."""

    def __init__(self, type_: Any) -> None:
        import pydantic

        self.type = type_
        self._pydantic = pydantic
        self._adapter: Any = pydantic.TypeAdapter(type_)

    def decode(self, body: bytes) -> Any:
        return self.convert(parse_fast(body))

    def convert(self, value: Any, *, text: bool = False) -> Any:
        try:
            return self._adapter.validate_python(value, from_attributes=True)
        except self._pydantic.ValidationError as error:
            raise InvalidInput(_pydantic_faults(error)) from None
        except RecursionError:
            raise invalid("Nested too deeply", 0) from None

    def encode(self, value: Any) -> bytes:
        try:
            checked = self._adapter.validate_python(value, from_attributes=True)
            encoded: bytes = self._adapter.dump_json(checked, by_alias=True, fallback=to_json)
        except self._pydantic.ValidationError as error:
            raise _misfit(_pydantic_faults(error)) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidOutput(f"response: {error}") from None
        return encoded

    def schema(self, *, output: bool) -> Schema:
        mode: Any = "serialization" if output else "validation"
        made, definitions = self._pydantic.TypeAdapter.json_schemas(
            [("it", mode, self._adapter)], ref_template="#/components/schemas/{model}"
        )
        return dict(made["it", mode]), dict(definitions.get("$defs", {}))


def to_json(value: Any) -> Any:
    """What msgspec does not know: pydantic models, numpy, torch, paths, and types with `__to_json__`.

    NaN and infinities become null, as pydantic writes them. Bytes become base64.
    """
    if hasattr(value, "__to_json__"):
        return value.__to_json__()
    if hasattr(value, "__pydantic_fields__") and hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, fallback=to_json)
    for base in type(value).__mro__:
        home = base.__module__.partition(".")[0]
        if home == "numpy" and base.__name__ in ("ndarray", "generic"):
            _check_size(value.size, value)
            return _of_numpy(value)
        if home == "torch" and base.__name__ in ("Tensor", "TensorBase"):
            _check_size(value.numel(), value)
            return value.detach().tolist()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (str, int, float)):  # a subclass
        return next(base(value) for base in (str, int, float) if isinstance(value, base))
    if dataclasses.is_dataclass(value) or isinstance(value, (bytes, memoryview)):
        return value
    if isinstance(value, typing.Collection) or type(value).__name__ in ("dict_keys", "dict_values"):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _of_numpy(value: Any) -> Any:
    kind, size = value.dtype.kind, value.dtype.itemsize
    if kind in "mM":  # finer than a microsecond, numpy would make plain integers of them
        value = value.astype(value.dtype.name.partition("[")[0] + "[us]")
    elif (kind, size > 8) == ("f", True) or (kind, size > 16) == ("c", True):
        value = value.astype("float64" if kind == "f" else "complex128")  # Python has none longer
    return value.tolist()


def from_json(type_: Any, value: Any) -> Any:
    """The reverse for types inside Structs: pydantic models, paths, and types with `__from_json__`."""
    if isinstance(type_, type) and hasattr(type_, "__from_json__"):
        return type_.__from_json__(value)
    if is_pydantic(type_):
        return _pydantic_codec(type_).convert(value)
    if isinstance(value, typing.get_origin(type_) or type_):
        return value
    if isinstance(type_, type) and issubclass(type_, PurePath) and isinstance(value, str):
        return type_(value)
    raise TypeError(f"Input should be an instance of {getattr(type_, '__name__', type_)}")


@functools.cache
def _pydantic_codec(type_: Any) -> PydanticCodec:
    return PydanticCodec(type_)


def _convert(value: Any, type_: Any) -> Any:
    return msgspec.convert(value, type_, dec_hook=from_json, str_keys=True)


def _encoded(value: Any, encode: Any) -> bytes:
    try:
        encoded: bytes = encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise _unencodable(value, error) from None
    return encoded


def _encoded_as_they_are(shape: Shape) -> frozenset[Any]:
    """The exact classes whose instances need no check: Structs, dataclasses and plain builtins."""
    members = shape.items if shape.kind == "union" else (shape,)
    ready: set[Any] = set()
    for member in members:
        if member.kind == "none":
            ready.add(type(None))
        elif member.kind == "object" and not is_typeddict(member.type):
            ready.add(typing.get_origin(member.type) or member.type)
        elif member.kind in ("str", "int", "bool", "float") and not member.limits:
            ready.add(member.type)
    if shape.type in (dict, list):
        ready.add(shape.type)
    return frozenset(ready)


def _leaves(shape: Shape, seen: set[int] | None = None) -> typing.Iterator[Shape]:
    seen = set() if seen is None else seen
    if id(shape) in seen:
        return
    seen.add(id(shape))
    yield shape
    for item in (*shape.items, *(f.shape for f in shape.fields)):
        yield from _leaves(item, seen)


def _is_known(type_: Any) -> bool:
    if not isinstance(type_, type):
        return is_pydantic(type_)
    return hasattr(type_, "__from_json__") or is_pydantic(type_) or issubclass(type_, PurePath)


def _pydantic_faults(error: Any) -> list[Fault]:
    return [
        Fault(
            type=item["type"], loc=tuple(item["loc"]), msg=item["msg"], input=item["input"],
            ctx={k: str(v) if isinstance(v, Exception) else v for k, v in item["ctx"].items()} if "ctx" in item else None,
        )
        for item in error.errors(include_url=False)
    ]  # fmt: skip


def _misfit(found: list[Fault]) -> InvalidOutput:
    return InvalidOutput("; ".join(f"{'.'.join(map(str, ('response', *f.loc)))}: {f.msg}" for f in found))


def _unencodable(value: Any, error: Exception) -> InvalidOutput:
    path, reason = _culprit(value, "response", 0) or ("response", str(error))
    return InvalidOutput(f"{path}: {reason}")


def _culprit(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    """Where the first value lies that has no form in JSON."""
    if depth > 100:
        return path, "nested too deeply, or holds itself"
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(enumerate(value))
    elif isinstance(value, msgspec.Struct):
        parts = [(name, getattr(value, name)) for name in value.__struct_fields__]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    for key in value if isinstance(value, Mapping) else ():
        if not _may_be_key(key):
            return f"{path}.{key}", f"{type(key).__name__} cannot be a key in JSON"
    for key, part in parts:
        if (found := _culprit(part, f"{path}.{key}", depth + 1)) is not None:
            return found
    try:
        msgspec.json.encode(value, enc_hook=to_json)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        return path, str(error)
    return None


def _may_be_key(key: Any) -> bool:
    try:
        msgspec.json.encode({key: None}, enc_hook=to_json)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_size(size: int, value: Any) -> None:
    if size > LARGEST_ARRAY:
        raise ValueError(
            f"an array of shape {tuple(value.shape)} is too large for JSON; return a File instead"
        )
