"""Editions: one source text of one module, taken apart into units that can be compared.

A unit is what a name stands for: a function, the head of a class, a value, an import. Of a function
the interface (all but its body) is kept apart from the body, because a body can be exchanged in a
process that runs, and an interface cannot: routes, codecs and the document were made from it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

Kind = Literal["function", "class", "value", "import", "statement"]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Decorators that keep nothing of what their function was: by the last part of their name.
FAMILIAR = frozenset({
    "endpoint", "realtime", "health_check", "staticmethod", "classmethod", "property", "override",
    "no_grad", "inference_mode", "enable_grad", "contextmanager", "asynccontextmanager", "abstractmethod",
})  # fmt: skip


class Unit(msgspec.Struct, frozen=True, eq=False):
    """What one name stands for. `name` is qualified within its module, as `MyApp.generate`."""

    name: str
    kind: Kind
    node: ast.stmt
    interface: str  # of a function all but its body; of others all there is
    body: str = ""

    @property
    def is_member(self) -> bool:
        return "." in self.name

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]

    def unfamiliar_decorator(self) -> str:
        """The first decorator that may keep something of the function it was given; "" without one."""
        if not isinstance(self.node, FUNCTIONS):
            return ""
        return next((name for each in self.node.decorator_list if (name := _last_name(each)) not in FAMILIAR), "")


class Edition:
    """One source text. Raises SyntaxError for one that Python cannot read."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.units: dict[str, Unit] = {}
        self.twice: str = ""  # a name that is given twice, so that it cannot be told which is meant
        for unit in _units(ast.parse(source, file).body, ""):
            if unit.name in self.units:
                self.twice = unit.name
            self.units[unit.name] = unit


class Changes(msgspec.Struct):
    """From one edition to the next. With a `doubt` the others say nothing."""

    bodies: list[str] = []  # functions with another body
    run: list[str] = []  # top-level units that are new, or values that are others: to be run again
    gone: list[str] = []
    doubt: str = ""

    @property
    def names(self) -> list[str]:
        return [*self.bodies, *self.run, *self.gone]


def compare(old: Edition, new: Edition) -> Changes:
    """What has changed, as far as it can be exchanged; else why it cannot."""
    if new.twice or old.twice:
        return Changes(doubt=f"{new.twice or old.twice} is defined twice")
    changes = Changes()
    for name, unit in new.units.items():
        before = old.units.get(name)
        if before is None:
            if unit.is_member or unit.kind == "statement" or _decorators(unit):
                return Changes(doubt=f"{_called(unit)} is new")
            changes.run.append(name)
        elif unit.interface != before.interface:
            if unit.kind != "value" or unit.is_member:
                return Changes(doubt=f"the {'declaration' if unit.kind == 'function' else 'definition'} of {name} changed")
            changes.run.append(name)
        elif unit.body != before.body:
            if decorator := unit.unfamiliar_decorator():
                return Changes(doubt=f"{name} changed, and @{decorator} may keep what it was")
            changes.bodies.append(name)
    for name, unit in old.units.items():
        if name not in new.units and unit.kind != "import":
            if unit.is_member or unit.kind not in ("function", "value"):
                return Changes(doubt=f"{_called(unit)} is gone")
            changes.gone.append(name)
    return changes


def _units(statements: Sequence[ast.stmt], prefix: str) -> Iterator[Unit]:
    for place, node in enumerate(statements):
        if isinstance(node, FUNCTIONS):
            yield Unit(prefix + node.name, "function", node, _interface(node), _dumped(node.body))
        elif isinstance(node, ast.ClassDef):
            yield Unit(prefix + node.name, "class", node, _dumped([*node.bases, *node.keywords, *node.decorator_list]) + (ast.get_docstring(node) or ""))
            yield from _units(node.body, f"{prefix}{node.name}.")
        elif (name := _given_name(node)) is not None:
            yield Unit(prefix + name, "value", node, ast.dump(node))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield Unit(f"{prefix}import {ast.unparse(node)}", "import", node, "")
        elif not (_is_text(node) and place == 0) and not isinstance(node, ast.Pass) and not _is_main_block(node):
            yield Unit(f"{prefix}{ast.unparse(node)}", "statement", node, "")


def _interface(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    own_yields = any(isinstance(each, (ast.Yield, ast.YieldFrom)) for each in walk_own(node))
    parts = [node.args, *node.decorator_list, *([node.returns] if node.returns else []), *getattr(node, "type_params", [])]
    return f"{type(node).__name__} {own_yields} {ast.get_docstring(node)!r} {_dumped(parts)}"


def walk_own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes inside, but not those of functions and lambdas defined inside."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*FUNCTIONS, ast.Lambda)):
            yield from walk_own(child)


def _dumped(nodes: Sequence[ast.AST]) -> str:
    return "\n".join(map(ast.dump, nodes))


def _given_name(node: ast.stmt) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None


def _decorators(unit: Unit) -> list[ast.expr]:
    return getattr(unit.node, "decorator_list", [])


def _last_name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "?"


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_main_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def _called(unit: Unit) -> str:
    return f"the statement in line {unit.node.lineno}" if unit.kind == "statement" else unit.name
