"""``Domain``: what its IOMMUs can do together, changes that are undone, and what a device may reach."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.domain import DomainBench as Bench
from support.world import FakeBusDevice, SparseMemory
from uvfio.core.events import Fault, MemoryExchanged
from uvfio.core.seams import Mm, Pin
from uvfio.core.translation.domain import FAULTS_KEPT, Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    Gone,
    InvalidArgument,
    LimitExceeded,
    Overlap,
)

PAGE = 4096
TOP = 1 << 64


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

    def view(
        self, address: int, size: int, *, writable: bool = True, cut: object = None
    ) -> memoryview | None:
        found = memoryview(self.bytes)[address : address + size]
        return found if writable else found.toreadonly()


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


def test_a_read_only_view_of_a_read_only_mapping() -> None:
    bench, memory = Bench(), WindowMemory()
    bench.map(0, PAGE, 0, writable=False, mm=Mm(memory))
    view = bench.domain.dma_view("edu", 8, 4, writable=False)
    assert view is not None
    assert view.readonly
    memory.bytes[8:12] = b"read"
    assert bytes(view) == b"read"
    assert bench.domain.fault_count == 0
    assert bench.domain.counters.viewed == 4
    with pytest.raises(DmaFault, match="edu read .* not mapped"):
        bench.domain.dma_view("edu", PAGE, 4, writable=False)


def test_a_window_shows_what_one_piece_has() -> None:
    """Neighbours that were joined may lead to several files: each has a window of its own."""
    bench = Bench()
    first, second = WindowMemory(), WindowMemory()
    owner = OwnPins({0: first, PAGE: second})
    bench.map(0x10000, PAGE, 0, mm=(mm := Mm(owner)))
    bench.map(0x11000, PAGE, PAGE, mm=mm)
    assert len(bench.domain.mappings) == 1
    for iova, memory in ((0x10010, first), (0x11010, second)):
        found = bench.domain.dma_window(iova)
        assert found is not None
        assert found[:2] == (iova & -PAGE, (iova & -PAGE) + PAGE)
        found[2][0] = 7
        assert memory.bytes[iova & PAGE] == 7
    assert bench.domain.dma_view("edu", 0x10FFF, 2) is None
    Rules2011(bench.domain).unmap(0x10000, PAGE)
    (left,) = bench.domain.mappings
    assert left.pages is second


class OwnPins(SparseMemory):
    """Gives each address pages of its own."""

    def __init__(self, pages: dict[int, SparseMemory]) -> None:
        super().__init__()
        self.pages = pages

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        return Pin(self.pages[address], size)


def test_a_cut_window_is_a_recorded_fault_and_ends_windows() -> None:
    bench, memory = Bench(), CutMemory()
    bench.map(0x10000, PAGE, PAGE, mm=Mm(memory))
    assert bench.domain.dma_window(0x10000, "nic") is not None
    assert bench.domain.dma_view("edu", 0x10000, 4) is not None
    generation = bench.domain.generation
    memory.users["nic"](PAGE + 0x123)
    (fault,) = bench.domain.faults
    assert (fault.device, fault.iova) == ("nic", 0x10123)
    assert bench.domain.generation > generation
    memory.users["edu"](PAGE)
    assert [fault.device for fault in bench.domain.faults] == ["nic", "edu"]
    users, memory.users = memory.users, {}
    domain = weakref.ref(bench.domain)
    del bench
    gc.collect()
    assert domain() is None, "the function keeps nothing alive"
    users["nic"](PAGE)


def test_memory_that_is_gone_is_a_fault_of_a_view() -> None:
    bench, memory = Bench(), CutMemory()
    bench.map(0x10000, PAGE, PAGE, mm=Mm(memory))
    memory.gone = True
    with pytest.raises(DmaFault, match="the memory is gone"):
        bench.domain.dma_view("edu", 0x10000, 4)
    assert bench.domain.fault_count == 1
    assert bench.domain.dma_window(0x10000) is None
    assert bench.domain.fault_count == 1


class CutMemory(WindowMemory):
    """Memory of a file that can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, Callable[[int], None]] = {}
        self.gone = False

    def view(
        self, address: int, size: int, *, writable: bool = True, cut: Any = None
    ) -> memoryview | None:
        if self.gone:
            raise BadAddress("it was cut")
        self.users[cut[0]] = cut[1]
        return super().view(address, size, writable=writable)


# -- memory that is exchanged ----------------------------------------------------------------------


def looking(strict: bool) -> tuple[Bench, SparseMemory, list[MemoryExchanged]]:
    told: list[MemoryExchanged] = []
    bench = Bench()
    bench.domain = Domain(on_exchange=told.append, strict=strict)
    memory = WindowMemory()
    bench.map(0x10000, 2 * PAGE, PAGE, mm=Mm(memory))
    return bench, memory, told


USES: list[Callable[[Domain], object]] = [
    lambda domain: domain.dma_read("edu", 0x10000, 4),
    lambda domain: domain.dma_write("edu", 0x10000, b"data"),
    lambda domain: domain.dma_store("edu", 0x10000, 1, 4),
    lambda domain: domain.dma_view("edu", 0x10000, 4),
]


@pytest.mark.parametrize("use", USES)
def test_an_access_finds_exchanged_memory(use: Callable[[Domain], object]) -> None:
    bench, memory, told = looking(strict=False)
    use(bench.domain)
    assert told == []
    memory.difference = "it is another one"
    use(bench.domain)
    use(bench.domain)
    assert told == [MemoryExchanged(0x10000, 2 * PAGE, PAGE, "it is another one")]
    assert bench.domain.counters.exchanged == 1
    assert bench.domain.fault_count == 0


@pytest.mark.parametrize("use", USES)
def test_a_strict_domain_refuses_it(use: Callable[[Domain], object]) -> None:
    bench, memory, told = looking(strict=True)
    memory.difference = "it is another one"
    for _ in range(2):
        with pytest.raises(DmaFault, match="exchanged: it is another one"):
            use(bench.domain)
    assert bench.domain.dma_window(0x10000) is None
    assert len(told) == 1
    memory.difference = ""
    use(bench.domain)


def test_an_unmap_and_a_refused_map_find_it() -> None:
    bench, memory, told = looking(strict=False)
    memory.difference = "it is another one"
    with pytest.raises(Overlap) as caught:
        bench.map(0x10000, PAGE, 0)
    assert "it is another one" in str(caught.value.hint)
    assert len(told) == 1
    bench, memory, told = looking(strict=False)
    memory.difference = "it is another one"
    bench.domain.drop(list(bench.domain.mappings))
    assert len(told) == 1


def test_nobody_looks_without_need() -> None:
    bench, memory = Bench(), WindowMemory()
    memory.exchanged = None  # type: ignore[method-assign, assignment]
    bench.map(0x10000, 2 * PAGE, PAGE, mm=Mm(memory))
    for use in USES:
        use(bench.domain)
    bench.domain.drop(list(bench.domain.mappings))


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


# -- changes -------------------------------------------------------------------------------------


def test_what_the_program_locked_itself_counts(bench: Bench) -> None:
    bench.memory.own_locks = 3 * PAGE
    bench.map(0, PAGE, 0, limit=4 * PAGE)
    message = bench.refused(LimitExceeded, lambda: bench.map(PAGE, PAGE, PAGE, limit=4 * PAGE))
    assert "0x1000 locked, and 0x3000 by mlock, exceeds RLIMIT_MEMLOCK 0x4000" in message
    bench.memory.mlocked = None  # type: ignore[method-assign, assignment]
    bench.map(2 * PAGE, PAGE, 0)  # nobody asks without a limit
    bench.map(4 * PAGE, PAGE, 0, limit=1 << 63)


def test_a_change_that_fails_is_undone_in_reverse_order(bench: Bench) -> None:
    undone: list[str] = []

    def steps() -> None:
        with bench.domain.change() as change:
            change.charge(bench.mm, 3, None)
            change.done(undone.append, "first")
            change.done(undone.append, "second")
            assert bench.mm.locked_pages == 3
            raise Overlap("no")

    bench.refused(Overlap, steps)
    assert undone == ["second", "first"]
    assert bench.mm.locked_pages == 0


def test_a_change_that_succeeds_stays(bench: Bench) -> None:
    with bench.domain.change() as change:
        change.charge(bench.mm, 3, 3 * PAGE)
    assert bench.mm.locked_pages == 3


def test_a_charge_that_is_refused_is_not_undone(bench: Bench) -> None:
    bench.mm.charge(1, None)
    with pytest.raises(LimitExceeded), bench.domain.change() as change:
        change.charge(bench.mm, 1, PAGE)
    assert bench.mm.locked_pages == 1


def test_a_change_holds_the_lock_and_gives_it_back(bench: Bench) -> None:
    def locked() -> bool:
        with ThreadPoolExecutor(1) as pool:
            free = pool.submit(bench.domain.lock.acquire, blocking=False).result()
            if free:
                pool.submit(bench.domain.lock.release).result()
        return not free

    def steps() -> None:
        with bench.domain.change():
            assert locked()
            raise Gone("no")

    bench.refused(Gone, steps)
    assert not locked()


def test_replacing_keeps_the_account_and_forgets_translations(bench: Bench) -> None:
    bench.map(0, 2 * PAGE, 0x10000)
    bench.domain.dma_read("edu", 0, 4)
    (old,) = bench.domain.mappings
    generation = bench.domain.generation
    bench.domain.replace((old,), (old.part(PAGE, 2 * PAGE - 1),))
    assert bench.mappings == [(PAGE, PAGE, 0x11000, True)]
    assert bench.mm.locked_pages == 2
    assert bench.domain.generation > generation
    with pytest.raises(DmaFault):
        bench.domain.dma_read("edu", 0, 4)
