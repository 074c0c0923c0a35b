"""``Device``: the record of one added device, and what it is to its group."""

from __future__ import annotations

from support.world import FakeBound, FakeBusDevice, FakeDriver, World
from uvfio.core.bus import DeviceKind, Region
from uvfio.core.structure.device import Device, OpenDevice
from uvfio.core.structure.group import Group


def record() -> Device:
    return Device(FakeBusDevice("edu", 240), FakeDriver(), Group("pci", 240, 0, "240"))


def test_a_new_record_is_unbound_idle_and_detached() -> None:
    device = record()
    assert device.name == "edu"
    assert not device.bound
    assert not device.in_use
    assert not device.attached
    assert not device.gone
    assert not device.reserved
    assert device.taint == ""


def test_a_device_is_bound_while_a_driver_has_data_for_it() -> None:
    device = record()
    device.data = FakeBound()
    assert device.bound


def test_review_06_a_device_is_in_use_while_a_file_of_it_is_open() -> None:
    device = record()
    device.opens.append(OpenDevice(device, FakeBound()))
    assert device.in_use


def test_d18_a_device_knows_its_group() -> None:
    world = World()
    world.plug("edu", 240)
    assert world.record("edu").group is world.group(240)


def test_review_04_the_context_is_always_that_of_the_group() -> None:
    world = World()
    world.plug("edu", 240)
    device = world.record("edu")
    assert device.iommu is None
    held = world.hold(240, world.mm())
    assert device.iommu is world.group(240).iommu is not None
    world.framework.close_group(held)
    assert device.iommu is None


def test_d11_there_is_no_second_pointer_to_the_context() -> None:
    assert "iommu" not in Device.__slots__


def test_a_record_shows_its_name_and_group() -> None:
    assert repr(record()) == "<Device edu of group pci:240>"


def test_regions_are_readable_and_writable_unless_said_otherwise() -> None:
    region = Region(0, 16)
    assert (region.readable, region.writable, region.mappable) == (True, True, False)


def test_kinds_of_devices() -> None:
    assert [kind.value for kind in DeviceKind] == ["pci", "platform"]
