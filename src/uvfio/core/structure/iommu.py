"""``Iommu``: the context that groups share: a domain, an owner, the groups in it.

Life of the 2011 kind (``Lifetime.WITH_USERS``)::

    closed --open(mm)--> open: domain attached to every device of every group, owner = mm
    open --last iommu or device file closed--> closed: mappings gone, devices detached
    one group --attach_group--> a set; the owner stays while the set has more than one group

The states and their transitions are in ``core/structure/lifetime.py``; each operation here reports its event there,
and an illegal one is refused before anything changes. ``attach_group`` and ``detach_group`` are the only functions that
change ``group.iommu``.

Invariants, kept by the framework (``_settle``): a domain exists exactly while an iommu file or a device
file is open; a set of several groups has an owner; each group points back to its context.

A container (``Lifetime.WITH_HANDLE``, ``core/structure/container.py``) is made by its handle; groups enter and leave. A
claim of an iommufd (``core/structure/claim.py``) is one as well, with one group; it overrides ``joined``, ``owns_dma``,
``admit``, ``depart`` and ``forget_closed``.

``attach_group`` and ``detach_group`` are the two structural operations (review rows 9 and 10); MERGE and
UNMERGE of the 2011 ABI and SET/UNSET_CONTAINER of mainline are made of them. Changes happen under the
framework's lock, mappings under the domain's.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from uvfio.core.structure.lifetime import LIFE_2011, Event, Life, State
from uvfio.errors import Busy, Gone, InvalidArgument, NoMemory, NotOwner, UnsafeInterrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Mm
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group
    from uvfio.core.structure.lifetime import Table
    from uvfio.core.translation.domain import Domain

__all__ = ["Iommu", "Lifetime", "OpenIommu"]


class Lifetime(Enum):
    """The kind of file that the mappings live as long as."""

    WITH_USERS = "dies with its last device or iommu file"
    WITH_HANDLE = "dies with its handle"


class OpenIommu:
    """One open iommu file. ``iommu`` turns None when the context is taken away from its user."""

    __slots__ = ("iommu",)

    def __init__(self, iommu: Iommu) -> None:
        self.iommu: Iommu | None = iommu


class Iommu:
    """A context. ``new_domain`` makes an empty domain; ``allow_unsafe`` accepts missing remapping."""

    LIFE: ClassVar[Table] = LIFE_2011

    __slots__ = (
        "_new_domain",
        "allow_unsafe",
        "domain",
        "groups",
        "life",
        "lifetime",
        "opens",
        "owner",
    )

    def __init__(
        self,
        new_domain: Callable[[], Domain],
        *,
        allow_unsafe: bool = False,
        lifetime: Lifetime = Lifetime.WITH_USERS,
    ) -> None:
        self._new_domain = new_domain
        self.allow_unsafe = allow_unsafe
        self.lifetime = lifetime
        self.life = Life(self.LIFE)
        self.groups: list[Group] = []
        self.domain: Domain | None = None
        self.owner: Mm | None = None
        self.opens: list[OpenIommu] = []

    # -- predicates ------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether mappings must live: an iommu file or a device file of any member is open."""
        return bool(self.opens) or any(group.devices_in_use for group in self.groups)

    @property
    def state(self) -> State:
        """The state of its life (``core/structure/lifetime.py``)."""
        return self.life.state

    @property
    def holder(self) -> str:
        """The name of the address space to show as its owner, or "": that which owns it."""
        return self.owner.name if self.owner is not None else ""

    @property
    def viable(self) -> bool:
        """Whether every device of every member is bound to a VFIO driver."""
        return bool(self.groups) and all(group.viable for group in self.groups)

    @property
    def joined(self) -> bool:
        """Whether its groups were put into it, by their files."""
        return True

    @property
    def owns_dma(self) -> bool:
        """Whether no driver of the host may have a device of its groups."""
        return self.domain is not None or self.lifetime is Lifetime.WITH_HANDLE

    @property
    def departing(self) -> bool:
        """Whether a device of any member is being taken away."""
        return any(group.departing for group in self.groups)

    def check_viable(self) -> None:
        """NotViable, NoSuchDevice, or Gone while a device is being taken away."""
        for group in self.groups:
            group.check_viable()
        for group in self.groups:
            for device in group.devices:
                if device.departing:
                    raise Gone(
                        f"{device.name} is being taken away; group {group} takes no new users"
                    )

    def check_owner(self, mm: Mm) -> None:
        """NotOwner unless the context is free or ``mm`` owns it."""
        if self.owner is not None and self.owner is not mm:
            raise NotOwner(
                f"{self._names()} belongs to another process ({self.owner.name})",
                "it becomes free when that process closes its files",
            )

    def _names(self) -> str:
        return "group " + "+".join(str(group) for group in reversed(self.groups))

    # -- life ------------------------------------------------------------------------------------

    def open(self, mm: Mm) -> Domain:
        """Make the domain, attach every device, take ownership. Undone completely on any error.

        Order: not viable, already open, no IOMMU (NoMemory), attach errors, UnsafeInterrupts.
        """
        self.check_viable()
        self.life.check(Event.OPEN, self._names())
        self._make_domain()
        self.life.step(Event.OPEN, self._names())
        self.owner = mm
        assert self.domain is not None
        return self.domain

    def _make_domain(self) -> None:
        """A domain with every device attached, or nothing: NoMemory, attach errors, UnsafeInterrupts."""
        if any(device.dev.unit is None for group in self.groups for device in group.devices):
            raise NoMemory(f"{self._names()}: no IOMMU serves its bus")
        self.domain = self._new_domain()
        try:
            for group in self.groups:
                self._attach_devices(group)
            self._check_interrupts()
        except BaseException:
            self._drop_domain()
            raise

    def _check_interrupts(self) -> None:
        """UnsafeInterrupts if a device of an open context could send any interrupt and must not."""
        if self.domain:
            self._check_remapping(self._names(), self.domain.interrupt_remapping)

    def _check_remapping(self, who: str, remapped: bool) -> None:
        if not self.allow_unsafe and not remapped:
            raise UnsafeInterrupts(
                f"{who}: the IOMMU does not remap interrupts",
                "set allow_unsafe_interrupts = true in the machine file if that is acceptable",
            )

    def close(self) -> None:
        """Detach the devices and drop domain and mappings, if there are any; the owner stays."""
        self.life.step(Event.CLOSE, self._names())
        self._drop_domain()

    def _drop_domain(self) -> None:
        if self.domain is None:
            return
        self.domain.close()
        for group in self.groups:
            for device in group.devices:
                device.attached = False
                device.reserved = False
        self.domain = None

    # -- membership ------------------------------------------------------------------------------

    def admit(self, device: Device) -> None:
        """Check that a device of a member may be opened. InvalidArgument as long as there is no domain."""
        if self.domain is None:
            raise InvalidArgument(f"the container of group {device.group} has no IOMMU yet")

    def depart(self, group: Group) -> bool:
        """Whether a member may leave at once (vfio_group_detach_container). Busy while a device of it is open."""
        if group.devices_in_use:
            names = ", ".join(d.name for d in group.devices if d.in_use)
            raise Busy(f"group {group} cannot leave: {names} is open", "close its device files")
        return True

    def forget_closed(self) -> None:
        """Take note that device files may have been closed."""

    def attach_group(self, group: Group) -> None:
        """Add a group that is in no context; if the domain exists its devices are attached to it."""
        self.life.step(Event.ENTER, self._names())
        self.groups.insert(0, group)
        group.iommu = self
        try:
            self._attach_devices(group)
        except BaseException:
            self.detach_group(group)
            raise

    def detach_group(self, group: Group) -> None:
        """Take a member out; its devices lose the domain, the others keep their mappings."""
        self.life.step(self._leaving(), self._names())
        for device in group.devices:
            self.detach_device(device)
        self.groups.remove(group)
        group.iommu = None

    def _leaving(self) -> Event:
        """The event that it is for this context when one more of its groups leaves."""
        match len(self.groups):
            case 0 | 1:
                return Event.LEAVE_LAST
            case 2:
                return Event.DISSOLVE
            case _:
                return Event.LEAVE

    def attach_device(self, device: Device) -> None:
        """Attach one device to the domain, if there is one and it is not attached."""
        if self.domain is not None and not device.attached:
            self.domain.attach(device.dev)
            device.attached = True

    def detach_device(self, device: Device) -> None:
        """Detach one device, if it is attached."""
        if self.domain is not None and device.attached:
            self.domain.detach(device.dev)
        device.attached = False
        device.reserved = False

    def _attach_devices(self, group: Group) -> None:
        for device in group.devices:
            self.attach_device(device)
