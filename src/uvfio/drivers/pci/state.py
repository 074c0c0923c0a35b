"""What the hardware held before a program got it, so that the next one finds the same.

Taken when a device is opened, to be written back when it is closed, and around each reset. It covers the
command register and every field that the capability tables call saved: what a program can change and what a
reset wipes. The BAR addresses come back along with it, from what ``bars.py`` has remembered since the device
was opened. Status bits, actions (a reset bit, a product data transfer) and the message interrupt enables are
not state: the former have no value to restore, the latter belong to ``interrupts.py``.

Order matters on restoring. The function must be awake (power state D0, whatever it was) before anything else is
believed, and must have its addresses before it may answer to them: power and capabilities first, BARs next, the
command register last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.drivers.pci.bars import BarRegisters
    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["SavedState"]


class SavedState:
    """The state of ``function`` at the time this object is made."""

    __slots__ = ("_bars", "_fields", "_function", "_values", "command")

    def __init__(self, function: PciFunction, layout: CapabilityMap, bars: BarRegisters) -> None:
        self._function = function
        self._bars = bars
        power = layout.find(pci.PCI_CAP_ID_PM)
        awake = power + pci.PCI_PM_CTRL if power else -1
        self._fields = sorted(layout.saved, key=lambda field: field[0] != awake)
        self._values = self._read_fields()
        if power:
            self._values[0] &= ~pci.PCI_PM_CTRL_STATE_MASK
        self.command = function.config_read(pci.PCI_COMMAND, 2)

    def restore(self, command: int | None = None) -> None:
        """Write everything back that differs, and ``command`` (default: the saved one) at the end."""
        function = self._function
        # Compared field by field right before the write: the first one may wake the function up.
        for (offset, width, mask), value in zip(self._fields, self._values, strict=True):
            if function.config_read(offset, width) & mask != value:
                function.config_write(offset, value, width)
        self._bars.restore()
        command = self.command if command is None else command
        if function.config_read(pci.PCI_COMMAND, 2) != command:
            function.config_write(pci.PCI_COMMAND, command, 2)

    def _read_fields(self) -> list[int]:
        read = self._function.config_read
        return [read(offset, width) & mask for offset, width, mask in self._fields]
