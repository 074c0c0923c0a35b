"""The memory of a program, seen two ways.

``UserMemory`` is what a system call sees of its caller: the memory of the process as it is now, with the
rights that its pages have (process_vm_readv and _writev). Arguments go through it.

``ProgramMemory`` is one address space for devices and for speed, through /proc/PID/mem. A descriptor of
/proc/PID/mem stays bound to the address space it was opened for: after the process has executed another
image, reads and writes return 0 bytes. That makes it as long-lived as the ``Mm`` it belongs to and never
longer: DMA into an image that is gone faults instead of hitting the next one. Its writes ignore the
protection of private pages, so ``pin`` asks /proc/PID/maps whether a range may be written at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from itertools import groupby
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from uvfio.core.seams import Pin
from uvfio.core.translation.patches import join
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.area import Area, described
from uvfio.errors import BadAddress, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvfio.core.translation.patches import Patch
    from uvfio.doors.run.linux.area import Identity
    from uvfio.doors.run.linux.pages import Followed, Held

__all__ = ["ProgramMemory", "Unreadable", "UserMemory"]

PAGE: Final = 4096
UNOPENED_KEPT: Final = 1024
SHORT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # nothing is wrong with the file
ADDRESS_LIMIT = 1 << 63  # the largest signed offset of pread; user space ends below


class Unreadable(VfioError):
    """The process cannot be inspected (PR_SET_DUMPABLE, unreadable executable). EPERM."""

    default_errno = errno.EPERM

    @classmethod
    def because(cls, pid: int, what: str) -> Unreadable:
        """The error for the non-dumpable process ``pid``; ``what`` completes the sentence "cannot ..."."""
        return cls(
            f"process {pid} made itself non-dumpable (prctl PR_SET_DUMPABLE, or its executable is not "
            f"readable): cannot {what}"
        )


_readv, _writev, _ONE, _NO_FLAGS = sc.process_vm_readv, sc.process_vm_writev, sc.ONE, sc.NO_FLAGS


class UserMemory:
    """Arguments of the process of thread ``pid``. Used by one thread, while the caller waits for its answer.

    ``stand_in`` names a thread that is alive, should that one have ended before the others. Up to a page is moved
    through one buffer, with arguments that are made once: each object of ctypes costs as much as the copy.
    """

    __slots__ = ("_buffer", "_here", "_parts", "_pid", "_stand_in", "_there", "_words", "program")

    def __init__(self, pid: int, program: ProgramMemory, stand_in: Callable[[], int]) -> None:
        self.program = program
        self._stand_in = stand_in
        buffer = ctypes.create_string_buffer(PAGE)
        self._buffer = memoryview(buffer).cast("B")
        self._parts = (ctypes.c_uint64 * 4)(ctypes.addressof(buffer), 0, 0, 0)  # two struct iovec
        self._words = memoryview(self._parts).cast("B").cast("Q")
        at = ctypes.addressof(self._parts)
        self._here, self._there = ctypes.c_void_p(at), ctypes.c_void_p(at + 16)
        self._pid = ctypes.c_int(pid)

    @property
    def pid(self) -> int:
        """The thread whose memory it is."""
        return self._pid.value

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes of the process as it is now. Raises BadAddress; Unreadable if it may not be read."""
        if size == 0:
            return b""
        if size <= PAGE:
            if self._move(_readv, address, size):
                return self._buffer[:size].tobytes()
        else:
            buffer = ctypes.create_string_buffer(size)
            if self._move(_readv, address, size, buffer):
                return buffer.raw
        raise BadAddress(f"cannot read {size} bytes at {address:#x}")

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` with the rights that the pages have. Raises BadAddress; Unreadable if it may not be
        written."""
        size = len(data)
        if 0 < size <= PAGE and address < ADDRESS_LIMIT:  # what nearly all reads of registers do
            self._buffer[:size] = data
            words = self._words
            words[1] = words[3] = size
            words[2] = address
            if _writev(self._pid, self._here, _ONE, self._there, _ONE, _NO_FLAGS) == size:
                return
        if size == 0:
            return
        if size <= PAGE:
            done = self._move(_writev, address, size)
        else:
            done = self._move(_writev, address, size, ctypes.create_string_buffer(data, size))
        if not done:
            raise BadAddress(f"cannot write {size} bytes at {address:#x}")

    def _move(
        self,
        call: Callable[..., int],
        there: int,
        size: int,
        buffer: ctypes.Array[ctypes.c_char] | None = None,
    ) -> bool:
        """Whether all was moved between the process and ``buffer``, or the one of this object."""
        if there >= ADDRESS_LIMIT:
            return False
        words = self._words
        words[1] = words[3] = size
        words[2] = there
        own = words[0]
        try:
            if buffer is not None:
                words[0] = ctypes.addressof(buffer)
            moved = call(self._pid, self._here, _ONE, self._there, _ONE, _NO_FLAGS)
            if moved == size:
                return True
            if moved < 0 and ctypes.get_errno() == errno.ESRCH and self.pid != self._stand_in():
                # For this call alone: a thread's number may be another's at the next one.
                self._pid.value = self._stand_in()
                moved = call(self._pid, self._here, _ONE, self._there, _ONE, _NO_FLAGS)
        finally:
            words[0] = own
            self._pid.value = self.pid
        if moved < 0 and ctypes.get_errno() == errno.EPERM:
            raise Unreadable.because(self.pid, "reach its memory")
        return moved == size

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """The memory for a DMA mapping; see ``Memory``."""
        return self.program.pin(address, size, writable)

    def mlocked(self) -> int:
        """What the process has locked by mlock, in bytes."""
        return self.program.mlocked()


class ProgramMemory:
    """``pid`` is any thread of the process. ``is_device(dev, inode)`` returns whether an inode holds device memory.

    PermissionError when the process made itself non-dumpable.
    """

    __slots__ = (
        "__weakref__",
        "_followed",
        "_held",
        "_here",
        "_is_device",
        "_maps",
        "_unopened",
        "fd",
        "locks",
        "pid",
    )

    def __init__(self, pid: int, is_device: Callable[[int, int], bool]) -> None:
        self.pid = pid
        self.fd = self._maps = self._here = -1
        self.fd = os.open(f"/proc/{living(pid)}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._is_device = is_device
        self.locks = True  # it may have called mlock(2)
        self._held: WeakValueDictionary[Identity, Held] = WeakValueDictionary()
        self._followed: WeakValueDictionary[Identity, Followed] = WeakValueDictionary()
        self._unopened: set[tuple[int, int]] = set()

    def __del__(self) -> None:
        for fd in (self.fd, self._maps, self._here):
            if fd >= 0:
                os.close(fd)

    @property
    def here(self) -> int:
        """A descriptor of /proc/self/mem, as long as this object lives."""
        if self._here < 0:
            self._here = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
        return self._here

    @property
    def gone(self) -> bool:
        """Whether the address space has ended (exit, or an exec)."""
        try:
            return os.pread(self.fd, 1, 0x1000) == b""
        except OSError:
            return False

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes of the address space, whatever rights the pages have. Raises BadAddress."""
        if size == 0:
            return b""
        data = sc.read_memory(self.fd, address, size) if address < ADDRESS_LIMIT else None
        if data is None:
            raise BadAddress(f"cannot read {size} bytes at {address:#x}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` into the address space, whatever rights the pages have. Raises BadAddress."""
        if not data:
            return
        if not (address < ADDRESS_LIMIT and sc.write_memory(self.fd, address, data)):
            raise BadAddress(f"cannot write {len(data)} bytes at {address:#x}")

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """See ``Memory``; which memory is held is in ``pages.py``."""
        areas, locked = [], 0
        at, end = address, address + size
        while at < end:
            area = self._area(at)
            if area is None:
                raise BadAddress(f"nothing is mapped at {at:#x}")
            if not area.readable or (writable and not area.writable):
                raise BadAddress(
                    f"{area.start:#x}-{area.end:#x} is not {'writable' if writable else 'readable'}"
                )
            n = min(area.end, end) - at
            if not self._is_device(area.dev, area.inode):
                locked += n
            elif not self._answers(at):
                raise BadAddress(f"the device does not answer at {at:#x}")
            areas.append(area)
            at += n
        first, last = address & -PAGE, -(-end // PAGE) * PAGE
        if len(areas) == 1:  # as nearly always
            area = areas[0]
            known = self._held.get(area.identity)
            if known is not None and known.has(area, first, last):
                return Pin(known, locked)
            if not self._can_be_held(area):
                return Pin(self._follow(area), locked)
        pieces: list[Patch] = []
        for held, together in groupby(areas, self._can_be_held):
            group = list(together)
            if held:
                pieces += self._hold(group, first, last)
            else:
                pieces += [self._piece(area, first, last) for area in group]
        return Pin(join(pieces), locked)

    def mlocked(self) -> int:
        """VmLck of /proc/PID/status in bytes; 0 once the process has ended, and if it is known to lock nothing."""
        if not self.locks:
            return 0  # to read it costs twice what a mapping does
        try:
            with open(f"/proc/{living(self.pid)}/status", "rb") as file:
                found = file.read().partition(b"\nVmLck:")[2]
        except OSError:
            return 0
        return int(found.split(None, 1)[0]) * 1024 if found else 0

    def _piece(self, area: Area, first: int, last: int) -> Patch:
        return max(area.start, first), min(area.end, last), self._follow(area)

    def _can_be_held(self, area: Area) -> bool:
        """Device memory may be gone at any time, and private memory is reached by its address only."""
        return (
            area.shared
            and area.inode != 0
            and (area.dev, area.inode) not in self._unopened
            and not self._is_device(area.dev, area.inode)
        )

    def _follow(self, area: Area) -> Followed:
        pages = self._followed.get(area.identity)
        if pages is None:
            from uvfio.doors.run.linux.pages import Followed

            pages = self._followed[area.identity] = Followed(self, area)
        return pages

    def _hold(self, areas: list[Area], first: int, last: int) -> list[Patch]:
        """Pieces of the range for shared areas that follow each other: what is held already, or is mapped now."""
        low, high = max(areas[0].start, first), min(areas[-1].end, last)
        known = self._held.get(areas[0].identity)
        if known is not None and all(
            known.has(area, max(area.start, first), min(area.end, last)) for area in areas
        ):
            return [(low, high, known)]
        from uvfio.doors.run.linux.pages import Held, page_size

        files: list[int] = []
        try:
            for area in areas:
                files.append(self._open_file(area))
                if files[-1] < 0:
                    break
            else:
                unit = max(map(page_size, files))
                held = Held(self, areas, files, unit)
                for area in areas:
                    self._held[area.identity] = held
                return [(low, high, held)]
        except OSError as error:  # it cannot be mapped here
            if error.errno not in SHORT:
                self._unopened.update((area.dev, area.inode) for area in areas)
        finally:
            for fd in files:
                if fd >= 0:
                    os.close(fd)
        if len(areas) == 1:
            return [self._piece(areas[0], first, last)]
        return [piece for area in areas for piece in self._hold([area], first, last)]

    def difference(self, address: int, size: int, expected: Callable[[int], Identity]) -> str:
        """How the address space differs from what is ``expected(address)``; empty once it has ended."""
        at, end = address, address + size
        while at < end:
            identity, area = expected(at), self._area(at)
            if area is None:
                if self.gone:
                    return ""
                return f"{at:#x} was {described(identity, at)}, and nothing is mapped there now"
            if area.identity != identity:
                now = described(area.identity, at)
                return f"{at:#x} was {described(identity, at)}, and is {now} now"
            at = area.end
        return ""

    def _answers(self, address: int) -> bool:
        return sc.read_memory(self.fd, address, 1) is not None

    def _area(self, address: int) -> Area | None:
        try:
            if self._maps < 0:
                self._maps = os.open(f"/proc/{living(self.pid)}/maps", os.O_RDONLY | os.O_CLOEXEC)
            vma = sc.procmap_query(self._maps, address)
        except OSError as error:
            if error.errno == errno.ENOTTY:
                return self._area_from_text(address)
            if error.errno in (errno.ESRCH, errno.ENOENT):
                return None  # the program has ended
            if error.errno == errno.EACCES:
                raise Unreadable.because(self.pid, "see its mappings") from error
            raise
        if vma is None:
            return None
        readable = bool(vma.flags & sc.PROCMAP_QUERY_VMA_READABLE)
        return Area(
            vma.start, vma.end, readable, vma.writable, vma.shared, vma.offset, vma.dev, vma.inode
        )

    def _area_from_text(self, address: int) -> Area | None:
        """Before Linux 6.11: the line of /proc/PID/maps that covers ``address``."""
        os.lseek(self._maps, 0, os.SEEK_SET)
        with open(os.dup(self._maps), "rb") as lines:
            for line in lines:
                bounds, mode, offset, dev, inode = line.split(None, 5)[:5]
                start, _, end = bounds.partition(b"-")
                if int(start, 16) <= address < int(end, 16):
                    major, _, minor = dev.partition(b":")
                    return Area(
                        int(start, 16),
                        int(end, 16),
                        mode[0] == ord("r"),
                        mode[1] == ord("w"),
                        mode[3] == ord("s"),
                        int(offset, 16),
                        os.makedev(int(major, 16), int(minor, 16)),
                        int(inode),
                    )
        return None

    def _open_file(self, area: Area) -> int:
        """The file behind ``area``, opened here; -1 if the program has no descriptor of it, or its descriptors cannot
        be seen. That is remembered."""
        writable = os.O_RDWR if area.writable else os.O_RDONLY
        flags, wanted = writable | os.O_CLOEXEC | os.O_NONBLOCK, (area.dev, area.inode)
        for path in self._ways(area):
            try:
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == wanted and stat.S_ISREG(found.st_mode):
                    return os.open(path, flags)
            except OSError as error:
                if error.errno in SHORT:
                    raise
        if len(self._unopened) >= UNOPENED_KEPT:
            self._unopened.clear()
        self._unopened.add(wanted)
        return -1

    def _ways(self, area: Area) -> Iterator[str]:
        """Paths that may lead to the file of ``area``, the likely ones first."""
        process = f"/proc/{living(self.pid)}"
        yield f"{process}/map_files/{area.start:x}-{area.end:x}"  # needs CAP_CHECKPOINT_RESTORE
        try:
            numbers = os.listdir(f"{process}/fd")
        except OSError:
            return
        for number in reversed(numbers):  # what is mapped was opened last, as a rule
            yield f"{process}/fd/{number}"


def lives(tid: int) -> bool:
    """Whether the thread is neither gone nor a zombie."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def living(pid: int) -> int:
    """``pid``, or another thread of its process if that one has ended before the others."""
    if lives(pid):
        return pid
    try:
        threads = map(int, os.listdir(f"/proc/{pid}/task"))
        return next(filter(lives, threads), pid)
    except OSError:
        return pid
