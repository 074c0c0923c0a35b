"""``Ioas``: what is mapped in an address space of an iommufd, who pays for it, and what may not be mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from support.world import PAGE, SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation import ioas
from uvfio.core.translation.address import ADDRESS_MAX
from uvfio.core.translation.area import Area, Backing
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    InvalidArgument,
    IovaInUse,
    LimitExceeded,
    NoSpace,
    NoSuchObject,
    NotMapped,
    Overlap,
    ReadOnly,
    VfioError,
    WrapsAround,
)

PLAIN = IommuUnit("plain", reserved=())
TOP = 1 << PLAIN.address_bits


class Bench:
    """An address space, a process that maps its memory there, and everything that can be seen of both."""

    def __init__(self) -> None:
        self.ioas = Ioas(Domain())
        self.memory = SparseMemory()
        self.mm = Mm(self.memory, "owner")

    def backing(self, *, writable: bool = True, limit: int | None = None) -> Backing:
        return Backing(self.mm, writable, self.mm, limit)

    def map(
        self,
        iova: int | None,
        size: int = PAGE,
        vaddr: int = 0x10000,
        *,
        backing: Backing | None = None,
        limit: int | None = None,
        readable: bool = True,
        writable: bool = True,
    ) -> int:
        backing = backing or self.backing(limit=limit)
        return self.ioas.map(backing, vaddr, size, iova, readable=readable, writable=writable)

    def page_table(self, unit: IommuUnit = PLAIN) -> Hwpt:
        hwpt = Hwpt(self.ioas, unit, auto=False)
        self.ioas.add_hwpt(hwpt)
        return hwpt

    @property
    def areas(self) -> list[tuple[int, int, int]]:
        return [(area.first, area.size, area.vaddr) for area in self.ioas.domain.mappings]

    def see(self) -> object:
        ioas = self.ioas
        facts = ioas.allowed, ioas.reserved, ioas.large_pages, list(ioas.hwpts), ioas.domain.closed
        return self.areas, self.mm.locked_pages, facts

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> str:
        before = self.see()
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert self.see() == before
        return str(caught.value)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- map -----------------------------------------------------------------------------------------


def test_without_a_page_table_any_byte_can_be_mapped_and_nothing_is_held(bench: Bench) -> None:
    bench.memory.holes.add(0x10)
    assert bench.map(0x1001, 3, 0x10007) == 0x1001
    assert bench.areas == [(0x1001, 3, 0x10007)]
    assert bench.mm.locked_pages == 0


def test_areas_that_continue_each_other_are_not_joined(bench: Bench) -> None:
    bench.map(0, PAGE, 0x10000)
    bench.map(PAGE, PAGE, 0x11000)
    assert bench.areas == [(0, PAGE, 0x10000), (PAGE, PAGE, 0x11000)]


@pytest.mark.parametrize(
    ("condition", "iova", "size", "vaddr"),
    [
        (InvalidArgument, 0, 0, 0x10000),
        (WrapsAround, 0, PAGE, ADDRESS_MAX - PAGE + 1),
        (WrapsAround, ADDRESS_MAX, 2, 0x10000),
        (Overlap, 0x1FFF, 1, 0x10000),
        (Overlap, 0x0800, PAGE, 0x10000),
        (WrapsAround, None, 1 << 63, 0x10000),
    ],
)
def test_what_cannot_be_mapped(
    bench: Bench, condition: type[VfioError], iova: int | None, size: int, vaddr: int
) -> None:
    bench.map(PAGE)
    bench.refused(condition, lambda: bench.map(iova, size, vaddr))


def test_memory_that_was_given_for_reading_cannot_be_mapped_for_writing(bench: Bench) -> None:
    only_read = bench.backing(writable=False)
    bench.refused(ReadOnly, lambda: bench.map(0, backing=only_read))
    bench.map(0, backing=only_read, writable=False)
    assert [area.writable for area in bench.ioas.domain.mappings] == [False]


@pytest.mark.parametrize(
    ("iova", "size", "vaddr"), [(1, PAGE, 0), (0, PAGE + 1, 0), (0, PAGE, 1), (None, PAGE, 0x801)]
)
def test_a_page_table_wants_whole_pages(
    bench: Bench, iova: int | None, size: int, vaddr: int
) -> None:
    bench.page_table()
    assert bench.ioas.granule == PAGE
    bench.refused(InvalidArgument, lambda: bench.map(iova, size, vaddr))


def test_a_page_table_wants_an_area_to_be_read_or_written(bench: Bench) -> None:
    bench.page_table()
    bench.refused(InvalidArgument, lambda: bench.map(0, readable=False, writable=False))


# -- who pays ------------------------------------------------------------------------------------


def test_with_a_page_table_memory_is_charged_at_once(bench: Bench) -> None:
    bench.page_table()
    bench.map(0, 3 * PAGE)
    assert bench.mm.locked_pages == 3
    assert bench.ioas.unmap(0, 3 * PAGE) == 3 * PAGE
    assert bench.mm.locked_pages == 0


def test_the_first_page_table_charges_and_the_last_one_gives_back(bench: Bench) -> None:
    bench.map(0, 3 * PAGE)
    first, second = bench.page_table(), bench.page_table()
    assert (bench.mm.locked_pages, bench.ioas.users) == (3, 2)
    bench.ioas.remove_hwpt(first)
    assert bench.mm.locked_pages == 3
    bench.ioas.remove_hwpt(second)
    assert (bench.mm.locked_pages, bench.ioas.users) == (0, 0)
    assert bench.areas == [(0, 3 * PAGE, 0x10000)]


def test_a_page_of_one_backing_is_charged_once(bench: Bench) -> None:
    bench.page_table()
    backing = bench.backing()
    bench.map(0, 2 * PAGE, backing=backing)
    bench.map(0x10000, 2 * PAGE, 0x11000, backing=backing)
    assert (backing.locked, bench.mm.locked_pages) == (3, 3)
    bench.ioas.unmap(0, 2 * PAGE)
    assert (backing.locked, bench.mm.locked_pages) == (2, 2)


def test_the_limit(bench: Bench) -> None:
    bench.page_table()
    bench.refused(LimitExceeded, lambda: bench.map(0, 3 * PAGE, limit=2 * PAGE))
    bench.map(0, 2 * PAGE, limit=2 * PAGE)


def test_a_page_table_that_cannot_hold_everything_holds_nothing(bench: Bench) -> None:
    fine = bench.backing()
    bench.map(0, PAGE, backing=fine)
    bench.memory.holes.add(0x50)
    bench.map(0x10000, PAGE, 0x50000)
    bench.refused(BadAddress, bench.page_table)
    assert fine.locked == 0


def test_memory_of_a_device_cannot_be_held(bench: Bench) -> None:
    bench.memory.device.add(0x11)
    bench.page_table()
    message = bench.refused(BadAddress, lambda: bench.map(0, 3 * PAGE))
    assert "0x1000 bytes of a device's memory" in message


# -- choosing addresses --------------------------------------------------------------------------


def test_the_lowest_address_with_room_is_chosen_but_never_0(bench: Bench) -> None:
    assert [bench.map(None, PAGE, 0) for _ in range(2)] == [PAGE, 2 * PAGE]
    bench.ioas.unmap(PAGE, PAGE)
    assert bench.map(None, PAGE, 0) == PAGE


@pytest.mark.parametrize(
    ("size", "vaddr", "chosen"),
    [
        (PAGE, 0x7000, 0x1000),  # never more than the size asks for
        (0x8000, 0x8000, 0x8000),
        (0x8000, 0x4000, 0x4000),
        (4 << 20, 16 << 20, 2 << 20),  # a large page is enough
    ],
)
def test_a_chosen_address_is_aligned_as_the_memory_is(
    bench: Bench, size: int, vaddr: int, chosen: int
) -> None:
    assert bench.map(None, size, vaddr) == chosen


def test_only_allowed_addresses_are_chosen_but_fixed_ones_do_not_care(bench: Bench) -> None:
    bench.ioas.allow([(0x9000, 0x9FFF), (0x5000, 0x5FFF)])
    assert [bench.map(None) for _ in range(2)] == [0x5000, 0x9000]
    bench.refused(NoSpace, lambda: bench.map(None))
    assert bench.map(0x20000) == 0x20000
    bench.ioas.allow([])
    assert bench.map(None) == 0x1000


def test_reserved_addresses_are_not_chosen(bench: Bench) -> None:
    bench.ioas.reserve("device", [(0, 0x2FFF)])
    assert bench.map(None) == 0x3000


# -- unmap ---------------------------------------------------------------------------------------


def test_unmap_takes_all_areas_in_the_range_and_says_how_much_that_was(bench: Bench) -> None:
    bench.map(0)
    bench.map(4 * PAGE)
    bench.map(9 * PAGE)
    assert bench.ioas.unmap(0, 6 * PAGE) == 2 * PAGE
    assert bench.areas == [(9 * PAGE, PAGE, 0x10000)]
    assert bench.ioas.unmap_all() == PAGE
    assert bench.ioas.unmap_all() == 0


@pytest.mark.parametrize(
    ("condition", "iova", "size"),
    [
        (InvalidArgument, PAGE, 0),
        (WrapsAround, ADDRESS_MAX, 2),
        (NotMapped, 8 * PAGE, PAGE),
        (NotMapped, PAGE, PAGE),
        (NotMapped, 2 * PAGE, PAGE),
        (NotMapped, 0, 6 * PAGE),
    ],
)
def test_unmap_takes_whole_areas_only(
    bench: Bench, condition: type[VfioError], iova: int, size: int
) -> None:
    bench.page_table()
    bench.map(0)
    bench.map(PAGE, 2 * PAGE)
    bench.map(5 * PAGE, 2 * PAGE)
    bench.refused(condition, lambda: bench.ioas.unmap(iova, size))


def test_cut_divides_areas_and_what_is_held(bench: Bench) -> None:
    bench.ioas.use_large_pages(False)
    bench.page_table()
    backing = bench.backing()
    bench.map(0, 4 * PAGE, 0x10000, backing=backing)
    assert bench.ioas.unmap(PAGE, PAGE, cut=True) == PAGE
    assert bench.areas == [(0, PAGE, 0x10000), (2 * PAGE, 2 * PAGE, 0x12000)]
    assert (backing.locked, bench.mm.locked_pages) == (3, 3)
    assert bench.ioas.unmap_all() == 3 * PAGE
    assert bench.mm.locked_pages == 0


def test_cut_keeps_to_the_granule(bench: Bench) -> None:
    bench.page_table()
    bench.map(0, 2 * PAGE)
    bench.refused(InvalidArgument, lambda: bench.ioas.unmap(0, 0x801, cut=True))


# -- copies --------------------------------------------------------------------------------------


def test_a_copy_leads_to_the_same_memory_and_costs_nothing(bench: Bench) -> None:
    bench.page_table()
    bench.map(0, 2 * PAGE, 0x10000)
    bench.map(2 * PAGE, 2 * PAGE, 0x50000)
    pieces = bench.ioas.copy_from(bench.ioas, PAGE, 2 * PAGE)
    assert bench.ioas.place(pieces, 0x20000, readable=True, writable=False) == 0x20000
    assert bench.areas[2:] == [(0x20000, PAGE, 0x11000), (0x21000, PAGE, 0x50000)]
    assert bench.mm.locked_pages == 4


@pytest.mark.parametrize(
    ("condition", "iova", "size"),
    [
        (InvalidArgument, 0, 0),
        (WrapsAround, ADDRESS_MAX, 2),
        (NotMapped, PAGE, PAGE),
        (NotMapped, 0, 2 * PAGE),
    ],
)
def test_only_what_is_mapped_can_be_copied(
    bench: Bench, condition: type[VfioError], iova: int, size: int
) -> None:
    bench.map(0)
    bench.map(2 * PAGE)
    bench.refused(condition, lambda: bench.ioas.copy_from(bench.ioas, iova, size))


# -- where may be mapped -------------------------------------------------------------------------


def test_windows_are_what_is_not_reserved(bench: Bench) -> None:
    assert bench.ioas.windows() == [(0, ADDRESS_MAX)]
    bench.page_table()
    assert bench.ioas.windows() == [(0, TOP - 1)]
    bench.ioas.reserve("device", [(0, 0xFFF), (0x5000, 0x5FFF)])
    assert bench.ioas.windows() == [(0x1000, 0x4FFF), (0x6000, TOP - 1)]
    bench.ioas.unreserve("device")
    bench.ioas.unreserve("device")
    assert bench.ioas.windows() == [(0, TOP - 1)]


def test_addresses_that_two_need_are_reserved_until_both_are_gone(bench: Bench) -> None:
    bench.ioas.reserve("one", [(0, 0xFFF)])
    bench.ioas.reserve("other", [(0x800, 0x1FFF)])
    bench.ioas.unreserve("one")
    bench.refused(InvalidArgument, lambda: bench.map(0x1000))
    bench.ioas.unreserve("other")
    bench.map(0x1000)


def test_reserving_what_is_mapped_or_allowed_is_refused(bench: Bench) -> None:
    bench.map(0x5000)
    bench.ioas.allow([(0x8000, 0x8FFF)])
    for span in ((0x5FFF, 0x6FFF), (0x7000, 0x8000)):
        spans = [(0, 0), span]
        bench.refused(IovaInUse, partial(bench.ioas.reserve, "device", spans))


@pytest.mark.parametrize(
    ("condition", "spans"),
    [
        (InvalidArgument, [(5, 5)]),
        (InvalidArgument, [(6, 5)]),
        (InvalidArgument, [(0x100, 0x200), (0, 0x100)]),
        (IovaInUse, [(0, 0x100), (0x4000, 0x5000)]),
    ],
)
def test_what_cannot_be_allowed(
    bench: Bench, condition: type[VfioError], spans: list[tuple[int, int]]
) -> None:
    bench.ioas.reserve("device", [(0x5000, 0x5FFF)])
    bench.ioas.allow([(0x20000, 0x2FFFF)])
    bench.refused(condition, lambda: bench.ioas.allow(spans))


def test_large_pages_go_only_while_no_page_table_shows_any(bench: Bench) -> None:
    hwpt = bench.page_table()
    bench.map(0)
    bench.refused(InvalidArgument, lambda: bench.ioas.use_large_pages(False))
    bench.ioas.remove_hwpt(hwpt)
    bench.map(0x9001, 1)
    bench.refused(IovaInUse, lambda: bench.ioas.use_large_pages(False))
    bench.ioas.unmap(0x9001, 1)
    bench.ioas.use_large_pages(False)
    assert bench.ioas.granule == PAGE
    bench.ioas.use_large_pages(True)
    assert bench.ioas.granule == 1


# -- page tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "unit", "iova"),
    [
        (InvalidArgument, IommuUnit("big", page_sizes=(0x10000,)), 0),
        (IovaInUse, PLAIN, 1),
        (IovaInUse, PLAIN, TOP),
        (IovaInUse, IommuUnit("short", address_bits=39), 1 << 39),
    ],
)
def test_a_page_table_that_cannot_translate_what_is_mapped(
    bench: Bench, condition: type[VfioError], unit: IommuUnit, iova: int
) -> None:
    bench.map(iova)
    bench.refused(condition, lambda: bench.page_table(unit))


def test_the_end_of_an_address_space(bench: Bench) -> None:
    hwpt = bench.page_table()
    bench.map(0)
    bench.ioas.remove_hwpt(hwpt)
    bench.ioas.close()
    assert bench.areas == []
    bench.refused(NoSuchObject, lambda: bench.map(0))
    bench.refused(NoSuchObject, lambda: bench.ioas.allow([(0, 9)]))
    bench.refused(NoSuchObject, lambda: bench.ioas.reserve("device", [(0, 9)]))
    bench.refused(NoSuchObject, bench.page_table)


def test_dma_goes_through_areas_that_a_page_table_translates(bench: Bench) -> None:
    bench.map(0x1000, PAGE, 0x10000)
    with pytest.raises(DmaFault):
        bench.ioas.domain.dma_read("edu", 0x1004, 8)
    bench.page_table()
    bench.memory.write(0x10000, b"0123456789abcdef")
    assert bench.ioas.domain.dma_read("edu", 0x1004, 8) == b"456789ab"
    assert all(isinstance(area, Area) for area in bench.ioas.domain.mappings)


# -- work that a program chooses ---------------------------------------------------------------------


def test_one_copy_takes_a_limited_number_of_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of what was copied double with each call."""
    monkeypatch.setattr(ioas, "COPY_MAX", 8)
    bench, size = Bench(), PAGE
    bench.map(0, PAGE)
    while len(bench.areas) < 8:
        bench.ioas.place(
            bench.ioas.copy_from(bench.ioas, 0, size), size, readable=True, writable=True
        )
        size *= 2
    assert len(bench.ioas.copy_from(bench.ioas, 0, size)) == 8
    bench.map(size, PAGE)
    bench.refused(LimitExceeded, lambda: bench.ioas.copy_from(bench.ioas, 0, size + PAGE))


def test_a_limited_number_of_ranges_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ioas, "ALLOWED_MAX", 4)
    bench, asked = Bench(), list[int]()

    def ranges(count: int) -> Iterator[tuple[int, int]]:
        for n in range(count):
            asked.append(n)
            yield n * 0x10000, n * 0x10000 + 0xFFF

    bench.ioas.allow(ranges(4))
    asked.clear()
    bench.refused(LimitExceeded, lambda: bench.ioas.allow(ranges(1 << 32)))
    assert len(asked) == 5
    bench.refused(InvalidArgument, lambda: bench.ioas.allow([(0, 1), (0, 1), *ranges(9)]))


def test_page_tables_cost_what_their_kinds_cost() -> None:
    """Each mapping asks for the granule, each page table for the reserved ranges."""
    bench = Bench()
    tables = [bench.page_table(IommuUnit(reserved=())) for _ in range(500)]
    assert (len(bench.ioas._granules), len(bench.ioas._needs)) == (1, 1)
    assert bench.ioas.hwpts == tables
    reserved = bench.ioas.reserved
    for table in tables:
        assert bench.ioas.reserved is reserved
        bench.ioas.remove_hwpt(table)
    assert (bench.ioas._granules, bench.ioas._needs, bench.ioas.reserved) == ({}, {}, ())


def test_a_holder_that_needs_other_addresses_gives_up_the_first_ones() -> None:
    bench = Bench()
    bench.ioas.reserve("one", [(0, 0xFFF)])
    bench.ioas.reserve("other", [(0x5000, 0x5FFF)])
    bench.ioas.reserve("one", [(0x5000, 0x5FFF)])
    assert bench.ioas.reserved == ((0x5000, 0x5FFF),)
    bench.ioas.unreserve("other")
    assert bench.ioas.reserved == ((0x5000, 0x5FFF),)
    bench.ioas.unreserve("one")
    assert not bench.ioas.reserved
