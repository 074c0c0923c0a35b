"""Reading, writing and mapping the regions of a PCI device: one ``Window`` per region.

    region              outside                              at the end          short
    memory BAR, ROM     offset > size: InvalidArgument       offset == size: 0   cut at the end
    I/O BAR             range passes the end: InvalidArgument                    never
    absent              InvalidArgument, always

``drivers/window.py`` has what memory BARs share with the regions of other buses: how a byte range becomes
accesses of a width, and what can be mapped. A BAR can be mapped only if the model declares it plain memory, or
registers that are polled. An MSI-X table in memory is registers to ``read`` and ``write`` (``TableWindow``); mapped, it
is what the function keeps there.

Does not: check that the device is open, or know configuration space (``config.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import Region
from uvfio.drivers.pci.hardware import BarKind
from uvfio.drivers.window import (
    PAGE_SIZE,
    MemoryWindow,
    PolledWindow,
    RegisterWindow,
    Window,
    width_at,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from uvfio.drivers.pci.hardware import Bar, PciFunction

__all__ = ["PAGE_SIZE", "TableWindow", "Window", "bar_window", "rom_window", "width_at"]


class PortWindow(RegisterWindow):
    """An I/O BAR: as registers, but a range is inside or refused as a whole."""

    __slots__ = ()

    def _within(self, offset: int, count: int) -> int:
        if not 0 <= offset <= offset + count <= self.region.size:
            raise self._refuse(
                f"is {self.region.size:#x} ports long, {offset:#x}+{count:#x} is not inside"
            )
        return count


class TableWindow(MemoryWindow):
    """Memory with ``ranges`` (first, end; in order) in it that are registers, whose accesses the function acts on."""

    __slots__ = ("_ranges", "_registers")

    def __init__(
        self, function: PciFunction, region: Region, ranges: Iterable[tuple[int, int]]
    ) -> None:
        super().__init__(function.name, region, function.bar_memory)
        self._ranges = tuple(ranges)
        self._registers = RegisterWindow(
            function.name, region, function.bar_read, function.bar_write
        )

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes; fewer at the end of the region. Raises InvalidArgument beyond it."""
        return b"".join(
            self._registers.read(at, size) if inside else super(TableWindow, self).read(at, size)
            for at, size, inside in self._pieces(offset, self._within(offset, count))
        )

    def write(self, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were taken. Raises InvalidArgument as ``MemoryWindow.write``."""
        count = self._within(offset, len(data))
        for at, size, inside in self._pieces(offset, count):
            piece = data[at - offset : at - offset + size]
            if inside:
                self._registers.write(at, piece)
            else:
                super().write(at, piece)
        return count

    def _pieces(self, offset: int, count: int) -> Iterator[tuple[int, int, bool]]:
        end = offset + count
        for first, behind in self._ranges:
            if first < end and behind > offset:
                if offset < first:
                    yield offset, first - offset, False
                    offset = first
                yield offset, min(behind, end) - offset, True
                offset = min(behind, end)
        if offset < end:
            yield offset, end - offset, False


class RomWindow(Window):
    """The expansion ROM. Its decoder is switched on for the length of an access only, so no bit matters."""

    __slots__ = ("_image",)

    def __init__(self, name: str, region: Region, image: bytes) -> None:
        super().__init__(name, region)
        self._image = image

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes of the image; fewer at its end. Raises InvalidArgument beyond it."""
        return self._image[offset : offset + self._within(offset, count)]

    def write(self, offset: int, data: bytes) -> int:
        """Raises InvalidArgument: a ROM is read-only."""
        raise self._refuse("is read-only memory")


def bar_window(
    function: PciFunction,
    index: int,
    bar: Bar | None,
    msix: Sequence[tuple[int, int]] = (),
) -> Window:
    """The window on BAR ``index``; ``bar`` None: not implemented, or the upper half of another. ``msix`` are the ranges
    of the MSI-X table and the pending bits in it."""
    name = function.name
    if bar is None:
        return Window(name, Region(index, 0))
    if bar.kind is BarKind.IO:
        return PortWindow(name, Region(index, bar.size), function.bar_read, function.bar_write)
    if bar.mappable:
        region = Region(index, bar.size, mappable=bar.size >= PAGE_SIZE)
        if bar.polled:
            memory = function.bar_memory
            return PolledWindow(name, region, function.bar_read, function.bar_write, memory)
        if msix:
            return TableWindow(function, region, msix)
        return MemoryWindow(name, region, function.bar_memory)
    return RegisterWindow(name, Region(index, bar.size), function.bar_read, function.bar_write)


def rom_window(function: PciFunction, index: int) -> Window:
    """The window on the expansion ROM as region ``index``."""
    image = function.rom
    if not image:
        return Window(function.name, Region(index, 0))
    return RomWindow(function.name, Region(index, len(image), writable=False), image)
