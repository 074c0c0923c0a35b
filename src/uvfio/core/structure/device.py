"""Devices: what a bus offers (``BusDevice``), what a VFIO driver makes of it (``BoundDevice``), and the
framework's own record that joins the two (``Device``).

Life of a record: ``add`` -> unbound -> ``bind`` -> bound -> ``unbind`` -> unbound -> ``del``. It is *in use*
while a device file is open. It may be *gone* (unplugged while bound): then it takes no new opens and
``del`` is finished by ``unbind``. It may be *reserved* for its group's owner: hot-added while the group is
used, so that no other driver may have it.

A record does not know files, ABIs or doors. Its group is the only way to its iommu context: there is no
second pointer that could disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from threading import RLock
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from uvfio.core.seams import Event
    from uvfio.core.structure.group import Group
    from uvfio.core.structure.iommu import Iommu
    from uvfio.core.structure.iommufd import Context
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.unit import IommuUnit

__all__ = [
    "BoundDevice",
    "BusDevice",
    "Device",
    "DeviceKind",
    "DeviceTree",
    "DtProperty",
    "IrqInfo",
    "OpenCdev",
    "OpenDevice",
    "Region",
    "ResourceKind",
    "VfioDriver",
]


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
    """One region of a device file. ``size`` 0: not implemented. ``mappable``: a program may map it, plain memory
    or registers that are polled; everything else is reached by read and write only. ``areas``: (offset, size) of
    the parts that may be mapped, if not all of it. ``msix_table``: the MSI-X table is in it, and may be mapped too."""

    index: int
    size: int
    readable: bool = True
    writable: bool = True
    mappable: bool = False
    areas: tuple[tuple[int, int], ...] = ()
    msix_table: bool = False


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One interrupt index. ``count`` 0: not implemented. ``level``: maskable, masks itself when it fires.
    ``name`` is what people call it: "INTx"."""

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
        """From now on the device's DMA goes through ``domain``. May raise; then nothing changed."""

    def detach(self) -> None:
        """The device's DMA leads nowhere."""


class BoundDevice(Protocol):
    """A device in the hands of a VFIO driver; what the RFC calls ops plus device_data.

    Every method may raise a condition of ``uvfio.errors``. Calls arrive with the device's lock held, but
    for ``request``; ``get`` and ``put`` pair up per open file.
    """

    @property
    def kind(self) -> DeviceKind: ...

    @property
    def resettable(self) -> bool: ...

    @property
    def num_regions(self) -> int: ...

    @property
    def num_irqs(self) -> int: ...

    def get(self) -> None:
        """A device file is being opened. The first one enables the device."""

    def put(self) -> None:
        """A device file was closed. The last one quiesces and restores the device."""

    def region(self, index: int) -> Region:
        """InvalidArgument for an index that does not exist."""

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes of region ``index``; fewer only at the end of regions that truncate."""

    def write(self, index: int, offset: int, data: bytes) -> int:
        """The number of bytes taken."""

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes of a mappable region at ``offset``. InvalidArgument else."""

    def irq(self, index: int) -> IrqInfo:
        """InvalidArgument for an index that does not exist."""

    def check_irqs(self, index: int, count: int) -> None:
        """What SET_IRQ_EVENTFDS rejects before it looks at descriptors; may drop what is set (2011 INTx)."""

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        """Bind ``events`` to interrupts 0..n-1 of ``index``; an empty sequence unbinds and disables.

        Takes over the references on success only.
        """

    def unmask_irq(self, index: int) -> None: ...

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Each signal of ``event`` unmasks interrupt ``index``; None ends that."""

    def reset(self) -> None:
        """Unsupported if the device has no way to be reset."""

    def request(self, count: int) -> None:
        """Somebody wants the device back, for the ``count``-th time. Comes from any thread, without the lock."""


@runtime_checkable
class DeviceTree(Protocol):
    """What a ``BoundDevice`` answers besides when it comes from a device tree: where its resources stem from.

    Resources may belong to nodes below the one that was assigned. InvalidArgument for an index that the
    device does not have.
    """

    def dt_path(self, kind: ResourceKind, index: int) -> str:
        """The full path of the node: "/soc/timer@10010000"."""

    def dt_index(self, kind: ResourceKind, index: int) -> tuple[DtProperty, int]:
        """The property of that node, and which of its entries, from 0."""


class VfioDriver(Protocol):
    """A VFIO bus driver (vfio-pci): how it recognises its devices and takes a hot-plugged one."""

    @property
    def name(self) -> str: ...

    def match(self, dev: BusDevice, name: str) -> bool:
        """Whether ``name``, given by a program to GET_DEVICE_FD, means ``dev``."""

    def claim(self, dev: BusDevice) -> None:
        """Bind to ``dev``, which was plugged into a group in use. May raise."""


class OpenDevice:
    """One open device file. ``data`` turns None when the device is taken away from its user, ``ready`` true
    when the driver has enabled the device for it. Both are changed under the device's lock."""

    __slots__ = ("data", "device", "ready")

    def __init__(self, device: Device, data: BoundDevice) -> None:
        self.device = device
        self.data: BoundDevice | None = data
        self.ready = False


class OpenCdev:
    """One open node of a device. ``opened`` is there while it is bound to an iommufd, ``gone`` is true once the device
    has been taken from its VFIO driver: then the file is good for nothing."""

    __slots__ = ("context", "device", "gone", "opened")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.opened: OpenDevice | None = None
        self.context: Context | None = None
        self.gone = False


class Device:
    """The framework's record of one added device. Fields are changed under the framework's lock.

    ``lock`` serialises the driver's callbacks for this device (open, close, reset, release), so that a
    slow reset does not hold up the framework; it is taken before the framework's lock, never inside it.
    ``taint`` says why the device makes its group unusable although it looks bound, or is empty.
    ``host_driver`` is the driver of the host that has the device, or empty. ``cdevs`` are the open files of the
    device's own node: whoever has one has not let go of the device, bound or not.
    """

    __slots__ = (
        "attached",
        "cdevs",
        "data",
        "departing",
        "dev",
        "driver",
        "gone",
        "group",
        "host_driver",
        "lock",
        "opens",
        "requests",
        "reserved",
        "taint",
    )

    def __init__(self, dev: BusDevice, driver: VfioDriver, group: Group) -> None:
        self.dev = dev
        self.driver = driver
        self.group = group
        self.lock = RLock()
        self.data: BoundDevice | None = None
        self.attached = False
        self.opens: list[OpenDevice] = []
        self.cdevs: list[OpenCdev] = []
        self.gone = False
        self.reserved = False
        self.departing = 0
        self.requests = 0
        self.taint = ""
        self.host_driver = ""

    @property
    def name(self) -> str:
        return self.dev.name

    @property
    def iommu(self) -> Iommu | None:
        return self.group.iommu

    @property
    def bound(self) -> bool:
        """Whether a VFIO driver has it: the condition for its group's viability."""
        return self.data is not None

    @property
    def in_use(self) -> bool:
        """Whether a device file is open (review row 6: the missing dev_inuse)."""
        return bool(self.opens)

    def __repr__(self) -> str:
        return f"<Device {self.name} of group {self.group.bus}:{self.group.number}>"
