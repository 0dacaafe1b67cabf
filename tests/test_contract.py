"""`docs/contract.md` names, for every check and behaviour, tests that exist."""

from __future__ import annotations

import ast
import re

from serving import HOUSE

CHECKS, BEHAVIOURS = 70, 53
ROW = re.compile(r"^\| (\d+) \| .+? \| (.*) \|$", re.MULTILINE)


def existing_tests() -> set[str]:
    return {
        f"{file.stem}::{node.name.removeprefix('test_')}"
        for file in (HOUSE / "tests").glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def rows_of(heading: str) -> dict[int, set[str]]:
    section = (HOUSE / "docs" / "contract.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return {int(number): set(re.findall(r"`(\w+::\w+)`", cells)) for number, cells in ROW.findall(section)}


def numbered(kind: str) -> dict[int, set[str]]:
    """The tests whose names say a number: check_6_…, checks_24_and_25_…, checks_18_to_22_…"""
    found: dict[int, set[str]] = {}
    for test in existing_tests():
        if match := re.match(rf"\w+::{kind}s?_(\d+)(?:_(and|to)_(\d+))?_", test):
            first, last = int(match[1]), int(match[3] or match[1])
            for number in range(first, last + 1) if match[2] == "to" else (first, last):
                found.setdefault(number, set()).add(test)
    return found


def test_every_check_and_behaviour_has_tests_that_exist() -> None:
    there = existing_tests()

    for heading, count in (("Checks", CHECKS), ("Behaviours", BEHAVIOURS)):
        rows = rows_of(heading)
        assert list(rows) == list(range(1, count + 1))
        assert {number: named - there for number, named in rows.items() if named - there} == {}
        assert [number for number, named in rows.items() if not named] == []


def test_every_test_with_a_number_stands_beside_it() -> None:
    for heading, kind in (("Checks", "check"), ("Behaviours", "behaviour")):
        rows = rows_of(heading)
        assert {number: left for number, tests in numbered(kind).items() if (left := tests - rows.get(number, set()))} == {}
