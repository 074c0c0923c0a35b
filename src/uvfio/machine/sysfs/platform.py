"""What a machine shows of its platform devices: their files in sysfs.

In sysfs a platform device has no file that says what it is but ``modalias`` and ``uevent``; the node of the
device tree does, and ``of_node`` leads there. On a real host that is a link into /sys/firmware; here it is a
folder with the properties of the node that matter, and below it the nodes that give the device resources.
Properties are encoded as in a flattened device tree: strings with their NUL, cells of 4 bytes, big-endian; two
cells for an address, two for a size, two for an interrupt (number; 4 level, 1 edge).

Imported when there is a platform device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.bus import DtProperty
from uvfio.machine.nodes import Directory, Link, Text, text_line

if TYPE_CHECKING:
    from uvfio.drivers.platform.hardware import Origin
    from uvfio.kit.platform.model import PlatformModel
    from uvfio.machine.nodes import Node

__all__ = ["add_device", "modalias", "uevent"]

_PLATFORM = "/sys/bus/platform"
_UP = "../../../.."  # from the folder of a device or of a driver to /sys
_LEVEL_HIGH, _EDGE_RISING = 4, 1  # IRQ_TYPE_* of linux/irq.h


def modalias(device: PlatformModel) -> str:
    """The string that drivers are looked up by (of_modalias in drivers/of/module.c); there is no device_type."""
    return f"of:N{_node_name(device.path)}T(null)" + "".join(f"C{c}" for c in device.compatible)


def add_device(
    tree: dict[str, Node], device: PlatformModel, driver: str | None, group: Node | None
) -> None:
    """Add the folder of ``device`` to ``tree``; ``group`` is what its iommu_group is, if any."""
    folder = f"{_PLATFORM}/devices/{device.name}"
    tree[folder] = Directory()
    tree[f"{folder}/modalias"] = text_line(modalias(device))
    tree[f"{folder}/subsystem"] = Link(f"{_UP}/bus/platform")
    if driver is not None:
        tree[f"{folder}/driver"] = Link(f"{_UP}/bus/platform/drivers/{driver}")
        back = Link(f"{_UP}/bus/platform/devices/{device.name}")
        tree[f"{_PLATFORM}/drivers/{driver}/{device.name}"] = back
    if group is not None:
        tree[f"{folder}/iommu_group"] = group
    _add_nodes(tree, device, f"{folder}/of_node")


def uevent(device: PlatformModel) -> list[str]:
    """The lines of its uevent file, without that of the driver."""
    return [
        f"OF_NAME={_node_name(device.path)}",
        f"OF_FULLNAME={device.path}",
        *(f"OF_COMPATIBLE_{number}={name}" for number, name in enumerate(device.compatible)),
        f"OF_COMPATIBLE_N={len(device.compatible)}",
        f"MODALIAS={modalias(device)}",
    ]


def _add_nodes(tree: dict[str, Node], device: PlatformModel, folder: str) -> None:
    """The node of the device and those below it, as folders with properties."""
    properties: dict[tuple[str, str], list[bytes]] = {}

    def add(origin: Origin, value: bytes) -> None:
        properties.setdefault((origin.path, origin.prop.value), []).append(value)

    for region in device.regions:
        add(region.origin, region.address.to_bytes(8, "big") + region.size.to_bytes(8, "big"))
    for line in device.interrupts:
        trigger = _LEVEL_HIGH if line.level else _EDGE_RISING
        add(line.origin, line.number.to_bytes(4, "big") + trigger.to_bytes(4, "big"))
    paths = {device.path: None}
    for path, _ in properties:
        below = device.path
        for part in path[len(device.path) + 1 :].split("/") if path != device.path else ():
            below = f"{below}/{part}"
            paths[below] = None
    for path in paths:
        at = folder + path[len(device.path) :]
        tree[at] = Directory()
        tree[f"{at}/name"] = Text(_node_name(path).encode() + b"\0")
        for prop in DtProperty:
            values = properties.get((path, prop.value))
            if values:
                tree[f"{at}/{prop.value}"] = Text(b"".join(values))
    tree[f"{folder}/compatible"] = Text(b"".join(c.encode() + b"\0" for c in device.compatible))


def _node_name(path: str) -> str:
    return path.rpartition("/")[2].partition("@")[0]
