"""The device file of the 2011 ABI, ioctl by ioctl: arguments, answers, every error in its order.

Programs are processes of the local door. ``refused`` asserts the errno that the program sees and that
nothing changed, descriptors and locked memory included.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from support.puppet import machine_of
from support.rfc2011 import (
    NOWHERE,
    UNKNOWN,
    Desk,
    at_end_of_memory,
)
from support.world import (
    INTX,
    MSI,
    PAGE,
    RAM,
    REGISTERS,
    ROM,
    device_fd,
    refused,
)
from uvfio.core.bus import DeviceKind
from uvfio.core.events import FrameworkEvent, Unanswered
from uvfio.doors.local import LocalEvent, Process
from uvfio.errors import Busy, InvalidArgument
from uvfio.fops.file import File
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.fops.wire import REGISTERS_STRIDE
from uvfio.machine.clock import ManualClock
from uvfio.machine.machine import Machine
from uvfio.uapi import rfc


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- device file: reads, writes, mappings --------------------------------------------------------


@pytest.fixture
def device(desk: Desk) -> int:
    return device_fd(desk.me, desk.g1, "a")


def test_reads_and_writes_go_to_the_region_of_the_offset(desk: Desk, device: int) -> None:
    assert desk.me.pwrite(device, b"word", REGISTERS << 40 | 0x10) == 4
    assert desk.me.pread(device, 4, REGISTERS << 40 | 0x10) == b"word"
    assert desk.me.pread(device, 4, RAM << 40 | 0x10) == bytes(4)


@pytest.mark.parametrize("offset", [2 << 40, 8 << 40, 1 << 62, REGISTERS << 40 | 0x101])
def test_reads_and_writes_elsewhere_are_einval(desk: Desk, device: int, offset: int) -> None:
    with refused(desk, errno.EINVAL):
        desk.me.pread(device, 4, offset)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(device, b"word", offset)


def test_a_mapping_is_the_devices_memory(desk: Desk, device: int) -> None:
    area = desk.me.mmap(device, PAGE, RAM << 40 | PAGE)
    area[:4] = b"word"
    assert desk.bounds["a"].memory[RAM][PAGE : PAGE + 4] == b"word"


@pytest.mark.parametrize(
    ("offset", "size", "shared"),
    [
        (RAM << 40, PAGE, False),
        (REGISTERS << 40, PAGE, True),
        (ROM << 40, PAGE, True),
        (RAM << 40, 3 * PAGE, True),
    ],
)
def test_mappings_that_may_not_be_are_einval(
    desk: Desk, device: int, offset: int, size: int, shared: bool
) -> None:
    with refused(desk, errno.EINVAL):
        desk.me.mmap(device, size, offset, shared=shared)


def test_a_device_file_names_the_device_whose_memory_it_maps(desk: Desk, device: int) -> None:
    file = desk.me.file(device)
    assert isinstance(file, DeviceFile)
    assert (file.name, file.region_memory) == ("anon_inode:[vfio-device]", "a")


def test_d07_unknown_device_ioctls_are_enotty(desk: Desk, device: int) -> None:
    for request in (UNKNOWN, rfc.VFIO_GROUP_GET_FLAGS, rfc.VFIO_IOMMU_MAP_DMA):
        with refused(desk, errno.ENOTTY):
            desk.me.ioctl(device, request)


# -- device file: information --------------------------------------------------------------------


def answer(desk: Desk, device: int, request: int, size: int) -> int:
    buffer = bytearray(size)
    desk.me.ioctl(device, request, buffer)
    return int.from_bytes(buffer, "little")


@pytest.mark.parametrize(
    ("kind", "resettable", "flags"),
    [
        (DeviceKind.PCI, True, 5),
        (DeviceKind.PCI, False, 1),
        (DeviceKind.PLATFORM, True, 6),
        (DeviceKind.PLATFORM, False, 2),
    ],
)
def test_device_flags(
    desk: Desk, device: int, kind: DeviceKind, resettable: bool, flags: int
) -> None:
    desk.bounds["a"].kind, desk.bounds["a"].resettable = kind, resettable
    assert answer(desk, device, rfc.VFIO_DEVICE_GET_FLAGS, 8) == flags


def test_numbers_of_regions_and_interrupts(desk: Desk, device: int) -> None:
    assert answer(desk, device, rfc.VFIO_DEVICE_GET_NUM_REGIONS, 4) == 8
    assert answer(desk, device, rfc.VFIO_DEVICE_GET_NUM_IRQS, 4) == 3


@pytest.mark.parametrize(
    "request_",
    [
        rfc.VFIO_DEVICE_GET_FLAGS,
        rfc.VFIO_DEVICE_GET_NUM_REGIONS,
        rfc.VFIO_DEVICE_GET_NUM_IRQS,
        rfc.VFIO_DEVICE_GET_REGION_INFO,
        rfc.VFIO_DEVICE_GET_IRQ_INFO,
        rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS,
        rfc.VFIO_DEVICE_UNMASK_IRQ,
        rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD,
    ],
)
def test_every_argument_that_leads_nowhere_is_efault(
    desk: Desk, device: int, request_: int
) -> None:
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(device, request_, NOWHERE)


@pytest.mark.parametrize(
    ("request_", "argument"),
    [
        (rfc.VFIO_DEVICE_GET_FLAGS, bytes(8)),
        (rfc.VFIO_DEVICE_GET_NUM_REGIONS, bytes(4)),
        (rfc.VFIO_DEVICE_GET_NUM_IRQS, bytes(4)),
        (rfc.VFIO_DEVICE_GET_REGION_INFO, rfc.REGION_INFO.pack(40, 0, 0, 0, 0, 0)),
        (rfc.VFIO_DEVICE_GET_IRQ_INFO, rfc.IRQ_INFO.pack(16, 0, 0, 0)),
    ],
)
def test_every_answer_needs_a_writable_place(
    desk: Desk, device: int, request_: int, argument: bytes
) -> None:
    address = desk.me.memory.place(memoryview(argument), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(device, request_, address)


def region_info(desk: Desk, device: int, index: int, length: int = 40) -> tuple[int, ...]:
    """The struct afterwards, junk before where the kernel has to write."""
    buffer = bytearray(b"\xee" * 48)
    buffer[:8] = length.to_bytes(4, "little") + index.to_bytes(4, "little")
    desk.me.ioctl(device, rfc.VFIO_DEVICE_GET_REGION_INFO, buffer)
    assert buffer[length:] == b"\xee" * (48 - length)
    return rfc.REGION_INFO.unpack(bytes(buffer[:length]).ljust(40, b"\0"))


@pytest.mark.parametrize(
    ("index", "size", "flags"),
    [
        (REGISTERS, 0x100, 0),
        (RAM, 0x2000, rfc.VFIO_REGION_INFO_FLAG_MMAP),
        (2, 0, 0),
        (ROM, 0x800, rfc.VFIO_REGION_INFO_FLAG_RO),
        (7, 0x100, 0),
    ],
)
@pytest.mark.parametrize("length", [32, 36, 40])
def test_region_info(
    desk: Desk, device: int, index: int, size: int, flags: int, length: int
) -> None:
    assert region_info(desk, device, index, length) == (
        length,
        index,
        size,
        index << 40,
        flags,
        0,
    )


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        pytest.param(rfc.REGION_INFO.pack(41, 0, 0, 0, 0, 0), errno.EINVAL, id="len too big"),
        pytest.param(rfc.REGION_INFO.pack(31, 9, 0, 0, 0, 0), errno.EINVAL, id="len too small"),
        pytest.param(rfc.REGION_INFO.pack(0, 0, 0, 0, 0, 0), errno.EINVAL, id="no len"),
        pytest.param(rfc.REGION_INFO.pack(40, 8, 0, 0, 0, 0), errno.EINVAL, id="no such region"),
        pytest.param(rfc.REGION_INFO.pack(40, 2**32 - 1, 0, 0, 0, 0), errno.EINVAL, id="-1"),
    ],
)
def test_region_info_checks_len_then_index(
    desk: Desk, device: int, argument: bytes, number: int
) -> None:
    with refused(desk, number):
        desk.me.ioctl(device, rfc.VFIO_DEVICE_GET_REGION_INFO, argument)


@pytest.mark.parametrize(
    ("request_", "length", "size", "number"),
    [
        (rfc.VFIO_DEVICE_GET_REGION_INFO, 41, 4, errno.EINVAL),
        (rfc.VFIO_DEVICE_GET_REGION_INFO, 40, 4, errno.EFAULT),
        (rfc.VFIO_DEVICE_GET_REGION_INFO, 40, 36, errno.EFAULT),
        (rfc.VFIO_DEVICE_GET_IRQ_INFO, 15, 4, errno.EINVAL),
        (rfc.VFIO_DEVICE_GET_IRQ_INFO, 16, 4, errno.EFAULT),
    ],
)
def test_the_rest_of_a_struct_is_read_after_its_len_was_checked(
    desk: Desk, device: int, request_: int, length: int, size: int, number: int
) -> None:
    address = at_end_of_memory(desk, length.to_bytes(4, "little").ljust(size, b"\xff"))
    with refused(desk, number):
        desk.me.ioctl(device, request_, address)


@pytest.mark.parametrize(
    ("index", "count", "flags"), [(0, 1, rfc.VFIO_IRQ_INFO_FLAG_LEVEL), (1, 4, 0), (2, 0, 0)]
)
def test_irq_info(desk: Desk, device: int, index: int, count: int, flags: int) -> None:
    buffer = bytearray(rfc.IRQ_INFO.pack(16, index, 0xEE, 0xEE))
    desk.me.ioctl(device, rfc.VFIO_DEVICE_GET_IRQ_INFO, buffer)
    assert rfc.IRQ_INFO.unpack(buffer) == (16, index, count, flags)


@pytest.mark.parametrize(("length", "index"), [(15, 0), (17, 0), (0, 9), (16, 3), (16, 2**32 - 1)])
def test_irq_info_checks_len_then_index(desk: Desk, device: int, length: int, index: int) -> None:
    with refused(desk, errno.EINVAL):
        argument = rfc.IRQ_INFO.pack(length, index, 0, 0)
        desk.me.ioctl(device, rfc.VFIO_DEVICE_GET_IRQ_INFO, argument)


# -- device file: interrupts ---------------------------------------------------------------------


def ints(*values: int) -> bytes:
    return b"".join(rfc.S32.pack(value) for value in values)


def set_irqs(desk: Desk, device: int, index: int, *fds: int) -> None:
    argument = ints(index, len(fds), *fds)
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, argument)


def test_set_irq_eventfds_binds_descriptor_i_to_vector_i(desk: Desk, device: int) -> None:
    fds = [desk.me.eventfd() for _ in range(3)]
    set_irqs(desk, device, MSI, *fds)
    for vector, event in enumerate(desk.bounds["a"].events[MSI]):
        for _ in range(vector):
            event.signal()
    assert [desk.me.event(fd).take() for fd in fds] == [0, 1, 2]


def test_d29_the_argument_is_longer_than_its_number_says(desk: Desk, device: int) -> None:
    """The request encodes one int; {index, count, fd} is read nevertheless, and no more than that."""
    assert rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS >> 16 & 0x3FFF == 4
    address = at_end_of_memory(desk, ints(INTX, 1, desk.me.eventfd()))
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, address)
    assert len(desk.bounds["a"].events[INTX]) == 1


def test_a_count_of_0_unbinds_and_reads_no_descriptor(desk: Desk, device: int) -> None:
    set_irqs(desk, device, INTX, desk.me.eventfd())
    address = at_end_of_memory(desk, ints(INTX, 0))
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, address)
    assert desk.bounds["a"].events[INTX] == []


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        pytest.param(lambda d: at_end_of_memory(d, ints(0)), errno.EFAULT, id="no count"),
        pytest.param(lambda d: at_end_of_memory(d, ints(9, 1)), errno.EINVAL, id="no such index"),
        pytest.param(lambda d: at_end_of_memory(d, ints(-1, 1)), errno.EINVAL, id="index -1"),
        pytest.param(lambda d: at_end_of_memory(d, ints(0, 2)), errno.EINVAL, id="too many"),
        pytest.param(lambda d: at_end_of_memory(d, ints(0, -1)), errno.EINVAL, id="count -1"),
        pytest.param(lambda d: at_end_of_memory(d, ints(2, 1)), errno.EINVAL, id="not there"),
        pytest.param(lambda d: at_end_of_memory(d, ints(0, 1)), errno.EFAULT, id="no fds"),
        pytest.param(
            lambda d: at_end_of_memory(d, ints(1, 2, -1)), errno.EFAULT, id="half the fds"
        ),
        pytest.param(lambda d: ints(0, 1, -1), errno.EINVAL, id="fd -1"),
        pytest.param(lambda d: ints(0, 1, 99), errno.EBADF, id="closed fd"),
        pytest.param(lambda d: ints(0, 1, d.g1), errno.EINVAL, id="no eventfd"),
        pytest.param(lambda d: ints(1, 2, d.me.eventfd(), 99), errno.EBADF, id="second fd"),
    ],
)
def test_set_irq_eventfds_checks_in_order(
    desk: Desk, device: int, argument: Callable[[Desk], int | bytes], number: int
) -> None:
    value = argument(desk)
    with refused(desk, number):
        desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, value)


class CountedEvent(LocalEvent):
    """An eventfd that knows how often a reference to it was given up."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def counted(desk: Desk) -> tuple[int, CountedEvent]:
    event = CountedEvent()
    return desk.me.install(event, cloexec=True), event


def test_references_are_given_up_when_a_later_descriptor_is_bad(desk: Desk, device: int) -> None:
    fd, event = counted(desk)
    with refused(desk, errno.EBADF):
        set_irqs(desk, device, MSI, fd, 99)
    assert event.closed == 1


def test_references_are_given_up_when_the_driver_refuses(desk: Desk, device: int) -> None:
    fd, event = counted(desk)
    desk.bounds["a"].errors["set_irqs"] = InvalidArgument("no")
    with refused(desk, errno.EINVAL):
        set_irqs(desk, device, MSI, fd, fd)
    assert event.closed == 2
    desk.bounds["a"].errors["set_unmask_event"] = Busy("one is set")
    with refused(desk, errno.EBUSY):
        argument = ints(INTX, fd)
        desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, argument)
    assert event.closed == 3


def test_references_are_the_drivers_after_success(desk: Desk, device: int) -> None:
    fd, event = counted(desk)
    set_irqs(desk, device, MSI, fd)
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, ints(INTX, fd))
    assert event.closed == 0


def test_d32c_unmask_irq_looks_at_the_index(desk: Desk, device: int) -> None:
    desk.me.ioctl(device, rfc.VFIO_DEVICE_UNMASK_IRQ, ints(INTX))
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, rfc.VFIO_DEVICE_UNMASK_IRQ, ints(MSI))


def test_d32d_set_unmask_irq_eventfd_takes_index_and_descriptor(desk: Desk, device: int) -> None:
    fd = desk.me.eventfd()
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, ints(INTX, fd))
    assert desk.bounds["a"].unmask_event is desk.me.file(fd)
    desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, ints(INTX, -1))
    assert desk.bounds["a"].unmask_event is None


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        pytest.param(lambda d: at_end_of_memory(d, ints(0)), errno.EFAULT, id="one int only"),
        pytest.param(lambda d: ints(0, 99), errno.EBADF, id="closed fd"),
        pytest.param(lambda d: ints(1, 99), errno.EBADF, id="descriptor before index"),
        pytest.param(lambda d: ints(0, d.g1), errno.EINVAL, id="no eventfd"),
        pytest.param(lambda d: ints(1, d.me.eventfd()), errno.EINVAL, id="not maskable"),
        pytest.param(lambda d: ints(0, -1), errno.ENODEV, id="none is set"),
    ],
)
def test_set_unmask_irq_eventfd_checks(
    desk: Desk, device: int, argument: Callable[[Desk], int | bytes], number: int
) -> None:
    value = argument(desk)
    with refused(desk, number):
        desk.me.ioctl(device, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, value)


# -- device file: reset, device tree, revocation --------------------------------------------------


def test_reset_resets(desk: Desk, device: int) -> None:
    desk.me.ioctl(device, rfc.VFIO_DEVICE_RESET)
    assert desk.bounds["a"].calls[-1] == "reset"


def test_reset_without_support_is_einval(desk: Desk, device: int) -> None:
    desk.bounds["a"].resettable = False
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, rfc.VFIO_DEVICE_RESET)


@pytest.mark.parametrize(
    "request_",
    [
        rfc.VFIO_DEVICE_GET_DTPATH,
        rfc.VFIO_DEVICE_GET_DTPATH_32,
        rfc.VFIO_DEVICE_GET_DTINDEX,
    ],
)
def test_device_tree_questions_to_a_pci_device_are_enotty(
    desk: Desk, device: int, request_: int
) -> None:
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(device, request_, bytes(24))


USES: dict[str, Callable[[Desk, int], object]] = {
    "read": lambda d, fd: d.me.pread(fd, 4, 0),
    "write": lambda d, fd: d.me.pwrite(fd, b"word", 0),
    "mmap": lambda d, fd: d.me.mmap(fd, PAGE, RAM << 40),
    "region": lambda d, fd: region_info(d, fd, 0),
    "irq": lambda d, fd: d.me.ioctl(
        fd, rfc.VFIO_DEVICE_GET_IRQ_INFO, rfc.IRQ_INFO.pack(16, 0, 0, 0)
    ),
    "set_irqs": lambda d, fd: set_irqs(d, fd, INTX),
    "unmask_irq": lambda d, fd: d.me.ioctl(fd, rfc.VFIO_DEVICE_UNMASK_IRQ, ints(0)),
    "set_unmask_event": lambda d, fd: d.me.ioctl(
        fd, rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD, ints(0, d.me.eventfd())
    ),
    "reset": lambda d, fd: d.me.ioctl(fd, rfc.VFIO_DEVICE_RESET),
}
INFORMATION = (
    rfc.VFIO_DEVICE_GET_FLAGS,
    rfc.VFIO_DEVICE_GET_NUM_REGIONS,
    rfc.VFIO_DEVICE_GET_NUM_IRQS,
)


@pytest.mark.parametrize("use", USES)
def test_review_15_a_revoked_device_file_answers_enodev(desk: Desk, device: int, use: str) -> None:
    desk.unbind("a", revoke=True)
    desk.bounds["a"].calls.clear()
    with pytest.raises(OSError) as caught:
        USES[use](desk, device)
    assert caught.value.errno == errno.ENODEV
    assert desk.bounds["a"].calls == []


@pytest.mark.parametrize("request_", INFORMATION)
def test_a_revoked_device_file_gives_no_information(desk: Desk, device: int, request_: int) -> None:
    desk.unbind("a", revoke=True)
    with refused(desk, errno.ENODEV):
        desk.me.ioctl(device, request_, bytearray(8))


@pytest.mark.parametrize("use", USES)
def test_d24_every_use_of_a_device_holds_its_lock(desk: Desk, device: int, use: str) -> None:
    """So neither a close nor a revoke can quiesce the device in the middle of it."""
    held: dict[str, bool] = {}
    lock = desk.record("a").lock

    def on_call(method: str) -> None:
        def try_lock() -> None:
            held[method] = not lock.acquire(blocking=False)
            if not held[method]:
                lock.release()

        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()

    desk.bounds["a"].on_call = on_call
    USES[use](desk, device)
    assert held[use]
    assert all(held.values())


def test_release_happens_once(desk: Desk, device: int) -> None:
    file = desk.me.file(device)
    assert isinstance(file, File)
    desk.me.close(device)
    file.release()
    assert desk.bounds["a"].puts == 1


# -- accesses without an answer ------------------------------------------------------------------


class Edu:
    """A process of 2011 with an open edu, and what the observer was told."""

    def __init__(self, model: str = "edu") -> None:
        self.told: list[Unanswered] = []
        machine = Machine(
            machine_of(f"{model}@0000:06:00.0,group=7"), clock=ManualClock(), observer=self._observe
        )
        self.me = Process(machine)
        group = self.me.open("/dev/vfio/7")
        name = bytearray(b"0000:06:00.0" + bytes(1))
        self.device = self.me.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, name)

    def _observe(self, event: FrameworkEvent) -> None:
        if isinstance(event, Unanswered):
            self.told.append(event)

    def command(self, value: int) -> None:
        self.me.pwrite(self.device, value.to_bytes(2, "little"), (7 << 40) + 4)


def test_registers_read_as_ones_while_memory_decoding_is_off() -> None:
    edu = Edu()
    known = edu.me.pread(edu.device, 4, 0)
    assert known == bytes.fromhex("ed000001")
    edu.command(4)
    assert edu.me.pread(edu.device, 4, 0) == b"\xff" * 4
    assert edu.me.pread(edu.device, 8, (1 << 20) - 4) == b"\xff" * 4
    assert edu.me.pwrite(edu.device, bytes(4), 4) == 4
    reason = "0000:06:00.0: memory decoding is off"
    assert edu.told == [
        Unanswered("0000:06:00.0", 0, 0, 4, False, reason),
        Unanswered("0000:06:00.0", 0, (1 << 20) - 4, 4, False, reason),
        Unanswered("0000:06:00.0", 0, 4, 4, True, reason),
    ]
    edu.command(2)
    assert edu.me.pread(edu.device, 4, 0) == known


def test_an_access_beyond_the_end_of_a_region_says_why_it_is_short() -> None:
    edu, end = Edu(), 1 << 20
    assert edu.me.pread(edu.device, 4, end) == b""
    assert len(edu.me.pread(edu.device, 8, end - 4)) == 4
    assert edu.me.pwrite(edu.device, bytes(8), end - 4) == 4
    assert edu.me.pread(edu.device, 0, end) == b""
    reason = "region 0 ends at 0x100000"
    assert edu.told == [
        Unanswered("0000:06:00.0", 0, end, 4, False, reason),
        Unanswered("0000:06:00.0", 0, end, 4, False, reason),
        Unanswered("0000:06:00.0", 0, end, 4, True, reason),
    ]


# -- pieces --------------------------------------------------------------------------------------


def test_registers_are_moved_in_smaller_pieces_than_memory() -> None:
    edu = Edu("exerciser")
    file = edu.me.file(edu.device)
    assert isinstance(file, DeviceFile)
    assert file.stride(0) == REGISTERS_STRIDE
    assert file.stride(2 << 40) == file.stride(99 << 40) == 1 << 20
