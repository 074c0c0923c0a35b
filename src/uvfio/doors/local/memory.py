"""What a process of the local door has besides its table of descriptors: memory, eventfds, memfds.

``LocalMemory`` is an address space of separate areas, ``LocalEvent`` a counter, ``MemoryFile`` bytes that can be mapped
for DMA. All of it is ordinary Python memory: an access outside an area is BadAddress, a load cannot fault.

This module knows no machine and no VFIO file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from uvfio.core.seams import Pin
from uvfio.errors import BadAddress, InvalidArgument

__all__ = ["LocalEvent", "LocalMemory", "MemoryFile", "NoMemoryFile"]

PAGE = 4096
HEAP = 0x10000000

Hidden = Callable[[], bool]


def _never() -> bool:
    return False


class _Bytes(ABC):
    """Bytes at addresses, which never move: what memory of this process and files of it share."""

    @abstractmethod
    def _slice(self, address: int, size: int, *, writable: bool) -> memoryview:
        """The bytes themselves. Raises BadAddress."""

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes. Raises BadAddress where there are none."""
        return bytes(self._slice(address, size, writable=False))

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data``. Raises BadAddress where there are no bytes, and where they are read-only."""
        self._slice(address, len(data), writable=True)[:] = data

    def store(self, address: int, value: int, width: int) -> None:
        """Store ``width`` bytes. Raises BadAddress as ``write``."""
        self.write(address, value.to_bytes(width, "little"))

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview | None:
        """The bytes themselves; all memory of this process can be shared. Raises BadAddress as ``write``, or as
        ``read`` for a window that is not ``writable``. No page is ever lost (``cut``)."""
        found = self._slice(address, size, writable=writable)
        return found if writable else found.toreadonly()

    def exchanged(self, address: int, size: int) -> str:
        """Nothing: no address is used twice, and an offset of a file leads to the same byte always."""
        return ""

    def mlocked(self) -> int:
        """Nothing: there is no mlock here."""
        return 0


class LocalMemory(_Bytes):
    """An address space of separate areas; between two areas at least one page is unmapped."""

    def __init__(self) -> None:
        self._areas: dict[int, tuple[memoryview, bool, Hidden | None]] = {}
        self._top = HEAP

    def allocate(self, size: int, *, writable: bool = True) -> int:
        """A zeroed, page-aligned area of ``size`` bytes rounded up to pages; returns its address."""
        size = max(-(-size // PAGE) * PAGE, PAGE)
        return self.place(memoryview(bytearray(size)), writable=writable)

    def place(
        self,
        area: memoryview,
        *,
        writable: bool = True,
        device: bool = False,
        hidden: Hidden | None = None,
    ) -> int:
        """Map existing memory, a ``device``'s or not; returns its address. ``hidden`` says when it faults."""
        address = self._top
        self._areas[address] = (area, writable, (hidden or _never) if device else None)
        self._top += -(-len(area) // PAGE) * PAGE + PAGE
        return address

    def free(self, address: int) -> None:
        """Unmap the area that begins at ``address``; BadAddress if none does."""
        if self._areas.pop(address, None) is None:
            raise BadAddress(f"no area begins at {address:#x}")

    def copy(self) -> LocalMemory:
        """What fork gives the child: the same contents in memory of its own (device memory is shared)."""
        child = LocalMemory()
        child._top = self._top
        for address, (area, writable, device) in self._areas.items():
            mine = area if device is not None else memoryview(bytearray(area))
            child._areas[address] = (mine, writable, device)
        return child

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """Check the range; device memory locks nothing. Raises BadAddress."""
        self._slice(address, size, writable=writable)
        device = any(
            d is not None and base <= address < base + len(a)
            for base, (a, _, d) in self._areas.items()
        )
        return Pin(self, 0 if device else size)

    def _slice(self, address: int, size: int, *, writable: bool) -> memoryview:
        for base, (area, may_write, hidden) in self._areas.items():
            if base <= address and address + size <= base + len(area):
                if writable and not may_write:
                    raise BadAddress(f"{address:#x}+{size:#x} is read-only")
                if hidden is not None and hidden():
                    raise BadAddress(f"{address:#x}+{size:#x}: the device does not answer there")
                return area[address - base : address - base + size]
        raise BadAddress(f"{address:#x}+{size:#x} is not mapped")


class LocalEvent:
    """An eventfd of a local process: a counter that callbacks can watch. ``opens``: how often it is open."""

    def __init__(self) -> None:
        self.count = 0
        self.opens = 0
        self._watchers: list[Callable[[], None]] = []

    def signal(self) -> None:
        """Add 1 to the counter and call the watchers."""
        self.count += 1
        for callback in list(self._watchers):
            callback()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` at each signal, and at once if the counter is not 0; the result ends that."""
        self._watchers.append(callback)
        if self.count:
            callback()

        def stop() -> None:
            if callback in self._watchers:
                self._watchers.remove(callback)

        return stop

    def abandoned(self) -> bool:
        """Whether no process has it open any more."""
        return not self.opens

    def close(self) -> None:
        """References to a local event need no counting."""

    def take(self) -> int:
        """Read the counter and set it to 0, like read(2)."""
        count, self.count = self.count, 0
        return count


class MemoryFile(_Bytes):
    """A memfd of a local process: bytes that processes share and that can be given to devices, by offset."""

    def __init__(self, size: int) -> None:
        self.data = memoryview(bytearray(size))

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        """The file itself. Raises InvalidArgument for a range beyond its end."""
        if address + size > len(self.data):
            raise InvalidArgument(f"{address:#x}+{size:#x} is beyond the end of the file")
        return Pin(self, size)

    def _slice(self, address: int, size: int, *, writable: bool) -> memoryview:
        if address + size > len(self.data):
            raise BadAddress(f"{address:#x}+{size:#x} is beyond the end of the file")
        return self.data[address : address + size]


class NoMemoryFile(MemoryFile):
    """Any other file: no device can use it."""

    def __init__(self) -> None:
        super().__init__(0)
