"""All that is wrong with a value, in the words that pydantic would use for the twin model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from ...schemas.problems import Fault, InvalidInput
from . import moments
from .shapes import Shape

Loc = tuple[str | int, ...]
Custom = Callable[[Any, Any], Any]

WORDS = {
    "none": ("none_required", "Input should be None"),
    "bool": ("bool_type", "Input should be a valid boolean"),
    "int": ("int_type", "Input should be a valid integer"),
    "float": ("float_type", "Input should be a valid number"),
    "str": ("string_type", "Input should be a valid string"),
    "bytes": ("bytes_type", "Input should be a valid bytes"),
    "list": ("list_type", "Input should be a valid list"),
    "set": ("set_type", "Input should be a valid set"),
    "frozenset": ("frozen_set_type", "Input should be a valid frozenset"),
    "tuple": ("tuple_type", "Input should be a valid tuple"),
    "array": ("tuple_type", "Input should be a valid tuple"),
    "dict": ("dict_type", "Input should be a valid dictionary"),
    "object": (
        "model_attributes_type",
        "Input should be a valid dictionary or object to extract fields from",
    ),
}
PARSING = {
    "int": ("int_parsing", "Input should be a valid integer, unable to parse string as an integer"),
    "float": ("float_parsing", "Input should be a valid number, unable to parse string as a number"),
    "bool": ("bool_parsing", "Input should be a valid boolean, unable to interpret input"),
}
TOO_LONG = ("int_parsing_size", "Unable to parse input string as an integer, exceeded maximum size")
DIGITS = 4300  # of an integer that Python reads
BOUNDS: dict[str, tuple[str, str, Callable[[Any, Any], bool]]] = {
    "multiple_of": ("multiple_of", "a multiple of", lambda value, limit: value % limit == 0),
    "le": ("less_than_equal", "less than or equal to", lambda value, limit: value <= limit),
    "lt": ("less_than", "less than", lambda value, limit: value < limit),
    "ge": ("greater_than_equal", "greater than or equal to", lambda value, limit: value >= limit),
    "gt": ("greater_than", "greater than", lambda value, limit: value > limit),
}
WHOLE = re.compile(r"\s*[+-]?[0-9][0-9_]*(\.0+)?\s*")
NAMES = {"list": "List", "set": "Set", "frozenset": "Frozenset", "tuple": "Tuple"}
TRUE, FALSE = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}


def find(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    """Every fault of `value`, in the order of the fields; `custom` converts what is not ours."""
    match shape.kind:
        case "any":
            return []
        case "literal" | "enum":
            return _choice(shape, value, loc)
        case "union":
            return _union(shape, value, loc, custom)
        case "object":
            return _object(shape, value, loc, custom)
        case "array":
            return _array(shape, value, loc, custom)
        case "list" | "set" | "frozenset" | "tuple":
            return _items(shape, value, loc, custom)
        case "dict":
            return _dict(shape, value, loc, custom)
        case "scalar" | "custom":
            return _other(shape, value, loc, custom)
        case _:
            return _plain(shape, value, loc, custom)


def from_text(shape: Shape, value: Any) -> Any:
    """What a query, path or header text means for `shape`; the text itself where it means nothing."""
    if isinstance(value, list):
        items = shape.items or (shape,)
        if shape.kind == "union":
            return next((from_text(m, value) for m in items if m.kind in WORDS and m.items), value)
        return [from_text(items[min(i, len(items) - 1)], item) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if shape.kind == "union":
        kinds = [m.kind for m in shape.items]
        if "str" in kinds:
            return value
        for member in shape.items:
            if (meant := from_text(member, value)) is not value:
                return meant
        return value
    if shape.kind in ("literal", "enum"):
        return next((v for v in shape.values if str(v) == value), value)
    return _parsed(shape.kind, value)


def _parsed(kind: str, text: str) -> Any:
    try:
        if kind == "int" and WHOLE.fullmatch(text):
            return int(text.partition(".")[0])
        if kind == "float":
            return float(text)
    except ValueError:
        return text
    if kind == "bool" and text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    return text


def _fault(kind: str, loc: Loc, msg: str, value: Any, ctx: dict[str, Any] | None = None) -> list[Fault]:
    return [Fault(type=kind, loc=loc, msg=msg, input=value, ctx=ctx)]


def _wrong(shape: Shape, value: Any, loc: Loc) -> list[Fault]:
    kind, msg = WORDS[shape.kind]
    return _fault(kind, loc, msg, value)


def _plain(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    kind = shape.kind
    if kind == "none":
        return [] if value is None else _wrong(shape, value, loc)
    if kind == "bool":
        if isinstance(value, bool):
            return []
        unclear = isinstance(value, (int, str)) and str(value).lower() not in TRUE | FALSE
        return _fault(PARSING["bool"][0], loc, PARSING["bool"][1], value) if unclear else _wrong(shape, value, loc)
    if kind in ("int", "float"):
        if isinstance(value, str):
            if _parsed(kind, value) is value:
                too_long = kind == "int" and WHOLE.fullmatch(value) and len(value) > DIGITS
                words, msg = TOO_LONG if too_long else PARSING[kind]
                return _fault(words, loc, msg, value)
            return _wrong(shape, value, loc)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return _wrong(shape, value, loc)
        if kind == "int" and isinstance(value, float):
            if not value.is_integer():
                msg = "Input should be a valid integer, got a number with a fractional part"
                return _fault("int_from_float", loc, msg, value)
            return _wrong(shape, value, loc)
        return _bounds(shape, value, loc)
    if kind == "str":
        if not isinstance(value, str):
            return _wrong(shape, value, loc)
        return _string(shape, value, loc)
    try:
        custom(value, shape.type)
    except (ValueError, TypeError, InvalidInput):
        return _wrong(shape, value, loc)
    return _size(shape, value, loc, "Data", "bytes")


def _bounds(shape: Shape, value: Any, loc: Loc) -> list[Fault]:
    for name, (kind, words, fits) in BOUNDS.items():
        limit = shape.limits.get(name)
        if limit is None or fits(value, limit):
            continue
        if shape.kind == "float":
            limit = float(limit)
        shown = int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        return _fault(kind, loc, f"Input should be {words} {shown}", value, {name: limit})
    return []


def _string(shape: Shape, value: str, loc: Loc) -> list[Fault]:
    try:
        value.encode()
    except UnicodeEncodeError:
        msg = "Input should be a valid string, unable to parse raw data as a unicode string"
        return _fault("string_unicode", loc, msg, value)
    limits = shape.limits
    for name, kind, words, sign in (
        ("max_length", "string_too_long", "at most", 1),
        ("min_length", "string_too_short", "at least", -1),
    ):
        if (limit := limits.get(name)) is not None and sign * len(value) > sign * limit:
            plural = "" if limit == 1 else "s"
            return _fault(kind, loc, f"String should have {words} {limit} character{plural}", value, {name: limit})
    if (pattern := limits.get("pattern")) is not None and not re.search(pattern, value):
        msg = f"String should match pattern '{pattern}'"
        return _fault("string_pattern_mismatch", loc, msg, value, {"pattern": pattern})
    return []


def _choice(shape: Shape, value: Any, loc: Loc) -> list[Fault]:
    if any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in shape.values):
        return []
    words = [repr(v) for v in shape.values]
    expected = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    kind = "literal_error" if shape.kind == "literal" else "enum"
    return _fault(kind, loc, f"Input should be {expected}", value, {"expected": expected})


def _union(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    if value is None and any(m.kind == "none" for m in shape.items):
        return []
    members = [m for m in shape.items if m.kind != "none"]
    if len(members) == 1:
        return find(members[0], value, loc, custom)
    if all(m.tag is not None for m in members):
        return _tagged(members, value, loc, custom)
    faults: list[Fault] = []
    for member in members:
        found = find(member, value, (*loc, member.label), custom)
        if not found:
            return []
        faults += found
    return faults


def _tagged(members: list[Shape], value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    tags = {m.tag[1]: m for m in members if m.tag}
    field = next(m.tag[0] for m in members if m.tag)
    if not isinstance(value, dict):
        return _wrong(members[0], value, loc)
    if field not in value:
        msg, ctx = f"Unable to extract tag using discriminator '{field}'", {"discriminator": f"'{field}'"}
        return _fault("union_tag_not_found", loc, msg, value, ctx)
    tag = value[field]
    if not isinstance(tag, (str, int)) or tag not in tags:
        expected = ", ".join(map(repr, tags))
        msg = f"Input tag '{tag}' found using '{field}' does not match any of the expected tags: {expected}"
        ctx = {"discriminator": f"'{field}'", "tag": str(tag), "expected_tags": expected}
        return _fault("union_tag_invalid", loc, msg, value, ctx)
    return find(tags[tag], value, (*loc, tag), custom)


def _object(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    if not isinstance(value, dict):
        return _wrong(shape, value, loc)
    faults: list[Fault] = []
    if shape.tag and (given := value.get(shape.tag[0], shape.tag[1])) != shape.tag[1]:
        faults += _choice(Shape("literal", None, values=(shape.tag[1],)), given, (*loc, shape.tag[0]))
    for field in shape.fields:
        at = (*loc, field.name)
        if field.name in value:
            faults += find(field.shape, value[field.name], at, custom)
        elif field.required:
            faults += _fault("missing", at, "Field required", value)
    if shape.closed:
        known = {f.name for f in shape.fields} | ({shape.tag[0]} if shape.tag else set())
        for name in value:
            if name not in known:
                faults += _fault("extra_forbidden", (*loc, name), "Extra inputs are not permitted", value[name])
    return faults or _own_check(shape, value, loc, custom)


def _array(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    if not isinstance(value, (list, tuple)):
        return _wrong(shape, value, loc)
    faults: list[Fault] = []
    for i, field in enumerate(shape.fields):
        if i < len(value):
            faults += find(field.shape, value[i], (*loc, i), custom)
        elif field.required:
            faults += _fault("missing", (*loc, i), "Field required", value)
    return faults or _own_check(shape, value, loc, custom)


def _own_check(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    """What only the type itself can find: its `__post_init__`."""
    try:
        custom(value, shape.type)
    except InvalidInput:
        raise
    except (ValueError, TypeError) as error:
        reason = re.sub(r" - at `[^`]*`$", "", str(error))
        return _fault("value_error", loc, f"Value error, {reason}", value, {"error": reason})
    return []


def _items(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return _wrong(shape, value, loc)
    fixed = shape.kind == "tuple" and not shape.values
    name = NAMES[shape.kind]
    most = len(shape.items) if fixed else shape.limits.get("max_length")
    if most is not None and len(value) > most and name in ("List", "Tuple"):
        return _too(shape, value, loc, name, "max_length", most)  # the items are not even looked at
    faults: list[Fault] = []
    for i, item in enumerate(value):
        faults += find(shape.items[i if fixed else 0], item, (*loc, i), custom)
    if fixed:
        for i in range(len(value), len(shape.items)):
            faults += _fault("missing", (*loc, i), "Field required", value)
        return faults
    return faults or _size(shape, value, loc, name, "item")


def _size(shape: Shape, value: Any, loc: Loc, name: str, unit: str) -> list[Fault]:
    for limit_name, fits in (("max_length", int.__le__), ("min_length", int.__ge__)):
        limit = shape.limits.get(limit_name)
        if limit is not None and not fits(len(value), limit):
            return _too(shape, value, loc, name, limit_name, limit)
    return []


def _too(shape: Shape, value: Any, loc: Loc, name: str, limit_name: str, limit: int) -> list[Fault]:
    kind, words = ("too_long", "at most") if limit_name == "max_length" else ("too_short", "at least")
    plural = "" if limit == 1 else "s"
    msg = f"{name} should have {words} {limit} item{plural} after validation, not {len(value)}"
    ctx = {"field_type": name, limit_name: limit, "actual_length": len(value)}
    return _fault(kind, loc, msg, value, ctx)


def _dict(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    if not isinstance(value, dict):
        return _wrong(shape, value, loc)
    faults: list[Fault] = []
    keys, values = shape.items
    for key, item in value.items():
        faults += find(keys, from_text(keys, key), (*loc, key, "[key]"), custom)
        faults += find(values, item, (*loc, key), custom)
    return faults or _size(shape, value, loc, "Dictionary", "item")


def _other(shape: Shape, value: Any, loc: Loc, custom: Custom) -> list[Fault]:
    try:
        custom(value, shape.type)
    except InvalidInput as error:
        return [msgspec.structs.replace(f, loc=(*loc, *f.loc)) for f in error.faults]
    except (ValueError, TypeError) as error:
        if shape.kind == "custom":
            return _fault("value_error", loc, f"Value error, {error}", value, {"error": str(error)})
        kind, msg, ctx = moments.explain(shape.label, value)
        return _fault(kind, loc, msg, value, ctx)
    return []
