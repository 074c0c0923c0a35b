"""Reading, writing and mapping the regions of a PCI device: one ``Window`` per region.

    region              outside                              at the end          short
    memory BAR, ROM     offset > size: InvalidArgument       offset == size: 0   cut at the end
    I/O BAR             range passes the end: InvalidArgument                    never
    absent              InvalidArgument, always

``drivers/window.py`` has what memory BARs share with the regions of other buses: how a byte range becomes
accesses of a width, and what can be mapped. A BAR can be only if the model declares it plain memory, or
registers that are polled.

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
    from uvfio.drivers.pci.hardware import Bar, PciFunction

__all__ = ["PAGE_SIZE", "Window", "bar_window", "rom_window", "width_at"]


class PortWindow(RegisterWindow):
    """An I/O BAR: as registers, but a range is inside or refused as a whole."""

    __slots__ = ()

    def _within(self, offset: int, count: int) -> int:
        if not 0 <= offset <= offset + count <= self.region.size:
            raise self._refuse(
                f"is {self.region.size:#x} ports long, {offset:#x}+{count:#x} is not inside"
            )
        return count


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


def bar_window(function: PciFunction, index: int, bar: Bar | None) -> Window:
    """The window on BAR ``index``; ``bar`` None: not implemented, or the upper half of another."""
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
        return MemoryWindow(name, region, function.bar_memory)
    return RegisterWindow(name, Region(index, bar.size), function.bar_read, function.bar_write)


def rom_window(function: PciFunction, index: int) -> Window:
    """The window on the expansion ROM as region ``index``."""
    image = function.rom
    if not image:
        return Window(function.name, Region(index, 0))
    return RomWindow(function.name, Region(index, len(image), writable=False), image)
