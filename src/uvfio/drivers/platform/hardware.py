"""The platform device as its bus driver meets it: regions and interrupt lines, each from a node of a device tree.

``PlatformHardware`` is the seam between ``drivers.platform`` (software of the host) and ``models`` (silicon). A
model implements it; the driver calls it. There is no configuration space: what a PCI function would tell
about itself, a device tree tells here. Offsets, sizes and addresses are in bytes, values are little-endian
integers.

``Resources`` is what the tree gives a device. Numbers of regions and interrupts are positions in it: tree order,
the device's own node first, then the nodes below it.

The device is also a ``core.bus.BusDevice``: the framework attaches it to a domain, and its DMA goes
through that domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.core.bus import BusDevice, DtProperty

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

if TYPE_CHECKING:
    from uvfio.core.bus import Activity
    from uvfio.core.translation.dma_log import DmaLog

__all__ = [
    "InterruptSink",
    "MigratableHardware",
    "Origin",
    "PlatformHardware",
    "PlatformInterrupt",
    "PlatformRegion",
    "Resources",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a resource stems from: entry number ``entry`` of property ``prop`` of the node at ``path``."""

    path: str
    prop: DtProperty
    entry: int

    def __str__(self) -> str:
        return f"{self.path} {self.prop.value}[{self.entry}]"


@dataclass(frozen=True, slots=True)
class PlatformRegion:
    """A range of the host's physical addresses that the device answers to.

    ``mappable``: a program may map all of it: plain memory, or with ``polled`` registers, whose accesses go through
    ``read`` and ``write`` and whose mapping the device looks after.
    """

    origin: Origin
    address: int
    size: int
    writable: bool = True
    mappable: bool = False
    polled: bool = False


@dataclass(frozen=True, slots=True)
class PlatformInterrupt:
    """A wire to input ``number`` of the host's interrupt controller. ``level``: active high; else rising edge."""

    origin: Origin
    number: int
    level: bool


@dataclass(frozen=True, slots=True)
class Resources:
    """What a device tree gives the device at node ``path``. ``source``: where that was written, for errors."""

    path: str
    regions: tuple[PlatformRegion, ...] = ()
    interrupts: tuple[PlatformInterrupt, ...] = ()
    source: str = ""

    def where(self, path: str) -> str:
        """How an error names the node at ``path``, which is the device's own or one below it."""
        prefix = f"{self.source}: " if self.source else ""
        return f'{prefix}device_tree."{path}"'


class InterruptSink(Protocol):
    """Where a device's interrupts go: the driver that is bound to it."""

    def irq(self, index: int, asserted: bool) -> bool:
        """Level interrupt ``index`` changed to this level, or edge interrupt ``index`` had an edge (True). Returns
        whether a program has an event for it."""


class PlatformHardware(BusDevice, Protocol):
    """One platform device in silicon. Its ``bus`` is "platform", its ``name`` is Linux's: "10010000.timer"."""

    lock: Any
    """A reentrant lock, which its driver uses as well: one serialises silicon and driver."""

    @property
    def path(self) -> str:
        """Full path of the device's node: "/soc/timer@10010000"."""

    @property
    def regions(self) -> Sequence[PlatformRegion]:
        """By region number."""

    @property
    def interrupts(self) -> Sequence[PlatformInterrupt]:
        """By interrupt number."""

    @property
    def resettable(self) -> bool:
        """Whether ``reset`` works on this device alone."""

    def asserted(self, index: int) -> bool:
        """The level of interrupt ``index`` now; False for an edge interrupt."""

    def read(self, index: int, offset: int, size: int) -> int:
        """An aligned access of 1, 2, 4 or 8 bytes inside region ``index``."""

    def write(self, index: int, offset: int, value: int, size: int) -> None:
        """An aligned access of 1, 2, 4 or 8 bytes inside region ``index``."""

    def memory(self, index: int) -> memoryview:
        """The bytes of a mappable region. Those of a polled one show its registers, and take stores, from now on
        until ``end_mappings``. NoMemory, NoSpace."""

    def end_mappings(self) -> None:
        """No program has a region mapped any more. Stores made until now take effect."""

    def connect(self, sink: InterruptSink | None) -> None:
        """Deliver interrupts to ``sink`` from now on."""

    def reset(self) -> None:
        """Registers take their power-on values, interrupts go low, DMA ends."""


class MigratableHardware(Protocol):
    """What a ``PlatformHardware`` has besides if its state can be moved to another one."""

    @property
    def migratable(self) -> bool:
        """Whether this one's can; without the attribute it cannot."""

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's state."""

    @property
    def memories(self) -> Mapping[int, memoryview]:
        """The bytes of regions that are plain memory, mappable or not."""

    def quiesce(self, activity: Activity) -> None:
        """Restrict the device to ``activity``; resets do not change that."""

    def log_dma(self, log: DmaLog | None) -> None:
        """Mark each DMA write in ``log``, or stop that."""

    def save_state(self) -> bytes:
        """All but memory, while stopped. Unsupported for what cannot be saved now."""

    def load_state(self, state: bytes) -> None:
        """Take over a state. InvalidArgument."""
