"""``RulesType1``: the mapping rules of type1 containers, in both versions; every refusal leaves all as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.world import PAGE, FakeBusDevice, SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.iova import Mapping
from uvfio.core.translation.rules_type1 import RulesType1
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    Gone,
    InvalidArgument,
    LimitExceeded,
    NotMapped,
    Overlap,
    TooManyMappings,
    VfioError,
    WrapsAround,
)

TOP = 1 << 64
BOTH = pytest.mark.parametrize("version", [1, 2])


class Bench:
    """A container's mappings, one device and one address space in which everything exists."""

    def __init__(
        self, version: int = 2, entry_limit: int = 65535, unit: IommuUnit | None = None
    ) -> None:
        self.domain = Domain(entry_limit=entry_limit)
        self.memory = SparseMemory()
        self.mm = Mm(self.memory, "program")
        unit = unit or IommuUnit(address_bits=64, reserved=())
        self.domain.attach(FakeBusDevice("edu", 1, unit=unit))
        self.type1 = RulesType1(self.domain, version)

    def map(
        self,
        iova: int,
        pages: int = 1,
        vaddr: int | None = None,
        *,
        limit: int | None = None,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        vaddr = iova if vaddr is None else vaddr
        self.type1.map(
            iova, pages * PAGE, vaddr, self.mm, limit, readable=readable, writable=writable
        )

    @property
    def state(self) -> object:
        return (
            [(m.first, m.size, m.vaddr, m.mm, m.stale) for m in self.domain.mappings],
            self.mm.locked_pages,
            self.type1.tracking,
        )

    @property
    def mapped(self) -> list[tuple[int, int]]:
        return [(m.first // PAGE, m.size // PAGE) for m in self.domain.mappings]

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> str:
        before = self.state
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert self.state == before
        return str(caught.value)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- map -----------------------------------------------------------------------------------------


@BOTH
def test_neighbours_are_not_joined(version: int) -> None:
    bench = Bench(version)
    bench.map(0)
    bench.map(PAGE)
    assert bench.mapped == [(0, 1), (1, 1)]
    assert bench.mm.locked_pages == 2


@pytest.mark.parametrize(("first", "pages"), [(4, 4), (7, 2), (5, 1), (0, 16)])
def test_overlaps_are_refused(bench: Bench, first: int, pages: int) -> None:
    bench.map(4 * PAGE, 4)
    bench.refused(Overlap, lambda: bench.map(first * PAGE, pages))


def test_the_same_memory_may_be_mapped_twice_and_counts_twice(bench: Bench) -> None:
    bench.map(0, vaddr=0)
    bench.map(PAGE, vaddr=0)
    assert bench.mm.locked_pages == 2


def test_the_order_of_maps_refusals(bench: Bench) -> None:
    """Each call is wrong in everything that comes later, too."""
    bench.map(0)
    mm, type1 = bench.mm, bench.type1

    def call(iova: int, size: int, vaddr: int, access: bool = True) -> Callable[[], object]:
        return lambda: type1.map(iova, size, vaddr, mm, 0, readable=access, writable=access)

    bench.refused(InvalidArgument, call(TOP - 1, 0, TOP - 1, False))
    assert "iova" in bench.refused(WrapsAround, call(TOP - 1, 2, TOP - 1, False))
    assert "vaddr" in bench.refused(WrapsAround, call(1, 2, TOP - 1, False))
    assert "permissions" in bench.refused(InvalidArgument, call(1, 1, 1, False))
    assert "multiple" in bench.refused(InvalidArgument, call(1, 1, 1))
    bench.refused(Overlap, call(0, PAGE, 0))


def test_the_number_of_mappings_comes_before_the_window_and_the_memory() -> None:
    bench = Bench(entry_limit=1, unit=IommuUnit(address_bits=48, reserved=()))
    bench.map(0)
    bench.refused(TooManyMappings, lambda: bench.map(1 << 50))
    assert bench.type1.available == 0


def test_the_window_comes_before_the_memory_and_that_before_its_limit() -> None:
    bench = Bench(unit=IommuUnit())
    bench.memory.holes.add(1)
    assert "reserved" in bench.refused(
        InvalidArgument, lambda: bench.map(0xFEE00000, vaddr=PAGE, limit=0)
    )
    bench.refused(InvalidArgument, lambda: bench.map(1 << 50, vaddr=PAGE, limit=0))
    bench.refused(BadAddress, lambda: bench.map(0, vaddr=PAGE, limit=0))
    bench.refused(LimitExceeded, lambda: bench.map(0, vaddr=0, limit=0))


def test_the_last_page_of_64_bits_can_be_mapped(bench: Bench) -> None:
    bench.map(TOP - PAGE, vaddr=0)
    assert bench.type1.unmap(TOP - PAGE, PAGE) == PAGE


def test_device_memory_locks_nothing(bench: Bench) -> None:
    bench.memory.device.add(0)
    bench.map(0, limit=0)
    assert bench.mm.locked_pages == 0


def test_memory_that_is_only_readable_cannot_be_mapped_for_writing(bench: Bench) -> None:
    bench.memory.read_only.add(0)
    bench.refused(BadAddress, lambda: bench.map(0))
    bench.map(0, writable=False)


def test_reading_and_writing_are_permissions_of_their_own(bench: Bench) -> None:
    bench.map(0, readable=False)
    bench.map(PAGE, writable=False)
    bench.domain.dma_write("edu", 0, b"x")
    with pytest.raises(DmaFault, match="write-only"):
        bench.domain.dma_read("edu", 0, 1)
    assert bench.domain.dma_view("edu", 0, PAGE) is None
    bench.domain.dma_read("edu", PAGE, 1)
    with pytest.raises(DmaFault, match="read-only"):
        bench.domain.dma_write("edu", PAGE, b"x")


def test_a_larger_smallest_page_is_the_alignment() -> None:
    bench = Bench(unit=IommuUnit(page_sizes=(2 << 20,), address_bits=64, reserved=()))
    bench.refused(InvalidArgument, lambda: bench.map(0))
    bench.map(0, 512)
    bench.refused(InvalidArgument, lambda: bench.type1.unmap(PAGE, 2 << 20))


def test_a_closed_domain_takes_nothing(bench: Bench) -> None:
    bench.domain.close()
    bench.refused(Gone, lambda: bench.map(0))


# -- unmap ---------------------------------------------------------------------------------------


@BOTH
def test_unmap_counts_what_went(version: int) -> None:
    bench = Bench(version)
    bench.map(PAGE, 2)
    bench.map(4 * PAGE, 3)
    assert bench.type1.unmap(0, 16 * PAGE) == 5 * PAGE
    assert bench.mapped == []
    assert bench.mm.locked_pages == 0
    assert bench.type1.unmap(0, 16 * PAGE) == 0


@pytest.mark.parametrize(("first", "pages"), [(4, 1), (5, 1), (7, 1), (6, 8), (0, 6)])
def test_version_2_never_cuts(bench: Bench, first: int, pages: int) -> None:
    bench.map(4 * PAGE, 4)
    bench.map(8 * PAGE, 2)
    bench.refused(InvalidArgument, lambda: bench.type1.unmap(first * PAGE, pages * PAGE))


@pytest.mark.parametrize(
    ("first", "pages", "gone"),
    [(4, 1, 4), (0, 5, 4), (5, 1, 0), (7, 1, 0), (5, 16, 0), (8, 1, 2), (4, 5, 6)],
)
def test_version_1_takes_a_mapping_as_a_whole_from_its_start(
    first: int, pages: int, gone: int
) -> None:
    bench = Bench(1)
    bench.map(4 * PAGE, 4)
    bench.map(8 * PAGE, 2)
    assert bench.type1.unmap(first * PAGE, pages * PAGE) == gone * PAGE
    assert bench.mm.locked_pages == 6 - gone


@BOTH
def test_the_order_of_unmaps_refusals(version: int) -> None:
    bench = Bench(version)
    unmap = bench.type1.unmap
    bench.map(0, 2)
    assert "iova" in bench.refused(InvalidArgument, lambda: unmap(1, 0))
    assert "size is 0" in bench.refused(InvalidArgument, lambda: unmap(0, 0))
    assert "size" in bench.refused(InvalidArgument, lambda: unmap(TOP - PAGE, 2 * PAGE + 1))
    bench.refused(WrapsAround, lambda: unmap(TOP - PAGE, 2 * PAGE, dirty_page=1))
    bench.refused(InvalidArgument, lambda: unmap(0, 2 * PAGE, dirty_page=PAGE))


@BOTH
def test_everything_wants_no_range(version: int) -> None:
    bench = Bench(version)
    bench.map(PAGE)
    bench.map(TOP - PAGE, vaddr=0)
    unmap = bench.type1.unmap
    bench.refused(InvalidArgument, lambda: unmap(PAGE, 0, everything=True))
    bench.refused(InvalidArgument, lambda: unmap(0, PAGE, everything=True))
    assert unmap(0, 0, everything=True) == 2 * PAGE
    assert unmap(0, 0, everything=True) == 0


def test_who_looks_before_an_unmap_sees_all_and_may_refuse(bench: Bench) -> None:
    bench.map(0)
    bench.map(PAGE)
    seen: list[int] = []

    def look(mapping: Mapping) -> None:
        seen.append(mapping.first)
        assert len(bench.domain.mappings) == 2
        if mapping.first:
            raise BadAddress("no room")

    bench.refused(BadAddress, lambda: bench.type1.unmap(0, 2 * PAGE, before=look))
    assert seen == [0, PAGE]


# -- new addresses -------------------------------------------------------------------------------


def test_a_stale_mapping_works_until_it_leads_elsewhere(bench: Bench) -> None:
    bench.map(0, 2, vaddr=0)
    bench.memory.write(0, b"old")
    assert bench.type1.invalidate(0, 2 * PAGE) == 2 * PAGE
    assert bench.domain.dma_read("edu", 0, 3) == b"old"
    other = Mm(SparseMemory(), "next image")
    other.memory.write(0x10000, b"new")
    bench.type1.renew(0, 2 * PAGE, 0x10000, other, None)
    assert bench.domain.dma_read("edu", 0, 3) == b"new"
    assert (bench.mm.locked_pages, other.locked_pages) == (0, 2)


def test_a_new_address_has_to_fit_in_the_limit(bench: Bench) -> None:
    bench.map(0)
    bench.type1.invalidate(0, 0, everything=True)
    other = Mm(SparseMemory(), "next image")
    bench.refused(LimitExceeded, lambda: bench.type1.renew(0, PAGE, 0, other, 0))
    assert other.locked_pages == 0


def test_only_exactly_one_stale_mapping_takes_a_new_address(bench: Bench) -> None:
    bench.map(0, 2)
    renew = bench.type1.renew
    bench.refused(NotMapped, lambda: renew(4 * PAGE, PAGE, 0, bench.mm, None))
    bench.refused(InvalidArgument, lambda: renew(0, 2 * PAGE, 0, bench.mm, None))
    bench.type1.invalidate(0, 2 * PAGE)
    bench.refused(InvalidArgument, lambda: renew(0, PAGE, 0, bench.mm, None))
    bench.refused(InvalidArgument, lambda: renew(0, 2 * PAGE, 0, bench.mm, None, permitted=False))
    renew(0, 2 * PAGE, 0, bench.mm, None)
    assert bench.mm.locked_pages == 2


def test_nothing_becomes_stale_twice(bench: Bench) -> None:
    bench.map(0)
    bench.map(PAGE)
    bench.type1.invalidate(PAGE, PAGE)
    bench.refused(InvalidArgument, lambda: bench.type1.invalidate(0, 2 * PAGE))


# -- dirty pages and windows ---------------------------------------------------------------------


def test_dirty_pages_are_all_pages_mapped(bench: Bench) -> None:
    bench.map(0)
    bench.map(4 * PAGE, 2)
    bench.refused(InvalidArgument, lambda: bench.type1.dirty(0, 8 * PAGE, PAGE))
    bench.type1.track(True)
    bench.type1.track(True)
    assert [m.first for m in bench.type1.dirty(0, 8 * PAGE, PAGE)] == [0, 4 * PAGE]
    bench.refused(InvalidArgument, lambda: bench.type1.dirty(0, 8 * PAGE, 2 * PAGE))
    bench.refused(InvalidArgument, lambda: bench.type1.dirty(0, 5 * PAGE, PAGE))
    bench.refused(InvalidArgument, lambda: bench.type1.dirty(0, 0, PAGE))
    bench.refused(WrapsAround, lambda: bench.type1.dirty(PAGE, TOP, PAGE))
    bench.type1.track(False)
    bench.refused(InvalidArgument, lambda: bench.type1.dirty(0, 8 * PAGE, PAGE))


def test_windows_are_what_is_not_reserved() -> None:
    assert Bench(unit=IommuUnit()).type1.windows() == [
        (0, 0xFEDFFFFF),
        (0xFEF00000, (1 << 48) - 1),
    ]
    unit = IommuUnit(address_bits=32, reserved=((0, 0xFFF), (0xFFFFF000, 0xFFFFFFFF)))
    assert Bench(unit=unit).type1.windows() == [(0x1000, 0xFFFFEFFF)]


@BOTH
def test_what_the_program_locked_itself_counts(version: int) -> None:
    """mm->locked_vm has both (vfio_lock_acct)."""
    bench = Bench(version)
    bench.memory.own_locks = 2 * PAGE
    bench.map(0, 2, limit=4 * PAGE)
    message = bench.refused(LimitExceeded, lambda: bench.map(4 * PAGE, limit=4 * PAGE))
    assert "0x2000 by mlock" in message
    bench.memory.own_locks = 0
    bench.map(4 * PAGE, 2, limit=4 * PAGE)


def test_a_new_address_leads_to_the_memory_there(bench: Bench) -> None:
    bench.map(0, 1, 0x10000)
    bench.memory.write(0x20000, b"moved")
    bench.type1.invalidate(0, PAGE)
    bench.type1.renew(0, PAGE, 0x20000, bench.mm, None)
    assert bench.domain.dma_read("edu", 0, 5) == b"moved"
    bench.type1.invalidate(0, PAGE)
    bench.memory.holes.add(0x30)
    bench.type1.renew(0, PAGE, 0x30000, bench.mm, None)  # no error, as in the kernel
    with pytest.raises(DmaFault, match="gone"):
        bench.domain.dma_read("edu", 0, 5)
