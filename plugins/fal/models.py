"""The pydantic part of `fal.toolkit`. Imported when an app asks for one of its names."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic.fields import FieldInfo

from .toolkit import ImageSizeConstraints, VideoNormalizationConfig, VideoValidationConfig, to_xfal

IS_PYDANTIC_V2 = True
HIDDEN = "runner.fal.hidden"
T = TypeVar("T")


def Hidden(field: T) -> T:
    """Keep a field out of the playground's form: `debug: bool = Hidden(Field(default=False))`.

    Callers may still send it. Raises TypeError for what is not a Field, ValueError for one
    without a default.
    """
    if not isinstance(field, FieldInfo):
        raise TypeError(f"Hidden() got {type(field).__name__}; write Hidden(Field(default=...))")
    if field.is_required():
        raise ValueError("a hidden field needs a default, for example Hidden(Field(default=False))")
    field.metadata = [*field.metadata, HIDDEN]
    return field


class FalBaseModel(BaseModel):
    """A model whose schema puts `FIELD_ORDERS` first and marks hidden fields for the playground."""

    SCHEMA_IGNORES: ClassVar[set[str]] = set()
    FIELD_ORDERS: ClassVar[list[str]] = []

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        if cls.__dict__.get("SCHEMA_IGNORES"):
            warnings.warn(
                f"{cls.__name__}.SCHEMA_IGNORES is deprecated; write Hidden(Field(default=...))",
                DeprecationWarning,
                stacklevel=3,
            )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        found = handler.resolve_ref_schema(schema)
        properties = found.get("properties", {})
        for name, field in cls.model_fields.items():
            shown = name if name in properties else field.alias
            if shown in properties and (name in cls.SCHEMA_IGNORES or HIDDEN in field.metadata):
                properties[shown].setdefault("ui", {})["hidden"] = True
        first = {name: properties[name] for name in cls.FIELD_ORDERS if name in properties}
        if first:
            found["properties"] = {**first, **{k: v for k, v in properties.items() if k not in first}}
        return schema


class ImageSize(BaseModel):
    width: int = Field(default=512, description="The width of the generated image.", gt=0, le=14142)
    height: int = Field(default=512, description="The height of the generated image.", gt=0, le=14142)


ImageSizePreset = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
_SIZES = ((1024, 1024), (512, 512), (768, 1024), (576, 1024), (1024, 768), (1024, 576))
IMAGE_SIZE_PRESETS = {
    name: ImageSize(width=width, height=height)
    for name, (width, height) in zip(get_args(ImageSizePreset), _SIZES, strict=True)
}
ImageSizeInput = ImageSize | ImageSizePreset


def get_image_size(source: ImageSizeInput) -> ImageSize:
    """The size that a caller gave, as numbers or as the name of a preset. TypeError for others."""
    if isinstance(source, ImageSize):
        return source
    if isinstance(source, str) and source in IMAGE_SIZE_PRESETS:
        return IMAGE_SIZE_PRESETS[source]
    raise TypeError(f"{source!r} is no image size; give ImageSize(width=…, height=…) or one of {sorted(IMAGE_SIZE_PRESETS)}")


def ImageSizeField(
    *arguments: Any,
    constraints: ImageSizeConstraints | None = None,
    ui: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A Field for an `image_size`: its limits stand under `x-fal` in the schema, `ui` beside them."""
    return _field(arguments, options, _shown(constraints), ui or {})


MOST_URL, MOST_DATA = 2048, 10 * 1024 * 1024  # characters
WEB_HOST = re.compile(r"(?:[\w-]+\.)+[a-z]{2,}\.?", re.IGNORECASE)


def _checked_url(text: str) -> str:
    """An https URL of a named host, or a data: URI, as fal's input types take them."""
    url = text.strip()
    if url[:5].lower() == "data:":
        if len(url) > MOST_DATA:
            raise ValueError(f"a data: URI has at most {MOST_DATA} characters here; upload the file and give its URL")
        return url
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and WEB_HOST.fullmatch(parts.hostname or "") is not None and len(url) <= MOST_URL
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"value must be an https URL of at most {MOST_URL} characters, or a data: URI")
    return url


def _input(widget: str) -> Any:
    return Annotated[str, AfterValidator(_checked_url), WithJsonSchema({"type": "string", "ui": {"field": widget}})]


FileInput, ImageInput, VideoInput, AudioInput = (_input(widget) for widget in ("file", "image", "video", "audio"))


def FileField(*arguments: Any, ui: dict[str, Any] | None = None, **options: Any) -> Any:
    """A Field that the playground fills with a file; also for a `str` that holds a URL."""
    return _field(arguments, options, {}, ui or {}, widget="file")


def ImageField(*arguments: Any, ui: dict[str, Any] | None = None, **options: Any) -> Any:
    """The same for a picture."""
    return _field(arguments, options, {}, ui or {}, widget="image")


def AudioField(*arguments: Any, ui: dict[str, Any] | None = None, **options: Any) -> Any:
    """The same for sound."""
    return _field(arguments, options, {}, ui or {}, widget="audio")


def VideoField(
    *arguments: Any,
    constraints: VideoValidationConfig | None = None,
    combined_constraints: VideoValidationConfig | None = None,
    normalization: VideoNormalizationConfig | None = None,
    ui: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The same for a film. The limits of each, of all together and of what is made of them stand under `x-fal`."""
    shown = _shown(constraints)
    for name, limits in (("combined", combined_constraints), ("normalization", normalization)):
        if found := _shown(limits):
            shown[name] = found
    return _field(arguments, options, shown, ui or {}, widget="video")


def _shown(limits: Any) -> dict[str, Any]:
    return {} if limits is None else to_xfal(limits)


def _field(
    arguments: tuple[Any, ...], options: dict[str, Any], limits: dict[str, Any], ui: dict[str, Any], widget: str = ""
) -> Any:
    """A Field whose schema has `limits` and `ui`, and `widget` unless the author named another."""
    extra = options.pop("json_schema_extra", None)

    def add(schema: dict[str, Any]) -> None:
        if callable(extra):
            extra(schema)
        else:
            schema.update(extra or {})
        if limits:
            schema["x-fal"] = dict(limits)
        shown = {**schema.get("ui", {}), **ui}
        if widget:
            shown.setdefault("field", widget)
        if shown:
            schema["ui"] = shown

    return Field(*arguments, json_schema_extra=add, **options)
