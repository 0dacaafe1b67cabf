"""The module boundary: every `nn.Module` call of a cancelled request raises.

`nn.Module.__call__` is replaced once, as soon as torch is there; we never import it ourselves. The
replacement looks at one set that is empty while nobody is being stopped. It is level-triggered:
code that catches the cancel and calls the model again gets it again.

`is_compiling()` comes first: torch.compile folds it to True and then never sees, nor guards on,
the set, so a cancel recompiles nothing. Inside compiled code, in ScriptModules and in classes with
a `__call__` of their own there is no boundary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Set
from types import CodeType
from typing import Any

from .governor import Governor, find_device, shield_captures
from .here import here, trial
from .stacks import Stack

# What torch's own `__call__` looks up, 2.6 to 2.13. One that looks up more is called, not repeated.
PLAIN_BODY = ("_compiled_call_impl", "_call_impl")


class Boundary:
    """Owns the replacement of `nn.Module.__call__`. One per process, as there is one `nn.Module`."""

    def __init__(self) -> None:
        self.wanted = False
        self.unwinding: set[object] = set()  # what is being stopped now; mostly empty
        self.governor: Governor | None = None
        self._module: Any = None
        self._original: Any = None
        self._is_compiling: Callable[[], bool] = bool
        self._undo: list[Callable[[], None]] = []
        self._codes: frozenset[CodeType] = frozenset()

    def look_for_torch(self) -> None:
        """Replace `nn.Module.__call__` if torch has been imported since we last looked."""
        if self._original is None and self.wanted and "torch.nn" in sys.modules:
            self._replace()
        elif self._original is not None and self.governor is None and (device := find_device()) is not None:
            self.govern(Governor(device))

    def _replace(self) -> None:
        torch = sys.modules["torch"]
        if getattr(torch.__spec__, "_initializing", False):
            return  # some thread is in the middle of importing it
        self._module = torch.nn.Module
        self._original = self._module.__call__
        self._is_compiling = torch.compiler.is_compiling
        self._put(_replacement(self._original, self._is_compiling, self.unwinding))

    def govern(self, governor: Governor) -> None:
        """Count module calls from now on. Asked once, when the process first has a GPU in use."""
        self.governor = governor
        plain = _replacement(self._original, self._is_compiling, self.unwinding)
        self._put(_counting(plain, self._is_compiling, governor.count))
        graph = getattr(sys.modules["torch"].cuda, "CUDAGraph", None)
        if hasattr(graph, "capture_begin") and not self._undo:
            self._undo.append(shield_captures(graph))

    def _put(self, replacement: Callable[..., Any]) -> None:
        self._module.__call__ = replacement
        bodies = (self._original, self._module._call_impl, replacement)
        self._codes = frozenset(body.__code__ for body in bodies)

    def try_out(self, look: Callable[[Any], None] | None) -> None:
        """Have `look` called at every checkpoint of every call, or at none. For tests of authors."""
        trial.look = look
        if look is not None:
            self.look_for_torch()
            self.unwinding.add(trial)
        else:
            self.unwinding.discard(trial)

    def remove(self) -> None:
        """Put torch's own `__call__` back."""
        self.wanted = False
        if self._original is not None:
            self._module.__call__ = self._original
            self._module = self._original = self.governor = None
            self._codes = frozenset()
        while self._undo:
            self._undo.pop()()

    def is_on(self, stack: Stack, floor: CodeType) -> bool:
        """Whether a thread that is there is inside a module call, so that the next boundary is near."""
        for code, _ in stack:
            if code is floor:
                break
            if code in self._codes:
                return True
        return False


boundary = Boundary()


def _replacement(
    original: Callable[..., Any], is_compiling: Callable[[], bool], unwinding: Set[object]
) -> Callable[..., Any]:
    if getattr(original, "__code__", None) is None or original.__code__.co_names != PLAIN_BODY:

        def through(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not is_compiling() and unwinding:
                look_up()
            return original(self, *args, **kwargs)

        return through

    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_compiling() and unwinding:
            look_up()
        if self._compiled_call_impl is not None:
            return self._compiled_call_impl(*args, **kwargs)
        return self._call_impl(*args, **kwargs)

    return plain


def _counting(
    plain: Callable[..., Any], is_compiling: Callable[[], bool], count: Callable[[], None]
) -> Callable[..., Any]:
    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_compiling():
            count()
        return plain(self, *args, **kwargs)

    return counting


def look_up() -> None:
    """Somebody is being stopped, or on trial: raise if it is the call of this thread."""
    call = here.call
    if call is not None:
        if trial.look is not None:
            trial.look(call)
        if call.token.cancelled and not call.shields:
            call.stop("module")
