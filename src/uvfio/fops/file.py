"""``File``: the interface between a door and an open VFIO file, and the helpers that all kinds of files share.

A door finds the file behind a descriptor and calls one of its methods with the calling task. Each method raises
``OSError``; its errno is the program's. ``release`` is called exactly once, when the last descriptor and the last
mapping of the open file are gone.

Requests that name another file by its descriptor (MERGE, SET_CONTAINER, BIND_IOMMUFD, PCI_HOT_RESET) look it up with
``find_file`` and read what they need from it: ``group_as``, ``container``, ``context``. A file that has no such thing
answers None, so no module needs the classes of the others.

Files do not know descriptor numbers: the door maps those to files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.irq import ReportedEvent
from uvfio.errors import InvalidArgument, UnknownCommand

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Event, Task
    from uvfio.core.structure.container import Container
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import OpenGroup
    from uvfio.core.structure.iommufd import Iommufd
    from uvfio.core.waiting import Wait

__all__ = ["ABI_2011", "MAINLINE", "Deferred", "File", "find_file", "install", "report_signals"]

ABI_2011: Final = "2011"
MAINLINE: Final = "mainline"


class Deferred(Exception):
    """The call cannot be answered yet: when ``wait`` is done its result is ``value``, or that of ``Steps``.

    Each function of ``answered`` is called with the result, or with the error if the wait failed.
    """

    def __init__(self, wait: Wait, value: int) -> None:
        super().__init__(f"waits for {wait}")
        self.wait = wait
        self.value = value
        self.answered: list[Callable[[int | OSError], None]] = []


class File:
    """An open file that supports nothing: each kind of file overrides what it has.

    ``name`` is the target of the link /proc/self/fd/N. ``region_memory`` is the name of the device whose mappable
    memory this file exposes at ``index << 40``, or None.
    """

    __slots__ = ("name", "region_memory", "released")

    abi: ClassVar[str] = ABI_2011
    """The ABI of the file's requests: ``ABI_2011`` or ``MAINLINE``."""
    kind: ClassVar[str] = ""
    """The ABI's term for this kind of file: "container", "group", "iommu", "device", "iommufd", "migration".
    One request number means different requests on different kinds of files."""
    alone: ClassVar[bool] = False
    """Whether a door must tell this open file from others that expose the memory of the same device."""
    structural: ClassVar[bool] = False
    """Whether calls depend on what else is open: a door must release closed files before it calls."""

    whole: ClassVar[bool] = False
    """Whether one write is one request, so that its parts belong together. The file position may be set then."""

    noexec: ClassVar[bool] = False
    """Whether mapping it for execution is EPERM, before any other check (mm/mmap.c, path_noexec)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.region_memory: str | None = None
        self.released = False

    # -- calls -------------------------------------------------------------------------------------

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """``ioctl(fd, cmd, arg)``: the non-negative result. ``arg`` is the raw register.

        Raises UnknownCommand for requests that the file does not have.
        """
        raise UnknownCommand(f"{self.name} has no ioctls")

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """``pread``: fewer bytes than ``count`` only at the end of the file or region."""
        raise InvalidArgument(f"{self.name} cannot be read")

    def pwrite(self, task: Task, data: bytes, offset: int) -> int:
        """``pwrite``: the number of bytes taken."""
        raise InvalidArgument(f"{self.name} cannot be written")

    def stride(self, offset: int) -> int:
        """How many bytes from ``offset`` on a door may have read or written in one piece, at least 8: it serves other
        callers before the next piece."""
        return 1 << 20

    def sequential(self) -> File:
        """The file whose ``pread`` and ``pwrite`` serve ``read`` and ``write`` at the file position."""
        return self

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        """Check a mapping of ``size`` bytes and return the memory behind it."""
        raise InvalidArgument(f"{self.name} cannot be mapped", errno=19)

    def release(self) -> None:
        """The last reference is gone. A second call does nothing."""
        if not self.released:
            self.released = True
            self._release()

    def _release(self) -> None:
        """What a kind of file does at its last close."""

    # -- what it is to other files -------------------------------------------------------------------

    def abi_of(self, cmd: int) -> str:
        """The ABI that the request ``cmd`` has on this file, for traces and statistics."""
        return self.abi

    @property
    def framework(self) -> Framework | None:
        """The framework of the machine that the file belongs to; None for files of no machine."""
        return None

    def group_as(self, abi: str) -> OpenGroup | None:
        """The open group, if this is a group file of ``abi``. A file that is undecided becomes one of that ABI."""
        return None

    @property
    def container(self) -> Container | None:
        """The container, if this is an open /dev/vfio/vfio."""
        return None

    @property
    def context(self) -> Iommufd | None:
        """The iommufd context, if this is an open /dev/iommu."""
        return None

    @property
    def device_name(self) -> str | None:
        """The device that the file belongs to if its name does not tell, for traces; None for other files."""
        return self.region_memory

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def find_file(task: Task, fd: int, framework: Framework) -> File | None:
    """The caller's file behind ``fd`` if it is a VFIO file of the same machine, else None. Raises BadDescriptor."""
    file = task.file(fd)
    return file if isinstance(file, File) and file.framework is framework else None


def install(task: Task, file: File) -> int:
    """Give the caller a new descriptor for ``file``, close-on-exec. The file is released if that fails.

    Raises TooManyFiles, NoSpace, NoMemory.
    """
    try:
        return task.install(file, cloexec=True)
    except BaseException:
        file.release()
        raise


def report_signals(framework: Framework, event: Event, device: str, irq: str, vector: int) -> Event:
    """``event``, wrapped so that the framework's observer learns of each signal if there is an observer."""
    if framework.observer is None:
        return event
    from uvfio.core.events import Interrupt

    return ReportedEvent(event, framework, Interrupt(device, irq, vector))
