"""``Machine``: the living host. It owns the framework, the IOMMU, the vfio-pci driver and the functions.

Building a machine is plugging its devices one after the other; plugging one later is the same thing.
A function is added to the framework whoever drives it, because whether its group may be used depends
on exactly that:

- driver "vfio-pci": bound to VFIO;
- driver "none": nobody drives it, so its group is not viable;
- any other name: a driver of the host has it, so its group is not viable either.

Invariants: a refused plug, bind or unbind changes nothing. A function is known here exactly while it sits
in its slot: pulling it out forgets it at once, even where the framework still waits for its users.

Structural calls come from one thread at a time (the one that serves the machine); ``unbind`` may wait in a
thread of its own. A machine knows no files and no door: what programs see of it is ``machine/tree.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvfio.core.domain import IommuUnit
from uvfio.core.framework import Framework
from uvfio.drivers.pci.driver import VfioPciDriver
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice
from uvfio.machine.firmware import Firmware
from uvfio.machine.local_seams import ByteStore, ManualClock
from uvfio.machine.spec import (
    DEFAULT_DRIVER,
    NO_DRIVER,
    DeviceSpec,
    IommuSpec,
    MachineSpec,
    default_machine,
    parse_address,
    parse_device,
    place,
)
from uvfio.models import catalogue
from uvfio.models.pci import PciModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvfio.core.device import BusDevice, Device
    from uvfio.core.seams import Clock, Store

__all__ = ["Machine", "Slot"]


class Slot:
    """A function in its slot: how it was described, the silicon, and who drives it."""

    __slots__ = ("driver", "function", "revoked", "spec")

    def __init__(self, spec: DeviceSpec, function: PciModel) -> None:
        self.spec = spec
        self.function = function
        self.driver = NO_DRIVER
        self.revoked = False

    @property
    def address(self) -> str:
        """0000:06:0d.0"""
        return self.function.name


class Machine:
    """See the module's head.

    ``Machine()`` is the default machine, ``Machine(spec)`` the one described, and ``Machine(iommu=...,
    devices=[...])`` describes it in place; a device may be a ``DeviceSpec`` or a string as for ``-d``.
    ``clock`` and ``store`` come from the door; in-process defaults keep memory in bytearrays and stand
    still until ``machine.clock.advance(seconds)``. ``observer`` is the framework's.
    """

    def __init__(
        self,
        spec: MachineSpec | None = None,
        *,
        iommu: IommuSpec | None = None,
        devices: Iterable[DeviceSpec | str] | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
        observer: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        if spec is not None and (iommu is not None or devices is not None):
            raise InvalidArgument(
                "a machine is described either by spec or by iommu and devices, not by both"
            )
        if spec is None and iommu is None and devices is None:
            spec = default_machine()
        elif spec is None:
            described = (parse_device(d) if isinstance(d, str) else d for d in devices or ())
            spec = MachineSpec(iommu or IommuSpec(), tuple(described))
        self.clock: Clock = clock if clock is not None else ManualClock()
        self.store: Store = store if store is not None else ByteStore()
        self.iommu = spec.iommu
        self.unit = IommuUnit(
            interrupt_remapping=spec.iommu.interrupt_remapping,
            coherent=spec.iommu.coherent,
            page_sizes=spec.iommu.page_sizes,
            address_bits=spec.iommu.address_bits,
            reserved=spec.iommu.reserved,
        )
        self.framework = Framework(
            allow_unsafe_interrupts=spec.iommu.allow_unsafe_interrupts,
            dma_entry_limit=spec.iommu.dma_entry_limit,
            observer=observer,
        )
        self.driver = VfioPciDriver(on_claim=self._claim)
        self._firmware = Firmware()
        self._slots: dict[str, Slot] = {}
        crowded = _buses(dev.address for dev in spec.devices)
        try:
            for dev in spec.devices:
                self._plug(dev, crowded)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Pull everything out (idempotent)."""
        for address in list(self._slots):
            self.unplug(address)

    # -- questions -------------------------------------------------------------------------------

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Everything plugged in, by address."""
        return tuple(self._slots[address] for address in sorted(self._slots))

    def slot(self, address: str) -> Slot:
        """The slot at ``address`` (any spelling), or NoSuchDevice."""
        name = parse_address(address)
        found = self._slots.get(name)
        if found is None:
            have = ", ".join(sorted(self._slots)) or "none"
            raise NoSuchDevice(f"the machine has no device {name}", f"its devices: {have}")
        return found

    def function(self, address: str) -> PciModel:
        """The silicon at ``address``, or NoSuchDevice."""
        return self.slot(address).function

    def record(self, address: str) -> Device:
        """The framework's record of the device at ``address``, or NoSuchDevice."""
        device = self.framework.lookup(self.slot(address).function)
        assert device is not None, "a function in its slot is known to the framework"
        return device

    # -- hot plug --------------------------------------------------------------------------------

    def plug(self, spec: DeviceSpec | str) -> Slot:
        """Add a device. ConfigError, or what its model or the framework refuse; then nothing changed."""
        if isinstance(spec, str):
            spec = parse_device(spec)
        groups = (group.number for group in self.framework.groups)
        (spec,) = place([spec], taken=tuple(self._slots), groups=groups)
        return self._plug(spec, _buses([*self._slots, spec.address]))

    def _plug(self, spec: DeviceSpec, crowded: set[str]) -> Slot:
        address = spec.address
        assert address is not None
        assert spec.group is not None
        model = catalogue.find(spec.model)
        bus = address.rpartition(":")[0]
        try:
            function = model(
                address,
                group=spec.group,
                unit=self.unit,
                clock=self.clock,
                store=self.store,
                options=spec.options,
                bus_reset=not bus.endswith(":00") and bus not in crowded,
            )
        except BaseException:
            self.store.release(address)
            raise
        slot = Slot(spec, function)
        try:
            self._firmware.set_up(function)
            record = self.framework.add_device(function, self.driver)
            if record.taint:
                raise Busy(record.taint)
            if record.bound:  # claimed: its group is in use
                slot.driver = DEFAULT_DRIVER
            else:
                self._give(slot, spec.driver)
        except BaseException:
            self._forget(slot)
            raise
        self._slots[address] = slot
        return slot

    def unplug(self, address: str) -> None:
        """Pull a device out, whoever uses it: its open files answer Gone from then on."""
        slot = self.slot(address)
        del self._slots[slot.address]
        self._forget(slot)

    def _forget(self, slot: Slot) -> None:
        function = slot.function
        record = self.framework.lookup(function)
        if record is not None:
            self.framework.del_device(function)
            if record.bound:
                self.framework.unbind_device(function, revoke=True)
        function.unplug()
        self._firmware.forget(function.name)
        self.store.release(function.name)

    # -- drivers ---------------------------------------------------------------------------------

    def bind(self, address: str, driver: str | None = None) -> None:
        """Give the device to ``driver`` (default: vfio-pci). Busy while another driver has it."""
        slot = self.slot(address)
        wanted = DEFAULT_DRIVER if driver is None else driver
        if wanted == NO_DRIVER:
            raise InvalidArgument(
                "none is not a driver", f"to take the driver away: unbind {slot.address}"
            )
        if slot.driver != NO_DRIVER:
            raise Busy(f"{slot.address} is bound to {slot.driver}", "unbind it first")
        if slot.revoked:
            slot.function.renew_memory()  # who had it before may still have it mapped
            slot.revoked = False
        self._give(slot, wanted)

    def unbind(
        self,
        address: str,
        timeout: float | None = None,
        revoke: bool = False,
        *,
        interval: float = 10.0,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        """Take the device from its driver; VFIO's waits for its users as ``Framework.unbind_device`` says."""
        slot = self.slot(address)
        if slot.driver == NO_DRIVER:
            raise InvalidArgument(f"{slot.address} is not bound to a driver")
        if slot.driver == DEFAULT_DRIVER:
            self.framework.unbind_device(
                slot.function,
                timeout=timeout,
                revoke=revoke,
                interval=interval,
                cancelled=cancelled,
            )
        slot.driver = NO_DRIVER
        slot.revoked = slot.revoked or revoke

    def _give(self, slot: Slot, driver: str) -> None:
        if driver == DEFAULT_DRIVER:
            self.framework.bind_device(slot.function, self.driver.probe(slot.function))
        elif driver != NO_DRIVER:
            self.framework.check_foreign_bind(slot.function)
        slot.driver = driver

    def _claim(self, dev: BusDevice) -> None:
        """The group of a function just plugged in is in use: only VFIO may have it."""
        assert isinstance(dev, PciModel)
        self.framework.bind_device(dev, self.driver.probe(dev))

    # -- for people and programs that read -------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """The machine as JSON values; see ``machine/describe.py``."""
        from uvfio.machine.describe import describe

        return describe(self)


def _buses(addresses: Iterable[str | None]) -> set[str]:
    """The buses with more than one function on them."""
    seen: set[str] = set()
    crowded: set[str] = set()
    for address in addresses:
        bus = (address or "").rpartition(":")[0]
        (crowded if bus in seen else seen).add(bus)
    return crowded
