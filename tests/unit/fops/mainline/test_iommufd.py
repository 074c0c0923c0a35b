"""/dev/iommu, ioctl by ioctl: answers, and every errno in its order."""

from __future__ import annotations

import errno
import struct

import pytest

from support.iommufd import ALL, FIXED, IommufdDesk, R, W
from support.mainline import ALONE, FIRST, NOWHERE, PAGE, SECOND, refused
from uvfio.core.waiting import Steps
from uvfio.doors.local import Process
from uvfio.fops.mainline import iommufd
from uvfio.machine.spec import IommuSpec
from uvfio.uapi import iommufd as uapi
from uvfio.uapi import vfio

TOP = 1 << 64


@pytest.fixture
def desk() -> IommufdDesk:
    return IommufdDesk()


# -- the file ------------------------------------------------------------------------------------


def test_what_it_is(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    file = desk.me.file(fd)
    assert (getattr(file, "name", ""), getattr(file, "kind", "")) == ("/dev/iommu", "iommufd")
    with refused(desk, errno.EINVAL):
        desk.me.pread(fd, 8, 0)


@pytest.mark.parametrize("request_", [0x3B80 + 0x7E, 0x3B64 + 60, vfio.VFIO_IOMMU_DIRTY_PAGES])
def test_unknown_requests(desk: IommufdDesk, request_: int) -> None:
    fd = desk.iommufd()
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(fd, request_, 0)


def test_a_request_of_another_type_is_unknown_once_its_size_was_read(desk: IommufdDesk) -> None:
    fd, at = desk.iommufd(), desk.buffer()
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(fd, 0x3C81, at)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, 0x3C81, NOWHERE)


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (struct.pack("<III", 11, 0, 0), errno.EINVAL),
        (struct.pack("<IIII", 16, 0, 0, 1), errno.E2BIG),
        (struct.pack("<III", 12, 1, 0), errno.EOPNOTSUPP),
    ],
)
def test_sizes_and_flags(desk: IommufdDesk, raw: bytes, number: int) -> None:
    fd = desk.iommufd()
    with refused(desk, number):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, raw)


def test_more_than_is_known_may_be_zero(desk: IommufdDesk) -> None:
    raw = bytearray(struct.pack("<III", 8192, 0, 0) + bytes(8180))
    desk.me.ioctl(desk.iommufd(), uapi.IOMMU_IOAS_ALLOC, raw)
    assert raw[8:12] == b"\1\0\0\0"


def test_an_answer_that_cannot_be_given_makes_nothing(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    at = desk.me.memory.place(memoryview(bytearray(struct.pack("<III", 12, 0, 0))), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_ALLOC, at)
    ioas = desk.ioas(fd)
    raw = struct.pack("<IIIIQQQ", 40, 7, ioas, 0, desk.buffer(), PAGE, 0)
    at = desk.me.memory.place(memoryview(bytearray(raw)), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_MAP, at)


def test_numbers_are_the_lowest_free_ones(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    assert [desk.ioas(fd) for _ in range(3)] == [1, 2, 3]
    desk.destroy(fd, 2)
    assert [desk.ioas(fd) for _ in range(2)] == [2, 4]
    with refused(desk, errno.ENOENT):
        desk.destroy(fd, 5)


# -- address spaces ------------------------------------------------------------------------------


def test_ranges_tell_how_many_there_are(desk: IommufdDesk) -> None:
    fd, ioas, _ = desk.attached()
    assert desk.ranges(fd, ioas) == ([(0, 0xFEDFFFFF), (0xFEF00000, (1 << 48) - 1)], PAGE)
    raw = bytearray(struct.pack("<IIIIQQ", 32, ioas, 1, 0, desk.buffer(), 0))
    with refused(desk, errno.EMSGSIZE):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_IOVA_RANGES, raw)
    at = desk.me.memory.allocate(32)
    desk.me.memory.write(at, struct.pack("<IIIIQQ", 32, ioas, 0, 0, 0, 0))
    with refused(desk, errno.EMSGSIZE):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_IOVA_RANGES, at)
    assert struct.unpack("<IIIIQQ", desk.me.memory.read(at, 32))[2] == 2


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"flags": 0x80 | 7}, errno.EOPNOTSUPP),
        ({"flags": FIXED}, errno.EINVAL),
        ({"iova": ALL}, errno.EOVERFLOW),
        ({"size": ALL}, errno.EOVERFLOW),
        ({"ioas": 99}, errno.ENOENT),
        ({"vaddr": TOP - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"size": 0}, errno.EINVAL),
        ({"iova": TOP - PAGE, "size": 2 * PAGE}, errno.EOVERFLOW),
        ({"iova": 0x100000}, errno.EEXIST),
        ({"iova": 0x800}, errno.EINVAL),
        ({"vaddr": 0x10000800}, errno.EINVAL),
        ({"size": 0x800}, errno.EINVAL),
        ({"iova": 0xFEE00000}, errno.EINVAL),
        ({"iova": 1 << 48}, errno.EINVAL),
        ({"vaddr": NOWHERE << 12}, errno.EFAULT),
        ({"flags": W, "size": 1 << 63}, errno.EOVERFLOW),
    ],
)
def test_what_cannot_be_mapped(desk: IommufdDesk, change: dict[str, int], number: int) -> None:
    fd, ioas, _ = desk.attached()
    buffer = desk.buffer(4 * PAGE)
    desk.ioas_map(fd, ioas, 0x100000, 4 * PAGE, buffer)
    values = {"ioas": ioas, "iova": 0, "size": PAGE, "vaddr": buffer, "flags": 7, **change}
    with refused(desk, number):
        desk.ioas_map(fd, **values)


def test_memory_is_looked_at_while_a_device_is_attached(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas, device = desk.ioas(fd), desk.cdev()
    desk.bind(device, fd)
    desk.ioas_map(fd, ioas, 0, PAGE, NOWHERE << 12)
    assert desk.me.mm.locked_pages == 0
    with refused(desk, errno.EFAULT):
        desk.attach(device, ioas)
    desk.ioas_unmap(fd, ioas, 0, ALL)
    desk.ioas_map(fd, ioas, 0, 2 * PAGE, desk.buffer(2 * PAGE))
    desk.attach(device, ioas)
    assert desk.me.mm.locked_pages == 2
    desk.detach(device)
    assert desk.me.mm.locked_pages == 0
    desk.attach(device, ioas)
    assert desk.ioas_unmap(fd, ioas, 0, ALL) == 2 * PAGE
    assert desk.me.mm.locked_pages == 0


@pytest.mark.parametrize(
    ("iova", "size", "number"),
    [
        (0xFEE00000, PAGE, errno.EADDRINUSE),
        (1 << 48, PAGE, errno.EADDRINUSE),
        (0x800, PAGE, errno.EADDRINUSE),
    ],
)
def test_mappings_that_contradict_the_device(
    desk: IommufdDesk, iova: int, size: int, number: int
) -> None:
    fd = desk.iommufd()
    ioas, device = desk.ioas(fd), desk.cdev()
    desk.bind(device, fd)
    desk.ioas_map(fd, ioas, iova, size, desk.buffer())
    with refused(desk, number):
        desk.attach(device, ioas)
    desk.ioas_unmap(fd, ioas, iova, size)
    desk.attach(device, ioas)


def test_read_only_memory(desk: IommufdDesk) -> None:
    fd, ioas, _ = desk.attached()
    buffer = desk.buffer(writable=False)
    with refused(desk, errno.EFAULT):
        desk.ioas_map(fd, ioas, 0, PAGE, buffer)
    desk.ioas_map(fd, ioas, 0, PAGE, buffer, FIXED | R)
    other = desk.ioas(fd)
    with refused(desk, errno.EPERM):
        desk.copy(fd, other, ioas, 0, PAGE, 0)
    assert desk.copy(fd, other, ioas, 0, PAGE, 0, FIXED | R) == 0


def test_a_devices_own_memory_is_refused(desk: IommufdDesk) -> None:
    fd, ioas, device = desk.attached()
    bar = desk.me.mmap_at(device, 2 * PAGE, 2 << 40)
    with refused(desk, errno.EFAULT):
        desk.ioas_map(fd, ioas, 0, PAGE, bar)


def test_the_limit_on_locked_memory() -> None:
    desk = IommufdDesk()
    desk.me.memlock = 3 * PAGE
    fd, ioas, device = desk.attached()
    buffer = desk.buffer(4 * PAGE)
    with refused(desk, errno.ENOMEM):
        desk.ioas_map(fd, ioas, 0, 4 * PAGE, buffer)
    desk.ioas_map(fd, ioas, 0, 3 * PAGE, buffer)
    other = desk.ioas(fd)
    desk.copy(fd, other, ioas, 0, 3 * PAGE, 0)
    desk.hwpt(fd, 2, other)
    assert desk.me.mm.locked_pages == 3, "the same pages are charged once"
    desk.ioas_unmap(fd, ioas, 0, ALL)
    assert desk.me.mm.locked_pages == 3
    desk.ioas_unmap(fd, other, 0, ALL)
    assert desk.me.mm.locked_pages == 0
    desk.me.close(device)


def test_unmap_takes_whole_areas(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas = desk.ioas(fd)
    buffer = desk.buffer(4 * PAGE)
    desk.ioas_map(fd, ioas, 0x1000, 4 * PAGE, buffer)
    desk.ioas_map(fd, ioas, 0x9000, PAGE, buffer)
    for iova, size, number in (
        (0x2000, PAGE, errno.ENOENT),
        (0x1000, PAGE, errno.ENOENT),
        (0x4000, PAGE, errno.ENOENT),
        (0x4000, 6 * PAGE, errno.ENOENT),
        (0x20000, PAGE, errno.ENOENT),
        (0x1000, 0, errno.EINVAL),
        (TOP - PAGE, 2 * PAGE, errno.EOVERFLOW),
        (0x1000, ALL, errno.EOVERFLOW),
    ):
        with refused(desk, number):
            desk.ioas_unmap(fd, ioas, iova, size)
    assert desk.ioas_unmap(fd, ioas, 0, 0x20000) == 5 * PAGE
    assert desk.ioas_unmap(fd, ioas, 0, ALL) == 0


def test_addresses_are_chosen_lowest_first_and_aligned_as_the_memory(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas = desk.ioas(fd)
    at = -(-desk.buffer(1 << 16) // 0x8000) * 0x8000
    assert desk.ioas_map(fd, ioas, 0, PAGE, at, W) == PAGE
    assert desk.ioas_map(fd, ioas, 0, 2 * PAGE, at, W) == 2 * PAGE
    assert desk.ioas_map(fd, ioas, 0, 4 * PAGE, at, W) == 4 * PAGE
    assert desk.ioas_map(fd, ioas, 0, 4 * PAGE, at + PAGE, W) == 8 * PAGE
    assert desk.ioas_unmap(fd, ioas, 2 * PAGE, 2 * PAGE) == 2 * PAGE
    assert desk.ioas_map(fd, ioas, 0, PAGE, at, W) == 2 * PAGE
    desk.allow(fd, ioas, (0x100000, 0x101FFF), (0x200000, 0x20FFFF))
    assert desk.ioas_map(fd, ioas, 0, 4 * PAGE, at, W) == 0x200000
    assert desk.ioas_map(fd, ioas, 0, PAGE, at, W) == 0x100000
    with refused(desk, errno.ENOSPC):
        desk.ioas_map(fd, ioas, 0, 16 * PAGE, at, W)
    assert desk.ioas_map(fd, ioas, 0x400000, PAGE, at) == 0x400000, "fixed ones do not care"


@pytest.mark.parametrize(
    ("spans", "number"),
    [
        ([(5, 5)], errno.EINVAL),
        ([(6, 5)], errno.EINVAL),
        ([(0, 0x1FFF), (0x1000, 0x2FFF)], errno.EINVAL),
        ([(0xFE000000, 0xFF000000)], errno.EADDRINUSE),
    ],
)
def test_ranges_that_cannot_be_allowed(
    desk: IommufdDesk, spans: list[tuple[int, int]], number: int
) -> None:
    fd, ioas, _ = desk.attached()
    with refused(desk, number):
        desk.allow(fd, ioas, *spans)


def test_ranges_are_read_as_far_as_they_are_there(desk: IommufdDesk) -> None:
    """A program may say that there are 64 GiB of them: nobody makes room for those."""
    fd = desk.iommufd()
    ioas, at = desk.ioas(fd), desk.me.memory.allocate(2 * PAGE)
    good = b"".join(uapi.IOVA_RANGE.pack(n << 20, (n << 20) + PAGE) for n in range(PAGE // 8))
    for first, number in ((good, errno.EFAULT), (uapi.IOVA_RANGE.pack(6, 5), errno.EINVAL)):
        desk.me.memory.write(at, first)
        with refused(desk, number):
            desk.ask(fd, uapi.IOMMU_IOAS_ALLOW_IOVAS, "IIIQ", ioas, 0xFFFFFFFF, 0, at)
    assert desk.ioas_map(fd, ioas, 0, PAGE, desk.buffer(PAGE), W) == PAGE, "nothing was allowed"


def test_a_device_needs_what_is_allowed(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas, device = desk.ioas(fd), desk.cdev()
    desk.bind(device, fd)
    desk.allow(fd, ioas, (0, 0xFFFFFFFF))
    with refused(desk, errno.EADDRINUSE):
        desk.attach(device, ioas)


def test_copies_outlive_the_original(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    one, two = desk.ioas(fd), desk.ioas(fd)
    buffer = desk.buffer(4 * PAGE)
    desk.ioas_map(fd, one, 0, 2 * PAGE, buffer)
    desk.ioas_map(fd, one, 2 * PAGE, 2 * PAGE, buffer + 2 * PAGE)
    for target, source, iova, size, number in (
        (two, one, 0x10000, PAGE, errno.ENOENT),
        (two, one, 3 * PAGE, 2 * PAGE, errno.ENOENT),
        (two, 99, 0, PAGE, errno.ENOENT),
        (99, one, 0, PAGE, errno.ENOENT),
        (two, one, 0, 0, errno.EINVAL),
        (one, one, 0, PAGE, errno.EEXIST),
    ):
        with refused(desk, number):
            desk.copy(fd, target, source, iova, size, PAGE)
    assert desk.copy(fd, two, one, PAGE, 2 * PAGE, 0x8000) == 0x8000
    desk.destroy(fd, one)
    device = desk.cdev()
    desk.bind(device, fd)
    desk.attach(device, two)
    assert desk.me.mm.locked_pages == 2
    desk.me.memory.write(buffer + 2 * PAGE, b"second page of the copy")
    domain = desk.machine.record(ALONE).iommu.domain  # type: ignore[union-attr]
    assert domain is not None
    assert domain.dma_read(ALONE, 0x9000, 6) == b"second"


def test_memory_files(desk: IommufdDesk) -> None:
    fd, ioas, _ = desk.attached()
    file = desk.me.memfd(4 * PAGE)
    assert desk.map_file(fd, ioas, 0x1000, 2 * PAGE, file, PAGE) == 0x1000
    assert desk.me.mm.locked_pages == 2
    with refused(desk, errno.EBADF):
        desk.map_file(fd, ioas, 0x10000, PAGE, 99, 0)
    with refused(desk, errno.EINVAL):
        desk.map_file(fd, ioas, 0x10000, 2 * PAGE, file, 3 * PAGE)
    with refused(desk, errno.EINVAL):
        desk.map_file(fd, ioas, 0x10000, PAGE, fd, 0)
    domain = desk.machine.record(ALONE).iommu.domain  # type: ignore[union-attr]
    assert domain is not None
    domain.dma_write(ALONE, 0x1000, b"hello")
    assert desk.me.file_memory(file).read(PAGE, 5) == b"hello"
    desk.me.close(file)
    assert domain.dma_read(ALONE, 0x1000, 5) == b"hello", "a mapping keeps the file"


def test_another_process_takes_over_what_is_locked(desk: IommufdDesk) -> None:
    fd, ioas, _ = desk.attached()
    file = desk.me.memfd(PAGE)
    desk.map_file(fd, ioas, 0, PAGE, file, 0)
    child = desk.me.fork()
    desk.processes.append(child)
    request = struct.pack("<II", 8, 0)
    child.ioctl(fd, uapi.IOMMU_IOAS_CHANGE_PROCESS, request)
    assert (desk.me.mm.locked_pages, child.mm.locked_pages) == (0, 1)
    desk.me.memlock = 0
    with refused(desk, errno.ENOMEM):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_CHANGE_PROCESS, request)
    desk.me.memlock = None
    desk.ioas_map(fd, ioas, PAGE, PAGE, desk.buffer())
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(fd, uapi.IOMMU_IOAS_CHANGE_PROCESS, request)
    desk.me.exit()
    child.exit()
    assert (desk.me.mm.locked_pages, child.mm.locked_pages) == (0, 0)


# -- options -------------------------------------------------------------------------------------


def test_how_locked_memory_is_counted(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    desk.option(fd, 0, 0, value=1)
    assert desk.option(fd, 0, 1) == 1
    for thing, op, value, number in (
        (1, 1, 0, errno.EOPNOTSUPP),
        (0, 2, 0, errno.EOPNOTSUPP),
        (0, 0, 2, errno.EINVAL),
    ):
        with refused(desk, number):
            desk.option(fd, 0, op, thing, value)
    desk.ioas(fd)
    with refused(desk, errno.EBUSY):
        desk.option(fd, 0, 0, value=0)
    with refused(desk, errno.EOPNOTSUPP):
        desk.option(fd, 2, 1)


def test_large_pages(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas = desk.ioas(fd)
    assert desk.option(fd, 1, 1, ioas) == 1
    desk.option(fd, 1, 0, ioas, 0)
    assert (desk.option(fd, 1, 1, ioas), desk.ranges(fd, ioas)[1]) == (0, PAGE)
    desk.option(fd, 1, 0, ioas, 1)
    desk.ioas_map(fd, ioas, 0x800, 0x800, desk.buffer())
    with refused(desk, errno.EADDRINUSE):
        desk.option(fd, 1, 0, ioas, 0)
    with refused(desk, errno.ENOENT):
        desk.option(fd, 1, 1, 99)


# -- page tables ---------------------------------------------------------------------------------


def test_page_tables(desk: IommufdDesk) -> None:
    fd, ioas, device = desk.attached()
    number = 2
    page_table = desk.hwpt(fd, number, ioas)
    assert desk.attach(device, page_table) == page_table
    for target in (page_table, ioas, number):
        with refused(desk, errno.EBUSY):
            desk.destroy(fd, target)
    for args, wanted in (
        ((99, ioas), errno.ENOENT),
        ((number, 99), errno.EINVAL),
        ((number, number), errno.EINVAL),
        ((number, page_table), errno.EOPNOTSUPP),
        ((number, ioas, 2), errno.EOPNOTSUPP),
        ((number, ioas, 0, 1), errno.EOPNOTSUPP),
    ):
        with refused(desk, wanted):
            desk.hwpt(fd, *args)
    desk.detach(device)
    desk.destroy(fd, page_table)
    desk.destroy(fd, ioas)


def test_what_no_iommu_here_has(desk: IommufdDesk) -> None:
    fd, _, _ = desk.attached()
    for request, layout, values, number in (
        (uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "III", (1, 3, 0), errno.EOPNOTSUPP),
        (uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, "III", (1, 99, 0), errno.ENOENT),
        (uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "IIIQQQQ", (3, 0, 0, 0, 0, 0, 0), errno.EOPNOTSUPP),
        (uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, "IIIQQQQ", (1, 0, 0, 0, 0, 0, 0), errno.ENOENT),
        (uapi.IOMMU_HWPT_INVALIDATE, "IQIIII", (3, 0, 0, 0, 0, 0), errno.EINVAL),
        (uapi.IOMMU_HWPT_INVALIDATE, "IQIIII", (99, 0, 0, 0, 0, 0), errno.ENOENT),
        (uapi.IOMMU_HWPT_INVALIDATE, "IQIIII", (3, 0, 0, 0, 1, 0), errno.EINVAL),
        (uapi.IOMMU_FAULT_QUEUE_ALLOC, "III", (0, 0, 0), errno.EOPNOTSUPP),
        (uapi.IOMMU_VIOMMU_ALLOC, "IIIIIIIQ", (0, 1, 2, 3, 0, 0, 0, 0), errno.EOPNOTSUPP),
        (uapi.IOMMU_VIOMMU_ALLOC, "IIIIIIIQ", (0, 1, 99, 3, 0, 0, 0, 0), errno.ENOENT),
        (uapi.IOMMU_VDEVICE_ALLOC, "IIIQ", (9, 2, 0, 0), errno.ENOENT),
        (uapi.IOMMU_VEVENTQ_ALLOC, "IIIIIII", (0, 9, 1, 1, 0, 0, 0), errno.ENOENT),
        (uapi.IOMMU_VEVENTQ_ALLOC, "IIIIIII", (0, 9, 1, 0, 0, 0, 0), errno.EINVAL),
        (uapi.IOMMU_VEVENTQ_ALLOC, "IIIIIII", (0, 9, 0, 1, 0, 0, 0), errno.EOPNOTSUPP),
        (uapi.IOMMU_HW_QUEUE_ALLOC, "IIIIIQQ", (0, 9, 1, 0, 0, 0, 1), errno.ENOENT),
        (uapi.IOMMU_HW_QUEUE_ALLOC, "IIIIIQQ", (0, 9, 1, 0, 0, ALL, 2), errno.EOVERFLOW),
        (uapi.IOMMU_HW_QUEUE_ALLOC, "IIIIIQQ", (0, 9, 1, 0, 0, 0, 0), errno.EINVAL),
        (uapi.IOMMU_HW_QUEUE_ALLOC, "IIIIIQQ", (0, 9, 0, 0, 0, 0, 1), errno.EOPNOTSUPP),
    ):
        with refused(desk, number):
            desk.ask(fd, request, layout, *values)


def test_hardware_information_fills_the_buffer_as_far_as_it_goes(desk: IommufdDesk) -> None:
    fd, _, _ = desk.attached()
    at = desk.me.memory.allocate(64)
    desk.me.memory.write(at, b"\xff" * 64)
    layout = "IIIQIBBHQ"
    answer = desk.ask(fd, uapi.IOMMU_GET_HW_INFO, layout, 0, 2, 48, at, 0, 0, 0, 0, 0)
    assert (answer[2], answer[4], answer[8]) == (24, 1, 8)
    raw = desk.me.memory.read(at, 64)
    _, _, cap, ecap = struct.unpack_from("<IIQQ", raw)
    assert (cap >> 16 & 63) + 1 == 48, "the width of addresses"
    assert cap & 3 << 34 == 3 << 34, "pages of 2 MiB and 1 GiB"
    assert ecap & 1 << 3, "interrupt remapping"
    assert raw[24:48] == bytes(24)
    assert raw[48:] == b"\xff" * 16
    desk.me.memory.write(at, b"\xff" * 64)
    desk.ask(fd, uapi.IOMMU_GET_HW_INFO, layout, 0, 2, 4, at, 0, 0, 0, 0, 0)
    assert desk.me.memory.read(at, 8) == bytes(4) + b"\xff" * 4
    for values, number in (
        ((2, 2, 0, 0, 0, 0, 0, 0, 0), errno.EOPNOTSUPP),
        ((1, 2, 0, 0, 2, 0, 0, 0, 0), errno.EOPNOTSUPP),
        ((0, 2, 0, 0, 0, 0, 1, 0, 0), errno.EOPNOTSUPP),
        ((0, 1, 0, 0, 0, 0, 0, 0, 0), errno.ENOENT),
    ):
        with refused(desk, number):
            desk.ask(fd, uapi.IOMMU_GET_HW_INFO, layout, *values)


def test_a_large_buffer_for_hardware_information_is_cleared_in_pieces(
    desk: IommufdDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iommufd, "CLEARED", 64)
    fd, _, _ = desk.attached()
    at = desk.me.memory.allocate(PAGE)
    desk.me.memory.write(at, b"\xff" * PAGE)
    polls, poll = list[Steps](), Steps.poll

    def counted(steps: Steps) -> bool:
        polls.append(steps)
        return poll(steps)

    monkeypatch.setattr(Steps, "poll", counted)
    answer = desk.ask(fd, uapi.IOMMU_GET_HW_INFO, "IIIQIBBHQ", 0, 2, PAGE - 1, at, 0, 0, 0, 0, 0)
    assert (answer[2], answer[4], len(polls)) == (24, 1, PAGE // 64)
    assert desk.me.memory.read(at + 24, PAGE - 24) == bytes(PAGE - 25) + b"\xff"


# -- the end -------------------------------------------------------------------------------------


def test_a_context_lives_as_long_as_a_device_is_bound(desk: IommufdDesk) -> None:
    fd, ioas, device = desk.attached()
    buffer = desk.buffer()
    desk.ioas_map(fd, ioas, 0, PAGE, buffer)
    context = desk.context(fd)
    desk.me.close(fd)
    assert (len(context.objects), desk.me.mm.locked_pages) == (3, 1)
    desk.detach(device)
    desk.attach(device, ioas)
    desk.me.close(device)
    assert (context.objects, context.claims, desk.me.mm.locked_pages) == ({}, [], 0)
    assert desk.machine.record(ALONE).iommu is None


def test_a_process_that_exits_leaves_nothing(desk: IommufdDesk) -> None:
    before = desk.snapshot()
    child = Process(desk.machine, abi="mainline")
    desk.me, me = child, desk.me
    fd, ioas, device = desk.attached()
    desk.ioas_map(fd, ioas, 0, PAGE, desk.buffer())
    desk.me.mmap_at(device, PAGE, 2 << 40)
    desk.cdev(FIRST)
    child.exit()
    desk.me = me
    assert child.mm.locked_pages == 0
    assert desk.snapshot() == before


@pytest.mark.parametrize(
    ("spec", "number"),
    [
        (IommuSpec(coherent=False), errno.EINVAL),
        (IommuSpec(interrupt_remapping=False), errno.EPERM),
    ],
)
def test_iommus_that_are_not_good_enough(spec: IommuSpec, number: int) -> None:
    desk = IommufdDesk(iommu=spec)
    fd, device = desk.iommufd(), desk.cdev(SECOND)
    with refused(desk, number):
        desk.bind(device, fd)
