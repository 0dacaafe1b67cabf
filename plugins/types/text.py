"""JSON texts: what is wrong with one, told as FastAPI tells it, and never another exception."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from ...schemas.problems import Fault, InvalidInput

KEY = re.compile(rb'"([^"]*+)(?="\s*+:)')  # also finds some that are none, never misses one
LARGE = 1 << 16


def parse(body: bytes) -> Any:
    """The value of a JSON text, with its duplicate keys, NaN and overflows refused. Slow and exact."""
    try:
        return json.loads(
            body, object_pairs_hook=_no_doubles, parse_constant=_no_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise invalid(error.msg, error.pos) from None
    except UnicodeDecodeError as error:
        raise invalid(str(error).replace(repr(body), "body"), error.start, body) from None
    except RecursionError:
        raise invalid("Nested too deeply", 0) from None
    except _DoubleKey as error:
        key = error.args[0]
        raise invalid(f"Duplicate key {key!r}", max(0, _last(body, key))) from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise invalid(str(error).partition(";")[0], 0) from None


def parse_fast(body: bytes) -> Any:
    """The same, at the speed of msgspec when nothing is wrong."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return parse(body)
    if may_repeat_a_key(body):
        parse(body)
    return value


def may_repeat_a_key(body: bytes) -> bool:
    """False when certainly no object in `body` has a key twice; True sends it to the exact check."""
    if len(body) > LARGE and body.count(b'"') < len(body) >> 8:
        keys = _sparse_keys(body)
    else:
        keys = KEY.findall(body)
    return len(keys) != len(set(keys)) or any(b"\\" in key for key in keys)


def invalid(reason: str, position: int, body: Any = None) -> InvalidInput:
    fault = Fault(
        type="json_invalid",
        loc=(position,),
        msg="JSON decode error",
        input={} if body is None else body,
        ctx={"error": reason},
    )
    return InvalidInput([fault])


def _sparse_keys(body: bytes) -> list[bytes]:
    """KEY.findall for a body that is mostly a few long strings, such as base64 images."""
    keys, start = [], body.find(b'"')
    while (end := body.find(b'"', start + 1)) > 0:
        after = end + 1
        while body[after : after + 1].isspace():
            after += 1
        if body[after : after + 1] == b":":
            keys.append(body[start + 1 : end])
        start = end
    return keys


def _last(body: bytes, key: str) -> int:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return 0
    return text.rfind(json.dumps(key, ensure_ascii=False))


class _DoubleKey(Exception):
    pass


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DoubleKey(key)
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"Number out of range: {text[:40]}")
    return number
