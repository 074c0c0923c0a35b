"""Calls on descriptors by a real program: registers, positions, copies, mappings."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from support.puppet import (
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    PROT_WRITE,
    Puppet,
    Stage,
    open_descriptors,
)
from uvfio.doors.run.session.programs.process import CHECKS
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.fops.rfc2011.group import GroupFile
from uvfio.fops.rfc2011.iommu import IommuFile
from uvfio.fops.wire import REGISTERS_STRIDE
from uvfio.uapi import rfc

CONFIG = rfc.VFIO_PCI_CONFIG_REGION_INDEX << 40
RW = PROT_READ | PROT_WRITE
MEMORY_BAR = 2 << 40  # of the exerciser
F_DUPFD, F_GETFD, F_SETFD, F_DUPFD_CLOEXEC = 0, 1, 2, 1030
NEGATIVE = (1 << 64) - 1
MAP_SHARED_VALIDATE = 3
UIO_MAXIOV = 1024


class Bench:
    """A program with an open device; ``wide`` passes a 64-bit offset as this architecture does."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.puppet = stage.puppet
        self.device = stage.open_device(b"/dev/vfio/7", b"0000:07:00.0")

    def wide(self, offset: int) -> tuple[int, ...]:
        if self.puppet.bits == 64:
            return (offset,)
        return offset & 0xFFFFFFFF, offset >> 32

    def pread(
        self, size: int, offset: int, fd: int | None = None, at: int | None = None
    ) -> bytes | int:
        target = self.puppet.buffer(max(size, 1)) if at is None else at
        fd = self.device if fd is None else fd
        result = self.puppet.call("pread64", fd, target, size, *self.wide(offset))
        return result if result < 0 else self.puppet.peek(target, result)

    def pwrite(self, data: bytes, offset: int, fd: int | None = None) -> int:
        fd = self.device if fd is None else fd
        return self.puppet.call(
            "pwrite64", fd, self.puppet.buffer(data), len(data), *self.wide(offset)
        )

    def vector(self, *parts: tuple[int, int]) -> int:
        """An array of struct iovec."""
        form = "<" + ("QQ" if self.puppet.bits == 64 else "II") * len(parts)
        return self.puppet.buffer(struct.pack(form, *(word for part in parts for word in part)))

    def at_offset(self, offset: int) -> tuple[int, int]:
        """The two offset arguments of preadv."""
        return (offset, 0) if self.puppet.bits == 64 else (offset & 0xFFFFFFFF, offset >> 32)


@pytest.fixture(params=[64, 32])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    before = open_descriptors()
    with Stage("exerciser@0000:07:00.0,group=7", bits=request.param) as stage:
        yield Bench(stage)
    assert open_descriptors() <= before


@pytest.fixture
def puppet(bench: Bench) -> Puppet:
    return bench.puppet


def identity(bench: Bench) -> bytes:
    """The first 16 bytes of config space."""
    data = bench.pread(16, CONFIG)
    assert isinstance(data, bytes)
    assert data[:2] != b"\xff\xff"
    return data


# -- reading and writing -------------------------------------------------------------------------------


def test_positioned_accesses(bench: Bench) -> None:
    known = identity(bench)
    for at in range(8):
        for size in (1, 2, 4, 8):
            assert bench.pread(size, CONFIG + at) == known[at : at + size]
    assert bench.pwrite(b"\x5a", CONFIG + 0x3C) == 1  # the interrupt line
    assert bench.pread(1, CONFIG + 0x3C) == b"\x5a"
    assert bench.pread(0, CONFIG) == b""
    assert bench.pwrite(b"", CONFIG) == 0
    assert bench.pread(4, NEGATIVE) == -errno.EINVAL
    assert bench.pwrite(b"1234", NEGATIVE) == -errno.EINVAL
    assert bench.pread(4, 1 << 62) == -errno.EINVAL


def test_buffers_of_the_program(bench: Bench, puppet: Puppet) -> None:
    """Its own rights count, also for a page that was written to by an empty read, or across its end."""
    constant = puppet.pages(1, PROT_READ)
    assert bench.pread(0, CONFIG, at=constant) == b""
    for _ in range(2):
        assert bench.pread(4, CONFIG, at=constant) == -errno.EFAULT
    assert bench.pread(4, CONFIG, at=8) == -errno.EFAULT
    assert puppet.call("pwrite64", bench.device, 8, 4, *bench.wide(CONFIG + 4)) == -errno.EFAULT
    pair = puppet.pages(2)
    puppet.must("mprotect", pair + PAGE, PAGE, PROT_READ)
    assert bench.pread(4, CONFIG, at=pair + PAGE - 4) == identity(bench)[:4]
    for _ in range(2):
        assert bench.pread(4, CONFIG, at=pair + PAGE - 2) == -errno.EFAULT
        assert bench.pread(4, CONFIG, at=pair + PAGE) == -errno.EFAULT
    assert puppet.peek(pair + PAGE, 4) == bytes(4)


def test_many_bytes(bench: Bench, puppet: Puppet) -> None:
    """More than is copied at a time, to the end of a region and not beyond."""
    size = 3 << 20
    at = puppet.must("mmap" if puppet.bits == 64 else "mmap2", 0, size, RW, 0x22, -1, 0)
    result = puppet.call("pread64", bench.device, at, size, *bench.wide(MEMORY_BAR))
    info = puppet.buffer(struct.pack("<IIQQQQ", 40, 2, 0, 0, 0, 0))
    puppet.must("ioctl", bench.device, rfc.VFIO_DEVICE_GET_REGION_INFO, info)
    region = struct.unpack("<IIQQQQ", puppet.peek(info, 40))[2]
    assert result == min(size, region)
    assert puppet.call("pwrite64", bench.device, at, size, *bench.wide(MEMORY_BAR)) == result


def test_the_position(bench: Bench, puppet: Puppet) -> None:
    """read and write begin at 0, which is the first region, and go on where they stopped."""
    at = puppet.buffer(b"\xaa" * 16)
    token = bench.stage.process.token(puppet.pid, bench.device)
    assert token is not None
    assert token.position == 0
    assert puppet.must("read", bench.device, at, 4) == 4
    assert puppet.peek(at, 4) == bench.pread(4, 0)
    assert token.position == 4
    assert puppet.must("read", bench.device, at, 4) == 4
    assert puppet.peek(at, 4) == bench.pread(4, 4)
    copy = puppet.must("dup", bench.device)
    assert puppet.must("read", copy, at, 4) == 4
    assert token.position == 12  # of the open file, not of the number
    token.position = CONFIG + 0x3C
    assert puppet.must("write", bench.device, puppet.buffer(b"\x77"), 1) == 1
    assert bench.pread(1, CONFIG + 0x3C) == b"\x77"
    assert token.position == CONFIG + 0x3D
    assert puppet.call("read", bench.device, 8, 1) == -errno.EFAULT
    assert token.position == CONFIG + 0x3D


@pytest.mark.parametrize("call", ["preadv", "preadv2", "readv"])
def test_scattered_reads(bench: Bench, puppet: Puppet, call: str) -> None:
    known = identity(bench)
    first, second = puppet.buffer(16), puppet.buffer(16)
    parts = bench.vector((first, 2), (0, 0), (second, 4))
    token = bench.stage.process.token(puppet.pid, bench.device)
    assert token is not None
    if call == "readv":
        token.position = CONFIG
        result = puppet.call(call, bench.device, parts, 3)
        assert token.position == CONFIG + 6
    else:
        result = puppet.call(call, bench.device, parts, 3, *bench.at_offset(CONFIG), 0)
        assert token.position == 0
    assert result == 6
    assert puppet.peek(first, 2) + puppet.peek(second, 4) == known[:6]


@pytest.mark.parametrize("call", ["pwritev", "pwritev2", "writev"])
def test_gathered_writes(bench: Bench, puppet: Puppet, call: str) -> None:
    pieces = [puppet.buffer(b"\x11"), puppet.buffer(b"\x22\x33\x44")]
    parts = bench.vector((pieces[0], 1), (pieces[1], 3))
    if call == "writev":
        token = bench.stage.process.token(puppet.pid, bench.device)
        assert token is not None
        token.position = MEMORY_BAR
        assert puppet.call(call, bench.device, parts, 2) == 4
    else:
        assert puppet.call(call, bench.device, parts, 2, *bench.at_offset(MEMORY_BAR), 0) == 4
    assert bench.pread(4, MEMORY_BAR) == b"\x11\x22\x33\x44"


def test_the_current_position_of_preadv2(bench: Bench, puppet: Puppet) -> None:
    """Offset -1 makes it readv."""
    token = bench.stage.process.token(puppet.pid, bench.device)
    assert token is not None
    token.position = CONFIG
    parts = bench.vector((puppet.buffer(4), 4))
    minus = NEGATIVE if puppet.bits == 64 else 0xFFFFFFFF
    assert puppet.call("preadv2", bench.device, parts, 1, minus, minus, 0) == 4
    assert token.position == CONFIG + 4
    assert puppet.call("preadv", bench.device, parts, 1, minus, minus) == -errno.EINVAL


def test_vectors_that_are_wrong(bench: Bench, puppet: Puppet) -> None:
    good = puppet.buffer(16)
    offset = bench.at_offset(CONFIG)
    parts = bench.vector((good, 4), (8, 4))
    assert puppet.call("preadv", bench.device, parts, 2, *offset) == 4  # as far as it went
    assert (
        puppet.call("preadv", bench.device, bench.vector((8, 4), (good, 4)), 2, *offset)
        == -errno.EFAULT
    )
    assert puppet.call("preadv", bench.device, 8, 1, *offset) == -errno.EFAULT
    assert puppet.call("preadv", bench.device, 8, 0, *offset) == 0
    assert puppet.call("preadv", bench.device, parts, UIO_MAXIOV + 1, *offset) == -errno.EINVAL
    many = bench.vector(*[(good, 1)] * UIO_MAXIOV)
    assert (
        puppet.call("preadv", bench.device, many, UIO_MAXIOV, *bench.at_offset(MEMORY_BAR))
        == UIO_MAXIOV
    )


@pytest.mark.parametrize("kind", [GroupFile, IommuFile])
def test_files_without_regions(bench: Bench, puppet: Puppet, kind: type) -> None:
    fds = [fd for fd, file in bench.stage.process.files.items() if isinstance(file, kind)]
    assert fds
    at = puppet.buffer(8)
    for call in ("read", "write"):
        assert puppet.call(call, fds[0], at, 8) == -errno.EINVAL
    assert bench.pread(8, 0, fds[0]) == -errno.EINVAL
    assert bench.pwrite(b"12345678", 0, fds[0]) == -errno.EINVAL


# -- what a VFIO file cannot do --------------------------------------------------------------------------


def test_it_has_no_position_to_set(bench: Bench, puppet: Puppet) -> None:
    for whence in range(3):
        assert puppet.call("lseek", bench.device, 0, whence) == -errno.ESPIPE
    if puppet.bits == 32:
        assert puppet.call("_llseek", bench.device, 0, 0, puppet.buffer(8), 0) == -errno.ESPIPE


def test_it_is_not_a_plain_file(bench: Bench, puppet: Puppet) -> None:
    before = os.stat(f"/proc/{puppet.pid}/fd/{bench.device}").st_size
    assert puppet.call("ftruncate", bench.device, 0) == -errno.EINVAL
    assert puppet.call("fallocate", bench.device, 0, 0, PAGE) == -errno.EINVAL
    assert puppet.call("fsync", bench.device) == -errno.EINVAL
    assert puppet.call("fdatasync", bench.device) == -errno.EINVAL
    assert puppet.call("fchmod", bench.device, 0o777) == -errno.EPERM
    assert puppet.call("fchown", bench.device, 0, 0) == -errno.EPERM
    if puppet.bits == 32:
        assert puppet.call("ftruncate64", bench.device, 0, 0) == -errno.EINVAL
        assert puppet.call("fchown32", bench.device, 0, 0) == -errno.EPERM
    assert os.stat(f"/proc/{puppet.pid}/fd/{bench.device}").st_size == before


def test_its_bytes_cannot_be_moved(bench: Bench, puppet: Puppet) -> None:
    """Neither out of it nor into it, whichever argument it is."""
    ends = puppet.buffer(8)
    puppet.must("pipe2", ends, 0)
    reader, writer = struct.unpack("<2i", puppet.peek(ends, 8))
    puppet.must("write", writer, b"data", 4)
    other = puppet.must("memfd_create", b"plain", 0)
    puppet.must("write", other, b"data", 4)
    puppet.must("lseek", other, 0, 0)
    device = bench.device
    assert puppet.call("splice", reader, 0, device, 0, 4, 0) == -errno.EINVAL
    assert puppet.call("splice", device, 0, writer, 0, 4, 0) == -errno.EINVAL
    assert puppet.call("copy_file_range", other, 0, device, 0, 4, 0) == -errno.EINVAL
    assert puppet.call("copy_file_range", device, 0, other, 0, 4, 0) == -errno.EINVAL
    for call in ("sendfile", "sendfile64")[: 1 + (puppet.bits == 32)]:
        assert puppet.call(call, other, device, 0, 4) == -errno.EINVAL
        assert puppet.call(call, device, other, 0, 4) == -errno.EINVAL


def test_what_it_is(bench: Bench, puppet: Puppet) -> None:
    at = puppet.buffer(144)
    if puppet.bits == 64:
        puppet.must("fstat", bench.device, at)
        assert struct.unpack_from("<I", puppet.peek(at, 144), 24)[0] == 0o600
        assert puppet.call("fstat", bench.device, 8) == -errno.EFAULT
    else:
        puppet.must("fstat64", bench.device, at)
        assert struct.unpack_from("<I", puppet.peek(at, 144), 16)[0] == 0o600
    assert puppet.call("fcntl", bench.device, 3) & os.O_ACCMODE == os.O_RDWR  # F_GETFL


# -- copies ----------------------------------------------------------------------------------------------


def test_copies_stay_in_the_range(bench: Bench, puppet: Puppet) -> None:
    file = bench.stage.file(bench.device)
    copies = [puppet.must("dup", bench.device)]
    copies += [puppet.must("fcntl", bench.device, F_DUPFD, 10)]
    copies += [puppet.must("fcntl", bench.device, F_DUPFD_CLOEXEC, 900)]
    assert copies[2] >= 900
    assert set(copies) <= set(bench.stage.session.reserved)
    assert [puppet.must("fcntl", copy, F_GETFD) for copy in copies] == [0, 0, 1]
    for copy in copies:
        assert bench.stage.file(copy) is file
        assert bench.pread(16, CONFIG, copy) == identity(bench)
    puppet.must("close", bench.device)
    assert bench.pread(4, CONFIG, bench.device) == -errno.EBADF
    assert isinstance(bench.pread(4, CONFIG, copies[0]), bytes)


@pytest.mark.parametrize("call", ["dup2", "dup3"])
def test_copies_elsewhere(bench: Bench, puppet: Puppet, call: str) -> None:
    """The program chose the number: accesses that look like registers still arrive."""
    last = (0,) if call == "dup3" else ()
    known = identity(bench)
    assert puppet.must(call, bench.device, 50, *last) == 50
    assert bench.pread(16, CONFIG, 50) == known
    assert bench.pread(4, 0, 50) == bench.pread(4, 0)
    at = puppet.buffer(8)
    assert puppet.must("ioctl", 50, rfc.VFIO_DEVICE_GET_FLAGS, at) == 0
    assert 50 not in bench.stage.process.files


def test_copies_over_each_other(bench: Bench, puppet: Puppet) -> None:
    group = puppet.open(b"/dev/vfio/7")
    kind = [type(bench.stage.file(fd)) for fd in (group, bench.device)]
    assert kind == [GroupFile, DeviceFile]
    assert puppet.must("dup2", bench.device, group) == group
    assert bench.stage.file(group) is bench.stage.file(bench.device)
    assert puppet.must("dup2", group, group) == group
    assert isinstance(bench.pread(4, CONFIG, group), bytes)
    null = puppet.open(b"/dev/null")
    puppet.must("dup2", null, group)
    assert bench.stage.file(group) is None
    assert puppet.call("ioctl", group, rfc.VFIO_DEVICE_RESET, 0) == -errno.ENOTTY
    assert puppet.call("dup2", 999, bench.device) == -errno.EBADF
    assert bench.stage.file(bench.device) is not None


def test_close(bench: Bench, puppet: Puppet) -> None:
    puppet.must("close", bench.device)
    assert puppet.call("close", bench.device) == -errno.EBADF
    for call in ("read", "write"):
        assert puppet.call(call, bench.device, puppet.buffer(8), 8) == -errno.EBADF
    assert puppet.call("dup", bench.device) == -errno.EBADF
    assert puppet.call("lseek", bench.device, 0, 0) == -errno.EBADF


def test_close_range(bench: Bench, puppet: Puppet) -> None:
    group = puppet.open(b"/dev/vfio/7")
    process = bench.stage.process
    puppet.must("close_range", bench.device + 1, group, 0)
    assert bench.device in process.files
    assert group not in process.files
    assert puppet.call("ioctl", group, rfc.VFIO_GROUP_GET_FLAGS, puppet.arena) == -errno.EBADF
    puppet.must("close_range", 3, (1 << 32) - 1, 0)
    assert not process.files
    bench.stage.session.tokens.drain()
    assert len(bench.stage.session.tokens) == 0


def test_high_halves_of_arguments_do_not_count(bench: Bench, puppet: Puppet) -> None:
    """The kernel takes a descriptor as 32 bits, and so do we."""
    if puppet.bits == 32:
        pytest.skip("registers of i386 have no high half")
    junk = 0xDEAD << 32
    at = puppet.buffer(16)
    assert puppet.must("pread64", junk | bench.device, at, 4, CONFIG) == 4
    assert puppet.must("ioctl", junk | bench.device, junk | rfc.VFIO_DEVICE_GET_FLAGS, at) == 0
    puppet.must("close", junk | bench.device)
    assert bench.stage.file(bench.device) is None


# -- mapping ---------------------------------------------------------------------------------------------


def map_region(
    bench: Bench, flags: int, offset: int = MEMORY_BAR, size: int = PAGE, fd: int | None = None
) -> int:
    puppet = bench.puppet
    fd = bench.device if fd is None else fd
    if puppet.bits == 64:
        return puppet.call("mmap", 0, size, RW, flags, fd, offset)
    result = puppet.call("mmap2", 0, size, RW, flags, fd, offset >> 12)
    return result if -4096 < result < 0 else result & 0xFFFFFFFF


def test_memory_is_mapped(bench: Bench, puppet: Puppet) -> None:
    for flags in (MAP_SHARED, MAP_SHARED_VALIDATE):
        at = map_region(bench, flags)
        assert not -4096 < at < 0, os.strerror(-at)
        puppet.store(at + 64, 0x01020304)
        assert bench.pread(4, MEMORY_BAR + 64) == b"\x04\x03\x02\x01"
        assert bench.pwrite(b"\x09\x09\x09\x09", MEMORY_BAR + 64) == 4
        assert puppet.load(at + 64) == 0x09090909
    second = map_region(bench, MAP_SHARED, MEMORY_BAR + PAGE, 100)
    puppet.store(second, 5)
    assert bench.pread(4, MEMORY_BAR + PAGE) == b"\x05\0\0\0"


def test_mappings_that_are_refused(bench: Bench, puppet: Puppet) -> None:
    assert map_region(bench, MAP_PRIVATE) == -errno.EINVAL
    assert map_region(bench, MAP_SHARED, 0) == -errno.EINVAL  # registers
    assert map_region(bench, MAP_SHARED, CONFIG) == -errno.EINVAL
    assert map_region(bench, MAP_SHARED, MEMORY_BAR + (1 << 39)) == -errno.EINVAL
    assert map_region(bench, MAP_SHARED, MEMORY_BAR, 1 << 30) == -errno.EINVAL
    assert map_region(bench, MAP_SHARED, MEMORY_BAR, 0) == -errno.EINVAL
    group = puppet.open(b"/dev/vfio/7")
    assert map_region(bench, MAP_SHARED, 0, fd=group) == -errno.ENODEV


def test_other_files_are_mapped_by_the_kernel(bench: Bench, puppet: Puppet) -> None:
    fd = puppet.must("memfd_create", b"plain", 0)
    puppet.must("ftruncate", fd, PAGE)
    at = map_region(bench, MAP_SHARED, 0, fd=fd)
    puppet.store(at, 1)
    assert puppet.load(at) == 1


# -- files of others -------------------------------------------------------------------------------------


def test_ordinary_files_in_the_range(bench: Bench, puppet: Puppet) -> None:
    """A program may put what it likes there."""
    fd = puppet.must("memfd_create", b"plain", 0)
    number = bench.stage.session.reserved[100]
    assert puppet.must("dup2", fd, number) == number
    at = puppet.buffer(b"12345678")
    assert puppet.must("write", number, at, 8) == 8
    assert puppet.must("lseek", number, 0, 0) == 0
    assert puppet.must("read", number, at, 4) == 4
    assert bench.pread(8, 0, number) == b"12345678"
    assert bench.pwrite(b"x", 3, number) == 1
    parts = bench.vector((at, 4))
    assert puppet.must("readv", number, parts, 1) == 4
    puppet.must("ftruncate", number, 2)
    puppet.must("fsync", number)
    assert puppet.call("ioctl", number, rfc.VFIO_DEVICE_RESET, 0) == -errno.ENOTTY
    copy = puppet.must("dup", number)
    assert copy < bench.stage.session.reserved.start
    puppet.must("close", number)
    assert puppet.call("ioctl", 1, rfc.VFIO_GROUP_GET_FLAGS, at) in (-errno.ENOTTY, -errno.EINVAL)


# -- transfers that end in the middle -------------------------------------------------------------------


@pytest.fixture(params=[64, 32])
def large(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """An exerciser with 4 MiB of memory."""
    device = f"exerciser@0000:07:00.0,group=7,memory={4 << 20}"
    with Stage(device, bits=request.param) as stage:
        bench = Bench(stage)
        bench.pwrite(struct.pack("<H", 2), CONFIG + 4)
        yield bench


@pytest.mark.parametrize("name", ["pread64", "pwrite64"])
def test_a_fault_in_the_second_piece_ends_the_transfer_after_the_first(
    large: Bench, name: str
) -> None:
    puppet, piece = large.puppet, 1 << 20
    buffer = puppet.pages(2 * piece // PAGE)
    puppet.must("munmap", buffer + piece, piece)
    where = large.wide(MEMORY_BAR)
    assert puppet.call(name, large.device, buffer, 2 * piece, *where) == piece
    assert puppet.call(name, large.device, buffer + piece, piece, *where) == -errno.EFAULT


# -- the position of a sysfs file -----------------------------------------------------------------------

OVERRIDE = b"/sys/bus/pci/devices/0000:07:00.0/driver_override"


def test_positions_of_a_sysfs_file(puppet: Puppet) -> None:
    fd = puppet.open(OVERRIDE, os.O_RDWR)
    end = puppet.call("lseek", fd, 0, os.SEEK_END)
    assert end >= 0
    assert puppet.call("lseek", fd, 3, os.SEEK_SET) == 3
    assert puppet.call("lseek", fd, 2, os.SEEK_CUR) == 5
    assert puppet.call("lseek", fd, -6, os.SEEK_CUR) == -errno.EINVAL
    assert puppet.call("lseek", fd, 0, 9) == -errno.EINVAL
    assert puppet.call("lseek", fd, 0, os.SEEK_CUR) == 5, "a refused call moves nothing"
    assert puppet.call("ftruncate", fd, 0) == 0
    for name in ("fsync", "fdatasync"):
        assert puppet.call(name, fd) == -errno.EINVAL


def test_a_device_file_cannot_be_cut(bench: Bench) -> None:
    """Nor by a copy outside the reserved range, nor by a path; any other file can."""
    puppet = bench.puppet
    copy = puppet.must("dup2", bench.device, 5)
    before = os.stat(f"/proc/{puppet.pid}/fd/{bench.device}").st_size
    calls = ["ftruncate"] if puppet.bits == 64 else ["ftruncate", "ftruncate64"]
    for name in calls:
        for fd in (bench.device, copy):
            assert puppet.call(name, fd, 0, 0) == -errno.EINVAL
            for path in (f"/proc/self/fd/{fd}", f"/proc/{puppet.pid}/fd/{fd}", f"/dev/fd/{fd}"):
                at = puppet.buffer(path.encode() + b"\0")
                assert puppet.call(name.removeprefix("f"), at, 0, 0) == -errno.EINVAL
    assert os.stat(f"/proc/{puppet.pid}/fd/{bench.device}").st_size == before
    other = puppet.must("memfd_create", puppet.buffer(b"other\0"), 0)
    assert puppet.call("ftruncate", other, PAGE) == 0
    at = puppet.buffer(f"/proc/self/fd/{other}\0".encode())
    assert puppet.call("truncate", at, 2 * PAGE) == 0
    assert os.stat(f"/proc/{puppet.pid}/fd/{other}").st_size == 2 * PAGE
    assert puppet.call("truncate", puppet.buffer(b"/nowhere\0"), 0) == -errno.ENOENT
    assert identity(bench)


@pytest.mark.parametrize("reads", [1, CHECKS + 1])
def test_a_page_that_became_read_only_is_not_written(bench: Bench, reads: int) -> None:
    """EFAULT, as copy_to_user gives it, also after reads that did reach the page. After many it may take some more."""
    puppet = bench.puppet
    at = puppet.pages(1)
    for _ in range(reads):
        assert bench.pread(4, CONFIG, at=at) == identity(bench)[:4]
    puppet.must("mprotect", at, PAGE, PROT_READ)
    refused = [bench.pread(size, CONFIG, at=at) == -errno.EFAULT for size in (4, 8, 64)]
    if reads == 1:
        assert all(refused)
    else:
        late = [bench.pread(4, CONFIG, at=at) == -errno.EFAULT for _ in range(CHECKS)]
        assert late[-1]
        assert late == sorted(late), "the first refusal is followed by no answer"
    puppet.must("mprotect", at, PAGE, RW)
    assert bench.pread(4, CONFIG, at=at) == identity(bench)[:4]


@pytest.mark.parametrize("bench", [32], indirect=True)
def test_llseek_of_i386_answers_in_memory(bench: Bench) -> None:
    puppet = bench.puppet
    fd = puppet.open(OVERRIDE, os.O_RDWR)
    place = puppet.buffer(8)
    assert puppet.call("_llseek", fd, 0, 4, place, os.SEEK_SET) == 0
    assert puppet.peek(place, 8) == (4).to_bytes(8, "little")
    assert puppet.call("_llseek", fd, 0xFFFFFFFF, 0xFFFFFFFF, place, os.SEEK_SET) == -errno.EINVAL
    assert puppet.call("_llseek", fd, 0, 4, 0, os.SEEK_SET) == -errno.EFAULT
    assert puppet.call("_llseek", bench.device, 0, 4, place, os.SEEK_SET) == -errno.ESPIPE


# -- long calls ----------------------------------------------------------------------------------------


def test_many_registers_are_moved_in_pieces() -> None:
    """Each piece is a turn of the loop, in which others are served."""
    with Stage("edu@0000:07:00.0,group=7") as stage:
        bench = Bench(stage)
        size, pieces = 8 * REGISTERS_STRIDE + 4, stage.session.pieces
        data = bench.pread(size, 0)
        assert isinstance(data, bytes)
        assert (len(data), data[:4], pieces.done) == (size, bench.pread(4, 0), 8)
        assert bench.pwrite(bytes(size), 0) == size
        assert pieces.done == 16
        at, token = bench.puppet.pages(40), stage.process.token(bench.puppet.pid, bench.device)
        assert token is not None
        assert bench.puppet.must("read", bench.device, at, size) == size
        assert (token.position, pieces.done) == (size, 24)
        parts = bench.vector(*[(at, REGISTERS_STRIDE // 2)] * 5)
        assert bench.puppet.must("preadv", bench.device, parts, 5, *bench.at_offset(0)) == 20480
        assert pieces.done == 26
        assert len(bench.pread(size, (1 << 20) - 4096)) == 4096  # type: ignore[arg-type]
        assert pieces.done == 26
        assert len(pieces) == 0


def test_memory_is_moved_in_large_pieces() -> None:
    with Stage("exerciser@0000:07:00.0,group=7,memory=4194304") as stage:
        bench, at = Bench(stage), stage.puppet.pages(1024)
        assert bench.puppet.must("pread64", bench.device, at, 4 << 20, MEMORY_BAR) == 4 << 20
        assert stage.session.pieces.done == 3
        assert bench.puppet.must("pread64", bench.device, at, 1 << 20, MEMORY_BAR) == 1 << 20
        assert stage.session.pieces.done == 3
