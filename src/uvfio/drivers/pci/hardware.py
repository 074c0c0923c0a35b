"""The PCI function as the bus driver meets it: physical configuration space, BARs, interrupt wires.

``PciFunction`` is the seam between ``drivers.pci`` (software of the host) and ``models`` (silicon). A
model implements it; the driver calls it. Offsets and sizes are in bytes, values are little-endian integers.

The function is also a ``core.bus.BusDevice``: the framework attaches it to a domain, and its DMA goes
through that domain while its bus master bit is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.core.bus import BusDevice, Movable
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from uvfio.core.translation.dma_log import DmaLog

__all__ = ["Bar", "BarKind", "InterruptSink", "MigratableFunction", "PciFunction", "bar_fault"]


REGION_MAX = 1 << 40
"""Bytes of the largest region: that of index n begins at n << 40 of the device file, in all ABIs."""


class BarKind(Enum):
    """The three encodings of a base address register (PCI Local Bus 3.0, 6.2.5.1)."""

    MEMORY32 = "mem32"
    MEMORY64 = "mem64"
    IO = "io"


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register. ``size`` is a power of two: at least 16 for memory, 4 for I/O.

    ``mappable``: a program may map the whole BAR, at least a page: plain memory, or with ``polled`` registers,
    whose accesses go through ``bar_read`` and ``bar_write`` and whose mapping the function looks after.
    """

    size: int
    kind: BarKind = BarKind.MEMORY32
    prefetchable: bool = False
    mappable: bool = False
    polled: bool = False


def bar_fault(index: int, bar: Bar, others: Container[int] = (), least: int = 0) -> str:
    """Why a function cannot have ``bar`` as base address register ``index``; empty if it can.

    ``others`` are the indexes of its other BARs; ``least`` is a smallest size in bytes beyond that of the
    register's encoding (PCI Local Bus 3.0, 6.2.5.1).
    """
    io, wide = bar.kind is BarKind.IO, bar.kind is BarKind.MEMORY64
    least = max(least, 4 if io else 16)
    most = 256 if io else 1 << 63
    if bar.size & bar.size - 1 or not least <= bar.size <= most:
        return f": size {bar.size:#x} is not a power of two from {least:#x} to {most:#x}"
    if bar.size > REGION_MAX:
        return f": size {bar.size:#x} exceeds {REGION_MAX:#x}, and regions of a device file are so far apart"
    if bar.size > 1 << 31 and not wide:
        return f": size {bar.size:#x} needs a 64-bit BAR"
    if not 0 <= index < pci.PCI_STD_NUM_BARS:
        return f": there are BARs 0 to {pci.PCI_STD_NUM_BARS - 1}"
    if wide and (index + 1 == pci.PCI_STD_NUM_BARS or index + 1 in others):
        return f" is 64-bit and needs BAR {index + 1} too"
    return ""


class InterruptSink(Protocol):
    """Where a function's interrupts go: the driver that is bound to it."""

    def intx(self, asserted: bool) -> bool:
        """The INTx wire changed to this level. Called on changes only. Returns whether a program has an event."""

    def msi(self, vector: int) -> bool:
        """An MSI message for ``vector`` was sent. Returns whether a program has an event for it."""

    def msix(self, vector: int) -> bool:
        """An MSI-X message for table entry ``vector`` was sent. Returns whether a program has an event for it."""


class PciFunction(BusDevice, Protocol):
    """One PCI function in silicon."""

    lock: Any
    """A reentrant lock, which its driver uses as well: one serialises silicon and driver."""

    @property
    def physfn(self) -> PciFunction | None:
        """The physical function that this virtual one belongs to, or None."""

    @property
    def config_size(self) -> int:
        """256 (conventional) or 4096 (PCI Express)."""

    @property
    def bars(self) -> Mapping[int, Bar]:
        """Implemented BARs by index 0-5; the upper half of a 64-bit BAR is not listed."""

    @property
    def virtual_bars(self) -> Mapping[int, Bar]:
        """As ``bars``, of each of its virtual functions; empty for all but physical functions."""

    @property
    def rom(self) -> bytes:
        """The expansion ROM image, power-of-two size >= 2048, or empty."""

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Ways to reset just this function, best first: "flr", "af_flr", "pm", "bus". Empty: none."""

    @property
    def intx_asserted(self) -> bool:
        """Level of the INTx wire behind the command register's disable bit."""

    def config_read(self, offset: int, size: int) -> int:
        """Physical configuration read of 1, 2 or 4 aligned bytes."""

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Physical configuration write; read-only bits keep their value."""

    def bar_read(self, index: int, offset: int, size: int) -> int:
        """An aligned access of 1, 2, 4 or 8 bytes inside BAR ``index``."""

    def bar_write(self, index: int, offset: int, value: int, size: int) -> None:
        """An aligned access of 1, 2, 4 or 8 bytes inside BAR ``index``."""

    def bar_memory(self, index: int) -> memoryview:
        """The bytes of a mappable BAR. Those of a polled one show its registers, and take stores, from now on
        until ``end_mappings``. NoMemory, NoSpace."""

    def show_mappings(self, visible: bool) -> None:
        """Whether loads and stores through mappings of BARs answer, or fault. NoMemory, NoSpace."""

    def end_mappings(self) -> None:
        """No program has a BAR mapped any more. Stores made until now take effect."""

    def connect(self, sink: InterruptSink | None) -> None:
        """Deliver interrupts to ``sink`` from now on."""

    def reset(self) -> None:
        """Function reset: registers and configuration take their power-on values."""


class MigratableFunction(Movable, Protocol):
    """What a ``PciFunction`` has besides if its state can be moved to another one."""

    @property
    def migratable(self) -> bool:
        """Whether this one's can; without the attribute it cannot."""

    def log_dma(self, log: DmaLog | None) -> None:
        """Mark each DMA write there."""

    def save_state(self) -> bytes:
        """All but memory, while stopped. Unsupported for what cannot be saved now."""

    def load_state(self, state: bytes) -> None:
        """Take over a state. InvalidArgument. The host's addresses and enable bits are to be set up again."""
