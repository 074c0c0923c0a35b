"""``IovaMap`` against a dictionary with one entry per page.

The dictionary cannot be wrong about order, neighbours or ends, because it has none of them. Chunks are
forced to be small, so that splitting and vanishing chunks happen all the time.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.world import SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation import iova
from uvfio.core.translation.iova import IovaMap, Mapping

MM = Mm(SparseMemory())
SPACE = 200
# Small addresses, and as many at the very end of 64 bits.
BASES = (0, (1 << 64) - SPACE)

ranges = st.tuples(st.sampled_from(BASES), st.integers(0, SPACE - 1), st.integers(1, 12)).map(
    lambda t: (t[0] + t[1], min(t[0] + t[1] + t[2], t[0] + SPACE) - 1)
)
operations = st.lists(
    st.tuples(
        st.sampled_from(["insert", "insert", "remove", "remove all", "remove some", "look"]), ranges
    ),
    max_size=120,
)


def overlapping(pages: dict[int, Mapping], first: int, last: int) -> list[Mapping]:
    """What the range touches, in order of address, page by page."""
    found: list[Mapping] = []
    for page in range(first, last + 1):
        m = pages.get(page)
        if m is not None and (not found or found[-1] is not m):
            found.append(m)
    return found


def check(table: IovaMap, pages: dict[int, Mapping]) -> None:
    """Everything that the map can be asked as a whole."""
    in_order = [pages[page] for page in sorted(pages) if pages[page].first == page]
    assert list(table) == in_order
    assert len(table) == len(in_order)
    assert [c[0].first for c in table._chunks] == table._mins
    assert [[m.first for m in c] for c in table._chunks] == table._starts


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 512])
@settings(max_examples=60, deadline=None)
@given(script=operations)
def test_map_agrees_with_a_page_dictionary(
    chunk: int, script: list[tuple[str, tuple[int, int]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iova, "CHUNK", chunk)
        table, pages = IovaMap(), dict[int, Mapping]()
        for verb, (first, last) in script:
            there = overlapping(pages, first, last)
            assert table.overlapping(first, last) == there
            assert table.first_overlap(first, last) is (there[0] if there else None)
            if verb == "insert" and not there:
                m = Mapping(first, last, 0, True, MM)
                table.insert(m)
                pages.update(dict.fromkeys(range(first, last + 1), m))
            elif verb == "remove" and there:
                table.remove(there[-1])
                pages = {page: m for page, m in pages.items() if m is not there[-1]}
            elif verb.startswith("remove"):
                gone = there[::2] if verb == "remove some" else there
                table.remove_all(gone)
                pages = {page: m for page, m in pages.items() if m not in gone}
            for address in (first, last, (first + last) // 2):
                assert table.find(address) is pages.get(address)
            check(table, pages)
        assert all(len(c) <= max(chunk, 1) for c in table._chunks)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(64)), gone=st.permutations(range(64)))
def test_any_order_of_coming_and_going(order: list[int], gone: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iova, "CHUNK", 4)
        table = IovaMap()
        made = {n: Mapping(2 * n, 2 * n, 0, True, MM) for n in order}
        for n in order:
            table.insert(made[n])
        assert [m.first for m in table] == list(range(0, 128, 2))
        for at, n in enumerate(gone):
            assert table.find(2 * n) is made[n]
            table.remove(made[n])
            assert table.find(2 * n) is None
            assert len(table) == 63 - at
        assert list(table) == []
