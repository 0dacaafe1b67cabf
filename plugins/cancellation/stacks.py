"""Stacks: where another thread is, read at one instant.

A frame's `f_back` makes frame objects of what lies on its thread's stack, which must not move
meanwhile. Walked line by line in Python, it may, wherever the interpreter switches threads: the
stack is then of no one moment. In Python 3.11 it may even within one `f_back`, since the new object
can start the garbage collector, whose finalizers run code, and what is being read is freed under
the reader: it reads rubbish or crashes (a test keeps it).

So a stack is read by one call into C, in which no other thread runs, with the collector off on
3.11. Out come code objects and offsets, not frames: a frame that somebody holds keeps alive what
its variables name. Only an audit hook written in Python can let others run in between.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, compress, repeat, starmap, takewhile, tee
from operator import attrgetter, eq, is_, methodcaller, truth
from types import CodeType, FrameType
from typing import Any

Place = tuple[CodeType, int]  # a function, and the offset of its present instruction
Stack = list[Place]  # innermost first

_COLLECTS_AS_IT_ALLOCATES = sys.version_info < (3, 12)  # later ones do between instructions only
_ONCE: tuple[tuple[()]] = ((),)  # for `starmap`: one call, without arguments
_frames, _exceptions = sys._current_frames, sys._current_exceptions
_place: Callable[[FrameType], Place] = attrgetter("f_code", "f_lasti")
_code, _locals = attrgetter("f_code"), attrgetter("f_locals")


def stack_of(thread: int) -> Stack:
    """Where the thread of this identity is; empty if there is none."""
    return _all_of(reading(thread))


def reading(thread: int) -> Iterator[Place]:
    """A stack to be read later, by one call into C such as `list()`."""
    frames: list[FrameType] = []
    walk = takewhile(truth, accumulate(chain(_of(_frames, thread), repeat("f_back")), getattr))
    # First all frames, then what is in them: an audit hook is told of each `f_code`.
    return _at_once(starmap(frames.extend, [(walk,)]), map(_place, frames), starmap(frames.clear, _ONCE))


def if_still(thread: int, stack: Stack) -> Iterator[int]:
    """`thread`, if its stack is `stack` when it is asked for; nothing otherwise."""
    return compress((thread,), map(eq, (stack,), starmap(list, [(reading(thread),)])))


def local_of(thread: int, code: CodeType, name: str) -> Any:
    """The variable of the function that `thread` is in; None unless that is `code`, or if it is not true."""
    top, same = tee(filter(None, _of(_frames, thread)))
    there = compress(top, map(is_, map(_code, same), repeat(code)))
    return next(iter(_all_of(_at_once(map(methodcaller("get", name), map(_locals, there))))), None)


def exception_of(thread: int) -> BaseException | None:
    """What `thread` is handling."""
    found: Any = next(iter(_all_of(_at_once(_of(_exceptions, thread)))), None)
    error: BaseException | None = found[1] if isinstance(found, tuple) else found  # the first in 3.11
    return error


def line_of(place: Place) -> int:
    """The number of the source line."""
    code, at = place
    lines = (line for start, end, line in code.co_lines() if start <= at < end)
    return next(lines, None) or code.co_firstlineno


def _of(all_threads: Callable[[], Any], thread: int) -> Iterator[Any]:
    return map(dict.get, starmap(all_threads, _ONCE), (thread,))


def _at_once(*steps: Iterable[Any]) -> Iterator[Any]:
    """What is true of what the steps give, each begun when the one before is through."""
    if not _COLLECTS_AS_IT_ALLOCATES:
        return filter(None, chain(*steps))
    # That the collector was on is asked in there too: another reader may have stopped it now.
    before, after = tee(starmap(gc.isenabled, _ONCE))
    stop, start = starmap(gc.disable, compress(_ONCE, before)), starmap(gc.enable, compress(_ONCE, after))
    return filter(None, chain(stop, *steps, start))


def _all_of(iterator: Iterator[Any]) -> list[Any]:
    try:
        return list(iterator)
    finally:
        list(iterator)  # nothing, unless a step failed: then the collector is started again
