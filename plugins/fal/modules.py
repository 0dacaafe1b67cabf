"""The `fal` module for apps, when the fal package is not installed.

It has the names that apps use while they run. Names that only fal's platform can honour, and those
this runner does not have yet, fail with a sentence that says so. pydantic is imported when an app
asks for a name that needs it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from opcode import opmap
from types import ModuleType
from typing import Any, NoReturn

from ...schemas.problems import ConfigError
from ...schemas.request import current_request
from . import downloads, errors, toolkit

PYDANTIC_NAMES = {
    "fal.toolkit": (
        "AudioField", "FalBaseModel", "Field", "FileField", "Hidden", "ImageField", "ImageSizeField",
        "ImageSizeInput", "VideoField", "get_image_size",
    ),
    "fal.toolkit.pydantic": ("FalBaseModel", "Field", "Hidden", "IS_PYDANTIC_V2"),
    "fal.toolkit.audio": ("AudioField",),
    "fal.toolkit.file": ("FileField",),
    "fal.toolkit.image": (
        "IMAGE_SIZE_PRESETS", "ImageField", "ImageSize", "ImageSizeField", "ImageSizeInput", "ImageSizePreset",
        "get_image_size",
    ),
    "fal.toolkit.video": ("VideoField",),
}  # fmt: skip
FILES = {
    "fal.toolkit.audio": ("Audio",),
    "fal.toolkit.file": ("File", "CompressedFile", "FileData", "FileRepository"),
    "fal.toolkit.image": ("Image",),
    "fal.toolkit.video": ("Video",),
}
INPUTS = ("AudioInput", "FileInput", "ImageInput", "VideoInput")
PYDANTIC_NAMES["fal.toolkit.types"] = INPUTS
for _package in FILES:  # each has a module of its own name, from which some apps import
    PYDANTIC_NAMES[f"{_package}.{_package.rpartition('.')[2]}"] = PYDANTIC_NAMES[_package]

TESTING = {"fal.app": ("AppClient", "AppClientError")}  # imported by who asks: only tests do
LATER = frozenset({"KVStore"})
PACKAGES = ("fal", "fal.toolkit", "fal.toolkit.utils", *FILES)

EXCEPTIONS = {
    name: getattr(errors, name)
    for name in (
        "AppException", "AppFileUploadException", "CUDAOutOfMemoryException", "FalServerlessException",
        "FieldException", "FileTooLargeError", "GPUException", "GPUOutOfMemoryException",
        "RequestCancelledException", "UnauthenticatedException", "catch_gpu_exceptions",
    )
}  # fmt: skip
TOOLKIT_EXCEPTIONS = {
    name: getattr(toolkit, name)
    for name in ("FalTookitException", "FileUploadException", "FileUploadFallbackException", "KVStoreException")
}
UTILS = {
    name: getattr(toolkit, name)
    for name in ("DownloadError", "FAL_MODEL_WEIGHTS_DIR", "FAL_PERSISTENT_DIR", "FAL_REPOSITORY_DIR", "clone_repository")
} | {"download_file": downloads.download_file, "download_model_weights": downloads.download_model_weights}
CONSTRAINTS = {
    name: getattr(toolkit, name)
    for name in (
        "ImageSizeConstraints", "ImageValidationConfig", "VideoNormalizationConfig", "VideoValidationConfig", "to_xfal",
    )
}  # fmt: skip


def build_modules(names: Mapping[str, Any]) -> dict[str, ModuleType]:
    """Return every module by its full name. `names` is what `runner` exports."""
    marks = {name: names[name] for name in ("App", "HealthCheck", "endpoint", "realtime") if name in names}
    files = _files(names)
    pictures = {"read_image_from_url": downloads.image_reader(names["Image"])} if "Image" in names else {}
    contents: dict[str, dict[str, Any]] = {
        "fal": {
            **marks,
            "ContainerImage": toolkit.ContainerImage,
            "cached": functools.cache,
            "function": _function,
            "isolated": _function,
            "__version__": "0+runner",
            "version_tuple": (0,),
        },
        "fal.api": {"cached": functools.cache, "function": _function},
        "fal.app": {**marks, "RequestContext": type(current_request())},
        "fal.container": {"ContainerImage": toolkit.ContainerImage},
        "fal.exceptions": EXCEPTIONS,
        "fal.realtime": {name: marks[name] for name in ("realtime",) if name in marks},
        "fal.ref": _ref(),
        "fal.sdk": {"HealthCheck": names["HealthCheck"], "RetryConfig": toolkit.RetryConfig},
        "fal.toolkit": {**TOOLKIT_EXCEPTIONS, **UTILS, **pictures, **CONSTRAINTS, **files},
        "fal.toolkit.constraints": CONSTRAINTS,
        "fal.toolkit.exceptions": TOOLKIT_EXCEPTIONS,
        "fal.toolkit.file.types": {name: files[name] for name in ("FileData", "FileRepository") if name in files},
        "fal.toolkit.pydantic": {},
        "fal.toolkit.types": {},
        "fal.toolkit.utils": UTILS,
        "fal.toolkit.utils.download_utils": UTILS,
        "fal.toolkit.utils.endpoint": {"cancel_on_disconnect": toolkit.cancel_on_disconnect},
    }
    for package, kinds in FILES.items():
        known = {kind: files[kind] for kind in kinds if kind in files}
        if package == "fal.toolkit.image":
            known |= pictures
        contents[package] = contents[f"{package}.{package.rpartition('.')[2]}"] = known
    modules = {name: _module(name, content) for name, content in contents.items()}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent and not hasattr(modules[parent], child):  # `fal.realtime` is the decorator
            setattr(modules[parent], child, module)
    return modules


def _files(names: Mapping[str, Any]) -> dict[str, Any]:
    """What `fal.toolkit` has of files: our own classes, which have fal's constructors and methods."""
    kinds = ("Audio", "CompressedFile", "File", "FileData", "FileRepository", "Image", "Video")
    return {name: names[name] for name in kinds if name in names}


def _module(name: str, content: Mapping[str, Any]) -> ModuleType:
    module = ModuleType(name, "What this runner offers of fal; made by runner.plugins.fal.")
    lazy = (*PYDANTIC_NAMES.get(name, ()), *TESTING.get(name, ()))
    offered = sorted([*content, *lazy])
    vars(module).update(content)
    if name in PACKAGES:
        module.__path__ = []

    def missing(attribute: str) -> Any:
        if attribute in TESTING.get(name, ()):
            return getattr(importlib.import_module("runner.testing"), attribute)
        if attribute in lazy:
            return _from_pydantic(name, attribute)
        kind = ImportError if _is_from_import(sys._getframe(1).f_code.co_code, sys._getframe(1).f_lasti) else AttributeError
        if attribute.startswith("__"):
            raise kind(f"module {name!r} has no attribute {attribute!r}")
        if attribute in LATER:
            why = f"this runner does not have {name}.{attribute} yet"
        else:
            why = f"this runner has no {name}.{attribute}; of {name} it has {', '.join(offered) or 'nothing yet'}"
        raise kind(f"{why}; installing the fal package gives the rest (pip install fal)", name=attribute)

    vars(module)["__getattr__"] = missing
    vars(module)["__dir__"] = lambda: sorted({*vars(module), *lazy})
    vars(module)["__all__"] = [n for n in content if not n.startswith("_")]
    return module


def _is_from_import(code: bytes, at: int) -> bool:
    """Whether the caller is at `from module import name`.

    That statement replaces the text of an AttributeError by its own; an ImportError it lets pass.
    """
    return 0 <= at < len(code) and code[at] == opmap["IMPORT_FROM"]


def _from_pydantic(module: str, name: str) -> Any:
    try:
        from . import models
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pydantic":
            raise
        raise ImportError(f"{module}.{name} needs pydantic 2; pip install pydantic", name=name) from None
    return getattr(models, name)


def _ref() -> dict[str, Any]:
    """`fal.ref`: the app that this process serves. The plugin's lifespan sets `current_app`."""

    def module() -> Any:
        return sys.modules["fal.ref"]

    def get_current_app() -> Any:
        return module().current_app

    def set_current_app(app: Any) -> None:
        module().current_app = app

    return {"current_app": None, "get_current_app": get_current_app, "set_current_app": set_current_app}


def _function(*arguments: Any, **options: Any) -> NoReturn:
    raise ConfigError(
        "fal.function sends one function to fal's platform, which this runner is not; "
        'serve it as a class: class MyApp(fal.App) with @fal.endpoint("/") on a method'
    )
