"""Files of the host around the devices: modules and their parameters, and the groups of the IOMMU.

The modules are those of VFIO, shown as if they had been loaded. Parameters that VFIO here has can be written;
what they change holds for what is made afterwards, as in the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import InvalidArgument, NoSuchGroup
from uvfio.machine.sysfs.attributes import parse_bool, parse_unsigned, register

if TYPE_CHECKING:
    from uvfio.core.structure.group import Group
    from uvfio.machine.machine import Machine

__all__ = ["MODULES"]

MODULES = ("vfio", "vfio_iommu_type1", "vfio_pci", "vfio_pci_core", "vfio_platform")
"""Folders in /sys/module."""

_TYPE1 = "/sys/module/vfio_iommu_type1/parameters"
_GROUP = "/sys/kernel/iommu_groups/*"


def _yes(value: object) -> str:
    return "Y" if value else "N"


def unsafe(machine: Machine, name: str) -> str:
    return _yes(machine.framework.allow_unsafe_interrupts)


def set_unsafe(machine: Machine, name: str, text: str) -> None:
    machine.framework.allow_unsafe_interrupts = parse_bool(text)


def entry_limit(machine: Machine, name: str) -> str:
    return str(machine.framework.dma_entry_limit)


def set_entry_limit(machine: Machine, name: str, text: str) -> None:
    """param_set_uint: 32 bits. InvalidArgument."""
    limit = parse_unsigned(text)
    if limit >= 1 << 32:
        raise InvalidArgument(f"{limit} does not fit 32 bits", errno=34)
    machine.framework.dma_entry_limit = limit


def noiommu(machine: Machine, name: str) -> str:
    return _yes(machine.framework.noiommu)


def set_noiommu(machine: Machine, name: str, text: str) -> None:
    machine.framework.noiommu = parse_bool(text)


def _group(machine: Machine, name: str) -> Group:
    for group in machine.framework.groups:
        if group.node_name == name:
            return group
    raise NoSuchGroup(f"no group {name}")


def reserved_regions(machine: Machine, name: str) -> str:
    """Ranges that no mapping may touch (iommu_group_show_resv_regions); those for interrupts are "msi"."""
    units = {device.dev.unit for device in _group(machine, name).devices if device.dev.unit}
    ranges = sorted({bounds for unit in units for bounds in unit.reserved})
    return "\n".join(
        f"{first:#018x} {last:#018x} {'msi' if first >> 20 == 0xFEE else 'reserved'}"
        for first, last in ranges
    )


def domain_type(machine: Machine, name: str) -> str:
    return "DMA"


def set_domain_type(machine: Machine, name: str, text: str) -> None:
    """iommu_group_store_type: what it is already, or InvalidArgument."""
    if text.removesuffix("\n") not in ("DMA", "auto"):
        raise InvalidArgument(f"{text.rstrip()!r}: the domain of a group is DMA")


register(f"{_TYPE1}/allow_unsafe_interrupts", show=unsafe, store=set_unsafe)
register(f"{_TYPE1}/dma_entry_limit", show=entry_limit, store=set_entry_limit)
register("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", show=noiommu, store=set_noiommu)
register(f"{_GROUP}/reserved_regions", show=reserved_regions)
register(f"{_GROUP}/type", show=domain_type, store=set_domain_type)
