"""``Coverage``: counted once, however often and in whichever way it is covered; each change costs the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvfio.core.translation.coverage import BITS, Coverage

TOP = (1 << BITS) - 1
SPACE = 64
spans = st.tuples(st.integers(0, SPACE - 1), st.integers(0, SPACE - 1)).map(
    lambda ends: (min(ends), max(ends))
)
STEPS = 8 * BITS
"""Nodes that one change may visit: some of each level, for a first span that gets its tree as well."""


@given(st.lists(st.tuples(st.booleans(), spans), max_size=60), st.sampled_from([0, TOP - SPACE]))
def test_it_counts_as_a_set_of_numbers_does(
    operations: list[tuple[bool, tuple[int, int]]], base: int
) -> None:
    coverage, there = Coverage(), list[tuple[int, int]]()
    for adding, (first, last) in operations:
        before = {n for low, high in there for n in range(low, high + 1)}
        if adding:
            there.append((first, last))
        elif (first, last) in there:
            there.remove((first, last))
        else:
            with pytest.raises(KeyError):
                coverage.remove(base + first, base + last)
            continue
        after = {n for low, high in there for n in range(low, high + 1)}
        change = coverage.add if adding else coverage.remove
        assert change(base + first, base + last) == abs(len(after) - len(before))
        assert coverage.total == len(after)


def test_all_numbers() -> None:
    coverage = Coverage()
    assert coverage.add(0, TOP) == 1 << BITS
    assert coverage.add(5, 5) == 0
    assert coverage.remove(0, TOP) == (1 << BITS) - 1
    assert coverage.remove(5, 5) == 1
    assert coverage.total == 0


@pytest.mark.parametrize("shape", ["beside", "nested", "crossing", "equal"])
def test_a_change_costs_the_same_however_many_spans_there_are(shape: str) -> None:
    coverage = Coverage()
    spans = {
        "beside": [(2 * n, 2 * n) for n in range(3000)],
        "nested": [(n, 6000 - n) for n in range(3000)],
        "crossing": [(n, n + 3000) for n in range(3000)],
        "equal": [(7, 4000)] * 3000,
    }[shape]
    for change in (coverage.add, coverage.remove):
        for span in spans:
            before = coverage.steps
            change(*span)
            assert coverage.steps - before <= STEPS
    assert coverage.total == 0
