"""The files that a machine shows, as data: what a program finds in /dev/vfio and in sysfs.

``nodes`` maps absolute paths to nodes; folders come before what is in them. A door writes them to disk,
answers path calls from them, and compares two trees after a hot plug; nothing here does I/O.

Differences from a kernel's tree, on purpose: device folders stand in /sys/bus/BUS/devices themselves
instead of being links to /sys/devices, and every link is relative and stays within ``PREFIXES``, so that
a tree works wherever it is written.

``abi`` decides what iommu_group is: in 2011 a plain file that holds the number (the name of the node, should
another bus have had a group of that number first), in mainline a link to the group's folder. Group nodes belong
to every group in 2011, in mainline to groups that VFIO has a device of. Mainline has /dev/vfio/vfio besides, and what
``machine/sysfs/iommufd.py`` adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.kit.pci.model import PciModel
from uvfio.machine.facts import identity, resources
from uvfio.machine.nodes import (
    CDEVS,
    GROUP_MAJOR,
    Directory,
    Link,
    Node,
    Text,
    device_nodes,
    text_line,
)
from uvfio.machine.sysfs import drivers as driver_files  # noqa: F401 (they register)
from uvfio.machine.sysfs import functions as function_files  # noqa: F401 (they register)
from uvfio.machine.sysfs import sriov as sriov_files  # noqa: F401 (they register)
from uvfio.machine.sysfs.attributes import Bound, shown
from uvfio.machine.sysfs.host import MODULES
from uvfio.uapi import pci

if TYPE_CHECKING:
    from uvfio.core.structure.group import Group
    from uvfio.machine.machine import Machine
    from uvfio.machine.slot import Slot

__all__ = [
    "PREFIXES",
    "attribute_text",
    "nodes",
]

PREFIXES = (
    b"/dev/vfio",
    b"/sys/bus/pci",
    b"/sys/bus/platform",
    b"/sys/kernel/iommu_groups",
    b"/sys/class/vfio",
    b"/sys/devices/virtual/vfio",
    *(f"/sys/module/{module}".encode() for module in MODULES),
    b"/sys/class/vfio-dev",
    b"/sys/class/iommu",
    b"/dev/iommu",
)
"""Everything at and below these belongs to the machine; the host's own is hidden."""
NO_FOLDERS = (b"/dev/iommu",)

_PCI = "/sys/bus/pci"
_PLATFORM = "/sys/bus/platform"
_UP = "../../../.."  # from the folder of a device, of a driver, or of a group's devices to /sys
_MODULE_DRIVERS = (
    ("vfio_pci", "pci", "vfio-pci"),
    ("vfio_platform", "platform", "vfio-platform"),
)
_RESOURCE_LINES = 13  # 6 BARs, the ROM, 6 of SR-IOV


def nodes(machine: Machine, abi: str = "2011") -> dict[str, Node]:
    """The tree of ``machine`` now, as ``abi`` ("2011", or "mainline", which "auto" shares) has it."""
    tree: dict[str, Node] = {
        prefix.decode(): Directory() for prefix in PREFIXES if prefix not in NO_FOLDERS
    }
    for folder in (f"{_PCI}/devices", f"{_PCI}/slots", f"{_PLATFORM}/devices"):
        tree[folder] = Directory()
    for bus in ("pci", "platform"):
        _add_drivers(tree, machine, bus)
    _add_modules(tree, machine)
    devices = device_nodes(machine.framework, abi)
    if abi != "2011":
        tree[CDEVS] = Directory()
    tree.update(devices)
    for group in machine.framework.groups:
        bound = any(device.bound for device in group.devices)
        if f"/dev/vfio/{group.node_name}" in devices:
            _add_node(tree, group)
        if bound or not group.unprotected:  # without an IOMMU a group is VFIO's own
            _add_group(tree, machine, group)
    for slot in machine.slots:
        record = machine.record(slot.address)
        name = folder_name(record.group)
        shown_group: Node | None = Link(f"{_UP}/kernel/iommu_groups/{name}")
        if record.group.unprotected and not record.bound:
            shown_group = None
        elif abi == "2011":
            shown_group = text_line(name)
        _add_device(tree, machine, slot, shown_group)
    if abi != "2011":
        from uvfio.machine.sysfs.iommufd import add_iommufd

        add_iommufd(tree, machine)
    return tree


def attribute_text(bound: Bound) -> Text:
    """The node of an attribute, with what it shows now."""
    return Text(bound.text(), bound.mode)


def _add_attributes(tree: dict[str, Node], machine: Machine, folder: str, name: str = "") -> None:
    for bound in shown(machine, folder, name):
        tree[bound.path] = attribute_text(bound)


def _add_drivers(tree: dict[str, Node], machine: Machine, bus: str) -> None:
    root = f"/sys/bus/{bus}"
    _add_attributes(tree, machine, root)
    tree[f"{root}/drivers"] = Directory()
    for driver in machine.binding.drivers(bus):
        tree[f"{root}/drivers/{driver}"] = Directory()
        _add_attributes(tree, machine, f"{root}/drivers/*", driver)
        module = driver.replace("-", "_")
        if module in MODULES:
            tree[f"{root}/drivers/{driver}/module"] = Link(f"{_UP}/module/{module}")


def _add_modules(tree: dict[str, Node], machine: Machine) -> None:
    for module in MODULES:
        folder = f"/sys/module/{module}"
        tree[f"{folder}/initstate"] = text_line("live")
        tree[f"{folder}/parameters"] = Directory()
        _add_attributes(tree, machine, f"{folder}/parameters")
    for module, bus, driver in _MODULE_DRIVERS:
        tree[f"/sys/module/{module}/drivers"] = Directory()
        link = Link(f"../../../bus/{bus}/drivers/{driver}")
        tree[f"/sys/module/{module}/drivers/{bus}:{driver}"] = link


def _add_node(tree: dict[str, Node], group: Group) -> None:
    folder = f"/sys/devices/virtual/vfio/{group.node_name}"
    tree[folder] = Directory()
    tree[f"/sys/class/vfio/{group.node_name}"] = Link(f"../..{folder[4:]}")
    tree[f"{folder}/subsystem"] = Link(f"{_UP}/class/vfio")
    tree[f"{folder}/dev"] = text_line(f"{GROUP_MAJOR}:{group.minor}")
    tree[f"{folder}/uevent"] = text_line(
        f"MAJOR={GROUP_MAJOR}\nMINOR={group.minor}\nDEVNAME=vfio/{group.node_name}", 0o644
    )


def _add_group(tree: dict[str, Node], machine: Machine, group: Group) -> None:
    name = folder_name(group)
    folder = f"/sys/kernel/iommu_groups/{name}"
    tree[folder] = Directory()
    tree[f"{folder}/devices"] = Directory()
    if group.unprotected:
        tree[f"{folder}/name"] = text_line("vfio-noiommu")
    else:
        _add_attributes(tree, machine, "/sys/kernel/iommu_groups/*", name)
    for device in sorted(group.devices, key=lambda device: device.name):
        target = f"{_UP}/bus/{group.bus}/devices/{device.name}"
        tree[f"{folder}/devices/{device.name}"] = Link(target)


def _add_device(tree: dict[str, Node], machine: Machine, slot: Slot, group: Node | None) -> None:
    """``group`` is what iommu_group is, if there is one."""
    if isinstance(slot.device, PciModel):
        _add_function(tree, slot, slot.device, group)
        _add_attributes(tree, machine, f"{_PCI}/devices/*", slot.address)
        return

    from uvfio.machine.sysfs.platform import add_device

    add_device(tree, slot.device, None if slot.driver == "none" else slot.driver, group)
    _add_attributes(tree, machine, f"{_PLATFORM}/devices/*", slot.address)


def folder_name(group: Group) -> str:
    """What the group is called in /sys/kernel/iommu_groups: without an IOMMU its number."""
    return str(group.number) if group.unprotected else group.node_name


def _add_function(
    tree: dict[str, Node], slot: Slot, function: PciModel, group: Node | None
) -> None:
    folder = f"{_PCI}/devices/{slot.address}"
    who = identity(function)
    pin = function.config_read(pci.PCI_INTERRUPT_PIN, 1)
    line = function.config_read(pci.PCI_INTERRUPT_LINE, 1) if pin else 0
    tree[folder] = Directory()
    tree[f"{folder}/vendor"] = text_line(f"{who.vendor:#06x}")
    tree[f"{folder}/device"] = text_line(f"{who.device:#06x}")
    tree[f"{folder}/subsystem_vendor"] = text_line(f"{who.subsystem_vendor:#06x}")
    tree[f"{folder}/subsystem_device"] = text_line(f"{who.subsystem_device:#06x}")
    tree[f"{folder}/class"] = text_line(f"{who.class_code:#08x}")
    tree[f"{folder}/revision"] = text_line(f"{who.revision:#04x}")
    tree[f"{folder}/irq"] = text_line(str(line))
    tree[f"{folder}/modalias"] = text_line(who.modalias)
    tree[f"{folder}/resource"] = text_line(_resource_lines(function))
    tree[f"{folder}/subsystem"] = Link(f"{_UP}/bus/pci")
    if slot.driver != "none":
        tree[f"{folder}/driver"] = Link(f"{_UP}/bus/pci/drivers/{slot.driver}")
        back = Link(f"{_UP}/bus/pci/devices/{slot.address}")
        tree[f"{_PCI}/drivers/{slot.driver}/{slot.address}"] = back
    if group is not None:
        tree[f"{folder}/iommu_group"] = group
    if slot.physical is not None:
        tree[f"{folder}/physfn"] = Link(f"../{slot.physical.address}")
    for number, virtual in enumerate(slot.virtual):
        tree[f"{folder}/virtfn{number}"] = Link(f"../{virtual.address}")


def _resource_lines(function: PciModel) -> str:
    lines = ["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * _RESOURCE_LINES
    for resource in resources(function):
        end = resource.start + resource.size - 1
        lines[resource.number] = f"{resource.start:#018x} {end:#018x} {resource.flags:#018x}"
    return "\n".join(lines)
