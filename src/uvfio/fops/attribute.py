"""``AttributeFile``: an open file of sysfs that takes writes.

Unlike a VFIO file, one write(2) is one request even if it arrives in several parts, and the position may be set. The
meaning of reads and writes is that of its ``Contents``. Whether the file was opened for the access is checked here, as
the kernel checks it before the attribute is called.

A write that has to wait raises ``Deferred``: the door answers it when the wait is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from uvfio.errors import BadDescriptor, InvalidArgument
from uvfio.fops.file import Deferred, File

if TYPE_CHECKING:
    from uvfio.core.seams import Task
    from uvfio.core.waiting import Wait

__all__ = ["AttributeFile", "Contents"]

_ENODEV = 19


class Contents(Protocol):
    """The attribute behind the file."""

    def read(self, offset: int, count: int) -> bytes:
        """The bytes at ``offset``; fewer than ``count`` at the end."""

    def write(self, offset: int, data: bytes) -> tuple[int, Wait | None]:
        """The number of bytes taken, and the wait that has to end before the answer, or None."""


class AttributeFile(File):
    """The file ``name`` (its path), opened for reading, writing or both."""

    __slots__ = ("_contents", "_reads", "_writes")

    kind = "attribute"
    structural = True
    whole = True

    def __init__(self, name: str, contents: Contents, *, reads: bool, writes: bool) -> None:
        super().__init__(name)
        self._contents = contents
        self._reads = reads
        self._writes = writes

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """As the contents answer. EBADF if the file was not opened for reading."""
        if not self._reads:
            raise BadDescriptor(f"{self.name} is not open for reading")
        return self._contents.read(offset, count)

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        """Raises BadDescriptor without write access, Deferred for a write that has to wait, else as the attribute."""
        if not self._writes:
            raise BadDescriptor(f"{self.name} is not open for writing")
        taken, wait = self._contents.write(offset, data)
        if wait is not None:
            raise Deferred(wait, taken)
        return taken

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        """ENODEV: such a file has no memory."""
        raise InvalidArgument(f"{self.name} cannot be mapped", errno=_ENODEV)
