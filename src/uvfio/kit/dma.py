"""A device's way to memory: the ``self.dma`` of a model.

Addresses are I/O virtual addresses; the domain that the device is attached to translates them. In front of it is a
gate: ``PlainDma`` lets accesses out while the device is attached to a domain and not quiet (a P2P state of
migration). PCI functions have more conditions (``kit/pci/dma.py``).

Every refusal is a ``DmaFault``; nothing was transferred then, and a domain, if there is one, has recorded it.

While a ``log`` is set each write is marked there, and there are no windows: a write through one could not be logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.translation.dma_log import DmaLog
    from uvfio.core.translation.domain import Domain

__all__ = ["PlainDma"]


class PlainDma:
    """Reads and writes of memory by the device ``name``."""

    def __init__(self, name: str) -> None:
        self.domain: Domain | None = None
        self.log: DmaLog | None = None
        self.quiet = False
        self._name = name

    def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at ``iova``. DmaFault."""
        return self._gate(iova, size, False).dma_read(self._name, iova, size)

    def write(self, iova: int, data: bytes) -> None:
        """All of ``data`` to ``iova``. DmaFault."""
        domain = self._gate(iova, len(data), True)
        if self.log is None:
            domain.dma_write(self._name, iova, data)
        else:
            self._logged(iova, len(data), lambda: domain.dma_write(self._name, iova, data))

    def store(self, iova: int, value: int, width: int) -> None:
        """One aligned store of 2, 4 or 8 bytes: what hands a ring entry over. DmaFault, InvalidArgument.

        Use this for the word that tells a driver "this entry is yours": a driver that polls beside it
        never sees half of it.
        """
        domain = self._gate(iova, width, True)
        if self.log is None:
            domain.dma_store(self._name, iova, value, width)
        else:
            self._logged(iova, width, lambda: domain.dma_store(self._name, iova, value, width))

    def view(self, iova: int, size: int, *, readonly: bool = False) -> memoryview | None:
        """A window on the memory itself, or None where there is none. DmaFault: a writable window needs a mapping
        that can be written, a ``readonly`` one needs one that can be read.

        It is not checked again: a model that keeps one must give it up when its driver ends the use. A model that
        migrates must not keep any that is writable, for DMA may be logged from one access to the next.

        If the program cuts the file that is shown, the lost part reads as zeroes, and the access that finds it is
        recorded as a fault.
        """
        domain = self._gate(iova, size, not readonly)
        found = domain.dma_view(self._name, iova, size, writable=not readonly)
        return found if readonly or self.log is None else None

    def _logged(self, iova: int, size: int, write: Callable[[], None]) -> None:
        assert self.log is not None
        try:
            write()
        except DmaFault as fault:
            if fault.__cause__ is not None:  # the program's memory vanished on the way
                self.log.mark(iova, size)
            raise
        self.log.mark(iova, size)

    @property
    def name(self) -> str:
        """The device's name, which faults record."""
        return self._name

    @property
    def direct(self) -> bool:
        """Whether accesses may bypass the gate, by windows (``DmaWindows``): it is open, and writes are not logged."""
        return self.domain is not None and self.log is None and not self._closed()

    def _gate(self, iova: int, size: int, write: bool) -> Domain:
        domain = self.domain
        if domain is None:
            way = "write" if write else "read"
            raise DmaFault(
                f"dma fault: {self._name} {way} iova {iova:#x}+{size:#x}: attached to no domain"
            )
        reason = self._closed()
        if reason:
            raise domain.fault(self._name, iova, size, write, reason)
        return domain

    def _closed(self) -> str:
        """Why nothing goes out although a domain is attached; empty if it does."""
        return "the device is in a P2P state of migration" if self.quiet else ""
