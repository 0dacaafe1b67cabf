"""JSON texts: what is wrong with one, told as FastAPI tells it, and never another exception."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import msgspec

from ...schemas.problems import Fault, InvalidInput

LARGE = 1 << 16  # bytes; from here on looking for the few colons beats counting and decoding
FEW = 256  # colons; a number out of the air
UNREAD: Any = object()
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


HALF = re.compile(rb"\\u[dD][89aAbB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB]..)\\u[dD][c-fC-F]")


def parse(body: bytes) -> Any:
    """The value of a JSON text, with its duplicate keys, NaN, overflows and half characters refused. Slow and exact."""
    try:
        value = json.loads(
            body, object_pairs_hook=_no_doubles, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\ud" in body.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        half = HALF.search(body)
        raise invalid("Half a surrogate pair is no character", half.start() if half else 0) from None
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
        value = _decode(body)
    except (ValueError, RecursionError):
        return parse(body)
    refuse_doubles(body, value)
    return value


def refuse_doubles(body: bytes, value: Any = UNREAD) -> None:
    """Raise InvalidInput when an object in `body`, which is JSON, has one key twice.

    Each key comes with a colon, and decoding drops all but the last of equal keys. So no key is
    there twice if what was decoded, `value`, written again, has as many colons as `body`.
    """
    if len(body) < LARGE:
        colons = body.count(b":")
        if colons < 2:
            return
    elif _few_keys_differ(body):
        return
    else:
        colons = body.count(b":")
    try:
        if value is UNREAD:
            value = _decode(body)
        if type(value) is dict and len(value) == colons:
            return
        # A colon in a string may come as an escape; those go to the exact check.
        if _encode(value).count(b":") == colons and b"\\u003" not in body:
            return
    except (ValueError, RecursionError, OverflowError):
        pass  # in a part that the endpoint's type does not read
    parse(body)


def _few_keys_differ(body: bytes) -> bool:
    """Whether the texts between a quote and a colon are few, and no two alike.

    The quick way through a large body that is mostly one long string, such as a base64 image.
    """
    keys: set[bytes] = set()
    at = body.find(b":")
    for _ in range(FEW):
        if at < 0:
            return True
        end = at - 1
        while body[end] in b" \t\r\n":
            end -= 1
        if body[end] == ord('"'):  # else this colon lies within a string
            key = body[body.rfind(b'"', 0, end) + 1 : end]
            if key in keys or b"\\" in key:
                return False
            keys.add(key)
        at = body.find(b":", at + 1)
    return False


def invalid(reason: str, position: int, body: Any = None) -> InvalidInput:
    fault = Fault(
        type="json_invalid",
        loc=(position,),
        msg="JSON decode error",
        input={} if body is None else body,
        ctx={"error": reason},
    )
    return InvalidInput([fault])


def _last(body: bytes, key: str) -> int:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return 0
    return text.rfind(json.dumps(key, ensure_ascii=False))


class _DoubleKey(Exception):
    pass


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise _DoubleKey(next(key for i, key in enumerate(names) if key in names[:i]))
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"Number out of range: {text[:40]}")
    return number
