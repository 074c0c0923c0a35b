"""The local door: an address space, descriptors by reference count, and the system calls on them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from support.world import PAGE, RAM, World, device_fd, group_fd, iommu_fd, map_dma, refused
from uvfio.doors.local import LocalEvent, LocalMemory, Process
from uvfio.errors import BadAddress, Busy
from uvfio.fops.file import File
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.uapi import rfc


class Room(World):
    """One device in group 1 and one program."""

    def __init__(self) -> None:
        super().__init__()
        self.plug("edu", 1)
        self.me = self.process("me")


@pytest.fixture
def room() -> Room:
    return Room()


def opened(process: Process, fd: int) -> File:
    file = process.file(fd)
    assert isinstance(file, File)
    return file


# -- memory --------------------------------------------------------------------------------------


def test_memory_is_zeroed_page_aligned_and_rounded_up() -> None:
    memory = LocalMemory()
    address = memory.allocate(PAGE + 1)
    assert address % PAGE == 0
    assert memory.read(address, 2 * PAGE) == bytes(2 * PAGE)
    assert memory.read(memory.allocate(0), PAGE) == bytes(PAGE)


def test_areas_are_separated_by_unmapped_pages() -> None:
    memory = LocalMemory()
    first, second = memory.allocate(PAGE), memory.allocate(PAGE)
    assert second - first >= 2 * PAGE
    with pytest.raises(BadAddress):
        memory.read(first, PAGE + 1)


def test_what_is_written_can_be_read() -> None:
    memory = LocalMemory()
    address = memory.allocate(PAGE)
    memory.write(address + 10, b"data")
    memory.store(address + 16, 0x0102, 2)
    assert memory.read(address + 10, 8) == b"data\0\0\2\1"


def test_a_view_is_the_memory_itself() -> None:
    memory = LocalMemory()
    address = memory.allocate(PAGE)
    view = memory.view(address + 4, 4)
    assert view is not None
    view[:] = b"abcd"
    assert memory.read(address, 8) == b"\0\0\0\0abcd"


def test_read_only_memory_can_be_read_only() -> None:
    memory = LocalMemory()
    address = memory.allocate(PAGE, writable=False)
    memory.read(address, PAGE)
    for access in (
        lambda: memory.write(address, b"x"),
        lambda: memory.store(address, 1, 4),
        lambda: memory.view(address, 4),
        lambda: memory.pin(address, PAGE, True),
    ):
        with pytest.raises(BadAddress, match="read-only"):
            access()
    assert memory.pin(address, PAGE, False).locked == PAGE


def test_freed_memory_is_gone() -> None:
    memory = LocalMemory()
    address = memory.allocate(PAGE)
    memory.free(address)
    with pytest.raises(BadAddress, match="not mapped"):
        memory.read(address, 1)
    with pytest.raises(BadAddress, match="no area begins"):
        memory.free(address)


def test_device_memory_pins_nothing() -> None:
    memory = LocalMemory()
    ram = memory.allocate(PAGE)
    bar = memory.place(memoryview(bytearray(PAGE)), device=True)
    assert memory.pin(ram, PAGE, True).locked == PAGE
    assert memory.pin(bar, PAGE, True).locked == 0


def test_a_copy_has_its_own_ram_and_the_same_device_memory() -> None:
    memory = LocalMemory()
    ram = memory.allocate(PAGE)
    bar = memory.place(memoryview(bytearray(PAGE)), device=True)
    memory.write(ram, b"before")
    child = memory.copy()
    memory.write(ram, b"after.")
    memory.write(bar, b"device")
    assert child.read(ram, 6) == b"before"
    assert child.read(bar, 6) == b"device"
    assert child.allocate(PAGE) not in (ram, bar)


# -- events --------------------------------------------------------------------------------------


def test_an_event_counts_until_it_is_taken() -> None:
    event = LocalEvent()
    event.signal()
    event.signal()
    assert event.take() == 2
    assert event.take() == 0


def test_watchers_are_called_for_each_signal_until_they_stop() -> None:
    event = LocalEvent()
    calls: list[int] = []
    stop = event.watch(lambda: calls.append(event.count))
    event.signal()
    event.signal()
    stop()
    stop()
    event.signal()
    assert calls == [1, 2]


def test_a_pending_signal_is_told_to_a_new_watcher() -> None:
    event = LocalEvent()
    event.signal()
    calls: list[int] = []
    event.watch(lambda: calls.append(event.count))
    assert calls == [1]


def test_closing_a_reference_leaves_the_event_usable() -> None:
    event = LocalEvent()
    event.close()
    event.signal()
    assert event.take() == 1


# -- descriptors ---------------------------------------------------------------------------------


def test_descriptors_are_the_lowest_free_numbers_from_3(room: Room) -> None:
    fds = [room.me.eventfd() for _ in range(3)]
    assert fds == [3, 4, 5]
    room.me.close(4)
    assert room.me.eventfd() == 4


def test_a_node_that_does_not_exist_is_enoent(room: Room) -> None:
    for path in ("/dev/vfio/2", "/dev/vfio/vfio", "/dev/null"):
        with refused(room, errno.ENOENT):
            room.me.open(path)


def test_nodes_of_two_buses_have_two_names(room: Room) -> None:
    room.plug("eth", 1, bus="platform")
    fd = room.me.open("/dev/vfio/platform:1")
    assert opened(room.me, fd).name == "/dev/vfio/platform:1"
    assert room.group(1, "platform").is_open
    assert not room.group(1).is_open


def test_opening_without_a_free_descriptor_opens_nothing(room: Room) -> None:
    room.me.max_files = 3
    with refused(room, errno.EMFILE):
        group_fd(room.me, 1)


def test_a_closed_descriptor_is_ebadf(room: Room) -> None:
    fd = room.me.eventfd()
    room.me.close(fd)
    calls: tuple[Callable[[], object], ...] = (
        lambda: room.me.close(fd),
        lambda: room.me.dup(fd),
        lambda: room.me.ioctl(fd, 0),
        lambda: room.me.pread(fd, 1, 0),
        lambda: room.me.pwrite(fd, b"x", 0),
        lambda: room.me.mmap(fd, PAGE, 0),
        lambda: room.me.send(fd, room.me),
        lambda: room.me.event(fd),
        lambda: room.me.file(fd),
    )
    for call in calls:
        with refused(room, errno.EBADF):
            call()


def test_an_eventfd_is_abandoned_by_its_last_close(room: Room) -> None:
    fd = room.me.eventfd()
    event = room.me.event(fd)
    copy, child = room.me.dup(fd), room.me.fork()
    room.me.close(fd)
    room.me.close(copy)
    assert not event.abandoned()
    child.close(fd)
    assert not event.abandoned()
    child.close(copy)
    assert event.abandoned()


def test_an_eventfd_has_no_ioctls(room: Room) -> None:
    fd = room.me.eventfd()
    with refused(room, errno.ENOTTY):
        room.me.ioctl(fd, 0)


def test_only_files_can_be_installed(room: Room) -> None:
    with refused(room, errno.EINVAL):
        room.me.install(object(), True)


def test_an_event_is_found_by_its_descriptor(room: Room) -> None:
    fd = room.me.eventfd()
    assert room.me.event(fd) is room.me.file(fd)
    group = group_fd(room.me, 1)
    with refused(room, errno.EINVAL):
        room.me.event(group)


def test_a_file_is_released_by_the_last_of_its_descriptors(room: Room) -> None:
    fd = group_fd(room.me, 1)
    file, other = opened(room.me, fd), room.process("other")
    copies = [(room.me, room.me.dup(fd)), (other, room.me.send(fd, other))]
    room.me.close(fd)
    for process, copy in copies:
        assert not file.released
        process.close(copy)
    assert file.released
    assert not room.group(1).is_open


def test_dup_without_a_free_descriptor_is_emfile(room: Room) -> None:
    fd = group_fd(room.me, 1)
    room.me.max_files = 4
    with refused(room, errno.EMFILE):
        room.me.dup(fd)
    with refused(room, errno.EMFILE):
        room.me.eventfd()


# -- ioctl arguments -----------------------------------------------------------------------------


def test_integers_are_passed_as_they_are(room: Room) -> None:
    group = group_fd(room.me, 1)
    address = room.me.memory.allocate(8)
    room.me.ioctl(group, rfc.VFIO_GROUP_GET_FLAGS, address)
    assert room.me.memory.read(address, 8) == rfc.U64.pack(rfc.VFIO_GROUP_FLAGS_VIABLE)


def test_mutable_buffers_are_written_back(room: Room) -> None:
    group = group_fd(room.me, 1)
    for buffer in (bytearray(8), memoryview(bytearray(8))):
        room.me.ioctl(group, rfc.VFIO_GROUP_GET_FLAGS, buffer)
        assert bytes(buffer) == rfc.U64.pack(1)


def test_structs_are_written_back(room: Room) -> None:
    device = device_fd(room.me, group_fd(room.me, 1), "edu")
    info = rfc.vfio_irq_info(len=16, index=1, count=0, flags=0)
    room.me.ioctl(device, rfc.VFIO_DEVICE_GET_IRQ_INFO, info)
    assert info.count == 4


def test_text_is_terminated(room: Room) -> None:
    assert device_fd(room.me, group_fd(room.me, 1), "edu") >= 0


def test_arguments_leave_no_memory_behind(room: Room) -> None:
    group = group_fd(room.me, 1)
    areas = dict(room.me.memory._areas)
    room.me.ioctl(group, rfc.VFIO_GROUP_GET_FLAGS, bytearray(8))
    with refused(room, errno.ENODEV):
        device_fd(room.me, group, "nobody")
    assert room.me.memory._areas == areas


# -- mappings ------------------------------------------------------------------------------------


def test_a_mapping_keeps_its_file_open(room: Room) -> None:
    device = device_fd(room.me, group_fd(room.me, 1), "edu")
    file = opened(room.me, device)
    address = room.me.mmap_at(device, PAGE, RAM << 40)
    room.me.close(device)
    assert not file.released
    room.me.memory.write(address, b"word")
    assert room.bounds["edu"].memory[RAM][:4] == b"word"
    room.me.munmap(address)
    assert file.released


def test_munmap_of_ordinary_memory_frees_it(room: Room) -> None:
    address = room.me.memory.allocate(PAGE)
    room.me.munmap(address)
    with pytest.raises(BadAddress):
        room.me.memory.read(address, 1)


def test_a_mapping_that_is_refused_maps_nothing(room: Room) -> None:
    device = device_fd(room.me, group_fd(room.me, 1), "edu")
    areas = dict(room.me.memory._areas)
    with refused(room, errno.EINVAL):
        room.me.mmap_at(device, PAGE, 0)
    assert room.me.memory._areas == areas


# -- fork and exit -------------------------------------------------------------------------------


def test_a_child_has_the_same_files_and_another_address_space(room: Room) -> None:
    group = group_fd(room.me, 1)
    child = room.fork(room.me)
    assert child.file(group) is room.me.file(group)
    assert child.mm is not room.me.mm
    assert child.mm.memory is child.memory
    assert child.mm.locked_pages == 0


def test_a_child_has_the_limits_of_its_parent(room: Room) -> None:
    room.me.max_files = 7
    room.me.memlock = 5
    child = room.fork(room.me)
    assert child.max_files == 7
    assert child.memlock_limit() == 5


def test_files_and_mappings_live_as_long_as_one_of_parent_and_child(room: Room) -> None:
    device = device_fd(room.me, group_fd(room.me, 1), "edu")
    file = opened(room.me, device)
    room.me.mmap_at(device, PAGE, RAM << 40)
    child = room.fork(room.me)
    room.me.exit()
    assert not file.released
    child.close(device)
    assert not file.released
    child.exit()
    assert file.released
    assert not room.group(1).is_open


def test_exit_closes_everything(room: Room) -> None:
    group = group_fd(room.me, 1)
    iommu = iommu_fd(room.me, group)
    device = device_fd(room.me, group, "edu")
    room.me.mmap_at(device, PAGE, RAM << 40)
    map_dma(room.me, iommu, 0, PAGE, room.me.memory.allocate(PAGE))
    room.me.exit()
    assert room.me._fds == {}
    assert room.me.mm.locked_pages == 0
    assert room.bounds["edu"].enabled == 0
    assert room.group(1).iommu is None
    room.me.exit()


def test_exit_closes_everything_although_a_driver_fails(room: Room) -> None:
    group = group_fd(room.me, 1)
    device_fd(room.me, group, "edu")
    device_fd(room.me, group, "edu")
    room.bounds["edu"].errors["put"] = Busy("stuck")
    with pytest.raises(Busy):
        room.me.exit()
    assert room.me._fds == {}
    assert not room.record("edu").in_use
    assert not room.group(1).is_open


def test_a_process_is_named_for_messages(room: Room) -> None:
    assert room.me.mm.name == "me"
    assert room.fork(room.me).mm.name == "me (child)"
    assert room.process("").name.startswith("process 0x")


def test_a_device_file_belongs_to_its_device(room: Room) -> None:
    fd = device_fd(room.me, group_fd(room.me, 1), "edu")
    file = room.me.file(fd)
    assert isinstance(file, DeviceFile)
    assert file.opened.device is room.record("edu")
