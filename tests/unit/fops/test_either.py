"""The group file that both ABIs open: what decides which one it speaks, and what that means for others."""

from __future__ import annotations

import errno
import struct

import pytest

from support.mainline import ALONE, FIRST, SECOND, Desk, refused
from uvfio.doors.local import Process
from uvfio.fops.either import AnyGroupFile
from uvfio.fops.file import File
from uvfio.fops.mainline import device as mainline_device
from uvfio.fops.mainline.group import LegacyGroupFile
from uvfio.fops.rfc2011 import group as rfc_fops
from uvfio.uapi import rfc, vfio

UNKNOWN = 0x3BA0
SHARED = 0x3B67
EVERY = pytest.mark.parametrize("abi", ["auto", "mainline"])


def file_of(desk: Desk, fd: int) -> AnyGroupFile:
    file = desk.me.file(fd)
    assert isinstance(file, AnyGroupFile)
    return file


def flags(desk: Desk, fd: int) -> int:
    """VFIO_GROUP_GET_FLAGS, which only 2011 has."""
    answer = bytearray(8)
    desk.me.ioctl(fd, rfc.VFIO_GROUP_GET_FLAGS, answer)
    return int.from_bytes(answer, "little")


@EVERY
def test_a_file_starts_undecided(abi: str) -> None:
    desk = Desk(abi)
    group = desk.group(1)
    file = file_of(desk, group)
    assert file.chosen is None
    assert (file.name, file.kind, file.structural) == ("/dev/vfio/1", "group", True)
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(group, UNKNOWN)
    with refused(desk, errno.EINVAL):
        desk.me.pread(group, 1, 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(group, 4096, 0)
    assert file.chosen is None
    desk.me.close(group)
    assert not desk.framework.groups[0].is_open


def test_a_machine_of_2011_has_nothing_else() -> None:
    desk = Desk("2011")
    assert type(desk.me.file(desk.group(1))) is rfc_fops.GroupFile
    with refused(desk, errno.ENOENT):
        desk.me.open("/dev/vfio/vfio")


@EVERY
def test_values_of_the_rfc_make_it_2011(abi: str) -> None:
    desk = Desk(abi)
    group = desk.group(1)
    assert flags(desk, group) == rfc.VFIO_GROUP_FLAGS_VIABLE
    assert type(file_of(desk, group).chosen) is rfc_fops.GroupFile
    iommu = desk.me.ioctl(group, SHARED)
    assert isinstance(desk.me.file(iommu), rfc_fops.IommuFile)
    device = desk.me.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, ALONE)
    assert type(desk.me.file(device)) is rfc_fops.DeviceFile
    for command in (vfio.VFIO_GROUP_SET_CONTAINER, vfio.VFIO_GROUP_UNSET_CONTAINER):
        with refused(desk, errno.ENOTTY):
            desk.me.ioctl(group, command)


@EVERY
def test_values_of_mainline_make_it_mainline(abi: str) -> None:
    desk = Desk(abi)
    group = desk.group(1)
    container = desk.container(group)
    assert type(file_of(desk, group).chosen) is LegacyGroupFile
    assert desk.status(group) == 3
    device = desk.device(group, ALONE)
    assert type(desk.me.file(device)) is mainline_device.DeviceFile
    with refused(desk, errno.ENOTTY):
        flags(desk, group)
    desk.me.close(container)


def test_the_shared_value_follows_the_default() -> None:
    desk = Desk("auto")
    assert isinstance(desk.me.file(desk.me.ioctl(desk.group(1), SHARED)), rfc_fops.IommuFile)
    desk = Desk("mainline")
    assert desk.status(desk.group(1)) == vfio.VFIO_GROUP_FLAGS_VIABLE


def shared(desk: Desk, fd: int, argument: bytes | int) -> str:
    """Which interface answered the shared value as the first request of a file."""
    desk.me.ioctl(fd, SHARED, argument)
    return file_of(desk, fd).abi_of(SHARED)


STATUS = vfio.HEAD.pack(8, 0)


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        (STATUS, "mainline"),
        (vfio.HEAD.pack(8, 0xFF), "mainline"),
        (0, "2011"),
        (0x10, "2011"),
        (vfio.HEAD.pack(7, 0), "2011"),
        (vfio.HEAD.pack(9, 0), "2011"),
    ],
)
def test_the_argument_tells_what_a_newcomer_means(argument: bytes | int, wanted: str) -> None:
    desk = Desk("auto")
    assert shared(desk, desk.group(1), argument) == wanted
    assert desk.me.mm.abi == wanted


@pytest.mark.parametrize("node", ["/dev/vfio/vfio", "/dev/iommu"])
def test_who_opened_a_node_of_today_means_today(node: str) -> None:
    desk = Desk("auto")
    desk.me.open(node)
    group = desk.group(1)
    with refused(desk, errno.EBUSY):
        desk.group(1)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(group, SHARED, 0)
    assert type(file_of(desk, group).chosen) is LegacyGroupFile


def test_who_spoke_2011_goes_on_with_it() -> None:
    desk = Desk("auto")
    flags(desk, desk.group(1))
    assert shared(desk, desk.group(2), STATUS) == "2011"


def test_other_processes_are_other_programs() -> None:
    desk = Desk("auto")
    desk.me.open("/dev/vfio/vfio")
    other = Process(desk.machine, abi="auto")
    group = other.open("/dev/vfio/1")
    assert isinstance(other.file(other.ioctl(group, SHARED)), rfc_fops.IommuFile)


def test_a_command_that_fails_decides_too() -> None:
    desk = Desk("auto")
    group = desk.group(1)
    with pytest.raises(OSError):
        desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    assert type(file_of(desk, group).chosen) is LegacyGroupFile


def test_device_reset_of_2011_and_ioeventfd_have_one_number_on_two_files() -> None:
    assert rfc.VFIO_DEVICE_RESET == vfio.VFIO_DEVICE_IOEVENTFD
    desk = Desk("mainline")
    first, second = desk.group(1), desk.group(2)
    flags(desk, first)
    device = desk.me.ioctl(first, rfc.VFIO_GROUP_GET_DEVICE_FD, ALONE)
    desk.me.ioctl(device, rfc.VFIO_DEVICE_RESET)
    desk.container(second)
    device = desk.device(second, FIRST)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_IOEVENTFD, bytes(28))


# -- exclusiveness -------------------------------------------------------------------------------


def test_where_mainline_is_the_default_a_group_opens_once() -> None:
    desk = Desk("mainline")
    group = desk.group(1)
    with refused(desk, errno.EBUSY):
        desk.group(1)
    flags(desk, group)
    second = desk.group(1)
    with refused(desk, errno.EBUSY):
        desk.me.ioctl(second, vfio.VFIO_GROUP_UNSET_CONTAINER)


def test_elsewhere_a_group_opens_once_as_soon_as_mainline_uses_it() -> None:
    desk = Desk("auto")
    group, second = desk.group(1), desk.group(1)
    with refused(desk, errno.EBUSY):
        desk.me.ioctl(group, vfio.VFIO_GROUP_UNSET_CONTAINER)
    assert file_of(desk, group).chosen is None
    desk.me.close(second)
    container = desk.container(group)
    with refused(desk, errno.EBUSY):
        desk.group(1)
    desk.me.close(group)
    desk.me.close(container)
    desk.group(1)


# -- being named by another file -----------------------------------------------------------------


def test_a_partner_of_merge_is_of_2011() -> None:
    desk = Desk("mainline")
    one, two = desk.group(1), desk.group(2)
    desk.me.ioctl(one, rfc.VFIO_GROUP_MERGE, struct.pack("<i", two))
    assert type(file_of(desk, two).chosen) is rfc_fops.GroupFile
    container = desk.container(version=None)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(one, rfc.VFIO_GROUP_MERGE, struct.pack("<i", container))


def test_a_group_of_mainline_is_no_partner() -> None:
    desk = Desk("mainline")
    one, two = desk.group(1), desk.group(2)
    flags(desk, one)
    desk.status(two)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(one, rfc.VFIO_GROUP_MERGE, struct.pack("<i", two))


def test_a_face_that_cannot_be_is_none() -> None:
    desk = Desk("auto")
    group, second = desk.group(1), desk.group(1)
    file = file_of(desk, group)
    assert file.face(LegacyGroupFile) is None
    assert file.face(mainline_device.DeviceFile) is None
    desk.me.close(second)
    assert file.face(File) is None  # not decided by so general a question
    assert file.face(LegacyGroupFile) is file.chosen
    assert file.face(rfc_fops.GroupFile) is None


def test_hot_reset_takes_undecided_groups() -> None:
    desk = Desk("mainline")
    group = desk.group(2)
    desk.container(group)
    device = desk.device(group, FIRST)
    argument = struct.pack("<IIIi", 16, 0, 1, group)
    desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, argument)
    assert desk.machine.record(SECOND).bound
