"""The device file of the mainline ABIs: information, accesses, interrupts in all their forms, resets, features."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace

import pytest

from support.mainline import (
    ALONE,
    CONFIG,
    FIRST,
    NOWHERE,
    PAGE,
    SECOND,
    Desk,
    refused,
)
from uvfio.core.bus import Region
from uvfio.core.events import FrameworkEvent, Interrupt
from uvfio.doors.local import LocalEvent
from uvfio.drivers.pci.interrupts import Mode
from uvfio.fops.mainline.device import DeviceFile
from uvfio.uapi import pci, vfio

UNKNOWN = 0x3BA0
INTX, MSI, MSIX, ERR, REQ = range(5)
NONE, BOOL, EVENTFD = 1, 2, 4
MASK, UNMASK, TRIGGER = 8, 16, 32
REGISTERS, TABLE, MEMORY, PORTS, ROM = 0, 1, 2, 4, 6
SCRATCH, RAISE, LEVEL = 0x10, 0x40, 0x44


class Bench(Desk):
    """``dev`` is the exerciser of group 1, with memory, ports and the bus master switched on."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.grp, self.dev = self.ready()
        self.set_config(self.dev, pci.PCI_COMMAND, 7)

    def write(self, index: int, offset: int, value: int, size: int = 4) -> int:
        data = value.to_bytes(size, "little")
        return self.me.pwrite(self.dev, data, (index << 40) + offset)

    def read(self, index: int, offset: int, size: int = 4) -> bytes:
        return self.me.pread(self.dev, size, (index << 40) + offset)

    def irqs(
        self, index: int, flags: int, start: int = 0, count: int = 1, data: bytes = b""
    ) -> None:
        self.set_irqs(self.dev, index, flags, start, count, data)

    def connect(self, index: int, *fds: int, start: int = 0) -> None:
        data = struct.pack(f"<{len(fds)}i", *fds)
        self.irqs(index, EVENTFD | TRIGGER, start, len(fds), data)

    @property
    def mode(self) -> Mode:
        return self.bound().interrupts.mode


@pytest.fixture
def bench() -> Bench:
    return Bench()


def events(bench: Bench, count: int) -> tuple[list[int], list[LocalEvent]]:
    made = [bench.event() for _ in range(count)]
    return [fd for fd, _ in made], [event for _, event in made]


def counts(found: list[LocalEvent]) -> list[int]:
    return [event.take() for event in found]


# -- information ---------------------------------------------------------------------------------


def device_info(bench: Bench, argsz: int) -> bytes:
    answer = bytearray(struct.pack("<I", argsz) + b"\xee" * 60)
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_INFO, answer)
    return bytes(answer)


@pytest.mark.parametrize(("argsz", "known"), [(16, 16), (20, 20), (24, 24), (60, 24)])
def test_device_info(bench: Bench, argsz: int, known: int) -> None:
    flags = vfio.VFIO_DEVICE_FLAGS_PCI | vfio.VFIO_DEVICE_FLAGS_RESET
    full = struct.pack("<IIIIII", argsz, flags, 9, 5, 0, 0)
    assert device_info(bench, argsz) == full[:known] + b"\xee" * (64 - known)


def test_the_errors_of_device_info(bench: Bench) -> None:
    with refused(bench, errno.EINVAL):
        device_info(bench, 15)
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_INFO, NOWHERE)


@pytest.mark.parametrize(
    ("index", "flags", "size"),
    [
        (0, 3, PAGE),
        (1, 3, PAGE),
        (2, 7, None),
        (3, 0, 0),
        (4, 3, 16),
        (5, 0, 0),
        (6, 1, None),
        (7, 3, PAGE),
    ],
)
def test_region_info(bench: Bench, index: int, flags: int, size: int | None) -> None:
    answer = bench.region(bench.dev, index)
    assert answer == (32, flags, index, 0, size or answer[4], index << 40)


@pytest.mark.parametrize("index", [8, 9, 100, 0xFFFFFFFF])
def test_regions_that_do_not_exist(bench: Bench, index: int) -> None:
    with refused(bench, errno.EINVAL):
        bench.region(bench.dev, index)
    with refused(bench, errno.EINVAL):
        bench.me.pread(bench.dev, 4, index << 40)
    with refused(bench, errno.EINVAL):
        bench.me.mmap(bench.dev, PAGE, index << 40)


def test_region_info_needs_its_whole_struct(bench: Bench) -> None:
    with refused(bench, errno.EINVAL):
        bench.region(bench.dev, 0, 31)
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_REGION_INFO, NOWHERE)


def test_capabilities_of_a_region(bench: Bench) -> None:
    window = bench.bound()._windows[MEMORY]
    window.region = replace(window.region, areas=((0, PAGE), (2 * PAGE, PAGE)), msix_table=True)
    answer = bytearray(vfio.REGION_INFO.pack(32, 0, MEMORY, 0, 0, 0))
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
    assert vfio.REGION_INFO.unpack(answer)[:4] == (88, 15, MEMORY, 0)
    answer = bytearray(vfio.REGION_INFO.pack(88, 0, MEMORY, 0, 0, 0) + bytes(56))
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_REGION_INFO, answer)
    assert vfio.REGION_INFO.unpack(answer[:32])[:4] == (88, 15, MEMORY, 32)
    assert struct.unpack_from("<HHIII", answer, 32) == (1, 1, 80, 2, 0)
    assert struct.unpack_from("<4Q", answer, 48) == (0, PAGE, 2 * PAGE, PAGE)
    assert struct.unpack_from("<HHI", answer, 80) == (3, 1, 0)


@pytest.mark.parametrize(
    ("index", "flags", "count"),
    [(INTX, 7, 1), (MSI, 9, None), (MSIX, 1, None), (ERR, 9, 1), (REQ, 9, 1)],
)
def test_irq_info(bench: Bench, index: int, flags: int, count: int | None) -> None:
    answer = bench.irq(bench.dev, index)
    assert answer == (16, flags, index, count or answer[3])
    assert answer[3] > 0


def test_the_errors_of_irq_info(bench: Bench) -> None:
    for index in (5, 100):
        with refused(bench, errno.EINVAL):
            bench.irq(bench.dev, index)
    with refused(bench, errno.EINVAL):
        bench.irq(bench.dev, 0, 15)
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_GET_IRQ_INFO, NOWHERE)


# -- accesses ------------------------------------------------------------------------------------


def test_configuration_space_is_never_cut(bench: Bench) -> None:
    assert len(bench.me.pread(bench.dev, PAGE, CONFIG)) == PAGE
    assert bench.me.pread(bench.dev, 0, CONFIG + PAGE) == b""
    for offset, count in ((PAGE, 4), (PAGE - 4, 8), (0x10000, 4)):
        with refused(bench, errno.EFAULT):
            bench.me.pread(bench.dev, count, CONFIG + offset)
        with refused(bench, errno.EFAULT):
            bench.me.pwrite(bench.dev, bytes(count), CONFIG + offset)


def test_bars_are_cut_at_their_end_and_nothing_is_beyond(bench: Bench) -> None:
    assert len(bench.read(REGISTERS, PAGE - 4, 8)) == 4
    assert bench.write(REGISTERS, PAGE - 4, 0, 8) == 4
    assert len(bench.read(PORTS, 8, 16)) == 8
    for index in (REGISTERS, PORTS, 5):
        with refused(bench, errno.EINVAL):
            bench.read(index, PAGE)
        with refused(bench, errno.EINVAL):
            bench.write(index, PAGE, 0)
        assert bench.read(index, PAGE, 0) == b""
        assert bench.me.pwrite(bench.dev, b"", (index << 40) + PAGE) == 0


def test_eight_bytes_reach_a_register_as_one_access(bench: Bench) -> None:
    function = bench.machine.function(ALONE)
    seen: list[int] = []
    plain = function.bar_read

    def bar_read(index: int, offset: int, size: int) -> int:
        seen.append(size)
        return plain(index, offset, size)

    window = bench.bound()._windows[REGISTERS]
    window._load = bar_read  # type: ignore[attr-defined]
    bench.write(REGISTERS, 0x20, 0x1122334455667788, 8)
    assert bench.read(REGISTERS, 0x20, 8) == 0x1122334455667788.to_bytes(8, "little")
    bench.read(REGISTERS, 0x24, 12)
    assert seen == [8, 4, 8]


def test_memory_that_is_switched_off_is_eio(bench: Bench) -> None:
    bench.write(PORTS, 8, 0x55)
    bench.set_config(bench.dev, pci.PCI_COMMAND, pci.PCI_COMMAND_IO)
    for index in (REGISTERS, MEMORY, ROM):
        with refused(bench, errno.EIO):
            bench.read(index, 0)
    with refused(bench, errno.EIO):
        bench.write(REGISTERS, SCRATCH, 1)
    assert bench.read(PORTS, 8) == b"\x55\0\0\0"
    bench.set_config(bench.dev, pci.PCI_COMMAND, 0)
    assert bench.read(PORTS, 8) == b"\x55\0\0\0"
    bench.me.mmap(bench.dev, PAGE, MEMORY << 40)


def test_a_function_that_sleeps_has_no_memory(bench: Bench) -> None:
    at = next(c.offset for c in bench.bound()._layout.capabilities if c.id == pci.PCI_CAP_ID_PM)
    bench.set_config(bench.dev, at + pci.PCI_PM_CTRL, 3)
    with refused(bench, errno.EIO):
        bench.read(REGISTERS, 0)
    bench.set_config(bench.dev, at + pci.PCI_PM_CTRL, 0)
    bench.set_config(bench.dev, pci.PCI_COMMAND, 7)
    assert bench.read(REGISTERS, 0)


def test_the_rom_is_read_only(bench: Bench) -> None:
    assert len(bench.read(ROM, 0, 16)) == 16
    with refused(bench, errno.EINVAL):
        bench.write(ROM, 0, 1)


def test_the_msix_table_is_the_hosts(bench: Bench) -> None:
    size = bench.irq(bench.dev, MSIX)[3] * 16
    assert bench.read(TABLE, 0, 16) == b"\xff" * 16
    assert bench.write(TABLE, 0, 0) == 4
    assert bench.read(TABLE, size - 4, 8) == b"\xff" * 4 + bytes(4)
    bench.connect(MSIX, bench.event()[0])
    assert bench.machine.function(ALONE).bar_read(TABLE, 0, 4) == 0xFEE00000


def test_mappings(bench: Bench) -> None:
    view = bench.me.mmap(bench.dev, PAGE, MEMORY << 40)
    view[0] = 0x42
    assert bench.read(MEMORY, 0, 1) == b"\x42"
    total = bench.region(bench.dev, MEMORY)[4]
    for size, offset in ((PAGE, total), (total + PAGE, 0), (2 * PAGE, total - PAGE)):
        with refused(bench, errno.EINVAL):
            bench.me.mmap(bench.dev, size, (MEMORY << 40) + offset)
    for index in (REGISTERS, 3, PORTS, ROM, 7):
        with refused(bench, errno.EINVAL):
            bench.me.mmap(bench.dev, PAGE, index << 40)
    with refused(bench, errno.EINVAL):
        bench.me.mmap(bench.dev, PAGE, MEMORY << 40, shared=False)


# -- SET_IRQS: what it refuses -------------------------------------------------------------------

FD = struct.pack("<i", 999)


@pytest.mark.parametrize(
    ("index", "flags", "start", "count", "data", "argsz", "number"),
    [
        (MSI, EVENTFD | TRIGGER, 0, 1, FD, 19, errno.EINVAL),
        (MSI, EVENTFD | TRIGGER, 0, 1, FD, 20, errno.EINVAL),
        (MSI, 0, 0, 1, FD, 24, errno.EINVAL),
        (MSI, EVENTFD, 0, 1, FD, 24, errno.ENOTTY),
        (MSI, EVENTFD | TRIGGER | UNMASK, 0, 1, FD, 24, errno.ENOTTY),
        (MSI, EVENTFD | BOOL | TRIGGER, 0, 1, FD, 24, errno.EINVAL),
        (MSI, 0x80 | NONE | TRIGGER, 0, 1, b"", 20, errno.EINVAL),
        (5, EVENTFD | TRIGGER, 0, 1, FD, 24, errno.EINVAL),
        (INTX, EVENTFD | TRIGGER, 1, 1, FD, 24, errno.EINVAL),
        (INTX, EVENTFD | TRIGGER, 0, 2, FD + FD, 28, errno.EINVAL),
        (INTX, EVENTFD | TRIGGER, 0, 0, b"", 20, errno.EINVAL),
        (MSI, EVENTFD | TRIGGER, 99, 1, FD, 24, errno.EINVAL),
        (MSI, EVENTFD | TRIGGER, 0xFFFFFFFF, 1, FD, 24, errno.EINVAL),
        (MSI, EVENTFD | TRIGGER, 0, 1, FD, 24, errno.EBADF),
        (MSI, EVENTFD | TRIGGER, 0, 0, b"", 20, errno.ERANGE),
        (MSIX, EVENTFD | TRIGGER, 0, 0, b"", 20, errno.ERANGE),
        (MSI, NONE | TRIGGER, 0, 0, b"", 20, errno.EINVAL),
        (MSI, NONE | TRIGGER, 0, 1, b"", 20, errno.EINVAL),
        (MSI, BOOL | TRIGGER, 0, 1, b"\1", 21, errno.EINVAL),
        (MSI, NONE | MASK, 0, 1, b"", 20, errno.ENOTTY),
        (MSIX, NONE | UNMASK, 0, 1, b"", 20, errno.ENOTTY),
        (INTX, NONE | MASK, 0, 1, b"", 20, errno.EINVAL),
        (INTX, NONE | UNMASK, 0, 1, b"", 20, errno.EINVAL),
        (INTX, NONE | TRIGGER, 0, 0, b"", 20, errno.EINVAL),
        (INTX, NONE | TRIGGER, 0, 1, b"", 20, errno.EINVAL),
        (ERR, NONE | MASK, 0, 1, b"", 20, errno.ENOTTY),
        (REQ, EVENTFD | TRIGGER, 0, 2, FD + FD, 28, errno.EINVAL),
        (REQ, EVENTFD | TRIGGER, 0, 0, b"", 20, errno.EINVAL),
        (REQ, EVENTFD | TRIGGER, 0, 1, FD, 24, errno.EBADF),
        (REQ, BOOL | TRIGGER, 0, 0, b"", 20, errno.EINVAL),
        (REQ, NONE | TRIGGER, 0, 1, b"", 20, errno.EINVAL),
    ],
)
def test_what_set_irqs_refuses(
    bench: Bench,
    index: int,
    flags: int,
    start: int,
    count: int,
    data: bytes,
    argsz: int,
    number: int,
) -> None:
    with refused(bench, number):
        bench.set_irqs(bench.dev, index, flags, start, count, data, argsz)


def test_set_irqs_needs_memory(bench: Bench) -> None:
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_SET_IRQS, NOWHERE)
    with refused(bench, errno.EFAULT):
        argsz = 20 + 4 * 4
        address = bench.buffer() + PAGE - 20
        bench.me.memory.write(address, vfio.IRQ_SET.pack(argsz, EVENTFD | TRIGGER, MSI, 0, 4))
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_SET_IRQS, address)


def test_a_descriptor_that_is_no_eventfd(bench: Bench) -> None:
    (good,), (event,) = events(bench, 1)
    with refused(bench, errno.EINVAL):
        bench.connect(MSI, good, bench.grp)
    bench.connect(MSI, good)
    with refused(bench, errno.EINVAL):
        bench.connect(MSI, bench.grp)
    bench.irqs(MSI, NONE | TRIGGER)
    assert event.take() == 1


@pytest.mark.parametrize("first", [INTX, MSI, MSIX])
def test_one_kind_at_a_time(bench: Bench, first: int) -> None:
    fds, _ = events(bench, 2)
    bench.connect(first, fds[0])
    for other in {INTX, MSI, MSIX} - {first}:
        with refused(bench, errno.EINVAL):
            bench.connect(other, fds[1])
        with refused(bench, errno.EINVAL):
            bench.irqs(other, NONE | TRIGGER, 0, 0)
    bench.irqs(first, NONE | TRIGGER, 0, 0)
    assert bench.mode is Mode.NONE


# -- SET_IRQS: messages --------------------------------------------------------------------------


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_messages_arrive(bench: Bench, index: int) -> None:
    fds, found = events(bench, 3)
    bench.connect(index, *fds)
    for vector in (0, 2, 2):
        bench.write(REGISTERS, RAISE, vector)
    assert counts(found) == [1, 0, 2]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_programs_test_themselves(bench: Bench, index: int) -> None:
    fds, found = events(bench, 3)
    bench.connect(index, *fds)
    bench.irqs(index, NONE | TRIGGER, 1, 2)
    assert counts(found) == [0, 1, 1]
    bench.irqs(index, BOOL | TRIGGER, 0, 3, b"\1\0\xff")
    assert counts(found) == [1, 0, 1]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_vectors_without_events(bench: Bench, index: int) -> None:
    fds, found = events(bench, 2)
    bench.connect(index, -1)
    assert bench.mode.value == index
    bench.irqs(index, NONE | TRIGGER, 0, 0)
    bench.connect(index, fds[0], -1, fds[1])
    bench.irqs(index, NONE | TRIGGER, 0, 3)
    assert counts(found) == [1, 1]
    bench.connect(index, -1)
    bench.irqs(index, NONE | TRIGGER, 0, 3)
    assert counts(found) == [0, 1]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_an_event_may_be_replaced_alone(bench: Bench, index: int) -> None:
    fds, found = events(bench, 3)
    bench.connect(index, fds[0], fds[1])
    bench.connect(index, fds[2], start=1)
    bench.write(REGISTERS, RAISE, 0)
    bench.write(REGISTERS, RAISE, 1)
    assert counts(found) == [1, 0, 1]
    bench.irqs(index, EVENTFD | TRIGGER, 0, 0)
    assert bench.mode.value == index


def test_msi_cannot_grow_msix_can(bench: Bench) -> None:
    fds, found = events(bench, 2)
    bench.connect(MSI, fds[0])
    with refused(bench, errno.EINVAL):
        bench.connect(MSI, fds[1], start=1)
    bench.irqs(MSI, NONE | TRIGGER, 0, 0)
    bench.connect(MSIX, fds[0])
    bench.connect(MSIX, fds[1], start=3)
    bench.write(REGISTERS, RAISE, 3)
    assert counts(found) == [0, 1]


def test_enabling_may_begin_in_the_middle(bench: Bench) -> None:
    fds, found = events(bench, 1)
    bench.connect(MSIX, fds[0], start=2)
    bench.write(REGISTERS, RAISE, 2)
    assert counts(found) == [1]


# -- SET_IRQS: the level interrupt ---------------------------------------------------------------


def test_a_level_masks_itself_until_it_is_unmasked(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    bench.connect(INTX, fd)
    bench.write(REGISTERS, LEVEL, 1)
    bench.write(REGISTERS, LEVEL, 1)
    assert event.take() == 1
    bench.irqs(INTX, NONE | UNMASK)
    assert event.take() == 1
    bench.write(REGISTERS, LEVEL, 0)
    bench.irqs(INTX, BOOL | UNMASK, data=b"\0")
    bench.write(REGISTERS, LEVEL, 1)
    assert event.take() == 0
    bench.irqs(INTX, BOOL | UNMASK, data=b"\1")
    assert event.take() == 1


@pytest.mark.parametrize("data", [b"", b"\1"])
def test_a_program_may_mask_first(bench: Bench, data: bytes) -> None:
    (fd,), (event,) = events(bench, 1)
    bench.connect(INTX, fd)
    bench.irqs(INTX, (BOOL if data else NONE) | MASK, data=data)
    bench.write(REGISTERS, LEVEL, 1)
    assert event.take() == 0
    bench.irqs(INTX, NONE | UNMASK)
    assert event.take() == 1


def test_a_byte_of_zero_masks_nothing(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    bench.connect(INTX, fd)
    bench.irqs(INTX, BOOL | MASK, data=b"\0")
    bench.write(REGISTERS, LEVEL, 1)
    assert event.take() == 1


def test_an_event_may_unmask(bench: Bench) -> None:
    fds, found = events(bench, 2)
    bench.connect(INTX, fds[0])
    bench.irqs(INTX, EVENTFD | UNMASK, data=struct.pack("<i", fds[1]))
    with refused(bench, errno.EBUSY):
        bench.irqs(INTX, EVENTFD | UNMASK, data=struct.pack("<i", fds[1]))
    bench.write(REGISTERS, LEVEL, 1)
    assert found[0].take() == 1
    found[1].signal()
    assert found[0].take() == 1
    bench.irqs(INTX, EVENTFD | UNMASK, data=struct.pack("<i", -1))
    found[1].signal()
    assert found[0].take() == 0
    with refused(bench, errno.ENOTTY):
        bench.irqs(INTX, EVENTFD | MASK, data=struct.pack("<i", fds[1]))


def test_the_level_interrupt_tests_itself(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    bench.connect(INTX, fd)
    bench.irqs(INTX, NONE | TRIGGER)
    bench.irqs(INTX, BOOL | TRIGGER, data=b"\0")
    bench.irqs(INTX, BOOL | TRIGGER, data=b"\1")
    assert event.take() == 2
    bench.set_config(bench.dev, pci.PCI_COMMAND, 7 | pci.PCI_COMMAND_INTX_DISABLE)
    bench.irqs(INTX, NONE | TRIGGER)
    assert event.take() == 0


def test_the_level_interrupts_event_may_be_replaced_or_left_out(bench: Bench) -> None:
    fds, found = events(bench, 2)
    bench.connect(INTX, -1)
    assert bench.mode is Mode.INTX
    bench.irqs(INTX, NONE | TRIGGER)
    bench.write(REGISTERS, LEVEL, 1)
    bench.connect(INTX, fds[0])
    assert found[0].take() == 1
    bench.connect(INTX, fds[1])
    bench.irqs(INTX, NONE | UNMASK)
    assert counts(found) == [0, 1]
    bench.connect(INTX, -1)
    bench.irqs(INTX, NONE | UNMASK)
    assert counts(found) == [0, 0]


# -- SET_IRQS: events of the host ----------------------------------------------------------------


@pytest.mark.parametrize("index", [ERR, REQ])
def test_events_of_the_host(bench: Bench, index: int) -> None:
    fds, found = events(bench, 2)
    bench.connect(index, -1)
    bench.connect(index, fds[0])
    bench.irqs(index, NONE | TRIGGER)
    bench.irqs(index, BOOL | TRIGGER, data=b"\1")
    bench.irqs(index, BOOL | TRIGGER, data=b"\0")
    assert counts(found) == [2, 0]
    bench.connect(index, fds[1])
    bench.irqs(index, NONE | TRIGGER)
    assert counts(found) == [0, 1]
    bench.irqs(index, NONE | TRIGGER, 0, 0)
    bench.irqs(index, BOOL | TRIGGER, data=b"\1")
    assert counts(found) == [0, 0]
    bench.connect(index, fds[0])
    bench.connect(index, -1)
    with refused(bench, errno.EINVAL):
        bench.irqs(index, NONE | TRIGGER)


def test_who_wants_the_device_back_signals_req(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    bench.connect(REQ, fd)
    with pytest.raises(OSError):
        bench.machine.unbind(ALONE, timeout=0)
    assert event.take() == 1
    bench.me.close(bench.dev)
    bench.machine.unbind(ALONE, timeout=0)
    assert event.take() == 0


def test_interrupts_are_told_to_who_watches(bench: Bench) -> None:
    told: list[FrameworkEvent] = []
    bench.framework.observer = told.append
    bench.connect(REQ, bench.event()[0])
    bench.connect(MSIX, bench.event()[0])
    bench.irqs(REQ, NONE | TRIGGER)
    bench.write(REGISTERS, RAISE, 0)
    assert told == [Interrupt(ALONE, "REQ", 0), Interrupt(ALONE, "MSI-X", 0)]


# -- resets --------------------------------------------------------------------------------------


def test_reset(bench: Bench) -> None:
    bench.write(REGISTERS, SCRATCH, 5)
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_RESET)
    assert bench.read(REGISTERS, SCRATCH) == bytes(4)


def test_a_device_without_a_reset_is_einval() -> None:
    desk = Desk()
    desk.machine.plug("edu@0000:00:05.0,group=5")
    _, _, device = desk.ready(5, "0000:00:05.0")
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_RESET)
    answer = bytearray(24)
    answer[:4] = struct.pack("<I", 24)
    desk.me.ioctl(device, vfio.VFIO_DEVICE_GET_INFO, answer)
    assert struct.unpack_from("<I", answer, 4) == (vfio.VFIO_DEVICE_FLAGS_PCI,)


def hot_reset_info(desk: Desk, device: int, argsz: int) -> bytes:
    answer = bytearray(struct.pack("<III", argsz, 0xFF, 0) + bytes(max(argsz - 12, 0)))
    try:
        desk.me.ioctl(device, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, answer)
    finally:
        hot_reset_info.answer = bytes(answer)  # type: ignore[attr-defined]
    return bytes(answer)


def hot_reset(desk: Desk, device: int, *fds: int, flags: int = 0, argsz: int | None = None) -> None:
    body = struct.pack(f"<{len(fds)}i", *fds)
    head = struct.pack("<III", 12 + len(body) if argsz is None else argsz, flags, len(fds))
    desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, head + body)


def test_a_bus_without_a_bridge_cannot_be_reset(bench: Bench) -> None:
    with refused(bench, errno.ENODEV):
        hot_reset_info(bench, bench.dev, 4096)
    with refused(bench, errno.EINVAL):
        hot_reset(bench, bench.dev)
    with refused(bench, errno.ENODEV):
        hot_reset(bench, bench.dev, bench.grp)


@pytest.fixture
def pair() -> tuple[Desk, int, int]:
    """A desk, group 2, and FIRST open through it."""
    desk = Desk()
    _, group, device = desk.ready(2, FIRST)
    return desk, group, device


def test_who_is_reset_together(pair: tuple[Desk, int, int]) -> None:
    desk, _, device = pair
    full = hot_reset_info(desk, device, 28)
    assert struct.unpack_from("<III", full) == (28, 0, 2)
    found = {struct.unpack_from("<IHBB", full, at) for at in (12, 20)}
    assert found == {(2, 0, 1, 0), (2, 0, 1, 8)}
    with refused(desk, errno.EINVAL):
        hot_reset_info(desk, device, 11)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, NOWHERE)


def test_an_answer_that_does_not_fit_says_how_many(pair: tuple[Desk, int, int]) -> None:
    desk, _, device = pair
    address = desk.buffer()
    desk.me.memory.write(address, struct.pack("<III", 12, 0, 0))
    with refused(desk, errno.ENOSPC):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, address)
    assert struct.unpack("<III", desk.me.memory.read(address, 12)) == (12, 0, 2)


def test_hot_reset(pair: tuple[Desk, int, int]) -> None:
    desk, group, device = pair
    other = desk.device(group, SECOND)
    for fd in (device, other):
        desk.set_config(fd, pci.PCI_COMMAND, 7)
        desk.me.pwrite(fd, b"\5\0\0\0", SCRATCH)
    hot_reset(desk, device, group)
    for fd in (device, other):
        assert desk.me.pread(fd, 4, SCRATCH) == bytes(4)
    desk.me.close(other)
    hot_reset(desk, device, group)


def test_the_errors_of_hot_reset(pair: tuple[Desk, int, int]) -> None:
    desk, group, device = pair
    stranger = desk.group(1)
    for fds, number in (
        ((), errno.EINVAL),
        ((group, group, group), errno.EINVAL),
        ((999,), errno.EBADF),
        ((device,), errno.EINVAL),
        ((desk.me.eventfd(),), errno.EINVAL),
        ((stranger,), errno.EINVAL),
    ):
        with refused(desk, number):
            hot_reset(desk, device, *fds)
    with refused(desk, errno.EINVAL):
        hot_reset(desk, device, group, flags=1)
    with refused(desk, errno.EINVAL):
        hot_reset(desk, device, group, argsz=11)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, NOWHERE)
    desk.machine.unbind(SECOND)
    with refused(desk, errno.EINVAL):
        hot_reset(desk, device, group)


# -- stores on demand ----------------------------------------------------------------------------


def ioeventfd(
    bench: Bench, offset: int, value: int, fd: int, flags: int = 4, argsz: int = 32
) -> None:
    argument = struct.pack("<IIQQiI", argsz, flags, offset, value, fd, 0)
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_IOEVENTFD, argument)


def test_an_eventfd_may_store(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    ioeventfd(bench, SCRATCH, 0x1122334455, fd)
    event.signal()
    assert bench.read(REGISTERS, SCRATCH) == bytes.fromhex("55443322")
    with refused(bench, errno.EEXIST):
        ioeventfd(bench, SCRATCH, 0x22334455, fd)
    bench.write(REGISTERS, SCRATCH, 0)
    bench.set_config(bench.dev, pci.PCI_COMMAND, 0)
    event.signal()
    bench.set_config(bench.dev, pci.PCI_COMMAND, 7)
    assert bench.read(REGISTERS, SCRATCH) == bytes(4)
    ioeventfd(bench, SCRATCH, 0x22334455, -1)
    event.signal()
    assert bench.read(REGISTERS, SCRATCH) == bytes(4)
    with refused(bench, errno.ENODEV):
        ioeventfd(bench, SCRATCH, 0x22334455, -1)


@pytest.mark.parametrize(
    ("offset", "flags", "fd", "argsz", "number"),
    [
        (0, 0, None, 32, errno.EINVAL),
        (0, 3, None, 32, errno.EINVAL),
        (0, 0x14, None, 32, errno.EINVAL),
        (0, 4, -2, 32, errno.EINVAL),
        (0, 4, None, 27, errno.EINVAL),
        (CONFIG, 4, None, 32, errno.EINVAL),
        (ROM << 40, 4, None, 32, errno.EINVAL),
        (20 << 40, 4, None, 32, errno.EINVAL),
        (PAGE - 2, 4, None, 32, errno.EINVAL),
        (TABLE << 40, 4, None, 32, errno.EINVAL),
        (0, 4, 999, 32, errno.EBADF),
    ],
)
def test_the_errors_of_stores_on_demand(
    bench: Bench, offset: int, flags: int, fd: int | None, argsz: int, number: int
) -> None:
    if fd is None:
        fd = bench.me.eventfd()
    with refused(bench, number):
        ioeventfd(bench, offset, 1, fd, flags, argsz)


def test_there_is_a_limit_to_stores_on_demand(bench: Bench) -> None:
    (fd,), (event,) = events(bench, 1)
    for value in range(1000):
        ioeventfd(bench, SCRATCH, value, fd)
    with refused(bench, errno.ENOSPC):
        ioeventfd(bench, SCRATCH, 1000, fd)
    bench.me.close(bench.dev)
    assert not event._watchers


# -- features ------------------------------------------------------------------------------------

GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
LOW, WAKEUP, EXIT = 3, 4, 5


def feature(bench: Bench, flags: int, data: bytes = b"", argsz: int | None = None) -> None:
    head = vfio.HEAD.pack(8 + len(data) if argsz is None else argsz, flags)
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_FEATURE, head + data)


@pytest.mark.parametrize("number", range(14))
def test_features_that_exist(bench: Bench, number: int) -> None:
    if number in (LOW, WAKEUP, EXIT):
        feature(bench, number | PROBE | SET)
        with refused(bench, errno.EINVAL):
            feature(bench, number | PROBE | GET)
        return
    for way in (GET, SET):
        with refused(bench, errno.EINVAL if number == 12 else errno.ENOTTY):
            feature(bench, number | PROBE | way)


def test_the_errors_of_features(bench: Bench) -> None:
    for flags, argsz in (
        (LOW | PROBE | GET, 7),
        (LOW | GET | SET, 8),
        (LOW | 1 << 19, 8),
        (LOW, 8),
        (WAKEUP | SET, 15),
    ):
        with refused(bench, errno.EINVAL):
            feature(bench, flags, argsz=argsz)
    with refused(bench, errno.ENOTTY):
        feature(bench, 0)
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_FEATURE, NOWHERE)


def test_low_power(bench: Bench) -> None:
    feature(bench, LOW | SET)
    with refused(bench, errno.EINVAL):
        feature(bench, LOW | SET)
    assert bench.read(REGISTERS, 0)
    feature(bench, EXIT | SET)
    feature(bench, EXIT | SET)
    fd = bench.me.eventfd()
    for wrong in (struct.pack("<iI", -1, 0), struct.pack("<iI", fd, 1)):
        with refused(bench, errno.EINVAL):
            feature(bench, WAKEUP | SET, wrong)
    with refused(bench, errno.EBADF):
        feature(bench, WAKEUP | SET, struct.pack("<iI", 999, 0))
    feature(bench, WAKEUP | SET, struct.pack("<iI", fd, 0))
    with refused(bench, errno.EINVAL):
        feature(bench, WAKEUP | SET, struct.pack("<iI", fd, 0))


# -- the file ------------------------------------------------------------------------------------


def test_unknown_commands(bench: Bench) -> None:
    for command in (UNKNOWN, vfio.VFIO_GROUP_GET_STATUS, vfio.VFIO_DEVICE_QUERY_GFX_PLANE):
        with refused(bench, errno.ENOTTY):
            bench.me.ioctl(bench.dev, command, NOWHERE)


def test_the_file_shows_the_devices_memory(bench: Bench) -> None:
    file = bench.me.file(bench.dev)
    assert isinstance(file, DeviceFile)
    assert (file.name, file.kind, file.region_memory) == (
        "anon_inode:[vfio-device]",
        "device",
        ALONE,
    )
    assert not file.structural


def test_a_device_that_was_taken_away(bench: Bench) -> None:
    bench.machine.unbind(ALONE, revoke=True)
    for call in (
        lambda: bench.read(REGISTERS, 0),
        lambda: bench.write(REGISTERS, 0, 0),
        lambda: bench.me.mmap(bench.dev, PAGE, MEMORY << 40),
        lambda: bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_RESET),
    ):
        with refused(bench, errno.ENODEV):
            call()
    bench.me.close(bench.dev)


def test_a_file_that_is_not_usable_yet(bench: Bench) -> None:
    file = DeviceFile(bench.framework, bench.machine.record(ALONE), None)
    fd = bench.me.install(file, True)
    for call in (
        lambda: bench.me.pread(fd, 4, 0),
        lambda: bench.me.pwrite(fd, b"x", 0),
        lambda: bench.me.mmap(fd, PAGE, MEMORY << 40),
        lambda: bench.me.ioctl(fd, vfio.VFIO_DEVICE_GET_INFO, NOWHERE),
        lambda: bench.me.ioctl(fd, UNKNOWN),
    ):
        with refused(bench, errno.EINVAL):
            call()
    bench.me.close(fd)


def test_what_a_program_leaves_behind_goes(bench: Bench) -> None:
    fds, found = events(bench, 3)
    bench.connect(REQ, fds[0])
    bench.connect(MSIX, fds[1])
    feature(bench, WAKEUP | SET, struct.pack("<iI", fds[2], 0))
    bench.me.close(bench.dev)
    device = bench.device(bench.grp, ALONE)
    bench.set_config(device, pci.PCI_COMMAND, 7)
    bench.dev = device
    assert bench.mode is Mode.NONE
    with refused(bench, errno.EINVAL):
        bench.irqs(REQ, NONE | TRIGGER)
    feature(bench, LOW | SET)
    assert counts(found) == [0, 0, 0]


def test_regions_that_are_only_described() -> None:
    assert Region(0, 0).areas == ()
