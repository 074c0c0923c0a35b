"""The file behind mappable regions: what a process that maps it sees, and what the views show."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from support.puppet import open_descriptors
from support.requirements import require
from uvfio.doors.run.launch.check import scratch_directories
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.device_memory import DeviceMemory
from uvfio.uapi.rfc import VFIO_REGION_SHIFT as REGION_SHIFT

PAGE = 4096
BIG = 1 << 18
SIZES = {0: PAGE, 2: BIG, 4: 2 * PAGE}


@pytest.fixture
def memory() -> Iterator[DeviceMemory]:
    folders = scratch_directories()
    require(bool(folders), "no folder can hold tokens; run `uvfio check`")
    before = open_descriptors()
    made = DeviceMemory(folders[0], SIZES, late=[4])
    yield made
    made.close()
    assert open_descriptors() <= before


def mapping(memory: DeviceMemory, index: int) -> mmap.mmap:
    """A program's mapping; it is told of as a door does."""
    size = os.fstat(memory.fd).st_size
    os.ftruncate(memory.fd, (9 << REGION_SHIFT) if size == 0 else size)  # Python asks for the size
    try:
        return mmap.mmap(memory.fd, SIZES[index], offset=index << REGION_SHIFT)
    finally:
        os.ftruncate(memory.fd, size)
        memory.mapped()


def ends(call: Callable[[], object]) -> int:
    """How a child that makes the call ends: 0, or the signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        try:
            call()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def pages(memory: DeviceMemory) -> int:
    return os.fstat(memory.fd).st_blocks // 8


def test_views_are_the_files_pages(memory: DeviceMemory) -> None:
    seen = mapping(memory, 2)
    memory.views[2][5] = 7
    seen[6] = 8
    assert bytes(seen[5:7]) == bytes(memory.views[2][5:7]) == b"\x07\x08"
    seen.close()


def test_late_regions_take_no_pages_before(memory: DeviceMemory) -> None:
    assert pages(memory) == (PAGE + BIG) // PAGE
    assert os.fstat(memory.fd).st_size == (2 << REGION_SHIFT) + BIG
    memory.populate(4)
    memory.populate(4)
    assert pages(memory) == (PAGE + BIG) // PAGE + 2
    seen = mapping(memory, 4)
    memory.views[4][0] = 9
    assert seen[0] == 9
    seen.close()


def test_hidden_and_shown(memory: DeviceMemory) -> None:
    seen = mapping(memory, 2)
    view = memory.views[2]
    seen[0], seen[BIG - 1], view[100_000] = 1, 2, 3
    memory.hide()
    memory.hide()
    assert memory.hidden
    assert ends(lambda: seen[0]) == ends(lambda: seen[BIG - 1]) == signal.SIGBUS
    assert (view[0], view[BIG - 1], view[100_000], view[50]) == (1, 2, 3, 0)
    view[200_000] = 4  # the device goes on
    view[0] = 0
    memory.show()
    memory.show()
    assert not memory.hidden
    assert (seen[0], seen[BIG - 1], seen[100_000], seen[200_000]) == (0, 2, 3, 4)
    seen[1] = 5
    assert view[1] == 5
    assert pages(memory) == (PAGE + BIG) // PAGE
    seen.close()


def test_nothing_is_moved_before_somebody_maps(memory: DeviceMemory) -> None:
    memory.hide()
    assert pages(memory) == (PAGE + BIG) // PAGE
    memory.views[0][0] = 1
    seen = mapping(memory, 0)
    assert pages(memory) == 0
    assert ends(lambda: seen[0]) == signal.SIGBUS
    memory.populate(4)
    memory.views[4][1] = 2
    memory.show()
    assert seen[0] == 1
    assert memory.views[4][1] == 2
    seen.close()
    memory.unmapped()
    memory.hide()
    assert pages(memory) == (PAGE + BIG) // PAGE + 2


def test_no_room_to_show_it_again(memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = mapping(memory, 0)
    seen[0] = 1
    memory.hide()

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(sc, "fallocate", full)
        with pytest.raises(OSError, match="full"):
            memory.show()
    assert memory.hidden
    assert memory.views[0][0] == 1
    assert ends(lambda: seen[0]) == signal.SIGBUS
    memory.show()
    assert seen[0] == 1
    seen.close()


def test_a_file_system_that_cannot_reserve(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*arguments: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    seen = mapping(memory, 0)
    seen[3] = 1
    monkeypatch.setattr(sc, "fallocate", cannot)
    memory.hide()
    memory.show()
    assert seen[3] == 1
    seen.close()


def test_no_memory_for_the_copies(memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sc.mmap
    made: list[int] = []

    def second_fails(*arguments: int) -> int:
        if made:
            raise OSError(errno.ENOMEM, "none")
        made.append(real(*arguments))
        return made[0]

    seen = mapping(memory, 0)
    seen[0] = 1
    monkeypatch.setattr(sc, "mmap", second_fails)
    with pytest.raises(OSError, match="none"):
        memory.hide()
    assert not memory.hidden
    assert seen[0] == memory.views[0][0] == 1
    seen.close()


def test_a_folder_that_is_not_there() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        DeviceMemory("/nowhere", SIZES)
    assert open_descriptors() == before


def test_a_file_that_is_cut_has_its_size_again(memory: DeviceMemory) -> None:
    """A program that gets at the file itself: what was cut is zero, for the program as for the device."""
    seen = mapping(memory, 2)
    memory.views[0][3], memory.views[2][PAGE] = 1, 2
    for size in (0, 2 << REGION_SHIFT):
        os.ftruncate(memory.fd, size)
        assert memory.views[2][PAGE] == 0
        assert os.fstat(memory.fd).st_size == (2 << REGION_SHIFT) + BIG
        memory.views[2][PAGE] = 3
        assert seen[PAGE] == 3
    assert memory.views[0][3] == 0
    memory.populate(4)
    os.ftruncate(memory.fd, 0)
    memory.views[4][0] = 4
    assert os.fstat(memory.fd).st_size == (4 << REGION_SHIFT) + 2 * PAGE
    os.ftruncate(memory.fd, 0)
    memory.hide()  # copies what was touched
    assert bytes(memory.views[2][: 2 * PAGE]) == bytes(2 * PAGE)
    memory.show()
    seen.close()


def test_a_view_is_usable_after_the_end(memory: DeviceMemory) -> None:
    view = memory.views[2]
    other = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDWR)
    try:
        memory.close()
        os.ftruncate(other, 0)
    finally:
        os.close(other)
        memory.fd = os.open("/dev/null", os.O_RDONLY)  # for the fixture
    view[0] = 5
    assert bytes(view[:2]) == b"\5\0"


def test_clear_takes_what_was_touched(
    memory: DeviceMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[int] = []
    real = ctypes.memset

    def memset(at: int, value: int, size: int) -> int:
        cleared.append(size)
        return real(at, value, size)

    monkeypatch.setattr(ctypes, "memset", memset)
    memory.clear(2)
    assert cleared == []
    seen = mapping(memory, 2)
    memory.views[2][3 * PAGE] = 1
    seen[9 * PAGE + 5] = 2
    memory.clear(2)
    assert cleared == [PAGE, PAGE]
    assert bytes(memory.views[2]) == seen[:] == bytes(BIG)
    assert pages(memory) == (PAGE + BIG) // PAGE
    seen.close()


def test_clear_while_hidden(memory: DeviceMemory) -> None:
    seen = mapping(memory, 2)
    memory.views[2][7], memory.views[0][7] = 1, 2
    memory.hide()
    memory.clear(2)
    assert memory.views[2][7] == 0
    memory.show()
    assert (seen[7], memory.views[2][7], memory.views[0][7]) == (0, 0, 2)
    seen.close()
