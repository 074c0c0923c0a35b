"""The files of buses and drivers in sysfs: bind, unbind, new_id, drivers_probe and their kin, for both buses.

Each is one line of ``register`` and a function that says what a write means; the rules are in ``machine/binding.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import InvalidArgument
from uvfio.kit.pci.model import PciModel
from uvfio.machine.facts import identity
from uvfio.machine.spec import NO_DRIVER
from uvfio.machine.sysfs.attributes import parse_unsigned, register

if TYPE_CHECKING:
    from uvfio.core.waiting import Wait
    from uvfio.machine.machine import Machine

__all__: list[str] = []

_ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")


def uevent(machine: Machine, name: str, text: str) -> None:
    """kobject_synth_uevent: no process receives the message here. InvalidArgument for an unknown action."""
    action = text.removesuffix("\n").partition(" ")[0]
    if action not in _ACTIONS:
        raise InvalidArgument(f"{action!r} is no action", f"known: {', '.join(_ACTIONS)}")


def show_uevent(machine: Machine, address: str) -> str:
    """The driver, then what the bus says of the device (pci_uevent, of_device_uevent)."""
    slot = machine.slot(address)
    lines = [f"DRIVER={slot.driver}"] if slot.driver != NO_DRIVER else []
    if not isinstance(slot.device, PciModel):
        from uvfio.machine.sysfs import platform as platform_facts

        return "\n".join(lines + platform_facts.uevent(slot.device))
    who = identity(slot.device)
    lines += [
        f"PCI_CLASS={who.class_code:X}",
        f"PCI_ID={who.vendor:04X}:{who.device:04X}",
        f"PCI_SUBSYS_ID={who.subsystem_vendor:04X}:{who.subsystem_device:04X}",
        f"PCI_SLOT_NAME={address}",
        f"MODALIAS={who.modalias}",
    ]
    return "\n".join(lines)


def _register_bus(bus: str) -> None:
    root, drivers, devices = (f"/sys/bus/{bus}{rest}" for rest in ("", "/drivers/*", "/devices/*"))

    def bind(machine: Machine, driver: str, text: str) -> None:
        machine.binding.attach(driver, machine.binding.device(bus, text))

    def unbind(machine: Machine, driver: str, text: str) -> Wait | None:
        return machine.binding.detach(driver, machine.binding.device(bus, text))

    def probe(machine: Machine, name: str, text: str) -> None:
        machine.binding.probe(machine.binding.device(bus, text))

    def autoprobe(machine: Machine, name: str) -> str:
        return str(int(machine.binding.autoprobe[bus]))

    def set_autoprobe(machine: Machine, name: str, text: str) -> None:
        machine.binding.autoprobe[bus] = text[:1] != "0"

    def override(machine: Machine, address: str) -> str:
        return machine.binding.overrides.get(address, "(null)")

    def set_override(machine: Machine, address: str, text: str) -> None:
        machine.binding.override(address, text)

    register(f"{root}/drivers_autoprobe", show=autoprobe, store=set_autoprobe)
    register(f"{root}/drivers_probe", store=probe)
    register(f"{root}/uevent", store=uevent)
    register(f"{drivers}/bind", store=bind)
    register(f"{drivers}/unbind", store=unbind)
    register(f"{drivers}/uevent", store=uevent)
    register(f"{devices}/driver_override", show=override, store=set_override)
    register(f"{devices}/uevent", show=show_uevent, store=uevent)


def new_id(machine: Machine, driver: str, text: str) -> None:
    machine.binding.add_id(driver, text)


def remove_id(machine: Machine, driver: str, text: str) -> None:
    machine.binding.remove_id(driver, text)


def rescan(machine: Machine, name: str, text: str) -> None:
    if parse_unsigned(text):
        machine.binding.rescan()


_register_bus("pci")
_register_bus("platform")
register("/sys/bus/pci/drivers/*/new_id", store=new_id)
register("/sys/bus/pci/drivers/*/remove_id", store=remove_id)
register("/sys/bus/pci/rescan", store=rescan)
register("/sys/bus/pci/devices/*/rescan", store=rescan)
