"""``Rules2011``: MAP and UNMAP of 2011, their limits, and locked memory; every refusal leaves all as it was."""

from __future__ import annotations

import pytest

from support.domain import DomainBench as Bench
from support.world import SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    InvalidArgument,
    LimitExceeded,
    Overlap,
    TooManyMappings,
    WrapsAround,
)

PAGE = 4096
TOP = 1 << 64


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- map: ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iova", "size", "vaddr", "culprit"),
    [
        (1, 1, 1, "vaddr"),
        (1, 1, 0, "iova"),
        (0, 1, 0, "size"),
        (0, 0, 0, "size is 0"),
        (1, PAGE, 0, "iova"),
        (0, PAGE, 2048, "vaddr"),
    ],
)
def test_map_checks_alignment_of_vaddr_iova_size_in_this_order(
    bench: Bench, iova: int, size: int, vaddr: int, culprit: str
) -> None:
    message = bench.refused(InvalidArgument, lambda: bench.map(iova, size, vaddr))
    assert message.startswith(culprit)


def test_alignment_is_checked_before_overlap(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.refused(InvalidArgument, lambda: bench.map(0, PAGE + 1, 0))


@pytest.mark.parametrize(
    ("iova", "vaddr", "size"),
    [(TOP - PAGE, 0, 2 * PAGE), (0, TOP - PAGE, 2 * PAGE), (2 * PAGE, 0, TOP - PAGE)],
)
def test_d30b_ranges_that_wrap_are_refused(bench: Bench, iova: int, vaddr: int, size: int) -> None:
    message = bench.refused(WrapsAround, lambda: bench.map(iova, size, vaddr))
    assert "wraps" in message


def test_the_last_page_of_both_spaces_can_be_mapped(bench: Bench) -> None:
    bench.map(TOP - PAGE, PAGE, TOP - PAGE)
    bench.domain.dma_write("edu", TOP - 1, b"z")
    assert bench.memory.read(TOP - 1, 1) == b"z"


def test_map_keeps_to_the_address_bits_of_the_iommu() -> None:
    bench = Bench(unit=IommuUnit(address_bits=39, reserved=()))
    bench.refused(InvalidArgument, lambda: bench.map((1 << 39) - PAGE, 2 * PAGE, 0))
    bench.map((1 << 39) - PAGE, PAGE, 0)


@pytest.mark.parametrize("iova", [0xFEDF_F000, 0xFEE0_0000, 0xFEEF_F000])
def test_map_keeps_out_of_reserved_ranges(iova: int) -> None:
    bench = Bench(unit=IommuUnit())
    bench.refused(InvalidArgument, lambda: bench.map(iova, 2 * PAGE, 0))
    bench.map(0xFEDF_F000, PAGE, 0)
    bench.map(0xFEF0_0000, PAGE, 0)


@pytest.mark.parametrize(("iova", "size"), [(2, 2), (1, 2), (3, 2), (2, 1), (3, 1), (1, 4), (0, 8)])
def test_map_refuses_any_overlap_also_an_identical_one(bench: Bench, iova: int, size: int) -> None:
    bench.map(2 * PAGE, 2 * PAGE, 0x10000)
    message = bench.refused(Overlap, lambda: bench.map(iova * PAGE, size * PAGE, 0x10000))
    assert "overlaps mapping 0x2000+0x2000" in message


# -- map: locked memory and other limits ---------------------------------------------------------


def test_mapped_pages_are_charged_to_the_owner_and_given_back_by_unmap(bench: Bench) -> None:
    bench.map(0, 3 * PAGE, 0)
    assert bench.mm.locked_pages == 3
    Rules2011(bench.domain).unmap(PAGE, PAGE)
    assert bench.mm.locked_pages == 2


def test_d30a_unmap_uncharges_pages_not_bytes(bench: Bench) -> None:
    bench.map(0, 1000 * PAGE, 0)
    Rules2011(bench.domain).unmap(0, 999 * PAGE)
    assert bench.mm.locked_pages == 1


def test_the_limit_is_in_bytes_and_counts_what_is_locked_already(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0, limit=3 * PAGE)
    bench.refused(LimitExceeded, lambda: bench.map(0x10000, 2 * PAGE, 0, limit=3 * PAGE))
    bench.map(0x10000, PAGE, 0, limit=3 * PAGE)


def test_overlap_is_reported_before_the_limit(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.refused(Overlap, lambda: bench.map(0, PAGE, 0, limit=0))


def test_the_limit_is_checked_before_memory_is_looked_at(bench: Bench) -> None:
    bench.memory.holes.add(0)
    bench.refused(LimitExceeded, lambda: bench.map(0, PAGE, 0, limit=0))


def test_the_limit_counts_the_full_request_even_for_device_memory(bench: Bench) -> None:
    bench.memory.device.add(0)
    bench.refused(LimitExceeded, lambda: bench.map(0, PAGE, 0, limit=0))


def test_memory_that_is_not_there_cannot_be_mapped(bench: Bench) -> None:
    bench.memory.holes.add(1)
    bench.refused(BadAddress, lambda: bench.map(0, 3 * PAGE, 0))


def test_read_only_memory_can_be_mapped_for_reading_only(bench: Bench) -> None:
    bench.memory.read_only.add(0)
    bench.refused(BadAddress, lambda: bench.map(0, PAGE, 0))
    bench.map(0, PAGE, 0, writable=False)


def test_device_memory_is_mapped_but_not_charged(bench: Bench) -> None:
    bench.memory.device.add(0)
    bench.map(0, PAGE, 0)
    assert bench.mm.locked_pages == 0
    Rules2011(bench.domain).unmap(0, PAGE)
    assert bench.mm.locked_pages == 0


def test_device_memory_and_ram_do_not_become_one_mapping(bench: Bench) -> None:
    bench.memory.device.add(1)
    for page in range(3):
        bench.map(page * PAGE, PAGE, page * PAGE)
    assert len(bench.mappings) == 3
    Rules2011(bench.domain).unmap(0, 3 * PAGE)
    assert bench.mm.locked_pages == 0


def test_the_number_of_mappings_is_limited() -> None:
    bench = Bench(entry_limit=2)
    bench.map(0, PAGE, 0)
    bench.map(0x10000, PAGE, 0)
    bench.refused(TooManyMappings, lambda: bench.map(0x20000, PAGE, 0))
    Rules2011(bench.domain).unmap(0, PAGE)
    bench.map(0x20000, PAGE, 0)


def test_a_map_that_joins_its_neighbours_needs_no_new_entry() -> None:
    bench = Bench(entry_limit=2)
    bench.map(0, PAGE, 0)
    bench.map(2 * PAGE, PAGE, 2 * PAGE)
    bench.map(PAGE, PAGE, PAGE)
    assert bench.mappings == [(0, 3 * PAGE, 0, True)]


def test_neighbours_of_another_kind_of_memory_do_not_save_an_entry() -> None:
    bench = Bench(entry_limit=1)
    bench.memory.device.add(1)
    bench.map(0, PAGE, 0)
    bench.refused(TooManyMappings, lambda: bench.map(PAGE, PAGE, PAGE))


def test_an_unmap_that_cuts_a_mapping_in_two_needs_an_entry() -> None:
    bench = Bench(entry_limit=1)
    bench.map(0, 3 * PAGE, 0)
    bench.refused(TooManyMappings, lambda: Rules2011(bench.domain).unmap(PAGE, PAGE))
    Rules2011(bench.domain).unmap(0, PAGE)
    Rules2011(bench.domain).unmap(2 * PAGE, PAGE)
    assert bench.mappings == [(PAGE, PAGE, PAGE, True)]


def test_d30c_sizes_beyond_two_to_the_32_pages_are_counted_right(bench: Bench) -> None:
    pages = (1 << 32) + 5
    bench.map(0, pages * PAGE, 0, limit=pages * PAGE)
    assert bench.mm.locked_pages == pages
    bench.domain.dma_write("edu", pages * PAGE - 1, b"!")
    bench.refused(LimitExceeded, lambda: bench.map(1 << 60, PAGE, 0, limit=pages * PAGE))
    assert Rules2011(bench.domain).unmap(0, pages * PAGE) == pages * PAGE
    assert bench.mm.locked_pages == 0


def test_d30f_frame_0_is_memory_like_any_other(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.domain.dma_write("edu", 0, b"zero")
    assert bench.memory.read(0, 4) == b"zero"
    bench.refused(Overlap, lambda: bench.map(0, PAGE, 0))
    assert Rules2011(bench.domain).unmap(0, PAGE) == PAGE


def test_d30h_two_domains_of_one_owner_cannot_exceed_the_limit_together(bench: Bench) -> None:
    other = Domain()
    refused: list[LimitExceeded] = []

    def meanwhile() -> None:
        bench.memory.on_pin = lambda: None
        with pytest.raises(LimitExceeded) as caught:
            Rules2011(other).map(0, PAGE, 0, bench.mm, PAGE, writable=True)
        refused.append(caught.value)

    bench.memory.on_pin = meanwhile
    bench.map(0, PAGE, 0, limit=PAGE)
    assert len(refused) == 1
    assert bench.mm.locked_pages == 1
    assert len(other.mappings) == 0


# -- coalescing ----------------------------------------------------------------------------------


def test_neighbours_that_continue_each_other_become_one(bench: Bench) -> None:
    bench.map(PAGE, PAGE, 0x11000)
    bench.map(2 * PAGE, PAGE, 0x12000)
    assert bench.mappings == [(PAGE, 2 * PAGE, 0x11000, True)]
    bench.map(0, PAGE, 0x10000)
    assert bench.mappings == [(0, 3 * PAGE, 0x10000, True)]


@pytest.mark.parametrize(
    ("vaddr", "writable"), [(0x12000, True), (0x10000, True), (0x11000, False), (0, True)]
)
def test_neighbours_that_differ_stay_apart(bench: Bench, vaddr: int, writable: bool) -> None:
    bench.map(0, PAGE, 0x10000)
    bench.map(PAGE, PAGE, vaddr, writable=writable)
    assert len(bench.mappings) == 2


def test_mappings_of_two_address_spaces_stay_apart(bench: Bench) -> None:
    other = Mm(SparseMemory(), "other")
    bench.map(0, PAGE, 0)
    bench.map(PAGE, PAGE, PAGE, mm=other)
    assert len(bench.mappings) == 2
    Rules2011(bench.domain).unmap(0, 2 * PAGE)
    assert (bench.mm.locked_pages, other.locked_pages) == (0, 0)


# -- unmap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("iova", "size"), [(1, PAGE), (0, 1), (0, PAGE + 1)])
def test_unmap_wants_whole_pages(bench: Bench, iova: int, size: int) -> None:
    bench.map(0, 2 * PAGE, 0)
    bench.refused(InvalidArgument, lambda: Rules2011(bench.domain).unmap(iova, size))


def test_d30b_unmap_of_a_range_that_wraps_is_refused(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.refused(WrapsAround, lambda: Rules2011(bench.domain).unmap(TOP - PAGE, 2 * PAGE))


def test_unmap_where_nothing_is_mapped_is_no_error(bench: Bench) -> None:
    assert Rules2011(bench.domain).unmap(0, PAGE) == 0
    bench.map(0, PAGE, 0)
    assert Rules2011(bench.domain).unmap(PAGE, 1 << 40) == 0


def test_d30e_unmap_of_size_0_splits_nothing(bench: Bench) -> None:
    bench.map(0, 3 * PAGE, 0)
    assert Rules2011(bench.domain).unmap(PAGE, 0) == 0
    assert bench.mappings == [(0, 3 * PAGE, 0, True)]


@pytest.mark.parametrize(
    ("iova", "size", "left"),
    [
        (2, 4, []),
        (0, 9, []),
        (2, 1, [(3, 3, 0x13)]),
        (0, 4, [(4, 2, 0x14)]),
        (5, 1, [(2, 3, 0x12)]),
        (4, 9, [(2, 2, 0x12)]),
        (3, 2, [(2, 1, 0x12), (5, 1, 0x15)]),
    ],
)
def test_unmap_removes_trims_shortens_and_splits(
    bench: Bench, iova: int, size: int, left: list[tuple[int, int, int]]
) -> None:
    bench.map(2 * PAGE, 4 * PAGE, 0x12000)
    done = Rules2011(bench.domain).unmap(iova * PAGE, size * PAGE)
    assert bench.mappings == [(i * PAGE, n * PAGE, v * PAGE, True) for i, n, v in left]
    assert bench.mm.locked_pages == sum(n for _, n, _ in left)
    assert done == (4 - bench.mm.locked_pages) * PAGE


def test_unmap_goes_over_holes(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0x10000)
    bench.map(4 * PAGE, 2 * PAGE, 0x20000)
    assert Rules2011(bench.domain).unmap(PAGE, 4 * PAGE) == 2 * PAGE
    assert bench.mappings == [(0, PAGE, 0x10000, True), (5 * PAGE, PAGE, 0x21000, True)]


def test_unmapped_memory_cannot_be_reached_even_if_it_was_just_used(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0)
    bench.domain.dma_read("edu", 0, 4)
    Rules2011(bench.domain).unmap(0, PAGE)
    with pytest.raises(DmaFault):
        bench.domain.dma_read("edu", 0, 4)
    assert bench.domain.dma_read("edu", PAGE, 4) == bytes(4)
