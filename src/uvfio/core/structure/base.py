"""``Structure``: the registry of groups and devices, and the rule that ends contexts. The framework is built upon it.

One lock covers structure: which groups and devices exist, which files hold which of them, which contexts exist. Whole
operations run under it, so a check and the step that relies on it are never apart. Driver callbacks that may take long
(``get``, ``put``, ``reset``) run under the device's own lock instead; the device is counted as open then, so it cannot
be taken away meanwhile. Lock order: device, framework, domain.

Opens are objects (``OpenGroup``, ``OpenIommu``, ``OpenDevice``). Closing one is always followed by ``_settle``, the
only place where contexts end. A context of 2011:

    1. a group of a set leaves it when its owner holds it open no longer and none of its devices is open
       (otherwise a process with access to one member could reach the others later)
    2. when no iommu or device file is open, the domain and all mappings go; a single group is unowned
    3. a single group whose file is closed has no context at all
    4. an empty group whose file is closed goes
    5. every wait for a device checks again

A context that ends with its handle (a container, a claim) loses the groups that are held open neither by their file nor
by a device.

Groups are keyed by (bus, number): the same number on two buses is two groups. This module has no operation of an
interface; those are in the classes above it: ``container``, ``nodes``, ``release``, ``framework``, in this order.
"""

from __future__ import annotations

import heapq
from threading import Condition, RLock
from typing import TYPE_CHECKING

from uvfio.core.structure.group import Group
from uvfio.core.structure.iommu import Iommu, Lifetime
from uvfio.core.translation.domain import DmaCounters, Domain
from uvfio.errors import Gone, NoSpace, NoSuchGroup

if TYPE_CHECKING:
    from uvfio.core.bus import BusDevice
    from uvfio.core.events import Fault, Observer
    from uvfio.core.seams import Clock
    from uvfio.core.structure.device import Device, OpenDevice

__all__ = ["MINORMASK", "Structure"]

MINORMASK = (1 << 20) - 1


class Structure:
    """See the module's head.

    ``clock`` measures the waits for devices. ``minors`` bounds the number of groups. ``noiommu``: the mainline
    interfaces take devices without an IOMMU (enable_unsafe_noiommu_mode). ``nodes`` are the devices with a node of
    their own, by the N of vfioN. ``generation`` grows whenever a group or a device's own node comes or goes.

    ``observer(event)`` takes the events of ``core/events.py``.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        allow_unsafe_interrupts: bool = False,
        dma_entry_limit: int = 65535,
        noiommu: bool = False,
        minors: int = MINORMASK + 1,
        observer: Observer | None = None,
    ) -> None:
        self.clock = clock
        self.lock = RLock()
        self.released = Condition(self.lock)
        self.allow_unsafe_interrupts = allow_unsafe_interrupts
        self.dma_entry_limit = dma_entry_limit
        self.noiommu = noiommu
        self.strict = False
        self.observer = observer
        self.dma_counters = DmaCounters()
        self._groups: dict[tuple[str, int], Group] = {}
        self._minors: dict[int, Group] = {}
        self._free_minors: list[int] = []
        self._next_minor = 0
        self.generation = 0
        self._minor_limit = minors
        self.nodes: dict[int, Device] = {}

    # -- registry -------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, oldest first."""
        with self.lock:
            return tuple(self._groups.values())

    def group(self, bus: str, number: int) -> Group:
        """The group ``number`` of ``bus``, or NoSuchGroup."""
        with self.lock:
            found = self._groups.get((bus, number))
        if found is None:
            raise NoSuchGroup(f"no group {bus}:{number}")
        return found

    def lookup(self, dev: BusDevice) -> Device | None:
        """The one lookup of a device's record, by bus, group number and identity (review row 2)."""
        if dev.group is None:
            return None
        with self.lock:
            group = self._groups.get((dev.bus, dev.group))
            devices = group.devices if group else []
            return next((device for device in devices if device.dev is dev), None)

    def _remove_device(self, device: Device) -> None:
        group = device.group
        if group.iommu is not None:
            group.iommu.detach_device(device)
        group.devices.remove(device)
        if group.iommu is not None:
            self._settle(group.iommu)
        self._collect(group)

    def _taint(self, device: Device, reason: str) -> None:
        device.taint = reason
        if self.observer:
            from uvfio.core.events import DeviceTainted

            self.observer(DeviceTainted(device.name, str(device.group), reason))

    def _emit_bound(self, device: Device, driver: str) -> None:
        from uvfio.core.events import DeviceBound

        assert self.observer is not None
        self.observer(DeviceBound(device.name, driver, str(device.group)))

    def _emit_unbound(self, device: Device, driver: str) -> None:
        from uvfio.core.events import DeviceUnbound

        assert self.observer is not None
        self.observer(DeviceUnbound(device.name, driver, str(device.group)))

    def _create_group(self, dev: BusDevice, number: int) -> Group:
        bus = dev.bus
        if self._free_minors:
            minor = heapq.heappop(self._free_minors)
        elif self._next_minor < self._minor_limit:
            minor = self._next_minor
            self._next_minor += 1
        else:
            raise NoSpace(f"all {self._minor_limit} group minors are taken")
        name = f"noiommu-{number}" if dev.unit is None else str(number)
        taken = any(other.node_name == name for other in self._groups.values())
        group = Group(bus, number, minor, f"{bus}:{number}" if taken else name)
        self._groups[bus, number] = self._minors[minor] = group
        self.generation += 1
        try:
            if self.observer:
                from uvfio.core.events import GroupAdded

                self.observer(GroupAdded(str(group), bus, number, minor))
        except BaseException:
            self._forget_group(group)
            raise
        return group

    def _forget_group(self, group: Group) -> None:
        del self._groups[group.bus, group.number], self._minors[group.minor]
        self.generation += 1
        heapq.heappush(self._free_minors, group.minor)

    def _collect(self, group: Group) -> None:
        """Drop a group that has neither devices nor an open file."""
        if group.devices or group.is_open or self._minors.get(group.minor) is not group:
            return
        if group.iommu is not None:
            group.iommu.detach_group(group)
        self._forget_group(group)
        if self.observer:
            from uvfio.core.events import GroupRemoved

            self.observer(GroupRemoved(str(group), group.bus, group.number))

    # -- open devices ---------------------------------------------------------------------------------

    def _start(self, opened: OpenDevice) -> None:
        """Let the driver enable a device that was just counted as open. On any error the open is undone."""
        device = opened.device
        with device.lock:
            if opened.data is None:
                raise Gone(f"{device.name} was taken away while it was being opened")
            try:
                opened.data.get()
            except BaseException:
                self._drop(opened)
                raise
            opened.ready = True

    def close_device(self, opened: OpenDevice) -> None:
        """Close a device file: the driver quiesces first, then the count drops (D12)."""
        device = opened.device
        with device.lock:
            data, opened.data = opened.data, None
            if data is None:
                return
            try:
                if opened.ready:
                    data.put()
            finally:
                self._drop(opened)

    def _drop(self, opened: OpenDevice) -> None:
        with self.lock:
            opened.data = None
            opened.device.opens.remove(opened)
            iommu = opened.device.iommu
            if iommu is not None:
                self._settle(iommu)

    # -- contexts -------------------------------------------------------------------------------------

    def _new_iommu(self) -> Iommu:
        return Iommu(self._new_domain, allow_unsafe=self.allow_unsafe_interrupts)

    def _new_domain(self) -> Domain:
        return Domain(
            entry_limit=self.dma_entry_limit,
            on_fault=self._on_fault,
            on_exchange=self.observer,
            strict=self.strict,
            counters=self.dma_counters,
        )

    def _on_fault(self, fault: Fault) -> None:
        if self.observer:
            self.observer(fault)

    def _leave(self, iommu: Iommu, group: Group) -> None:
        """Take a member out of its set. While its file is open it has a new, closed context."""
        iommu.detach_group(group)
        for held in group.opens:
            held.joined = False
        if group.is_open:
            self._new_iommu().attach_group(group)

    def _depart(self, container: Iommu, group: Group) -> None:
        """Take a group out of its container. The mappings end with the last one."""
        container.detach_group(group)
        if not container.groups:
            container.close()
        self.released.notify_all()

    def _settle(self, iommu: Iommu) -> None:
        """End what nothing holds any more; see the module's head."""
        self.released.notify_all()
        if iommu.lifetime is Lifetime.WITH_HANDLE:
            self._settle_container(iommu)
            return
        for group in list(iommu.groups):
            alone = len(iommu.groups) == 1
            if not alone and not group.devices_in_use and not group.held_by(iommu.owner):
                self._leave(iommu, group)
        if not iommu.in_use:
            iommu.close()
        if len(iommu.groups) > 1:
            return
        for group in list(iommu.groups):
            for held in group.opens:
                held.joined = False
            if iommu.domain is None and not group.is_open:
                iommu.detach_group(group)
        if iommu.domain is None:
            iommu.owner = None

    def _settle_container(self, container: Iommu) -> None:
        """Take out the groups that are held neither by their file nor by an open device."""
        container.forget_closed()
        for group in list(container.groups):
            held = group.is_open and container.joined
            if not held and not group.devices_in_use:
                self._depart(container, group)
