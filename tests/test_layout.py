"""The rules of the house: who may import whom, and what the lowest floor may need."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from serving import HOUSE

# A room is a module, or a package, which is one room whatever it holds.
FLOORS = {
    "runner.schemas": 0,
    "runner.plugins.hookspecs": 1,
    "runner.plugins.logs": 1,
    "runner.plugins.cancellation": 2,
    "runner.plugins.addresses": 2,
    "runner.plugins.eventlog": 2,
    "runner.plugins.registry": 2,
    "runner.plugins.lanes": 3,
    "runner.plugins.streaming": 4,
    "runner.plugins.websocket": 4,
    "runner.plugins.calling": 5,
    "runner.plugins": 6,
    "runner": 7,
    "runner.plugins.testing": 8,  # drives the whole house, and nothing in it knows of the kit
}


def modules() -> Iterator[tuple[str, Path]]:
    yield "runner", HOUSE / "runner.py"
    for folder in ("schemas", "plugins"):
        for file in sorted((HOUSE / folder).rglob("*.py")):
            parts = [*file.relative_to(HOUSE).with_suffix("").parts]
            yield ".".join(["runner", *(parts[:-1] if parts[-1] == "__init__" else parts)]), file


def imports(module: str, file: Path) -> Iterator[str]:
    """What a module imports, by full name; an import inside a function too, under TYPE_CHECKING not."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {child for statement in node.body for child in ast.walk(statement)}
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            known = {name for name, _ in modules()}
            yield from (full if (full := f"{base}.{name.name}") in known else base for name in node.names)


def room(module: str) -> str:
    """The room that a module is in: `runner.plugins.types.faults` is in `runner.plugins.types`."""
    return ".".join(module.split(".")[:3]) if module.startswith("runner.plugins.") else module


def floor(module: str) -> int:
    while module not in FLOORS:
        module = module.rpartition(".")[0]
    return FLOORS[module]


def test_modules_import_only_from_lower_floors() -> None:
    for module, file in modules():
        for imported in imports(module, file):
            if imported.partition(".")[0] != "runner" or room(imported) == room(module):
                continue
            within_schemas = floor(module) == floor(imported) == 0
            below = floor(imported) < floor(module)
            assert within_schemas or below or imported == "runner.plugins", f"{module} may not import {imported}"


def test_the_lowest_floor_needs_the_standard_library_and_msgspec_only() -> None:
    allowed = {*sys.stdlib_module_names, "msgspec", "runner"}
    for module, file in modules():
        if floor(module) == 0:
            strange = {name.partition(".")[0] for name in imports(module, file)} - allowed
            assert not strange, f"{module} imports {strange}"

