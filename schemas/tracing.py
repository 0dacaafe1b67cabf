"""A request's place in a distributed trace, as whoever serves it may see it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from .request import Request


class Trace(Protocol):
    """The span of one request. `runner.plugins.traces` has the real one; without it requests have none.

    All of it may be used from any thread, while the request is served.
    """

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    @property
    def span_id(self) -> str:
        """Of the request's own span, 16 hexadecimal digits."""
        ...

    def ids(self) -> tuple[str, str]:
        """The trace's id, and that of the span in which the code that asks is at work."""
        ...

    def headers(self) -> Mapping[str, str]:
        """What to hand to whoever works on for this request: `traceparent` and its kin."""
        ...

    def part(self, name: str, facts: Mapping[str, str | int | float]) -> AbstractContextManager[object]:
        """A span around one part of the work, below the request's own."""
        ...

    def failed(self, error: BaseException) -> None:
        """Note an error that the request is answered with."""
        ...


NO_FACTS: Mapping[str, str | int | float] = {}
_untraced = nullcontext()


def part_of(request: Request, name: str, facts: Mapping[str, str | int | float] = NO_FACTS) -> AbstractContextManager[object]:
    """`with part_of(request, "files", {…})`: a span around the block if `request` is traced, else nothing."""
    return _untraced if request.trace is None else request.trace.part(name, facts)
