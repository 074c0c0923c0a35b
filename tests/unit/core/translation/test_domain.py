"""``Domain``: the rules of MAP and UNMAP, locked memory, and what a device may reach."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.world import FakeBusDevice, SparseMemory, see_mappings
from uvfio.core.events import Fault
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import FAULTS_KEPT, Domain, IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    Gone,
    InvalidArgument,
    LimitExceeded,
    Overlap,
    TooManyMappings,
    VfioError,
    WrapsAround,
)

PAGE = 4096
TOP = 1 << 64


class Bench:
    """A domain with one device behind one IOMMU, and one address space in which everything exists."""

    def __init__(self, entry_limit: int = 65535, unit: IommuUnit | None = None) -> None:
        self.domain = Domain(entry_limit=entry_limit)
        self.memory = SparseMemory()
        self.mm = Mm(self.memory, "owner")
        self.device = FakeBusDevice("edu", 1, unit=unit or IommuUnit(address_bits=64, reserved=()))
        self.domain.attach(self.device)

    def map(
        self,
        iova: int,
        size: int,
        vaddr: int,
        *,
        writable: bool = True,
        limit: int | None = None,
        mm: Mm | None = None,
    ) -> None:
        self.domain.map_range(iova, size, vaddr, writable, mm or self.mm, limit)

    @property
    def mappings(self) -> list[tuple[int, int, int, bool]]:
        return see_mappings(self.domain)

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> str:
        """``call`` raises the condition and changes neither mappings nor accounts; its message."""
        before = (self.mappings, self.mm.locked_pages)
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert (self.mappings, self.mm.locked_pages) == before
        return str(caught.value)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- the hardware behind it ----------------------------------------------------------------------


def test_attach_routes_the_device_and_detach_cuts_it_off() -> None:
    domain, device = Domain(), FakeBusDevice("edu", 1)
    domain.attach(device)
    assert (device.domain, domain.devices) == (domain, [device])
    domain.detach(device)
    assert (device.domain, domain.devices) == (None, [])


def test_a_failed_attach_leaves_the_device_out() -> None:
    domain, device = Domain(), FakeBusDevice("edu", 1)
    device.attach_error = InvalidArgument("no")
    with pytest.raises(InvalidArgument):
        domain.attach(device)
    assert domain.devices == []


def test_detaching_a_stranger_does_nothing() -> None:
    device = FakeBusDevice("edu", 1)
    Domain().detach(device)
    assert device.calls == []


def test_a_domain_can_do_what_all_its_units_can() -> None:
    domain = Domain()
    assert domain.coherent
    assert domain.interrupt_remapping
    assert domain.address_bits == 64
    domain.attach(FakeBusDevice("a", 1, unit=IommuUnit("a", reserved=((0x5000, 0x5FFF),))))
    domain.attach(
        FakeBusDevice(
            "b",
            2,
            unit=IommuUnit(
                "b",
                coherent=False,
                interrupt_remapping=False,
                address_bits=39,
                reserved=((0x1000, 0x1FFF), (0x5000, 0x5FFF)),
            ),
        )
    )
    assert not domain.coherent
    assert not domain.interrupt_remapping
    assert domain.address_bits == 39
    assert domain.reserved == ((0x1000, 0x1FFF), (0x5000, 0x5FFF))


def test_what_a_domain_can_do_changes_with_its_devices() -> None:
    unit = IommuUnit("a", reserved=())
    small = IommuUnit("b", address_bits=39, page_sizes=(PAGE,), reserved=((0, 0xFFF),))
    wide, narrow = FakeBusDevice("a", 1, unit=unit), FakeBusDevice("b", 2, unit=small)
    domain = Domain()
    assert (domain.units, domain.page_sizes, domain.reserved) == ((), (PAGE,), ())
    domain.attach(wide)
    assert (domain.address_bits, domain.page_sizes) == (48, unit.page_sizes)
    domain.attach(narrow)
    assert (domain.units, domain.address_bits) == ((unit, small), 39)
    assert (domain.page_sizes, domain.reserved) == ((PAGE,), ((0, 0xFFF),))
    domain.detach(narrow)
    assert (domain.units, domain.address_bits, domain.reserved) == ((unit,), 48, ())
    narrow.attach_error = RuntimeError()
    with pytest.raises(RuntimeError):
        domain.attach(narrow)
    assert domain.units == (unit,)


def test_close_detaches_every_device_and_forgets_every_mapping(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.domain.close()
    assert bench.device.domain is None
    assert bench.mappings == []
    assert bench.mm.locked_pages == 0


def test_a_closed_domain_takes_no_mapping(bench: Bench) -> None:
    bench.domain.close()
    bench.refused(Gone, lambda: bench.map(0, PAGE, 0))


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
    bench.domain.unmap_range(PAGE, PAGE)
    assert bench.mm.locked_pages == 2


def test_d30a_unmap_uncharges_pages_not_bytes(bench: Bench) -> None:
    bench.map(0, 1000 * PAGE, 0)
    bench.domain.unmap_range(0, 999 * PAGE)
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
    bench.domain.unmap_range(0, PAGE)
    assert bench.mm.locked_pages == 0


def test_device_memory_and_ram_do_not_become_one_mapping(bench: Bench) -> None:
    bench.memory.device.add(1)
    for page in range(3):
        bench.map(page * PAGE, PAGE, page * PAGE)
    assert len(bench.mappings) == 3
    bench.domain.unmap_range(0, 3 * PAGE)
    assert bench.mm.locked_pages == 0


def test_the_number_of_mappings_is_limited() -> None:
    bench = Bench(entry_limit=2)
    bench.map(0, PAGE, 0)
    bench.map(0x10000, PAGE, 0)
    bench.refused(TooManyMappings, lambda: bench.map(0x20000, PAGE, 0))
    bench.domain.unmap_range(0, PAGE)
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
    bench.refused(TooManyMappings, lambda: bench.domain.unmap_range(PAGE, PAGE))
    bench.domain.unmap_range(0, PAGE)
    bench.domain.unmap_range(2 * PAGE, PAGE)
    assert bench.mappings == [(PAGE, PAGE, PAGE, True)]


def test_d30c_sizes_beyond_two_to_the_32_pages_are_counted_right(bench: Bench) -> None:
    pages = (1 << 32) + 5
    bench.map(0, pages * PAGE, 0, limit=pages * PAGE)
    assert bench.mm.locked_pages == pages
    bench.domain.dma_write("edu", pages * PAGE - 1, b"!")
    bench.refused(LimitExceeded, lambda: bench.map(1 << 60, PAGE, 0, limit=pages * PAGE))
    assert bench.domain.unmap_range(0, pages * PAGE) == pages * PAGE
    assert bench.mm.locked_pages == 0


def test_d30f_frame_0_is_memory_like_any_other(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.domain.dma_write("edu", 0, b"zero")
    assert bench.memory.read(0, 4) == b"zero"
    bench.refused(Overlap, lambda: bench.map(0, PAGE, 0))
    assert bench.domain.unmap_range(0, PAGE) == PAGE


def test_d30h_two_domains_of_one_owner_cannot_exceed_the_limit_together(bench: Bench) -> None:
    other = Domain()
    refused: list[LimitExceeded] = []

    def meanwhile() -> None:
        bench.memory.on_pin = lambda: None
        with pytest.raises(LimitExceeded) as caught:
            other.map_range(0, PAGE, 0, True, bench.mm, PAGE)
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
    bench.domain.unmap_range(0, 2 * PAGE)
    assert (bench.mm.locked_pages, other.locked_pages) == (0, 0)


# -- unmap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("iova", "size"), [(1, PAGE), (0, 1), (0, PAGE + 1)])
def test_unmap_wants_whole_pages(bench: Bench, iova: int, size: int) -> None:
    bench.map(0, 2 * PAGE, 0)
    bench.refused(InvalidArgument, lambda: bench.domain.unmap_range(iova, size))


def test_d30b_unmap_of_a_range_that_wraps_is_refused(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.refused(WrapsAround, lambda: bench.domain.unmap_range(TOP - PAGE, 2 * PAGE))


def test_unmap_where_nothing_is_mapped_is_no_error(bench: Bench) -> None:
    assert bench.domain.unmap_range(0, PAGE) == 0
    bench.map(0, PAGE, 0)
    assert bench.domain.unmap_range(PAGE, 1 << 40) == 0


def test_d30e_unmap_of_size_0_splits_nothing(bench: Bench) -> None:
    bench.map(0, 3 * PAGE, 0)
    assert bench.domain.unmap_range(PAGE, 0) == 0
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
    done = bench.domain.unmap_range(iova * PAGE, size * PAGE)
    assert bench.mappings == [(i * PAGE, n * PAGE, v * PAGE, True) for i, n, v in left]
    assert bench.mm.locked_pages == sum(n for _, n, _ in left)
    assert done == (4 - bench.mm.locked_pages) * PAGE


def test_unmap_goes_over_holes(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0x10000)
    bench.map(4 * PAGE, 2 * PAGE, 0x20000)
    assert bench.domain.unmap_range(PAGE, 4 * PAGE) == 2 * PAGE
    assert bench.mappings == [(0, PAGE, 0x10000, True), (5 * PAGE, PAGE, 0x21000, True)]


def test_unmapped_memory_cannot_be_reached_even_if_it_was_just_used(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0)
    bench.domain.dma_read("edu", 0, 4)
    bench.domain.unmap_range(0, PAGE)
    with pytest.raises(DmaFault):
        bench.domain.dma_read("edu", 0, 4)
    assert bench.domain.dma_read("edu", PAGE, 4) == bytes(4)


def test_unmap_all_gives_everything_back(bench: Bench) -> None:
    bench.memory.device.add(7)
    bench.map(0, PAGE, 0)
    bench.map(0x10000, PAGE, 7 * PAGE)
    bench.domain.unmap_all()
    assert bench.mappings == []
    assert bench.mm.locked_pages == 0


# -- accesses by devices -------------------------------------------------------------------------


def test_an_access_may_span_mappings(bench: Bench) -> None:
    bench.map(0, PAGE, 0x20000)
    bench.map(PAGE, PAGE, 0x50000, writable=False)
    bench.memory.write(0x20FFE, b"ab")
    bench.memory.write(0x50000, b"cd")
    assert bench.domain.dma_read("edu", PAGE - 2, 4) == b"abcd"


def test_the_same_mapping_is_read_again_without_looking(bench: Bench) -> None:
    bench.map(0, PAGE, 0x20000)
    bench.memory.write(0x20000, b"abcd")
    assert [bench.domain.dma_read("edu", n, 1) for n in range(4)] == [b"a", b"b", b"c", b"d"]


def test_an_empty_access_is_no_fault(bench: Bench) -> None:
    assert bench.domain.dma_read("edu", 0x9000, 0) == b""
    bench.domain.dma_write("edu", 0x9000, b"")
    assert bench.domain.fault_count == 0


@pytest.mark.parametrize(
    ("iova", "reason"),
    [(0, "mapped read-only"), (PAGE, "not mapped"), (3 * PAGE - 2, "not mapped")],
)
def test_a_write_that_may_not_be_is_a_fault_and_writes_nothing(
    bench: Bench, iova: int, reason: str
) -> None:
    bench.map(0, PAGE, 0x20000, writable=False)
    bench.map(2 * PAGE, PAGE, 0x30000)
    with pytest.raises(DmaFault, match=reason):
        bench.domain.dma_write("edu", iova, b"data")
    assert bench.memory.read(0x30FFE, 2) == bytes(2)
    assert bench.domain.faults[-1].reason == reason


@pytest.mark.parametrize(("iova", "size"), [(TOP - 2, 4), (-PAGE, 4), (TOP, 1)])
def test_an_access_beyond_the_address_space_is_a_fault(bench: Bench, iova: int, size: int) -> None:
    bench.map(TOP - PAGE, PAGE, 0)
    with pytest.raises(DmaFault, match="wraps"):
        bench.domain.dma_read("edu", iova, size)


def test_memory_that_vanished_after_map_is_a_fault(bench: Bench) -> None:
    bench.map(0, PAGE, 0)
    bench.domain.dma_read("edu", 0, 1)
    bench.memory.holes.add(0)
    for access in (
        lambda: bench.domain.dma_read("edu", 0, 1),
        lambda: bench.domain.dma_write("edu", 0, b"x"),
        lambda: bench.domain.dma_store("edu", 0, 1, 4),
    ):
        with pytest.raises(DmaFault, match="the memory is gone"):
            access()
    assert bench.domain.fault_count == 3


def test_a_store_is_little_endian_and_aligned(bench: Bench) -> None:
    bench.map(0, PAGE, 0x20000)
    bench.domain.dma_store("edu", 8, 0x01020304, 4)
    assert bench.memory.read(0x20008, 4) == b"\4\3\2\1"


@pytest.mark.parametrize(("iova", "width"), [(2, 4), (1, 2), (4, 8), (0, 3), (0, 1), (0, 16)])
def test_a_store_that_could_tear_is_refused(bench: Bench, iova: int, width: int) -> None:
    bench.map(0, PAGE, 0)
    bench.refused(InvalidArgument, lambda: bench.domain.dma_store("edu", iova, 0, width))


def test_a_store_to_read_only_memory_is_a_fault(bench: Bench) -> None:
    bench.map(0, PAGE, 0, writable=False)
    with pytest.raises(DmaFault, match="read-only"):
        bench.domain.dma_store("edu", 0, 1, 4)


class WindowMemory(SparseMemory):
    """Memory that can be looked at directly."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = bytearray(4 * PAGE)

    def view(self, address: int, size: int) -> memoryview | None:
        return memoryview(self.bytes)[address : address + size]


def test_a_view_is_the_memory_itself_where_one_mapping_covers_it() -> None:
    bench = Bench()
    memory = WindowMemory()
    mm = Mm(memory)
    bench.map(0x10000, 2 * PAGE, PAGE, mm=mm)
    bench.map(0x12000, PAGE, 0, mm=mm)
    window = bench.domain.dma_view("edu", 0x10010, 4)
    assert window is not None
    window[:] = b"here"
    assert memory.bytes[PAGE + 0x10 : PAGE + 0x14] == b"here"
    assert bench.domain.dma_view("edu", 0x11FFE, 4) is None
    assert bench.domain.dma_view("edu", 0x10000, 0) is None


def test_a_view_needs_a_writable_mapping(bench: Bench) -> None:
    bench.map(0, PAGE, 0, writable=False)
    with pytest.raises(DmaFault, match="read-only"):
        bench.domain.dma_view("edu", 0, 4)


def test_faults_are_told_counted_and_the_newest_kept() -> None:
    told: list[Fault] = []
    domain = Domain(on_fault=told.append)
    for n in range(FAULTS_KEPT + 1):
        with pytest.raises(DmaFault):
            domain.dma_read("edu", n, 1)
    assert domain.fault_count == len(told) == FAULTS_KEPT + 1
    assert [fault.iova for fault in domain.faults] == list(range(1, FAULTS_KEPT + 1))


def test_a_fault_says_who_where_and_why() -> None:
    domain = Domain()
    with pytest.raises(DmaFault) as caught:
        domain.dma_write("0000:06:0d.0", 0x9000, b"1234")
    assert str(caught.value) == "dma fault: 0000:06:0d.0 write iova 0x9000+0x4: not mapped"
