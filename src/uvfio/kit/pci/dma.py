"""A PCI function's way to memory: its gate is open while bus mastering is on and the function is not in D3hot.

A read that faults sets Received Master Abort in the status register, because its completion reports that. A write is
posted: the function gets no completion, so nothing is set. The model gets a DmaFault for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import DmaFault
from uvfio.kit.dma import PlainDma
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.kit.pci.config import ConfigSpace

__all__ = ["PciDma"]


class PciDma(PlainDma):
    """Reads and writes of memory by the PCI function ``name``."""

    def __init__(self, name: str, config: ConfigSpace) -> None:
        super().__init__(name)
        self.asleep = False
        self._config = config

    def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at ``iova``. DmaFault."""
        try:
            return super().read(iova, size)
        except DmaFault:
            status = self._config.get(pci.PCI_STATUS, 2)
            self._config.put(pci.PCI_STATUS, 2, status | pci.PCI_STATUS_REC_MASTER_ABORT)
            raise

    def _closed(self) -> str:
        if self.asleep:
            return "the function is in D3hot"
        if self.quiet:
            return "the function is in a P2P state of migration"
        if not self._config.data[pci.PCI_COMMAND] & pci.PCI_COMMAND_MASTER:
            return "bus mastering is off"
        return ""
