"""Ids of requests whose callers chose none: in the form of UUIDs, without the price of making one each time."""

from __future__ import annotations

import os
from collections.abc import Iterator

VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_ids() -> Iterator[str]:
    """UUIDs of version 4, without end; the randomness of many is fetched at once."""
    while True:
        digits = os.urandom(16 * 256).hex()
        for at in range(0, len(digits), 32):
            d = digits[at : at + 32]
            yield f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{VARIANT[d[16]]}{d[17:20]}-{d[20:]}"
