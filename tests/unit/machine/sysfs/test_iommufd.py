"""What iommufd adds to the tree."""

from __future__ import annotations

import posixpath

from uvfio.machine.machine import Machine
from uvfio.machine.nodes import CharDev, Directory, Link, Text
from uvfio.machine.spec import IommuSpec
from uvfio.machine.sysfs.tree import nodes

A, B = "0000:06:0d.0", "0000:07:00.0"


def test_nodes_of_devices() -> None:
    machine = Machine(devices=[f"edu@{A},group=3", f"edu@{B},group=4,driver=none"])
    tree = nodes(machine, "mainline")
    assert tree["/dev/iommu"] == CharDev("", 0, 10, 125, 0o660, "iommufd")
    assert tree["/dev/vfio/devices"] == Directory()
    assert tree["/dev/vfio/devices/vfio0"] == CharDev("", 0, 510, 0, 0o600, "cdev")
    assert "/dev/vfio/devices/vfio1" not in tree
    folder = f"/sys/bus/pci/devices/{A}/vfio-dev/vfio0"
    assert tree[f"{folder}/dev"] == Text(b"510:0\n")
    assert tree[f"{folder}/uevent"] == Text(
        b"MAJOR=510\nMINOR=0\nDEVNAME=vfio/devices/vfio0\n", 0o644
    )
    assert f"/sys/bus/pci/devices/{B}/vfio-dev" not in tree
    machine.bind(B)
    assert "/dev/vfio/devices/vfio1" in nodes(machine, "mainline")


def test_there_is_none_of_it_in_2011() -> None:
    tree = nodes(Machine(), "2011")
    assert "/dev/iommu" not in tree
    assert not [path for path in tree if "vfio-dev/" in path or path.startswith("/dev/vfio/dev")]


def test_links_lead_to_what_is_there() -> None:
    machine = Machine(
        devices=["edu@6:d.0,group=3", "timer@/soc/timer@10010000"],
        iommus={"second": IommuSpec(address_bits=39)},
    )
    tree = nodes(machine, "mainline")
    links = {path: node.target for path, node in tree.items() if isinstance(node, Link)}
    assert f"/sys/bus/pci/devices/{A}/iommu" in links
    assert "/sys/class/vfio-dev/vfio1" in links
    for path, target in links.items():
        assert posixpath.normpath(f"{posixpath.dirname(path)}/{target}") in tree, path
    registers = {
        name: int(node.data, 16)
        for name in ("iommu0", "second")
        if isinstance(node := tree[f"/sys/class/iommu/{name}/intel-iommu/cap"], Text)
    }
    widths = {name: (value >> 16 & 63) + 1 for name, value in registers.items()}
    assert widths == {"iommu0": 48, "second": 39}
