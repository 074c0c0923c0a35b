"""The memory of one device's mappable regions: a file that programs map, and the supervisor's views of it.

Region i is at offset ``i << 40`` of the file. The views are made once and stay valid to the end; programs map the
same pages. *Late* regions have no pages, and are not accessed, until ``populate``.

    shown     the views are the file's pages
    hidden    the file is empty, so that each load and store of a program is a SIGBUS, as when the kernel takes
              the mappings of a device away; the views are private copies at the same addresses
    shown     the file has its pages again, with what the views showed last

Both changes are made only once a program has mapped a region (``mapped``): before, they would have no effect. A program
never sees a page without its contents: pages appear in the file in ascending order, filled.

The supervisor itself never faults: it reaches this memory through the views only, and a program's mapping
through /proc/PID/mem, where a page that is not there is an error. A program that gets around the calls that refuse it
can cut the file: the views' next access lets it grow again (``sigbus.py``), and what was cut is zero. A store that a
program makes while the memory is being hidden may be lost, as one that meets a decoder going off.

``clear`` costs what was ever touched, not what a region has: pages that no load and no store has met are zero.

Does not: know files of the ABI, or when decoding is off.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING

from uvfio.doors.run.linux import sigbus
from uvfio.doors.run.linux import syscalls as sc
from uvfio.uapi.linux import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED
from uvfio.uapi.rfc import VFIO_REGION_SHIFT as REGION_SHIFT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["DeviceMemory"]

PIECE = 1 << 16


class _File:
    """The file's descriptor and the size that it has to have, for a view that meets a page behind its end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.end = 0

    def grow(self, _address: int) -> bool:
        """Whether the file was cut; it has its size again then."""
        if self.fd < 0 or os.fstat(self.fd).st_size >= self.end:
            return False
        os.ftruncate(self.fd, self.end)
        return True


class DeviceMemory:
    """Zeroed memory for regions ``{index: bytes}`` in an unlinked file of ``folder``. OSError."""

    def __init__(self, folder: str, sizes: Mapping[int, int], late: Collection[int] = ()) -> None:
        self.views: dict[int, memoryview] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._addresses: dict[int, int] = {}
        self._populated = {index for index in sizes if index not in late}
        self._mapped = False
        self._wanted = False
        self._away = False
        self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._file = _File(self.fd)
        try:
            for index, size in sorted(sizes.items()):
                offset = index << REGION_SHIFT
                os.ftruncate(self.fd, offset + size)
                if index in self._populated:
                    _fill(self.fd, offset, size)  # or a store could end the program
                mapping = self._maps[index] = mmap.mmap(self.fd, size, offset=offset)
                address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
                self._addresses[index] = address
                self.views[index] = memoryview(mapping)
                sigbus.protect(mapping, address, size, self._file.grow)
            self._file.end = self._end()
            os.ftruncate(self.fd, self._file.end)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the file; a view lives as long as there are references to it."""
        self._file.fd = -1
        os.close(self.fd)
        self.views.clear()
        self._maps.clear()

    @property
    def hidden(self) -> bool:
        """Whether programs are to fault."""
        return self._wanted

    def populate(self, index: int) -> None:
        """Give late region ``index`` its pages (idempotent). OSError: there are none."""
        if index in self._populated:
            return
        if not self._away:
            size = len(self._maps[index])
            _fill(self.fd, index << REGION_SHIFT, size)
        self._populated.add(index)
        self._file.end = self._end()

    def clear(self, index: int) -> None:
        """Let region ``index`` be zero, for programs that map it, too."""
        if self._away:  # a private copy
            self._maps[index].madvise(mmap.MADV_DONTNEED)
            return
        address = self._addresses[index]
        for start, end in self._written(index, len(self._maps[index])):
            ctypes.memset(address + start, 0, end - start)

    def mapped(self) -> None:
        """A program maps some of it. OSError if hiding it from now on fails."""
        self._mapped = True
        if self._wanted:
            self._withdraw()

    def unmapped(self) -> None:
        """No program has any of it mapped."""
        self._mapped = False

    def hide(self) -> None:
        """Let programs fault (idempotent). OSError: no memory for the copies; nothing changed then."""
        if self._mapped:
            self._withdraw()
        self._wanted = True

    def show(self) -> None:
        """Let programs see it again (idempotent). OSError: no room for it; it stays hidden."""
        if self._away:
            self._restore()
        self._wanted = False

    # -- inner -----------------------------------------------------------------------------------

    def _end(self) -> int:
        return max(((i << REGION_SHIFT) + len(self._maps[i]) for i in self._populated), default=0)

    def _withdraw(self) -> None:
        if self._away:
            return
        copies = {}
        try:
            for index, mapping in self._maps.items():
                copies[index] = sc.mmap(0, len(mapping), MAP_PRIVATE | MAP_ANONYMOUS)
        except OSError:
            for index, copy in copies.items():
                sc.munmap(copy, len(self._maps[index]))
            raise
        for index, copy in copies.items():
            address, size = self._addresses[index], len(self._maps[index])
            for start, end in self._written(index, size):
                ctypes.memmove(copy + start, address + start, end - start)
            sc.move_mapping(copy, size, address)
        os.ftruncate(self.fd, 0)
        self._away = True

    def _written(self, index: int, size: int) -> list[tuple[int, int]]:
        """The parts of a region that have ever been touched; all else is zero."""
        first = index << REGION_SHIFT
        found: list[tuple[int, int]] = []
        if index not in self._populated:
            return found
        at, end = first, first + size
        while at < end:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            if start >= end:
                break
            at = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            found.append((start - first, at - first))
        return found

    def _restore(self) -> None:
        try:
            for index in sorted(self._populated):
                self._reserve(index << REGION_SHIFT, len(self._maps[index]))
            for index in sorted(self._populated):
                self._put_back(index)
            os.ftruncate(self.fd, self._end())
        except OSError:
            os.ftruncate(self.fd, 0)
            raise
        for index, address in self._addresses.items():
            flags = MAP_SHARED | MAP_FIXED
            sc.mmap(address, len(self._maps[index]), flags, self.fd, index << REGION_SHIFT)
        self._away = False

    def _reserve(self, offset: int, size: int) -> None:
        try:
            sc.fallocate(self.fd, sc.FALLOC_FL_KEEP_SIZE, offset, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise

    def _put_back(self, index: int) -> None:
        view, first = self.views[index], index << REGION_SHIFT
        zeros = bytes(PIECE)
        for at in range(0, len(view), PIECE):
            piece = bytes(view[at : at + PIECE])
            if piece != zeros[: len(piece)]:
                os.pwrite(self.fd, piece, first + at)


def _fill(fd: int, offset: int, size: int) -> None:
    """Give a range of the file its pages. ENOSPC before any is taken: a tmpfs filled to its end would leave no memory
    for other users."""
    space = os.fstatvfs(fd)
    if size > space.f_bavail * space.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(fd, offset, size)
