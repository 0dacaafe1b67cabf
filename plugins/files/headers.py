"""Header values that name and type a file, as requests, answers and the parts of forms carry them."""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import unquote

# A quote that is never closed runs to the end, so that no text is scanned twice.
PARAMETER = re.compile(r';\s*([\w*.-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*+)(?:"|\\?$)|([^;\s"]*))', re.DOTALL)


def decoded(value: bytes) -> str:
    """A header's text: UTF-8, as most now write it, else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def essence_of(content_type: str | None) -> str | None:
    """The media type without its parameters; None when nothing was said."""
    return (content_type or "").partition(";")[0].strip().lower() or None


def parameters(value: str) -> dict[str, str]:
    """The parameters of a Content-Type or Content-Disposition (RFC 2183, RFC 8187)."""
    found: dict[str, str] = {}
    extended: dict[str, str] = {}
    for name, quoted, token in PARAMETER.findall(value):
        text = re.sub(r'\\(["\\])', r"\1", quoted) if quoted else token
        if name.endswith("*") and text.count("'") >= 2:
            charset, _, encoded = text.split("'", 2)
            with suppress(LookupError):
                extended[name[:-1].lower()] = unquote(encoded, charset or "utf-8")
        else:
            found.setdefault(name.lower(), text)
    return found | extended
