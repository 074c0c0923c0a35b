"""The memory of a file that a program gave to a device (IOMMU_IOAS_MAP_FILE): a memfd, or a file on hugetlbfs.

Addresses are offsets. Bytes are copied by read and write where the file has them, so that a program that shortens its
file makes the device fault and does not end the supervisor; stores that must not be seen half done, and files of huge
pages, which cannot be written to, go through a mapping that is checked against the file's size before each use.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

from uvfio.doors.run.linux.memory import as_words
from uvfio.errors import BadAddress, InvalidArgument
from uvfio.uapi.linux import HUGETLBFS_MAGIC, TMPFS_MAGIC

__all__ = ["FileMemory"]

STATFS_SIZE: Final = 120  # struct statfs of x86-64; f_type is its first word

_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


class FileMemory:
    """Takes over the descriptor ``fd``. ``usable``: it may be given to a device, if it is a memory file at all."""

    __slots__ = ("_fd", "_huge", "_window", "usable")

    def __init__(self, fd: int, usable: bool = True) -> None:
        self._fd = fd
        about = ctypes.create_string_buffer(STATFS_SIZE)
        known = _fstatfs(fd, about) == 0
        kind = int.from_bytes(about.raw[:8], "little") if known else 0
        self.usable = usable and kind in (TMPFS_MAGIC, HUGETLBFS_MAGIC)
        self._huge = kind == HUGETLBFS_MAGIC
        self._window: mmap.mmap | None = None

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
        """One aligned store of ``width`` bytes in the mapped file."""
        as_words(self.view(address, width), width)[0] = value

    def view(self, address: int, size: int) -> memoryview:
        """A window on the file. BadAddress beyond its end."""
        length = os.fstat(self._fd).st_size
        if address + size > length:
            raise BadAddress(f"{address:#x}+{size:#x} is beyond the end of the file")
        if self._window is None or len(self._window) < length:
            try:
                self._window = mmap.mmap(self._fd, length)
            except OSError as error:
                raise BadAddress(f"cannot map the file: {error.strerror}") from error
        return memoryview(self._window)[address : address + size]

    def pin(self, address: int, size: int, writable: bool) -> int:
        """InvalidArgument unless it is a memory file that has these bytes (memfd_pin_folios)."""
        if not self.usable:
            raise InvalidArgument("the file is no memfd")
        if address + size > os.fstat(self._fd).st_size:
            raise InvalidArgument(f"{address:#x}+{size:#x} is beyond the end of the file")
        return size
