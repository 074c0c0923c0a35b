"""Virtual functions of a machine: how many there are, where they are, and how they come and go.

A physical function (PF) has an SR-IOV capability (``kit/pci/sriov.py``). Its driver makes its virtual functions (VFs),
all at once, and takes them away, all at once::

    0 VFs --set n--> n VFs, each a device at routing id PF + offset + i * stride, in a group of its own
    n VFs --set 0--> asked back from their users, then gone
    n VFs --set m--> refused
    n VFs --PF unbound from vfio-pci, or pulled out--> gone, too

The driver of a VF is vfio-pci if vfio-pci has the PF; else it has none (vfio_pci_bus_notifier). Besides vfio-pci,
pci-pf-stub makes VFs, and leaves them behind when it is unbound. Other drivers of the host do not.

A refused change changes nothing: VFs that are in use are waited for, all of them, before the first one goes.

Behaviour: drivers/pci/iov.c (sriov_numvfs_store, sriov_enable, sriov_disable), drivers/vfio/pci/vfio_pci.c
(vfio_pci_sriov_configure), drivers/vfio/pci/vfio_pci_core.c (vfio_pci_core_sriov_configure).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from uvfio.drivers.pci.device import VfioPciDevice
from uvfio.drivers.pci.sriov import Sriov, find, routing_id
from uvfio.errors import Busy, ConfigError, InvalidArgument, NoMemory, Unsupported
from uvfio.machine.spec import DEFAULT_DRIVER, NO_DRIVER, DeviceSpec

if TYPE_CHECKING:
    from uvfio.core.structure.release import Release
    from uvfio.machine.machine import Machine
    from uvfio.machine.slot import Slot

__all__ = ["Departure", "begin", "begin_as_described", "capability", "destroy", "leave"]

_STUB = "pci-pf-stub"  # a driver of the host that does nothing but this (drivers/pci/pci-pf-stub.c)


def capability(slot: Slot) -> Sriov:
    """The SR-IOV capability in ``slot``. Unsupported if it has none."""
    found = find(slot.function)
    if found is None:
        raise Unsupported(f"{slot.address} has no SR-IOV capability", errno=errno.ENOENT)
    return found


def begin(
    machine: Machine,
    slot: Slot,
    number: int,
    timeout: float | None,
    revoke: bool,
    interval: float,
) -> Departure | None:
    """Have ``number`` VFs of the PF in ``slot`` (sriov_numvfs_store); what is returned has to be waited for.

    Order: Unsupported without the capability, InvalidArgument (ERANGE) for more than there can be, nothing if there
    are so many, Unsupported (ENOENT) if the PF's driver does not do this, Busy if there are others, what
    ``_create`` raises.
    """
    sriov = capability(slot)
    if not 0 <= number <= sriov.total:
        raise InvalidArgument(
            f"{slot.address} can have {sriov.total} virtual functions, not {number}",
            errno=errno.ERANGE if number > 0 else errno.EINVAL,
        )
    if number == len(slot.virtual):
        return None
    _check_driver(machine, slot)
    if not number:
        return Departure(machine, slot, slot.virtual, timeout, revoke, interval)
    if slot.virtual:
        raise Busy(
            f"{slot.address} has {len(slot.virtual)} virtual functions",
            "set the number to 0 before another one",
        )
    _create(machine, slot, sriov, number)
    return None


def begin_as_described(machine: Machine, spec: DeviceSpec) -> None:
    """Make the VFs that a description wants. ConfigError for what ``begin`` refuses."""
    assert spec.address is not None
    try:
        machine.set_numvfs(spec.address, spec.numvfs)
    except (InvalidArgument, Unsupported, Busy, NoMemory) as error:
        raise ConfigError(f"{spec.source}: numvfs {spec.numvfs}: {error}", error.hint) from error


def leave(
    machine: Machine, slot: Slot, timeout: float | None, revoke: bool, interval: float
) -> Departure:
    """The PF in ``slot`` shall be unbound from vfio-pci, and its VFs go (vfio_pci_core_unregister_device)."""
    return Departure(machine, slot, [*slot.virtual, slot], timeout, revoke, interval)


class Departure:
    """VFs of ``pf`` on their way out, with the PF itself as the last of ``slots`` if it is unbound too.

    Poll it, as ``core.release.Release``: whenever something was closed, and after ``delay`` seconds. All that are
    bound to VFIO take no new users until it is done or cancelled.
    """

    __slots__ = ("_framework", "_machine", "_pf", "_releases")

    def __init__(
        self,
        machine: Machine,
        pf: Slot,
        slots: list[Slot],
        timeout: float | None,
        revoke: bool,
        interval: float,
    ) -> None:
        self._machine = machine
        self._pf = pf
        self._framework = machine.framework
        self._releases: list[tuple[Slot, Release]] = []
        for slot in slots:
            if slot.driver == slot.vfio_driver:
                release = self._framework.begin_unbind(
                    slot.device, timeout=timeout, revoke=revoke, interval=interval
                )
                self._releases.append((slot, release))

    @property
    def what(self) -> str:
        """ "waiting for the users of" and the address of the physical function."""
        return f"waiting for the users of {self._pf.address}"

    @property
    def ready(self) -> bool:
        """Whether no VF is in use any more."""
        return all(self._idle(release) for _, release in self._releases)

    @staticmethod
    def _idle(release: Release) -> bool:
        return release.data is not None or release.ready

    def poll(self) -> bool:
        """Whether it is done. Busy after the time-out: then all are as they were."""
        try:
            for _, release in self._releases:
                if not self._idle(release) and not release.poll():
                    return False
            with self._framework.lock:
                if not self.ready:
                    return False
                for slot, release in self._releases:
                    release.poll()
                    slot.driver = NO_DRIVER
        except BaseException:
            self._take_back()
            self.cancel()
            raise
        destroy(self._machine, self._pf)
        return True

    def delay(self) -> float:
        """Seconds until there is something to do although nothing was closed."""
        busy = [release.delay() for _, release in self._releases if not self._idle(release)]
        return min(busy, default=0.0)

    def cancel(self) -> None:
        """Give up; nothing happens when it is done already."""
        for _, release in self._releases:
            release.cancel()

    def _take_back(self) -> None:
        """Those that were quick to let go are bound again."""
        for slot, release in self._releases:
            if release.data is not None:
                self._framework.bind_device(slot.device, release.data)
                slot.driver = slot.vfio_driver


def destroy(machine: Machine, pf: Slot) -> None:
    """Remove the VFs at once, also those in use (sriov_disable)."""
    virtual, pf.virtual = pf.virtual, []
    pf.function.virtual_functions.clear()
    for slot in reversed(virtual):
        machine.take_out(slot)
    sriov = find(pf.function)
    if sriov is not None:
        sriov.disable()
    record = machine.framework.lookup(pf.device)
    if record is not None and isinstance(record.data, VfioPciDevice):
        machine.driver.adopt(record.data, 0)


def _check_driver(machine: Machine, slot: Slot) -> None:
    """Unsupported if the PF's driver has no way to make VFs."""
    if slot.driver == NO_DRIVER:
        problem, hint = "has no driver, which would make them", "bind it to vfio-pci"
    elif slot.driver == DEFAULT_DRIVER:
        if machine.driver.enable_sriov:
            return
        problem, hint = "belongs to vfio-pci without enable_sriov", "set enable_sriov = true"
    elif slot.driver == _STUB:
        return
    else:
        problem, hint = f"belongs to {slot.driver}, which makes none", "bind it to vfio-pci"
    raise Unsupported(f"{slot.address} {problem}: virtual functions", hint, errno=errno.ENOENT)


def _create(machine: Machine, pf: Slot, sriov: Sriov, number: int) -> None:
    """All of them or none. NoMemory if they do not fit behind the PF, Busy if a device is in the way, what making and
    adding a device raises."""
    silicon = pf.function.sriov
    assert silicon is not None, "found in its configuration space"
    addresses = [_address(pf.address, sriov, index) for index in range(number)]
    taken = {slot.address for slot in machine.slots}
    for address in addresses:
        if address in taken:
            raise Busy(
                f"{pf.address} has no room for {number} virtual functions: {address} is taken",
                "put the physical function or that device somewhere else",
            )
    data = machine.framework.lookup(pf.device)
    bound = data.data if data and isinstance(data.data, VfioPciDevice) else None
    sriov.enable(number)
    if bound is not None:
        machine.driver.adopt(bound, number)
    try:
        for address in addresses:
            spec = DeviceSpec(
                silicon.vf.__name__,
                address,
                _free_group(machine),
                NO_DRIVER if bound is None else DEFAULT_DRIVER,
                silicon.options,
                f"virtual function {address} of {pf.address}",
                pf.spec.iommu,
            )
            slot = machine.put_in(spec, silicon.vf, pf)
            if bound is not None:
                machine.binding.override(address, DEFAULT_DRIVER)
            pf.virtual.append(slot)
            slot.function.decode(True)
    except BaseException:
        destroy(machine, pf)
        raise


def _free_group(machine: Machine) -> int:
    """The lowest number that no group has."""
    taken = {group.number for group in machine.framework.groups}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _address(pf: str, sriov: Sriov, index: int) -> str:
    """Where VF ``index`` is (pci_iov_virtfn_bus, pci_iov_virtfn_devfn). NoMemory beyond the last bus."""
    number = routing_id(pf) + sriov.first + sriov.stride * index
    if number > 0xFFFF:
        raise NoMemory(
            f"virtual function {index} of {pf} would be on bus {number >> 8:#x}",
            "put the physical function on a lower bus",
        )
    return f"{pf[:4]}:{number >> 8:02x}:{number >> 3 & 0x1F:02x}.{number & 7}"
