"""The memory of a file that a program gave to a device (IOMMU_IOAS_MAP_FILE): a memfd, or a file on hugetlbfs.

Addresses are offsets. Bytes are copied by read and write where the file has them, so that a program that shortens its
file makes the device fault and does not end the supervisor; stores that must not be seen half done, and files of huge
pages, which cannot be written to, go through a mapping. Its size is checked before each use; a page that is lost
meanwhile is covered (``pages.py``), and the file is mapped again for the next use.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final

from uvfio.core.seams import Pin
from uvfio.doors.run.linux import sigbus
from uvfio.doors.run.linux.pages import Cut, as_words, page_size
from uvfio.errors import BadAddress, InvalidArgument
from uvfio.uapi.linux import HUGETLBFS_MAGIC, TMPFS_MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FileMemory"]

STATFS_SIZE: Final = 120  # struct statfs of x86-64; f_type is its first word

_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


class FileMemory:
    """Takes over the descriptor ``fd``. ``usable``: it may be given to a device, if it is a memory file at all."""

    __slots__ = ("_cut", "_fd", "_huge", "_window", "usable")

    def __init__(self, fd: int, usable: bool = True) -> None:
        self._fd = fd
        about = ctypes.create_string_buffer(STATFS_SIZE)
        known = _fstatfs(fd, about) == 0
        kind = int.from_bytes(about.raw[:8], "little") if known else 0
        self.usable = usable and kind in (TMPFS_MAGIC, HUGETLBFS_MAGIC)
        self._huge = kind == HUGETLBFS_MAGIC
        self._window: mmap.mmap | None = None
        self._cut = Cut(0, ())

    def __del__(self) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes at an offset. Raises BadAddress beyond the end."""
        data = os.pread(self._fd, size, address)
        if len(data) != size:
            raise BadAddress(f"{address:#x}+{size:#x} is beyond the end of the file")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` to an offset; the file does not grow. Raises BadAddress beyond the end."""
        if self._huge:
            self.view(address, len(data))[:] = data
            return
        if address + len(data) > os.fstat(self._fd).st_size:  # or the file would grow
            raise BadAddress(f"{address:#x}+{len(data):#x} is beyond the end of the file")
        try:
            os.pwrite(self._fd, data, address)
        except OSError as error:
            raise BadAddress(f"cannot write to the file: {error.strerror}") from error

    def store(self, address: int, value: int, width: int) -> None:
        """One aligned store of ``width`` bytes in the mapped file. Raises BadAddress beyond the end."""
        window, cut = self._window_on(address, width)
        as_words(window, width)[0] = value
        cut.check(address, width)

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview:
        """A window on the file. BadAddress beyond its end."""
        found, pages = self._window_on(address, size)
        if cut is not None:
            pages.users[cut[0]] = cut[1]
        return found if writable else found.toreadonly()

    def exchanged(self, address: int, size: int) -> str:
        """Nothing: the file is held, and no address leads to it."""
        return ""

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """InvalidArgument unless it is a memory file that has these bytes (memfd_pin_folios)."""
        if not self.usable:
            raise InvalidArgument("the file is no memfd")
        if address + size > os.fstat(self._fd).st_size:
            raise InvalidArgument(f"{address:#x}+{size:#x} is beyond the end of the file")
        return Pin(self, size)

    def mlocked(self) -> int:
        """Nothing: a file locks no memory."""
        return 0

    def _window_on(self, address: int, size: int) -> tuple[memoryview, Cut]:
        length = os.fstat(self._fd).st_size
        if address + size > length:
            raise BadAddress(f"{address:#x}+{size:#x} is beyond the end of the file")
        if self._window is None or len(self._window) < length or self._cut.lost:
            try:
                window = mmap.mmap(self._fd, length)
            except OSError as error:
                raise BadAddress(f"cannot map the file: {error.strerror}") from error
            here = ctypes.addressof(ctypes.c_char.from_buffer(window))
            users = self._cut.users
            self._window, self._cut = (
                window,
                Cut(here, [(here, here + length, page_size(self._fd))]),
            )
            self._cut.users = users
            sigbus.protect(window, here, length, self._cut.mend)
        return memoryview(self._window)[address : address + size], self._cut
