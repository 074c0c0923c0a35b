"""What a host's firmware does before an operating system starts: bus addresses for BARs, interrupt lines, decoding.

Each memory BAR, I/O BAR and expansion ROM of a plugged function gets a range of its own, aligned to its
size, from the window of its kind, and the base is written to the function's configuration space. A
window that is full leaves a BAR at 0, as firmware does; the function works regardless, because VFIO
gives programs regions and not addresses.

Decoding of memory and I/O and the report of system errors are switched on, as SeaBIOS does for every function
(pci_bios_init_device in src/fw/pciinit.c); bus mastering is left to the driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.drivers.pci.hardware import BarKind
from uvfio.drivers.pci.sriov import find
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.hardware import PciFunction
    from uvfio.drivers.pci.sriov import Sriov

__all__ = ["Firmware"]

_WINDOWS = {
    BarKind.IO: (0x1000, 0xFFFF),
    BarKind.MEMORY32: (0xC000_0000, 0xFEBF_FFFF),
    BarKind.MEMORY64: (0x38_0000_0000, 0x3F_FFFF_FFFF),
}
_SWITCHED_ON = pci.PCI_COMMAND_IO | pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_SERR


class Firmware:
    """The allocation of one machine's bus addresses."""

    def __init__(self) -> None:
        self._taken: dict[BarKind, list[tuple[int, int, str]]] = {kind: [] for kind in BarKind}

    def set_up(self, function: PciFunction) -> None:
        """Assign everything that ``function`` needs. A virtual one has what its physical one was given for it."""
        if function.physfn is not None:
            return
        sriov = find(function)
        if sriov is not None:
            self._set_up_virtual(function, sriov)
        for index, bar in function.bars.items():
            base = self._allocate(function.name, bar.kind, bar.size)
            register = pci.PCI_BASE_ADDRESS_0 + 4 * index
            function.config_write(register, base & 0xFFFFFFFF, 4)
            if bar.kind is BarKind.MEMORY64:
                function.config_write(register + 4, base >> 32, 4)
        if function.rom:
            base = self._allocate(function.name, BarKind.MEMORY32, len(function.rom))
            function.config_write(pci.PCI_ROM_ADDRESS, base, 4)
        command = function.config_read(pci.PCI_COMMAND, 2) | _SWITCHED_ON
        function.config_write(pci.PCI_COMMAND, command, 2)
        pin = function.config_read(pci.PCI_INTERRUPT_PIN, 1)
        if pin:
            slot = int(function.name[-4:-2], 16)
            function.config_write(pci.PCI_INTERRUPT_LINE, 16 + (slot + pin - 1) % 4, 1)

    def _set_up_virtual(self, function: PciFunction, sriov: Sriov) -> None:
        """One range for a BAR of all virtual functions that there can be."""
        for index, bar in function.virtual_bars.items():
            base = self._allocate(function.name, bar.kind, bar.size * sriov.total)
            sriov.set_bar(index, base & 0xFFFFFFFF)
            if bar.kind is BarKind.MEMORY64:
                sriov.set_bar(index + 1, base >> 32)

    def forget(self, name: str) -> None:
        """The function is gone; its ranges are free."""
        for kind, ranges in self._taken.items():
            self._taken[kind] = [taken for taken in ranges if taken[2] != name]

    def _allocate(self, name: str, kind: BarKind, size: int) -> int:
        first, last = _WINDOWS[kind]
        base = -first % size + first
        ranges = self._taken[kind]
        for start, end, _ in ranges:
            if base + size <= start:
                break
            base = max(base, -(end + 1) % size + end + 1)
        if base + size - 1 > last:
            return 0
        ranges.append((base, base + size - 1, name))
        ranges.sort()
        return base
