"""An app as the service needs it: its name, its options, its marked methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from .endpoint import Mark
from .problems import ConfigError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The class attributes that one runner honours. Names and meaning are fal's."""

    max_multiplexing: Annotated[int, Meta(ge=1)] = 1  # requests that run at once
    request_timeout: Annotated[float, Meta(gt=0)] | None = None  # seconds, per run
    startup_timeout: Annotated[float, Meta(gt=0)] | None = None  # seconds for `setup()`
    termination_grace_period_seconds: Annotated[float, Meta(ge=0)] = 5
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    app_auth: Literal["public", "private", "shared"] | None = None
    private_logs: bool = False
    skip_retry_conditions: list[str] | None = None
    retry_config: Any = None
    cancel_grace_seconds: Annotated[float, Meta(ge=0)] | None = None  # None: 5 with an own cancel endpoint, else 0


EXAMPLES: dict[str, Any] = {
    "max_multiplexing": 1, "request_timeout": 60, "startup_timeout": 600, "termination_grace_period_seconds": 5,
    "metrics_port": 9090, "app_auth": "private", "private_logs": True, "skip_retry_conditions": ["timeout"], "cancel_grace_seconds": 5,
}  # fmt: skip


class AppSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve. `make` gives the one instance; `marks` are its methods by name."""

    name: str  # of the class
    alias: str  # of the app, in URLs
    make: Callable[[], Any]
    marks: Mapping[str, Mark]
    options: Options
    module: str = ""


def read_options(attributes: Mapping[str, Any], *, of: str) -> Options:
    """The options among `attributes`; a ConfigError names the attribute that has a wrong value."""
    for name, value in attributes.items():
        _refuse_misspelt(name, value, of)
    values = {f: attributes[f] for f in Options.__struct_fields__ if attributes.get(f) is not None}
    try:
        return msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").partition("[")[0].partition(".")[0]
        example = EXAMPLES.get(name)
        hint = f"; for example {name} = {example!r}" if example is not None else ""
        raise ConfigError(f"{of}.{name} is {values.get(name)!r}: {problem[:1].lower()}{problem[1:].replace('`', '')}{hint}") from None


def _refuse_misspelt(name: str, value: Any, of: str) -> None:
    """Refuse what looks like an option of ours and is none: it would be without effect, and nobody would be told."""
    if name.startswith("_") or callable(value) or name in Options.__struct_fields__ or len(name) < 8:
        return
    if near := next((option for option in Options.__struct_fields__ if _edits(name, option) <= 2), None):
        raise ConfigError(f"{of}.{name} is no option; did you mean {near}? An attribute of the app's own needs another name")


def _edits(one: str, other: str) -> int:
    """Letters to add, drop or exchange to make `other` of `one`; at least how far their lengths are apart."""
    if abs(len(one) - len(other)) > 2:
        return 3
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def derive_alias(class_name: str) -> str:
    """The name of an app in URLs, from that of its class: MyGoodApp gives my-good-app.

    The rule is fal's: each capital begins a word, and once there is one, digits and leading
    lower-case letters are lost (GPT4App gives g-p-t-app). Raises ConfigError when nothing is left.
    """
    words = re.findall(r"[A-Z][a-z]*", class_name) or [word for word in class_name.split("_") if word]
    if not words:
        raise ConfigError(f"no app name can be made of {class_name!r}; set app_name = 'my-app'")
    return "-".join(words).lower()
