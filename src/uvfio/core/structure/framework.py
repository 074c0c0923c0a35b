"""The framework: the driver API and the operations of 2011, on top of everything else about structure.

The operations of the mainline interfaces are inherited, each part from the one below it::

    Framework       the driver API; group, iommu and device files of 2011                        (this module)
    Releases        a device is taken back from its users                                        (release.py)
    Nodes           iommufds, and devices that are opened by their own nodes                     (nodes.py)
    Containers      containers, their groups, resets of a whole bus                              (container.py)
    Structure       registry, lock, open devices, and the end of contexts                        (base.py)

Driver API: ``add_device``, ``bind_device``, ``unbind_device`` (in ``release.py``), ``del_device``. A device added to a
group in use is attached, reserved for the owner, and offered to its driver.

A refused call changes nothing. The framework knows no ABI, no descriptor and no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.structure.device import Device, OpenDevice
from uvfio.core.structure.group import Group, OpenGroup
from uvfio.core.structure.iommu import Iommu, OpenIommu
from uvfio.core.structure.release import Releases
from uvfio.errors import Busy, Gone, InvalidArgument, NoSuchDevice, NoSuchGroup

if TYPE_CHECKING:
    from uvfio.core.bus import BoundDevice, BusDevice, VfioDriver
    from uvfio.core.seams import Mm

__all__ = ["Framework"]


class Framework(Releases):
    """See the module's head. The options are those of ``Structure``."""

    # -- registry --------------------------------------------------------------------------------

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
            if self.observer:
                from uvfio.core.events import DevicePlugged

                self.observer(DevicePlugged(device.name, dev.bus, str(group)))
            iommu = group.iommu
            if iommu is None or iommu.domain is None:
                return device
            device.reserved = True
            try:
                iommu.attach_device(device)
            except BaseException as error:
                self._taint(device, f"{device.name} was plugged in but not attached: {error}")
                raise
        try:
            driver.bind_hotplugged(dev)
        except BaseException as error:
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
            if self.observer:
                self._emit_bound(device, device.driver.name)

    def bind_foreign(self, dev: BusDevice, driver: str) -> None:
        """A driver of the host has ``dev``; "" when it has let go. Busy as ``check_foreign_bind`` says."""
        with self.lock:
            if driver:
                self.check_foreign_bind(dev)
            device = self.lookup(dev)
            if device:
                before, device.host_driver = device.host_driver, driver
                if self.observer and before and not driver:
                    self._emit_unbound(device, before)
                elif self.observer and driver and driver != before:
                    self._emit_bound(device, driver)

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
            if self.observer:
                from uvfio.core.events import DeviceUnplugged

                self.observer(DeviceUnplugged(device.name, str(device.group)))
            if device.bound:
                device.gone = True
                device.departing += 1
                return
            self._remove_device(device)

    # -- group files -----------------------------------------------------------------------------

    def open_group(self, group: Group, mm: Mm, *, exclusive: bool = False) -> OpenGroup:
        """Open a group's file: any number of opens by any process, or just one if it is ``exclusive``.

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
        If the set is not in use it is left closed and owned by the caller (D3).
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
                except BaseException:
                    old.attach_group(b)
                    raise
            except BaseException:
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
            except BaseException:
                self._settle(iommu)
                raise
            assert device.data is not None
            opened = OpenDevice(device, device.data)
            device.opens.append(opened)
        self._start(opened)
        return opened

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
