"""``IovaMap``: order, neighbours, the ends of the address space, chunks that split and vanish."""

from __future__ import annotations

import pytest

from support.world import SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation import iova
from uvfio.core.translation.iova import IovaMap, Mapping

MM = Mm(SparseMemory())
TOP = (1 << 64) - 1


def mapping(first: int, last: int) -> Mapping:
    return Mapping(first, last, 0, True, MM)


def filled(*ranges: tuple[int, int]) -> IovaMap:
    made = IovaMap()
    for first, last in ranges:
        made.insert(mapping(first, last))
    return made


def bounds(found: list[Mapping]) -> list[tuple[int, int]]:
    return [(m.first, m.last) for m in found]


def test_an_empty_map_finds_nothing() -> None:
    empty = IovaMap()
    assert len(empty) == 0
    assert list(empty) == []
    assert empty.find(0) is None
    assert empty.first_overlap(0, TOP) is None
    assert empty.overlapping(0, TOP) == []


def test_iteration_is_in_order_of_address() -> None:
    assert bounds(list(filled((20, 29), (0, 9), (40, 49), (30, 39)))) == [
        (0, 9),
        (20, 29),
        (30, 39),
        (40, 49),
    ]


@pytest.mark.parametrize(
    ("address", "first"), [(9, None), (10, 10), (19, 10), (20, None), (29, None), (30, 30)]
)
def test_find_takes_both_bounds_as_inside(address: int, first: int | None) -> None:
    found = filled((10, 19), (30, 39)).find(address)
    assert (found and found.first) == first


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 9, []),
        (0, 10, [(10, 19)]),
        (19, 30, [(10, 19), (30, 39)]),
        (20, 29, []),
        (12, 13, [(10, 19)]),
        (0, TOP, [(10, 19), (30, 39)]),
        (40, TOP, []),
    ],
)
def test_overlapping_lists_what_shares_a_byte(
    first: int, last: int, expected: list[tuple[int, int]]
) -> None:
    table = filled((10, 19), (30, 39))
    assert bounds(table.overlapping(first, last)) == expected
    lowest = table.first_overlap(first, last)
    assert bounds([lowest] if lowest else []) == expected[:1]


def test_the_last_byte_of_the_address_space_can_be_mapped() -> None:
    table = filled((TOP, TOP))
    found = table.find(TOP)
    assert found is not None
    assert found.size == 1


def test_remove_takes_out_the_very_object() -> None:
    table = filled((10, 19))
    with pytest.raises(KeyError):
        table.remove(mapping(10, 19))
    table.remove(next(iter(table)))
    assert len(table) == 0
    with pytest.raises(KeyError):
        table.remove(mapping(10, 19))


def test_clear_takes_out_everything() -> None:
    table = filled((10, 19), (30, 39))
    table.clear()
    assert len(table) == 0
    assert table.find(10) is None
    table.insert(mapping(10, 19))
    assert len(table) == 1


def test_chunks_split_when_full_and_vanish_when_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iova, "CHUNK", 4)
    table = filled(*((n * 10, n * 10 + 4) for n in range(40)))
    assert len(table._chunks) > 8
    assert all(0 < len(chunk) <= 4 for chunk in table._chunks)
    everything = bounds(list(table))
    assert everything == [(n * 10, n * 10 + 4) for n in range(40)]
    assert bounds(table.overlapping(13, 375)) == everything[1:38]
    for m in list(table):
        table.remove(m)
    assert (table._chunks, table._starts, table._mins) == ([], [], [])


def test_a_gap_between_chunks_is_searched_across_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iova, "CHUNK", 2)
    table = filled((0, 0), (10, 10), (20, 20), (30, 30))
    for first in (1, 11, 21):
        lowest = table.first_overlap(first, TOP)
        assert lowest is not None
        assert lowest.first == first + 9
    assert table.first_overlap(31, TOP) is None


def test_a_mapping_says_where_it_leads() -> None:
    assert repr(Mapping(0x1000, 0x2FFF, 0x7000, False, MM)) == "<Mapping 0x1000+0x2000 -> 0x7000 r>"
    assert repr(Mapping(0, 0xFFF, 0x7000, True, MM)) == "<Mapping 0x0+0x1000 -> 0x7000 rw>"


def test_many_go_at_once_from_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iova, "CHUNK", 2)
    table = filled(*((n, n) for n in range(12)))
    table.remove_all(table.overlapping(1, 6))
    assert bounds(list(table)) == [(0, 0), (7, 7), (8, 8), (9, 9), (10, 10), (11, 11)]
    assert len(table) == 6
    table.remove_all(list(table)[::2])
    assert bounds(list(table)) == [(7, 7), (9, 9), (11, 11)]
    table.remove_all([])
    table.remove_all(list(table))
    assert (len(table), table.find(7), list(table)) == (0, None, [])


def test_if_one_is_not_there_none_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iova, "CHUNK", 2)
    table = filled(*((n, n) for n in range(6)))
    inside = list(table)
    for wrong in (
        [*inside, mapping(6, 6)],
        [mapping(3, 3)],
        [inside[0], mapping(3, 3)],
        [inside[3], inside[0]],
        [inside[0], inside[0]],
    ):
        with pytest.raises(KeyError):
            table.remove_all(wrong)
        assert list(table) == inside
    with pytest.raises(KeyError):
        IovaMap().remove_all(inside)
