"""Features of migration and the data file, by system calls: arguments, errors, two devices of a machine."""

from __future__ import annotations

import errno
import struct

import pytest

from support.mainline import CONFIG, NOWHERE, PAGE, Desk, refused
from support.world import name_of
from uvfio.core.structure.device import OpenDevice
from uvfio.core.translation.dma_log import COARSEST
from uvfio.doors.local import Process
from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.machine.machine import Machine
from uvfio.uapi import pci, vfio
from uvfio.uapi import vfio_feature as features

GET, SET, PROBE = (
    features.VFIO_DEVICE_FEATURE_GET,
    features.VFIO_DEVICE_FEATURE_SET,
    features.VFIO_DEVICE_FEATURE_PROBE,
)
MIGRATION = features.VFIO_DEVICE_FEATURE_MIGRATION
STATE = features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
SIZE = features.VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
START = features.VFIO_DEVICE_FEATURE_DMA_LOGGING_START
STOP_LOG = features.VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
REPORT = features.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
INFO_V2 = features.VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = range(8)
FIRST, SECOND, EDU, PLAIN = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:04:00.0"
REGISTERS, MEMORY = 0, 2 << 40
SCRATCH, RAISE = 0x10, 0x40
IOVA = 0x100000


class Bench(Desk):
    """Two exercisers and an edu that migrate, and one that does not, in one container."""

    def __init__(self) -> None:
        self.machine = Machine(
            devices=[
                f"exerciser@{FIRST},group=1,migration=true,dma_delay=1",
                f"exerciser@{SECOND},group=2,migration=true",
                f"edu@{EDU},group=3,migration=true",
                f"exerciser@{PLAIN},group=4",
            ]
        )
        self.framework = self.machine.framework
        self.me = Process(self.machine, name="me", abi="mainline")
        self.processes = [self.me]
        groups = [self.group(number) for number in (1, 2, 3, 4)]
        self.box = self.container(*groups)
        names = (FIRST, SECOND, EDU, PLAIN)
        self.dev, self.other, self.edu, self.plain = (
            self.device(group, name) for group, name in zip(groups, names, strict=True)
        )
        for fd in (self.dev, self.other, self.edu, self.plain):
            self.set_config(fd, pci.PCI_COMMAND, 7)
        self.ram = self.buffer(16 * PAGE)
        self.map(self.box, IOVA, 16 * PAGE, self.ram)

    def feature(self, flags: int, data: bytes = b"", fd: int = 0, argsz: int = 0) -> bytes:
        """What is in the data afterwards."""
        argument = bytearray(vfio.HEAD.pack(argsz or 8 + len(data), flags) + data)
        self.me.ioctl(fd or self.dev, vfio.VFIO_DEVICE_FEATURE, argument)
        return bytes(argument[8:])

    def state(self, fd: int = 0) -> int:
        state, data_fd = struct.unpack("<Ii", self.feature(GET | STATE, b"\xff" * 8, fd))
        assert data_fd == -1
        return int(state)

    def go(self, state: int, fd: int = 0) -> int:
        """The data file's descriptor, or -1."""
        answer = self.feature(SET | STATE, struct.pack("<Ii", state, 99), fd)
        assert struct.unpack("<Ii", answer)[0] == state
        return int(struct.unpack("<Ii", answer)[1])

    def drain(self, fd: int, piece: int = 1 << 16) -> bytes:
        got = b""
        while data := self.me.read(fd, piece):
            got += data
        return got

    def saved(self, fd: int = 0) -> bytes:
        data = self.go(STOP_COPY, fd)
        stream = self.drain(data)
        self.go(RUNNING, fd)
        self.me.close(data)
        return stream

    def write(self, offset: int, value: int, size: int = 4, fd: int = 0) -> None:
        self.me.pwrite(fd or self.dev, value.to_bytes(size, "little"), offset)

    def read(self, offset: int, size: int = 4, fd: int = 0) -> int:
        return int.from_bytes(self.me.pread(fd or self.dev, size, offset), "little")

    def copy(self, page: int, length: int = PAGE) -> None:
        """DMA to a page of RAM."""
        for at, value, size in (
            (0x80, IOVA + page * PAGE, 8),
            (0x90, length, 4),
            (0x94, 3, 4),
        ):
            self.write(at, value, size)
        self.machine.clock.advance(1.0)  # type: ignore[attr-defined]

    def start(self, *ranges: tuple[int, int], page: int = PAGE, count: int | None = None) -> None:
        table = b"".join(struct.pack("<QQ", *area) for area in ranges)
        at = self.buffer(len(table))
        self.me.memory.write(at, table)
        number = len(ranges) if count is None else count
        self.feature(SET | START, struct.pack("<QIIQ", page, number, 0, at))

    def report(self, iova: int = IOVA, length: int = 16 * PAGE, page: int = PAGE) -> int:
        at = self.buffer()
        self.feature(GET | REPORT, struct.pack("<QQQQ", iova, length, page, at))
        return int.from_bytes(self.me.memory.read(at, 512), "little")

    def snapshot(self) -> object:
        states = []
        for name in (FIRST, SECOND, EDU):
            data = self.bound(name)
            assert data.migration is not None
            assert data.dma_logger is not None
            states.append((data.migration.state, data.migration.session, data.dma_logger.log))
        return super().snapshot(), states


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- what there is ---------------------------------------------------------------------------------


def test_who_does_not_migrate_has_none_of_it(bench: Bench) -> None:
    for feature, way in ((MIGRATION, GET), (STATE, GET), (STATE, SET), (SIZE, GET)):
        with refused(bench, errno.ENOTTY):
            bench.feature(feature | way | PROBE, fd=bench.plain)
    for feature, way in ((START, SET), (STOP_LOG, SET), (REPORT, GET)):
        with refused(bench, errno.ENOTTY):
            bench.feature(feature | way | PROBE, fd=bench.plain)
    with refused(bench, errno.EINVAL):
        bench.feature(INFO_V2 | SET | PROBE, fd=bench.plain)


@pytest.mark.parametrize("number", features.MIGRATION_FEATURES)
def test_probes(bench: Bench, number: int) -> None:
    known = features.FEATURES[number]
    for way, possible in ((GET, known.get), (SET, known.set), (GET | SET, known.get and known.set)):
        if possible:
            bench.feature(number | way | PROBE)
        else:
            with refused(bench, errno.EINVAL):
                bench.feature(number | way | PROBE)
    with refused(bench, errno.EINVAL):
        bench.feature(number)
    if known.minsz:
        way = GET if known.get else SET
        with refused(bench, errno.EINVAL):
            bench.feature(number | way, bytes(known.minsz), argsz=8 + known.minsz - 1)
        with refused(bench, errno.EFAULT):
            at = bench.buffer()
            bench.me.memory.write(at + PAGE - 8, vfio.HEAD.pack(8 + known.minsz, number | way))
            bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_FEATURE, at + PAGE - 8)


def test_flags_and_size(bench: Bench) -> None:
    assert bench.feature(GET | MIGRATION, bytes(8)) == struct.pack("<Q", 7)
    (size,) = struct.unpack("<Q", bench.feature(GET | SIZE, bytes(8)))
    assert size > 1 << 20
    bench.feature(SET | INFO_V2)


def test_states(bench: Bench) -> None:
    assert bench.state() == RUNNING
    for state in (RUNNING_P2P, STOP, RUNNING, RUNNING):
        assert bench.go(state) == -1
        assert bench.state() == state
    assert bench.state(bench.other) == RUNNING


@pytest.mark.parametrize("state", [ERROR, 8, 0xFFFFFFFF])
def test_states_that_nobody_can_ask_for(bench: Bench, state: int) -> None:
    with refused(bench, errno.EINVAL):
        bench.go(state)


def test_an_answer_that_cannot_be_given_changes_nothing(bench: Bench) -> None:
    at = bench.buffer(writable=False)
    bench.me.memory._areas[at][0][:16] = struct.pack("<IIIi", 16, SET | STATE, STOP_COPY, 0)
    with refused(bench, errno.EFAULT):
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_FEATURE, at)


def test_no_descriptor_is_left(bench: Bench) -> None:
    """As in the kernel: the state is reached, the transfer is lost."""
    bench.me.max_files = len(bench.me._fds) + 3
    with pytest.raises(OSError) as error:
        bench.go(STOP_COPY)
    assert error.value.errno == errno.EMFILE
    assert bench.state() == STOP_COPY
    bench.me.max_files += 1
    bench.go(STOP)
    assert bench.drain(bench.go(STOP_COPY))


# -- moving ----------------------------------------------------------------------------------------


def test_a_device_moves(bench: Bench) -> None:
    bench.write(SCRATCH, 0xABCD)
    bench.write(MEMORY + 12345, 0x77, 1)
    bench.set_config(bench.dev, pci.PCI_INTERRUPT_LINE, 9, 1)
    bench.set_config(bench.dev, pci.PCI_BASE_ADDRESS_0, 0xE0000000, 4)
    physical = [bench.machine.function(FIRST).config_read(0x10, 4)]
    physical.append(bench.machine.function(SECOND).config_read(0x10, 4))
    stream = bench.saved()
    fd = bench.go(RESUMING, bench.other)
    for at in range(0, len(stream), 1000):
        assert bench.me.write(fd, stream[at : at + 1000]) == len(stream[at : at + 1000])
    assert bench.go(RUNNING, bench.other) == -1
    assert bench.read(SCRATCH, fd=bench.other) == 0xABCD
    assert bench.read(MEMORY + 12345, 1, bench.other) == 0x77
    same = [bench.me.pread(fd, 4096, CONFIG) for fd in (bench.dev, bench.other)]
    assert same[0] == same[1]
    kept = [bench.machine.function(name).config_read(0x10, 4) for name in (FIRST, SECOND)]
    assert kept == physical, "the host's addresses stay where they are"


def test_interrupts_are_those_of_the_other_side(bench: Bench) -> None:
    """An INTx that is up arrives there, at the event that was set there."""
    mine, theirs = bench.event(), bench.event()
    for dev, (fd, _) in ((bench.dev, mine), (bench.other, theirs)):
        bench.set_irqs(dev, 0, 4 | 32, data=struct.pack("<i", fd))
    bench.write(0x44, 1)
    assert mine[1].take() == 1
    stream = bench.saved()
    data = bench.go(RESUMING, bench.other)
    bench.me.write(data, stream)
    bench.go(STOP, bench.other)
    assert theirs[1].take() == 0
    bench.go(RUNNING, bench.other)
    assert theirs[1].take() == 1
    assert mine[1].take() == 0, "it was masked, and still is"


def test_message_interrupts_work_after_a_move(bench: Bench) -> None:
    events = [bench.event() for _ in range(2)]
    stream = bench.saved()
    for index in (1, 2):
        fds = struct.pack("<2i", *(fd for fd, _ in events))
        bench.set_irqs(bench.other, index, 4 | 32, count=2, data=fds)
        data = bench.go(RESUMING, bench.other)
        bench.me.write(data, stream)
        bench.go(RUNNING, bench.other)
        bench.write(RAISE, 1, fd=bench.other)
        assert [event.take() for _, event in events] == [0, 1]
        bench.set_irqs(bench.other, index, 1 | 32, count=0)


def test_another_model(bench: Bench) -> None:
    stream = bench.saved()
    fd = bench.go(RESUMING, bench.edu)
    with pytest.raises(OSError) as error:
        bench.me.write(fd, stream)
    assert error.value.errno == errno.EINVAL
    assert bench.state(bench.edu) == RESUMING
    with pytest.raises(OSError) as error:
        bench.go(RUNNING, bench.edu)
    assert name_of(error.value.errno) == "EINVAL"
    assert bench.state(bench.edu) == ERROR
    with refused(bench, errno.EINVAL):
        bench.go(RUNNING, bench.edu)


@pytest.mark.parametrize("way", ["ioctl", "flr"])
def test_resets(bench: Bench, way: str) -> None:
    fd = bench.go(RESUMING)
    with pytest.raises(OSError):
        bench.go(STOP)
    assert bench.state() == ERROR
    if way == "ioctl":
        bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_RESET)
    else:
        at = bench.config(bench.dev, pci.PCI_CAPABILITY_LIST, 1)
        while bench.config(bench.dev, at, 1) != pci.PCI_CAP_ID_EXP:
            at = bench.config(bench.dev, at + 1, 1)
        bench.set_config(bench.dev, at + pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_BCR_FLR)
    assert bench.state() == RUNNING
    bench.set_config(bench.dev, pci.PCI_COMMAND, 7)
    bench.write(SCRATCH, 1)
    assert bench.read(SCRATCH) == 1
    with pytest.raises(OSError) as error:
        bench.me.write(fd, b"x")
    assert error.value.errno == errno.ENODEV


# -- the data file ---------------------------------------------------------------------------------


def test_one_direction_and_one_position(bench: Bench) -> None:
    reading, writing = bench.go(STOP_COPY), bench.go(RESUMING, bench.other)
    for call, number in (
        (lambda: bench.me.pread(reading, 1, 0), errno.ESPIPE),
        (lambda: bench.me.pwrite(reading, b"x", 0), errno.ESPIPE),
        (lambda: bench.me.write(reading, b"x"), errno.EBADF),
        (lambda: bench.me.read(writing, 1), errno.EBADF),
        (lambda: bench.me.mmap(reading, PAGE, 0), errno.ENODEV),
        (lambda: bench.me.ioctl(writing, vfio.VFIO_MIG_GET_PRECOPY_INFO), errno.ENOTTY),
        (lambda: bench.me.ioctl(reading, vfio.VFIO_DEVICE_RESET), errno.ENOTTY),
        (lambda: bench.me.ioctl(reading, vfio.VFIO_MIG_GET_PRECOPY_INFO, NOWHERE), errno.EFAULT),
        (lambda: bench.me.ioctl(reading, vfio.VFIO_MIG_GET_PRECOPY_INFO, bytes(24)), errno.EINVAL),
    ):
        with refused(bench, number):
            call()
    first = bench.me.read(reading, 10)
    assert first[:8] == b"UVFIOMIG"
    copy = bench.me.dup(reading)
    stream = first + bench.drain(copy)
    assert bench.me.read(reading, 1) == b"", "a duplicate has the same position"
    bench.go(RUNNING)
    assert bench.saved() == stream


def test_precopy(bench: Bench) -> None:
    bench.write(MEMORY, 1)
    fd = bench.go(PRE_COPY)

    def info() -> tuple[int, ...]:
        answer = bytearray(struct.pack("<IIQQ", 24, 9, 0, 0))
        bench.me.ioctl(fd, vfio.VFIO_MIG_GET_PRECOPY_INFO, answer)
        return struct.unpack("<IIQQ", answer)

    _, flags, initial, dirty = info()
    assert (flags, dirty) == (0, 0)
    stream = bench.me.read(fd, initial)
    with refused(bench, errno.ENOMSG):
        bench.me.read(fd, 1)
    bench.write(MEMORY + 2 * PAGE, 2)
    assert info() == (24, 0, 0, PAGE + 24)
    assert bench.go(STOP_COPY) == -1
    stream += bench.drain(fd)
    with refused(bench, errno.EINVAL):
        info()
    data = bench.go(RESUMING, bench.other)
    bench.me.write(data, stream)
    bench.go(RUNNING, bench.other)
    assert bench.read(MEMORY + 2 * PAGE, fd=bench.other) == 2


def test_closing_the_file_ends_nothing(bench: Bench) -> None:
    stream = bench.saved()
    fd = bench.go(RESUMING, bench.other)
    bench.me.write(fd, stream)
    bench.me.close(fd)
    bench.go(RUNNING, bench.other)
    bench.me.close(bench.go(PRE_COPY))
    assert bench.go(STOP_COPY) == -1
    bench.go(RUNNING)


def test_the_last_close_of_the_device_ends_all(bench: Bench) -> None:
    bound = bench.bound(FIRST)
    fd = bench.go(STOP_COPY)
    bench.start((IOVA, PAGE))
    bench.me.close(bench.dev)
    assert (bound.migration, bound.dma_logger) == (None, None)
    with pytest.raises(OSError) as error:
        bench.me.read(fd, 1)
    assert error.value.errno == errno.ENODEV
    group = next(n for n in bench.me._fds if bench.me.file(n).name == "/dev/vfio/1")  # type: ignore[attr-defined]
    bench.dev = bench.device(group, FIRST)
    assert bench.state() == RUNNING
    bench.set_config(bench.dev, pci.PCI_COMMAND, 7)
    bench.copy(0)
    with pytest.raises(OSError):
        bench.report()


def test_a_device_that_is_pulled_out(bench: Bench) -> None:
    fd = bench.go(STOP_COPY)
    bench.machine.unplug(FIRST)
    for call in (lambda: bench.me.read(fd, 1), lambda: bench.go(RUNNING)):
        with pytest.raises(OSError) as error:
            call()
        assert error.value.errno == errno.ENODEV
    bench.me.exit()


def test_the_end_of_a_process(bench: Bench) -> None:
    child = bench.me.fork()
    bench.go(STOP_COPY)
    bench.me.exit()
    child.exit()
    record = bench.machine.record(FIRST)
    assert isinstance(record.data, VfioPciDevice)
    assert record.data.migration is None
    assert not any(isinstance(opened, OpenDevice) for opened in record.opens)


# -- logging ---------------------------------------------------------------------------------------


def test_dirty_pages(bench: Bench) -> None:
    bench.start((IOVA, 8 * PAGE), (IOVA + 8 * PAGE, 8 * PAGE))
    assert bench.report() == 0
    bench.copy(7, PAGE + 1)
    bench.copy(3, 1)
    assert bench.report(page=2 * PAGE) == 0b11010
    bench.copy(15, 4)
    assert bench.report(IOVA + 15 * PAGE, PAGE) == 1
    assert bench.report() == 0
    bench.feature(SET | STOP_LOG)
    bench.feature(SET | STOP_LOG)
    with refused(bench, errno.EINVAL):
        bench.report()


def test_bits_are_added_and_words_in_between_left_alone(bench: Bench) -> None:
    bench.start((0, 1 << 40))
    bench.copy(1)
    at = bench.buffer()
    bench.me.memory.write(at, b"\x80" * 64)
    bench.feature(GET | REPORT, struct.pack("<QQQQ", IOVA, 512 * PAGE, PAGE, at))
    assert bench.me.memory.read(at, 64) == b"\x82" + b"\x80" * 63


def test_a_bitmap_that_is_not_there(bench: Bench) -> None:
    bench.start((IOVA, 16 * PAGE))
    bench.copy(1)
    short = bench.buffer() + PAGE - 8
    for at, length in ((NOWHERE, 16 * PAGE), (short, 65 * PAGE)):
        with refused(bench, errno.EFAULT):
            bench.feature(GET | REPORT, struct.pack("<QQQQ", IOVA, length, PAGE, at))
    assert bench.report() == 2


def test_the_log_survives_a_reset_and_a_move(bench: Bench) -> None:
    bench.start((IOVA, 16 * PAGE))
    bench.copy(2)
    bench.me.ioctl(bench.dev, vfio.VFIO_DEVICE_RESET)
    bench.go(STOP)
    bench.go(RUNNING)
    assert bench.report() == 4


def test_each_device_has_a_log_of_its_own(bench: Bench) -> None:
    bench.start((IOVA, 16 * PAGE))
    with refused(bench, errno.EINVAL):
        bench.feature(GET | REPORT, struct.pack("<QQQQ", IOVA, PAGE, PAGE, 0), bench.other)


@pytest.mark.parametrize(
    ("ranges", "page", "count", "number"),
    [
        ([(IOVA, PAGE)], PAGE, 0, errno.EINVAL),
        ([(IOVA, PAGE)], PAGE, 257, errno.E2BIG),
        ([(IOVA, PAGE)], PAGE, 0xFFFFFFFF, errno.E2BIG),
        ([(IOVA, PAGE)], PAGE, 256, errno.EINVAL),  # ranges of nothing behind it
        ([(IOVA, PAGE), (IOVA, PAGE)], PAGE, None, errno.EINVAL),
        ([(IOVA, PAGE)], 6000, None, errno.EINVAL),
        ([(IOVA, PAGE)], 2 * PAGE, None, errno.EINVAL),
        ([((1 << 64) - PAGE, 2 * PAGE)], PAGE, None, errno.EOVERFLOW),
    ],
)
def test_what_cannot_be_logged(
    bench: Bench, ranges: list[tuple[int, int]], page: int, count: int | None, number: int
) -> None:
    with refused(bench, number):
        bench.start(*ranges, page=page, count=count)


def test_the_answer_is_the_page_size_of_the_log(bench: Bench) -> None:
    memory = bench.me.memory
    ranges = memory.allocate(16)
    memory.write(ranges, struct.pack("<QQ", 0, 1 << 30))
    raw = bench.feature(SET | START, struct.pack("<QIIQ", 1 << 30, 1, 0, ranges))
    assert struct.unpack_from("<QIIQ", raw) == (COARSEST, 1, 0, ranges)


def test_ranges_that_are_not_there(bench: Bench) -> None:
    with refused(bench, errno.EFAULT):
        bench.feature(SET | START, struct.pack("<QIIQ", PAGE, 1, 0, NOWHERE))


@pytest.mark.parametrize(
    ("iova", "length", "page", "number"),
    [
        (IOVA, PAGE, 2048, errno.EINVAL),
        (IOVA, PAGE, 0, errno.EINVAL),
        (IOVA, 0, PAGE, errno.EINVAL),
        (PAGE, (1 << 64) - PAGE, PAGE, errno.EOVERFLOW),
    ],
)
def test_what_cannot_be_reported(
    bench: Bench, iova: int, length: int, page: int, number: int
) -> None:
    bench.start((IOVA, PAGE))
    with refused(bench, number):
        bench.report(iova, length, page)
