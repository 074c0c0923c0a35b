"""Windows on the program's memory: fast where they can be, gone when anything changes, faults as ever."""

from __future__ import annotations

import array
import weakref

import pytest

from support.model_world import World, power_on
from support.virtio_driver import Memory, mapped
from uvfio.core.seams import Mm
from uvfio.core.translation.dma_log import DmaLog
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.rules_type1 import RulesType1
from uvfio.errors import DmaFault
from uvfio.kit.dma_window import DmaWindows
from uvfio.models.exerciser import Exerciser

P = 0x1000


class Desk:
    """A function with windows on a memory of which the first half is mapped."""

    def __init__(self, windows: bool) -> None:
        self.memory = Memory(0x10000, windows)
        self.domain = mapped(self.memory, 0x8000)
        self.world: World[Exerciser] = power_on(Exerciser)
        self.world.model.attach(self.domain)
        self.windows = DmaWindows(self.world.model.dma)
        self.windows.refresh()


@pytest.fixture(params=[True, False], ids=["windows", "copies"])
def desk(request: pytest.FixtureRequest) -> Desk:
    return Desk(request.param)


def test_reads_and_writes(desk: Desk) -> None:
    desk.windows.write(0x1FFE, b"over a page")
    assert desk.memory.bytes[0x1FFE:0x2009] == b"over a page"
    assert desk.windows.read(0x1FFE, 11) == b"over a page"
    assert desk.windows.read_all([(0x1FFE, 4), (0x2002, 1)]) == [b"over", b" "]


def test_bytes_are_counted(desk: Desk) -> None:
    desk.windows.write(0, bytes(10))
    desk.windows.read(0, 20)
    desk.windows.read(0, 3)
    desk.windows.read_all([(0, 1), (5, 6)])
    counters = desk.domain.counters
    assert (counters.written, counters.read) == (10, 30)


@pytest.mark.parametrize("at", [0x8000, 0x7FFF, 1 << 63, (1 << 64) - 1])
def test_faults_are_those_of_any_access(desk: Desk, at: int) -> None:
    desk.windows.read(0, 1)
    with pytest.raises(DmaFault):
        desk.windows.read(at, 2)
    with pytest.raises(DmaFault):
        desk.windows.write(at, b"ab")
    assert desk.domain.fault_count == 2
    assert desk.windows.read_all([(0, 1), (at, 2), (1, 1)]) == [b"\0", b"\0"]
    assert desk.domain.fault_count == 3
    assert desk.memory.bytes == bytes(0x10000)


def test_a_read_only_mapping_is_read_and_not_written(desk: Desk) -> None:
    Rules2011(desk.domain).map(0x8000, P, 0x8000, Mm(desk.memory), None, writable=False)
    desk.windows.refresh()
    assert desk.windows.view(0x8000, 8) is None
    assert desk.windows.read(0x8000, 8) == bytes(8)
    with pytest.raises(DmaFault, match="read-only"):
        desk.windows.write(0x8000, b"a")


def unmap_part(domain: Domain) -> None:
    Rules2011(domain).unmap(0, P)


def drop(domain: Domain) -> None:
    domain.drop(domain.mappings.overlapping(0, P))


def unmap_all(domain: Domain) -> None:
    domain.unmap_all()


@pytest.mark.parametrize("change", [unmap_part, drop, unmap_all, Domain.close])
def test_no_window_survives_its_mapping(desk: Desk, change: object) -> None:
    assert callable(change)
    desk.windows.write(0, b"before")
    changes = desk.windows.changes
    change(desk.domain)
    desk.windows.refresh()
    assert desk.windows.changes > changes
    with pytest.raises(DmaFault):
        desk.windows.write(0, b"after!")
    with pytest.raises(DmaFault):
        desk.windows.read(0, 1)
    assert desk.memory.bytes[:6] == b"before"


def test_nor_the_end_of_bus_mastering_of_power_and_of_attachment(desk: Desk) -> None:
    model = desk.world.model
    for closed in ("master", "power", "domain"):
        desk.windows.refresh()
        desk.windows.read(0, 1)
        if closed == "master":
            desk.world.command(0)
        elif closed == "power":
            model.dma.asleep = True
        else:
            model.detach()
        desk.windows.refresh()
        with pytest.raises(DmaFault):
            desk.windows.read(0, 1)
        desk.world.command(6)
        model.dma.asleep = False
        model.attach(desk.domain)


def test_other_memory_behind_the_same_address(desk: Desk) -> None:
    desk.windows.write(0, b"old")
    Rules2011(desk.domain).unmap(0, P)
    Rules2011(desk.domain).map(0, P, 0x9000, Mm(desk.memory), None, writable=True)
    desk.windows.refresh()
    desk.windows.write(0, b"new")
    assert desk.memory.bytes[0x9000:0x9003] == b"new"
    assert desk.memory.bytes[:3] == b"old"


def test_an_address_that_is_renewed(desk: Desk) -> None:
    """A program that announces a new address for its mapping (VFIO_DMA_MAP_FLAG_VADDR)."""
    desk.windows.write(0, b"old")
    (mapping,) = desk.domain.mappings
    type1 = RulesType1(desk.domain, 2)
    type1.invalidate(0, mapping.size)
    type1.renew(0, mapping.size, 0x8000, mapping.mm, None)
    desk.windows.refresh()
    desk.windows.write(0, b"new")
    assert desk.memory.bytes[0x8000:0x8003] == b"new"
    assert desk.memory.bytes[:3] == b"old"


def test_a_refresh_without_news_keeps_them(desk: Desk) -> None:
    changes = desk.windows.changes
    for _ in range(3):
        desk.windows.refresh()
    assert desk.windows.changes == changes


def test_views_are_the_memory_itself() -> None:
    desk = Desk(windows=True)
    view = desk.windows.view(0x10, 4)
    assert view is not None
    view[:] = b"here"
    assert desk.memory.bytes[0x10:0x14] == b"here"
    assert Desk(windows=False).windows.view(0x10, 4) is None


def test_nor_the_beginning_of_a_log() -> None:
    """Somebody looks on: every write goes where it is marked."""
    desk = Desk(windows=True)
    desk.windows.write(0, b"unseen")
    log = DmaLog(P, [(0, 0x8000)])
    desk.world.model.dma.log = log
    desk.windows.refresh()
    assert desk.windows.view(0, 8) is None
    desk.windows.write(2 * P, b"seen")
    desk.windows.store(5 * P, 1, 4)
    assert desk.memory.bytes[2 * P : 2 * P + 4] == b"seen"
    assert log.written(0, 0x8000) == [2, 5]


class Keeper:
    """Keeps a view from one burst to the next."""

    def __init__(self, windows: DmaWindows) -> None:
        self.view = windows.view(0, 8)
        self.memory = weakref.ref(self.view.obj) if self.view is not None else None
        windows.add_user(self)

    def forget(self) -> None:
        self.view = None


class Held(Memory):
    """Its windows are seen to be given back."""

    def view(
        self, address: int, size: int, *, writable: bool = True, cut: object = None
    ) -> memoryview | None:
        return memoryview(array.array("B", bytes(size)))


@pytest.mark.parametrize("change", [unmap_part, drop, unmap_all, Domain.close])
def test_an_idle_device_gives_memory_back_with_its_mapping(change: object) -> None:
    assert callable(change)
    domain = mapped(Held(0x10000), 0x8000)
    world: World[Exerciser] = power_on(Exerciser)
    world.model.attach(domain)
    windows = DmaWindows(world.model.dma)
    windows.refresh()
    keeper = Keeper(windows)
    assert keeper.memory is not None
    assert keeper.memory() is not None
    change(domain)
    assert keeper.memory() is None
    assert keeper.view is None


def test_windows_of_a_former_domain_are_its_own_no_more(desk: Desk) -> None:
    other = mapped(Memory(0x10000), 0x8000)
    desk.world.model.detach()
    desk.world.model.attach(other)
    desk.windows.refresh()
    changes = desk.windows.changes
    desk.domain.unmap_all()
    assert desk.windows.changes == changes
    other.unmap_all()
    assert desk.windows.changes == changes + 1
