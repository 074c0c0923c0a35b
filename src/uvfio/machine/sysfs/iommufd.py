"""What iommufd adds to the tree: /dev/iommu, the devices' own nodes, and the IOMMUs as a class of devices.

    /dev/iommu                              makes iommufds
    /dev/vfio/devices/vfioN                 a device that a VFIO driver has
    /sys/bus/BUS/devices/NAME/vfio-dev/vfioN/dev     its number, where programs look it up
    /sys/class/vfio-dev/vfioN               a link to that folder
    /sys/class/iommu/UNIT                   its registers, and links to the devices behind it
    /sys/bus/BUS/devices/NAME/iommu         a link back

Differences from a kernel's tree: see ``machine/sysfs/tree.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.translation.vtd import capabilities, extended_capabilities
from uvfio.machine.nodes import CDEV_MAJOR, CDEVS, Directory, Link, text_line

if TYPE_CHECKING:
    from uvfio.core.translation.unit import IommuUnit
    from uvfio.machine.machine import Machine
    from uvfio.machine.nodes import Node

__all__ = ["add_iommufd"]

IOMMUS = "/sys/class/iommu"


def add_iommufd(tree: dict[str, Node], machine: Machine) -> None:
    """Add it to ``tree``, which has the device nodes and the devices' folders already."""
    for number, device in sorted(machine.framework.nodes.items()):
        name = f"vfio{number}"
        if f"{CDEVS}/{name}" not in tree:
            continue
        home = f"bus/{device.dev.bus}/devices/{device.name}/vfio-dev"
        folder = f"/sys/{home}/{name}"
        tree[f"/sys/{home}"] = Directory()
        tree[folder] = Directory()
        tree[f"{folder}/dev"] = text_line(f"{CDEV_MAJOR}:{number}")
        about = f"MAJOR={CDEV_MAJOR}\nMINOR={number}\nDEVNAME=vfio/devices/{name}"
        tree[f"{folder}/uevent"] = text_line(about, 0o644)
        tree[f"{folder}/device"] = Link("../..")
        tree[f"{folder}/subsystem"] = Link("../../../../../../class/vfio-dev")
        tree[f"/sys/class/vfio-dev/{name}"] = Link(f"../../{home}/{name}")
    for unit in (machine.unit, *machine.units.values()):
        _add_unit(tree, unit)
    for slot in machine.slots:
        behind = slot.device.unit
        if behind is not None:
            folder = f"/sys/bus/{slot.device.bus}/devices/{slot.address}"
            tree[f"{folder}/iommu"] = Link(f"../../../../class/iommu/{behind.name}")
            back = Link(f"../../../../bus/{slot.device.bus}/devices/{slot.address}")
            tree[f"{IOMMUS}/{behind.name}/devices/{slot.address}"] = back


def _add_unit(tree: dict[str, Node], unit: IommuUnit) -> None:
    folder = f"{IOMMUS}/{unit.name}"
    for name in (folder, f"{folder}/devices", f"{folder}/intel-iommu"):
        tree[name] = Directory()
    tree[f"{folder}/intel-iommu/version"] = text_line("1:0")
    tree[f"{folder}/intel-iommu/cap"] = text_line(f"{capabilities(unit):x}")
    tree[f"{folder}/intel-iommu/ecap"] = text_line(f"{extended_capabilities(unit):x}")
