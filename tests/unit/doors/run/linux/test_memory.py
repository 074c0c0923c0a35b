"""The memory of other processes: what they may touch themselves, what devices may, what can be shared."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from support.puppet import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PAGE,
    PROT_READ,
    PROT_WRITE,
    Puppet,
    finish,
    open_descriptors,
    start,
)
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import ProgramMemory, Unreadable, UserMemory
from uvfio.errors import BadAddress

RW = PROT_READ | PROT_WRITE


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    puppet, process = start()
    yield puppet
    finish(puppet, process)


def program_memory(puppet: Puppet, devices: frozenset[int] = frozenset()) -> ProgramMemory:
    return ProgramMemory(puppet.pid, lambda dev, inode: inode in devices)


def user_memory(puppet: Puppet) -> UserMemory:
    return UserMemory(puppet.pid, program_memory(puppet), lambda: puppet.pid)


def memfd(puppet: Puppet, pages: int) -> int:
    fd = puppet.must("memfd_create", b"shared", 0)
    puppet.must("ftruncate", fd, pages * PAGE)
    return fd


def map_shared(
    puppet: Puppet, fd: int, pages: int, *, first: int = 0, at: int = 0, protection: int = RW
) -> int:
    flags = MAP_SHARED | (MAP_FIXED if at else 0)
    return puppet.must("mmap", at, pages * PAGE, protection, flags, fd, first * PAGE)


# -- reading and writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [user_memory, program_memory])
def test_what_is_written_is_read(puppet: Puppet, kind: type) -> None:
    memory = kind(puppet)
    at = puppet.pages(3)
    data = bytes(range(256)) * 17  # crosses a page
    memory.write(at + PAGE - 100, data)
    assert memory.read(at + PAGE - 100, len(data)) == data
    assert puppet.peek(at + PAGE - 100, len(data)) == data
    assert memory.read(at, 0) == b""
    memory.write(0, b"")  # no byte, no fault


@pytest.mark.parametrize("kind", [user_memory, program_memory])
@pytest.mark.parametrize(
    "address", [0, 8, (1 << 47), (1 << 63) - 8, 1 << 63, (1 << 64) - 16, (1 << 64) - 1]
)
def test_addresses_that_no_program_has(puppet: Puppet, kind: type, address: int) -> None:
    memory = kind(puppet)
    with pytest.raises(BadAddress, match=f"{address:#x}") as caught:
        memory.read(address, 8)
    assert caught.value.errno == errno.EFAULT
    with pytest.raises(BadAddress, match=f"{address:#x}"):
        memory.write(address, b"12345678")


@pytest.mark.parametrize("kind", [user_memory, program_memory])
def test_the_end_of_a_mapping(puppet: Puppet, kind: type) -> None:
    memory = kind(puppet)
    at = puppet.pages(2)
    puppet.must("munmap", at + PAGE, PAGE)
    memory.write(at + PAGE - 4, b"last")
    assert memory.read(at + PAGE - 4, 4) == b"last"
    with pytest.raises(BadAddress):
        memory.read(at + PAGE - 4, 5)
    with pytest.raises(BadAddress):
        memory.write(at + PAGE - 2, b"three")


def test_arguments_have_the_rights_of_the_caller(puppet: Puppet) -> None:
    """As copy_to_user: a page that the program cannot write is EFAULT although the supervisor could."""
    memory = user_memory(puppet)
    hidden, constant = puppet.pages(1, 0), puppet.pages(1, PROT_READ)
    with pytest.raises(BadAddress):
        memory.read(hidden, 1)
    with pytest.raises(BadAddress):
        memory.write(hidden, b"x")
    assert memory.read(constant, 2) == b"\0\0"
    with pytest.raises(BadAddress):
        memory.write(constant, b"x")
    assert memory.read(constant, 1) == b"\0"


def test_a_failed_call_takes_no_descriptor(puppet: Puppet) -> None:
    memory = user_memory(puppet)
    memory.pin(puppet.arena, 1, False)
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises(BadAddress):
            memory.read(8, 8)
        with pytest.raises(BadAddress):
            memory.pin(8, 8, False)
        assert memory.view(puppet.arena, 8) is None
    assert open_descriptors() <= before


# -- one address space and no other ----------------------------------------------------------------------


def test_dma_does_not_follow_an_exec(puppet: Puppet) -> None:
    memory, user = program_memory(puppet), user_memory(puppet)
    at = puppet.arena
    memory.write(at, b"before")
    assert not memory.gone
    puppet.execute()
    assert memory.gone
    for use in (lambda: memory.read(at, 6), lambda: memory.write(at, b"after")):
        with pytest.raises(BadAddress):
            use()
    with pytest.raises(BadAddress):
        memory.pin(at, 8, False)
    # arguments belong to whoever calls now
    user.write(puppet.arena, b"after")
    assert user.read(puppet.arena, 5) == b"after"


def test_nothing_is_left_after_the_end() -> None:
    puppet, process = start()
    memory, user = program_memory(puppet), user_memory(puppet)
    window_fd = memfd(puppet, 1)
    shared = map_shared(puppet, window_fd, 1)
    view = memory.view(shared, 8)
    finish(puppet, process)
    assert memory.gone
    for reader in (memory, user):
        with pytest.raises(BadAddress):
            reader.read(puppet.arena, 1)
        with pytest.raises(BadAddress):
            reader.write(puppet.arena, b"x")
        with pytest.raises(BadAddress):
            reader.pin(puppet.arena, 1, False)
    assert view is not None
    view[0] = 1  # what a device had pinned stays until it lets go


def test_descriptors_are_given_back(puppet: Puppet) -> None:
    before = open_descriptors()
    memory = program_memory(puppet)
    memory.pin(puppet.arena, 1, True)
    assert len(open_descriptors() - before) == 2
    del memory
    assert open_descriptors() <= before


def test_a_program_that_is_not_there() -> None:
    puppet, process = start()
    finish(puppet, process)
    with pytest.raises(FileNotFoundError):
        program_memory(puppet)


# -- pinning ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ioctl", "text"])
def areas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to look at /proc/PID/maps."""
    if request.param == "text":

        def missing(fd: int, address: int) -> None:
            raise OSError(errno.ENOTTY, "before Linux 6.11")

        monkeypatch.setattr(sc, "procmap_query", missing)
    else:
        try:
            with open("/proc/self/maps") as file:
                sc.procmap_query(file.fileno(), 0)
        except OSError:
            pytest.skip("PROCMAP_QUERY needs Linux 6.11")
    return str(request.param)


@pytest.mark.usefixtures("areas")
def test_what_can_be_pinned(puppet: Puppet) -> None:
    memory = program_memory(puppet)
    at = puppet.pages(6)
    puppet.must("mprotect", at + PAGE, PAGE, PROT_READ)
    puppet.must("mprotect", at + 3 * PAGE, PAGE, 0)
    puppet.must("munmap", at + 5 * PAGE, PAGE)
    assert memory.pin(at, 2 * PAGE, False) == 2 * PAGE  # across areas
    assert memory.pin(at, PAGE, True) == PAGE
    with pytest.raises(BadAddress, match="not writable"):
        memory.pin(at, 2 * PAGE, True)
    with pytest.raises(BadAddress, match="not readable"):
        memory.pin(at + 2 * PAGE, 2 * PAGE, False)
    with pytest.raises(BadAddress, match=f"nothing is mapped at {at + 5 * PAGE:#x}"):
        memory.pin(at + 4 * PAGE, 2 * PAGE, False)
    with pytest.raises(BadAddress, match="nothing is mapped"):
        memory.pin((1 << 64) - PAGE, PAGE, False)


@pytest.mark.usefixtures("areas")
def test_device_memory_is_not_charged(puppet: Puppet) -> None:
    fd = memfd(puppet, 2)
    inode = os.stat(f"/proc/{puppet.pid}/fd/{fd}").st_ino
    memory = program_memory(puppet, frozenset({inode}))
    at = puppet.pages(4)
    map_shared(puppet, fd, 2, at=at + PAGE)
    assert memory.pin(at, 4 * PAGE, True) == 2 * PAGE
    assert memory.pin(at + PAGE, 2 * PAGE, True) == 0


def test_both_ways_see_the_same_areas(puppet: Puppet) -> None:
    """The ioctl and the text, for every line that /proc/PID/maps has, at both its ends."""
    fd = memfd(puppet, 8)
    map_shared(puppet, fd, 3, first=2)
    map_shared(puppet, fd, 1, protection=PROT_READ)
    puppet.pages(2, 0)
    memory = program_memory(puppet)
    with open(f"/proc/{puppet.pid}/maps") as file:
        bounds = [line.split()[0].split("-") for line in file if "[vsyscall]" not in line]
    assert len(bounds) > 6
    compared = 0
    for first, end in bounds:
        for address in (int(first, 16), int(end, 16) - 1, int(end, 16), int(first, 16) - 1):
            found = memory._area(address)
            assert found == memory._area_from_text(address)
            compared += found is not None
    assert compared >= 2 * len(bounds)


# -- windows --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("areas")
def test_a_window_is_the_same_memory(puppet: Puppet) -> None:
    memory = program_memory(puppet)
    at = map_shared(puppet, memfd(puppet, 4), 4)
    view = memory.view(at + PAGE, PAGE)
    assert view is not None
    assert len(view) == PAGE
    view[:4] = struct.pack("<I", 0xFEED)
    assert puppet.load(at + PAGE) == 0xFEED
    puppet.store(at + PAGE + 8, 0xBEEF)
    assert view[8:12] == struct.pack("<I", 0xBEEF)


@pytest.mark.usefixtures("areas")
def test_a_window_over_two_areas_of_one_file(puppet: Puppet) -> None:
    """Memory of a VMM may be mapped piece by piece, in any order."""
    memory = program_memory(puppet)
    fd = memfd(puppet, 4)
    at = puppet.pages(5)
    map_shared(puppet, fd, 2, first=2, at=at + 2 * PAGE)
    map_shared(puppet, fd, 2, first=0, at=at)
    puppet.must("mprotect", at + 2 * PAGE, PAGE, RW | 4)  # or the kernel makes one area of them
    view = memory.view(at + 2 * PAGE - 8, 16)
    assert view is not None
    view[:] = bytes(range(16))
    assert puppet.peek(at + 2 * PAGE - 8, 16) == bytes(range(16))
    assert memory.view(at + 4 * PAGE - 8, 16) is None  # private memory behind


def test_no_window_over_pieces_that_do_not_follow(puppet: Puppet) -> None:
    memory = program_memory(puppet)
    fd, other = memfd(puppet, 4), memfd(puppet, 4)
    at = puppet.pages(6)
    map_shared(puppet, fd, 1, first=0, at=at)
    map_shared(puppet, fd, 1, first=2, at=at + PAGE)  # page 1 of the file is missing
    map_shared(puppet, other, 1, first=3, at=at + 2 * PAGE)  # another file
    assert memory.view(at + PAGE - 8, 16) is None
    assert memory.view(at + 2 * PAGE - 8, 16) is None
    assert memory.view(at + PAGE, PAGE) is not None


def test_private_memory_has_no_window(puppet: Puppet) -> None:
    memory = program_memory(puppet)
    fd = memfd(puppet, 1)
    copy = puppet.must("mmap", 0, PAGE, RW, MAP_PRIVATE, fd, 0)
    nameless = puppet.must("mmap", 0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
    for at in (puppet.arena, copy, nameless, 8):
        assert memory.view(at, 8) is None


def test_a_closed_file_has_no_window(puppet: Puppet) -> None:
    """Nothing but a descriptor leads to the file; what was opened in time stays."""
    memory = program_memory(puppet)
    fd = memfd(puppet, 2)
    at, other = map_shared(puppet, fd, 1), map_shared(puppet, fd, 1, first=1)
    assert memory.view(at, 8) is not None
    puppet.must("close", fd)
    assert memory.view(at, 8) is not None
    if abs(at - other) > PAGE:
        assert memory.view(other, 8) is None


def test_pinning_looks_again(puppet: Puppet) -> None:
    """Another file at the same address: a new DMA mapping must reach the new one."""
    memory = program_memory(puppet)
    at = map_shared(puppet, memfd(puppet, 1), 1)
    memory.pin(at, PAGE, True)
    old = memory.view(at, 8)
    assert old is not None
    map_shared(puppet, memfd(puppet, 1), 1, at=at)
    memory.pin(at, PAGE, True)
    memory.store(at, 7, 4)
    assert puppet.peek(at, 4) == struct.pack("<I", 7)
    assert bytes(old[:4]) == bytes(4)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_one_store(puppet: Puppet, width: int, shared: bool) -> None:
    memory = user_memory(puppet)
    at = map_shared(puppet, memfd(puppet, 1), 1) if shared else puppet.pages(1)
    value = 0x8877665544332211 & ((1 << 8 * width) - 1)
    memory.store(at + 64, value, width)
    assert puppet.peek(at + 56, 24) == bytes(8) + value.to_bytes(16, "little")
    assert (memory.view(at, PAGE) is not None) == shared


@pytest.mark.parametrize("shared", [True, False])
def test_a_store_is_not_torn(puppet: Puppet, shared: bool) -> None:
    """A reader beside it sees all of the old value or all of the new one."""
    memory = user_memory(puppet)
    fd = memfd(puppet, 1)
    at = map_shared(puppet, fd, 1) if shared else puppet.pages(1)
    reader = os.open(f"/proc/{puppet.pid}/fd/{fd}", os.O_RDWR)
    with mmap.mmap(reader, PAGE) as page, memoryview(page).cast("Q") as words:
        os.close(reader)
        if not shared:
            memory.store(at, 1, 8)
            assert puppet.peek(at, 8) == struct.pack("<Q", 1)
            return
        child = os.fork()
        if child == 0:
            for n in range(20000):
                memory.store(at, (1 << 64) - 1 if n & 1 else 0, 8)
            os._exit(0)
        seen = set()
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            seen |= {words[0] for _ in range(100)}
    assert seen <= {0, (1 << 64) - 1}


def test_pinning_looks_at_areas_not_at_pages(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 GiB cost what 4 KiB cost: one question, or one reading of the text, and no page is touched."""
    size = 4 << 30
    no_reserve = 0x4000
    at = puppet.must("mmap", 0, size, RW, MAP_PRIVATE | MAP_ANONYMOUS | no_reserve, -1, 0)
    memory = program_memory(puppet)
    asked: list[int] = []
    real = ProgramMemory._area

    def area(self: ProgramMemory, address: int) -> object:
        asked.append(address)
        return real(self, address)

    monkeypatch.setattr(ProgramMemory, "_area", area)
    for name in ("read", "write", "view"):
        monkeypatch.setattr(ProgramMemory, name, None)
    before = resident(puppet.pid)
    assert memory.pin(at, size, True) == size
    assert asked == [at]
    assert resident(puppet.pid) == before


def resident(pid: int) -> int:
    """Pages of memory that a process has."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1])


# -- errors of the system that are no faults of an address ----------------------------------------------


def failing(number: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def test_an_error_that_is_no_fault_is_not_taken_for_one(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = program_memory(puppet)
    at = puppet.pages(1)
    monkeypatch.setattr(os, "pread", failing(errno.EPERM))
    monkeypatch.setattr(os, "pwrite", failing(errno.EPERM))
    for call in (lambda: memory.read(at, 4), lambda: memory.write(at, b"1234")):
        with pytest.raises(PermissionError):
            call()


@pytest.mark.parametrize(
    ("number", "condition"),
    [(errno.EACCES, Unreadable), (errno.EIO, OSError)],
)
def test_mappings_that_cannot_be_seen(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch, number: int, condition: type[OSError]
) -> None:
    memory = program_memory(puppet)
    at = puppet.pages(1)
    monkeypatch.setattr(sc, "procmap_query", failing(number))
    with pytest.raises(condition) as caught:
        memory.pin(at, PAGE, True)
    assert type(caught.value) is condition


@pytest.mark.parametrize("number", [errno.ESRCH, errno.ENOENT])
def test_a_program_that_ends_meanwhile_has_no_mappings(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    memory = program_memory(puppet)
    at = puppet.pages(1)
    monkeypatch.setattr(sc, "procmap_query", failing(number))
    with pytest.raises(BadAddress):
        memory.pin(at, PAGE, True)


def test_device_memory_that_does_not_answer_cannot_be_pinned(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = memfd(puppet, 1)
    at = map_shared(puppet, fd, 1)
    inode = os.stat(f"/proc/{puppet.pid}/fd/{fd}").st_ino
    memory = program_memory(puppet, frozenset({inode}))
    assert memory.pin(at, PAGE, True) == 0
    puppet.must("ftruncate", fd, 0)
    with pytest.raises(BadAddress, match="does not answer"):
        memory.pin(at, PAGE, True)
    monkeypatch.setattr(os, "pread", failing(errno.EPERM))
    with pytest.raises(PermissionError):
        memory.pin(at, PAGE, True)


def test_no_window_where_descriptors_cannot_be_listed_or_mapped(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = map_shared(puppet, memfd(puppet, 1), 1)
    before = open_descriptors()
    with monkeypatch.context() as broken:
        broken.setattr(os, "listdir", failing(errno.EACCES))
        assert program_memory(puppet).view(at, 8) is None
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", failing(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            program_memory(puppet)
    with monkeypatch.context() as broken:
        broken.setattr(mmap, "mmap", failing(errno.ENOMEM))
        assert program_memory(puppet).view(at, 8) is None
    assert open_descriptors() <= before
    assert program_memory(puppet).view(at, 8) is not None
