"""The files that a machine shows."""

from __future__ import annotations

import posixpath
import struct

import pytest

from uvfio.machine.facts import capabilities, identity, interrupts
from uvfio.machine.machine import Machine
from uvfio.machine.nodes import GROUP_MAJOR, CharDev, Directory, Link, Node, Text
from uvfio.machine.sysfs.tree import PREFIXES, nodes

A = "0000:06:0d.0"
DEVICE = f"/sys/bus/pci/devices/{A}"


@pytest.fixture
def machine() -> Machine:
    return Machine()


def text(tree: dict[str, Node], path: str) -> str:
    node = tree[path]
    assert isinstance(node, Text), path
    return node.data.decode()


def resolve(tree: dict[str, Node], path: str) -> Node:
    """What the kernel would find, following links."""
    done = ""
    for part in path.strip("/").split("/"):
        done = posixpath.normpath(f"{done}/{part}")
        node = tree.get(done)
        if isinstance(node, Link):
            assert not node.target.startswith("/")
            done = posixpath.normpath(f"{posixpath.dirname(done)}/{node.target}")
    return tree[done]


@pytest.mark.parametrize("abi", ["2011", "mainline"])
def test_it_is_a_tree_within_its_prefixes(machine: Machine, abi: str) -> None:
    tree = nodes(machine, abi)
    seen: set[str] = set()
    for path, node in tree.items():
        assert any(path == p.decode() or path.startswith(p.decode() + "/") for p in PREFIXES), path
        parent = posixpath.dirname(path)
        if path.encode() not in PREFIXES:
            assert isinstance(tree[parent], Directory), path
            assert parent in seen, f"{parent} comes after {path}"
        seen.add(path)
        if isinstance(node, Link):
            assert isinstance(resolve(tree, path), Directory), path


def test_device_nodes(machine: Machine) -> None:
    tree = nodes(machine)
    minors = {group.number: group.minor for group in machine.framework.groups}
    for number in (240, 241):
        assert tree[f"/dev/vfio/{number}"] == CharDev("pci", number, GROUP_MAJOR, minors[number])
        folder = f"/sys/devices/virtual/vfio/{number}"
        assert resolve(tree, f"/sys/class/vfio/{number}") is tree[folder]
        assert text(tree, f"{folder}/dev") == f"{GROUP_MAJOR}:{minors[number]}\n"
        assert f"DEVNAME=vfio/{number}\n" in text(tree, f"{folder}/uevent")


def test_what_a_driver_reads_of_a_device(machine: Machine) -> None:
    tree = nodes(machine)
    values = {
        name: text(tree, f"{DEVICE}/{name}")
        for name in ("vendor", "device", "class", "enable", "numa_node", "modalias", "iommu_group")
    }
    assert values == {
        "vendor": "0x1234\n",
        "device": "0x11e8\n",
        "class": "0x00ff00\n" if machine.function(A).class_code == 0xFF00 else "0xff0000\n",
        "enable": "0\n",
        "numa_node": "-1\n",
        "modalias": identity(machine.function(A)).modalias + "\n",
        "iommu_group": "240\n",
    }
    assert 16 <= int(text(tree, f"{DEVICE}/irq")) < 20
    uevent = dict(line.split("=") for line in text(tree, f"{DEVICE}/uevent").splitlines())
    assert uevent["DRIVER"] == "vfio-pci"
    assert uevent["PCI_ID"] == "1234:11E8"
    assert uevent["PCI_SLOT_NAME"] == A
    config = tree[f"{DEVICE}/config"]
    assert isinstance(config, Text)
    assert len(config.data) == machine.function(A).config_size
    assert struct.unpack_from("<HH", config.data) == (0x1234, 0x11E8)


def test_resource_lines(machine: Machine) -> None:
    lines = text(nodes(machine), f"{DEVICE}/resource").splitlines()
    assert len(lines) == 13
    start, end, flags = (int(word, 16) for word in lines[0].split())
    assert end - start + 1 == 1 << 20
    assert flags == 0x40200
    assert start == machine.function(A).config_read(0x10, 4)
    assert lines[1:] == ["0x0000000000000000 0x0000000000000000 0x0000000000000000"] * 12
    assert all(len(word) == 18 for word in lines[0].split())


def test_drivers(machine: Machine) -> None:
    machine.unbind(A)
    machine.unbind("0000:07:00.0")
    machine.bind("0000:07:00.0", "e1000")
    tree = nodes(machine)
    assert f"{DEVICE}/driver" not in tree
    assert "DRIVER" not in text(tree, f"{DEVICE}/uevent")
    drivers = "/sys/bus/pci/drivers/"
    files = ("bind", "unbind", "new_id", "remove_id", "uevent")
    assert {path.removeprefix(drivers) for path in tree if path.startswith(drivers)} == {
        *(
            f"{name}{file}"
            for name in ("vfio-pci", "e1000")
            for file in ("", *(f"/{f}" for f in files))
        ),
        "vfio-pci/0000:06:0d.1",
        "vfio-pci/module",
        "e1000/0000:07:00.0",
    }
    assert tree["/sys/bus/pci/devices/0000:07:00.0/driver"] == Link(
        "../../../../bus/pci/drivers/e1000"
    )


def test_mainline_links_the_group_and_hides_nodes_without_vfio() -> None:
    machine = Machine(devices=["edu@6:d.0,group=3", "edu@7:0.0,group=4,driver=none"])
    tree = nodes(machine, "mainline")
    assert tree[f"{DEVICE}/iommu_group"] == Link("../../../../kernel/iommu_groups/3")
    assert "/dev/vfio/3" in tree
    assert "/dev/vfio/4" not in tree
    assert "/dev/vfio/4" in nodes(machine, "2011")
    assert f"/sys/kernel/iommu_groups/3/devices/{A}" in tree


def test_an_empty_machine_has_a_bus_and_modules() -> None:
    tree = nodes(Machine(devices=[]))
    folders = {path.encode() for path, node in tree.items() if isinstance(node, Directory)}
    assert folders == {
        *set(PREFIXES) - {b"/dev/iommu"},
        *(
            b"/sys/bus/pci/" + name
            for name in (b"devices", b"drivers", b"drivers/vfio-pci", b"slots")
        ),
        b"/sys/bus/platform/devices",
        b"/sys/bus/platform/drivers",
        b"/sys/bus/platform/drivers/vfio-platform",
        *(prefix + b"/parameters" for prefix in PREFIXES if prefix.startswith(b"/sys/module/")),
        b"/sys/module/vfio_pci/drivers",
        b"/sys/module/vfio_platform/drivers",
    }
    assert isinstance(resolve(tree, "/sys/bus/pci/drivers/vfio-pci/module"), Directory)


def test_facts(machine: Machine) -> None:
    function = machine.function(A)
    assert interrupts(function) == {"intx": 1, "msi": 1, "msix": 0}
    assert [cap.name for cap in capabilities(function)] == ["MSI"]
