"""What the core asks of a bus and of a VFIO driver: protocols, and the small types that they speak of.

``BusDevice`` is a device as its bus presents it, ``VfioDriver`` the driver that may bind to it, and ``BoundDevice`` the
device with that driver: the operations that every interface needs, and all that the RFC of 2011 needs.

The mainline interfaces need more. A bound device implements these protocols in addition, as far as it can:

    IrqDevice        ``SET_IRQS`` in one vocabulary; regions and information come from ``BoundDevice``
    MainlineDevice   accesses, stores by eventfd, bus resets and low power as well: everything vfio-pci has
    TakesToken       it may want a VF token before it is opened
    DeviceTree       it comes from a device tree, and its resources have nodes there
    Movable          what migration saves and stops

Requests arrive in terms of regions, interrupts and events. Which ioctl of which interface they come from is not visible
here, and no driver may depend on it.

``SET_IRQS`` is an *action* on ``count`` interrupts from ``start``, and *data* that selects among them: all (None),
those whose byte is not 0 (bytes), or the event that each is connected with (``EventSource``).

This module has no state and no rule. The framework's own record of a device is in ``core/structure/device.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from uvfio.core.seams import Event
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit

__all__ = [
    "Activity",
    "BoundDevice",
    "BusDevice",
    "Dependent",
    "DeviceKind",
    "DeviceTree",
    "DtProperty",
    "EventSource",
    "IrqAction",
    "IrqData",
    "IrqDevice",
    "IrqInfo",
    "MainlineDevice",
    "Movable",
    "Region",
    "ResourceKind",
    "TakesToken",
    "VfioDriver",
]

# -- what every interface needs ------------------------------------------------------------------


class DeviceKind(Enum):
    """What kind of bus a device sits on."""

    PCI = "pci"
    PLATFORM = "platform"


class ResourceKind(Enum):
    """What an index counts."""

    REGION = "region"
    IRQ = "irq"


class DtProperty(Enum):
    """The property of a device tree node that a resource is an entry of."""

    REG = "reg"
    RANGES = "ranges"
    INTERRUPTS = "interrupts"
    INTERRUPT_MAP = "interrupt-map"


@dataclass(frozen=True, slots=True)
class Region:
    """One region of a device file. ``size`` is in bytes; 0: not implemented.

    ``mappable``: a program may map it (plain memory, or registers that are polled); every other region is reached by
    read and write only. ``areas``: (offset, size) of the parts that may be mapped, if not all of it. ``msix_table``:
    the MSI-X table is in it, and may be mapped too. ``registers``: the device acts on each access.
    """

    index: int
    size: int
    readable: bool = True
    writable: bool = True
    mappable: bool = False
    areas: tuple[tuple[int, int], ...] = ()
    msix_table: bool = False
    registers: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One interrupt index. ``count`` 0: not implemented. ``level``: maskable, masks itself when it fires.
    ``name`` is for messages: "INTx"."""

    index: int
    count: int
    level: bool = False
    name: str = ""


class BusDevice(Protocol):
    """A device as its bus presents it (the kernel's ``struct device``)."""

    @property
    def name(self) -> str:
        """Unique on its bus: "0000:06:0d.0" on PCI."""

    @property
    def bus(self) -> str:
        """Name of the bus type: "pci", "platform"."""

    @property
    def group(self) -> int | None:
        """IOMMU group number, unique within the bus; None when no IOMMU serves the device."""

    @property
    def unit(self) -> IommuUnit | None:
        """The IOMMU in front of the device."""

    def attach(self, domain: Domain) -> None:
        """Route the device's DMA through ``domain``. May raise any condition; nothing has changed then."""

    def detach(self) -> None:
        """Block the device's DMA: every access faults."""


class BoundDevice(Protocol):
    """A device that is bound to a VFIO driver; what the RFC calls ops plus device_data.

    Every method may raise a condition of ``uvfio.errors``. All calls except ``request`` arrive with the device's lock
    held; ``get`` and ``put`` pair up per open file.
    """

    @property
    def kind(self) -> DeviceKind:
        """The kind of bus that the device sits on."""

    @property
    def resettable(self) -> bool:
        """Whether ``reset`` can work."""

    @property
    def num_regions(self) -> int:
        """How many regions the device file has."""

    @property
    def num_irqs(self) -> int:
        """How many interrupt indexes the device has."""

    def get(self) -> None:
        """Count one more open device file. The first one enables the device."""

    def put(self) -> None:
        """Count one less. The last one quiesces and restores the device."""

    def region(self, index: int) -> Region:
        """Describe it. InvalidArgument for an index that does not exist."""

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Read up to ``count`` bytes of region ``index``; fewer only at the end of regions that truncate."""

    def write(self, index: int, offset: int, data: bytes) -> int:
        """Write ``data``; returns the number of bytes taken."""

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes of a mappable region at ``offset``. InvalidArgument for any other range."""

    def irq(self, index: int) -> IrqInfo:
        """Describe it. InvalidArgument for an index that does not exist."""

    def check_irqs(self, index: int, count: int) -> None:
        """Check what SET_IRQ_EVENTFDS rejects before it reads descriptors; may drop what is set (2011 INTx)."""

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        """Bind ``events`` to interrupts 0..n-1 of ``index``; an empty sequence unbinds and disables.

        Takes over the references on success only.
        """

    def unmask_irq(self, index: int) -> None:
        """Unmask a level interrupt; it fires again if its wire is still asserted."""

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Unmask interrupt ``index`` at each signal of ``event``; None ends that."""

    def reset(self) -> None:
        """Reset the device. Unsupported if it has no way to be reset."""

    def request(self, count: int) -> None:
        """Ask the program for the device, for the ``count``-th time. Called on any thread, without the lock."""


@runtime_checkable
class DeviceTree(Protocol):
    """A ``BoundDevice`` that comes from a device tree: where its resources are described.

    Resources may belong to nodes below the one that was assigned. InvalidArgument for an index that the
    device does not have.
    """

    def dt_path(self, kind: ResourceKind, index: int) -> str:
        """The full path of the node: "/soc/timer@10010000"."""

    def dt_index(self, kind: ResourceKind, index: int) -> tuple[DtProperty, int]:
        """The property of that node, and which of its entries, from 0."""


class VfioDriver(Protocol):
    """A VFIO bus driver (vfio-pci): it recognises its devices and takes hot-plugged ones."""

    @property
    def name(self) -> str:
        """The name of the driver: "vfio-pci"."""

    def match(self, dev: BusDevice, name: str) -> bool:
        """Whether ``name``, given by a program to GET_DEVICE_FD, means ``dev``."""

    def bind_hotplugged(self, dev: BusDevice) -> None:
        """Bind to ``dev``, which was plugged into a group in use. May raise."""


# -- what the mainline interfaces need besides ---------------------------------------------------

EventSource = Callable[[int], "Event | None"]
"""The program's event for the n-th interrupt of a call, or None where it gave -1. Asking gives a reference of our own
and may fail (BadDescriptor, InvalidArgument), so a driver asks after all other checks."""

IrqData = bytes | EventSource | None


class Activity(Enum):
    """The things a device may do by itself while it migrates (``core/migration/states.py``).

    FULL: everything. QUIET: answer, but start nothing: no DMA, no time passes. STOPPED: nothing; its memory and its
    configuration space answer.
    """

    FULL = "full"
    QUIET = "quiet"
    STOPPED = "stopped"


class Movable(Protocol):
    """The part of migration that a model and its driver have in common."""

    @property
    def identity(self) -> str:
        """Equal for devices that can take each other's data: model, options, layout."""

    @property
    def resets(self) -> int:
        """How often the device was reset by a write to configuration space."""

    @property
    def memories(self) -> Mapping[int, memoryview]:
        """The bytes of BARs that are plain memory, mappable or not."""

    def quiesce(self, activity: Activity) -> None:
        """Restrict the device to ``activity``; resets do not change that. Time that it measures stands still
        meanwhile."""


class IrqAction(Enum):
    """The action of SET_IRQS on the interrupts that its data selects."""

    MASK = "mask"
    UNMASK = "unmask"
    TRIGGER = "trigger"


@dataclass(frozen=True, slots=True)
class Dependent:
    """A device that is reset with another one, and where it sits."""

    dev: BusDevice
    segment: int
    bus: int
    devfn: int


@runtime_checkable
class TakesToken(Protocol):
    """A bound device that a program may have to present a VF token for, besides access to its group.

    A device without this protocol takes no token."""

    def check_token(self, token: bytes | None) -> None:
        """Check the VF token, 16 bytes or None. WrongToken if it differs, InvalidArgument if none is wanted."""

    def set_token(self, token: bytes | None) -> None:
        """Set the token that later opens must present. UnknownCommand for a device that has none; None only
        checks that."""


@runtime_checkable
class IrqDevice(Protocol):
    """Interrupts as the mainline interfaces set them. Calls arrive with the device's lock held."""

    def irq_count(self, index: int) -> int:
        """The number of interrupts of this kind. InvalidArgument for a kind that does not exist."""

    def irq_resizable(self, index: int) -> bool:
        """Whether a set of this kind may grow while it is in use."""

    def apply_irqs(
        self, index: int, action: IrqAction, start: int, count: int, data: IrqData
    ) -> None:
        """Do ``action``. The range is inside ``irq_count``. UnknownCommand for what the kind cannot do at all,
        InvalidArgument for what it cannot do now, NoVectors, what an ``EventSource`` raises."""


@runtime_checkable
class MainlineDevice(IrqDevice, Protocol):
    """See the module's head. Calls arrive with the device's lock held."""

    def load(self, index: int, offset: int, count: int) -> bytes:
        """Read; registers with accesses of up to 8 bytes.

        InvalidArgument outside of a region, BadAddress outside of configuration space, DecodingOff where the
        program has switched the region off. Fewer bytes than ``count`` at the end of a region.
        """

    def store(self, index: int, offset: int, data: bytes) -> int:
        """Write; errors as ``load``. Returns the number of bytes taken."""

    def set_ioevent(
        self, index: int, offset: int, width: int, value: int, event: Callable[[], Event] | None
    ) -> None:
        """Each signal of the event stores ``value``; None ends what exactly these arguments began.

        InvalidArgument for places that cannot have one, Overlap if there is one, NoSuchDevice if there is none to
        end, NoSpace for too many, then what getting the event raises.
        """

    def reset_scope(self, others: Iterable[BusDevice]) -> list[Dependent] | None:
        """The devices of ``others`` that a reset of this device's bus resets; None if the bus cannot be reset."""

    def bus_reset(self) -> None:
        """Reset the device with its bus. The state that the program configured is restored afterwards."""

    def enter_low_power(self, wakeup: Event | None) -> None:
        """Put the device into low power; ``wakeup`` is signalled when it wakes. InvalidArgument if it is there."""

    def leave_low_power(self) -> None:
        """Leave low power; nothing if the device is not there."""
