"""Which driver takes which device: what the driver core of a host decides before it binds one.

A driver of the host is a name. There are the VFIO drivers, and every name that the machine's description or a bind
ever mentioned. A driver matches a device in this order (pci_match_device, platform_match):

    the device has an override        that driver and no other
    the driver was given its id       ``new_id``, PCI only
    the description names the driver  as if its table of ids had the device, or as with the VFIO driver's "ids="

Invariants: overrides and ids outlive bindings and end with the device, or with ``remove_id``. Nothing here binds:
``attach`` and ``probe`` ask ``Machine.bind``, which has the rules of use.

Behaviour: drivers/base/bus.c (bind_store, unbind_store, drivers_probe_store), drivers/base/dd.c, drivers/base/driver.c
(driver_set_override), drivers/pci/pci-driver.c (new_id_store, remove_id_store, pci_match_device).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from uvfio.errors import Busy, InvalidArgument, NoSuchDevice, Overlap, VfioError
from uvfio.kit.pci.model import PciModel
from uvfio.machine.facts import identity
from uvfio.machine.spec import NO_DRIVER, VFIO_DRIVERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvfio.core.waiting import Wait
    from uvfio.machine.machine import Machine
    from uvfio.machine.slot import Slot
    from uvfio.machine.spec import DeviceSpec

__all__ = ["Binding", "Id"]

ANY = 0xFFFFFFFF  # PCI_ANY_ID
_OVERRIDE_MAX = 4095


class Id(NamedTuple):
    """A ``struct pci_device_id`` that was written to ``new_id``."""

    vendor: int
    device: int
    subvendor: int = ANY
    subdevice: int = ANY
    class_code: int = 0
    class_mask: int = 0

    def matches(self, function: PciModel) -> bool:
        """pci_match_one_device"""
        who = identity(function)
        subsystem = who.subsystem_vendor, who.subsystem_device
        return self.covers(Id(who.vendor, who.device, *subsystem, who.class_code))

    def covers(self, other: Id) -> bool:
        """Whether devices of the ``other`` id match this one already."""
        return (
            self.vendor in (ANY, other.vendor)
            and self.device in (ANY, other.device)
            and self.subvendor in (ANY, other.subvendor)
            and self.subdevice in (ANY, other.subdevice)
            and not (self.class_code ^ other.class_code) & self.class_mask
        )


class Binding:
    """The drivers of ``machine`` and what they match."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.autoprobe = {"pci": True, "platform": True}
        self.overrides: dict[str, str] = {}
        self.ids: dict[str, list[Id]] = {}
        self.removed: list[DeviceSpec] = []
        self._names: dict[str, dict[str, None]] = {
            bus: {name: None} for bus, name in VFIO_DRIVERS.items()
        }

    # -- questions -------------------------------------------------------------------------------

    def drivers(self, bus: str) -> tuple[str, ...]:
        """The drivers of ``bus``, in the order in which they got known; VFIO's is the first."""
        return tuple(self._names[bus])

    def mention(self, bus: str, driver: str) -> None:
        """From now on there is a driver of this name."""
        if driver != NO_DRIVER:
            self._names[bus][driver] = None

    def on(self, bus: str) -> Iterator[Slot]:
        """The devices of ``bus``, by address."""
        return (slot for slot in self.machine.slots if slot.device.bus == bus)

    def device(self, bus: str, text: str) -> Slot:
        """The device that a write names, with or without a newline. NoSuchDevice."""
        name = text.removesuffix("\n")
        found = next((slot for slot in self.on(bus) if slot.address == name), None)
        if found is None:
            raise NoSuchDevice(f"there is no device {name!r} on the {bus} bus")
        return found

    def matches(self, driver: str, slot: Slot) -> bool:
        """Whether ``driver`` may have the device; see the module's head."""
        override = self.overrides.get(slot.address)
        if override is not None:
            return override == driver
        if isinstance(slot.device, PciModel):
            function = slot.device
            if any(known.matches(function) for known in self.ids.get(driver, ())):
                return True
        return slot.spec.driver == driver

    # -- binding ---------------------------------------------------------------------------------

    def attach(self, driver: str, slot: Slot) -> None:
        """bind_store: NoSuchDevice if the driver does not match, then what ``Machine.bind`` refuses."""
        if not self.matches(driver, slot):
            raise NoSuchDevice(
                f"{driver} does not match {slot.address}",
                f"write {driver} to its driver_override first",
            )
        self.machine.bind(slot.address, driver)

    def detach(self, driver: str, slot: Slot) -> Wait | None:
        """unbind_store: NoSuchDevice if another driver has it, or none. Users of VFIO's are waited for."""
        if slot.driver != driver:
            raise NoSuchDevice(f"{slot.address} is not bound to {driver}")
        return self.machine.begin_unbind(slot.address)

    def probe(self, slot: Slot) -> None:
        """device_attach: offer the device to every driver; it is no error if none takes it."""
        if slot.driver != NO_DRIVER:
            return
        for driver in self.drivers(slot.device.bus):
            if self._offer(driver, slot):
                return

    def _offer(self, driver: str, slot: Slot) -> bool:
        """Whether ``driver`` matches the device, which has none, and takes it."""
        if not self.matches(driver, slot):
            return False
        try:
            self.machine.bind(slot.address, driver)
        except VfioError:
            return False
        return True

    def override(self, address: str, text: str) -> None:
        """driver_set_override: an empty line or nothing takes the override away."""
        if len(text) >= _OVERRIDE_MAX:
            raise InvalidArgument(f"a name of {len(text)} bytes is too long")
        name = text.split("\n", maxsplit=1)[0]
        if name:
            self.overrides[address] = name
        else:
            self.overrides.pop(address, None)

    # -- ids -------------------------------------------------------------------------------------

    def add_id(self, driver: str, text: str) -> None:
        """new_id_store: remember the id, then offer all devices to the driver. InvalidArgument, Overlap (EEXIST)."""
        values = _fields(text, 7)
        new = Id(*values[:6])
        if len(values) > 6 and values[6]:
            raise InvalidArgument(f"{driver} knows no driver_data {values[6]:#x}")
        known = self.ids.setdefault(driver, [])
        if len(values) != 7 and any(old.covers(new) for old in known):
            raise Overlap(f"{driver} has {new.vendor:04x}:{new.device:04x} already")
        known.append(new)
        for slot in self.on("pci"):
            if slot.driver == NO_DRIVER:
                self._offer(driver, slot)

    def remove_id(self, driver: str, text: str) -> None:
        """remove_id_store: forget the first such id; bound devices stay bound. InvalidArgument, NoSuchDevice."""
        wanted = Id(*_fields(text, 6))
        known = self.ids.get(driver, [])
        for old in known:
            if (
                old[:2] == wanted[:2]
                and wanted.subvendor in (ANY, old.subvendor)
                and wanted.subdevice in (ANY, old.subdevice)
                and not (old.class_code ^ wanted.class_code) & wanted.class_mask
            ):
                known.remove(old)
                return
        raise NoSuchDevice(f"{driver} was not given {wanted.vendor:04x}:{wanted.device:04x}")

    # -- coming and going ------------------------------------------------------------------------

    def remove(self, slot: Slot) -> None:
        """The device leaves its slot as the host sees it; ``rescan`` finds it again."""
        if slot.driver != NO_DRIVER:
            raise Busy(f"{slot.address} is bound to {slot.driver}")
        self.machine.unplug(slot.address)
        self.removed.append(slot.spec)

    def rescan(self) -> None:
        """Find what was removed (pci_rescan_bus), with drivers if they are probed by themselves."""
        found, self.removed = self.removed, []
        for spec in found:
            try:
                self.machine.plug(spec, driver=None if self.autoprobe["pci"] else NO_DRIVER)
            except VfioError:
                self.removed.append(spec)  # something else is in its place

    def forget(self, slot: Slot) -> None:
        """The device is gone, and with it what was said of it."""
        self.overrides.pop(slot.address, None)


def _fields(text: str, most: int) -> list[int]:
    """sscanf("%x %x ..."): two numbers at least, up to what is none."""
    values: list[int] = []
    for word in text.split()[:most]:
        try:
            values.append(int(word, 16) & (ANY if len(values) < 6 else 2**64 - 1))
        except ValueError:
            break
    if len(values) < 2:
        raise InvalidArgument(f"{text.rstrip()!r} is no id", "vendor and device, hexadecimal")
    return values
