"""Devices without an IOMMU: when VFIO takes them, what their groups are called, and that nothing is mapped."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from support.world import name_of
from uvfio.cli.machinefile import parse
from uvfio.doors.local import Process
from uvfio.errors import ConfigError, InvalidArgument
from uvfio.machine.machine import Machine
from uvfio.machine.nodes import CharDev, Link, Text
from uvfio.machine.spec import IommuSpec
from uvfio.machine.sysfs import attributes
from uvfio.machine.sysfs.tree import nodes
from uvfio.uapi import rfc, vfio

BARE, ORDINARY = "0000:01:00.0", "0000:02:00.0"
UNSAFE = IommuSpec(enable_unsafe_noiommu_mode=True)
PARAMETER = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"


def build(driver: str = "vfio-pci", iommu: IommuSpec = UNSAFE) -> Machine:
    bare = f"exerciser@{BARE},group=5,iommu=none,driver={driver}"
    return Machine(iommu=iommu, devices=[bare, f"exerciser@{ORDINARY},group=6"])


def test_vfio_takes_them_only_if_it_may() -> None:
    with pytest.raises(InvalidArgument, match="behind no IOMMU"):
        build(iommu=IommuSpec())
    machine = build("none", IommuSpec())
    with pytest.raises(InvalidArgument, match="behind no IOMMU"):
        machine.bind(BARE)
    parameter = attributes.find(machine, PARAMETER)
    assert parameter is not None
    assert parameter.text() == b"N\n"
    parameter.write(0, b"1")
    assert parameter.text() == b"Y\n"
    machine.bind(BARE)
    assert Process(machine, abi="mainline").open("/dev/vfio/noiommu-5")


def test_the_tree() -> None:
    machine = build()
    tree = nodes(machine, "mainline")
    assert isinstance(tree["/dev/vfio/noiommu-5"], CharDev)
    assert "/dev/vfio/5" not in tree
    assert tree["/sys/kernel/iommu_groups/5/name"] == Text(b"vfio-noiommu\n")
    link = tree[f"/sys/bus/pci/devices/{BARE}/iommu_group"]
    assert link == Link("../../../../kernel/iommu_groups/5")
    assert "/sys/class/vfio/noiommu-5" in tree
    machine.unbind(BARE)
    tree = nodes(machine, "mainline")
    assert "/dev/vfio/noiommu-5" not in tree
    assert "/sys/kernel/iommu_groups/5" not in tree
    assert f"/sys/bus/pci/devices/{BARE}/iommu_group" not in tree


def test_such_a_device_is_alone_in_its_group() -> None:
    machine = build()
    for device in ("edu,group=5", "edu,group=5,iommu=none", "edu,group=6,iommu=none"):
        with pytest.raises(ConfigError, match="group"):
            machine.plug(device)
    assert len(machine.slots) == 2


def test_the_program_of_2011_cannot_use_it() -> None:
    me = Process(build(), abi="2011")
    group = me.open("/dev/vfio/noiommu-5")
    with pytest.raises(OSError, match="no IOMMU") as caught:
        me.ioctl(group, rfc.VFIO_GROUP_GET_IOMMU_FD)
    assert name_of(caught.value.errno) == "ENOMEM"


@pytest.mark.parametrize("allowed", [True, False])
def test_the_extension(allowed: bool) -> None:
    machine = build(iommu=UNSAFE)
    me = Process(machine, abi="mainline")
    container, group = me.open("/dev/vfio/vfio"), me.open("/dev/vfio/noiommu-5")
    machine.framework.noiommu = allowed
    check = vfio.VFIO_CHECK_EXTENSION
    assert me.ioctl(container, check, vfio.VFIO_NOIOMMU_IOMMU) == int(allowed)
    assert me.ioctl(container, check, vfio.VFIO_TYPE1_IOMMU) == 1
    me.ioctl(group, vfio.VFIO_GROUP_SET_CONTAINER, struct.pack("<i", container))
    assert me.ioctl(container, check, vfio.VFIO_NOIOMMU_IOMMU) == int(allowed)
    assert me.ioctl(container, check, vfio.VFIO_TYPE1_IOMMU) == 0
    assert me.ioctl(container, check, vfio.VFIO_UNMAP_ALL) == 0
    if allowed:
        me.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_NOIOMMU_IOMMU)
    else:
        with pytest.raises(OSError, match="not allowed") as caught:
            me.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_NOIOMMU_IOMMU)
        assert caught.value.errno == errno.ENODEV
    me.exit()


def test_virtual_functions_have_what_their_physical_one_has() -> None:
    device = "exerciser@0000:01:00.0,iommu=none,vfs=1,numvfs=1"
    machine = Machine(iommu=UNSAFE, devices=[device])
    assert machine.slot("0000:01:10.0").device.unit is None
    assert machine.record("0000:01:10.0").group.node_name == "noiommu-1"


def test_the_notations() -> None:
    text = b"""
        [iommu]
        enable_sriov = false
        enable_unsafe_noiommu_mode = true
        [[device]]
        model = "exerciser"
        iommu = "none"
        numvfs = 0
        options = { vfs = 2 }
    """
    spec = parse(text, "m.toml")
    assert spec.iommu.enable_unsafe_noiommu_mode
    assert not spec.iommu.enable_sriov
    assert spec.devices[0].iommu == "none"
    with pytest.raises(ConfigError, match="none"):
        parse(b"[iommu.none]", str(Path("m.toml")))
