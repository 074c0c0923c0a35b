"""Where a PCI function is, and which of its regions answer: facts that decide what an access may do.

A memory BAR and the ROM answer while memory decoding is on (a virtual function has no bit for it) and the function is
not in D3hot; I/O BARs always do. The MSI-X table reads ones and takes no writes from programs.

Behaviour: drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_bar_rw. The rules keep no state but the function's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.pci.bars import ROM_INDEX
from uvfio.drivers.pci.hardware import BarKind
from uvfio.errors import DecodingOff
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["AccessRules", "place_of"]


def place_of(name: str) -> tuple[int, int, int]:
    """Segment, bus, and device and function number of the address ``name``."""
    segment, bus, rest = name.split(":")
    device, function = rest.split(".")
    return int(segment, 16), int(bus, 16), int(device, 16) << 3 | int(function, 16)


class AccessRules:
    """Facts about one function that decide what an access may do."""

    __slots__ = ("_function", "_memory", "_pending", "power", "table", "virtual")

    def __init__(self, function: PciFunction, layout: CapabilityMap) -> None:
        self._function = function
        self._memory = {n for n, bar in function.bars.items() if bar.kind is not BarKind.IO} | {
            ROM_INDEX
        }
        self.power = layout.find(pci.PCI_CAP_ID_PM)
        self.virtual = function.physfn is not None
        msix = layout.find(pci.PCI_CAP_ID_MSIX)
        self.table = self._table(function, msix)
        self._pending = self._bits(function, msix)

    @staticmethod
    def _bits(function: PciFunction, msix: int) -> tuple[int, int, int]:
        """(BAR, start, end) of the pending bits; BAR -1 without MSI-X."""
        if not msix:
            return -1, 0, 0
        pba = function.config_read(msix + pci.PCI_MSIX_PBA, 4)
        size = (function.config_read(msix + pci.PCI_MSIX_FLAGS, 2) & pci.PCI_MSIX_FLAGS_QSIZE) + 1
        start = pba & pci.PCI_MSIX_PBA_OFFSET
        return pba & pci.PCI_MSIX_PBA_BIR, start, start + (size + 63) // 64 * 8

    def msix_ranges(self, index: int) -> list[tuple[int, int]]:
        """Where the MSI-X table and the pending bits are in BAR ``index``: (first, end), in order."""
        return sorted(
            (start, end) for bar, start, end in (self.table, self._pending) if bar == index
        )

    @staticmethod
    def _table(function: PciFunction, msix: int) -> tuple[int, int, int]:
        """(BAR, start, end) of the MSI-X table; BAR -1 without one."""
        if not msix:
            return -1, 0, 0
        table = function.config_read(msix + pci.PCI_MSIX_TABLE, 4)
        size = (function.config_read(msix + pci.PCI_MSIX_FLAGS, 2) & pci.PCI_MSIX_FLAGS_QSIZE) + 1
        start = table & pci.PCI_MSIX_TABLE_OFFSET
        return table & pci.PCI_MSIX_TABLE_BIR, start, start + size * pci.PCI_MSIX_ENTRY_SIZE

    def check_decoding(self, index: int, command: int) -> None:
        """DecodingOff if region ``index`` does not answer with this command register."""
        if index not in self._memory:
            return
        if not command & pci.PCI_COMMAND_MEMORY and not self.virtual:
            raise DecodingOff(
                f"{self._function.name}: memory decoding is off",
                "set bit 1 of the command register",
            )
        if self.asleep():
            raise DecodingOff(f"{self._function.name} sleeps in D3hot", "put it into D0 first")

    def asleep(self) -> bool:
        """Whether the function is in D3hot."""
        if not self.power:
            return False
        state = self._function.config_read(self.power + pci.PCI_PM_CTRL, 2)
        return state & pci.PCI_PM_CTRL_STATE_MASK == 3

    def pieces(self, index: int, offset: int, count: int) -> Iterable[tuple[int, int, bool]]:
        """The range as (offset, bytes, whether it is the MSI-X table's)."""
        bar, start, end = self.table
        if index != bar or offset >= end or offset + count <= start:
            yield offset, count, False
            return
        if offset < start:
            yield offset, start - offset, False
        low, high = max(offset, start), min(offset + count, end)
        yield low, high - low, True
        if offset + count > end:
            yield end, offset + count - end, False
