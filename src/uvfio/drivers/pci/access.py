"""Reading, writing and mapping the regions of a PCI device: one ``Window`` per region.

A program's access is a byte range; a device sees accesses of a width. Ranges over registers are cut into
the largest naturally aligned pieces of 4, 2 and 1 bytes, little-endian, in ascending order. Ranges over
plain memory are copied as they are.

    region              outside                              at the end          short
    memory BAR, ROM     offset > size: InvalidArgument       offset == size: 0   cut at the end
    I/O BAR             range passes the end: InvalidArgument                    never
    absent              InvalidArgument, always

Only a BAR that the model declares plain memory can be mapped (``mappable``); registers have effects that
a mapping would bypass.

Does not: check that the device is open, or know configuration space (``config.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.device import Region
from uvfio.drivers.pci.hardware import BarKind
from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import Bar, PciFunction

__all__ = ["PAGE_SIZE", "Window", "bar_window", "rom_window", "width_at"]

PAGE_SIZE = 4096


class Window:
    """A region that is not there: every access is refused. Base of those that are."""

    __slots__ = ("name", "region")

    def __init__(self, name: str, region: Region) -> None:
        self.name = name
        self.region = region

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset``; the table in the module's head says when fewer."""
        raise self._refuse("is not implemented")

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were written."""
        raise self._refuse("is not implemented")

    def mmap(self, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes at ``offset``."""
        raise self._refuse("cannot be mapped", "read and write it")

    def _refuse(self, why: str, hint: str = "") -> InvalidArgument:
        return InvalidArgument(f"{self.name}: region {self.region.index} {why}", hint)

    def _within(self, offset: int, count: int) -> int:
        """Bytes of the range that are inside, for regions that cut at their end."""
        size = self.region.size
        if not 0 <= offset <= size:
            raise self._refuse(f"ends at {size:#x}, before offset {offset:#x}")
        return min(count, size - offset)


class RegisterWindow(Window):
    """A memory BAR with registers: each access reaches the model with its width."""

    __slots__ = ("_function", "_index")

    def __init__(self, function: PciFunction, region: Region) -> None:
        super().__init__(function.name, region)
        self._function = function
        self._index = region.index

    def read(self, offset: int, count: int) -> bytes:
        left = self._within(offset, count)
        read, index = self._function.bar_read, self._index
        answer = bytearray()
        while left:
            width = width_at(offset, left)
            answer += read(index, offset, width).to_bytes(width, "little")
            offset += width
            left -= width
        return bytes(answer)

    def write(self, offset: int, data: bytes) -> int:
        count = left = self._within(offset, len(data))
        write, index = self._function.bar_write, self._index
        while left:
            width = width_at(offset, left)
            at = count - left
            write(index, offset, int.from_bytes(data[at : at + width], "little"), width)
            offset += width
            left -= width
        return count


class PortWindow(RegisterWindow):
    """An I/O BAR: as registers, but a range is inside or refused as a whole."""

    __slots__ = ()

    def _within(self, offset: int, count: int) -> int:
        if not 0 <= offset <= offset + count <= self.region.size:
            raise self._refuse(
                f"is {self.region.size:#x} ports long, {offset:#x}+{count:#x} is not inside"
            )
        return count


class MemoryWindow(Window):
    """A BAR that is plain memory. The function is asked for it each time: a machine may place it late."""

    __slots__ = ("_function",)

    def __init__(self, function: PciFunction, region: Region) -> None:
        super().__init__(function.name, region)
        self._function = function

    def read(self, offset: int, count: int) -> bytes:
        end = offset + self._within(offset, count)
        return bytes(self._function.bar_memory(self.region.index)[offset:end])

    def write(self, offset: int, data: bytes) -> int:
        count = self._within(offset, len(data))
        self._function.bar_memory(self.region.index)[offset : offset + count] = data[:count]
        return count

    def mmap(self, offset: int, size: int) -> memoryview:
        total = self.region.size
        if total < PAGE_SIZE:
            raise self._refuse(f"is smaller than a page: {total:#x} bytes", "read and write it")
        if offset < 0 or size <= 0 or offset + size > total:
            raise self._refuse(f"is {total:#x} bytes long, {offset:#x}+{size:#x} is not inside")
        return self._function.bar_memory(self.region.index)[offset : offset + size]


class RomWindow(Window):
    """The expansion ROM. Its decoder is switched on for the length of an access only, so no bit matters."""

    __slots__ = ("_image",)

    def __init__(self, name: str, region: Region, image: bytes) -> None:
        super().__init__(name, region)
        self._image = image

    def read(self, offset: int, count: int) -> bytes:
        return self._image[offset : offset + self._within(offset, count)]

    def write(self, offset: int, data: bytes) -> int:
        raise self._refuse("is read-only memory")


def bar_window(function: PciFunction, index: int, bar: Bar | None) -> Window:
    """The window on BAR ``index``; ``bar`` None: not implemented, or the upper half of another."""
    if bar is None:
        return Window(function.name, Region(index, 0))
    if bar.kind is BarKind.IO:
        return PortWindow(function, Region(index, bar.size))
    if bar.mappable:
        return MemoryWindow(function, Region(index, bar.size, mappable=bar.size >= PAGE_SIZE))
    return RegisterWindow(function, Region(index, bar.size))


def rom_window(function: PciFunction, index: int) -> Window:
    """The window on the expansion ROM as region ``index``."""
    image = function.rom
    if not image:
        return Window(function.name, Region(index, 0))
    return RomWindow(function.name, Region(index, len(image), writable=False), image)


def width_at(offset: int, left: int) -> int:
    """The largest of 4, 2 and 1 that ``offset`` is aligned to and that is not more than ``left``."""
    if left >= 4 and not offset & 3:
        return 4
    return 2 if left >= 2 and not offset & 1 else 1
