"""The container's ABI on /dev/iommu."""

from __future__ import annotations

import errno
import struct

import pytest

from support.iommufd import ALL, IommufdDesk
from support.mainline import ALONE, FOREIGN, PAGE, refused
from uvfio.uapi import vfio

TOP = 1 << 64
VIABLE, INSIDE = vfio.VFIO_GROUP_FLAGS_VIABLE, vfio.VFIO_GROUP_FLAGS_CONTAINER_SET


@pytest.fixture
def desk() -> IommufdDesk:
    return IommufdDesk()


def compat(desk: IommufdDesk, version: int = 2) -> tuple[int, int]:
    """(iommufd, group) with the group in it and a type chosen."""
    fd, group = desk.iommufd(), desk.group(1)
    desk.set_container(group, fd)
    desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, 1 if version == 1 else 3)
    return fd, group


def test_before_there_is_an_address_space(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    assert desk.me.ioctl(fd, vfio.VFIO_GET_API_VERSION) == 0
    asked = [desk.me.ioctl(fd, vfio.VFIO_CHECK_EXTENSION, n) for n in (1, 2, 3, 5, 8, 9, 10)]
    assert asked == [1, 0, 1, 0, 0, 1, 0]
    with refused(desk, errno.ENODEV):
        desk.me.ioctl(fd, vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_DMA_CC_IOMMU)
    with refused(desk, errno.ENODEV):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, 3)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(fd, vfio.VFIO_SET_IOMMU, 8)
    with refused(desk, errno.ENODEV):
        desk.map(fd, 0, PAGE, desk.buffer())
    with refused(desk, errno.ENODEV):
        desk.unmap(fd, 0, PAGE)
    with refused(desk, errno.ENODEV):
        desk.vfio_ioas(fd, 0)


def test_the_address_space_can_be_chosen(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    ioas = desk.ioas(fd)
    desk.vfio_ioas(fd, 1, ioas)
    assert desk.vfio_ioas(fd, 0) == ioas
    desk.map(fd, 0, PAGE, desk.buffer())
    assert desk.ioas_unmap(fd, ioas, 0, ALL) == PAGE
    with refused(desk, errno.ENOENT):
        desk.vfio_ioas(fd, 1, 99)
    with refused(desk, errno.EOPNOTSUPP):
        desk.vfio_ioas(fd, 3)
    desk.vfio_ioas(fd, 2)
    with refused(desk, errno.ENODEV):
        desk.vfio_ioas(fd, 0)
    desk.vfio_ioas(fd, 1, ioas)
    desk.destroy(fd, ioas)
    with refused(desk, errno.ENODEV):
        desk.vfio_ioas(fd, 0)


def test_what_the_iommu_says(desk: IommufdDesk) -> None:
    fd, group = compat(desk)
    raw = bytearray(struct.pack("<IIQII", 24, 0, 0, 0, 0))
    desk.me.ioctl(fd, vfio.VFIO_IOMMU_GET_INFO, raw)
    assert struct.unpack("<IIQII", raw) == (72, 3, TOP - PAGE, 0, 0)
    desk.device(group, ALONE)
    assert desk.me.ioctl(fd, vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_DMA_CC_IOMMU) == 1
    raw = bytearray(struct.pack("<IIQII", 96, 0, 0, 0, 0) + bytes(72))
    desk.me.ioctl(fd, vfio.VFIO_IOMMU_GET_INFO, raw)
    argsz, flags, sizes, at, _ = struct.unpack_from("<IIQII", raw)
    assert (argsz, flags, sizes, at) == (88, 3, 0x40201000, 24)
    assert struct.unpack_from("<HHII", raw, 24) == (3, 1, 40, 0xFFFFFFFF)
    assert struct.unpack_from("<HHIII", raw, 40) == (1, 1, 0, 2, 0)
    assert struct.unpack_from("<QQ", raw, 56) == (0, 0xFEDFFFFF)


@pytest.mark.parametrize("version", [1, 2])
def test_mapping(desk: IommufdDesk, version: int) -> None:
    fd, group = compat(desk, version)
    device = desk.device(group, ALONE)
    buffer = desk.buffer(4 * PAGE)
    desk.map(fd, 0x100000, 4 * PAGE, buffer)
    assert desk.me.mm.locked_pages == 4
    bar = desk.me.mmap_at(device, PAGE, 2 << 40)
    for arguments, number in (
        ((0x100000, PAGE, buffer), errno.EEXIST),
        ((TOP - PAGE, 2 * PAGE, buffer), errno.EOVERFLOW),
        ((0x200000, PAGE, bar), errno.EFAULT),
        ((0xFEE00000, PAGE, buffer), errno.EINVAL),
        ((0x200000, PAGE, buffer, 4), errno.EINVAL),
        ((0x200000, PAGE, buffer, 0), errno.EINVAL),
        ((0x200000, PAGE, buffer, 3, 31), errno.EINVAL),
    ):
        with refused(desk, number):
            desk.map(fd, *arguments)
    with refused(desk, errno.EOVERFLOW):
        desk.unmap(fd, TOP - PAGE, 2 * PAGE)
    with refused(desk, errno.EINVAL):
        desk.unmap(fd, PAGE, PAGE, vfio.VFIO_DMA_UNMAP_FLAG_ALL)
    with refused(desk, errno.EINVAL):
        desk.unmap(fd, PAGE, PAGE, vfio.VFIO_DMA_UNMAP_FLAG_VADDR)
    with refused(desk, errno.ENOENT):
        desk.unmap(fd, 0x900000, PAGE)
    if version == 1:
        assert desk.unmap(fd, 0x101000, PAGE) == PAGE
        assert desk.me.mm.locked_pages == 3
        with refused(desk, errno.EINVAL):
            desk.unmap(fd, 0x102800, PAGE)
        with refused(desk, errno.ENOENT):
            desk.unmap(fd, 0x101000, PAGE)
        assert desk.unmap(fd, 0x102000, PAGE) == PAGE
        assert desk.unmap(fd, 0, 0, vfio.VFIO_DMA_UNMAP_FLAG_ALL) == 2 * PAGE
    else:
        with refused(desk, errno.ENOENT):
            desk.unmap(fd, 0x101000, PAGE)
        assert desk.unmap(fd, 0, 0, vfio.VFIO_DMA_UNMAP_FLAG_ALL) == 4 * PAGE
    assert desk.me.mm.locked_pages == 0


def test_a_group_joins_and_leaves(desk: IommufdDesk) -> None:
    fd, group = desk.iommufd(), desk.group(1)
    assert desk.status(group) == VIABLE
    desk.set_container(group, fd)
    assert desk.status(group) == VIABLE | INSIDE
    with refused(desk, errno.EINVAL):
        desk.set_container(group, fd)
    desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    container = desk.container(version=None)
    desk.set_container(group, container)
    assert desk.context(fd).claims == []


def test_a_group_may_leave_while_its_device_is_open(desk: IommufdDesk) -> None:
    fd, group = compat(desk)
    device = desk.device(group, ALONE)
    desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    assert desk.status(group) == 0
    assert len(desk.me.pread(device, 4, 7 << 40)) == 4
    with refused(desk, errno.EINVAL):
        desk.device(group, ALONE)
    container = desk.container(version=None)
    with refused(desk, errno.EPERM):
        desk.set_container(group, container)
    desk.me.close(device)
    assert desk.context(fd).claims == []
    desk.set_container(group, container)


def test_opening_a_device_binds_and_attaches_it(desk: IommufdDesk) -> None:
    fd, group = compat(desk)
    one, two = desk.device(group, ALONE), desk.device(group, ALONE)
    context = desk.context(fd)
    assert len(context.objects) == 3
    desk.me.close(group)
    desk.me.close(fd)
    desk.me.close(one)
    assert len(context.objects) == 3
    with refused(desk, errno.EBUSY):
        desk.group(1)
    desk.me.close(two)
    assert context.objects == {}
    desk.group(1)


def test_a_device_that_cannot_be_attached_is_not_open(desk: IommufdDesk) -> None:
    fd, group = compat(desk)
    desk.map(fd, 0xFEE00000, PAGE, desk.buffer())
    with refused(desk, errno.EADDRINUSE):
        desk.device(group, ALONE)
    desk.vfio_ioas(fd, 2)
    with refused(desk, errno.ENODEV):
        desk.device(group, ALONE)


def test_a_driver_of_the_host_is_in_the_way_of_opening_only() -> None:
    desk = IommufdDesk()
    desk.machine.plug("exerciser@0000:00:03.0,group=3")
    fd, group = desk.iommufd(), desk.group(3)
    desk.set_container(group, fd)
    with refused(desk, errno.EPERM):
        desk.device(group, "0000:00:03.0")
    desk.machine.unbind(FOREIGN)
    desk.machine.bind(FOREIGN, "nvme")
    desk.machine.unbind(FOREIGN)
    desk.device(group, "0000:00:03.0")
    with pytest.raises(OSError, match="reserved"):
        desk.machine.bind(FOREIGN, "nvme")


def test_the_end_of_the_group(desk: IommufdDesk) -> None:
    fd, group = compat(desk)
    desk.machine.unbind(ALONE)
    assert desk.context(fd).claims == []
    with refused(desk, errno.ENODEV):
        desk.status(group)
