"""The reach: what the loaded model, or the import of the module, was made with.

What `setup` calls, and what those call, has had its effect: new code would meet a model that the old
code made. The same goes for what a module does when it is imported, and for functions whose
decorator may keep their results. A change within that reach means a restart.

Names are followed, not objects: a mention of `load`, as a name or an attribute, reaches everything
called `load` in the app's modules, and of a class all that it holds. That reaches too much now and
then, and never too little, but for names that are put together at run time, which is a doubt.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from .editions import FUNCTIONS, Changes, Edition, Unit, compare

LOOKS_UP = frozenset({"globals", "locals", "vars", "exec", "eval", "__import__", "import_module", "__dict__"})


class Reach:
    """Everything reached in these modules, and on which way. Made anew for every change; a few milliseconds."""

    def __init__(self, editions: Iterable[Edition]) -> None:
        units = [unit for edition in editions for unit in edition.units.values()]
        self._called: dict[str, list[Unit]] = {}
        self._aliases: dict[str, set[str]] = {}
        self._members: dict[str, list[Unit]] = {}
        for unit in units:
            self._called.setdefault(unit.last_name, []).append(unit)
            if unit.is_member:
                self._members.setdefault(unit.name.rpartition(".")[0], []).append(unit)
            for name, alias in _renamed(unit):
                self._aliases.setdefault(alias, set()).add(name)
        self._ways: dict[str, str] = {}  # what is reached -> from where
        self._followed: set[str] = set()  # of these, all that they mention is reached too
        self.looks_up = ""  # where names are looked up at run time, if that is reached
        for unit in units:
            self._start(unit)

    def way_to(self, name: str) -> str:
        """How a unit is reached, as "setup uses it" or "setup uses load, which uses it"; "" if it is not."""
        steps: list[str] = []
        while name in self._ways and self._ways[name] not in steps:
            name = self._ways[name]
            steps.insert(0, name)
        return ", which uses ".join([*steps, "it"]).replace(", which uses", " uses", 1) if steps else ""

    def _start(self, unit: Unit) -> None:
        if unit.kind == "function":
            self._follow("the import of the module", _on_definition(unit.node), shallow=_annotations(unit.node))
            if unit.last_name == "setup" and unit.is_member:
                self._reach(unit, "the loaded app")
            elif unit.unfamiliar_decorator():
                self._follow(unit.name, [unit.node])
        elif unit.kind == "class":
            assert isinstance(unit.node, ast.ClassDef)
            self._follow("the import of the module", [*unit.node.decorator_list, *unit.node.keywords])
        elif unit.kind != "import":
            self._follow(unit.name if unit.kind == "value" else "the import of the module", [unit.node])

    def _reach(self, unit: Unit, way: str, *, deeply: bool = True) -> None:
        self._ways.setdefault(unit.name, way)
        if deeply and unit.name not in self._followed:
            self._followed.add(unit.name)
            self._follow(unit.name, [unit.node])
            for member in self._members.get(unit.name, ()):
                self._reach(member, unit.name)

    def _follow(self, way: str, nodes: Iterable[ast.AST], shallow: Iterable[ast.AST] = ()) -> None:
        for name in chain.from_iterable(map(_mentions, nodes)):
            if name in LOOKS_UP or name == "getattr()":
                self.looks_up = self.looks_up or way
            for unit in self._units(name):
                self._reach(unit, way)
        for name in chain.from_iterable(map(_mentions, shallow)):
            for unit in self._units(name):
                self._reach(unit, way, deeply=unit.kind == "value")

    def _units(self, name: str) -> Iterator[Unit]:
        for each in {name, *self._aliases.get(name, ())}:
            yield from self._called.get(each, ())


def judge(old: Mapping[str, Edition], new: Mapping[str, Edition]) -> tuple[dict[str, Changes], str]:
    """What changes from the `old` editions of the app's files to the `new` ones of some, and why that needs a restart.

    The reason is "" when the changes can be put into the process.
    """
    changes = {file: compare(old[file], edition) for file, edition in new.items()}
    for each in changes.values():
        if each.doubt:
            return changes, each.doubt
    names = [name for each in changes.values() for name in each.names]
    for editions in (old, {**old, **new}):
        reach = Reach(editions.values())
        if reach.looks_up:
            return changes, f"{reach.looks_up} looks names up at run time"
        for name in names:
            if way := reach.way_to(name):
                return changes, f"{name} changed, and {way}"
    return changes, ""


def _mentions(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "getattr":
            name = each.args[1] if len(each.args) > 1 else None
            yield str(name.value) if isinstance(name, ast.Constant) else "getattr()"


def _on_definition(node: ast.stmt) -> list[ast.AST]:
    """What is evaluated when a function is defined, but for its annotations."""
    assert isinstance(node, FUNCTIONS)
    defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
    return [*node.decorator_list, *defaults]


def _annotations(node: ast.stmt) -> list[ast.AST]:
    assert isinstance(node, FUNCTIONS)
    arguments = (each for each in ast.walk(node.args) if isinstance(each, ast.arg))
    return [each for each in (*(argument.annotation for argument in arguments), node.returns) if each is not None]


def _renamed(unit: Unit) -> Iterator[tuple[str, str]]:
    if isinstance(unit.node, (ast.Import, ast.ImportFrom)):
        for alias in unit.node.names:
            if alias.asname:
                yield alias.name.rpartition(".")[2], alias.asname
