"""drivers.platform: regions, interrupts and life of a platform device, and how its driver recognises it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from support.pci_function import FakeEvent
from support.platform_device import CHILD, NODE, FakePlatform, line, region
from uvfio.core.bus import DeviceKind, DeviceTree, DtProperty, IrqInfo, ResourceKind
from uvfio.core.migration.states import Migration
from uvfio.drivers.platform.device import VfioPlatformDevice
from uvfio.drivers.platform.driver import VfioPlatformDriver
from uvfio.errors import Busy, Gone, InvalidArgument, NoSuchDevice, Unsupported, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import BoundDevice, BusDevice, VfioDriver
    from uvfio.drivers.platform.hardware import PlatformHardware

LEVEL, EDGE, LEVEL2 = range(3)
REGISTERS, RAM, SMALL, ROM = range(4)


@pytest.fixture
def hardware() -> FakePlatform:
    return FakePlatform()


@pytest.fixture
def device(hardware: FakePlatform) -> VfioPlatformDevice:
    """Open."""
    made = VfioPlatformDevice(hardware)
    made.get()
    hardware.log.clear()
    return made


def bind(device: VfioPlatformDevice, index: int) -> FakeEvent:
    event = FakeEvent()
    device.set_irqs(index, [event])
    return event


# -- driver --------------------------------------------------------------------------------------


def test_protocols_are_implemented() -> None:
    hardware: PlatformHardware = FakePlatform()
    driver = VfioPlatformDriver()
    as_driver: VfioDriver = driver
    as_device: BoundDevice = driver.probe(hardware)
    as_tree: DeviceTree = driver.probe(hardware)
    assert as_driver.name == "vfio-platform"
    assert as_device.kind is DeviceKind.PLATFORM
    assert isinstance(as_device, DeviceTree)
    assert as_tree.dt_path(ResourceKind.REGION, 0) == NODE


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("1000.block", True),
        (NODE, True),
        ("block", False),
        ("1000.block\n", False),
        (f"{NODE}/", False),
        (CHILD, False),
        ("soc/block@1000", False),
        ("", False),
    ],
)
def test_match_by_name_or_path(name: str, same: bool) -> None:
    assert VfioPlatformDriver().match(FakePlatform(), name) is same


def test_bind_hotplugged() -> None:
    hotplugged: list[BusDevice] = []
    hardware = FakePlatform()
    VfioPlatformDriver(hotplugged.append).bind_hotplugged(hardware)
    assert hotplugged == [hardware]
    with pytest.raises(Unsupported, match=r"vfio-platform cannot take 1000\.block"):
        VfioPlatformDriver().bind_hotplugged(hardware)


# -- facts ---------------------------------------------------------------------------------------


def test_regions_and_interrupts(device: VfioPlatformDevice) -> None:
    assert (device.num_regions, device.num_irqs) == (4, 3)
    regions = [device.region(index) for index in range(4)]
    assert [(r.size, r.writable, r.mappable) for r in regions] == [
        (0x100, True, False),
        (0x2000, True, True),
        (0x800, True, False),  # less than a page
        (0x1000, False, False),  # a mapping could write it
    ]
    assert [device.irq(index) for index in range(3)] == [
        IrqInfo(0, 1, level=True, name="irq0"),
        IrqInfo(1, 1, level=False, name="irq1"),
        IrqInfo(2, 1, level=True, name="irq2"),
    ]


@pytest.mark.parametrize(
    ("kind", "index", "path", "prop", "entry"),
    [
        (ResourceKind.REGION, 1, NODE, DtProperty.REG, 1),
        (ResourceKind.REGION, 3, CHILD, DtProperty.REG, 1),
        (ResourceKind.IRQ, 1, NODE, DtProperty.INTERRUPTS, 1),
        (ResourceKind.IRQ, 2, CHILD, DtProperty.INTERRUPTS, 0),
    ],
)
def test_device_tree(
    device: VfioPlatformDevice,
    kind: ResourceKind,
    index: int,
    path: str,
    prop: DtProperty,
    entry: int,
) -> None:
    assert device.dt_path(kind, index) == path
    assert device.dt_index(kind, index) == (prop, entry)


@pytest.mark.parametrize("index", [-1, 4, 1 << 31])
def test_what_does_not_exist(device: VfioPlatformDevice, index: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: device.region(index),
        lambda: device.read(index, 0, 4),
        lambda: device.write(index, 0, b"abcd"),
        lambda: device.mmap(index, 0, 4096),
        lambda: device.dt_path(ResourceKind.REGION, index),
        lambda: device.dt_index(ResourceKind.REGION, index),
        lambda: device.irq(index),
        lambda: device.check_irqs(index, 0),
        lambda: device.set_irqs(index, []),
        lambda: device.unmask_irq(index),
        lambda: device.set_unmask_event(index, None),
        lambda: device.dt_path(ResourceKind.IRQ, index),
        lambda: device.dt_index(ResourceKind.IRQ, index),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="does not exist"):
            call()


def test_a_device_with_nothing() -> None:
    device = VfioPlatformDevice(FakePlatform(regions=(), interrupts=(), resettable=False))
    assert (device.num_regions, device.num_irqs, device.resettable) == (0, 0, False)
    device.get()
    device.put()
    assert repr(device) == "<VfioPlatformDevice 1000.block opens=0>"


# -- reading, writing, mapping -------------------------------------------------------------------


def test_ranges_become_aligned_accesses(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    assert device.write(REGISTERS, 2, bytes(range(1, 8))) == 7
    assert device.read(REGISTERS, 1, 8) == b"\0\1\2\3\4\5\6\7"
    assert hardware.log == [
        ("write", 0, 2, 0x0201, 2),
        ("write", 0, 4, 0x06050403, 4),
        ("write", 0, 8, 7, 1),
        ("read", 0, 1, 1),
        ("read", 0, 2, 2),
        ("read", 0, 4, 4),
        ("read", 0, 8, 1),
    ]


@pytest.mark.parametrize(("index", "size"), [(REGISTERS, 0x100), (RAM, 0x2000), (SMALL, 0x800)])
def test_accesses_are_cut_at_the_end(device: VfioPlatformDevice, index: int, size: int) -> None:
    assert len(device.read(index, size - 4, 100)) == 4
    assert device.write(index, size - 1, b"abc") == 1
    assert device.read(index, size - 1, 1) == b"a"
    assert device.read(index, size, 4) == b""
    assert device.write(index, size, b"abcd") == 0
    for call in (lambda: device.read(index, size + 1, 1), lambda: device.write(index, -1, b"x")):
        with pytest.raises(InvalidArgument, match=f"ends at {size:#x}"):
            call()


def test_plain_memory_is_copied_without_accesses(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    assert device.write(RAM, 0xFFF, b"across") == 6
    assert device.read(RAM, 0xFFF, 6) == b"across"
    assert hardware.log == []


def test_read_only_regions(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    hardware.memories[ROM][:4] = b"rom!"
    assert device.read(ROM, 0, 4) == b"rom!"
    for offset in (0, 0x1000):
        with pytest.raises(InvalidArgument, match="region 3 is read-only"):
            device.write(ROM, offset, b"x")
    assert not [what for what in hardware.log if what[0] == "write"]


def test_read_only_memory_that_is_written_as_memory() -> None:
    """The rule is the window's, whatever is behind it."""
    from uvfio.core.bus import Region
    from uvfio.drivers.window import MemoryWindow

    memory = memoryview(bytearray(4096))
    window = MemoryWindow("x", Region(0, 4096, writable=False), lambda index: memory)
    with pytest.raises(InvalidArgument, match="read-only"):
        window.write(0, b"x")
    assert window.read(0, 1) == b"\0"


def test_mmap(device: VfioPlatformDevice) -> None:
    window = device.mmap(RAM, 0x1000, 0x1000)
    window[0:2] = b"hi"
    assert device.read(RAM, 0x1000, 2) == b"hi"
    refused = [(REGISTERS, 0, 0x100), (SMALL, 0, 0x800), (ROM, 0, 0x1000)]
    refused += [(RAM, 0x1000, 0x1001), (RAM, -1, 1), (RAM, 0, 0)]
    for index, offset, size in refused:
        with pytest.raises(InvalidArgument):
            device.mmap(index, offset, size)


# -- level interrupts ----------------------------------------------------------------------------


def test_a_level_masks_itself_and_fires_again_when_unmasked(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    event = bind(device, LEVEL)
    hardware.wire(LEVEL, True)
    hardware.wire(LEVEL, False)
    hardware.wire(LEVEL, True)
    assert event.count == 1
    device.unmask_irq(LEVEL)
    assert event.count == 2
    hardware.wire(LEVEL, False)
    device.unmask_irq(LEVEL)
    assert event.count == 2
    hardware.wire(LEVEL, True)
    assert event.count == 3


def test_levels_do_not_disturb_each_other(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    first, second = bind(device, LEVEL), bind(device, LEVEL2)
    hardware.wire(LEVEL, True)
    hardware.wire(LEVEL2, True)
    device.unmask_irq(LEVEL2)
    assert (first.count, second.count) == (1, 2)


def test_a_wire_that_is_high_fires_when_bound(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    hardware.wire(LEVEL, True)
    assert bind(device, LEVEL).count == 1


def test_a_wire_that_is_high_at_open_is_seen() -> None:
    hardware = FakePlatform(resettable=False)
    hardware.levels[LEVEL2] = True
    device = VfioPlatformDevice(hardware)
    device.get()
    assert bind(device, LEVEL2).count == 1
    assert bind(device, LEVEL).count == 0


def test_unmask_event(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    event, unmask = bind(device, LEVEL), FakeEvent()
    device.set_unmask_event(LEVEL, unmask)
    hardware.wire(LEVEL, True)
    unmask.kick()
    assert event.count == 2
    device.set_unmask_event(LEVEL, None)
    assert unmask.closed == 1
    assert not unmask.watched


def test_an_unmask_event_that_its_program_closed_does_not_count(
    device: VfioPlatformDevice,
) -> None:
    first, second = FakeEvent(), FakeEvent()
    device.set_unmask_event(LEVEL, first)
    first.left = True
    device.set_unmask_event(LEVEL, second)
    assert (first.watched, first.closed, second.watched) == (False, 1, True)
    second.left = True
    with pytest.raises(NoSuchDevice):
        device.set_unmask_event(LEVEL, None)
    assert (second.watched, second.closed) == (False, 1)


def test_a_pending_unmask_event_counts(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    event, unmask = bind(device, LEVEL), FakeEvent()
    hardware.wire(LEVEL, True)
    unmask.pending = True
    device.set_unmask_event(LEVEL, unmask)
    assert event.count == 2


def test_each_index_has_an_unmask_event_of_its_own(device: VfioPlatformDevice) -> None:
    first, second = FakeEvent(), FakeEvent()
    device.set_unmask_event(LEVEL, first)
    device.set_unmask_event(LEVEL2, second)
    with pytest.raises(Busy, match="interrupt 2 has an unmask event already"):
        device.set_unmask_event(LEVEL2, FakeEvent())
    device.set_unmask_event(LEVEL, None)
    assert (first.closed, second.closed) == (1, 0)
    with pytest.raises(NoSuchDevice, match="interrupt 0 has no unmask event"):
        device.set_unmask_event(LEVEL, None)


def test_an_unmask_event_that_cannot_be_watched_is_not_taken(device: VfioPlatformDevice) -> None:
    bad = FakeEvent()
    bad.fail_watch = NoSuchDevice("no")
    with pytest.raises(NoSuchDevice):
        device.set_unmask_event(LEVEL, bad)
    assert not bad.closed
    device.set_unmask_event(LEVEL, FakeEvent())


# -- edge interrupts -----------------------------------------------------------------------------


def test_each_edge_fires(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    assert hardware.sink is not None
    hardware.sink.irq(EDGE, True)  # lost: nobody listens
    event = bind(device, EDGE)
    for _ in range(3):
        hardware.sink.irq(EDGE, True)
        hardware.sink.irq(EDGE, False)
    assert event.count == 3


def test_an_edge_has_no_mask(device: VfioPlatformDevice) -> None:
    calls: list[Callable[[], None]] = [
        lambda: device.unmask_irq(EDGE),
        lambda: device.set_unmask_event(EDGE, FakeEvent()),
        lambda: device.set_unmask_event(EDGE, None),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="interrupt 1 cannot be masked"):
            call()


# -- setting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [LEVEL, EDGE])
def test_one_event_or_none(device: VfioPlatformDevice, index: int) -> None:
    event = bind(device, index)
    for count in (-1, 2):
        with pytest.raises(InvalidArgument, match=f"is one interrupt, not {count}"):
            device.check_irqs(index, count)
    with pytest.raises(InvalidArgument):
        device.set_irqs(index, [FakeEvent(), FakeEvent()])
    assert event.closed == 0
    device.set_irqs(index, [])
    assert event.closed > 0
    device.set_irqs(index, [])  # nothing to drop is fine


@pytest.mark.parametrize("index", [LEVEL, EDGE])
def test_an_accepted_call_drops_what_is_set(
    device: VfioPlatformDevice, hardware: FakePlatform, index: int
) -> None:
    first = bind(device, index)
    device.check_irqs(index, 1)
    assert first.closed == 1
    second = bind(device, index)
    third = bind(device, index)
    hardware.wire(index, True)
    assert (second.closed, second.count, third.count) == (1, 0, 1)


def test_setting_again_forgets_the_mask(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    bind(device, LEVEL)
    hardware.wire(LEVEL, True)
    assert bind(device, LEVEL).count == 1


def test_an_event_that_fails_is_not_bound(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    def fail() -> None:
        raise InvalidArgument("broken")

    event = FakeEvent()
    event.on_signal = fail
    hardware.wire(LEVEL, True)
    with pytest.raises(InvalidArgument, match="broken"):
        device.set_irqs(LEVEL, [event])
    assert not event.closed
    assert bind(device, LEVEL).count == 1


# -- life ----------------------------------------------------------------------------------------


def test_open_and_close(hardware: FakePlatform) -> None:
    device = VfioPlatformDevice(hardware)
    device.get()
    device.get()
    assert hardware.log[:2] == [("reset",), ("connect", True)]
    event, unmask = bind(device, LEVEL), FakeEvent()
    device.set_unmask_event(LEVEL, unmask)
    edge = bind(device, EDGE)
    device.put()
    assert (device.opens, event.closed) == (1, 0)
    hardware.log.clear()
    device.put()
    assert hardware.log == [("end_mappings",), ("connect", False), ("reset",)]
    assert (event.closed, unmask.closed, edge.closed) == (1, 1, 1)
    with pytest.raises(Gone):
        device.put()


def test_nothing_is_left_for_the_next_open(hardware: FakePlatform) -> None:
    device = VfioPlatformDevice(hardware)
    device.get()
    hardware.wire(LEVEL, True)
    device.put()
    hardware.levels[LEVEL] = False
    device.get()
    assert bind(device, LEVEL).count == 0


def test_reset(device: VfioPlatformDevice, hardware: FakePlatform) -> None:
    event = bind(device, EDGE)
    device.reset()
    assert hardware.log == [("reset",)]
    assert hardware.sink is not None
    hardware.sink.irq(EDGE, True)
    assert event.count == 1
    device.put()
    with pytest.raises(Gone):
        device.reset()
    with pytest.raises(Unsupported, match="has no reset"):
        VfioPlatformDevice(FakePlatform(resettable=False)).reset()


def test_a_reset_that_fails_costs_the_reset_and_not_the_device() -> None:
    hardware = FakePlatform()
    hardware.fail["reset"] = VfioError("stuck")
    device = VfioPlatformDevice(hardware)
    assert device.resettable
    device.get()
    assert not device.resettable
    with pytest.raises(VfioError, match="stuck"):
        device.reset()
    device.put()
    del hardware.fail["reset"]
    device.get()
    assert device.resettable


def test_an_open_that_fails_leaves_it_closed() -> None:
    hardware = FakePlatform()
    device = VfioPlatformDevice(hardware)
    hardware.fail["asserted"] = VfioError("no wire")
    with pytest.raises(VfioError, match="no wire"):
        device.get()
    assert device.opens == 0
    assert hardware.sink is None
    del hardware.fail["asserted"]
    device.get()
    assert device.opens == 1


def test_a_close_finishes_whatever_fails(
    device: VfioPlatformDevice, hardware: FakePlatform
) -> None:
    device.migration = session = Mock(spec=Migration)
    hardware.fail["connect"] = VfioError("stuck")
    event = bind(device, LEVEL)
    with pytest.raises(VfioError, match="stuck"):
        device.put()
    assert event.closed == 1
    session.close.assert_called_once_with()
    assert device.migration is None
    assert hardware.log[-1] == ("reset",)
    assert device.opens == 0


def test_requests_are_recorded(device: VfioPlatformDevice) -> None:
    device.request(3)
    assert device.requests == 3


def test_more_of_a_kind() -> None:
    hardware = FakePlatform(
        regions=tuple(region(n, 16) for n in range(20)),
        interrupts=tuple(line(n, n % 2 == 0) for n in range(70)),
    )
    device = VfioPlatformDevice(hardware)
    device.get()
    assert (device.num_regions, device.num_irqs) == (20, 70)
    event = bind(device, 68)
    hardware.wire(68, True)
    assert event.count == 1
