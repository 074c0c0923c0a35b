"""The iommu file of the 2011 ABI, ioctl by ioctl: arguments, answers, every error in its order.

Programs are processes of the local door. ``refused`` asserts the errno that the program sees and that
nothing changed, descriptors and locked memory included.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from support.rfc2011 import (
    NOWHERE,
    UNKNOWN,
    Desk,
    at_end_of_memory,
    read_only,
)
from support.world import (
    PAGE,
    RAM,
    device_fd,
    iommu_fd,
    map_dma,
    refused,
    same_state,
    unmap_dma,
)
from uvfio.core.seams import Mm
from uvfio.errors import Gone
from uvfio.fops.rfc2011.iommu import IommuFile
from uvfio.uapi import rfc


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- iommu file ----------------------------------------------------------------------------------


def test_iommu_flags_are_map_any(desk: Desk) -> None:
    iommu, answer = iommu_fd(desk.me, desk.g1), bytearray(8)
    desk.me.ioctl(iommu, rfc.VFIO_IOMMU_GET_FLAGS, answer)
    assert answer == rfc.U64.pack(rfc.VFIO_IOMMU_FLAGS_MAP_ANY)


def test_iommu_flags_need_a_writable_place(desk: Desk) -> None:
    iommu, address = iommu_fd(desk.me, desk.g1), read_only(desk)
    for bad in (NOWHERE, address):
        with refused(desk, errno.EFAULT):
            desk.me.ioctl(iommu, rfc.VFIO_IOMMU_GET_FLAGS, bad)


def test_d07_unknown_iommu_ioctls_are_enotty(desk: Desk) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    for request in (UNKNOWN, rfc.VFIO_GROUP_GET_FLAGS, rfc.VFIO_DEVICE_RESET):
        with refused(desk, errno.ENOTTY):
            desk.me.ioctl(iommu, request)


def test_an_iommu_file_has_no_read_write_or_mmap(desk: Desk) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    with refused(desk, errno.EINVAL):
        desk.me.pread(iommu, 1, 0)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(iommu, b"x", 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(iommu, PAGE, 0)


def test_map_dma_maps_the_programs_memory(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0x1000, 2 * PAGE, buffer)
    domain = desk.iommu(1).domain
    assert domain is not None
    domain.dma_write("a", 0x1FFE, b"data")
    assert desk.me.memory.read(buffer + 0xFFE, 4) == b"data"


def test_map_dma_ignores_len_and_writes_nothing_back(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    argument = bytearray(rfc.DMA_MAP.pack(0xFFFF_FFFF_0000_1234, buffer, 0, PAGE, 1))
    before = bytes(argument)
    desk.me.ioctl(iommu, rfc.VFIO_IOMMU_MAP_DMA, argument)
    assert argument == before


def test_map_dma_without_write_is_read_only(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, PAGE, buffer, flags=0)
    assert desk.mappings() == [(0, PAGE, buffer, False)]


def test_d30d_map_dma_needs_its_argument_readable_only(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    argument = rfc.DMA_MAP.pack(0, buffer, 0, PAGE, 1)
    address = desk.me.memory.place(memoryview(argument), writable=False)
    desk.me.ioctl(iommu, rfc.VFIO_IOMMU_MAP_DMA, address)
    assert len(desk.mappings()) == 1
    desk.me.ioctl(iommu, rfc.VFIO_IOMMU_UNMAP_DMA, address)
    assert desk.mappings() == []


def test_d25_map_and_unmap_are_the_owners_even_with_the_file_in_hand(desk: Desk) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    passed = desk.me.send(iommu, desk.other)
    theirs = desk.buffer(process=desk.other)
    with refused(desk, errno.EPERM):
        map_dma(desk.other, passed, 0, PAGE, theirs)
    with refused(desk, errno.EPERM):
        unmap_dma(desk.other, passed, 0, PAGE)
    desk.other.ioctl(passed, rfc.VFIO_IOMMU_GET_FLAGS, bytearray(8))


def test_d25_locked_memory_is_charged_to_the_owner(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, 2 * PAGE, buffer)
    assert (desk.me.mm.locked_pages, desk.other.mm.locked_pages) == (2, 0)


def test_d25_the_owner_stays_the_owner_while_a_passed_file_lives(desk: Desk) -> None:
    """A dead owner's address space is still known: nobody new may take its number."""
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, PAGE, buffer)
    passed = desk.me.send(iommu, desk.other)
    desk.me.exit()
    with refused(desk, errno.EPERM):
        iommu_fd(desk.other, desk.foreign)
    desk.other.close(passed)
    assert desk.me.mm.locked_pages == 0
    iommu_fd(desk.other, desk.foreign)


@pytest.mark.parametrize("size", [-1, 8, 39])
def test_map_and_unmap_need_their_whole_argument(desk: Desk, size: int) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    address = NOWHERE if size < 0 else at_end_of_memory(desk, bytes(size))
    for request in (rfc.VFIO_IOMMU_MAP_DMA, rfc.VFIO_IOMMU_UNMAP_DMA):
        with refused(desk, errno.EFAULT):
            desk.me.ioctl(iommu, request, address)


def test_a_bad_pointer_comes_before_the_owner_check(desk: Desk) -> None:
    passed = desk.me.send(iommu_fd(desk.me, desk.g1), desk.other)
    with refused(desk, errno.EFAULT):
        desk.other.ioctl(passed, rfc.VFIO_IOMMU_MAP_DMA, NOWHERE)


@pytest.mark.parametrize("flags", [2, 3, 1 << 63])
def test_d30g_unknown_flags_of_map_dma_are_refused(desk: Desk, flags: int) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    with refused(desk, errno.EINVAL):
        map_dma(desk.me, iommu, 0, PAGE, buffer, flags=flags)


@pytest.mark.parametrize(
    ("iova", "size", "offset"),
    [(0, PAGE, 1), (1, PAGE, 0), (0, 1, 0), (0, 0, 0), (-PAGE % 2**64, 2 * PAGE, 0)],
)
def test_map_dma_refuses_bad_ranges(desk: Desk, iova: int, size: int, offset: int) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    with refused(desk, errno.EINVAL):
        map_dma(desk.me, iommu, iova, size, buffer + offset)


def test_an_overlap_is_ebusy_in_this_abi(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, 2 * PAGE, buffer)
    for iova in (0, PAGE):
        with refused(desk, errno.EBUSY):
            map_dma(desk.me, iommu, iova, PAGE, buffer)


def test_too_much_locked_memory_is_enomem() -> None:
    desk = Desk(memlock=3 * PAGE)
    iommu, buffer = desk.iommu_and_buffer(8)
    map_dma(desk.me, iommu, 0, 2 * PAGE, buffer)
    with refused(desk, errno.ENOMEM):
        map_dma(desk.me, iommu, 0x10000, 2 * PAGE, buffer)
    map_dma(desk.me, iommu, 0x10000, PAGE, buffer)
    unmap_dma(desk.me, iommu, 0, 2 * PAGE)
    map_dma(desk.me, iommu, 0, 2 * PAGE, buffer)


def test_the_memory_limit_counts_all_contexts_of_the_owner() -> None:
    desk = Desk(memlock=2 * PAGE)
    first, buffer = desk.iommu_and_buffer()
    second = iommu_fd(desk.me, desk.g2)
    map_dma(desk.me, first, 0, PAGE, buffer)
    map_dma(desk.me, second, 0, PAGE, buffer)
    with refused(desk, errno.ENOMEM):
        map_dma(desk.me, second, PAGE, PAGE, buffer)
    desk.me.close(first)
    map_dma(desk.me, second, PAGE, PAGE, buffer)


def test_too_many_mappings_are_enomem(desk: Desk) -> None:
    desk.framework.dma_entry_limit = 1
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, PAGE, buffer)
    with refused(desk, errno.ENOMEM):
        map_dma(desk.me, iommu, 0x10000, PAGE, buffer)


def test_memory_that_does_not_exist_is_efault(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    with refused(desk, errno.EFAULT):
        map_dma(desk.me, iommu, 0, 5 * PAGE, buffer)
    fixed = read_only(desk)
    with refused(desk, errno.EFAULT):
        map_dma(desk.me, iommu, 0, PAGE, fixed)
    map_dma(desk.me, iommu, 0, PAGE, fixed, flags=0)


def test_order_range_overlap_limit_memory() -> None:
    desk = Desk(memlock=PAGE)
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, PAGE, buffer)
    with refused(desk, errno.EINVAL):
        map_dma(desk.me, iommu, 0, PAGE + 1, NOWHERE & ~0xFFF)
    with refused(desk, errno.EBUSY):
        map_dma(desk.me, iommu, 0, PAGE, 0)
    with refused(desk, errno.ENOMEM):
        map_dma(desk.me, iommu, PAGE, PAGE, 0)


def test_a_bar_that_the_program_has_mapped_can_be_mapped_for_dma(desk: Desk) -> None:
    """Peer to peer; device memory is not charged."""
    iommu = iommu_fd(desk.me, desk.g1)
    device = device_fd(desk.me, desk.g1, "a")
    bar = desk.me.mmap_at(device, 2 * PAGE, RAM << 40)
    map_dma(desk.me, iommu, 0x10000, 2 * PAGE, bar)
    assert desk.me.mm.locked_pages == 0
    domain = desk.iommu(1).domain
    assert domain is not None
    domain.dma_write("a", 0x10004, b"peer")
    assert desk.bounds["a"].memory[RAM][4:8] == b"peer"


def test_unmap_dma_ignores_vaddr_and_flags_and_forgives_holes(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, PAGE, PAGE, buffer)
    unmap_dma(desk.me, iommu, 0, 16 * PAGE, vaddr=0x12345)
    assert desk.mappings() == []
    unmap_dma(desk.me, iommu, 0, 16 * PAGE)


@pytest.mark.parametrize(("iova", "size"), [(1, PAGE), (0, 1), (-PAGE % 2**64, 2 * PAGE)])
def test_unmap_dma_refuses_bad_ranges(desk: Desk, iova: int, size: int) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, PAGE, buffer)
    with refused(desk, errno.EINVAL):
        unmap_dma(desk.me, iommu, iova, size)


def test_d30e_unmap_of_size_0_is_a_success_without_effect(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    map_dma(desk.me, iommu, 0, 3 * PAGE, buffer)
    with same_state(desk):
        unmap_dma(desk.me, iommu, PAGE, 0)


def test_a_revoked_iommu_file_answers_enodev(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    desk.unbind("a", revoke=True)
    for call in (
        lambda: map_dma(desk.me, iommu, 0, PAGE, buffer),
        lambda: unmap_dma(desk.me, iommu, 0, PAGE),
        lambda: desk.me.ioctl(iommu, rfc.VFIO_IOMMU_GET_FLAGS, bytearray(8)),
    ):
        with refused(desk, errno.ENODEV):
            call()


@pytest.mark.parametrize("request_", [rfc.VFIO_IOMMU_MAP_DMA, rfc.VFIO_IOMMU_UNMAP_DMA])
def test_a_context_revoked_in_the_middle_of_a_call_answers_enodev(
    desk: Desk, request_: int
) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    file = desk.me.file(iommu)
    assert isinstance(file, IommuFile)
    address = desk.buffer()
    desk.me.memory.write(address, rfc.DMA_MAP.pack(0, buffer, 0, PAGE, 1))

    class Slow:
        """A task whose identity takes so long to find out that the device is gone afterwards."""

        memory = desk.me.memory
        looks = 0

        @property
        def mm(self) -> Mm:
            self.looks += 1
            desk.unbind("a", revoke=True)
            return desk.me.mm

        def memlock_limit(self) -> int | None:
            return None

    task: Any = Slow()
    with pytest.raises(Gone):
        file.ioctl(task, request_, address)
    assert task.looks == 1
