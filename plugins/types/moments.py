"""Why a text is no date, time, duration, UUID or decimal, in the words of pydantic's parser.

Called once msgspec has refused the text. msgspec takes RFC 3339 and ISO 8601 alone, pydantic takes
more (a date for a datetime, seconds since 1970): there the words are our own, with an example.
"""

from __future__ import annotations

import calendar
import re
from typing import Any

HEX = "0123456789abcdefABCDEF-"
UUID_GROUPS = (8, 4, 4, 4, 12)
EXAMPLES = {
    "datetime": "RFC 3339, such as 2024-01-31T12:00:00Z",
    "date": "RFC 3339, such as 2024-01-31",
    "time": "RFC 3339, such as 12:00:00",
    "timedelta": "ISO 8601, such as PT1H30M",
    "uuid": "8-4-4-4-12 hexadecimal digits",
}

SENTENCES = {
    "date": "Input should be a valid date in the format YYYY-MM-DD",
    "time": "Input should be in a valid time format",
}
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")  # pydantic takes it for seconds since 1970
FRACTION = re.compile(r"[.,]([0-9]*)")
MIDNIGHT = re.compile(r"[0:.,]*([Zz+-].*)?")

Explained = tuple[str, str, dict[str, Any] | None]  # type, msg and ctx of the fault
INEXACT: Explained = (
    "date_from_datetime_inexact",
    "Datetimes provided to dates should have zero time - e.g. be exact dates",
    None,
)


class _Wrong(Exception):
    """What pydantic's parser would say."""


def explain(kind: str, value: Any) -> Explained:
    """The fault of `value`, which is no `kind`: one of datetime, date, time, timedelta, uuid, decimal."""
    if kind == "decimal":
        if isinstance(value, str):
            return "decimal_parsing", "Input should be a valid decimal", None
        return "decimal_type", "Decimal input should be an integer, float, string or Decimal object", None
    if kind == "uuid" and not isinstance(value, str):
        return "uuid_type", "UUID input should be a string, bytes or UUID object", None
    name = "time_delta" if kind == "timedelta" else kind
    words = "UUID" if kind == "uuid" else kind
    if not isinstance(value, str):
        return f"{name}_type", f"Input should be a valid {words}", None
    found = f"{name}_parsing"
    sentence = SENTENCES.get(kind, f"Input should be a valid {words}")
    text = value.encode("utf-8", "replace").decode("latin-1")  # positions are those of bytes
    if kind == "date" and NUMBER.fullmatch(text):
        return INEXACT
    try:
        if kind == "datetime":
            _date(text, whole=True)
        elif kind == "date":
            _datetime(text)
            if not MIDNIGHT.fullmatch(text, 11):
                return INEXACT
        elif kind == "time":
            _time(text, 0)
        elif kind == "uuid":
            _uuid(value)
        of_year_0 = kind in ("date", "datetime") and text.startswith("0000-")
        reason = "year 0 is out of range" if of_year_0 else f"expected {EXAMPLES[kind]}"
    except _Wrong as wrong:
        reason = str(wrong)
        if kind == "datetime":
            found, sentence = "datetime_from_date_parsing", "Input should be a valid datetime or date"
        elif kind == "date":
            found, sentence = "date_from_datetime_parsing", "Input should be a valid date or datetime"
    return found, f"{sentence}, {reason}", {"error": reason}


def _date(text: str, *, whole: bool) -> None:
    if len(text) < 10:
        raise _Wrong("input is too short")
    year = _number(text, 0, 4, "year")
    _expect(text, 4, "-", "date")
    month = _number(text, 5, 2, "month")
    _expect(text, 7, "-", "date")
    day = _number(text, 8, 2, "day")
    if not 1 <= month <= 12:
        raise _Wrong("month value is outside expected range of 1-12")
    if not 1 <= day <= calendar.monthrange(year or 4, month)[1]:
        raise _Wrong("day value is outside expected range")
    if whole and len(text) > 10:
        raise _Wrong("unexpected extra characters at the end of the input")


def _datetime(text: str) -> None:
    _date(text, whole=False)
    if len(text) == 10:
        raise _Wrong("input is too short")
    if text[10] not in "Tt _":
        raise _Wrong("invalid datetime separator, expected `T`, `t`, `_` or space")
    _time(text, 11)


def _time(text: str, at: int) -> None:
    if len(text) < at + 5:
        raise _Wrong("input is too short")
    hour = _number(text, at, 2, "hour")
    _expect(text, at + 2, ":", "time")
    minute = _number(text, at + 3, 2, "minute")
    _within(hour, 23, "hour")
    _within(minute, 59, "minute")
    at += 5
    if text[at : at + 1] == ":":
        _within(_number(text, at + 1, 2, "second"), 59, "second")
        at += 3
        if fraction := FRACTION.match(text, at):
            if not fraction[1]:
                raise _Wrong("second fraction digits missing after `.`")
            at = fraction.end()
    _offset(text, at)


def _offset(text: str, at: int) -> None:
    sign = text[at : at + 1]
    if sign in ("", "Z", "z"):
        at += len(sign)
    elif sign in "+-":
        hours = _number(text, at + 1, 2, "hour", "invalid timezone hour")
        at += 4 if text[at + 3 : at + 4] == ":" else 3
        minutes = _number(text, at, 2, "minute", "invalid timezone minute")
        if minutes > 59:
            raise _Wrong("timezone minute value is outside expected range of 0-59")
        if hours >= 24:
            raise _Wrong("timezone offset must be less than 24 hours")
        at += 2
    else:
        raise _Wrong("invalid timezone sign")
    if len(text) > at:
        raise _Wrong("unexpected extra characters at the end of the input")


def _number(text: str, at: int, digits: int, name: str, words: str = "") -> int:
    if not re.fullmatch(r"[0-9]+", found := text[at : at + digits]) or len(found) < digits:
        raise _Wrong(words or f"invalid character in {name}")
    return int(found)


def _expect(text: str, at: int, separator: str, name: str) -> None:
    if text[at] != separator:
        raise _Wrong(f"invalid {name} separator, expected `{separator}`")


def _within(value: int, most: int, name: str) -> None:
    if value > most:
        raise _Wrong(f"{name} value is outside expected range of 0-{most}")


def _uuid(text: str) -> None:
    for i, character in enumerate(text):
        if character not in HEX:
            raise _Wrong(f"invalid character: found `{character}` at {i}")
    groups = text.split("-")
    if len(groups) == 1:
        raise _Wrong(f"invalid length: found {len(text)}")
    if len(groups) != 5:
        raise _Wrong(f"invalid group count: expected 5, found {len(groups)}")
    for i, (group, size) in enumerate(zip(groups, UUID_GROUPS, strict=True)):
        if len(group) != size:
            raise _Wrong(f"invalid group length in group {i}: expected {size}, found {len(group)}")
