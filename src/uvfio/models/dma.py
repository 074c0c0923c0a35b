"""A device's way to memory: the ``self.dma`` of a model.

Addresses are I/O virtual addresses; the domain that the device is attached to translates them. The gate in
front of it is the silicon's:

    ``PlainDma``   open while the device is attached to a domain: platform devices
    ``Dma``        besides: bus mastering on, and not in D3hot: PCI functions

Every refusal is a ``DmaFault``; nothing was transferred then, and a domain, if there is one, has recorded it.

A PCI read that faults sets Received Master Abort in the status register: its completion says so. A write is
posted and the function never hears of it, so nothing is set; the model hears of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import DmaFault
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.core.domain import Domain
    from uvfio.models.config import ConfigSpace

__all__ = ["Dma", "PlainDma"]


class PlainDma:
    """Reads and writes of memory by the device ``name``."""

    def __init__(self, name: str) -> None:
        self.domain: Domain | None = None
        self._name = name

    def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at ``iova``. DmaFault."""
        return self._gate(iova, size, False).dma_read(self._name, iova, size)

    def write(self, iova: int, data: bytes) -> None:
        """All of ``data`` to ``iova``. DmaFault."""
        self._gate(iova, len(data), True).dma_write(self._name, iova, data)

    def store(self, iova: int, value: int, width: int) -> None:
        """One aligned store of 2, 4 or 8 bytes: what hands a ring entry over. DmaFault, InvalidArgument.

        Use this for the word that tells a driver "this entry is yours": a driver that polls beside it
        never sees half of it.
        """
        self._gate(iova, width, True).dma_store(self._name, iova, value, width)

    def view(self, iova: int, size: int) -> memoryview | None:
        """A writable window on the memory itself, or None where there is none. DmaFault.

        It is not checked again: a model that keeps one must give it up when its driver ends the use.
        """
        return self._gate(iova, size, True).dma_view(self._name, iova, size)

    def _gate(self, iova: int, size: int, write: bool) -> Domain:
        domain = self.domain
        if domain is None:
            way = "write" if write else "read"
            raise DmaFault(
                f"dma fault: {self._name} {way} iova {iova:#x}+{size:#x}: attached to no domain"
            )
        return domain


class Dma(PlainDma):
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

    def _gate(self, iova: int, size: int, write: bool) -> Domain:
        domain = super()._gate(iova, size, write)
        if self.asleep:
            raise domain.fault(self._name, iova, size, write, "the function is in D3hot")
        if not self._config.data[pci.PCI_COMMAND] & pci.PCI_COMMAND_MASTER:
            raise domain.fault(self._name, iova, size, write, "bus mastering is off")
        return domain
