"""The framework's record of a device (``Device``) and of the files that are open for it.

Life of a record: ``add`` -> unbound -> ``bind`` -> bound -> ``unbind`` -> unbound -> ``del``. It is *in use*
while a device file is open. It may be *gone* (unplugged while bound): then it takes no new opens and
``del`` is finished by ``unbind``. It may be *reserved* for its group's owner: it was hot-added while the group was
used, and no other driver may bind to it.

A record does not refer to files, ABIs or doors. Its group is the only way to its iommu context: there is no
second pointer that could disagree. What a bus and a VFIO driver have to implement is in ``core/bus.py``.
"""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvfio.core.bus import BoundDevice, BusDevice, VfioDriver
    from uvfio.core.structure.group import Group
    from uvfio.core.structure.iommu import Iommu
    from uvfio.core.structure.iommufd import Iommufd

__all__ = ["Device", "OpenCdev", "OpenDevice"]


class OpenDevice:
    """One open device file. ``data`` turns None when the device is taken away from its user, ``ready`` true
    when the driver has enabled the device for it. Both are changed under the device's lock."""

    __slots__ = ("data", "device", "ready")

    def __init__(self, device: Device, data: BoundDevice) -> None:
        self.device = device
        self.data: BoundDevice | None = data
        self.ready = False


class OpenCdev:
    """One open node of a device. ``opened`` and ``iommufd`` are set while it is bound to an iommufd. ``gone`` is true
    once the device has been taken from its VFIO driver: every request of the file fails from then on."""

    __slots__ = ("device", "gone", "iommufd", "opened")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.opened: OpenDevice | None = None
        self.iommufd: Iommufd | None = None
        self.gone = False


class Device:
    """The framework's record of one added device. Fields are changed under the framework's lock.

    ``lock`` serialises the driver's callbacks for this device (open, close, reset, release), so that a
    slow reset does not hold up the framework; it is taken before the framework's lock, never inside it.
    ``taint`` is the reason why the device makes its group unusable although it is bound, or empty.
    ``host_driver`` is the name of the host's driver that is bound to the device, or empty. ``cdevs`` are the open files
    of the device's own node: each of them keeps the device with its VFIO driver, bound to an iommufd or not.
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
        """The device's name on its bus."""
        return self.dev.name

    @property
    def iommu(self) -> Iommu | None:
        """The context of the device's group, or None."""
        return self.group.iommu

    @property
    def bound(self) -> bool:
        """Whether it is bound to a VFIO driver: the condition for its group's viability."""
        return self.data is not None

    @property
    def in_use(self) -> bool:
        """Whether a device file is open (review row 6: the missing dev_inuse)."""
        return bool(self.opens)

    def __repr__(self) -> str:
        return f"<Device {self.name} of group {self.group.bus}:{self.group.number}>"
