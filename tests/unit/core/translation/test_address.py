"""Addresses: spans, and the checks that all mapping rules share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uvfio.core.translation.address import (
    ADDRESS_MAX,
    check_aligned,
    check_end,
    check_reserved,
    check_size,
    check_wrap,
    gaps,
    join,
    last_of,
    touched,
)
from uvfio.errors import InvalidArgument, VfioError, WrapsAround

TOP = ADDRESS_MAX + 1


@pytest.mark.parametrize(
    ("call", "condition", "message"),
    [
        (lambda: check_size(0), InvalidArgument, "size is 0"),
        (lambda: check_size(-1), InvalidArgument, "size is -1"),
        (
            lambda: check_wrap("iova", TOP - 1, 2),
            WrapsAround,
            r"iova 0xffffffffffffffff\+0x2 wraps",
        ),
        (lambda: check_wrap("iova", -1, 1), WrapsAround, "wraps"),
        (
            lambda: check_end("memory", TOP - 2, 2),
            WrapsAround,
            r"memory 0xfffffffffffffffe\+0x2 wraps",
        ),
        (lambda: check_aligned(8, "the page ", a=8, b=9), InvalidArgument, "b 0x9 .* the page 0x8"),
        (lambda: check_reserved([(5, 6)], 6, 9), InvalidArgument, "touches the reserved range 0x5"),
        (lambda: last_of(TOP, 0), InvalidArgument, "size is 0"),
        (lambda: last_of(TOP - 1, 2), WrapsAround, "wraps"),
    ],
)
def test_a_check_raises_its_condition_with_the_values(
    call: Callable[[], object], condition: type[VfioError], message: str
) -> None:
    with pytest.raises(condition, match=message):
        call()


def test_what_is_within_64_bits_passes() -> None:
    check_size(1)
    check_wrap("iova", TOP - 1, 1)
    check_wrap("iova", 0, 0)
    check_end("iova", TOP - 2, 1)
    check_aligned(1, "", a=7)
    check_reserved([(5, 6)], 7, 9)
    assert last_of(TOP - 2, 2) == ADDRESS_MAX


def test_gaps_between_ranges() -> None:
    assert gaps((), 9) == [(0, 9)]
    assert gaps([(0, 2), (5, 5)], 9) == [(3, 4), (6, 9)]
    assert gaps([(1, 4), (2, 3), (8, 20)], 9) == [(0, 0), (5, 7)]
    assert gaps([(20, 30)], 9) == [(0, 9)]
    assert gaps([(0, 9)], 9) == []


@pytest.mark.parametrize(
    ("first", "last", "wanted"),
    [(0, 2, None), (0, 3, (3, 5)), (5, 5, (3, 5)), (6, 7, None), (4, 9, (3, 5)), (9, 9, (8, 9))],
)
def test_the_range_that_is_touched(first: int, last: int, wanted: tuple[int, int] | None) -> None:
    assert touched([(3, 5), (8, 9)], first, last) == wanted


@pytest.mark.parametrize(
    ("spans", "joined"),
    [
        ([], []),
        ([(5, 6), (0, 3)], [(0, 3), (5, 6)]),
        ([(0, 3), (4, 6)], [(0, 6)]),
        ([(0, 9), (2, 3), (9, 9)], [(0, 9)]),
    ],
)
def test_join_leaves_ranges_that_neither_overlap_nor_touch(
    spans: list[tuple[int, int]], joined: list[tuple[int, int]]
) -> None:
    assert join(spans) == joined
