"""Loop edges: on Python 3.12 and newer, a cancel is raised where a loop jumps back.

While a call is being stopped, `sys.monitoring` shows us the instructions of the functions on its
stack, and we raise in the thread itself, at a backward jump: there is no delivery that could come
late, and nothing is paid while nobody is being stopped.

The events for jumps would be the obvious ones. In CPython 3.12.1 and 3.13.0 an exception raised
from a JUMP or a conditional BRANCH event passes over the `finally`, `with` and `except` of the very
function it is raised in; from an INSTRUCTION event it does not (measured; a test keeps it).
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

from . import landing
from .here import here
from .stacks import Stack

_monitoring: Any = getattr(sys, "monitoring", None)
TOOLS = (4, 3)  # 0 to 2 and 5 are spoken for: debuggers, coverage, profilers, optimizers


class Edges:
    """Owns our monitoring tool and the functions it watches. One per process."""

    def __init__(self) -> None:
        self.tool: int | None = None
        self._watched: dict[int, tuple[CodeType, frozenset[int]]] = {}  # with the offsets of their edges

    def install(self, floor: CodeType) -> None:
        if _monitoring is None or self.tool is not None:
            return
        self.tool = next((tool for tool in TOOLS if _monitoring.get_tool(tool) is None), None)
        if self.tool is None:
            return  # both taken: asynchronous exceptions do it
        skip = _monitoring.DISABLE  # this one instruction is reported no more

        def about_to_run(code: CodeType, at: int) -> object:
            watched = self._watched.get(id(code))
            if watched is None:
                return None  # about to be watched no more, and perhaps again later
            if at not in watched[1]:
                return skip
            call = here.call
            if call is None or not call.token.cancelled or call.shields:
                return None
            if not landing.may_raise_in(sys._getframe(1), floor, into_cleanup=call.disturb):
                return None
            if call.disturb or not call.is_cleaning_up():
                call.stop("back-edge")
            return None

        _monitoring.use_tool_id(self.tool, "runner")
        _monitoring.register_callback(self.tool, _monitoring.events.INSTRUCTION, about_to_run)

    def remove(self) -> None:
        if self.tool is not None:
            self.rest()
            _monitoring.register_callback(self.tool, _monitoring.events.INSTRUCTION, None)
            _monitoring.free_tool_id(self.tool)
            self.tool = None

    def watch(self, stack: Stack, floor: CodeType) -> None:
        """Watch the loops of every function on a stack down to `floor`."""
        for code, _ in stack:
            if self.tool is None or code is floor:
                return
            if id(code) not in self._watched and landing.of_file(code.co_filename) == landing.FREE:
                found = landing.edges(code)
                self._watched[id(code)] = code, found
                if found:
                    _monitoring.set_local_events(self.tool, code, _monitoring.events.INSTRUCTION)

    def rest(self) -> None:
        """Nobody is being stopped any more: watch nothing."""
        watched, self._watched = self._watched, {}
        for code, found in watched.values():
            if found:
                _monitoring.set_local_events(self.tool, code, 0)


edges = Edges()
