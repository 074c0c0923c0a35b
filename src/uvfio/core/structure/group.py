"""Groups: the devices that an IOMMU cannot tell apart, and the open files of a group.

A group comes with its first device and goes with its last one, or with its last open file if that is
later. It belongs to no iommu context until its file is opened (or another group is merged with it).

Two predicates about use have two names (review rows 5 and 6): ``devices_in_use`` is true while a device
file is open, and blocks closing the context, unbinding, being merged; ``is_open`` is true while a group
file is open, and only keeps a merged set together. An open group file does not make the devices busy:
a program may close its device, merge the group elsewhere and open the device again.

This module has state and predicates only; the framework makes every change, under its lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import NoSuchDevice, NotViable

if TYPE_CHECKING:
    from uvfio.core.seams import Mm
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.iommu import Iommu

__all__ = ["Group", "OpenGroup"]

# Drivers of the host that use no DMA of their devices, so that VFIO may have it.
HARMLESS = frozenset({"", "pci-stub", "pcieport"})


class OpenGroup:
    """One open group file: its group, and the address space that opened it.

    ``joined``: a merge was made through this file, so the group stays in its set while it is open.
    ``exclusive``: the group cannot be opened again; ``orphan``: its group has lost its last VFIO device (both of
    the mainline interface, see ``core/structure/container.py``).
    """

    __slots__ = ("exclusive", "group", "joined", "mm", "orphan")

    def __init__(self, group: Group, mm: Mm, exclusive: bool = False) -> None:
        self.group = group
        self.mm = mm
        self.joined = False
        self.exclusive = exclusive
        self.orphan = False


class Group:
    """One IOMMU group of one bus. ``devices`` has the newest first, as lookups by name expect."""

    __slots__ = ("bus", "devices", "iommu", "minor", "node_name", "number", "opens")

    def __init__(self, bus: str, number: int, minor: int, node_name: str) -> None:
        self.bus = bus
        self.number = number
        self.minor = minor
        self.node_name = node_name
        self.devices: list[Device] = []
        self.opens: list[OpenGroup] = []
        self.iommu: Iommu | None = None

    @property
    def is_open(self) -> bool:
        """Whether any group file is open."""
        return bool(self.opens)

    @property
    def devices_in_use(self) -> bool:
        """Whether any device file of the group is open."""
        return any(device.in_use for device in self.devices)

    @property
    def departing(self) -> bool:
        """Whether an unbind of a device of the group is waiting."""
        return any(device.departing for device in self.devices)

    @property
    def tainted(self) -> str:
        """The reason why the group is unusable until the device leaves it, or empty."""
        return next((device.taint for device in self.devices if device.taint), "")

    @property
    def viable(self) -> bool:
        """Whether every device is bound to a VFIO driver (and there is one)."""
        return bool(self.devices) and all(d.bound and not d.taint for d in self.devices)

    def check_viable(self) -> None:
        """NotViable with the device that is not bound, NoSuchDevice for an empty group."""
        if not self.devices:
            raise NoSuchDevice(f"group {self} has no devices any more")
        for device in self.devices:
            if device.taint:
                raise NotViable(f"group {self} is tainted: {device.taint}")
            if not device.bound:
                raise NotViable(
                    f"group {self} is not viable: {device.name} is not bound to a VFIO driver",
                    f"bind {device.name} to {device.driver.name}",
                )

    @property
    def foreigner(self) -> Device | None:
        """A device whose DMA belongs to a driver of the host. Drivers that use no DMA do not count."""
        return next((d for d in self.devices if d.host_driver not in HARMLESS), None)

    @property
    def unprotected(self) -> bool:
        """Whether a device of it has no IOMMU in front of it."""
        return any(device.dev.unit is None for device in self.devices)

    def held_by(self, owner: Mm | None) -> bool:
        """Whether the owner of the context holds this group open, or merged it through an open file."""
        return any(held.joined or held.mm is owner for held in self.opens)

    def __str__(self) -> str:
        return self.node_name

    def __repr__(self) -> str:
        return f"<Group {self.bus}:{self.number}>"
