"""A machine in JSON values, for `--json`, for the tables of the read verbs, and for `status`.

The shape is a promise: keys are added, never renamed or removed. Numbers are integers; the numbers that
people know as four hexadecimal digits (vendor, device) and the class code are strings of exactly those
digits. Addresses are canonical.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvfio.machine.facts import Resource, capabilities, identity, interrupts, resources

if TYPE_CHECKING:
    from uvfio.core.group import Group
    from uvfio.machine.machine import Machine, Slot

__all__ = ["describe", "describe_device"]


def describe(machine: Machine) -> dict[str, Any]:
    """The whole machine: ``iommu``, ``groups``, ``devices``."""
    groups = sorted(machine.framework.groups, key=lambda group: (group.bus, group.number))
    return {
        "iommu": _iommu(machine),
        "groups": [_group(group) for group in groups],
        "devices": [describe_device(machine, slot) for slot in machine.slots],
    }


def describe_device(machine: Machine, slot: Slot) -> dict[str, Any]:
    """One device, with what its configuration space says."""
    function = slot.function
    who = identity(function)
    return {
        "address": slot.address,
        "model": slot.spec.model,
        "options": dict(slot.spec.options),
        "group": function.group,
        "driver": None if slot.driver == "none" else slot.driver,
        "bound": machine.record(slot.address).bound,
        "open_files": len(machine.record(slot.address).opens),
        "vendor": f"{who.vendor:04x}",
        "device": f"{who.device:04x}",
        "subsystem_vendor": f"{who.subsystem_vendor:04x}",
        "subsystem_device": f"{who.subsystem_device:04x}",
        "class": f"{who.class_code:06x}",
        "revision": who.revision,
        "config_size": function.config_size,
        "resources": [_resource(resource) for resource in resources(function)],
        "capabilities": [
            {"offset": cap.offset, "id": cap.id, "name": cap.name, "extended": cap.extended}
            for cap in capabilities(function)
        ],
        "interrupts": interrupts(function),
        "reset_methods": list(function.reset_methods),
        "iommu": None if function.unit is None else function.unit.name,
    }


def _resource(resource: Resource) -> dict[str, Any]:
    return {
        "index": resource.number,
        "kind": resource.kind,
        "start": resource.start,
        "size": resource.size,
        "prefetchable": resource.prefetchable,
        "mappable": resource.mappable,
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "number": group.number,
        "bus": group.bus,
        "node": f"/dev/vfio/{group.node_name}",
        "minor": group.minor,
        "viable": group.viable,
        "not_viable_because": _reason(group),
        "tainted": group.tainted or None,
        "open": group.is_open,
        "merged_with": sorted(
            other.number
            for other in (group.iommu.groups if group.iommu else ())
            if other is not group
        ),
        "devices": sorted(device.name for device in group.devices),
    }


def _reason(group: Group) -> str | None:
    try:
        group.check_viable()
    except OSError as condition:
        return str(condition)
    return None


def _iommu(machine: Machine) -> dict[str, Any]:
    spec = machine.iommu
    return {
        "name": machine.unit.name,
        "interrupt_remapping": spec.interrupt_remapping,
        "coherent": spec.coherent,
        "page_sizes": list(spec.page_sizes),
        "address_bits": spec.address_bits,
        "reserved": [list(bounds) for bounds in spec.reserved],
        "dma_entry_limit": spec.dma_entry_limit,
        "allow_unsafe_interrupts": spec.allow_unsafe_interrupts,
    }
