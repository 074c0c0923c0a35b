"""A machine in JSON values, for `--json`, for the tables of the read verbs, and for `status`.

The shape is a promise: keys are added, never renamed or removed. Numbers are integers; the numbers that
people know as four hexadecimal digits (vendor, device) and the class code are strings of exactly those
digits. Addresses are canonical.

A device's ``bus`` says which other keys it has: "pci" those of a function, "platform" ``node``, ``compatible`` and
``interrupt_lines``. ``sriov`` is there for physical functions, ``physfn`` for virtual ones; else they are null. A
device's or group's ``iommu`` is null if it has none; the machine's ``iommu`` is its first one, ``iommus`` all of them.
``mistake`` is null, or why a model cannot say its ``statistics``: a mistake of one model hides no other device.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from uvfio.drivers.pci.sriov import find
from uvfio.kit.explain import mistaken
from uvfio.kit.pci.model import PciModel
from uvfio.kit.polled import kind_of_mapping
from uvfio.machine.facts import Resource, capabilities, identity, interrupts, resources

if TYPE_CHECKING:
    from uvfio.core.structure.group import Group
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.drivers.platform.hardware import Origin
    from uvfio.kit.platform.model import PlatformModel
    from uvfio.machine.machine import Machine
    from uvfio.machine.slot import Slot

__all__ = ["describe", "describe_device"]


def describe(machine: Machine) -> dict[str, Any]:
    """The whole machine: ``iommu``, ``iommus``, ``groups``, ``devices``."""
    groups = sorted(machine.framework.groups, key=lambda group: (group.bus, group.number))
    iommus = [_iommu(machine, unit) for unit in (machine.unit, *machine.units.values())]
    return {
        "iommu": iommus[0],
        "iommus": iommus,
        "groups": [_group(group) for group in groups],
        "devices": [describe_device(machine, slot) for slot in machine.slots],
    }


def describe_device(machine: Machine, slot: Slot) -> dict[str, Any]:
    """One device: what is true on any bus, then what its configuration space or device tree says."""
    device, record = slot.device, machine.record(slot.address)
    about: dict[str, Any] = {
        "address": slot.address,
        "bus": device.bus,
        "model": slot.spec.model,
        "options": dict(slot.spec.options),
        "group": device.group,
        "driver": None if slot.driver == "none" else slot.driver,
        "bound": record.bound,
        "open_files": len(record.opens),
    }
    if isinstance(device, PciModel):
        about |= _function(device)
        about["physfn"] = slot.physical.address if slot.physical else None
        about["sriov"] = _sriov(slot, device)
    else:
        about |= _platform_device(device)
    about |= _statistics(device)
    about["iommu"] = None if device.unit is None else device.unit.name
    return about


def _statistics(device: PciModel | PlatformModel) -> dict[str, Any]:
    try:
        numbers = dict(device.statistics())
        json.dumps(numbers)
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return {"statistics": {}, "mistake": str(mistaken(device, "statistics()", error))}
    return {"statistics": numbers, "mistake": None}


def _function(function: PciModel) -> dict[str, Any]:
    who = identity(function)
    return {
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
    }


def _sriov(slot: Slot, function: PciModel) -> dict[str, Any] | None:
    """What a physical function says of its virtual ones; None for any other."""
    capability = find(function)
    if capability is None:
        return None
    return {
        "totalvfs": capability.total,
        "numvfs": len(slot.virtual),
        "offset": capability.first,
        "stride": capability.stride,
        "vf_device": f"{capability.device_id:04x}",
        "vfs": [virtual.address for virtual in slot.virtual],
    }


def _resource(resource: Resource) -> dict[str, Any]:
    return {
        "index": resource.number,
        "kind": resource.kind,
        "start": resource.start,
        "size": resource.size,
        "prefetchable": resource.prefetchable,
        "mappable": resource.mappable,
        "mapping": kind_of_mapping(resource.mappable, resource.polled),
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
        "iommu": next((device.dev.unit.name for device in group.devices if device.dev.unit), None),
    }


def _reason(group: Group) -> str | None:
    try:
        group.check_viable()
    except OSError as condition:
        return str(condition)
    return None


def _iommu(machine: Machine, unit: IommuUnit) -> dict[str, Any]:
    return {
        "name": unit.name,
        "interrupt_remapping": unit.interrupt_remapping,
        "coherent": unit.coherent,
        "page_sizes": list(unit.page_sizes),
        "address_bits": unit.address_bits,
        "reserved": [list(bounds) for bounds in unit.reserved],
        "dma_entry_limit": machine.iommu.dma_entry_limit,
        "allow_unsafe_interrupts": machine.iommu.allow_unsafe_interrupts,
        "enable_sriov": machine.driver.enable_sriov,
        "enable_unsafe_noiommu_mode": machine.framework.noiommu,
    }


def _platform_device(device: PlatformModel) -> dict[str, Any]:
    """The part of a device's JSON values that only platform devices have."""
    return {
        "node": device.path,
        "compatible": list(device.compatible),
        "resources": [
            {
                "index": index,
                "kind": "registers" if index in device.register_maps else "memory",
                "start": region.address,
                "size": region.size,
                "prefetchable": False,
                "mappable": region.mappable,
                "mapping": kind_of_mapping(region.mappable, region.polled),
                **_origin(region.origin),
            }
            for index, region in enumerate(device.regions)
        ],
        "interrupt_lines": [
            {
                "index": index,
                "number": line.number,
                "trigger": "level" if line.level else "edge",
                **_origin(line.origin),
            }
            for index, line in enumerate(device.interrupts)
        ],
        "reset_methods": ["device"] if device.resettable else [],
    }


def _origin(origin: Origin) -> dict[str, Any]:
    return {"node": origin.path, "property": origin.prop.value, "entry": origin.entry}
