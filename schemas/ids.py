"""Request ids: the caller's own where it can be shown, else one that nobody can guess."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .request import Request

LONGEST_REQUEST_ID = 200


def asked_id(request: Request) -> str:
    """The caller's `x-fal-request-id` if it can be shown; else an empty text."""
    if (value := request.header(b"x-fal-request-id")) is None:
        return ""
    text = value.decode("latin-1")
    return text if text.isprintable() and len(text) <= LONGEST_REQUEST_ID else ""


VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_ids() -> Iterator[str]:
    """UUIDs of version 4, without end; the randomness of many is fetched at once."""
    while True:
        digits = os.urandom(16 * 256).hex()
        for at in range(0, len(digits), 32):
            d = digits[at : at + 32]
            yield f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{VARIANT[d[16]]}{d[17:20]}-{d[20:]}"
