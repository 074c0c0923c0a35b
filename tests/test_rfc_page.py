"""docs/rfc-2011.md promises a place and a test for every row; this holds it to that."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from uvfio.uapi import rfc

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "rfc-2011.md"
CODE: Final = ROOT / "src" / "uvfio"
TESTS: Final = ROOT / "tests"

IOCTLS: Final = list(dict.fromkeys(ioctl.name for ioctl in rfc.IOCTLS.values()))
DEFECTS: Final = [f"D{n}" for n in range(1, 35)]
REVIEW: Final = [str(n) for n in range(1, 17)]

# Rows that may say "not yet" instead of naming a test.
UNFINISHED: Final[set[str]] = set()


class Row(NamedTuple):
    """One line of a table."""

    id: str
    then: str
    now: str
    where: list[str]
    tests: list[str]
    not_yet: bool


def read_rows() -> list[Row]:
    """Every line of every table, but for headings and rules."""
    rows = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|") or line.startswith(("|---", "| # |", "| ioctl |")):
            continue
        id_, then, now, where, test = (cell.strip() for cell in line.strip("|").split(" | "))
        code = re.compile(r"`([^`]+)`")
        rows.append(Row(id_, then, now, code.findall(where), code.findall(test), "not yet" in test))
    return rows


ROWS: Final = read_rows()


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a module defines: functions, classes, methods as Class.method, and assigned names."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                found |= {f"{name}.{m.name}" for m in body if isinstance(m, ast.FunctionDef)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)


def test_every_row_is_there() -> None:
    assert [row.id for row in ROWS] == IOCTLS + DEFECTS + REVIEW


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_what_was_and_what_is(row: Row) -> None:
    assert row.then
    assert row.now


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_place_exists(row: Row) -> None:
    assert row.where
    for place in row.where:
        module, _, name = place.partition(":")
        assert (CODE / module).is_file(), module
        assert name in names_in(CODE / module), f"{module} has no {name}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_test_exists(row: Row) -> None:
    if row.not_yet:
        assert row.id in UNFINISHED, "only rows on the list may be unfinished"
        return
    assert row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert (TESTS / file).is_file(), file
        assert name in names_in(TESTS / file), f"{file} has no {name}"


def test_no_row_is_on_the_list_of_the_unfinished_without_need() -> None:
    assert {row.id for row in ROWS if row.not_yet} == UNFINISHED


def numbered(prefix: str) -> set[int]:
    """The numbers in the names of all tests ``test_<prefix>NN...``."""
    pattern = re.compile(rf"test_{prefix}(\d\d)[a-z]?_")
    names = {name for path in TESTS.rglob("test_*.py") for name in names_in(path)}
    return {int(found[1]) for name in names if (found := pattern.match(name))}


def test_every_defect_has_a_test_of_its_name() -> None:
    assert numbered("d") == set(range(1, 35))


def test_every_question_with_an_answer_in_behaviour_has_a_test_of_its_name() -> None:
    """7 is a loop that is gone, 16 says how far the review got."""
    assert numbered("review_") == set(range(1, 17)) - {7, 16}
