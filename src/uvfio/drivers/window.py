"""Regions that a device file reads, writes and maps, whatever the bus: one ``Window`` per region.

A program's access is a byte range; a device sees accesses of a width. Ranges over registers are cut into
the largest naturally aligned pieces of 4, 2 and 1 bytes (and 8 on request), little-endian, in ascending order.
Ranges over plain memory are copied as they are.

    region              outside                              at the end          short
    registers, memory   offset > size: InvalidArgument       offset == size: 0   cut at the end
    absent              InvalidArgument, always

What can be mapped is plain memory, and registers whose device looks after the mapping (polled): both give the
same bytes in every mapping.

Does not: check that the device is open, or know what is behind a region: accesses go to functions that the
bus driver gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import Region

__all__ = ["PAGE_SIZE", "MemoryWindow", "PolledWindow", "RegisterWindow", "Window", "width_at"]

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

    def inside(self, offset: int, count: int) -> int:
        """How many bytes of an access would be moved. Raises InvalidArgument as the access does."""
        if not self.region.size:
            raise self._refuse("is not implemented")
        return self._within(offset, count)

    def _refuse(self, why: str, hint: str = "") -> InvalidArgument:
        return InvalidArgument(f"{self.name}: region {self.region.index} {why}", hint)

    def _check_mapping(self, offset: int, size: int) -> None:
        total = self.region.size
        if total < PAGE_SIZE:
            raise self._refuse(f"is smaller than a page: {total:#x} bytes", "read and write it")
        if offset < 0 or size <= 0 or offset + size > total:
            raise self._refuse(f"is {total:#x} bytes long, {offset:#x}+{size:#x} is not inside")

    def _within(self, offset: int, count: int) -> int:
        """Bytes of the range that are inside, for regions that cut at their end."""
        size = self.region.size
        if not 0 <= offset <= size:
            raise self._refuse(f"ends at {size:#x}, before offset {offset:#x}")
        return min(count, size - offset)


class RegisterWindow(Window):
    """Registers: each access reaches the device with its width.

    ``load(index, offset, width)`` and ``store(index, offset, value, width)`` are accesses of the device.
    """

    __slots__ = ("_index", "_load", "_store")

    def __init__(
        self,
        name: str,
        region: Region,
        load: Callable[[int, int, int], int],
        store: Callable[[int, int, int, int], None],
    ) -> None:
        super().__init__(name, replace(region, registers=True))
        self._load = load
        self._store = store
        self._index = region.index

    def read(self, offset: int, count: int, widest: int = 4) -> bytes:
        """Read with accesses of at most ``widest`` bytes; fewer bytes than ``count`` at the end of the region.
        Raises InvalidArgument beyond it."""
        left = self._within(offset, count)
        load, index = self._load, self._index
        answer = bytearray()
        while left:
            width = width_at(offset, left, widest)
            answer += load(index, offset, width).to_bytes(width, "little")
            offset += width
            left -= width
        return bytes(answer)

    def write(self, offset: int, data: bytes, widest: int = 4) -> int:
        """Write with accesses of at most ``widest`` bytes; returns how many bytes were written. Raises
        InvalidArgument beyond the end, and for a region that is read-only."""
        if not self.region.writable:
            raise self._refuse("is read-only")
        count = left = self._within(offset, len(data))
        store, index = self._store, self._index
        while left:
            width = width_at(offset, left, widest)
            at = count - left
            store(index, offset, int.from_bytes(data[at : at + width], "little"), width)
            offset += width
            left -= width
        return count


class PolledWindow(RegisterWindow):
    """Registers that can be mapped too. ``memory`` is asked at each mapping: that is how the device knows."""

    __slots__ = ("_memory",)

    def __init__(
        self,
        name: str,
        region: Region,
        load: Callable[[int, int, int], int],
        store: Callable[[int, int, int, int], None],
        memory: Callable[[int], memoryview],
    ) -> None:
        super().__init__(name, region, load, store)
        self._memory = memory

    def mmap(self, offset: int, size: int) -> memoryview:
        """The registers' shadow behind the range; polling begins. Raises InvalidArgument as
        ``MemoryWindow.mmap``."""
        self._check_mapping(offset, size)
        return self._memory(self.region.index)[offset : offset + size]


class MemoryWindow(Window):
    """Plain memory. The device is asked for it each time: a machine may place it late, or anew."""

    __slots__ = ("_memory",)

    def __init__(self, name: str, region: Region, memory: Callable[[int], memoryview]) -> None:
        super().__init__(name, region)
        self._memory = memory

    def read(self, offset: int, count: int) -> bytes:
        """Copy up to ``count`` bytes; fewer at the end of the region. Raises InvalidArgument beyond it."""
        end = offset + self._within(offset, count)
        return bytes(self._memory(self.region.index)[offset:end])

    def write(self, offset: int, data: bytes) -> int:
        """Copy ``data`` up to the end of the region; returns how many bytes. Raises InvalidArgument beyond the end,
        and for a region that is read-only."""
        if not self.region.writable:
            raise self._refuse("is read-only")
        count = self._within(offset, len(data))
        self._memory(self.region.index)[offset : offset + count] = data[:count]
        return count

    def mmap(self, offset: int, size: int) -> memoryview:
        """The memory behind the range. Raises InvalidArgument for a range that is not inside, and for less than a
        page."""
        self._check_mapping(offset, size)
        return self._memory(self.region.index)[offset : offset + size]


def width_at(offset: int, left: int, widest: int = 4) -> int:
    """The largest of 4, 2 and 1 that ``offset`` is aligned to and that is not more than ``left``.

    ``widest`` 8: such accesses too.
    """
    if widest == 8 and left >= 8 and not offset & 7:
        return 8
    if left >= 4 and not offset & 3:
        return 4
    return 2 if left >= 2 and not offset & 1 else 1
