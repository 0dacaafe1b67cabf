"""Tracebacks for authors: their own frames, and those of what they call. Where the server called them from tells them nothing."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import TypeVar

E = TypeVar("E", bound=BaseException)
_SCHEMAS = Path(__file__).parent
OURS = tuple(str(_SCHEMAS.parent / name) for name in ("plugins", "schemas", "runner.py", "__init__.py"))
IMPORTING = ("<frozen importlib", str(Path(importlib.__file__).parent))


def is_ours(file: str) -> bool:
    return file.startswith((*OURS, *IMPORTING))


def own_traceback(error: BaseException) -> str:
    """The traceback of `error`, and of what it came of, as text without the frames of this server and of imports."""
    told = traceback.TracebackException.from_exception(error)
    each: traceback.TracebackException | None = told
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.stack[:] = [frame for frame in each.stack if not is_ours(frame.filename)]
        each = each.__cause__ or each.__context__
    return "".join(told.format()).rstrip()


def own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not is_ours(frame.filename)]


def trimmed(error: E) -> E:
    """`error`, its traceback beginning where the author's code begins; whole when it never gets there."""
    trace = error.__traceback__
    while trace is not None and is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)
