"""``Claim``: a group whose DMA belongs to an iommufd, or that joined one as it would join a container.

One group and one iommufd make one claim. It exists for two reasons, and ends with the last of them::

    joined   the group's file was set on the iommufd (SET_CONTAINER); until it is unset or closed
    bound    devices of the group are bound to the iommufd, by their own files or through the group's

DMA is owned while a device is bound, not by joining: drivers of the host and other iommufds are kept out from then on.

All devices of a group use one page table: the first that is attached chooses it, the others must choose the same
one, and replacing it for one replaces it for all. The whole group moves to the domain behind it, also devices that
are not bound; it leaves when the last attached one is detached.

A claim does not own its domain: the address space does. Changes happen under the framework's lock; a refused one
changes nothing. Behaviour: drivers/iommu/iommufd/device.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.structure.iommu import Iommu, Lifetime
from uvfio.core.structure.iommufd import Assigned
from uvfio.core.structure.lifetime import LIFE_CLAIM, Event, State
from uvfio.core.translation.ioas import Hwpt
from uvfio.errors import InvalidArgument, NotOwner, NotViable

if TYPE_CHECKING:
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.group import Group
    from uvfio.core.structure.iommufd import Iommufd
    from uvfio.core.translation.domain import Domain
    from uvfio.core.translation.ioas import Ioas

__all__ = ["Claim", "claim_for"]


class Claim(Iommu):
    """See the module's head. ``attached`` are the bound devices that use ``hwpt``."""

    LIFE = LIFE_CLAIM

    __slots__ = ("attached", "bound", "group", "hwpt", "iommufd")

    def __init__(self, iommufd: Iommufd, group: Group, *, allow_unsafe: bool) -> None:
        super().__init__(
            iommufd.new_domain, allow_unsafe=allow_unsafe, lifetime=Lifetime.WITH_HANDLE
        )
        self.iommufd = iommufd
        self.group = group
        self.hwpt: Hwpt | None = None
        self.bound: dict[Device, Assigned] = {}
        self.attached: list[Device] = []

    # -- overrides of the context -----------------------------------------------------------------

    @property
    def holder(self) -> str:
        """That which opened the iommufd."""
        return self.iommufd.opener

    @property
    def joined(self) -> bool:
        """Whether the group's file was set on the iommufd."""
        return self.state in (State.JOINED, State.JOINED_BOUND)

    @property
    def owns_dma(self) -> bool:
        """Whether the iommufd owns the DMA of the group's devices."""
        return self.state in (State.BOUND, State.JOINED_BOUND)

    def join(self) -> None:
        """The group's file was set on the iommufd."""
        self.life.step(Event.JOIN, self._names())

    def admit(self, device: Device) -> None:
        """Bind the device and attach it to the address space of the container's ABI, if it is the first open.

        What ``bind`` raises, NoSuchDevice without such an address space, what ``attach`` raises.
        """
        if device in self.bound:
            return
        self.bind(device)
        try:
            self.attach(device, self.iommufd.compat_ioas())
        except BaseException:
            self.unbind(device)
            raise

    def depart(self, group: Group) -> bool:
        """Undo ``join``; returns whether the group leaves now. It stays while devices of it are bound. Raises
        InvalidArgument if it has not joined."""
        self.life.step(Event.UNJOIN, self._names())
        return not self.owns_dma

    def forget_closed(self) -> None:
        """Unbind the devices whose files are closed."""
        for device in [device for device in self.bound if not device.in_use]:
            self.unbind(device)

    def close(self) -> None:
        """The group left: the iommufd may end."""
        self.iommufd.claims.remove(self)
        self.iommufd.settle()

    # -- binding ---------------------------------------------------------------------------------

    def check_bind(self, device: Device) -> None:
        """InvalidArgument without a coherent IOMMU, UnsafeInterrupts, NotViable beside a driver of the host."""
        unit = device.dev.unit
        if unit is None or not unit.coherent:
            raise InvalidArgument(f"{device.name} is behind no IOMMU that keeps caches coherent")
        self._check_remapping(device.name, unit.interrupt_remapping)
        foreigner = self.group.foreigner
        if foreigner is not None:
            raise NotViable(
                f"the DMA of group {self.group} belongs to the driver {foreigner.host_driver} of the host, "
                f"which has {foreigner.name}",
                f"unbind {foreigner.name} from it",
            )

    def bind(self, device: Device) -> int:
        """Make the device an object of the iommufd; returns its number (iommufd_device_bind). As ``check_bind``."""
        self.check_bind(device)
        self.life.step(Event.BIND, self._names())
        unit = device.dev.unit
        assert unit is not None
        thing = self.bound[device] = Assigned(device, unit, self)
        return self.iommufd.add(thing)

    def unbind(self, device: Device) -> None:
        """Detach the device; its object goes."""
        self.detach(device)
        self.iommufd.remove(self.bound.pop(device))
        self.life.step(Event.UNBIND if self.bound else Event.UNBIND_LAST, self._names())

    # -- page tables -----------------------------------------------------------------------------

    def attach(self, device: Device, target: Ioas | Hwpt) -> Hwpt:
        """Use that page table, or one of that address space; returns it (iommufd_device_change_pt).

        A device that is attached moves, and the others of its group with it. InvalidArgument if a page table does not
        suit the device, or the group uses another one; IovaInUse; what holding the memory raises.
        """
        unit = self.bound[device].unit
        if isinstance(target, Hwpt):
            if not target.suits(unit):
                raise InvalidArgument(f"the page table is for {target.unit.name}, not {unit.name}")
            self._use(device, target)
            return target
        fitting = (hwpt for hwpt in target.hwpts if hwpt.auto and hwpt.suits(unit))
        hwpt = next(fitting, None)
        if hwpt is not None:
            self._use(device, hwpt)
            return hwpt
        hwpt = self.iommufd.new_hwpt(target, unit, auto=True)
        try:
            self._use(device, hwpt)
        except BaseException:
            self.iommufd.remove(hwpt)
            raise
        return hwpt

    def detach(self, device: Device) -> None:
        """Use no page table any more; nothing if it uses none."""
        hwpt = self.hwpt
        if device not in self.attached or hwpt is None:
            return
        self.attached.remove(device)
        hwpt.ioas.unreserve(device)
        if not self.attached:
            self.hwpt = None
            self._move(None)
        self._release(hwpt, 1)

    def _use(self, device: Device, hwpt: Hwpt) -> None:
        old, again = self.hwpt, device in self.attached
        if again and hwpt is old:
            return
        if not again and old not in (None, hwpt):
            raise InvalidArgument(
                f"another device of group {self.group} uses another page table", "a group has one"
            )
        moving = list(self.attached) if again else [device]
        reserving = [] if old is not None and again and old.ioas is hwpt.ioas else moving
        done: list[Device] = []
        try:
            for member in reserving:
                hwpt.ioas.reserve(member, self.bound[member].unit.reserved)
                done.append(member)
            self._move(hwpt.ioas.domain)
        except BaseException:
            for member in done:
                hwpt.ioas.unreserve(member)
            raise
        self.hwpt = hwpt
        hwpt.users += len(moving)
        if not again:
            self.attached.append(device)
        elif old is not None:
            for member in reserving:
                old.ioas.unreserve(member)
            self._release(old, len(moving))

    def _move(self, domain: Domain | None) -> None:
        """Let the DMA of the whole group go through ``domain``, or nowhere. All of it or nothing."""
        old = self.domain
        if domain is old:
            return
        try:
            self._switch(domain)
        except BaseException:
            self._switch(old)
            raise

    def _switch(self, domain: Domain | None) -> None:
        for device in self.group.devices:
            reserved = device.reserved
            self.detach_device(device)
            device.reserved = reserved
        self.domain = domain
        for group in self.groups:
            self._attach_devices(group)

    def _release(self, hwpt: Hwpt, users: int) -> None:
        hwpt.users -= users
        if hwpt.auto and not hwpt.users:
            self.iommufd.remove(hwpt)


def claim_for(iommufd: Iommufd, group: Group, *, allow_unsafe: bool) -> Claim:
    """The claim of ``iommufd`` on ``group``; a new one if it is in no context. NotOwner if it is in another one."""
    found = group.iommu
    if isinstance(found, Claim) and found.iommufd is iommufd:
        return found
    if found is not None:
        raise NotOwner(f"group {group} belongs to somebody else", "its devices have to be closed")
    claim = Claim(iommufd, group, allow_unsafe=allow_unsafe)
    claim.attach_group(group)
    iommufd.claims.append(claim)
    return claim
