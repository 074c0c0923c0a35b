"""The framework: registry of groups, the driver API, and every structural operation on them.

Theory of operation
-------------------
One lock covers structure: which groups and devices exist, who holds which open, who owns which context.
Whole operations run under it (a check and the step that relies on it are never apart). Driver callbacks
that may take long (``get``, ``put``, ``reset``) run under the device's own lock instead; the device is
already counted as open then, so nothing can take it away meanwhile. Lock order: device, framework,
domain.

Opens are objects (``OpenGroup``, ``OpenIommu``, ``OpenDevice``) that the file operations hold; closing one
is always followed by ``_settle``, the only place where contexts end:

    1. a group of a set leaves it when its owner holds it open no longer and none of its devices is open
       (otherwise somebody with access to one member could reach the others later)
    2. when no iommu or device file is open, the domain and all mappings go; a single group is unowned
    3. a single group whose file is closed has no context at all
    4. an empty group whose file is closed goes
    5. whoever waits for a device looks again

That is the life of 2011. Contexts that die with their handle are settled in ``core/structure/container.py``, which has
the operations of today's group ABI; those of iommufd are in ``core/structure/nodes.py``.

Driver API: ``add_device``, ``bind_device``, ``unbind_device`` (in ``uvfio.core.structure.release``), ``del_device``. A
device added to a group in use is attached, reserved for the owner, and offered to its driver.

Groups are keyed by (bus, number): the same number on two buses is two groups. A refused call changes
nothing. The framework knows no ABI, no descriptor and no thread.
"""

from __future__ import annotations

import heapq
from threading import Condition, RLock
from typing import TYPE_CHECKING

from uvfio.core.events import DeviceTainted, GroupAdded, GroupRemoved
from uvfio.core.structure.container import ContainerMixin
from uvfio.core.structure.device import Device, OpenDevice
from uvfio.core.structure.group import Group, OpenGroup
from uvfio.core.structure.iommu import Iommu, Lifetime, OpenIommu
from uvfio.core.structure.nodes import CdevMixin
from uvfio.core.structure.release import ReleaseMixin
from uvfio.core.translation.domain import DmaCounters, Domain
from uvfio.errors import Busy, Gone, InvalidArgument, NoSpace, NoSuchDevice, NoSuchGroup

if TYPE_CHECKING:
    from uvfio.core.events import Fault, Observer
    from uvfio.core.seams import Mm
    from uvfio.core.structure.device import BoundDevice, BusDevice, VfioDriver

__all__ = ["MINORMASK", "Framework"]

MINORMASK = (1 << 20) - 1


class Framework(ContainerMixin, CdevMixin, ReleaseMixin):
    """See the module's head.

    ``observer(event)`` takes the events of ``core/events.py``. ``minors`` bounds the number of groups. ``noiommu``:
    today's ABI takes devices without an IOMMU (enable_unsafe_noiommu_mode).
    ``generation`` grows whenever a group or a device's own node comes or goes.
    """

    def __init__(
        self,
        *,
        allow_unsafe_interrupts: bool = False,
        dma_entry_limit: int = 65535,
        noiommu: bool = False,
        minors: int = MINORMASK + 1,
        observer: Observer | None = None,
    ) -> None:
        self.lock = RLock()
        self.released = Condition(self.lock)
        self.allow_unsafe_interrupts = allow_unsafe_interrupts
        self.dma_entry_limit = dma_entry_limit
        self.noiommu = noiommu
        self.observer = observer
        self.dma_counters = DmaCounters()
        self._groups: dict[tuple[str, int], Group] = {}
        self._minors: dict[int, Group] = {}
        self._free_minors: list[int] = []
        self._next_minor = 0
        self.generation = 0
        self._minor_limit = minors
        self.nodes = {}

    # -- registry --------------------------------------------------------------------------------

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

    def group_by_minor(self, minor: int) -> Group:
        """The group behind a device node, or NoSuchGroup."""
        with self.lock:
            found = self._minors.get(minor)
        if found is None:
            raise NoSuchGroup(f"no group has minor {minor}")
        return found

    def lookup(self, dev: BusDevice) -> Device | None:
        """The one lookup of a device's record, by bus, group number and identity (review row 2)."""
        if dev.group is None:
            return None
        with self.lock:
            group = self._groups.get((dev.bus, dev.group))
            devices = group.devices if group else []
            return next((device for device in devices if device.dev is dev), None)

    # -- driver API ------------------------------------------------------------------------------

    def add_device(self, dev: BusDevice, driver: VfioDriver) -> Device:
        """Make ``dev`` known (vfio_group_add_dev). A second add of the same device changes nothing.

        NoSuchDevice: it is in no IOMMU group. NoSpace: no minor is left. When its group is in use the
        device is attached to the owner's domain and reserved; if that fails the record stays, taints the
        group, and the error is raised.
        """
        number = dev.group
        if number is None:
            raise NoSuchDevice(f"{dev.name} is in no IOMMU group", "no IOMMU serves it")
        with self.lock:
            known = self.lookup(dev)
            if known:
                return known
            group = self._groups.get((dev.bus, number)) or self._create_group(dev, number)
            device = Device(dev, driver, group)
            group.devices.insert(0, device)
            iommu = group.iommu
            if iommu is None or iommu.domain is None:
                return device
            device.reserved = True
            try:
                iommu.attach_device(device)
            except Exception as error:
                self._taint(device, f"{device.name} was plugged in but not attached: {error}")
                raise
        try:
            driver.claim(dev)
        except Exception as error:
            with self.lock:
                self._taint(device, f"{driver.name} did not claim {device.name}: {error}")
        return device

    def bind_device(self, dev: BusDevice, data: BoundDevice) -> None:
        """A VFIO driver has the device (vfio_bind_dev). InvalidArgument if it was never added or no data
        comes with it, Busy if it is bound already, Gone if it was pulled out."""
        with self.lock:
            device = self.lookup(dev)
            if device is None:
                raise InvalidArgument(f"{dev.name} was never added, so it cannot be bound")
            if data is None:
                raise InvalidArgument(f"{dev.name}: binding needs the driver's data")
            if device.gone:
                raise Gone(f"{dev.name} was pulled out")
            if device.bound:
                raise Busy(f"{dev.name} is bound already", "unbind it first")
            if device.iommu is not None:
                device.iommu.attach_device(device)
            device.data = data
            device.taint = device.host_driver = ""
            self._add_node(device)

    def bind_foreign(self, dev: BusDevice, driver: str) -> None:
        """A driver of the host has ``dev``; "" when it has let go. Busy as ``check_foreign_bind`` says."""
        with self.lock:
            if driver:
                self.check_foreign_bind(dev)
            device = self.lookup(dev)
            if device:
                device.host_driver = driver

    def check_foreign_bind(self, dev: BusDevice) -> None:
        """Busy if a host driver must not have ``dev``: VFIO has it, or its group's owner has a right to it."""
        with self.lock:
            device = self.lookup(dev)
            if device and device.bound:
                raise Busy(f"{dev.name} is bound to {device.driver.name}", "unbind it first")
            iommu = device.iommu if device else None
            if device and iommu and iommu.owns_dma:
                raise Busy(
                    f"{dev.name} is reserved: its group {device.group} is in use through VFIO",
                    f"only {device.driver.name} may have it",
                )

    def del_device(self, dev: BusDevice) -> None:
        """The bus lost the device (vfio_group_del_dev). NoSuchDevice if it is not known.

        A bound device is marked gone and leaves when it is unbound; until then its set takes no new users.
        """
        with self.lock:
            device = self.lookup(dev)
            if device is None:
                raise NoSuchDevice(f"{dev.name} is not known to VFIO")
            if device.gone:
                return
            if device.bound:
                device.gone = True
                device.departing += 1
                return
            self._remove_device(device)

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
            self.observer(DeviceTainted(device.name, str(device.group), reason))

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
                self.observer(GroupAdded(str(group), bus, number, minor))
        except Exception:
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
            self.observer(GroupRemoved(str(group), group.bus, group.number))

    # -- group files -----------------------------------------------------------------------------

    def open_group(self, group: Group, mm: Mm, *, exclusive: bool = False) -> OpenGroup:
        """Open a group's file: any number of opens by anybody, or just one if it is ``exclusive``.

        NoSuchGroup if it went meanwhile, Busy if it is or shall be exclusive. An exclusive open has no context
        before it joins a container.
        """
        with self.lock:
            if self._minors.get(group.minor) is not group:
                raise NoSuchGroup(f"group {group} is gone")
            self._check_free(group, exclusive)
            if group.iommu is None and not exclusive:
                self._new_iommu().attach_group(group)
            held = OpenGroup(group, mm, exclusive)
            group.opens.append(held)
            return held

    def close_group(self, held: OpenGroup) -> None:
        """Close a group's file."""
        with self.lock:
            if held.orphan:
                return
            held.group.opens.remove(held)
            if held.group.iommu is not None:
                self._settle(held.group.iommu)
            self._collect(held.group)

    def group_state(self, held: OpenGroup) -> tuple[bool, bool]:
        """(viable, owned) of the whole set that the group belongs to. No owner check."""
        with self.lock:
            iommu = self._context(held)
            return iommu.viable, iommu.owner is not None

    def check_owner(self, held: OpenGroup, mm: Mm) -> None:
        """NotOwner if another address space owns the set."""
        with self.lock:
            self._context(held).check_owner(mm)

    def merge(self, into: OpenGroup, other: OpenGroup, mm: Mm) -> None:
        """Let the group of ``other`` share the context of ``into`` (vfio_group_merge).

        Order: NotOwner of ``into``; InvalidArgument for the same group, the same context (D34), a member of
        another set (D33), an open context, another bus; then what opening either context raises; then
        InvalidArgument when their coherency differs; then attach errors. Any error restores both (D1, D2).
        If nobody uses the set it is left closed and owned by the caller (D3).
        """
        with self.lock:
            iommu, old = self._context(into), self._context(other)
            iommu.check_owner(mm)
            a, b = into.group, other.group
            if a is b:
                raise InvalidArgument(f"group {a} cannot be merged with itself")
            if iommu is old:
                raise InvalidArgument(f"group {b} is merged with group {a} already")
            if len(old.groups) > 1:
                names = ", ".join(str(g) for g in old.groups if g is not b)
                raise InvalidArgument(
                    f"group {b} is merged with {names}", "unmerge it first, or merge the other way"
                )
            if old.domain is not None:
                raise InvalidArgument(
                    f"group {b} has an open iommu or device file",
                    "close it before the merge: its mappings could not survive",
                )
            if a.bus != b.bus:
                raise InvalidArgument(f"group {a} is on bus {a.bus}, group {b} on {b.bus}")
            opened = iommu.domain is None
            try:
                trial = old.open(mm)
                if iommu.domain is None:
                    iommu.check_viable()
                    iommu.open(mm)
                else:
                    iommu.check_viable()
                assert iommu.domain is not None
                if iommu.domain.coherent != trial.coherent:
                    raise InvalidArgument(
                        f"group {a} and group {b} differ in cache coherency and cannot share mappings"
                    )
                old.close()
                old.detach_group(b)
                try:
                    iommu.attach_group(b)
                except Exception:
                    old.attach_group(b)
                    raise
            except Exception:
                old.close()
                old.owner = None
                if opened:
                    iommu.close()
                    if len(iommu.groups) == 1:
                        iommu.owner = None
                raise
            into.joined = other.joined = True
            self._settle(iommu)

    def unmerge(self, base: OpenGroup, leaving: OpenGroup, mm: Mm) -> None:
        """Take the group of ``leaving`` out of the set (vfio_group_unmerge); it starts afresh, unowned.

        Order: NotOwner; InvalidArgument for the same group or another set; Busy while a device of it is open.
        """
        with self.lock:
            iommu = self._context(base)
            iommu.check_owner(mm)
            group = leaving.group
            if group is base.group:
                raise InvalidArgument(f"group {group} cannot be unmerged from itself")
            if group.iommu is not iommu:
                raise InvalidArgument(f"group {group} is not merged with group {base.group}")
            if group.devices_in_use:
                names = ", ".join(d.name for d in group.devices if d.in_use)
                raise Busy(f"group {group} cannot leave: {names} is open", "close its device files")
            self._leave(iommu, group)
            self._settle(iommu)

    # -- iommu files -----------------------------------------------------------------------------

    def open_iommu(self, held: OpenGroup, mm: Mm) -> OpenIommu:
        """Open the context of the group's set (GET_IOMMU_FD). NotOwner, then the errors of Iommu.open."""
        with self.lock:
            iommu = self._enter(held, mm)
            opened = OpenIommu(iommu)
            iommu.opens.append(opened)
            return opened

    def close_iommu(self, opened: OpenIommu) -> None:
        """Close an iommu file."""
        with self.lock:
            iommu = opened.iommu
            if iommu is not None:
                opened.iommu = None
                iommu.opens.remove(opened)
                self._settle(iommu)

    # -- device files ----------------------------------------------------------------------------

    def open_device(self, held: OpenGroup, name: str, mm: Mm) -> OpenDevice:
        """Open the device of the set that ``name`` means (GET_DEVICE_FD).

        NotOwner, the errors of Iommu.open, NoSuchDevice, Gone, then what the driver's ``get`` raises. Whatever
        fails, a context that this call opened is closed again (D9, D10).
        """
        with self.lock:
            iommu = self._enter(held, mm)
            try:
                device = self._match(iommu, name)
            except Exception:
                self._settle(iommu)
                raise
            assert device.data is not None
            opened = OpenDevice(device, device.data)
            device.opens.append(opened)
        self._start(opened)
        return opened

    def _start(self, opened: OpenDevice) -> None:
        """Let the driver enable a device that was just counted as open; on any error it is not open."""
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

    def _match(self, iommu: Iommu, name: str) -> Device:
        for group in iommu.groups:
            for device in group.devices:
                if device.driver.match(device.dev, name):
                    return device
        known = ", ".join(d.name for g in iommu.groups for d in g.devices)
        raise NoSuchDevice(f'no device "{name}" in the set', f"it has {known}")

    # -- inner -----------------------------------------------------------------------------------

    def _enter(self, held: OpenGroup, mm: Mm) -> Iommu:
        """The context, open, owned by ``mm`` and viable now (D3: asked again each time)."""
        iommu = self._context(held)
        iommu.check_owner(mm)
        if iommu.domain is None:
            iommu.open(mm)
        else:
            iommu.check_viable()
        return iommu

    def _context(self, held: OpenGroup) -> Iommu:
        iommu = held.group.iommu
        assert iommu is not None, "an open group has a context"
        return iommu

    def _new_iommu(self) -> Iommu:
        return Iommu(self._new_domain, allow_unsafe=self.allow_unsafe_interrupts)

    def _new_domain(self) -> Domain:
        return Domain(
            entry_limit=self.dma_entry_limit, on_fault=self._on_fault, counters=self.dma_counters
        )

    def _on_fault(self, fault: Fault) -> None:
        if self.observer:
            self.observer(fault)

    def _leave(self, iommu: Iommu, group: Group) -> None:
        """A member goes its own way; while its file is open it has a fresh, closed context."""
        iommu.detach_group(group)
        for held in group.opens:
            held.joined = False
        if group.is_open:
            self._new_iommu().attach_group(group)

    def _settle(self, iommu: Iommu) -> None:
        """See the module's head."""
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
