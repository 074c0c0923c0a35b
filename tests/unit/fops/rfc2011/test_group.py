"""The file operations of the 2011 ABI, ioctl by ioctl: arguments, answers, every error in its order.

Programs are processes of the local door. ``refused`` asserts the errno that the program sees and that
nothing changed, descriptors and locked memory included.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest

from support.world import (
    INTX,
    MSI,
    PAGE,
    RAM,
    REGISTERS,
    ROM,
    World,
    device_fd,
    group_fd,
    group_flags,
    iommu_fd,
    map_dma,
    merge,
    refused,
    same_state,
    see_mappings,
    unmap_dma,
    unmerge,
)
from uvfio.core.bus import DeviceKind
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import IommuUnit
from uvfio.doors.local import LocalEvent, Process
from uvfio.errors import Busy, Gone, InvalidArgument, NoSpace, TooManyFiles
from uvfio.fops.file import File
from uvfio.fops.rfc2011 import group as fops
from uvfio.uapi import rfc

VIABLE, LOCKED = rfc.VFIO_GROUP_FLAGS_VIABLE, rfc.VFIO_GROUP_FLAGS_MM_LOCKED
NOWHERE = 0x10  # an address that leads to no memory
UNKNOWN = 0x3B7F
PAIR = ("a", "b")


class Desk(World):
    """Groups 1 (a) and 2 (b); a program with both open, and a stranger with group 1 open."""

    def __init__(self, unit: IommuUnit = IommuUnit(), memlock: int | None = None) -> None:  # noqa: B008
        super().__init__()
        self.plug("a", 1)
        self.plug("b", 2, unit=unit)
        self.me = self.process("me", memlock)
        self.other = self.process("other")
        self.g1 = group_fd(self.me, 1)
        self.g2 = group_fd(self.me, 2)
        self.foreign = group_fd(self.other, 1)

    def buffer(self, size: int = PAGE, process: Process | None = None) -> int:
        """The address of memory of the program."""
        return (process or self.me).memory.allocate(size)

    def iommu_and_buffer(self, pages: int = 4) -> tuple[int, int]:
        return iommu_fd(self.me, self.g1), self.buffer(pages * PAGE)

    def mappings(self) -> list[tuple[int, int, int, bool]]:
        domain = self.iommu(1).domain
        assert domain is not None
        return see_mappings(domain)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def at_end_of_memory(desk: Desk, data: bytes) -> int:
    """The address of ``data`` so placed that the byte after it is not mapped."""
    base = desk.buffer(PAGE)
    desk.me.memory.write(base + PAGE - len(data), data)
    return base + PAGE - len(data)


def read_only(desk: Desk) -> int:
    return desk.me.memory.allocate(PAGE, writable=False)


# -- group file: what it is not ------------------------------------------------------------------


def test_a_group_file_has_no_read_write_or_mmap(desk: Desk) -> None:
    with refused(desk, errno.EINVAL):
        desk.me.pread(desk.g1, 1, 0)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(desk.g1, b"x", 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(desk.g1, PAGE, 0)


def test_a_group_file_is_called_like_its_node(desk: Desk) -> None:
    file = fops.open_group(desk.framework, desk.group(1), desk.me)
    assert file.name == "/dev/vfio/1"
    assert repr(file) == "<GroupFile /dev/vfio/1>"


def test_d07_unknown_group_ioctls_are_enotty(desk: Desk) -> None:
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(desk.g1, UNKNOWN)
    with refused(desk, errno.ENOTTY):
        desk.me.ioctl(desk.g1, rfc.VFIO_DEVICE_RESET)


def test_the_owner_check_comes_before_the_command_is_looked_at(desk: Desk) -> None:
    iommu_fd(desk.me, desk.g1)
    with refused(desk, errno.EPERM):
        desk.other.ioctl(desk.foreign, UNKNOWN)


@pytest.mark.parametrize(
    "command",
    [
        rfc.VFIO_GROUP_MERGE,
        rfc.VFIO_GROUP_UNMERGE,
        rfc.VFIO_GROUP_GET_IOMMU_FD,
        rfc.VFIO_GROUP_GET_DEVICE_FD,
        rfc.VFIO_GROUP_GET_DEVICE_FD_32,
    ],
)
def test_every_command_but_get_flags_is_the_owners_even_with_a_bad_pointer(
    desk: Desk, command: int
) -> None:
    iommu_fd(desk.me, desk.g1)
    with refused(desk, errno.EPERM):
        desk.other.ioctl(desk.foreign, command, NOWHERE)


def test_a_group_that_went_cannot_be_opened(desk: Desk) -> None:
    desk.plug("c", 3, bind=False)
    group = desk.group(3)
    desk.unplug("c")
    with refused(desk, errno.ENODEV):
        fops.open_group(desk.framework, group, desk.me)


# -- VFIO_GROUP_GET_FLAGS ------------------------------------------------------------------------


def test_group_flags_tell_viability(desk: Desk) -> None:
    assert group_flags(desk.me, desk.g1) == VIABLE
    desk.plug("a2", 1, bind=False)
    assert group_flags(desk.me, desk.g1) == 0


def test_d06_mm_locked_is_shown_to_everybody_also_to_the_owner(desk: Desk) -> None:
    iommu_fd(desk.me, desk.g1)
    assert group_flags(desk.me, desk.g1) == VIABLE | LOCKED
    assert group_flags(desk.other, desk.foreign) == VIABLE | LOCKED


def test_group_flags_are_about_the_whole_set(desk: Desk) -> None:
    merge(desk.me, desk.g1, desk.g2)
    desk.plug("b2", 2, bind=False)
    assert group_flags(desk.me, desk.g1) == LOCKED


def test_d13_a_group_without_devices_is_not_shown_as_viable(desk: Desk) -> None:
    desk.plug("c", 3)
    group = group_fd(desk.me, 3)
    desk.unbind("c")
    desk.unplug("c")
    assert group_flags(desk.me, group) == 0


@pytest.mark.parametrize("place", [lambda _: NOWHERE, read_only])
def test_group_flags_need_a_writable_place(desk: Desk, place: Callable[[Desk], int]) -> None:
    address = place(desk)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_FLAGS, address)


# -- VFIO_GROUP_MERGE ----------------------------------------------------------------------------


def test_merge_joins_the_groups(desk: Desk) -> None:
    merge(desk.me, desk.g1, desk.g2)
    assert desk.group(1).iommu is desk.group(2).iommu


def descriptor_errors(request: int) -> list[Any]:
    """(request, argument maker, errno): what MERGE and UNMERGE check before they look at groups."""
    pack = rfc.S32.pack
    return [
        pytest.param(request, lambda d: NOWHERE, errno.EFAULT, id="bad pointer"),
        pytest.param(request, lambda d: at_end_of_memory(d, b"\1\0"), errno.EFAULT, id="half"),
        pytest.param(request, lambda d: pack(-1), errno.EINVAL, id="negative"),
        pytest.param(request, lambda d: pack(99), errno.EBADF, id="closed"),
        pytest.param(request, lambda d: pack(d.me.eventfd()), errno.EINVAL, id="eventfd"),
        pytest.param(
            request, lambda d: pack(device_fd(d.me, d.g1, "a")), errno.EINVAL, id="device file"
        ),
        pytest.param(request, lambda d: pack(d.g1), errno.EINVAL, id="itself"),
        pytest.param(request, lambda d: pack(group_fd(d.me, 1)), errno.EINVAL, id="the same group"),
    ]


@pytest.mark.parametrize(
    ("request_", "argument", "number"),
    descriptor_errors(rfc.VFIO_GROUP_MERGE) + descriptor_errors(rfc.VFIO_GROUP_UNMERGE),
)
def test_merge_and_unmerge_check_their_descriptor(
    desk: Desk, request_: int, argument: Callable[[Desk], int | bytes], number: int
) -> None:
    value = argument(desk)
    with refused(desk, number):
        desk.me.ioctl(desk.g1, request_, value)


def test_a_group_of_another_machine_is_no_partner(desk: Desk) -> None:
    elsewhere = Desk()
    theirs = group_fd(elsewhere.me, 2)
    fd = elsewhere.me.send(theirs, desk.me)
    for request in (rfc.VFIO_GROUP_MERGE, rfc.VFIO_GROUP_UNMERGE):
        with refused(desk, errno.EINVAL):
            desk.me.ioctl(desk.g1, request, rfc.S32.pack(fd))


def test_merge_refuses_a_partner_in_use(desk: Desk) -> None:
    device_fd(desk.me, desk.g2, "b")
    with refused(desk, errno.EINVAL):
        merge(desk.me, desk.g1, desk.g2)


def test_merge_refuses_a_partner_that_is_not_viable(desk: Desk) -> None:
    desk.plug("b2", 2, bind=False)
    with refused(desk, errno.EBUSY):
        merge(desk.me, desk.g1, desk.g2)


def test_merge_refuses_a_partner_in_use_before_it_asks_for_viability(desk: Desk) -> None:
    device_fd(desk.me, desk.g2, "b")
    desk.plug("b2", 2, bind=False)
    with refused(desk, errno.EINVAL):
        merge(desk.me, desk.g1, desk.g2)


def test_merge_refuses_what_differs_in_coherency() -> None:
    desk = Desk(IommuUnit("other", coherent=False))
    with refused(desk, errno.EINVAL):
        merge(desk.me, desk.g1, desk.g2)


def test_merge_passes_on_why_a_device_cannot_be_attached(desk: Desk) -> None:
    desk.devices["b"].attach_error = NoSpace("no room")
    with refused(desk, errno.ENOSPC):
        merge(desk.me, desk.g1, desk.g2)


def test_merge_is_not_hindered_by_an_open_group_file(desk: Desk) -> None:
    """What a VMM of 2011 does for its second device: open, look, close, merge, open again."""
    device_fd(desk.me, desk.g1, "a")
    desk.me.close(device_fd(desk.me, desk.g2, "b"))
    merge(desk.me, desk.g1, desk.g2)
    device_fd(desk.me, desk.g2, "b")


# -- VFIO_GROUP_UNMERGE --------------------------------------------------------------------------


def test_unmerge_separates_the_groups(desk: Desk) -> None:
    merge(desk.me, desk.g1, desk.g2)
    unmerge(desk.me, desk.g1, desk.g2)
    assert desk.group(1).iommu is not desk.group(2).iommu
    assert group_flags(desk.me, desk.g2) == VIABLE


def test_unmerge_refuses_groups_that_are_not_merged(desk: Desk) -> None:
    with refused(desk, errno.EINVAL):
        unmerge(desk.me, desk.g1, desk.g2)


def test_unmerge_refuses_a_group_with_an_open_device(desk: Desk) -> None:
    merge(desk.me, desk.g1, desk.g2)
    device_fd(desk.me, desk.g1, "b")
    with refused(desk, errno.EBUSY):
        unmerge(desk.me, desk.g1, desk.g2)


# -- VFIO_GROUP_GET_IOMMU_FD ---------------------------------------------------------------------


def test_each_call_makes_a_new_iommu_file(desk: Desk) -> None:
    first, second = iommu_fd(desk.me, desk.g1), iommu_fd(desk.me, desk.g1)
    assert first != second
    assert desk.me.file(first) is not desk.me.file(second)
    assert len(desk.iommu(1).opens) == 2


def test_get_iommu_fd_ignores_its_argument(desk: Desk) -> None:
    assert desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_IOMMU_FD, NOWHERE) >= 0


def test_get_iommu_fd_needs_viability(desk: Desk) -> None:
    desk.plug("a2", 1, bind=False)
    with refused(desk, errno.EBUSY):
        iommu_fd(desk.me, desk.g1)


def test_d08_no_iommu_is_enomem(desk: Desk) -> None:
    desk.devices["a"].unit = None
    with refused(desk, errno.ENOMEM):
        iommu_fd(desk.me, desk.g1)


def test_d08_missing_interrupt_remapping_is_eperm() -> None:
    desk = Desk(IommuUnit("old", interrupt_remapping=False))
    with refused(desk, errno.EPERM):
        iommu_fd(desk.me, desk.g2)
    with refused(desk, errno.EPERM):
        device_fd(desk.me, desk.g2, "b")


def test_get_iommu_fd_passes_on_attach_errors(desk: Desk) -> None:
    desk.devices["a"].attach_error = NoSpace("no room")
    with refused(desk, errno.ENOSPC):
        iommu_fd(desk.me, desk.g1)


def test_d10_get_iommu_fd_without_a_free_descriptor_leaves_nothing_open(desk: Desk) -> None:
    desk.me.max_files = 5
    with refused(desk, errno.EMFILE):
        iommu_fd(desk.me, desk.g1)
    assert desk.iommu(1).owner is None


def test_get_iommu_fd_while_a_device_is_being_taken_away_is_enodev(desk: Desk) -> None:
    desk.record("a").departing = 1
    with refused(desk, errno.ENODEV):
        iommu_fd(desk.me, desk.g1)


def test_d04_an_ioctl_uses_the_context_that_the_group_has_when_it_holds_the_lock(
    desk: Desk,
) -> None:
    """A merge between two ioctls on one file replaces its context; nobody keeps the old one."""
    old = desk.iommu(2)
    merge(desk.me, desk.g1, desk.g2)
    fd = iommu_fd(desk.me, desk.g2)
    file = desk.me.file(fd)
    assert isinstance(file, fops.IommuFile)
    assert file.opened.iommu is desk.iommu(1) is not old
    assert old.groups == []


# -- VFIO_GROUP_GET_DEVICE_FD --------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [rfc.VFIO_GROUP_GET_DEVICE_FD, rfc.VFIO_GROUP_GET_DEVICE_FD_32]
)
def test_d28_both_numbers_of_get_device_fd_work(desk: Desk, request_: int) -> None:
    fd = desk.me.ioctl(desk.g1, request_, "a")
    assert isinstance(desk.me.file(fd), fops.DeviceFile)
    assert desk.bounds["a"].enabled == 1


def test_the_argument_of_get_device_fd_is_the_string_itself(desk: Desk) -> None:
    address = at_end_of_memory(desk, b"a\0")
    assert desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_DEVICE_FD, address) >= 0


def test_get_device_fd_reads_only_up_to_the_end_of_the_string_across_pages(desk: Desk) -> None:
    name = "x" * 100
    desk.plug(name, 1)
    base = desk.buffer(2 * PAGE)
    desk.me.memory.write(base + PAGE - 10, name.encode() + b"\0")
    assert desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_DEVICE_FD, base + PAGE - 10) >= 0


@pytest.mark.parametrize(
    ("argument", "number"),
    [
        pytest.param(lambda d: NOWHERE, errno.EFAULT, id="bad pointer"),
        pytest.param(lambda d: at_end_of_memory(d, b"aaaa"), errno.EFAULT, id="no end in memory"),
        pytest.param(lambda d: b"a" * 2 * PAGE, errno.EINVAL, id="no end within a page"),
        pytest.param(lambda d: "b", errno.ENODEV, id="device of another group"),
        pytest.param(lambda d: "", errno.ENODEV, id="empty"),
        pytest.param(lambda d: b"\xff\0", errno.ENODEV, id="not text"),
    ],
)
def test_get_device_fd_checks_the_name(
    desk: Desk, argument: Callable[[Desk], int | str | bytes], number: int
) -> None:
    value = argument(desk)
    with refused(desk, number):
        desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_DEVICE_FD, value)


def test_the_string_is_read_before_viability_is_asked(desk: Desk) -> None:
    desk.plug("a2", 1, bind=False)
    with refused(desk, errno.EFAULT):
        desk.me.ioctl(desk.g1, rfc.VFIO_GROUP_GET_DEVICE_FD, NOWHERE)
    with refused(desk, errno.EBUSY):
        device_fd(desk.me, desk.g1, "nobody")


def test_d09_an_unknown_name_is_enodev_also_when_the_call_opened_the_iommu(desk: Desk) -> None:
    with refused(desk, errno.ENODEV):
        device_fd(desk.me, desk.g1, "nobody")
    assert desk.iommu(1).domain is None
    iommu_fd(desk.me, desk.g1)
    with refused(desk, errno.ENODEV):
        device_fd(desk.me, desk.g1, "nobody")


def test_d08_the_errno_of_a_driver_that_cannot_enable_its_device_is_kept(desk: Desk) -> None:
    desk.bounds["a"].errors["get"] = NoSpace("no room")
    with refused(desk, errno.ENOSPC):
        device_fd(desk.me, desk.g1, "a")


def test_d10_get_device_fd_without_a_free_descriptor_leaves_nothing_open(desk: Desk) -> None:
    desk.me.max_files = 5
    with refused(desk, errno.EMFILE):
        device_fd(desk.me, desk.g1, "a")
    assert desk.iommu(1).owner is None
    assert (desk.bounds["a"].gets, desk.bounds["a"].puts) == (1, 1)


def test_the_newest_group_and_the_newest_device_are_asked_first(desk: Desk) -> None:
    desk.plug("b2", 2)
    merge(desk.me, desk.g1, desk.g2)
    asked: list[str] = []

    def match(dev: Any, name: str) -> bool:
        asked.append(dev.name)
        return bool(dev.name == name)

    desk.driver.match = match  # type: ignore[method-assign]
    device_fd(desk.me, desk.g1, "a")
    assert asked == ["b2", "b", "a"]


def test_d05_devices_of_the_set_are_out_of_reach_once_the_owner_left(desk: Desk) -> None:
    merge(desk.me, desk.g1, desk.g2)
    desk.me.close(desk.g1)
    with refused(desk, errno.ENODEV):
        device_fd(desk.other, desk.foreign, "b")
    device_fd(desk.other, desk.foreign, "a")


@pytest.mark.parametrize("made", [iommu_fd, lambda p, g: device_fd(p, g, "a")])
def test_d26_new_files_are_close_on_exec(
    desk: Desk, made: Callable[[Process, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[bool] = []
    install = desk.me.install

    def spy(file: object, cloexec: bool) -> int:
        flags.append(cloexec)
        return install(file, cloexec)

    monkeypatch.setattr(desk.me, "install", spy)
    made(desk.me, desk.g1)
    group_fd(desk.me, 1)
    assert flags == [True, True]


# -- ownership -----------------------------------------------------------------------------------


def test_a_forked_child_is_another_owner(desk: Desk) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    child = desk.fork(desk.me)
    for call in (
        lambda: iommu_fd(child, desk.g1),
        lambda: map_dma(child, iommu, 0, PAGE, child.memory.allocate(PAGE)),
        lambda: unmap_dma(child, iommu, 0, PAGE),
    ):
        with refused(desk, errno.EPERM):
            call()
    assert group_flags(child, desk.g1) == VIABLE | LOCKED


def test_the_context_is_free_again_when_the_owners_files_are_closed(desk: Desk) -> None:
    iommu = iommu_fd(desk.me, desk.g1)
    with refused(desk, errno.EPERM):
        iommu_fd(desk.other, desk.foreign)
    desk.me.close(iommu)
    iommu_fd(desk.other, desk.foreign)


def test_death_of_the_owner_frees_everything(desk: Desk) -> None:
    iommu, buffer = desk.iommu_and_buffer()
    merge(desk.me, desk.g1, desk.g2)
    device_fd(desk.me, desk.g1, "b")
    map_dma(desk.me, iommu, 0, PAGE, buffer)
    desk.me.exit()
    assert desk.me.mm.locked_pages == 0
    assert desk.bounds["b"].enabled == 0
    assert desk.group(2).iommu is None
    assert group_flags(desk.other, desk.foreign) == VIABLE


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
    assert isinstance(file, fops.IommuFile)
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
    assert isinstance(file, fops.DeviceFile)
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


# -- life of files -------------------------------------------------------------------------------


def test_release_happens_once(desk: Desk, device: int) -> None:
    file = desk.me.file(device)
    assert isinstance(file, File)
    desk.me.close(device)
    file.release()
    assert desk.bounds["a"].puts == 1


def test_review_11_every_kind_of_file_has_one_release() -> None:
    for kind in (fops.GroupFile, fops.IommuFile, fops.DeviceFile):
        assert "_release" in vars(kind)
        assert "release" not in vars(kind)


def test_review_10_an_iommu_file_gives_no_say_about_groups() -> None:
    assert sorted(fops.IommuFile.COMMANDS) == sorted(
        [rfc.VFIO_IOMMU_GET_FLAGS, rfc.VFIO_IOMMU_MAP_DMA, rfc.VFIO_IOMMU_UNMAP_DMA]
    )


def test_closing_group_iommu_and_device_in_any_order_frees_everything() -> None:
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        desk = Desk()
        desk.other.close(desk.foreign)
        fds = [desk.g1, iommu_fd(desk.me, desk.g1), device_fd(desk.me, desk.g1, "a")]
        for at in order:
            desk.me.close(fds[at])
        assert desk.group(1).iommu is None
        assert desk.devices["a"].domain is None


def test_a_file_without_operations_supports_nothing() -> None:
    file = File("nothing")
    task: Any = None
    with pytest.raises(OSError, match="no ioctls") as caught:
        file.ioctl(task, 0, 0)
    assert caught.value.errno == errno.ENOTTY
    file.release()
    assert file.released


def test_install_closes_a_file_that_finds_no_descriptor() -> None:
    class Full:
        def install(self, file: object, cloexec: bool) -> int:
            raise TooManyFiles("full")

    task: Any = Full()
    file = File("late")
    with pytest.raises(TooManyFiles):
        fops.install(task, file)
    assert file.released


def test_every_ioctl_of_the_header_is_answered() -> None:
    kinds: dict[str, type[fops.RfcFile]] = {
        "group": fops.GroupFile,
        "iommu": fops.IommuFile,
        "device": fops.DeviceFile,
    }
    for request, ioctl in rfc.IOCTLS.items():
        assert request in kinds[ioctl.file].COMMANDS, ioctl.name
    answered = [request for kind in kinds.values() for request in kind.COMMANDS]
    assert sorted(answered) == sorted(rfc.IOCTLS)
