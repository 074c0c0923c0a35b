"""``File``: what a door sees of any open VFIO file.

A door finds the file behind a descriptor and calls one of six methods with the calling task. Each raises
``OSError`` whose errno is what the program must see. ``release`` is called exactly once, when the last
descriptor and the last mapping of the open file are gone.

Files know nothing of descriptors; which number leads to which file is the door's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeVar

from uvfio.errors import InvalidArgument, UnknownCommand

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Task
    from uvfio.core.waiting import Wait

__all__ = ["Deferred", "File"]

FileT = TypeVar("FileT", bound="File")


class Deferred(Exception):
    """The call cannot be answered yet: when ``wait`` is done its result is ``value``.

    ``answered`` are called with the result, or with the error that it became.
    """

    def __init__(self, wait: Wait, value: int) -> None:
        super().__init__(f"waits for {wait}")
        self.wait = wait
        self.value = value
        self.answered: list[Callable[[int | OSError], None]] = []


class File:
    """An open file that supports nothing: each kind overrides what it has.

    ``name`` is what readlink of /proc/self/fd/N shows; ``region_memory`` names the device whose mappable
    memory this file exposes at ``index << 40``, or is None.
    """

    __slots__ = ("name", "region_memory", "released")

    kind: ClassVar[str] = ""
    """What the ABI calls this kind of file: "container", "group", "device", "iommufd"; it tells requests apart."""
    alone: ClassVar[bool] = False
    """Whether a door must tell this open file from others that expose the memory of the same device."""
    structural: ClassVar[bool] = False
    """Whether calls depend on what else is open: a door must have released what was closed before."""

    whole: ClassVar[bool] = False
    """Whether one write is one request, so that its parts belong together; and the position may be set."""

    noexec: ClassVar[bool] = False
    """Whether mapping it for execution is EPERM, whatever else is wrong (mm/mmap.c, path_noexec)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.region_memory: str | None = None
        self.released = False

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """``ioctl(fd, cmd, arg)``: the non-negative result. ``arg`` is the raw register."""
        raise UnknownCommand(f"{self.name} has no ioctls")

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """``pread``; fewer bytes than ``count`` only at an end."""
        raise InvalidArgument(f"{self.name} cannot be read")

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        """``pwrite``: how many bytes were taken."""
        raise InvalidArgument(f"{self.name} cannot be written")

    def sequential(self) -> File:
        """What ``read`` and ``write`` act on, by ``pread`` and ``pwrite`` at the file position."""
        return self

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        """Check a mapping of ``size`` bytes and return the memory behind it."""
        raise InvalidArgument(f"{self.name} cannot be mapped", errno=19)

    def abi_of(self, cmd: int) -> str:
        """Which ABI has this file's request ``cmd``: "2011" or "mainline". For those who show calls."""
        return "2011"

    def face(self, kind: type[FileT]) -> FileT | None:
        """This file as one of that class, or None if it is no such file."""
        return self if isinstance(self, kind) else None

    def release(self) -> None:
        """The last reference is gone. A second call does nothing."""
        if not self.released:
            self.released = True
            self._release()

    def _release(self) -> None:
        """What a kind of file does at its end."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
