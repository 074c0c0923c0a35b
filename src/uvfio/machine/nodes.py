"""The kinds of file that a machine shows, and which device nodes there are.

``Directory``, ``Text``, ``Link`` and ``CharDev`` are values; a tree maps absolute paths to them (``machine/sysfs``).
``device_nodes`` is the rule of which device nodes exist, by path::

    /dev/vfio/N                  2011: of every group; mainline: of groups with a device that a VFIO driver has
    /dev/vfio/vfio               mainline: makes containers
    /dev/iommu                   mainline: makes iommufds
    /dev/vfio/devices/vfioN      mainline: of a device that a VFIO driver has and an IOMMU protects

"auto" has the nodes of mainline. What an open of a node makes is in ``machine/open.py``. Nothing here does I/O.

The kinds are named tuples because a data class costs a millisecond to define, which every `uvfio run` would pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from uvfio.core.structure.device import Device
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group

__all__ = [
    "CDEVS",
    "CDEV_MAJOR",
    "GROUP_MAJOR",
    "CharDev",
    "Directory",
    "Link",
    "Node",
    "Text",
    "device_nodes",
    "node_at",
    "text_line",
]

GROUP_MAJOR = 511  # the top of the kernel's dynamic range
CDEV_MAJOR = GROUP_MAJOR - 1  # numbers are given from the top, and groups come first
MISC_MAJOR, VFIO_MINOR, IOMMU_MINOR = 10, 196, 125
CDEVS = "/dev/vfio/devices"  # the folder of devices' own nodes


class Directory(NamedTuple):
    """A folder."""

    mode: int = 0o755


class Text(NamedTuple):
    """A file with these bytes (text but for ``config``)."""

    data: bytes
    mode: int = 0o444


def text_line(text: str, mode: int = 0o444) -> Text:
    """A file with ``text`` and a newline."""
    return Text(f"{text}\n".encode("ascii"), mode)


class Link(NamedTuple):
    """A symbolic link; ``target`` is relative to the folder that the link is in."""

    target: str


class CharDev(NamedTuple):
    """The node of the group with this ``minor``; only its owner, the user who runs the program, may open it.

    With ``opens`` "container" and "iommufd" it is the node that makes those, with "cdev" that of the device with this
    ``minor``; then ``bus`` and ``group`` mean nothing.
    """

    bus: str
    group: int
    major: int
    minor: int
    mode: int = 0o600
    opens: str = "group"


Node = Directory | Text | Link | CharDev

MAINLINE_NODES = {
    "/dev/vfio/vfio": CharDev("", 0, MISC_MAJOR, VFIO_MINOR, 0o666, "container"),
    "/dev/iommu": CharDev("", 0, MISC_MAJOR, IOMMU_MINOR, 0o660, "iommufd"),
}


def device_nodes(framework: Framework, abi: str) -> dict[str, CharDev]:
    """The device nodes that ``abi`` ("2011", "mainline" or "auto") has now, by path."""
    found = dict(_fixed_nodes(abi))
    for group in framework.groups:
        node = _group_node(group, abi)
        if node is not None:
            found[f"/dev/vfio/{group.node_name}"] = node
    if abi != "2011":
        for number, device in sorted(framework.nodes.items()):
            node = _cdev_node(number, device)
            if node is not None:
                found[f"{CDEVS}/vfio{number}"] = node
    return found


def node_at(framework: Framework, path: str, abi: str) -> CharDev | None:
    """The device node at ``path``, as ``device_nodes`` has it, or None."""
    node = _fixed_nodes(abi).get(path)
    if node is not None:
        return node
    folder, _, name = path.rpartition("/")
    if folder == CDEVS and abi != "2011":
        digits = name.removeprefix("vfio")
        number = int(digits) if digits.isdecimal() and digits.isascii() else -1
        device = framework.nodes.get(number)
        known = device is not None and name == f"vfio{number}"
        return _cdev_node(number, device) if known and device is not None else None
    if folder == "/dev/vfio":
        for group in framework.groups:
            if group.node_name == name:
                return _group_node(group, abi)
    return None


def _fixed_nodes(abi: str) -> dict[str, CharDev]:
    return {} if abi == "2011" else MAINLINE_NODES


def _group_node(group: Group, abi: str) -> CharDev | None:
    if abi == "2011" or any(device.bound for device in group.devices):
        return CharDev(group.bus, group.number, GROUP_MAJOR, group.minor)
    return None


def _cdev_node(number: int, device: Device) -> CharDev | None:
    if device.dev.unit is None:  # without an IOMMU it is reached by its group only
        return None
    return CharDev("", 0, CDEV_MAJOR, number, opens="cdev")
