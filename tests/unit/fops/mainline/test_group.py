"""The group file of the mainline ABI, request by request: answers, and every errno in its order."""

from __future__ import annotations

import errno
import struct

import pytest

from support.mainline import (
    ALONE,
    FIRST,
    FOREIGN,
    NOWHERE,
    PAGE,
    SECOND,
    Desk,
    refused,
)
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


# -- the group file ------------------------------------------------------------------------------


def test_a_group_opens_once_and_lives_as_long_as_its_devices(desk: Desk) -> None:
    container, group, device = desk.ready()
    with refused(desk, errno.EBUSY):
        desk.group(1)
    desk.me.close(container)
    desk.me.close(group)
    assert desk.me.pread(device, 2, 7 << 40)
    with refused(desk, errno.EBUSY):
        desk.group(1)
    desk.me.close(device)
    desk.me.close(desk.group(1))


def test_groups_without_vfio_devices_have_no_node(desk: Desk) -> None:
    for path in ("/dev/vfio/3", "/dev/vfio/9999"):
        with refused(desk, errno.ENOENT):
            desk.me.open(path)
    desk.machine.unbind(FOREIGN)
    desk.machine.bind(FOREIGN)
    desk.group(3)


def test_status(desk: Desk) -> None:
    group = desk.group(2)
    assert desk.status(group) == VIABLE
    desk.machine.unbind(SECOND)
    assert desk.status(group) == VIABLE
    desk.machine.bind(SECOND, "nvme")
    assert desk.status(group) == 0
    desk.machine.unbind(SECOND)
    desk.container(group, version=None)
    assert desk.status(group) == VIABLE | CONTAINER_SET


def test_the_errors_of_status(desk: Desk) -> None:
    group = desk.group(1)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(group, vfio.VFIO_GROUP_GET_STATUS, vfio.HEAD.pack(7, 0))
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(group, vfio.VFIO_GROUP_GET_STATUS, NOWHERE)
    desk.machine.unbind(ALONE)
    with refused(desk, errno.ENODEV):
        desk.status(group)


def test_set_container(desk: Desk) -> None:
    group, container = desk.group(1), desk.container(version=None)
    for fd in (-1, 999):
        with refused(desk, errno.EBADF):
            desk.set_container(group, fd)
    for fd in (group, desk.me.eventfd()):
        with refused(desk, errno.EBADFD):
            desk.set_container(group, fd)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, NOWHERE)
    desk.set_container(group, container)
    for fd in (container, desk.container(version=None), group):
        with refused(desk, errno.EINVAL):
            desk.set_container(group, fd)
    with refused(desk, errno.EBADF):
        desk.set_container(group, -1)


def test_a_group_with_a_host_driver_joins_nothing(desk: Desk) -> None:
    group, container = desk.group(2), desk.container(version=None)
    desk.machine.unbind(SECOND)
    desk.machine.bind(SECOND, "nvme")
    with refused(desk, errno.EPERM):
        desk.set_container(group, container)


def test_containers_of_another_machine_are_none(desk: Desk) -> None:
    group = desk.group(1)
    other = Desk()
    file = other.me.file(other.container(version=None))
    fd = desk.me.install(file, False)
    with refused(desk, errno.EBADFD):
        desk.set_container(group, fd)


def test_unset_container(desk: Desk) -> None:
    group = desk.group(1)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    container = desk.container(group)
    desk.map(container, 0, PAGE, desk.buffer())
    device = desk.device(group, ALONE)
    with refused(desk, errno.EBUSY):
        desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    desk.me.close(device)
    desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    assert desk.me.mm.locked_pages == 0
    with refused(desk, errno.EINVAL):
        desk.map(container, 0, PAGE, desk.buffer())
    desk.set_container(group, container)
    desk.me.ioctl(container, vfio.VFIO_SET_IOMMU, 3)


def test_a_closed_group_leaves_the_container_without_an_iommu(desk: Desk) -> None:
    group = desk.group(1)
    container = desk.container(group)
    desk.me.close(group)
    with refused(desk, errno.EINVAL):
        desk.map(container, 0, PAGE, desk.buffer())
    assert desk.me.ioctl(container, vfio.VFIO_CHECK_EXTENSION, 3) == 1


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0000:ff:1f.7", errno.ENODEV),
        ("", errno.ENODEV),
        ("hello", errno.ENODEV),
        (ALONE[5:], errno.ENODEV),
        (f"{ALONE}x", errno.ENODEV),
        (FIRST, errno.ENODEV),
        (f"{ALONE} x", errno.EINVAL),
        (f"{ALONE} vf_token=00000000-0000-0000-0000-000000000000", errno.EINVAL),
        ("a" * PAGE, errno.EINVAL),
    ],
)
def test_names_of_devices(desk: Desk, name: str, number: int) -> None:
    group = desk.group(1)
    desk.container(group)
    with refused(desk, number):
        desk.device(group, name)


def test_spaces_behind_a_name_are_harmless(desk: Desk) -> None:
    group = desk.group(1)
    desk.container(group)
    desk.device(group, f"{ALONE}  ")


def test_the_order_of_getting_a_device(desk: Desk) -> None:
    group = desk.group(1)
    with refused(desk, errno.ENODEV):
        desk.device(group, "0000:ff:1f.7")
    with refused(desk, errno.EINVAL):
        desk.device(group, ALONE)
    desk.container(group, version=None)
    with refused(desk, errno.EINVAL):
        desk.device(group, ALONE)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(group, vfio.VFIO_GROUP_GET_DEVICE_FD, NOWHERE)


def test_a_program_without_free_descriptors_gets_no_device(desk: Desk) -> None:
    group = desk.group(1)
    desk.container(group)
    desk.me.max_files = 5
    with refused(desk, errno.EMFILE):
        desk.device(group, ALONE)


def test_a_group_is_not_read_and_knows_no_other_ioctl(desk: Desk) -> None:
    group = desk.group(1)
    desk.status(group)
    for command in (UNKNOWN, vfio.VFIO_DEVICE_GET_INFO):
        with refused(desk, errno.ENOTTY):
            desk.me.ioctl(group, command)
    with refused(desk, errno.EINVAL):
        desk.me.pread(group, 8, 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(group, PAGE, 0)


def test_everything_goes_with_the_program(desk: Desk) -> None:
    container, _, _ = desk.ready()
    desk.map(container, 0, PAGE, desk.buffer())
    desk.me.exit()
    assert desk.me.mm.locked_pages == 0
    assert all(group.iommu is None for group in desk.framework.groups)
