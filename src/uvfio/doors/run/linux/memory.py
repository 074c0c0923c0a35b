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
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from uvfio.doors.run.linux import syscalls as sc
from uvfio.errors import BadAddress, VfioError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ProgramMemory", "Unreadable", "UserMemory"]

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


class Area(NamedTuple):
    """A part of the program's address space, from /proc/PID/maps."""

    start: int
    end: int
    readable: bool
    writable: bool
    shared: bool
    offset: int
    dev: int
    inode: int


class _Iovec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_vm_call_types = (
    ctypes.c_int,
    ctypes.POINTER(_Iovec),
    ctypes.c_ulong,
    ctypes.POINTER(_Iovec),
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
for _call in (_readv, _writev):
    _call.argtypes = _vm_call_types
    _call.restype = ctypes.c_ssize_t


class UserMemory:
    """Arguments of the process of thread ``pid``. Used by one thread, while the caller waits for its answer.

    ``stand_in`` names a thread that is alive, should that one have ended before the others.
    """

    __slots__ = ("_here", "_stand_in", "_there", "pid", "program")

    def __init__(self, pid: int, program: ProgramMemory, stand_in: Callable[[], int]) -> None:
        self.pid = pid
        self.program = program
        self._stand_in = stand_in
        self._here = _Iovec()
        self._there = _Iovec()

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes of the process as it is now. Raises BadAddress; Unreadable if it may not be read."""
        if size == 0:
            return b""
        buffer = ctypes.create_string_buffer(size)
        if not self._move(_readv, ctypes.addressof(buffer), address, size):
            raise BadAddress(f"cannot read {size} bytes at {address:#x}")
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` with the rights that the pages have. Raises BadAddress; Unreadable if it may not be
        written."""
        if not data:
            return
        buffer = ctypes.create_string_buffer(data, len(data))
        if not self._move(_writev, ctypes.addressof(buffer), address, len(data)):
            raise BadAddress(f"cannot write {len(data)} bytes at {address:#x}")

    def _move(self, call: Callable[..., int], here: int, there: int, size: int) -> bool:
        if there >= ADDRESS_LIMIT:
            return False
        self._here.iov_base, self._here.iov_len = here, size
        self._there.iov_base, self._there.iov_len = there, size
        moved = call(self.pid, self._here, 1, self._there, 1, 0)
        if moved < 0 and ctypes.get_errno() == errno.ESRCH and self.pid != self._stand_in():
            # For this call alone: a thread's number may be another's at the next one.
            moved = call(self._stand_in(), self._here, 1, self._there, 1, 0)
        if moved < 0 and ctypes.get_errno() == errno.EPERM:
            raise Unreadable.because(self.pid, "reach its memory")
        return moved == size

    def store(self, address: int, value: int, width: int) -> None:
        """Store ``width`` bytes (2, 4 or 8) at an aligned address atomically."""
        self.program.store(address, value, width)

    def view(self, address: int, size: int) -> memoryview | None:
        """Return a zero-copy window on shared memory, or None where there cannot be one."""
        return self.program.view(address, size)

    def pin(self, address: int, size: int, writable: bool) -> int:
        """Return how many bytes of the range a DMA mapping would lock; device memory counts as none."""
        return self.program.pin(address, size, writable)


class ProgramMemory:
    """``pid`` is any thread of the process. ``is_device(dev, inode)`` returns whether an inode holds device memory.

    PermissionError when the process made itself non-dumpable.
    """

    __slots__ = ("_is_device", "_maps", "_windows", "fd", "pid")

    def __init__(self, pid: int, is_device: Callable[[int, int], bool]) -> None:
        self.pid = pid
        self.fd = self._maps = -1
        self.fd = os.open(f"/proc/{living(pid)}/mem", os.O_RDWR | os.O_CLOEXEC)
        self._is_device = is_device
        self._windows: list[tuple[int, int, mmap.mmap]] = []

    def __del__(self) -> None:
        for fd in (self.fd, self._maps):
            if fd >= 0:
                os.close(fd)

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
        if address < ADDRESS_LIMIT:
            try:
                data = os.pread(self.fd, size, address)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            else:
                if len(data) == size:
                    return data
        raise BadAddress(f"cannot read {size} bytes at {address:#x}")

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` into the address space, whatever rights the pages have. Raises BadAddress."""
        if not data:
            return
        if address < ADDRESS_LIMIT:
            try:
                if os.pwrite(self.fd, data, address) == len(data):
                    return
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
        raise BadAddress(f"cannot write {len(data)} bytes at {address:#x}")

    def store(self, address: int, value: int, width: int) -> None:
        """One store: through a window on shared memory if there is one, else by the kernel's copy, which moves
        aligned words whole."""
        window = self.view(address, width)
        if window is not None:
            as_words(window, width)[0] = value
        else:
            self.write(address, value.to_bytes(width, "little"))

    def view(self, address: int, size: int) -> memoryview | None:
        """A window on memory that the program maps shared from a file, memfd or hugetlbfs."""
        for start, end, window in self._windows:
            if start <= address and address + size <= end:
                return memoryview(window)[address - start : address - start + size]
        window_area = self._open_window(address, size)
        if window_area is None:
            return None
        self._windows.append(window_area)
        start, _, window = window_area
        return memoryview(window)[address - start : address - start + size]

    def pin(self, address: int, size: int, writable: bool) -> int:
        """See ``Memory``. Windows on the range are forgotten: another file may be mapped there now."""
        charged = 0
        at, end = address, address + size
        self._windows = [w for w in self._windows if w[1] <= address or end <= w[0]]
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
                charged += n
            elif not self._answers(at):
                raise BadAddress(f"the device does not answer at {at:#x}")
            at += n
        return charged

    def _answers(self, address: int) -> bool:
        try:
            return len(os.pread(self.fd, 1, address)) == 1
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False

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

    def _open_window(self, address: int, size: int) -> tuple[int, int, mmap.mmap] | None:
        """Map the file behind shared memory here; adjacent areas of one file count as one."""
        first = area = self._area(address)
        if first is None or area is None or not first.shared or not first.inode:
            return None
        if self._is_device(first.dev, first.inode):
            return None  # it may be gone at any time, and a view of it would end the supervisor
        while area.end < address + size:
            after = self._area(area.end)
            joins = (
                after is not None
                and after.shared
                and (after.dev, after.inode) == (first.dev, first.inode)
                and after.offset == area.offset + (area.end - area.start)
            )
            if after is None or not joins:
                return None
            area = after
        fd = self._open_file(first)
        if fd < 0:
            return None
        try:
            return first.start, area.end, mmap.mmap(fd, area.end - first.start, offset=first.offset)
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)

    def _open_file(self, area: Area) -> int:
        """The program's descriptor of the file behind ``area``, opened again; -1 if it has none."""
        folder = f"/proc/{living(self.pid)}/fd"
        try:
            numbers = os.listdir(folder)
        except OSError:
            return -1
        for number in numbers:
            try:
                found = os.stat(f"{folder}/{number}")
                if (found.st_dev, found.st_ino) == (area.dev, area.inode):
                    return os.open(f"{folder}/{number}", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
        return -1


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


def as_words(window: memoryview, width: int) -> memoryview:
    """``window`` as machine words: assigning to one is a single store."""
    if width == 2:
        return window.cast("H")
    return window.cast("I") if width == 4 else window.cast("Q")
