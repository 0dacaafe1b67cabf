"""Types: what an endpoint takes and gives, read from its signature.

`describe` turns a method into an `Endpoint`, `bind` makes the function that reads a request into
the method's arguments, and the `type_codec` hook gives each type its codec: msgspec for Structs,
dataclasses, TypedDicts, NamedTuples and builtins, pydantic for its own models. All of it happens
at assembly; a request only runs what was made. A good input costs one decoder call; only a bad
one is walked a second time, to tell its caller every fault at once, in pydantic's words.
"""

from __future__ import annotations

from typing import Any

from ...schemas.codec import Codec
from ..hookspecs import hookimpl
from .binding import bind
from .codecs import codec_of
from .signature import Header, describe

__all__ = ["Header", "bind", "describe", "type_codec"]


@hookimpl
def type_codec(type: Any) -> Codec | None:
    return codec_of(type)
