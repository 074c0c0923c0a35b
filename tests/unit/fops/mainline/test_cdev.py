"""Devices that are opened by their own nodes, and what they have to do with groups and containers."""

from __future__ import annotations

import errno
import struct

import pytest

from support.iommufd import IommufdDesk
from support.mainline import ALONE, CONFIG, FIRST, FOREIGN, PAGE, SECOND, refused
from uvfio.core.bus import TakesToken
from uvfio.doors.local import Process
from uvfio.errors import InvalidArgument
from uvfio.fops.mainline.cdev import CdevFile
from uvfio.uapi import vfio

TOKEN = vfio.VFIO_DEVICE_BIND_FLAG_TOKEN


@pytest.fixture
def desk() -> IommufdDesk:
    return IommufdDesk()


def hot_reset_info(desk: IommufdDesk, device: int) -> tuple[int, list[int]]:
    """(flags, how each device is named)"""
    raw = bytearray(struct.pack("<III", 12 + 8 * 4, 0, 0) + bytes(32))
    desk.me.ioctl(device, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, raw)
    _, flags, count = struct.unpack_from("<III", raw)
    return flags, [struct.unpack_from("<I", raw, 12 + 8 * n)[0] for n in range(count)]


# -- binding -------------------------------------------------------------------------------------


def test_nodes_are_numbered_from_the_lowest(desk: IommufdDesk) -> None:
    nodes = desk.framework.nodes
    assert {device.name for device in nodes.values()} == {ALONE, FIRST, SECOND}
    assert sorted(nodes) == [0, 1, 2]
    number = next(number for number, device in nodes.items() if device.name == FIRST)
    generation = desk.framework.generation
    desk.machine.unbind(FIRST)
    assert number not in nodes
    desk.machine.bind(FIRST)
    assert nodes[number].name == FIRST
    assert desk.framework.generation > generation
    with pytest.raises(OSError, match="no such device"):
        desk.me.open("/dev/vfio/devices/vfio9")
    with pytest.raises(OSError, match="no such device"):
        Process(desk.machine).open("/dev/vfio/devices/vfio0")


def test_before_binding_all_is_invalid(desk: IommufdDesk) -> None:
    device = desk.cdev()
    file = desk.me.file(device)
    assert isinstance(file, CdevFile)
    assert (file.kind, file.structural, file.alone) == ("device", True, True)
    for request in (*CdevFile.REQUESTS, 0x3BA0):
        if request != vfio.VFIO_DEVICE_BIND_IOMMUFD:
            with refused(desk, errno.EINVAL):
                desk.me.ioctl(device, request, struct.pack("<4I", 16, 0, 0, 0))
    with refused(desk, errno.EINVAL):
        desk.me.pread(device, 4, CONFIG)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(device, b"1234", CONFIG)
    with refused(desk, errno.EINVAL):
        desk.me.mmap(device, PAGE, 2 << 40)


def test_what_cannot_be_bound(desk: IommufdDesk) -> None:
    fd, device = desk.iommufd(), desk.cdev()
    event = desk.me.eventfd()
    for arguments, number in (
        ((-1,), errno.EINVAL),
        ((fd, 0x80), errno.EINVAL),
        ((fd, 0, 0, 15), errno.EINVAL),
        ((99,), errno.EBADF),
        ((event,), errno.EBADFD),
        ((device,), errno.EBADFD),
        ((fd, TOKEN, 8), errno.EFAULT),
        ((fd, TOKEN, desk.buffer()), errno.EINVAL),
    ):
        with refused(desk, number):
            desk.bind(device, *arguments)
    with refused(desk, errno.E2BIG):
        raw = struct.pack("<IIiIQQ", 32, 0, fd, 0, 0, 1)
        desk.me.ioctl(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, raw)
    raw = struct.pack("<IIiIQ", 24, 0, fd, 0, 0)
    at = desk.me.memory.place(memoryview(bytearray(raw)), writable=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_BIND_IOMMUFD, at)
    other = IommufdDesk()
    foreign = desk.me.install(other.me.file(other.iommufd()), True)
    with refused(desk, errno.EBADFD):
        desk.bind(device, foreign)
    assert desk.bind(device, fd, argsz=16) == 1


def test_a_device_is_bound_once(desk: IommufdDesk) -> None:
    fd, one, two = desk.iommufd(), desk.cdev(), desk.cdev()
    desk.bind(one, fd)
    for device in (one, two):
        with refused(desk, errno.EINVAL):
            desk.bind(device, fd)
    desk.me.close(one)
    assert desk.bind(two, fd) == 1
    assert len(desk.me.pread(two, 4, CONFIG)) == 4


def test_a_group_belongs_to_one_iommufd(desk: IommufdDesk) -> None:
    fd, other = desk.iommufd(), desk.iommufd()
    one, two = desk.cdev(FIRST), desk.cdev(SECOND)
    desk.bind(one, fd)
    with refused(desk, errno.EPERM):
        desk.bind(two, other)
    assert desk.bind(two, fd) == 2
    desk.me.close(one)
    desk.me.close(two)
    desk.bind(desk.cdev(SECOND), other)


def test_beside_a_driver_of_the_host() -> None:
    desk = IommufdDesk()
    desk.machine.plug("exerciser@0000:00:03.0,group=3")
    fd, device = desk.iommufd(), desk.cdev("0000:00:03.0")
    with refused(desk, errno.EPERM):
        desk.bind(device, fd)
    desk.machine.unbind(FOREIGN)
    desk.bind(device, fd)
    with pytest.raises(OSError, match="reserved"):
        desk.machine.bind(FOREIGN, "nvme")
    desk.me.close(device)
    desk.machine.bind(FOREIGN, "nvme")


def test_tokens_are_the_devices_business(
    desk: IommufdDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes | None] = []

    def check(self: object, token: bytes | None) -> None:
        said.append(token)
        if token == bytes(16):
            raise InvalidArgument("another one", errno=errno.EACCES)

    monkeypatch.setattr(type(desk.bound()), "check_token", check, raising=False)
    assert isinstance(desk.bound(), TakesToken)
    fd, device, at = desk.iommufd(), desk.cdev(), desk.buffer()
    with refused(desk, errno.EACCES):
        desk.bind(device, fd, TOKEN, at)
    desk.me.memory.write(at, b"0123456789abcdef")
    desk.bind(device, fd, TOKEN, at)
    desk.me.close(device)
    desk.bind(desk.cdev(), fd)
    assert said == [bytes(16), b"0123456789abcdef", None]


# -- groups, containers and nodes ----------------------------------------------------------------


def test_a_group_and_a_node_exclude_each_other(desk: IommufdDesk) -> None:
    fd, device = desk.iommufd(), desk.cdev(FIRST)
    group = desk.group(2)
    with refused(desk, errno.EBUSY):
        desk.bind(device, fd)
    desk.me.close(group)
    desk.bind(device, fd)
    with refused(desk, errno.EBUSY):
        desk.group(2)
    desk.me.close(device)
    desk.group(2)


def test_files_of_2011_and_nodes_exclude_each_other() -> None:
    desk = IommufdDesk("auto")
    fd, device = desk.iommufd(), desk.cdev()
    group = desk.group(1)
    with refused(desk, errno.EBUSY):
        desk.bind(device, fd)
    desk.me.close(group)
    desk.bind(device, fd)
    with refused(desk, errno.EBUSY):
        desk.group(1)


def test_a_device_of_a_group_is_not_bound_by_itself(desk: IommufdDesk) -> None:
    _, _, device = desk.ready()
    fd = desk.iommufd()
    with refused(desk, errno.EINVAL):
        desk.bind(device, fd)
    with refused(desk, errno.ENOTTY):
        desk.attach(device, 1)


def test_an_open_node_keeps_the_device_with_its_driver(desk: IommufdDesk) -> None:
    device = desk.cdev()
    with pytest.raises(OSError, match="was not released"):
        desk.machine.unbind(ALONE, timeout=0)
    desk.machine.unbind(ALONE, revoke=True)
    fd = desk.iommufd()
    with refused(desk, errno.ENODEV):
        desk.bind(device, fd)
    desk.machine.bind(ALONE)
    with refused(desk, errno.ENODEV):
        desk.bind(device, fd)
    desk.me.close(device)
    desk.bind(desk.cdev(), fd)


def test_a_bound_device_can_be_taken_away(desk: IommufdDesk) -> None:
    fd, _, device = desk.attached()
    context = desk.context(fd)
    desk.machine.unplug(ALONE)
    assert (context.claims, len(context.objects)) == ([], 1)
    with refused(desk, errno.ENODEV):
        desk.me.pread(device, 4, CONFIG)
    desk.me.exit()
    assert context.objects == {}


# -- page tables ---------------------------------------------------------------------------------


def test_a_group_has_one_page_table(desk: IommufdDesk) -> None:
    fd = desk.iommufd()
    one, two = desk.ioas(fd), desk.ioas(fd)
    first, second = desk.cdev(FIRST), desk.cdev(SECOND)
    desk.bind(first, fd)
    desk.bind(second, fd)
    table = desk.attach(first, one)
    with refused(desk, errno.EINVAL):
        desk.attach(second, two)
    assert desk.attach(second, one) == table
    assert desk.attach(second, one) == table
    moved = desk.attach(first, two)
    assert moved != table
    domain = desk.machine.record(SECOND).iommu.domain  # type: ignore[union-attr]
    assert domain is not None
    assert set(domain.devices) == {desk.machine.function(FIRST), desk.machine.function(SECOND)}
    desk.detach(first)
    assert len(domain.devices) == 2
    with refused(desk, errno.EBUSY):
        desk.destroy(fd, two)
    desk.detach(second)
    desk.detach(second)
    assert domain.devices == []
    desk.destroy(fd, two)
    desk.destroy(fd, one)


def test_a_replacement_that_fails_leaves_the_old_one(desk: IommufdDesk) -> None:
    fd, ioas, device = desk.attached()
    other = desk.ioas(fd)
    desk.ioas_map(fd, other, 0xFEE00000, PAGE, desk.buffer())
    with refused(desk, errno.EADDRINUSE):
        desk.attach(device, other)
    desk.ioas_unmap(fd, other, 0xFEE00000, PAGE)
    desk.attach(device, other)
    desk.destroy(fd, ioas)


def test_arguments_of_attach_and_detach(desk: IommufdDesk) -> None:
    _, ioas, device = desk.attached()
    attach, detach = vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT, vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT
    for request, words, number in (
        (attach, (8, 0, ioas), errno.EINVAL),
        (attach, (12, 2, ioas), errno.EINVAL),
        (attach, (12, 1, ioas), errno.EINVAL),
        (attach, (16, 1, ioas, 0), errno.EOPNOTSUPP),
        (attach, (12, 0, 99), errno.ENOENT),
        (attach, (12, 0, 2), errno.EINVAL),
        (detach, (4, 0), errno.EINVAL),
        (detach, (8, 2), errno.EINVAL),
        (detach, (12, 1, 0), errno.EOPNOTSUPP),
    ):
        with refused(desk, number):
            desk.me.ioctl(device, request, struct.pack(f"<{len(words)}I", *words))


# -- hot resets ----------------------------------------------------------------------------------


def test_hot_resets_name_devices_by_their_numbers(desk: IommufdDesk) -> None:
    fd, device = desk.iommufd(), desk.cdev(FIRST)
    number = desk.bind(device, fd)
    flags, names = hot_reset_info(desk, device)
    assert (flags, sorted(names)) == (3, [0, number])
    groups = struct.pack("<IIIi", 16, 0, 1, fd)
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, groups)
    desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, struct.pack("<III", 12, 0, 0))


def test_hot_resets_of_what_belongs_to_others() -> None:
    desk = IommufdDesk()
    desk.machine.plug("exerciser@0000:01:02.0,group=9")
    fd, device = desk.iommufd(), desk.cdev(FIRST)
    desk.bind(device, fd)
    flags, names = hot_reset_info(desk, device)
    assert flags == 1
    assert sorted(names) == [0, 1, 0xFFFFFFFF]
    with refused(desk, errno.EINVAL):
        desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, struct.pack("<III", 12, 0, 0))
    assert desk.bind(desk.cdev("0000:01:02.0"), fd) == 2
    assert hot_reset_info(desk, device)[0] == 3
    desk.me.ioctl(device, vfio.VFIO_DEVICE_PCI_HOT_RESET, struct.pack("<III", 12, 0, 0))


def test_a_model_that_breaks_at_the_last_close_can_be_unbound(
    desk: IommufdDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, device = desk.iommufd(), desk.cdev(FIRST)
    desk.bind(device, fd)
    record = desk.framework.lookup(desk.machine.slot(FIRST).device)
    assert record is not None
    assert record.data is not None

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(record.data, "put", broken)
    with pytest.raises(ZeroDivisionError):
        desk.me.close(device)
    monkeypatch.undo()
    assert record.cdevs == []
    desk.machine.unbind(FIRST, timeout=0)
