"""The swap: a module that runs is given the code of its next edition.

A function object stays who it is, so whoever holds it has the new code: routes, hooks, a pool. What is
being run at that moment goes on in the old code to its end. Functions that have not changed get
their code too, for the numbers of their lines.
"""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .editions import Changes, Edition

_KIND = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


def swap(module: ModuleType, new: Edition, changes: Changes) -> str:
    """Give `module` the code of `new`, or nothing of it and say why not.

    Raises what the new top-level statements raise; the functions are then as they were.
    """
    codes = {code.co_qualname: code for code in _codes(compile(new.source, new.file, "exec"))}
    pairs = [(function, codes[name]) for function in _functions(module, new.file) if (name := function.__code__.co_qualname) in codes]
    for function, code in pairs:
        if code.co_freevars != function.__code__.co_freevars or (code.co_flags ^ function.__code__.co_flags) & _KIND:
            return f"{function.__qualname__} changed its kind or what it closes over"
    found = {function.__code__.co_qualname for function, _ in pairs}
    if missing := [name for name in changes.bodies if name not in found]:
        return f"{missing[0]} changed, and the function in use was not found"
    statements = [new.units[name].node for name in changes.run]
    exec(compile(ast.Module(statements, []), new.file, "exec"), vars(module))
    for function, code in pairs:
        function.__code__ = code
    for name in changes.gone:
        vars(module).pop(name, None)
    linecache.checkcache(new.file)
    return ""


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: ModuleType, file: str) -> list[FunctionType]:
    """The functions of a module's file that its names lead to, each once."""
    found: dict[int, FunctionType] = {}
    seen: set[int] = set()

    def look(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, FunctionType):
            if value.__code__.co_filename == file:
                found[id(value)] = value
            look(getattr(value, "__wrapped__", None))
        elif isinstance(value, type):
            if value.__module__ == module.__name__:
                for each in list(vars(value).values()):
                    look(each)
        elif isinstance(value, property):
            for each in (value.fget, value.fset, value.fdel):
                look(each)
        elif isinstance(value, (staticmethod, classmethod)):
            look(value.__func__)
        elif isinstance(value, functools.partial):
            look(value.func)

    for value in list(vars(module).values()):
        look(value)
    return list(found.values())
