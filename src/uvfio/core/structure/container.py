"""Containers: the context of the mainline group interface, and the part of the framework that deals with it.

A container is an ``Iommu`` of the other lifetime: an open of /dev/vfio/vfio makes it empty, groups join
and leave it, and its mappings do not depend on open devices::

    made --join--> has groups --enable(version)--> has a domain and mappings
                     |  ^                             |
                     |  +------- last group left -----+    (domain and mappings go)
                     +--leave--> empty again

Lifetimes: an open device keeps its group in the container, whether or not the group's file is
open; a group keeps the container, whether or not the container's file is open. Rules that differ from 2011:

    a group's file        opens once; Busy also while a device of the group is open without it
    viable                no driver of the host uses the DMA of any device; devices without a driver are fine
    ownership             possession of the files; there is no owning address space
    a member's device     must be bound itself, and only the group asked is searched
    unbinding a device    waits for the files of that device alone
    a driver of the host  may not have a device while its group is in a container

Groups of devices without an IOMMU (``Group.unprotected``) have containers of their own: such a container is enabled
without a domain, nothing can be mapped, and all DMA faults. Both kinds do not mix.

A group that loses its last VFIO device is gone for VFIO: a file that is still open is an *orphan*. It leaves
the container and answers NoSuchDevice for ever; a group of that number that comes later is another one.

A refused call changes nothing. Behaviour: drivers/vfio/group.c and drivers/vfio/container.c.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from uvfio.core.bus import MainlineDevice
from uvfio.core.structure.base import Structure
from uvfio.core.structure.device import OpenDevice
from uvfio.core.structure.iommu import Iommu, Lifetime
from uvfio.core.structure.lifetime import LIFE_CONTAINER, Event, State
from uvfio.core.translation.rules_type1 import RulesType1
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice, NotOwner, NotViable

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import BoundDevice, BusDevice, Dependent
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.core.translation.domain import Domain

__all__ = ["Container", "Containers", "TakesOptions"]


@runtime_checkable
class TakesOptions(Protocol):
    """A VFIO driver that accepts options after a device's name in GET_DEVICE_FD."""

    def match_with_options(self, dev: BusDevice, text: str, data: BoundDevice) -> bool:
        """Whether ``text`` means ``dev``, which is bound as ``data``.

        InvalidArgument for options that do not suit it, WrongToken.
        """


class Container(Iommu):
    """See the module's head. ``type1`` is there while a domain is; ``file_open`` while its file is open.

    ``opener`` is the name of the address space that opened it. It has no rights by that: it is what people are shown.
    """

    LIFE = LIFE_CONTAINER

    __slots__ = ("file_open", "opener", "type1")

    def __init__(self, new_domain: Callable[[], Domain], *, allow_unsafe: bool = False) -> None:
        super().__init__(new_domain, allow_unsafe=allow_unsafe, lifetime=Lifetime.WITH_HANDLE)
        self.file_open = True
        self.type1: RulesType1 | None = None
        self.opener = ""

    @property
    def holder(self) -> str:
        """That which opened it: nobody owns a container."""
        return self.opener

    @property
    def enabled(self) -> bool:
        """Whether it has its IOMMU, or was set up to do without."""
        return self.state in (State.ENABLED, State.UNPROTECTED)

    @property
    def unprotected(self) -> bool:
        """Whether its devices have no IOMMU."""
        return any(group.unprotected for group in self.groups)

    def check_enable(self) -> None:
        """InvalidArgument if the container has no groups, or has its IOMMU."""
        self.life.check(Event.ENABLE, self._names())

    def enable(self, version: int) -> None:
        """Choose the mapping rules and make the domain.

        As ``check_enable``, then NoSuchDevice if no IOMMU is there, then attach errors.
        """
        self.check_enable()
        if self.unprotected:
            raise NoSuchDevice(
                f"{self._names()}: there is no IOMMU",
                "VFIO_NOIOMMU_IOMMU does without, and without DMA",
            )
        self._make_domain()
        assert self.domain is not None
        self.type1 = RulesType1(self.domain, version)
        self.life.step(Event.ENABLE, self._names())

    def enable_without(self) -> None:
        """Do without an IOMMU. As ``check_enable``, then NoSuchDevice if there is one."""
        self.check_enable()
        if not self.unprotected:
            raise NoSuchDevice(f"{self._names()}: the devices are behind an IOMMU", "choose type1")
        self.life.step(Event.ENABLE_UNPROTECTED, self._names())

    def admit(self, device: Device) -> None:
        """Check that a device of a member may be opened. InvalidArgument before SET_IOMMU."""
        if not self.enabled:
            raise InvalidArgument(f"the container of group {device.group} has no IOMMU yet")

    def attach_group(self, group: Group) -> None:
        """NotOwner if one has an IOMMU in front of it and the others do not; then attach errors."""
        if self.groups and self.unprotected != group.unprotected:
            raise NotOwner(
                f"group {group} cannot join {self._names()}: one side is behind an IOMMU",
                "use a container for each",
            )
        super().attach_group(group)
        try:
            self._check_interrupts()
        except BaseException:
            self.detach_group(group)
            raise

    def close(self) -> None:
        """The last group has left: domain and mappings go."""
        self.type1 = None
        self._drop_domain()

    def _leaving(self) -> Event:
        return Event.LEAVE if len(self.groups) > 1 else Event.LEAVE_LAST


class Containers(Structure):
    """The part of the framework that serves the mainline group interface."""

    # -- containers ------------------------------------------------------------------------------

    def open_container(self) -> Container:
        """An empty container (vfio_fops_open)."""
        return Container(self._new_domain, allow_unsafe=self.allow_unsafe_interrupts)

    def close_container(self, container: Container) -> None:
        """Its file is closed; it lives on while it has groups (vfio_fops_release)."""
        container.file_open = False

    def enable_container(self, container: Container, version: int) -> None:
        """Choose version 1 or 2 of the mapping rules (vfio_ioctl_set_iommu). See ``Container.enable``."""
        with self.lock:
            container.enable(version)

    def enable_unprotected(self, container: Container) -> None:
        """Let the container do without one. See ``Container.enable_without``; NoSuchDevice if the
        machine does not allow it."""
        with self.lock:
            container.check_enable()
            if not self.noiommu:
                raise NoSuchDevice("containers without an IOMMU are not allowed")
            container.enable_without()

    # -- groups ----------------------------------------------------------------------------------

    def make_exclusive(self, held: OpenGroup) -> None:
        """Make an ordinary open exclusive: its file turned out to be used by the mainline interface.

        Busy if the group is open elsewhere or its 2011 context is used. Nothing if it is exclusive already.
        """
        with self.lock:
            group = held.group
            if held.exclusive:
                return
            iommu = group.iommu
            assert iommu is not None, "an ordinary open has a context"
            if len(group.opens) > 1 or len(iommu.groups) > 1 or iommu.domain is not None:
                raise Busy(f"group {group} is open already", "the mainline ABI opens a group once")
            iommu.detach_group(group)
            held.exclusive = True

    def make_shared(self, held: OpenGroup) -> None:
        """Make an exclusive open an ordinary one, with a context of 2011. Busy inside a container."""
        with self.lock:
            group = held.group
            if not held.exclusive:
                return
            if held.orphan:
                raise NoSuchDevice(f"group {group} has lost its devices")
            if group.iommu is not None:
                raise Busy(f"group {group} is in a container", "unset it first")
            self._new_iommu().attach_group(group)
            held.exclusive = False

    def group_status(self, held: OpenGroup) -> tuple[bool, bool]:
        """(viable, in a container). NoSuchDevice for an orphan."""
        with self.lock:
            self._check_orphan(held)
            iommu = held.group.iommu
            inside = iommu is not None and iommu.joined
            return inside or (iommu is None and held.group.foreigner is None), inside

    def join(self, held: OpenGroup, container: Container) -> None:
        """Put the group into the container (vfio_container_attach_group).

        Order: InvalidArgument if it is in one, NoSuchDevice for an orphan, NotViable, attach errors.
        """
        with self.lock:
            group = held.group
            self.check_no_container(held)
            self._check_orphan(held)
            foreigner = group.foreigner
            if group.iommu is not None:
                raise NotViable(f"devices of group {group} belong to an iommufd", "close them")
            if foreigner is not None:
                raise NotViable(
                    f"group {group} is not viable: {foreigner.name} belongs to the driver "
                    f"{foreigner.host_driver} of the host",
                    f"unbind {foreigner.name} from it",
                )
            container.attach_group(group)

    def check_no_container(self, held: OpenGroup) -> None:
        """InvalidArgument if the group is in a container."""
        with self.lock:
            iommu = held.group.iommu
            if iommu is not None and iommu.joined and not held.orphan:
                raise InvalidArgument(f"group {held.group} has a container", "unset it first")

    def leave(self, held: OpenGroup) -> None:
        """Take the group out (vfio_group_ioctl_unset_container).

        Order: InvalidArgument if it is in none, Busy while a device of it is open. From an iommufd it may go then too:
        the device stays there.
        """
        with self.lock:
            group = held.group
            container = self._container(held)
            if container.depart(group):
                self._depart(container, group)

    def _container(self, held: OpenGroup) -> Iommu:
        iommu = held.group.iommu
        if iommu is None or held.orphan or not iommu.joined:
            raise InvalidArgument(f"group {held.group} has no container", "set one first")
        return iommu

    def _check_orphan(self, held: OpenGroup) -> None:
        if held.orphan:
            raise NoSuchDevice(f"group {held.group} has lost its last VFIO device")

    def _check_free(self, group: Group, exclusive: bool) -> None:
        """Busy if the group cannot be opened (again) in this way."""
        container = group.iommu is not None and group.iommu.lifetime is Lifetime.WITH_HANDLE
        if any(held.exclusive for held in group.opens) or (exclusive and group.opens):
            raise Busy(f"group {group} is open already", "the mainline ABI opens a group once")
        if group.devices_in_use and (exclusive or container):
            names = ", ".join(d.name for d in group.devices if d.in_use)
            raise Busy(f"group {group} is in use: {names} is open", "close its device files")

    # -- devices ---------------------------------------------------------------------------------

    def open_member(self, held: OpenGroup, text: str) -> OpenDevice:
        """Open the device of the group that ``text`` means (vfio_group_ioctl_get_device_fd).

        Order: NoSuchDevice, InvalidArgument for options, InvalidArgument without a container or as long as it
        has no IOMMU (for an iommufd what ``Claim.admit`` raises), Gone, then what the driver's ``get`` raises.
        """
        with self.lock:
            self._check_orphan(held)
            device = self._find_member(held.group, text)
            self._container(held).admit(device)
            assert device.data is not None
            opened = OpenDevice(device, device.data)
            device.opens.append(opened)
        self._start(opened)
        return opened

    # -- resets of a whole bus -------------------------------------------------------------------

    def bus_reset_scope(self, mainline: MainlineDevice, device: Device) -> list[Dependent]:
        """The devices that a reset of the device's bus resets. NoSuchDevice if its bus cannot be reset."""
        with self.lock:
            members = [member.dev for group in self.groups for member in group.devices]
        scope = mainline.reset_scope(members)
        if scope is None:
            raise NoSuchDevice(f"the bus of {device.name} cannot be reset", "no bridge is above it")
        return scope

    def bus_reset(self, scope: list[Dependent], owned: Callable[[Device], bool]) -> None:
        """Reset every device of ``scope``, each under its lock.

        InvalidArgument if VFIO does not have one of them, or one is not ``owned``. Behaviour:
        vfio_pci_dev_set_hot_reset.
        """
        with ExitStack() as locks:
            found: list[MainlineDevice] = []
            for dependent in sorted(scope, key=lambda d: (d.segment, d.bus, d.devfn)):
                device = self.lookup(dependent.dev)
                if device is not None:
                    locks.enter_context(device.lock)
                data = device.data if device else None
                if device is None or not isinstance(data, MainlineDevice):
                    raise InvalidArgument(
                        f"{dependent.dev.name} would be reset too, and VFIO does not have it"
                    )
                if not owned(device):
                    raise InvalidArgument(
                        f"{device.name} would be reset too, and is somebody else's"
                    )
                found.append(data)
            for mainline in found:
                mainline.bus_reset()

    @staticmethod
    def _find_member(group: Group, text: str) -> Device:
        for device in group.devices:
            if device.data is None or device.departing:
                continue
            driver = device.driver
            if isinstance(driver, TakesOptions):
                found = driver.match_with_options(device.dev, text, device.data)
            else:
                found = driver.match(device.dev, text)
            if found:
                return device
        known = ", ".join(d.name for d in group.devices if d.bound)
        raise NoSuchDevice(f'no device "{text}" in group {group}', f"it has {known or 'none'}")
