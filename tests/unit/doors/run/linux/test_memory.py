"""The memory of other processes: what they may touch themselves, what devices may, what can be shared."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
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
from uvfio.core.seams import Pages
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.area import Area
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


def pages(puppet: Puppet, at: int, size: int = PAGE, writable: bool = True) -> Pages:
    """What a DMA mapping of the range is given."""
    return program_memory(puppet).pin(at, size, writable).pages


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
        assert memory.pin(puppet.arena, 8, True).pages.view(puppet.arena, 8) is None
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
    held = memory.pin(shared, PAGE, True).pages
    view = held.view(shared, 8)
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
    assert held.read(shared, 2) == b"\1\0"


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
    assert memory.pin(at, 2 * PAGE, False).locked == 2 * PAGE  # across areas
    assert memory.pin(at, PAGE, True).locked == PAGE
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
    assert memory.pin(at, 4 * PAGE, True).locked == 2 * PAGE
    assert memory.pin(at + PAGE, 2 * PAGE, True).locked == 0


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
    at = map_shared(puppet, memfd(puppet, 4), 4)
    held = pages(puppet, at, 4 * PAGE)
    view = held.view(at + PAGE, PAGE)
    assert view is not None
    assert len(view) == PAGE
    view[:4] = struct.pack("<I", 0xFEED)
    assert puppet.load(at + PAGE) == 0xFEED
    puppet.store(at + PAGE + 8, 0xBEEF)
    assert view[8:12] == held.read(at + PAGE + 8, 4) == struct.pack("<I", 0xBEEF)


@pytest.mark.usefixtures("areas")
def test_a_window_over_two_areas_of_one_file(puppet: Puppet) -> None:
    """Memory of a VMM may be mapped piece by piece, in any order."""
    fd = memfd(puppet, 4)
    at = puppet.pages(5)
    map_shared(puppet, fd, 2, first=2, at=at + 2 * PAGE)
    map_shared(puppet, fd, 2, first=0, at=at)
    puppet.must("mprotect", at + 2 * PAGE, PAGE, RW | 4)  # or the kernel makes one area of them
    held = pages(puppet, at, 5 * PAGE)
    view = held.view(at + 2 * PAGE - 8, 16)
    assert view is not None
    view[:] = bytes(range(16))
    assert puppet.peek(at + 2 * PAGE - 8, 16) == bytes(range(16))
    assert held.view(at + 4 * PAGE - 8, 16) is None  # private memory behind
    held.write(at + 4 * PAGE - 2, b"both")
    assert puppet.peek(at + 4 * PAGE - 2, 4) == held.read(at + 4 * PAGE - 2, 4) == b"both"


@pytest.mark.usefixtures("areas")
def test_a_window_over_several_files(puppet: Puppet) -> None:
    """As with one file for each huge page: they are next to each other there, and so they are here."""
    files = [memfd(puppet, 4), memfd(puppet, 4), memfd(puppet, 4)]
    at = puppet.pages(3)
    for n, (fd, first) in enumerate(zip(files, (0, 2, 3), strict=True)):
        map_shared(puppet, fd, 1, first=first, at=at + n * PAGE)
    held = pages(puppet, at, 3 * PAGE)
    view = held.view(at + PAGE - 4, PAGE + 8)
    assert view is not None
    view[:] = data = bytes(range(256)) * 16 + b"the end!"
    assert puppet.peek(at + PAGE - 4, len(data)) == data
    assert held.read(at + PAGE - 4, len(data)) == data
    held.write(at + 2 * PAGE - 3, b"second")
    assert puppet.peek(at + 2 * PAGE - 3, 6) == b"second"


def test_private_memory_has_no_window(puppet: Puppet) -> None:
    fd = memfd(puppet, 1)
    copy = puppet.must("mmap", 0, PAGE, RW, MAP_PRIVATE, fd, 0)
    for at in (puppet.arena, copy):
        assert pages(puppet, at).view(at, 8) is None


@pytest.fixture(params=["map_files", "descriptors"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the right to open /proc/PID/map_files."""
    if request.param == "descriptors":
        real = os.stat

        def refused(path: object, **how: object) -> os.stat_result:
            if isinstance(path, str) and "/map_files/" in path:
                raise PermissionError(errno.EPERM, "no CAP_CHECKPOINT_RESTORE")
            return real(path, **how)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "stat", refused)
    elif not may_open_map_files():
        pytest.skip("/proc/PID/map_files needs CAP_CHECKPOINT_RESTORE")
    return str(request.param)


def may_open_map_files() -> bool:
    with mmap.mmap(-1, PAGE) as page:
        at = ctypes.addressof(ctypes.c_char.from_buffer(page))
        try:
            os.stat(f"/proc/self/map_files/{at:x}-{at + PAGE:x}")
        except PermissionError:
            return False
        except FileNotFoundError:  # a neighbour became one area with it
            return True
    return True


@pytest.mark.parametrize("kind", ["anonymous", "closed"])
def test_shared_memory_without_a_descriptor(puppet: Puppet, ways: str, kind: str) -> None:
    """It is held where /proc/PID/map_files is allowed. Where it is not, descriptors are listed once for each file."""
    fd = memfd(puppet, 2) if kind == "closed" else -1
    flags = MAP_SHARED | (MAP_ANONYMOUS if fd < 0 else 0)
    at = puppet.must("mmap", 0, 2 * PAGE, RW, flags, fd, 0)
    if fd >= 0:
        puppet.must("close", fd)
    memory = program_memory(puppet)
    held = memory.pin(at, PAGE, True).pages
    assert (held.view(at, 8) is not None) == (ways == "map_files")
    held.store(at, 0x0123456789ABCDEF, 8)
    held.write(at + 8, b"behind")
    assert (
        puppet.peek(at, 14)
        == held.read(at, 14)
        == struct.pack("<Q", 0x0123456789ABCDEF) + b"behind"
    )
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(os, "listdir", failing(errno.EIO))
        for _ in range(3):
            memory.pin(at + PAGE, PAGE, True)
            held.view(at, 8)
            held.store(at, 1, 8)


@pytest.mark.usefixtures("ways", "areas")
def test_what_is_held_stays_the_memory_that_it_was(puppet: Puppet) -> None:
    """Linux pins the pages: devices go on with them, whatever the program maps there later."""
    at = map_shared(puppet, memfd(puppet, 1), 1)
    memory = program_memory(puppet)
    first = memory.pin(at, PAGE, True).pages
    window = first.view(at, 8)
    assert window is not None
    assert first.exchanged(at, PAGE) == ""
    map_shared(puppet, memfd(puppet, 1), 1, at=at)
    puppet.store(at, 0xAAAA)
    first.store(at, 7, 4)
    first.write(at + 4, b"old!")
    for seen in (bytes(window), first.read(at, 8), bytes(first.view(at, 8) or b"")):
        assert seen == struct.pack("<I", 7) + b"old!"
    assert puppet.load(at) == 0xAAAA
    assert re.search(
        f"{at:#x} was shared inode .*, and is shared inode .* now", first.exchanged(at, PAGE)
    )
    second = memory.pin(at, PAGE, True).pages  # a new DMA mapping reaches the new memory
    second.store(at, 9, 4)
    assert puppet.load(at) == 9
    puppet.must("munmap", at, PAGE)
    assert first.exchanged(at, PAGE).endswith(", and nothing is mapped there now")
    assert first.read(at, 4) == struct.pack("<I", 7)
    assert second.read(at, 4) == struct.pack("<I", 9)


@pytest.mark.usefixtures("areas")
def test_private_memory_is_followed_and_what_replaces_it_is_recognised(puppet: Puppet) -> None:
    at = puppet.pages(4)
    held = pages(puppet, at, 3 * PAGE)
    puppet.must("mprotect", at + PAGE, PAGE, PROT_READ)  # areas may be divided and joined
    assert held.exchanged(at, 3 * PAGE) == ""
    map_shared(puppet, memfd(puppet, 1), 1, at=at + PAGE)
    assert held.exchanged(at, PAGE) == ""
    anonymous = f"{at + PAGE:#x} was private anonymous memory, and "
    assert held.exchanged(at, 3 * PAGE).startswith(f"{anonymous}is shared inode ")
    puppet.must("munmap", at + PAGE, PAGE)
    assert held.exchanged(at, 3 * PAGE) == f"{anonymous}nothing is mapped there now"
    with pytest.raises(BadAddress):
        held.read(at + PAGE, 4)


def test_nothing_was_exchanged_by_a_program_that_ended(puppet: Puppet) -> None:
    at = map_shared(puppet, memfd(puppet, 1), 1)
    memory = program_memory(puppet)
    shared, private = memory.pin(at, PAGE, True).pages, memory.pin(puppet.arena, 8, True).pages
    puppet.execute()
    assert shared.exchanged(at, PAGE) == private.exchanged(puppet.arena, 8) == ""
    shared.write(at, b"pinned")
    assert shared.read(at, 6) == b"pinned"


def test_mappings_of_one_area_share_what_is_held(puppet: Puppet) -> None:
    at = map_shared(puppet, memfd(puppet, 64), 64)
    memory = program_memory(puppet)
    memory.pin(at, PAGE, True)
    before = open_descriptors()
    held = [memory.pin(at + n * PAGE, PAGE, True).pages for n in range(64)]
    assert all(pages is held[0] for pages in held)
    assert open_descriptors() <= before


@pytest.mark.parametrize("keep", ["nothing", "view"])
def test_memory_is_given_back_with_its_last_user(puppet: Puppet, keep: str) -> None:
    at = map_shared(puppet, memfd(puppet, 3), 3)
    memory = program_memory(puppet)
    held = memory.pin(at, 3 * PAGE, True).pages
    view = held.view(at, 8) if keep == "view" else None
    inode = mapped_inode(puppet, at)
    assert inode in mapped_here()
    del held
    assert (inode in mapped_here()) == (view is not None)
    del view
    assert inode not in mapped_here()


def mapped_inode(puppet: Puppet, at: int) -> int:
    with open(f"/proc/{puppet.pid}/maps") as lines:
        return next(int(line.split()[4]) for line in lines if line.startswith(f"{at:x}-"))


def mapped_here() -> set[int]:
    with open("/proc/self/maps") as lines:
        return {int(line.split()[4]) for line in lines}


def test_memory_that_is_mapped_read_only_has_a_window_to_read(puppet: Puppet) -> None:
    fd = memfd(puppet, 1)
    at = map_shared(puppet, fd, 1)
    puppet.store(at, 0xFEED)
    constant = map_shared(puppet, fd, 1, protection=PROT_READ)
    held = pages(puppet, constant, writable=False)
    assert held.view(constant, 4) is None
    view = held.view(constant, 4, writable=False)
    assert view is not None
    assert view.readonly
    assert bytes(view) == held.read(constant, 4) == struct.pack("<I", 0xFEED)
    writes: list[Callable[[], object]] = [
        lambda: held.write(constant, b"x"),
        lambda: held.store(constant, 1, 4),
    ]
    for write in writes:
        with pytest.raises(BadAddress):
            write()
    assert puppet.load(at) == 0xFEED


@pytest.mark.parametrize("left", [0, 1])
def test_a_file_that_is_cut_is_no_end_of_the_supervisor(puppet: Puppet, left: int) -> None:
    """Each way to reach a lost page fails; a view that is kept reads as zeroes, and its user is told once."""
    fd = memfd(puppet, 3)
    at = map_shared(puppet, fd, 3)
    held = pages(puppet, at, 3 * PAGE)
    told: list[int] = []
    view = held.view(at, 3 * PAGE, cut=("device", told.append))
    assert view is not None
    view[:] = b"x" * 3 * PAGE
    puppet.must("ftruncate", fd, left * PAGE)
    lost = at + left * PAGE
    uses: list[Callable[[], object]] = [
        lambda: held.read(lost, 4),
        lambda: held.write(lost, b"1234"),
        lambda: held.view(lost, 8),
        lambda: held.view(at, 3 * PAGE),
        lambda: held.store(lost, 1, 4),
    ]
    for use in (*uses, *uses):
        with pytest.raises(BadAddress, match="cut"):
            use()
    assert told == [lost]
    assert view[left * PAGE + 100] == view[3 * PAGE - 1] == 0
    view[left * PAGE + 100] = 1  # reaches nobody
    assert told == [lost]
    assert bytes(view[: left * PAGE]) == held.read(at, left * PAGE) == b"x" * left * PAGE
    puppet.must("ftruncate", fd, 3 * PAGE)
    for use in uses:  # what was lost is not in the file any more, also if the file grows again
        with pytest.raises(BadAddress, match="cut"):
            use()


def test_a_view_finds_a_cut_without_a_signal(puppet: Puppet) -> None:
    fd = memfd(puppet, 2)
    at = map_shared(puppet, fd, 2)
    held = pages(puppet, at, 2 * PAGE)
    puppet.must("ftruncate", fd, PAGE)
    told: list[int] = []
    with pytest.raises(BadAddress):
        held.view(at, 2 * PAGE, cut=("device", told.append))
    assert held.view(at, PAGE) is not None
    assert told == []
    puppet.must("ftruncate", fd, 2 * PAGE)
    assert held.view(at, 2 * PAGE) is not None  # nobody has met the missing page


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_one_store(puppet: Puppet, width: int, shared: bool) -> None:
    at = map_shared(puppet, memfd(puppet, 1), 1) if shared else puppet.pages(1)
    memory = user_memory(puppet).pin(at, PAGE, True).pages
    value = 0x8877665544332211 & ((1 << 8 * width) - 1)
    memory.store(at + 64, value, width)
    assert puppet.peek(at + 56, 24) == bytes(8) + value.to_bytes(16, "little")
    assert (memory.view(at, PAGE) is not None) == shared


@pytest.mark.parametrize("shared", [True, False])
def test_a_store_is_not_torn(puppet: Puppet, shared: bool) -> None:
    """A reader beside it sees all of the old value or all of the new one."""
    fd = memfd(puppet, 1)
    at = map_shared(puppet, fd, 1) if shared else puppet.pages(1)
    memory = user_memory(puppet).pin(at, PAGE, True).pages
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
    for name in ("read", "write"):
        monkeypatch.setattr(ProgramMemory, name, None)
    before = resident(puppet.pid)
    assert memory.pin(at, size, True).locked == size
    assert asked == [at]
    assert resident(puppet.pid) == before


def test_what_the_program_locked(puppet: Puppet) -> None:
    memory = user_memory(puppet)
    before = memory.mlocked()
    at = puppet.pages(3)
    puppet.must("mlock", at, 2 * PAGE)
    assert memory.mlocked() == before + 2 * PAGE
    puppet.must("munlock", at, 2 * PAGE)
    assert memory.mlocked() == before


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
    assert memory.pin(at, PAGE, True).locked == 0
    puppet.must("ftruncate", fd, 0)
    with pytest.raises(BadAddress, match="does not answer"):
        memory.pin(at, PAGE, True)
    monkeypatch.setattr(os, "pread", failing(errno.EPERM))
    with pytest.raises(PermissionError):
        memory.pin(at, PAGE, True)


def test_memory_that_cannot_be_mapped_here_is_followed(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = map_shared(puppet, memfd(puppet, 1), 1)
    before = open_descriptors()
    refused: list[tuple[object, str, int]] = [
        (os, "listdir", errno.EACCES),
        (sc, "mmap", errno.ENOMEM),
        (sc, "mmap", errno.EACCES),
        (mmap, "mmap", errno.ENOMEM),
    ]
    for module, name, number in refused:
        with monkeypatch.context() as broken:
            broken.setattr(module, name, failing(number))
            broken.setattr(ProgramMemory, "_ways", no_map_files)
            held = pages(puppet, at)
            assert held.view(at, 8) is None
            held.store(at, number, 4)
            assert puppet.load(at) == number
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", failing(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            program_memory(puppet)
    del held
    assert open_descriptors() <= before
    assert pages(puppet, at).view(at, 8) is not None


ALL_WAYS = ProgramMemory._ways


def no_map_files(self: ProgramMemory, area: Area) -> Iterator[str]:
    return (path for path in ALL_WAYS(self, area) if "map_files" not in path)
