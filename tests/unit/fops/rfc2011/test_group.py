"""The group file of the 2011 ABI, ioctl by ioctl: arguments, answers, every error in its order.

Programs are processes of the local door. ``refused`` asserts the errno that the program sees and that
nothing changed, descriptors and locked memory included.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from support.rfc2011 import (
    LOCKED,
    NOWHERE,
    UNKNOWN,
    VIABLE,
    Desk,
    at_end_of_memory,
    read_only,
)
from support.world import (
    PAGE,
    device_fd,
    group_fd,
    group_flags,
    iommu_fd,
    map_dma,
    merge,
    refused,
    unmap_dma,
    unmerge,
)
from uvfio.core.translation.unit import IommuUnit
from uvfio.doors.local import Process
from uvfio.errors import NoSpace, TooManyFiles
from uvfio.fops.file import File, install
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.fops.rfc2011.file import RfcFile
from uvfio.fops.rfc2011.group import GroupFile, open_group
from uvfio.fops.rfc2011.iommu import IommuFile
from uvfio.uapi import rfc


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- group file: what it is not ------------------------------------------------------------------


def test_a_group_file_has_no_read_write_or_mmap(desk: Desk) -> None:
    with refused(desk, errno.EINVAL):
        desk.me.pread(desk.g1, 1, 0)
    with refused(desk, errno.EINVAL):
        desk.me.pwrite(desk.g1, b"x", 0)
    with refused(desk, errno.ENODEV):
        desk.me.mmap(desk.g1, PAGE, 0)


def test_a_group_file_is_called_like_its_node(desk: Desk) -> None:
    file = open_group(desk.framework, desk.group(1), desk.me)
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
        open_group(desk.framework, group, desk.me)


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
    assert isinstance(file, IommuFile)
    assert file.opened.iommu is desk.iommu(1) is not old
    assert old.groups == []


# -- VFIO_GROUP_GET_DEVICE_FD --------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_", [rfc.VFIO_GROUP_GET_DEVICE_FD, rfc.VFIO_GROUP_GET_DEVICE_FD_32]
)
def test_d28_both_numbers_of_get_device_fd_work(desk: Desk, request_: int) -> None:
    fd = desk.me.ioctl(desk.g1, request_, "a")
    assert isinstance(desk.me.file(fd), DeviceFile)
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


# -- life of files -------------------------------------------------------------------------------


def test_review_11_every_kind_of_file_has_one_release() -> None:
    for kind in (GroupFile, IommuFile, DeviceFile):
        assert "_release" in vars(kind)
        assert "release" not in vars(kind)


def test_review_10_an_iommu_file_gives_no_say_about_groups() -> None:
    assert sorted(IommuFile.REQUESTS) == sorted(
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
        install(task, file)
    assert file.released


def test_every_ioctl_of_the_header_is_answered() -> None:
    kinds: dict[str, type[RfcFile]] = {
        "group": GroupFile,
        "iommu": IommuFile,
        "device": DeviceFile,
    }
    for request, ioctl in rfc.IOCTLS.items():
        assert request in kinds[ioctl.file].REQUESTS, ioctl.name
    answered = [request for kind in kinds.values() for request in kind.REQUESTS]
    assert sorted(answered) == sorted(rfc.IOCTLS)
