"""The local door: use a machine's devices from the same Python process, call by call.

For tests, notebooks and for learning: a ``Process`` has an address space, a table of descriptors and the
system calls that matter, and no program is needed::

    machine = Machine()
    me = Process(machine)
    group = me.open("/dev/vfio/240")
    device = me.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:06:0d.0")
    me.pread(device, 4, 0)

``ioctl`` takes an integer (passed as it is), text or bytes (put into the process's memory), or a mutable
buffer or ABI struct, which is written back after the call. Errors are the ``OSError`` that the program
would see as errno.

Stores in mapped registers take effect at the next call, or when ``machine.look()`` is called.

Descriptors refer to open files by reference count, so dup, fork and passing files work as in a kernel; the
last close releases. No thread is started; events are delivered at once.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import TYPE_CHECKING

from uvfio.core.seams import Mm
from uvfio.core.waiting import Steps
from uvfio.doors.local.memory import LocalEvent, LocalMemory, MemoryFile, NoMemoryFile
from uvfio.errors import BadDescriptor, InvalidArgument, TooManyFiles
from uvfio.fops.file import Deferred, File, install

if TYPE_CHECKING:
    from uvfio.machine.machine import Machine

__all__ = ["Process"]

OPEN_MAX = 1024

Argument = int | str | bytes | bytearray | memoryview | ctypes.Structure


class _Open:
    """An open file and how many descriptors, in all processes, lead to it."""

    __slots__ = ("count", "file", "mapped", "position")

    def __init__(self, file: File | LocalEvent | MemoryFile) -> None:
        self.file = file
        self.count = 0
        self.mapped = 0
        self.position = 0
        if isinstance(file, LocalEvent):
            file.opens += 1

    def drop(self) -> None:
        if self.count == self.mapped == 0:
            if isinstance(self.file, File):
                self.file.release()
            elif isinstance(self.file, LocalEvent):
                self.file.opens -= 1


class Process:
    """A process of the local door; implements the ``Task`` seam.

    ``memlock`` is its RLIMIT_MEMLOCK in bytes (None: no limit). ``abi`` is what its /dev/vfio looks like:
    "2011", "mainline", or "auto", which is mainline with group files that find out what the process speaks.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        name: str = "",
        memlock: int | None = None,
        abi: str = "2011",
    ) -> None:
        self.machine = machine
        self.abi = abi
        self.memory = LocalMemory()
        self.name = name or f"process {id(self):#x}"
        self.memlock = memlock
        self.max_files = OPEN_MAX
        self._mm = Mm(self.memory, self.name)
        self._fds: dict[int, _Open] = {}
        self._maps: dict[int, _Open] = {}

    # -- the Task seam ---------------------------------------------------------------------------

    @property
    def mm(self) -> Mm:
        """The caller's address space."""
        return self._mm

    def file(self, fd: int) -> object:
        """The file behind ``fd``. Raises BadDescriptor if it is closed."""
        return self._open(fd).file

    def install(self, file: object, cloexec: bool) -> int:
        """Give this process a descriptor for ``file``. Raises TooManyFiles, and InvalidArgument for what is no
        file."""
        if not isinstance(file, File | LocalEvent | MemoryFile):
            raise InvalidArgument(f"{file!r} is no file")
        return self._install(_Open(file))

    def event(self, fd: int) -> LocalEvent:
        """The eventfd behind ``fd``. Raises BadDescriptor if it is closed, InvalidArgument if it is another
        file."""
        found = self._open(fd).file
        if not isinstance(found, LocalEvent):
            raise InvalidArgument(f"descriptor {fd} is not an eventfd")
        return found

    def file_memory(self, fd: int) -> MemoryFile:
        """The memory of the memfd behind ``fd``; a file without memory for any other. Raises BadDescriptor."""
        found = self._open(fd).file
        return found if isinstance(found, MemoryFile) else NoMemoryFile()

    def memlock_limit(self) -> int | None:
        """How many bytes may be locked, or None for no limit."""
        return self.memlock

    # -- system calls ----------------------------------------------------------------------------

    def open(self, path: str) -> int:
        """``open(2)`` of a node of the machine; NoSuchGroup for anything else.

        Those are /dev/vfio/N and, unless ``abi`` is "2011", /dev/vfio/vfio, /dev/iommu and
        /dev/vfio/devices/vfioN.
        """
        return install(self, self.machine.open(path, self, self.abi))

    def close(self, fd: int) -> None:
        """``close(2)``; the last descriptor of a file releases it."""
        self.machine.look()
        opened = self._open(fd)
        del self._fds[fd]
        opened.count -= 1
        opened.drop()

    def dup(self, fd: int) -> int:
        """``dup(2)``."""
        return self._install(self._open(fd))

    def ioctl(self, fd: int, request: int, arg: Argument = 0) -> int:
        """``ioctl(2)``; see the module's head for what ``arg`` may be."""
        self.machine.look()
        if isinstance(arg, int):
            return self._ask(fd, request, arg)
        raw = arg.encode() + b"\0" if isinstance(arg, str) else bytes(arg)
        address = self.memory.allocate(len(raw))
        try:
            self.memory.write(address, raw)
            result = self._ask(fd, request, address)
            back = self.memory.read(address, len(raw))
        finally:
            self.memory.free(address)
        if isinstance(arg, bytearray | memoryview):
            arg[:] = back
        elif isinstance(arg, ctypes.Structure):
            ctypes.memmove(ctypes.addressof(arg), back, len(back))
        return result

    def _ask(self, fd: int, request: int, arg: int) -> int:
        try:
            return self._file(fd).ioctl(self, request, arg)
        except Deferred as later:
            if not isinstance(later.wait, Steps):
                raise
            while not later.wait.poll():
                pass
            return later.wait.value

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """``pread(2)``."""
        self.machine.look()
        return self._file(fd).pread(self, count, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """``pwrite(2)``."""
        self.machine.look()
        return self._file(fd).pwrite(self, data, offset)

    def read(self, fd: int, count: int) -> bytes:
        """``read(2)`` at the file position, which all duplicates of a descriptor share."""
        data = self._file(fd).sequential().pread(self, count, self._open(fd).position)
        self._open(fd).position += len(data)
        return data

    def write(self, fd: int, data: bytes) -> int:
        """``write(2)`` at the file position."""
        done = self._file(fd).sequential().pwrite(self, data, self._open(fd).position)
        self._open(fd).position += done
        return done

    def mmap(self, fd: int, size: int, offset: int, *, shared: bool = True) -> memoryview:
        """``mmap(2)``: the device's own memory. It cannot fault, so look at it while the device answers."""
        self.machine.look()
        return self._file(fd).mmap(self, size, offset, shared)

    def mmap_at(self, fd: int, size: int, offset: int) -> int:
        """``mmap(2)`` into this process's address space; the open file lives at least as long."""
        area = self.mmap(fd, size, offset)
        device, store = self._file(fd).region_memory or "", self.machine.store
        address = self.memory.place(area, device=True, hidden=lambda: store.hidden(device))
        opened = self._maps[address] = self._open(fd)
        opened.mapped += 1
        return address

    def munmap(self, address: int) -> None:
        """``munmap(2)`` of a whole area."""
        self.memory.free(address)
        opened = self._maps.pop(address, None)
        if opened:
            opened.mapped -= 1
            opened.drop()

    def eventfd(self) -> int:
        """``eventfd(2)``."""
        return self.install(LocalEvent(), True)

    def memfd(self, size: int) -> int:
        """``memfd_create(2)`` and ``ftruncate(2)``."""
        return self.install(MemoryFile(size), True)

    def fork(self) -> Process:
        """``fork(2)``: another address space, the same open files."""
        child = Process(
            self.machine, name=f"{self.name} (child)", memlock=self.memlock, abi=self.abi
        )
        child.memory = self.memory.copy()
        child.max_files = self.max_files
        child._mm = Mm(child.memory, child.name)
        for fd, opened in self._fds.items():
            child._fds[fd] = opened
            opened.count += 1
        for address, opened in self._maps.items():
            child._maps[address] = opened
            opened.mapped += 1
        return child

    def send(self, fd: int, other: Process) -> int:
        """Pass a descriptor, as SCM_RIGHTS does; returns its number there."""
        return other._install(self._open(fd))

    def exit(self) -> None:
        """``exit(2)``: everything is closed and unmapped, also when a driver raises on the way."""
        with ExitStack() as last:
            for fd in reversed(self._fds):
                last.callback(self.close, fd)
            for address in reversed(self._maps):
                last.callback(self.munmap, address)

    # -- inner -----------------------------------------------------------------------------------

    def _open(self, fd: int) -> _Open:
        found = self._fds.get(fd)
        if found is None:
            raise BadDescriptor(f"descriptor {fd} is not open")
        return found

    def _file(self, fd: int) -> File:
        found = self._open(fd).file
        if not isinstance(found, File):
            raise InvalidArgument(f"descriptor {fd} is not a VFIO file", errno=25)
        return found

    def _install(self, opened: _Open) -> int:
        fd = next((n for n in range(3, self.max_files) if n not in self._fds), None)
        if fd is None:
            raise TooManyFiles(f"{self.name} has {len(self._fds)} open files")
        self._fds[fd] = opened
        opened.count += 1
        return fd
