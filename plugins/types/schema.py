"""JSON Schema of a shape, word for word what pydantic emits for the twin model."""

from __future__ import annotations

from typing import Any

import msgspec

from .shapes import Field, Shape

REFERENCE = "#/components/schemas/"
FORMATS = {
    "datetime": "date-time", "date": "date", "time": "time", "timedelta": "duration", "uuid": "uuid",
}  # fmt: skip
NUMBERS = {
    "gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum", "multiple_of": "multipleOf",
}  # fmt: skip
LENGTHS = {"str": "Length", "bytes": "Length", "dict": "Properties"}
JSON_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number", type(None): "null"}
PLAIN: dict[str, dict[str, Any]] = {
    "any": {}, "none": {"type": "null"}, "bool": {"type": "boolean"}, "int": {"type": "integer"},
    "float": {"type": "number"}, "str": {"type": "string"}, "bytes": {"format": "binary", "type": "string"},
}  # fmt: skip



class Components(dict[str, dict[str, Any]]):
    """The named schemas met so far, and the type that each name stands for."""

    def __init__(self) -> None:
        self._owners: dict[str, Any] = {}

    def claim(self, type_: Any) -> tuple[str, bool]:
        """The name of `type_`, no other type's, and whether it is new and its schema wanted."""
        name = type_.__name__ if isinstance(type_, type) else str(type_).rpartition(".")[2]
        plain = name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        number = 2
        while name in self and self._owners.get(name, type_) != type_:
            name, number = f"{plain}-{number}", number + 1
        is_new = name not in self
        self._owners[name] = type_
        self.setdefault(name, {})
        return name, is_new


def of(shape: Shape) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The schema, and the components it refers to."""
    components = Components()
    made = _schema(shape, components)
    return made, dict(components)


def _schema(shape: Shape, components: Components) -> dict[str, Any]:
    made = _bare(shape, components)
    for name, limit in shape.limits.items():
        if name in NUMBERS:
            made[NUMBERS[name]] = limit
        elif name == "pattern":
            made["pattern"] = limit
        else:
            made[name[:3] + LENGTHS.get(shape.kind, "Items")] = limit
    return made | shape.extra


def _bare(shape: Shape, components: Components) -> dict[str, Any]:
    kind = shape.kind
    if kind in PLAIN:
        return dict(PLAIN[kind])
    if kind == "literal":
        return _values(shape.values)
    if kind == "scalar":
        if shape.label == "decimal":
            return {"anyOf": [{"type": "number"}, {"type": "string"}]}
        return {"format": FORMATS[shape.label], "type": "string"}
    if kind == "union":
        return _union(shape, components)
    if kind == "dict":
        values = _schema(shape.items[1], components)
        return {"additionalProperties": values or True, "type": "object"}
    if kind in ("list", "set", "frozenset"):
        made = {"items": _schema(shape.items[0], components), "type": "array"}
        return made if kind == "list" else made | {"uniqueItems": True}
    if kind == "tuple":
        if shape.values:
            return {"items": _schema(shape.items[0], components), "type": "array"}
        size = len(shape.items)
        items = [_schema(item, components) for item in shape.items]
        return {"maxItems": size, "minItems": size, "prefixItems": items, "type": "array"}
    if kind == "array":
        items = [_property(field, components) for field in shape.fields]
        required = sum(f.required for f in shape.fields)
        return {"maxItems": len(items), "minItems": required, "prefixItems": items, "type": "array"}
    if kind == "custom":
        return _custom(shape, components)
    return _component(shape, components)


def _union(shape: Shape, components: Components) -> dict[str, Any]:
    nulls = [m for m in shape.items if m.kind == "none"]
    members = [m for m in shape.items if m.kind != "none"]
    if len(members) > 1 and all(m.tag for m in members):
        refs = [_schema(m, components) for m in members]
        mapping = {str(m.tag[1]): ref["$ref"] for m, ref in zip(members, refs, strict=True) if m.tag}
        field = members[0].tag[0] if members[0].tag else ""
        tagged = {"discriminator": {"mapping": mapping, "propertyName": field}, "oneOf": refs}
        return {"anyOf": [tagged, {"type": "null"}]} if nulls else tagged
    return {"anyOf": [_schema(member, components) for member in (*members, *nulls)]}


def _values(values: tuple[Any, ...]) -> dict[str, Any]:
    made: dict[str, Any] = {"const": values[0]} if len(values) == 1 else {"enum": list(values)}
    types = {JSON_TYPES.get(type(value)) for value in values}
    if len(types) == 1 and (only := types.pop()) is not None:
        made["type"] = only
    return made


def _custom(shape: Shape, components: Components) -> dict[str, Any]:
    if hasattr(shape.type, "__json_schema__"):
        name, is_new = components.claim(shape.type)
        if is_new:
            components[name].update(shape.type.__json_schema__())
        return {"$ref": REFERENCE + name}
    if hasattr(shape.type, "__pydantic_core_schema__"):
        from .codecs import PydanticCodec

        made, found = PydanticCodec(shape.type).schema(output=False)
        components.update(found)
        return made
    return {"type": "string"}


def _component(shape: Shape, components: Components) -> dict[str, Any]:
    name, is_new = components.claim(shape.type)
    reference = {"$ref": REFERENCE + name}
    if not is_new:  # a recursive type meets itself here
        return reference
    if shape.kind == "enum":
        made = {"enum": list(shape.values), "title": name}
        types = {JSON_TYPES.get(type(value)) for value in shape.values}
        if len(types) == 1 and (only := types.pop()) is not None:
            made["type"] = only
        if shape.documentation:
            made["description"] = shape.documentation
    else:
        made = _object(shape, name, components)
    components[name].update(sorted(made.items()))
    return reference


def _object(shape: Shape, name: str, components: Components) -> dict[str, Any]:
    properties = {f.name: _property(f, components) for f in shape.fields}
    required = [f.name for f in shape.fields if f.required]
    if shape.tag is not None:
        field, value = shape.tag
        tagged = _values((value,)) | {"title": _title(field)}
        properties, required = {field: tagged, **properties}, [field, *required]
    made: dict[str, Any] = {"properties": properties, "title": name, "type": "object"}
    if required:
        made["required"] = required
    if shape.closed:
        made["additionalProperties"] = False
    if shape.documentation:
        made["description"] = shape.documentation
    return made


def _property(field: Field, components: Components) -> dict[str, Any]:
    made = _schema(field.shape, components)
    if field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET:
        made["default"] = msgspec.to_builtins(field.default, enc_hook=str, str_keys=True)
    optional = [member for member in made.get("anyOf", ()) if member != {"type": "null"}]
    refers = "$ref" in made or (len(optional) == 1 and "$ref" in optional[0])
    if not refers:  # the component has a title of its own
        made.setdefault("title", _title(field.attribute or field.name))
    return dict(sorted(made.items()))


def _title(name: str) -> str:
    return name.title().replace("_", " ").strip()
