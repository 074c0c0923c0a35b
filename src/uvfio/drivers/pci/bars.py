"""Base address registers: what a program reads and writes there, and what the hardware keeps.

The addresses in the hardware belong to the host. A program's writes never reach them: it gets a *virtual*
register of the same size and type, which answers the usual sizing dance (write all ones, read back) and
otherwise stores any address aligned to the size. Invariant: a virtual register only ever shows address bits
at or above its size, and the type bits of the hardware.

    memory, I/O     size mask over the address, then type bits; a 64-bit BAR uses two registers
    ROM             size mask, never less than 2 KiB, and the enable bit, which is plain storage
    absent          reads 0, stores nothing

A function loses its real addresses when it is reset. ``save`` remembers them when the device is opened,
``restore`` writes them back where they differ. They are not needed before the program switches decoding on,
so a reset that the driver only learns about from then (a program writes the reset bit of a capability
itself) is repaired at that point; see ``config.py``.

Does not: access the memory behind a BAR (``access.py``), or change the command register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.pci.hardware import BarKind, bar_fault
from uvfio.errors import InvalidArgument
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["ROM_INDEX", "BarRegisters"]

ROM_INDEX = 6  # the ROM's region number, and its place after the six BARs here

_OFFSETS = (
    *range(pci.PCI_BASE_ADDRESS_0, pci.PCI_BASE_ADDRESS_5 + 4, 4),
    pci.PCI_ROM_ADDRESS,
)
_INDEX = {offset: index for index, offset in enumerate(_OFFSETS)}
_SMALLEST_ROM = 2048
_WORD = 0xFFFFFFFF


class BarRegisters:
    """The seven base address registers of one function.

    ``decode`` holds the command register's bits that this function needs to reach its BARs at all: MEMORY,
    IO, both or none. InvalidArgument for a layout that no silicon can have: a 64-bit BAR in register 5 or
    over another one, a size that is too small or no power of two.
    """

    __slots__ = ("_fixed", "_function", "_masks", "_saved", "decode")

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._masks = [0] * 7
        self._fixed = [0] * 7
        self._saved: list[int] = []
        self.decode = 0
        for index, bar in function.bars.items():
            wide = bar.kind is BarKind.MEMORY64
            fault = bar_fault(index, bar, function.bars)
            if fault:
                raise InvalidArgument(
                    f"{function.name}: BAR {index} cannot be {bar.size:#x} bytes of {bar.kind.value}",
                    f"BAR {index}{fault}",
                )
            address = -bar.size
            if bar.kind is BarKind.IO:
                self.decode |= pci.PCI_COMMAND_IO
                self._masks[index] = address & pci.PCI_BASE_ADDRESS_IO_MASK
                self._fixed[index] = pci.PCI_BASE_ADDRESS_SPACE_IO
                continue
            self.decode |= pci.PCI_COMMAND_MEMORY
            self._masks[index] = address & pci.PCI_BASE_ADDRESS_MEM_MASK
            self._fixed[index] = (pci.PCI_BASE_ADDRESS_MEM_TYPE_64 if wide else 0) | (
                pci.PCI_BASE_ADDRESS_MEM_PREFETCH if bar.prefetchable else 0
            )
            if wide:
                self._masks[index + 1] = address >> 32 & _WORD
        rom = len(function.rom)
        if rom:
            if rom < _SMALLEST_ROM or rom & rom - 1:
                raise InvalidArgument(f"{function.name}: the ROM cannot be {rom:#x} bytes")
            self.decode |= pci.PCI_COMMAND_MEMORY
            self._masks[ROM_INDEX] = -rom & pci.PCI_ROM_ADDRESS_MASK | pci.PCI_ROM_ADDRESS_ENABLE
        if function.physfn is not None:
            self.decode = 0  # the PF's VF MSE is all that a virtual function needs

    @staticmethod
    def index_of(offset: int) -> int | None:
        """Which register (0-5, 6 is the ROM) is the aligned word at ``offset`` of the space, if any."""
        return _INDEX.get(offset)

    def virtual(self, index: int, value: int) -> int:
        """What register ``index`` reads after a program has written ``value``: 32 bits."""
        return value & self._masks[index] | self._fixed[index]

    def save(self) -> None:
        """Remember the addresses that the hardware has now."""
        self._saved = [self._function.config_read(offset, 4) for offset in _OFFSETS]

    def restore(self) -> None:
        """Give the hardware the remembered addresses; registers that still have them are not touched."""
        for offset, value in zip(_OFFSETS, self._saved, strict=True):
            if self._function.config_read(offset, 4) != value:
                self._function.config_write(offset, value, 4)
