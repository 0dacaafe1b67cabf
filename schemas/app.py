"""An app as the service needs it: its name, its options, its marked methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from .endpoint import Mark
from .problems import ConfigError


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The class attributes that one runner honours. Names and meaning are fal's."""

    max_multiplexing: int = 1  # requests that run at once
    request_timeout: float | None = None  # seconds, per run
    startup_timeout: float | None = None  # seconds for `setup()`
    termination_grace_period_seconds: float = 5
    metrics_port: int | None = None
    app_auth: Literal["public", "private", "shared"] | None = None
    private_logs: bool = False
    skip_retry_conditions: list[str] | None = None
    retry_config: Any = None
    cancel_grace_seconds: float | None = None  # None: 5 with an own cancel endpoint, else 0


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
    values = {f: attributes[f] for f in Options.__struct_fields__ if attributes.get(f) is not None}
    try:
        options = msgspec.convert(values, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{of}: {error}; for example max_multiplexing = 1, request_timeout = 60") from None
    if options.max_multiplexing < 1:
        raise ConfigError(f"{of}.max_multiplexing is {options.max_multiplexing}; at least 1 request must run")
    return options


def derive_alias(class_name: str) -> str:
    """The name of an app in URLs, from that of its class: MyGoodApp gives my-good-app.

    The rule is fal's: each capital begins a word, and once there is one, digits and leading
    lower-case letters are lost (GPT4App gives g-p-t-app). Raises ConfigError when nothing is left.
    """
    words = re.findall(r"[A-Z][a-z]*", class_name) or [word for word in class_name.split("_") if word]
    if not words:
        raise ConfigError(f"no app name can be made of {class_name!r}; set app_name = 'my-app'")
    return "-".join(words).lower()
