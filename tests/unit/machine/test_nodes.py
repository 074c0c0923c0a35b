"""Which device nodes there are, for each ABI."""

from __future__ import annotations

from uvfio.machine.machine import Machine
from uvfio.machine.nodes import CDEV_MAJOR, GROUP_MAJOR, CharDev, device_nodes, node_at
from uvfio.machine.spec import IommuSpec


def test_2011_has_a_node_for_every_group() -> None:
    machine = Machine()
    assert set(device_nodes(machine.framework, "2011")) == {"/dev/vfio/240", "/dev/vfio/241"}
    machine.unbind("0000:07:00.0")
    found = device_nodes(machine.framework, "2011")
    assert found["/dev/vfio/241"] == CharDev("pci", 241, GROUP_MAJOR, 1)


def test_mainline_has_a_node_for_groups_and_devices_that_vfio_has() -> None:
    machine = Machine()
    machine.unbind("0000:07:00.0")
    for abi in ("mainline", "auto"):
        found = device_nodes(machine.framework, abi)
        assert {path: node.opens for path, node in found.items()} == {
            "/dev/vfio/vfio": "container",
            "/dev/vfio/240": "group",
            "/dev/iommu": "iommufd",
            "/dev/vfio/devices/vfio0": "cdev",
            "/dev/vfio/devices/vfio1": "cdev",
        }
        assert found["/dev/vfio/devices/vfio1"] == CharDev("", 0, CDEV_MAJOR, 1, opens="cdev")


def test_a_device_without_an_iommu_has_no_node_of_its_own() -> None:
    machine = Machine(iommu=IommuSpec(enable_unsafe_noiommu_mode=True), devices=["edu"])
    before = set(device_nodes(machine.framework, "mainline"))
    machine.plug("edu@0000:01:00.0,iommu=none")
    added = set(device_nodes(machine.framework, "mainline")) - before
    assert {path.rpartition("-")[0] for path in added} == {"/dev/vfio/noiommu"}


def test_one_node_is_the_one_of_all() -> None:
    """``node_at`` and ``device_nodes`` have one rule; a name that is no node's own is none."""
    machine = Machine(
        iommu=IommuSpec(enable_unsafe_noiommu_mode=True),
        devices=["edu@0000:06:0d.0", "edu@0000:07:00.0"],
    )
    machine.plug("edu@0000:01:00.0,iommu=none")
    machine.unbind("0000:07:00.0")
    for abi in ("2011", "mainline", "auto"):
        nodes = device_nodes(machine.framework, abi)
        assert {path: node_at(machine.framework, path, abi) for path in nodes} == nodes
        for path in (
            *("/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/241", "/dev/vfio/devices/vfio0"),
            *("/dev/vfio/devices/vfio00", "/dev/vfio/devices/vfio+0", "/dev/vfio/devices/0"),
            *(
                "/dev/vfio/devices/vfio\u0660",
                "/dev/vfio//240",
                "/dev/vfio/01",
                "/dev/vfio",
                "240",
                "",
            ),
        ):
            assert node_at(machine.framework, path, abi) == nodes.get(path)
