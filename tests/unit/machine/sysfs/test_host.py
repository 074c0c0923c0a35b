"""Modules and groups in sysfs."""

from __future__ import annotations

import pytest

from uvfio.errors import InvalidArgument, NoSuchGroup
from uvfio.machine.machine import Machine
from uvfio.machine.spec import IommuSpec
from uvfio.machine.sysfs.attributes import Bound, find
from uvfio.machine.sysfs.host import MODULES, reserved_regions

PARAMETERS = "/sys/module/vfio_iommu_type1/parameters"


@pytest.fixture
def machine() -> Machine:
    reserved = ((0x1000, 0x1FFF), (0xFEE00000, 0xFEEFFFFF))
    return Machine(iommu=IommuSpec(reserved=reserved), devices=["edu@0:5.0,group=5"])


def file(machine: Machine, path: str) -> Bound:
    found = find(machine, path)
    assert found is not None, path
    return found


def test_parameters_of_type1_change_the_framework(machine: Machine) -> None:
    unsafe = file(machine, f"{PARAMETERS}/allow_unsafe_interrupts")
    assert unsafe.text() == b"N\n"
    unsafe.write(0, b"1\n")
    assert unsafe.text() == b"Y\n"
    assert machine.framework.allow_unsafe_interrupts
    limit = file(machine, f"{PARAMETERS}/dma_entry_limit")
    assert limit.text() == b"65535\n"
    limit.write(0, b"0x10")
    assert machine.framework.dma_entry_limit == 16
    with pytest.raises(InvalidArgument):
        limit.write(0, b"4294967296")
    assert limit.text() == b"16\n"


def test_noiommu_mode(machine: Machine) -> None:
    mode = file(machine, "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
    assert mode.text() == b"N\n"
    mode.write(0, b"Y")
    assert mode.text() == b"Y\n"
    assert machine.framework.noiommu
    mode.write(0, b"N")
    assert not machine.framework.noiommu
    with pytest.raises(InvalidArgument):
        mode.write(0, b"maybe")
    assert "vfio_pci" in MODULES


def test_reserved_regions(machine: Machine) -> None:
    assert file(machine, "/sys/kernel/iommu_groups/5/reserved_regions").text() == (
        b"0x0000000000001000 0x0000000000001fff reserved\n"
        b"0x00000000fee00000 0x00000000feefffff msi\n"
    )
    with pytest.raises(NoSuchGroup):
        reserved_regions(machine, "6")


def test_type_of_a_group(machine: Machine) -> None:
    kind = file(machine, "/sys/kernel/iommu_groups/5/type")
    assert kind.text() == b"DMA\n"
    kind.write(0, b"auto\n")
    with pytest.raises(InvalidArgument):
        kind.write(0, b"identity\n")
