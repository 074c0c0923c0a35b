"""``Group``: the two questions about use, viability, and who holds the file open."""

from __future__ import annotations

import pytest

from support.world import FakeBound, FakeBusDevice, FakeDriver, World
from uvfio.core.structure.device import Device, OpenDevice
from uvfio.core.structure.group import Group, OpenGroup
from uvfio.errors import NoSuchDevice, NotViable


def group_of(*bound: bool) -> Group:
    """A group with one device per argument; true: it is bound."""
    group = Group("pci", 240, 0, "240")
    for number, is_bound in enumerate(bound):
        device = Device(FakeBusDevice(f"dev{number}", 240), FakeDriver(), group)
        device.data = FakeBound() if is_bound else None
        group.devices.append(device)
    return group


@pytest.mark.parametrize(
    ("bound", "viable"),
    [((), False), ((True,), True), ((True, True), True), ((True, False), False)],
)
def test_viable_means_every_device_is_bound_and_there_is_one(
    bound: tuple[bool, ...], viable: bool
) -> None:
    assert group_of(*bound).viable == viable


def test_the_error_names_the_device_that_is_not_bound() -> None:
    with pytest.raises(NotViable, match="dev1 is not bound") as caught:
        group_of(True, False).check_viable()
    assert caught.value.hint == "bind dev1 to vfio-pci"


def test_d13_a_group_without_devices_is_not_viable() -> None:
    with pytest.raises(NoSuchDevice, match="no devices"):
        group_of().check_viable()


def test_a_tainted_device_makes_its_group_unusable_although_it_is_bound() -> None:
    group = group_of(True, True)
    group.devices[1].taint = "dev1 was not claimed"
    assert not group.viable
    assert group.tainted == "dev1 was not claimed"
    with pytest.raises(NotViable, match="tainted: dev1 was not claimed"):
        group.check_viable()


def test_an_untainted_group_says_so() -> None:
    assert group_of(True).tainted == ""


def test_a_group_departs_when_one_of_its_devices_does() -> None:
    group = group_of(True, True)
    assert not group.departing
    group.devices[1].departing = 1
    assert group.departing


def test_review_05_an_open_group_file_does_not_make_the_devices_busy() -> None:
    group = group_of(True)
    group.opens.append(OpenGroup(group, World().mm()))
    assert group.is_open
    assert not group.devices_in_use


def test_review_06_devices_are_in_use_when_one_of_them_is() -> None:
    group = group_of(True, True)
    assert not group.devices_in_use
    device = group.devices[1]
    device.opens.append(OpenDevice(device, FakeBound()))
    assert group.devices_in_use
    assert not group.is_open


def test_the_owner_holds_a_group_by_a_file_that_it_opened_or_merged_through() -> None:
    group, world = group_of(True), World()
    owner, other = world.mm("owner"), world.mm("other")
    assert not group.held_by(owner)
    held = OpenGroup(group, other)
    group.opens.append(held)
    assert not group.held_by(owner)
    assert group.held_by(other)
    held.joined = True
    assert group.held_by(owner)


def test_a_group_shows_its_node_and_its_key() -> None:
    assert str(group_of()) == "240"
    assert repr(group_of()) == "<Group pci:240>"
