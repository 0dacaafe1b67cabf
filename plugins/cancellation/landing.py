"""The landing: would an asynchronous exception, set now, hurt an invariant we know of?

CPython raises it not where the thread is but at its next check: after the call it is in, where the
next function begins, where the loop jumps back. So the bytecode is read forward from the thread's
present instruction to that check. Refused are landings

- in the standard library and in this server: short code, written for nobody to interrupt it;
- anywhere above an import, a lock, a weakref callback, a log call or a compiler;
- in `__enter__`, `__exit__`, `__del__`; at the exit of a `with`; in the body of a `finally`;
- right after a call whose name says that it takes or frees something, as `acquire` does;
- inside a handler, an import statement or a `yield`.

"No" means: ask again in a millisecond. This is a list of what was found to break, not a proof;
`docs/cancellation.md` has the trials. Where `sys.monitoring` exists it is the second resort only.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from .stacks import Stack

STANDARD_LIBRARY = str(Path(sysconfig.get_path("stdlib")))
OURS = str(Path(__file__).parents[1])  # plugins/: the lanes and all that an author's code calls of us

# On the stack at all, any of these means no: what they hold or register is not undone.
NEVER_ABOVE = (
    "<frozen importlib",
    *(f"{STANDARD_LIBRARY}/{name}" for name in (
        "threading.py", "logging/", "queue.py", "importlib/", "weakref.py", "_weakrefset.py",
        "subprocess.py", "tempfile.py", "multiprocessing/", "socketserver.py", "asyncio/",
    )),
)  # fmt: skip
NEVER_ABOVE_PARTS = (
    "/torch/_dynamo/convert_frame.py", "/torch/_dynamo/guards.py",
    "/torch/_inductor/compile_fx.py", "/triton/compiler/",
)  # fmt: skip
# In one of these itself it means no as well: state is set there between two lines.
NEVER_IN_PARTS = (
    "/torch/_dynamo/", "/torch/_inductor/", "/torch/cuda/graphs.py", "/torch/autograd/grad_mode.py",
    "/torch/amp/autocast_mode.py", "/torch/utils/_contextlib.py", "/torch/overrides.py",
    "/torch/utils/_python_dispatch.py", "/torch/utils/_device.py",
    "<string>",  # generated: short, and the guards of compiled code are among it
)  # fmt: skip
NEVER_NAMED = frozenset({"__enter__", "__exit__", "__aenter__", "__aexit__", "__del__", "acquire", "release", "__set_name__", "__init_subclass__"})
TAKES_OR_FREES = frozenset({
    "__enter__", "__exit__", "__del__", "acquire", "release", "lock", "unlock", "notify", "notify_all",
    "close", "cleanup", "shutdown", "join", "terminate", "kill", "remove", "unlink", "rename", "replace",
    "commit", "rollback", "flush", "enter_context", "pop_all", "callback", "empty_cache",
    "capture_begin", "capture_end", "set_grad_enabled", "set_default_dtype", "set_default_device",
})  # fmt: skip
FREE, HERE_ONLY, STACK = range(3)
_THREAD_RUN = threading.Thread.run.__code__


def is_safe(stack: Stack, floor: CodeType, *, into_cleanup: bool = False, strictly: bool = False) -> bool:
    """Whether an exception lands well in a thread that is there. From `floor` on nothing is looked at.

    `strictly` refuses to land in a function that the thread has yet to call, in a process in which
    torch has compiled something.
    """
    strictly = strictly and _compiled_code_is_about()
    lands: bool | None = None  # None: in a caller of the frames seen so far
    for depth, (code, at) in enumerate(stack):
        if code is floor:
            return lands is True
        place = of_file(code.co_filename)
        if _is_never_above(code, place) or (not into_cleanup and _reading(code).is_finally(at)):
            return False
        if lands is None:
            if place == HERE_ONLY:
                return False
            lands = _reading(code).lands(at, returning=depth > 0, into_cleanup=into_cleanup, strictly=strictly)
            if lands is False:
                return False
    return False


def _compiled_code_is_about() -> bool:
    """Whether anything was compiled by torch in this process.

    A compiled function checks its guards before its first instruction, some of them in Python. An
    exception that lands there is taken for a guard that failed: it is lost, and all is compiled
    again. Nothing breaks, but it costs seconds.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    # By backend; None stands for functions that were marked as not to be compiled.
    backends: Any = getattr(dynamo, "cached_backends", None)
    return bool(backends) and any(backend is not None for backend in backends.values())


def may_raise_in(frame: FrameType, floor: CodeType, *, into_cleanup: bool = False) -> bool:
    """Whether a cancel may be raised in this frame at a loop's jump back, seen from its own thread."""
    if of_file(frame.f_code.co_filename) != FREE:
        return False
    each: FrameType | None = frame
    while each is not None and each.f_code is not floor:
        if _is_never_above(each.f_code, of_file(each.f_code.co_filename)):
            return False
        if not into_cleanup and _reading(each.f_code).is_finally(each.f_lasti):
            return False
        each = each.f_back
    return True


def edges(code: CodeType) -> frozenset[int]:
    """The offsets at which the function's loops jump back."""
    return frozenset(i.offset for i in _reading(code).instructions if i.opname == "JUMP_BACKWARD")


def _is_never_above(code: CodeType, place: int) -> bool:
    # `Thread.run` holds nothing: what a thread runs may be stopped.
    return (place == STACK and code is not _THREAD_RUN) or code.co_name in NEVER_NAMED


def is_ours_or_stdlib(code: CodeType) -> bool:
    """Whether code is the standard library's or this server's: a thread there waits more than it works."""
    return _is_ours_or_stdlib(code.co_filename)


_files: dict[str, int] = {}


def of_file(name: str) -> int:
    """FREE; HERE_ONLY: not in this file's own frames; STACK: nor in what they call."""
    place = _files.get(name)
    if place is None:
        place = _files[name] = _classify(name)
    return place


def _classify(name: str) -> int:
    if name.startswith(NEVER_ABOVE) or any(part in name for part in NEVER_ABOVE_PARTS):
        return STACK
    if _is_ours_or_stdlib(name) or any(part in name for part in NEVER_IN_PARTS):
        return HERE_ONLY
    return FREE


def _is_ours_or_stdlib(name: str) -> bool:
    if name.startswith((OURS, "<frozen")):
        return True
    installed = "/site-packages/" in name or "/dist-packages/" in name
    return name.startswith(STANDARD_LIBRARY) and not installed


CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
CHECKS = frozenset({"RESUME", "JUMP_BACKWARD"})
RETURNS = frozenset({"RETURN_VALUE", "RETURN_CONST"})
REFUSED = frozenset({
    "RERAISE", "RAISE_VARARGS", "YIELD_VALUE", "SEND", "WITH_EXCEPT_START", "POP_EXCEPT", "PUSH_EXC_INFO",
    "CLEANUP_THROW", "IMPORT_NAME", "END_ASYNC_FOR", "RETURN_GENERATOR", "JUMP_BACKWARD_NO_INTERRUPT",
})  # fmt: skip
BEFORE_A_CALL = frozenset({"PRECALL", "KW_NAMES", "PUSH_NULL", "COPY", "LOAD_CONST"})
FAR = 60  # instructions looked ahead; farther means no


class _Reading:
    """The bytecode of one function, read for landings; answers are kept."""

    def __init__(self, code: CodeType) -> None:
        self.instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
        self.index = {instruction.offset: k for k, instruction in enumerate(self.instructions)}
        self.finallies = _finally_bodies(code, self.instructions, self.index)
        self._known: dict[tuple[int, bool, bool, bool], bool | None] = {}

    def is_finally(self, offset: int) -> bool:
        return self._at(offset) in self.finallies

    def _at(self, offset: int) -> int:
        """The index of the instruction at `offset`, which may lie in its caches."""
        while offset not in self.index and offset > 0:
            offset -= 2
        return self.index.get(offset, 0)

    def lands(self, offset: int, *, returning: bool, into_cleanup: bool, strictly: bool) -> bool | None:
        """True: well. False: not. None: in the caller. `returning`: the callee of this call lands here."""
        key = (offset, returning, into_cleanup, strictly)
        if key not in self._known:
            k = self._at(offset)
            refused: frozenset[int] = frozenset() if into_cleanup else self.finallies
            if returning and self.instructions[k].opname in CALLS and not self._may_follow_call(k):
                self._known[key] = False  # called by way of C, it lands right after this call
            elif not returning and self.instructions[k].opname in CALLS:
                self._known[key] = k not in refused and self._may_follow_call(k)  # it is in this call
            else:
                self._known[key] = self._scan(k + returning, refused, strictly, 0)
        return self._known[key]

    def _scan(self, k: int, refused: frozenset[int], strictly: bool, depth: int) -> bool | None:
        for _ in range(FAR):
            if k >= len(self.instructions) or k in refused:
                return False
            instruction = self.instructions[k]
            name = instruction.opname
            if name in REFUSED:
                return False
            if name in CALLS:
                return not strictly and self._may_follow_call(k)
            if name in CHECKS:
                return True
            if name in RETURNS:
                return None
            if "JUMP" in name or name == "FOR_ITER":
                target = self.index.get(instruction.argval, len(self.instructions))
                if name == "JUMP_FORWARD":
                    k = target
                    continue
                if target <= k:  # a `while` on 3.11: a check if it goes round, as it will but once
                    return self._scan(k + 1, refused, strictly, depth + 1) is not False
                if depth > 3 or self._scan(target, refused, strictly, depth + 1) is False:
                    return False  # both ways must be good
            k += 1
        return False

    def _may_follow_call(self, k: int) -> bool:
        before = [i for i in self.instructions[max(0, k - 8) : k] if i.opname != "PRECALL"]
        if self.instructions[k].arg in (2, 3) and len(before) > 2 and all(i.opname == "LOAD_CONST" and i.argval is None for i in before[-3:]):
            return False  # the normal exit of a `with`
        for instruction in reversed(before):
            if instruction.opname.startswith("LOAD_") and instruction.argval in TAKES_OR_FREES:
                return False
            if instruction.opname in CALLS or instruction.opname.startswith(("STORE_", "POP_", "RETURN", "JUMP")):
                break
        return True


def _finally_bodies(code: CodeType, instructions: list[dis.Instruction], index: dict[int, int]) -> frozenset[int]:
    """Which instructions are the body of a `finally`.

    The compiler writes it once as a handler and once for each way on which nothing is raised. The
    handler is found by the exception table, the others by likeness, where a protected range ends.
    """
    found: set[int] = set()
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        handler = index.get(entry.target)
        if handler is None or instructions[handler].opname != "PUSH_EXC_INFO":
            continue
        body: list[dis.Instruction] = []
        for instruction in instructions[handler + 1 :]:
            if instruction.opname in ("RERAISE", "CHECK_EXC_MATCH", "WITH_EXCEPT_START", "POP_EXCEPT"):
                break
            body.append(instruction)
        else:
            continue
        if instruction.opname != "RERAISE":
            continue  # an `except` or a `with`
        end = next((k for k, i in enumerate(instructions) if i.offset >= entry.end), len(instructions))
        found.update(range(end, end + _likeness(body, instructions[end:])))
        found.update(range(handler, handler + len(body) + 1))
    return frozenset(found)


def _likeness(body: list[dis.Instruction], other: list[dis.Instruction]) -> int:
    same = 0
    for a, b in zip(body, other, strict=False):
        if a.opname != b.opname or ("JUMP" not in a.opname and a.argval != b.argval):
            break
        same += 1
    return same


MOST = 4096  # functions whose reading is kept
_readings: dict[int, tuple[CodeType, _Reading]] = {}


def _reading(code: CodeType) -> _Reading:
    kept = _readings.get(id(code))  # not by value: hashing a code object hashes all its constants
    if kept is None or kept[0] is not code:
        if len(_readings) >= MOST:
            _readings.clear()
        kept = _readings[id(code)] = (code, _Reading(code))
    return kept[1]


def forget() -> None:
    """Let go of every code object that was read."""
    _readings.clear()


