"""/dev/vfio/vfio: the container of the mainline group ABI, request by request."""

from __future__ import annotations

import errno
import struct

import pytest

from support.mainline import (
    NOWHERE,
    PAGE,
    Desk,
    refused,
)
from support.world import SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation.iova import Mapping
from uvfio.fops.mainline import container
from uvfio.fops.mainline.container import ContainerFile
from uvfio.machine.spec import IommuSpec
from uvfio.uapi import vfio

VIABLE, CONTAINER_SET = vfio.VFIO_GROUP_FLAGS_VIABLE, vfio.VFIO_GROUP_FLAGS_CONTAINER_SET
UNKNOWN = 0x3BA0
TOP = 1 << 64
BOTH = pytest.mark.parametrize("version", [1, 2])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def words(desk: Desk, address: int, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}Q", desk.me.memory.read(address, 8 * count)))


# -- the container file --------------------------------------------------------------------------


def test_a_container_is_not_read_written_or_mapped(desk: Desk) -> None:
    fd = desk.container(version=None)
    with refused(desk, errno.EINVAL):
        desk.me.pread(fd, 8, 0)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(fd, b"x", 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(fd, PAGE, 0)
    file = desk.me.file(fd)
    assert isinstance(file, ContainerFile)
    assert (file.name, file.kind, file.structural) == ("/dev/vfio/vfio", "container", True)


def test_the_api_version_is_0_whatever_the_argument(desk: Desk) -> None:
    fd = desk.container(version=None)
    assert desk.me.ioctl(fd, vfio.VFIO_GET_API_VERSION, 7) == 0


@pytest.mark.parametrize("with_iommu", [False, True])
def test_extensions(desk: Desk, with_iommu: bool) -> None:
    fd = desk.container(desk.group(1), version=2 if with_iommu else None)
    there = {
        number
        for number in [*range(13), 999, 1 << 40]
        if desk.me.ioctl(fd, vfio.VFIO_CHECK_EXTENSION, number)
    }
    assert there == ({1, 3, 4, 9, 10} if with_iommu else {1, 3, 9})


def test_cache_coherency_is_the_iommus() -> None:
    desk = Desk(iommu=IommuSpec(coherent=False))
    fd = desk.container(desk.group(1))
    assert desk.me.ioctl(fd, vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_DMA_CC_IOMMU) == 0


@pytest.mark.parametrize(
    "command",
    [
        vfio.VFIO_IOMMU_GET_INFO,
        vfio.VFIO_IOMMU_MAP_DMA,
        vfio.VFIO_IOMMU_UNMAP_DMA,
        vfio.VFIO_IOMMU_DIRTY_PAGES,
        vfio.VFIO_DEVICE_GET_INFO,
        UNKNOWN,
    ],
)
def test_a_container_without_an_iommu_knows_nothing_else(desk: Desk, command: int) -> None:
    empty = desk.container(version=None)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(empty, command, NOWHERE)
    desk.set_container(desk.group(1), empty)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(empty, command, NOWHERE)


def test_what_a_container_with_an_iommu_does_not_know(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    for command in (UNKNOWN, vfio.VFIO_IOMMU_ENABLE, vfio.VFIO_IOMMU_DISABLE):
        with refused(desk, errno.ENOTTY):
            desk.me.ioctl(fd, command)


# -- VFIO_SET_IOMMU ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 3, 99])
def test_an_empty_container_gets_no_iommu(desk: Desk, kind: int) -> None:
    fd = desk.container(version=None)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, kind)


@pytest.mark.parametrize("kind", [0, 2, 4, 6, 7, 8, 9, 99])
def test_kinds_of_iommu_that_do_not_exist(desk: Desk, kind: int) -> None:
    fd = desk.container(desk.group(1), version=None)
    with refused(desk, errno.ENODEV):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, kind)


@pytest.mark.parametrize("again", [1, 3, 99])
def test_an_iommu_is_chosen_once(desk: Desk, again: int) -> None:
    fd = desk.container(desk.group(1), version=1)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, again)


def test_unsafe_interrupts_are_eperm() -> None:
    desk = Desk(iommu=IommuSpec(interrupt_remapping=False))
    fd = desk.container(desk.group(1), version=None)
    with refused(desk, errno.EPERM):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, 1)


# -- VFIO_IOMMU_GET_INFO -------------------------------------------------------------------------


def iommu_info(desk: Desk, fd: int, argsz: int) -> bytes:
    answer = bytearray(struct.pack("<II", argsz, 0xFF) + b"\xee" * max(argsz, 112))
    desk.me.ioctl(fd, vfio.VFIO_IOMMU_GET_INFO, answer)
    return bytes(answer)


def test_info_says_how_large_it_has_to_be(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    short = iommu_info(desk, fd, 16)
    assert struct.unpack_from("<IIQ", short) == (120, 3, 0x40201000)
    assert short[16:] == b"\xee" * (len(short) - 16)
    assert struct.unpack_from("<IIQII", iommu_info(desk, fd, 24)) == (120, 3, 0x40201000, 0, 0)
    assert struct.unpack_from("<IIQII", iommu_info(desk, fd, 119)) == (120, 3, 0x40201000, 0, 0)


def test_info_has_a_chain_of_capabilities(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    desk.map(fd, 0, PAGE, desk.buffer())
    full = iommu_info(desk, fd, 120)
    assert struct.unpack_from("<IIQII", full) == (120, 3, 0x40201000, 24, 0)
    assert struct.unpack_from("<HHIIxxxxQQ", full, 24) == (2, 1, 56, 0, PAGE, 0x10000000)
    assert struct.unpack_from("<HHII", full, 56) == (3, 1, 72, 65534)
    assert struct.unpack_from("<HHIII4Q", full, 72) == (
        *(1, 1, 0, 2, 0),
        *(0, 0xFEDFFFFF, 0xFEF00000, (1 << 48) - 1),
    )
    assert iommu_info(desk, fd, 4096)[:120] == struct.pack("<I", 4096) + full[4:120]


def test_the_errors_of_info(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    with refused(desk, errno.EINVAL):
        iommu_info(desk, fd, 15)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, vfio.VFIO_IOMMU_GET_INFO, NOWHERE)


# -- VFIO_IOMMU_MAP_DMA --------------------------------------------------------------------------


@BOTH
def test_map(desk: Desk, version: int) -> None:
    fd = desk.container(desk.group(1), version=version)
    vaddr = desk.buffer(0x10000)
    desk.map(fd, 0x100000, 0x10000, vaddr)
    desk.map(fd, 0x110000, PAGE, vaddr, argsz=64)
    assert desk.me.mm.locked_pages == 17
    for iova, size in ((0x100000, 0x10000), (0x10F000, 0x2000), (0x104000, PAGE), (0, 1 << 30)):
        with refused(desk, errno.EEXIST):
            desk.map(fd, iova, size, vaddr)


@pytest.mark.parametrize(
    ("iova", "size", "vaddr", "flags", "number"),
    [
        (0x200800, PAGE, 0, 3, errno.EINVAL),
        (0x200000, PAGE, 0x800, 3, errno.EINVAL),
        (0x200000, 0x1800, 0, 3, errno.EINVAL),
        (0x200000, 0, 0, 3, errno.EINVAL),
        (0x200000, PAGE, 0, 0, errno.EINVAL),
        (0x200000, PAGE, 0, 0x83, errno.EINVAL),
        (0x200000, PAGE, 0, 7, errno.EINVAL),
        (TOP - PAGE, 2 * PAGE, 0, 3, errno.EOVERFLOW),
        (TOP - PAGE, PAGE, 0, 3, errno.EINVAL),
        (0xFEE00000, PAGE, 0, 3, errno.EINVAL),
        (1 << 52, PAGE, 0, 3, errno.EINVAL),
        (0x300000, PAGE, 1 << 40, 3, errno.EFAULT),
    ],
)
def test_the_errors_of_map(
    desk: Desk, iova: int, size: int, vaddr: int, flags: int, number: int
) -> None:
    fd = desk.container(desk.group(1))
    with refused(desk, number):
        desk.map(fd, iova, size, desk.buffer() + vaddr, flags)


def test_a_vaddr_that_wraps(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    with refused(desk, errno.EOVERFLOW):
        desk.map(fd, 0, 2 * PAGE, TOP - PAGE)


def test_map_needs_its_whole_struct(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    with refused(desk, errno.EINVAL):
        desk.map(fd, 0, PAGE, desk.buffer(), argsz=31)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, vfio.VFIO_IOMMU_MAP_DMA, NOWHERE)


def test_memory_that_cannot_be_written_is_mapped_for_reading_only(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    vaddr = desk.buffer(writable=False)
    with refused(desk, errno.EFAULT):
        desk.map(fd, 0, PAGE, vaddr)
    desk.map(fd, 0, PAGE, vaddr, vfio.VFIO_DMA_MAP_FLAG_READ)


def test_limits_on_memory_and_on_mappings_differ() -> None:
    desk = Desk(iommu=IommuSpec(dma_entry_limit=1))
    fd = desk.container(desk.group(1))
    desk.me.memlock = PAGE
    with refused(desk, errno.ENOMEM):
        desk.map(fd, 0, 2 * PAGE, desk.buffer(2 * PAGE))
    desk.map(fd, 0, PAGE, desk.buffer())
    with refused(desk, errno.ENOSPC):
        desk.map(fd, PAGE, PAGE, desk.buffer())


def test_a_mapped_bar_can_be_mapped_for_dma(desk: Desk) -> None:
    container, _, device = desk.ready()
    vaddr = desk.me.mmap_at(device, PAGE, 2 << 40)
    desk.map(container, 0, PAGE, vaddr)
    assert desk.me.mm.locked_pages == 0


def test_a_stale_mapping_gets_a_new_address(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    vaddr, other = desk.buffer(), desk.buffer()
    desk.map(fd, 0, PAGE, vaddr)
    only = vfio.VFIO_DMA_MAP_FLAG_VADDR
    with refused(desk, errno.EINVAL):
        desk.map(fd, 0, PAGE, other, only)
    assert desk.unmap(fd, 0, PAGE, vfio.VFIO_DMA_UNMAP_FLAG_VADDR) == PAGE
    with refused(desk, errno.ENOENT):
        desk.map(fd, PAGE, PAGE, other, only)
    desk.map(fd, 0, PAGE, other, only)


# -- VFIO_IOMMU_UNMAP_DMA ------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "head"), [(1, 0x10000), (2, None)])
def test_the_head_of_a_mapping(desk: Desk, version: int, head: int | None) -> None:
    fd = desk.container(desk.group(1), version=version)
    desk.map(fd, 0x100000, 0x10000, desk.buffer(0x10000))
    if head is None:
        for iova in (0x100000, 0x104000, 0x10F000):
            with refused(desk, errno.EINVAL):
                desk.unmap(fd, iova, PAGE)
        return
    assert desk.unmap(fd, 0x104000, PAGE) == 0
    assert desk.unmap(fd, 0x100000, PAGE) == head


@BOTH
def test_unmap(desk: Desk, version: int) -> None:
    fd = desk.container(desk.group(1), version=version)
    desk.map(fd, 0, PAGE, desk.buffer())
    desk.map(fd, 2 * PAGE, PAGE, desk.buffer())
    assert desk.unmap(fd, 0x900000, PAGE) == 0
    assert desk.unmap(fd, 0, 4 * PAGE) == 2 * PAGE
    desk.map(fd, 0, PAGE, desk.buffer())
    everything = vfio.VFIO_DMA_UNMAP_FLAG_ALL
    with refused(desk, errno.EINVAL):
        desk.unmap(fd, PAGE, PAGE, everything)
    assert desk.unmap(fd, 0, 0, everything) == PAGE
    assert desk.unmap(fd, 0, 0, everything) == 0
    assert desk.unmap(fd, 0, PAGE, vfio.VFIO_DMA_UNMAP_FLAG_VADDR) == 0


@pytest.mark.parametrize(
    ("iova", "size", "flags", "argsz", "number"),
    [
        (0, 0, 0, 24, errno.EINVAL),
        (0x800, PAGE, 0, 24, errno.EINVAL),
        (0, 0x1800, 0, 24, errno.EINVAL),
        (0, PAGE, 0, 23, errno.EINVAL),
        (0, PAGE, 0x80, 24, errno.EINVAL),
        (0, 0, 3, 48, errno.EINVAL),
        (0, PAGE, 5, 48, errno.EINVAL),
        (0, PAGE, 1, 47, errno.EINVAL),
        (TOP - PAGE, 2 * PAGE, 0, 24, errno.EOVERFLOW),
    ],
)
def test_the_errors_of_unmap(
    desk: Desk, iova: int, size: int, flags: int, argsz: int, number: int
) -> None:
    fd = desk.container(desk.group(1))
    desk.map(fd, 0, PAGE, desk.buffer())
    with refused(desk, number):
        desk.unmap(fd, iova, size, flags, argsz)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, vfio.VFIO_IOMMU_UNMAP_DMA, NOWHERE)


# -- dirty pages ---------------------------------------------------------------------------------

START, STOP, GET = (1, 2, 4)


def dirty(desk: Desk, fd: int, flags: int, *values: int, argsz: int | None = None) -> None:
    """``values``: iova, size, page, bytes of the bitmap, its address."""
    body = struct.pack(f"<{len(values)}Q", *values)
    head = vfio.HEAD.pack(8 + len(body) if argsz is None else argsz, flags)
    desk.me.ioctl(fd, vfio.VFIO_IOMMU_DIRTY_PAGES, head + body)


def test_version_1_tracks_nothing(desk: Desk) -> None:
    fd = desk.container(desk.group(1), version=1)
    for flags in (START, STOP, GET, 3):
        with refused(desk, errno.EACCES):
            dirty(desk, fd, flags)


def test_every_mapped_page_is_dirty(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    desk.map(fd, PAGE, 2 * PAGE, desk.buffer(2 * PAGE))
    desk.map(fd, 66 * PAGE, 70 * PAGE, desk.buffer(70 * PAGE))
    dirty(desk, fd, START)
    dirty(desk, fd, START)
    bitmap = desk.buffer()
    dirty(desk, fd, GET, 0, 192 * PAGE, PAGE, 24, bitmap)
    bits = sum(word << 64 * n for n, word in enumerate(words(desk, bitmap, 3)))
    assert bits == 0b110 | ((1 << 70) - 1) << 66
    dirty(desk, fd, STOP)
    dirty(desk, fd, STOP)
    with refused(desk, errno.EINVAL):
        dirty(desk, fd, GET, 0, 192 * PAGE, PAGE, 24, bitmap)


def test_the_errors_of_dirty_pages(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    desk.map(fd, 0, 2 * PAGE, desk.buffer(2 * PAGE))
    dirty(desk, fd, START)
    bitmap = desk.buffer()
    for flags in (0, 3, 5, 8):
        with refused(desk, errno.EINVAL):
            dirty(desk, fd, flags)
    for values in (
        (0, 2 * PAGE, PAGE, 7, bitmap),  # too small
        (0, 2 * PAGE, PAGE, 1 << 29, bitmap),  # too large
        (0, 2 * PAGE, 0, 8, bitmap),
        (0, 2 * PAGE, 2 << 20, 8, bitmap),
        (0, 4 << 20, 2 << 20, 8, bitmap),
        (0, 0, PAGE, 8, bitmap),
        (1, 2 * PAGE, PAGE, 8, bitmap),
        (0, PAGE, PAGE, 8, bitmap),  # cuts
    ):
        with refused(desk, errno.EINVAL):
            dirty(desk, fd, GET, *values)
    with refused(desk, errno.EINVAL):
        dirty(desk, fd, GET, 0, 2 * PAGE, PAGE, 8)
    with refused(desk, errno.EINVAL):
        dirty(desk, fd, START, argsz=7)
    with refused(desk, errno.EFAULT):
        dirty(desk, fd, GET, 0, 2 * PAGE, PAGE, 8, NOWHERE)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(fd, vfio.VFIO_IOMMU_DIRTY_PAGES, NOWHERE)


def test_unmap_may_bring_the_bitmap(desk: Desk) -> None:
    fd = desk.container(desk.group(1))
    desk.map(fd, PAGE, PAGE, desk.buffer())
    bitmap = desk.buffer()

    def unmap(address: int) -> None:
        raw = vfio.DMA_UNMAP.pack(48, 1, 0, 2 * PAGE) + vfio.BITMAP.pack(PAGE, 8, address)
        desk.me.ioctl(fd, vfio.VFIO_IOMMU_UNMAP_DMA, bytearray(raw))

    with refused(desk, errno.EINVAL):
        unmap(bitmap)
    dirty(desk, fd, START)
    with refused(desk, errno.EFAULT):
        unmap(NOWHERE)
    unmap(bitmap)
    assert words(desk, bitmap, 1) == [0b10]
    assert desk.me.mm.locked_pages == 0


# -- bitmaps -------------------------------------------------------------------------------------


class Bits(SparseMemory):
    """The longest write, and all bits at ``BASE`` as one number."""

    BASE = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.longest = 0

    def write(self, address: int, data: bytes) -> None:
        self.longest = max(self.longest, len(data))
        super().write(address, data)

    def bits(self, size: int) -> int:
        return int.from_bytes(self.read(self.BASE, size), "little")


@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 130])
@pytest.mark.parametrize("count", [1, 2, 62, 63, 64, 65, 128, 129, 1000, 4096])
def test_a_bitmap_has_the_pages_of_each_mapping(
    first: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "ONES", 64)
    memory, size = Bits(), 1024
    bitmap = container.Bitmap(vfio.BITMAP.pack(PAGE, size, Bits.BASE))
    mm = Mm(memory)
    for start, pages in ((0, first), (first, count)):
        if pages:
            begin = 0x100000 + start * PAGE
            mapping = Mapping(begin, begin + pages * PAGE - 1, 0, True, mm)
            bitmap.mark(memory, 0x100000, mapping)
    assert memory.bits(size) == (1 << first + count) - 1
    assert memory.longest <= 64
