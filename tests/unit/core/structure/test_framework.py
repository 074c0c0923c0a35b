"""``Framework``: the registry, the driver API, and every structural operation with its refusals.

Each refusal asserts the condition and that nothing changed (``refused``). The tests are in the order of
the module; the errors of one operation are in the order in which they are checked.
"""

from __future__ import annotations

import threading

import pytest

from support.world import FakeBusDevice, World, refused, same_state
from uvfio.core.bus import BusDevice
from uvfio.core.events import DevicePlugged, Fault, GroupAdded, GroupRemoved
from uvfio.core.seams import Mm
from uvfio.core.structure.base import MINORMASK
from uvfio.core.structure.device import OpenDevice
from uvfio.core.structure.framework import Framework
from uvfio.core.structure.group import OpenGroup
from uvfio.core.structure.iommu import OpenIommu
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    Busy,
    Gone,
    InvalidArgument,
    NoMemory,
    NoSpace,
    NoSuchDevice,
    NoSuchGroup,
    NotOwner,
    NotViable,
    UnsafeInterrupts,
)

INCOHERENT = IommuUnit("incoherent", coherent=False)
UNSAFE = IommuUnit("unsafe", interrupt_remapping=False)
PAGE = 4096


class Pair(World):
    """Groups 1 (device a) and 2 (device b), an owner and a stranger with both groups open."""

    def __init__(self, unit: IommuUnit = IommuUnit()) -> None:  # noqa: B008
        super().__init__()
        self.plug("a", 1)
        self.plug("b", 2, unit=unit)
        self.owner = self.mm("owner")
        self.stranger = self.mm("stranger")
        self.a = self.hold(1, self.owner)
        self.b = self.hold(2, self.owner)

    def merge(self) -> None:
        self.framework.merge(self.a, self.b, self.owner)

    def open_iommu(self, held: OpenGroup | None = None, mm: Mm | None = None) -> OpenIommu:
        return self.framework.open_iommu(held or self.a, mm or self.owner)

    def open_device(
        self, name: str = "a", held: OpenGroup | None = None, mm: Mm | None = None
    ) -> OpenDevice:
        return self.framework.open_device(held or self.a, name, mm or self.owner)

    @property
    def merged(self) -> bool:
        return self.group(1).iommu is self.group(2).iommu is not None


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair() -> Pair:
    return Pair()


# -- registry ------------------------------------------------------------------------------------


def test_an_empty_framework_has_no_groups(world: World) -> None:
    assert world.framework.groups == ()
    with pytest.raises(NoSuchGroup, match="no group pci:240"):
        world.framework.group("pci", 240)


def test_groups_are_found_by_key(world: World) -> None:
    world.plug("edu", 240)
    group = world.framework.group("pci", 240)
    assert world.framework.groups == (group,)


def test_review_02_one_lookup_considers_the_bus_and_the_identity(world: World) -> None:
    dev = world.plug("x", 1)
    assert world.framework.lookup(dev) is not None
    assert world.framework.lookup(FakeBusDevice("x", 1)) is None
    assert world.framework.lookup(FakeBusDevice("x", 1, bus="platform")) is None
    assert world.framework.lookup(FakeBusDevice("x", None)) is None


@pytest.mark.parametrize(
    ("operation", "opposite"),
    [
        ("add_device", "del_device"),
        ("bind_device", "unbind_device"),
        ("open_group", "close_group"),
        ("open_iommu", "close_iommu"),
        ("open_device", "close_device"),
        ("merge", "unmerge"),
    ],
)
def test_review_08_every_operation_has_its_opposite_by_name(operation: str, opposite: str) -> None:
    assert callable(getattr(Framework, operation))
    assert callable(getattr(Framework, opposite))


# -- add_device ----------------------------------------------------------------------------------


def test_the_first_device_makes_its_group(world: World) -> None:
    world.plug("edu", 240, bind=False)
    group = world.group(240)
    assert (group.bus, group.number, group.node_name, group.minor) == ("pci", 240, "240", 0)
    assert world.events == [
        GroupAdded(group="240", bus="pci", number=240, minor=0),
        DevicePlugged("edu", "pci", "240"),
    ]


def test_further_devices_join_their_group_newest_first(world: World) -> None:
    world.plug("first", 240)
    world.plug("second", 240)
    assert [d.name for d in world.group(240).devices] == ["second", "first"]
    assert len(world.framework.groups) == 1


def test_a_device_without_a_group_is_refused(world: World) -> None:
    with refused(world, NoSuchDevice):
        world.framework.add_device(FakeBusDevice("x", None), world.driver)


def test_adding_a_device_again_changes_nothing(world: World) -> None:
    dev = world.plug("edu", 240)
    with same_state(world):
        assert world.framework.add_device(dev, world.driver) is world.record("edu")


def test_minors_are_the_lowest_free_ones(world: World) -> None:
    for number in (10, 11, 12):
        world.plug(f"dev{number}", number, bind=False)
    world.unplug("dev10")
    world.unplug("dev11")
    for number in (20, 21, 22):
        world.plug(f"dev{number}", number, bind=False)
    assert {g.number: g.minor for g in world.framework.groups} == {12: 2, 20: 0, 21: 1, 22: 3}


def test_d15_running_out_of_minors_is_an_error_and_undone() -> None:
    world = World(minors=2)
    world.plug("a", 1)
    world.plug("b", 2)
    with refused(world, NoSpace):
        world.framework.add_device(FakeBusDevice("c", 3), world.driver)
    world.framework.add_device(FakeBusDevice("d", 2), world.driver)


def test_d17_every_minor_of_the_region_can_be_used(world: World) -> None:
    assert MINORMASK == (1 << 20) - 1
    world.framework._next_minor = MINORMASK
    world.plug("last", 1)
    assert world.group(1).minor == MINORMASK
    with refused(world, NoSpace):
        world.framework.add_device(FakeBusDevice("more", 2), world.driver)


def test_d16_a_group_whose_node_cannot_be_made_is_not_added(world: World) -> None:
    world.observer_errors[GroupAdded] = NoSpace("no node")
    with refused(world, NoSpace):
        world.framework.add_device(FakeBusDevice("edu", 240), world.driver)
    del world.observer_errors[GroupAdded]
    world.plug("edu", 240)
    assert world.group(240).minor == 0


def test_d14_groups_of_two_buses_may_have_one_number(world: World) -> None:
    world.plug("0000:06:0d.0", 240)
    world.plug("fff51000.ethernet", 240, bus="platform", bind=False)
    pci, platform = world.group(240), world.group(240, "platform")
    assert pci is not platform
    assert pci.viable
    assert not platform.viable


def test_review_01_the_node_is_the_number_unless_another_bus_has_it(world: World) -> None:
    world.plug("0000:06:0d.0", 240)
    world.plug("fff51000.ethernet", 240, bus="platform")
    assert [g.node_name for g in world.framework.groups] == ["240", "platform:240"]


def test_review_03_a_number_in_use_on_another_bus_is_no_conflict(world: World) -> None:
    world.plug("a", 240)
    world.plug("b", 240, bus="platform")
    kinds = [event.kind for event in world.events]
    assert kinds == ["group-added", "plug", "bind"] * 2


def test_a_device_added_to_an_idle_group_is_not_attached(pair: Pair) -> None:
    dev = pair.plug("new", 1, bind=False)
    assert dev.calls == []
    assert pair.driver.hotplugged == []


def test_d19_a_device_added_to_a_used_group_is_attached_and_reserved(pair: Pair) -> None:
    pair.open_iommu()
    dev = pair.plug("new", 1, bind=False)
    assert dev.domain is pair.iommu(1).domain
    assert pair.record("new").reserved


def test_review_12_a_hot_added_device_is_offered_to_its_driver_without_the_lock(
    pair: Pair,
) -> None:
    free: list[bool] = []

    def bind(dev: BusDevice) -> None:
        free.append(lock_is_free(pair.framework.lock))
        pair.bind(dev.name)

    pair.open_iommu()
    pair.driver.on_hotplug = bind
    pair.plug("new", 1, bind=False)
    assert pair.driver.hotplugged == ["new"]
    assert free == [True]
    assert pair.group(1).viable


def test_review_12_a_device_that_its_driver_does_not_claim_taints_the_group(pair: Pair) -> None:
    def bind(dev: BusDevice) -> None:
        raise Busy(f"{dev.name} is broken")

    pair.open_iommu()
    pair.driver.on_hotplug = bind
    pair.plug("new", 1, bind=False)
    assert "new is broken" in pair.group(1).tainted
    assert pair.events[-1].kind == "taint"
    with refused(pair, NotViable):
        pair.open_device("a")
    with refused(pair, NotViable):
        pair.open_iommu()


def test_review_13_a_failed_attach_of_a_hot_added_device_is_raised_and_taints(pair: Pair) -> None:
    opened = pair.open_iommu()
    dev = pair.devices["new"] = FakeBusDevice("new", 1)
    dev.attach_error = InvalidArgument("the IOMMU said no")
    with pytest.raises(InvalidArgument, match="the IOMMU said no"):
        pair.framework.add_device(dev, pair.driver)
    assert "the IOMMU said no" in pair.group(1).tainted
    assert pair.record("new").reserved
    assert not pair.record("new").attached
    assert pair.driver.hotplugged == []
    assert opened.iommu is not None
    with refused(pair, NotViable):
        pair.open_device("a")


def test_existing_users_carry_on_when_a_device_is_added(pair: Pair) -> None:
    opened = pair.open_iommu()
    domain = pair.iommu(1).domain
    assert domain is not None
    Rules2011(domain).map(0, PAGE, 0, pair.owner, None, writable=True)
    pair.plug("new", 1, bind=False)
    assert opened.iommu is pair.iommu(1)
    assert len(domain.mappings) == 1


# -- bind_device and foreign drivers -------------------------------------------------------------


def test_binding_the_last_device_makes_the_group_viable(world: World) -> None:
    world.plug("a", 1)
    world.plug("b", 1, bind=False)
    assert not world.group(1).viable
    world.bind("b")
    assert world.group(1).viable


def test_d22_binding_a_device_that_was_never_added_is_refused(world: World) -> None:
    world.devices["x"] = FakeBusDevice("x", 1)
    with refused(world, InvalidArgument):
        world.bind("x")


def test_d22_binding_without_data_is_refused(world: World) -> None:
    dev = world.plug("x", 1, bind=False)
    with refused(world, InvalidArgument):
        world.framework.bind_device(dev, None)  # type: ignore[arg-type]


def test_d22_binding_twice_is_refused(world: World) -> None:
    world.plug("x", 1)
    with refused(world, Busy):
        world.bind("x")


def test_binding_a_device_that_was_pulled_out_is_refused(world: World) -> None:
    world.plug("x", 1)
    world.unplug("x")
    with refused(world, Gone):
        world.bind("x")


def test_binding_clears_the_taint_and_attaches_what_was_not(pair: Pair) -> None:
    pair.open_iommu()
    dev = pair.devices["new"] = FakeBusDevice("new", 1)
    dev.attach_error = InvalidArgument("not now")
    with pytest.raises(InvalidArgument):
        pair.framework.add_device(dev, pair.driver)
    with refused(pair, InvalidArgument):
        pair.bind("new")
    dev.attach_error = None
    pair.bind("new")
    assert dev.domain is pair.iommu(1).domain
    assert pair.group(1).viable


def test_review_12_no_other_driver_may_have_a_device_of_a_used_group(pair: Pair) -> None:
    opened = pair.open_iommu()
    dev = pair.plug("new", 1, bind=False)
    with refused(pair, Busy) as caught:
        pair.framework.check_foreign_bind(dev)
    assert "reserved" in str(caught.value)
    pair.framework.close_iommu(opened)
    pair.framework.check_foreign_bind(dev)


def test_no_other_driver_may_have_a_device_that_is_bound(world: World) -> None:
    dev = world.plug("x", 1)
    with refused(world, Busy) as caught:
        world.framework.check_foreign_bind(dev)
    assert "bound to vfio-pci" in str(caught.value)


def test_another_driver_may_have_an_unbound_or_unknown_device(world: World) -> None:
    world.framework.check_foreign_bind(world.plug("x", 1, bind=False))
    world.framework.check_foreign_bind(FakeBusDevice("y", 1))


# -- del_device ----------------------------------------------------------------------------------


def test_the_last_device_takes_its_group_along(world: World) -> None:
    world.plug("a", 1, bind=False)
    world.plug("b", 1, bind=False)
    world.unplug("a")
    assert [d.name for d in world.group(1).devices] == ["b"]
    world.unplug("b")
    assert world.framework.groups == ()
    assert world.events[-1] == GroupRemoved(group="1", bus="pci", number=1)


def test_review_14_deleting_an_unknown_device_is_an_error_without_effect(world: World) -> None:
    world.plug("a", 1)
    for stranger in (FakeBusDevice("x", 1), FakeBusDevice("x", 2), FakeBusDevice("x", None)):
        with refused(world, NoSuchDevice):
            world.framework.del_device(stranger)


def test_d13_a_group_emptied_while_open_stays_unusable_and_goes_at_the_last_close(
    world: World,
) -> None:
    world.plug("a", 1, bind=False)
    mm = world.mm()
    held = world.hold(1, mm)
    world.unplug("a")
    assert world.framework.group_state(held) == (False, False)
    with refused(world, NoSuchDevice):
        world.framework.open_iommu(held, mm)
    with refused(world, NoSuchDevice):
        world.framework.open_device(held, "a", mm)
    world.framework.close_group(held)
    assert world.framework.groups == ()


def test_a_new_device_can_join_a_group_that_was_emptied_while_open(world: World) -> None:
    world.plug("a", 1, bind=False)
    held = world.hold(1, world.mm())
    world.unplug("a")
    world.plug("b", 1)
    assert world.framework.group_state(held) == (True, False)


def test_a_hot_added_device_that_goes_is_detached(pair: Pair) -> None:
    pair.open_iommu()
    dev = pair.plug("new", 1, bind=False)
    pair.unplug("new")
    assert dev.domain is None
    assert pair.group(1).viable


def test_deleting_the_last_device_of_a_member_unmerges_its_group(pair: Pair) -> None:
    pair.merge()
    device = pair.open_device("b")
    pair.open_iommu()
    pair.framework.close_group(pair.b)
    pair.unplug("b")
    assert pair.merged
    pair.framework.close_device(device)
    pair.unbind("b")
    assert pair.framework.groups == (pair.group(1),)
    assert pair.iommu(1).groups == [pair.group(1)]


def test_d20_a_bound_device_that_goes_is_finished_by_unbind(world: World) -> None:
    world.plug("a", 1)
    world.unplug("a")
    assert world.record("a").gone
    assert world.unbind("a") is world.bounds["a"]
    assert world.framework.groups == ()


def test_d20_deleting_an_open_device_leaves_its_users_alone_but_takes_no_new_ones(
    pair: Pair,
) -> None:
    device = pair.open_device("a")
    pair.unplug("a")
    assert device.data is pair.bounds["a"]
    with refused(pair, Gone):
        pair.open_device("a")
    with refused(pair, Gone):
        pair.open_iommu()
    with refused(pair, Busy):
        pair.unbind("a")
    pair.framework.close_device(device)
    pair.unbind("a")
    assert pair.framework.lookup(pair.devices["a"]) is None


def test_d20_a_second_delete_of_a_bound_device_changes_nothing_more(world: World) -> None:
    world.plug("a", 1)
    world.unplug("a")
    with same_state(world):
        world.unplug("a")
    world.unbind("a")
    assert world.framework.groups == ()


def test_d21_all_devices_can_be_deleted_while_walking_the_registry(world: World) -> None:
    for number in range(6):
        world.plug(f"dev{number}", number // 2, bind=number != 3)
    for group in world.framework.groups:
        for device in tuple(group.devices):
            world.unplug(device.name)
            if device.bound:
                world.unbind(device.name)
    assert world.framework.groups == ()


# -- group files ---------------------------------------------------------------------------------


def test_opening_a_group_gives_it_a_closed_context(pair: Pair) -> None:
    iommu = pair.iommu(1)
    assert iommu.domain is None
    assert iommu.owner is None
    assert iommu.groups == [pair.group(1)]


def test_a_group_can_be_opened_any_number_of_times_by_anybody(pair: Pair) -> None:
    iommu = pair.iommu(1)
    pair.open_iommu()
    held = pair.hold(1, pair.stranger)
    assert pair.group(1).opens == [pair.a, held]
    assert pair.iommu(1) is iommu


def test_the_last_close_drops_the_context(pair: Pair) -> None:
    second = pair.hold(1, pair.stranger)
    pair.framework.close_group(pair.a)
    assert pair.group(1).iommu is not None
    pair.framework.close_group(second)
    assert pair.group(1).iommu is None


def test_opening_a_group_that_went_is_refused(world: World) -> None:
    world.plug("a", 1, bind=False)
    group = world.group(1)
    world.unplug("a")
    with refused(world, NoSuchGroup):
        world.framework.open_group(group, world.mm())
    world.plug("b", 1, bind=False)
    with refused(world, NoSuchGroup):
        world.framework.open_group(group, world.mm())


def test_the_state_of_a_group_is_that_of_its_set(pair: Pair) -> None:
    assert pair.framework.group_state(pair.a) == (True, False)
    pair.merge()
    assert pair.framework.group_state(pair.a) == (True, True)
    pair.plug("c", 2, bind=False)
    assert pair.framework.group_state(pair.a) == (False, True)


def test_d06_the_owner_himself_is_told_that_the_set_is_owned(pair: Pair) -> None:
    pair.open_iommu()
    assert pair.framework.group_state(pair.a) == (True, True)
    assert pair.framework.group_state(pair.hold(1, pair.stranger)) == (True, True)


def test_ownership_is_by_address_space(pair: Pair) -> None:
    pair.framework.check_owner(pair.a, pair.stranger)
    pair.open_iommu()
    pair.framework.check_owner(pair.a, pair.owner)
    with refused(pair, NotOwner):
        pair.framework.check_owner(pair.a, pair.stranger)


# -- merge: what it does -------------------------------------------------------------------------


def test_a_merged_pair_is_one_set_without_a_domain_but_with_an_owner(pair: Pair) -> None:
    pair.merge()
    iommu = pair.iommu(1)
    assert pair.merged
    assert iommu.groups == [pair.group(2), pair.group(1)]
    assert iommu.owner is pair.owner
    assert pair.framework.groups[0].number == 1


def test_d03_a_merge_that_nobody_uses_leaves_no_domain_behind(pair: Pair) -> None:
    pair.merge()
    assert pair.iommu(1).domain is None
    assert [dev.domain for dev in pair.devices.values()] == [None, None]
    assert pair.unbind("a") is pair.bounds["a"]


def test_d03_viability_is_asked_again_although_a_domain_exists(pair: Pair) -> None:
    pair.open_iommu()
    pair.plug("new", 1, bind=False)
    with refused(pair, NotViable):
        pair.open_iommu()
    with refused(pair, NotViable):
        pair.open_device("a")
    with refused(pair, NotViable):
        pair.merge()


def test_a_merge_into_a_used_group_extends_its_mappings_to_the_new_devices(pair: Pair) -> None:
    pair.open_iommu()
    domain = pair.iommu(1).domain
    assert domain is not None
    Rules2011(domain).map(0, PAGE, 0, pair.owner, None, writable=True)
    pair.merge()
    assert pair.devices["b"].domain is domain
    assert len(domain.mappings) == 1


def test_any_member_is_a_gateway_to_the_whole_set(pair: Pair) -> None:
    pair.merge()
    opened = pair.open_iommu(pair.b)
    assert opened.iommu is pair.iommu(1)
    assert pair.open_device("a", pair.b).device is pair.record("a")
    assert pair.open_device("b", pair.a).device is pair.record("b")


def test_a_set_of_three_grows_one_by_one(pair: Pair) -> None:
    pair.plug("c", 3)
    pair.merge()
    pair.framework.merge(pair.b, pair.hold(3, pair.owner), pair.owner)
    assert [g.number for g in pair.iommu(1).groups] == [3, 2, 1]


def test_a_device_closed_again_leaves_its_group_mergeable(pair: Pair) -> None:
    pair.framework.close_device(pair.open_device("b", pair.b))
    pair.merge()
    assert pair.merged


def test_review_09_a_merge_adds_the_other_group_to_the_context_of_the_first(pair: Pair) -> None:
    first, second = pair.iommu(1), pair.iommu(2)
    pair.merge()
    assert pair.iommu(2) is first is not second


# -- merge: refusals in order --------------------------------------------------------------------


def test_merge_is_the_owners_alone(pair: Pair) -> None:
    pair.open_iommu()
    with refused(pair, NotOwner):
        pair.framework.merge(pair.a, pair.a, pair.stranger)


def test_merge_refuses_the_same_group_by_two_files(pair: Pair) -> None:
    second = pair.hold(1, pair.owner)
    with refused(pair, InvalidArgument) as caught:
        pair.framework.merge(pair.a, second, pair.owner)
    assert "with itself" in str(caught.value)


def test_d34_merging_a_pair_again_is_refused(pair: Pair) -> None:
    pair.merge()
    with refused(pair, InvalidArgument) as caught:
        pair.merge()
    assert "merged with group 1 already" in str(caught.value)


def test_d34_merging_an_emptied_partner_again_does_not_free_the_context(pair: Pair) -> None:
    pair.merge()
    pair.unbind("b")
    pair.unplug("b")
    with refused(pair, InvalidArgument):
        pair.merge()
    assert pair.merged


def test_d33_a_member_of_another_set_cannot_be_pulled_out_of_it(pair: Pair) -> None:
    pair.plug("c", 3)
    third = pair.hold(3, pair.owner)
    pair.merge()
    with refused(pair, InvalidArgument) as caught:
        pair.framework.merge(third, pair.b, pair.owner)
    assert "merged with 1" in str(caught.value)


@pytest.mark.parametrize("kind", ["iommu", "device"])
def test_merge_refuses_a_partner_in_use(pair: Pair, kind: str) -> None:
    if kind == "iommu":
        pair.open_iommu(pair.b)
    else:
        pair.open_device("b", pair.b)
    with refused(pair, InvalidArgument) as caught:
        pair.merge()
    assert "open iommu or device file" in str(caught.value)


def test_merge_refuses_groups_of_two_buses(pair: Pair) -> None:
    pair.plug("p", 1, bus="platform", bind=False)
    held = pair.hold(1, pair.owner, "platform")
    with refused(pair, InvalidArgument) as caught:
        pair.framework.merge(pair.a, held, pair.owner)
    assert str(caught.value) == "group 1 is on bus pci, group platform:1 on platform"


def test_merge_refuses_a_partner_that_is_not_viable(pair: Pair) -> None:
    pair.plug("b2", 2, bind=False)
    with refused(pair, NotViable) as caught:
        pair.merge()
    assert "b2" in str(caught.value)


def test_d01_merge_into_a_group_that_is_not_viable_leaves_the_partner_closed(pair: Pair) -> None:
    pair.plug("a2", 1, bind=False)
    with refused(pair, NotViable) as caught:
        pair.merge()
    assert "a2" in str(caught.value)
    assert pair.iommu(2).domain is None
    assert pair.iommu(2).owner is None


def test_merge_opens_the_partner_first(pair: Pair) -> None:
    pair.plug("a2", 1, bind=False)
    pair.plug("b2", 2, bind=False)
    with refused(pair, NotViable) as caught:
        pair.merge()
    assert "b2" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "b"])
def test_d01_merge_undoes_the_trial_when_a_device_cannot_be_attached(pair: Pair, name: str) -> None:
    pair.devices[name].attach_error = InvalidArgument(f"{name} refuses")
    with refused(pair, InvalidArgument) as caught:
        pair.merge()
    assert str(caught.value) == f"{name} refuses"


def test_merge_refuses_missing_interrupt_remapping() -> None:
    pair = Pair(UNSAFE)
    with refused(pair, UnsafeInterrupts):
        pair.merge()


def test_merge_refuses_a_partner_without_an_iommu(pair: Pair) -> None:
    pair.devices["b"].unit = None
    with refused(pair, NoMemory):
        pair.merge()


@pytest.mark.parametrize("used", [False, True])
def test_merge_refuses_groups_that_differ_in_coherency(used: bool) -> None:
    pair = Pair(INCOHERENT)
    if used:
        pair.open_iommu()
    with refused(pair, InvalidArgument) as caught:
        pair.merge()
    assert "coherency" in str(caught.value)


@pytest.mark.parametrize("used", [False, True])
def test_d02_merge_undoes_everything_when_the_final_attach_fails(pair: Pair, used: bool) -> None:
    """The trial attach succeeds; the attach to the shared domain fails."""
    if used:
        pair.open_iommu()
    dev = pair.devices["b"]
    detach = dev.detach

    def detach_and_break() -> None:
        detach()
        dev.attach_error = InvalidArgument("no second time")

    dev.detach = detach_and_break  # type: ignore[method-assign]
    with refused(pair, InvalidArgument) as caught:
        pair.merge()
    assert str(caught.value) == "no second time"
    assert (pair.iommu(1).domain is not None) == used


def test_d02_a_failed_merge_into_an_idle_set_keeps_its_owner(pair: Pair) -> None:
    pair.plug("c", 3, unit=INCOHERENT)
    third = pair.hold(3, pair.owner)
    pair.merge()
    with refused(pair, InvalidArgument):
        pair.framework.merge(pair.a, third, pair.owner)
    assert pair.iommu(1).owner is pair.owner


# -- unmerge -------------------------------------------------------------------------------------


def test_unmerge_gives_the_group_a_fresh_context(pair: Pair) -> None:
    pair.merge()
    iommu = pair.iommu(1)
    pair.framework.unmerge(pair.a, pair.b, pair.owner)
    assert pair.iommu(1) is iommu is not pair.iommu(2)
    assert pair.iommu(2).owner is None
    assert iommu.owner is None


def test_unmerge_leaves_the_mappings_and_files_of_the_others_alone(pair: Pair) -> None:
    pair.merge()
    opened = pair.open_iommu(pair.b)
    domain = pair.iommu(1).domain
    assert domain is not None
    Rules2011(domain).map(0, PAGE, 0, pair.owner, None, writable=True)
    pair.framework.unmerge(pair.a, pair.b, pair.owner)
    assert opened.iommu is pair.iommu(1)
    assert pair.iommu(1).domain is domain
    assert len(domain.mappings) == 1
    assert pair.devices["b"].domain is None
    assert pair.iommu(1).owner is pair.owner


def test_the_base_can_be_pushed_out_by_a_member(pair: Pair) -> None:
    pair.merge()
    pair.framework.unmerge(pair.b, pair.a, pair.owner)
    assert not pair.merged


def test_unmerge_is_the_owners_alone(pair: Pair) -> None:
    pair.merge()
    with refused(pair, NotOwner):
        pair.framework.unmerge(pair.a, pair.a, pair.stranger)


def test_unmerge_refuses_the_same_group(pair: Pair) -> None:
    pair.merge()
    second = pair.hold(1, pair.owner)
    with refused(pair, InvalidArgument) as caught:
        pair.framework.unmerge(pair.a, second, pair.owner)
    assert "from itself" in str(caught.value)


def test_unmerge_refuses_a_group_of_another_set(pair: Pair) -> None:
    pair.open_device("b", pair.b)
    with refused(pair, InvalidArgument) as caught:
        pair.framework.unmerge(pair.a, pair.b, pair.owner)
    assert "not merged" in str(caught.value)


def test_unmerge_refuses_a_group_with_an_open_device(pair: Pair) -> None:
    pair.merge()
    pair.open_device("b")
    with refused(pair, Busy) as caught:
        pair.framework.unmerge(pair.a, pair.b, pair.owner)
    assert "b is open" in str(caught.value)


def test_an_open_device_of_the_base_does_not_hinder_unmerge(pair: Pair) -> None:
    pair.merge()
    device = pair.open_device("a")
    pair.framework.unmerge(pair.a, pair.b, pair.owner)
    assert device.data is not None
    assert pair.iommu(1).domain is not None


# -- membership ends ------------------------------------------------------------------------------


def test_merged_groups_stay_merged_while_their_files_are_open(pair: Pair) -> None:
    pair.merge()
    pair.framework.close_iommu(pair.open_iommu())
    assert pair.merged
    assert pair.iommu(1).owner is pair.owner


@pytest.mark.parametrize("first", ["a", "b"])
def test_d05_closing_the_owners_file_of_a_member_takes_it_out_of_the_set(
    pair: Pair, first: str
) -> None:
    pair.merge()
    pair.framework.close_group({"a": pair.a, "b": pair.b}[first])
    assert [len(g.iommu.groups) if g.iommu else 0 for g in pair.framework.groups] in (
        [0, 1],
        [1, 0],
    )


def test_d05_a_stranger_with_one_member_never_reaches_the_others(pair: Pair) -> None:
    foot = pair.hold(1, pair.stranger)
    pair.merge()
    with refused(pair, NotOwner):
        pair.open_device("b", foot, pair.stranger)
    pair.framework.close_group(pair.a)
    pair.framework.close_group(pair.b)
    with refused(pair, NoSuchDevice):
        pair.open_device("b", foot, pair.stranger)
    assert pair.open_device("a", foot, pair.stranger).data is pair.bounds["a"]


def test_d05_ownership_persists_while_the_set_has_more_than_one_group(pair: Pair) -> None:
    pair.merge()
    pair.framework.close_device(pair.open_device("a"))
    with refused(pair, NotOwner):
        pair.open_iommu(mm=pair.stranger)
    pair.framework.close_group(pair.b)
    assert pair.iommu(1).owner is None


def test_d05_a_member_with_an_open_device_stays_until_that_is_closed(pair: Pair) -> None:
    pair.merge()
    device = pair.open_device("b")
    pair.framework.close_group(pair.b)
    assert pair.merged
    pair.framework.close_device(device)
    assert pair.group(2).iommu is None
    assert pair.iommu(1).groups == [pair.group(1)]


def test_a_file_that_was_merged_through_holds_its_group_whoever_opened_it(pair: Pair) -> None:
    foreign = pair.hold(2, pair.stranger)
    pair.framework.merge(pair.a, foreign, pair.owner)
    pair.framework.close_group(pair.b)
    assert pair.merged
    pair.framework.close_group(foreign)
    assert not pair.merged


def test_a_group_that_left_its_set_is_not_held_by_what_it_was_merged_through(pair: Pair) -> None:
    foreign = pair.hold(2, pair.stranger)
    pair.framework.merge(pair.a, foreign, pair.owner)
    pair.framework.unmerge(pair.a, foreign, pair.owner)
    pair.merge()
    pair.framework.close_group(pair.b)
    assert not pair.merged


def test_a_base_left_alone_is_not_held_by_what_it_was_merged_through(pair: Pair) -> None:
    """It is in use all the time, so it never becomes idle between the two merges."""
    foreign = pair.hold(1, pair.stranger)
    pair.open_iommu()
    pair.framework.merge(foreign, pair.b, pair.owner)
    pair.framework.unmerge(pair.a, pair.b, pair.owner)
    pair.framework.merge(pair.a, pair.b, pair.owner)
    pair.framework.close_group(pair.a)
    assert not pair.merged


# -- iommu files ---------------------------------------------------------------------------------


def test_opening_the_iommu_makes_a_domain_and_an_owner(pair: Pair) -> None:
    opened = pair.open_iommu()
    iommu = pair.iommu(1)
    assert opened.iommu is iommu
    assert iommu.owner is pair.owner
    assert iommu.domain is not None
    assert pair.devices["a"].domain is iommu.domain
    assert pair.devices["b"].domain is None


def test_every_iommu_file_leads_to_the_same_domain(pair: Pair) -> None:
    pair.open_iommu()
    domain = pair.iommu(1).domain
    pair.open_iommu()
    assert pair.iommu(1).domain is domain
    assert len(pair.iommu(1).opens) == 2


def test_the_last_iommu_or_device_file_takes_domain_and_owner_along(pair: Pair) -> None:
    first, second = pair.open_iommu(), pair.open_iommu()
    device = pair.open_device("a")
    pair.framework.close_iommu(first)
    pair.framework.close_iommu(second)
    assert pair.iommu(1).owner is pair.owner
    pair.framework.close_device(device)
    assert pair.iommu(1).owner is None
    assert pair.iommu(1).domain is None
    assert pair.devices["a"].domain is None


def test_mappings_go_with_the_last_file_although_the_group_is_open(pair: Pair) -> None:
    opened = pair.open_iommu()
    domain = pair.iommu(1).domain
    assert domain is not None
    Rules2011(domain).map(0, PAGE, 0, pair.owner, None, writable=True)
    pair.framework.close_iommu(opened)
    assert pair.owner.locked_pages == 0
    pair.open_iommu()
    assert pair.iommu(1).domain is not domain
    assert len(pair.iommu(1).domain.mappings) == 0  # type: ignore[union-attr]


def test_a_device_file_keeps_the_domain_when_the_group_file_is_closed(pair: Pair) -> None:
    device = pair.open_device("a")
    pair.framework.close_group(pair.a)
    assert pair.group(1).iommu is not None
    assert pair.devices["a"].domain is not None
    pair.framework.close_device(device)
    assert pair.group(1).iommu is None


def test_closing_an_iommu_file_twice_does_it_once(pair: Pair) -> None:
    first, _ = pair.open_iommu(), pair.open_iommu()
    pair.framework.close_iommu(first)
    with same_state(pair):
        pair.framework.close_iommu(first)


def test_open_iommu_checks_the_owner_before_viability(pair: Pair) -> None:
    pair.open_iommu()
    pair.plug("new", 1, bind=False)
    with refused(pair, NotOwner):
        pair.open_iommu(mm=pair.stranger)


def test_open_iommu_passes_on_why_the_context_cannot_be_opened(pair: Pair) -> None:
    pair.devices["a"].attach_error = InvalidArgument("no")
    with refused(pair, InvalidArgument):
        pair.open_iommu()
    pair.devices["a"].unit = None
    with refused(pair, NoMemory):
        pair.open_iommu()
    pair.plug("new", 1, bind=False)
    with refused(pair, NotViable):
        pair.open_iommu()


# -- device files --------------------------------------------------------------------------------


def test_opening_a_device_opens_the_context_and_enables_the_device(pair: Pair) -> None:
    device = pair.open_device("a")
    assert device.data is pair.bounds["a"]
    assert pair.bounds["a"].enabled == 1
    assert pair.iommu(1).owner is pair.owner


def test_a_device_can_be_opened_many_times(pair: Pair) -> None:
    first, second = pair.open_device("a"), pair.open_device("a")
    assert pair.bounds["a"].enabled == 2
    pair.framework.close_device(first)
    assert pair.bounds["a"].enabled == 1
    assert pair.iommu(1).domain is not None
    pair.framework.close_device(second)
    assert pair.bounds["a"].enabled == 0


def test_the_driver_decides_which_device_a_name_means(pair: Pair) -> None:
    pair.plug("a2", 1)
    pair.driver.match = lambda dev, name: name == "any"  # type: ignore[method-assign]
    assert pair.open_device("any").device is pair.record("a2")


def test_the_newest_member_is_asked_first(pair: Pair) -> None:
    pair.merge()
    pair.driver.match = lambda dev, name: True  # type: ignore[method-assign]
    assert pair.open_device("x").device is pair.record("b")


def test_d09_an_unknown_name_is_an_error_and_leaves_nothing_open(pair: Pair) -> None:
    with refused(pair, NoSuchDevice) as caught:
        pair.open_device("b")
    assert str(caught.value) == 'no device "b" in the set'
    assert getattr(caught.value, "hint", "") == "it has a"
    assert pair.iommu(1).domain is None
    assert pair.iommu(1).owner is None


def test_an_unknown_name_leaves_an_open_context_open(pair: Pair) -> None:
    pair.open_iommu()
    with refused(pair, NoSuchDevice):
        pair.open_device("b")
    assert pair.iommu(1).domain is not None


def test_open_device_checks_owner_then_viability_then_name(pair: Pair) -> None:
    pair.open_iommu()
    pair.plug("new", 1, bind=False)
    with refused(pair, NotOwner):
        pair.open_device("nobody", mm=pair.stranger)
    with refused(pair, NotViable):
        pair.open_device("nobody")


def test_d08_the_drivers_own_error_is_passed_on(pair: Pair) -> None:
    pair.bounds["a"].errors["get"] = NoSpace("no resources")
    with refused(pair, NoSpace):
        pair.open_device("a")


def test_d10_a_device_that_cannot_be_enabled_leaves_nothing_open(pair: Pair) -> None:
    pair.bounds["a"].errors["get"] = Busy("no")
    with refused(pair, Busy):
        pair.open_device("a")
    assert pair.iommu(1).domain is None
    assert pair.iommu(1).owner is None
    assert pair.bounds["a"].puts == 0


def test_d12_the_driver_quiesces_while_the_device_still_counts_as_open(pair: Pair) -> None:
    seen: list[tuple[bool, bool]] = []
    bound, dev = pair.bounds["a"], pair.devices["a"]
    bound.on_call = lambda method: seen.append((pair.record("a").in_use, dev.domain is not None))
    device = pair.open_device("a")
    seen.clear()
    pair.framework.close_device(device)
    assert seen == [(True, True)]
    assert dev.domain is None


def test_a_driver_that_fails_to_quiesce_still_loses_its_user(pair: Pair) -> None:
    device = pair.open_device("a")
    pair.bounds["a"].errors["put"] = Busy("stuck")
    with pytest.raises(Busy):
        pair.framework.close_device(device)
    assert not pair.record("a").in_use
    assert pair.iommu(1).domain is None


def test_closing_a_device_file_twice_does_it_once(pair: Pair) -> None:
    device = pair.open_device("a")
    pair.framework.close_device(device)
    with same_state(pair):
        pair.framework.close_device(device)
    assert pair.bounds["a"].puts == 1


@pytest.mark.parametrize("method", ["get", "put"])
def test_d27_the_framework_is_free_while_a_driver_is_busy(pair: Pair, method: str) -> None:
    free: dict[str, bool] = {}
    pair.bounds["a"].on_call = lambda called: free.update(
        {called: lock_is_free(pair.framework.lock)}
    )
    pair.framework.close_device(pair.open_device("a"))
    assert free[method]


@pytest.mark.parametrize("method", ["get", "put"])
def test_d24_opens_and_closes_of_a_device_exclude_each_other(pair: Pair, method: str) -> None:
    free: dict[str, bool] = {}
    lock = pair.record("a").lock
    pair.bounds["a"].on_call = lambda called: free.update({called: lock_is_free(lock)})
    pair.framework.close_device(pair.open_device("a"))
    assert not free[method]


# -- faults --------------------------------------------------------------------------------------


def test_faults_are_told_to_the_observer(pair: Pair) -> None:
    pair.open_iommu()
    domain = pair.iommu(1).domain
    assert domain is not None
    with pytest.raises(OSError, match="not mapped"):
        domain.dma_write("a", 0x9000, b"1234")
    assert pair.events[-1] == Fault(
        device="a", iova=0x9000, size=4, write=True, reason="not mapped"
    )


def lock_is_free(lock: threading.RLock) -> bool:
    """Whether another thread could take ``lock`` now."""
    answer: list[bool] = []

    def try_it() -> None:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        answer.append(taken)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return answer[0]
