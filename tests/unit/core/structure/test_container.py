"""Containers and exclusive group files: who may open, join, leave and bind what, and who keeps whom alive."""

from __future__ import annotations

import threading

import pytest

from support.world import PAGE, World, refused, same_state
from uvfio.core.bus import BoundDevice, BusDevice
from uvfio.core.structure.container import Container
from uvfio.core.structure.device import OpenDevice
from uvfio.core.structure.group import OpenGroup
from uvfio.core.structure.iommu import Lifetime
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    Busy,
    Gone,
    InvalidArgument,
    NoMemory,
    NoSuchDevice,
    NoSuchGroup,
    NotViable,
    UnsafeInterrupts,
)

UNSAFE = IommuUnit("unsafe", interrupt_remapping=False)


class Room(World):
    """Groups 1 (a) and 2 (b and c), an address space, and an empty container."""

    def __init__(self, unit: IommuUnit | None = IommuUnit()) -> None:  # noqa: B008
        super().__init__()
        self.plug("a", 1)
        self.plug("b", 2, unit=unit)
        self.plug("c", 2, unit=unit, bind=False)
        self.me = self.mm("program")
        self.container = self.framework.open_container()

    def take(self, number: int) -> OpenGroup:
        return self.framework.open_group(self.group(number), self.me, exclusive=True)

    def joined(self, number: int = 1, container: Container | None = None) -> OpenGroup:
        held = self.take(number)
        self.framework.join(held, container or self.container)
        return held

    def enabled(self, number: int = 1) -> OpenGroup:
        held = self.joined(number)
        self.framework.enable_container(self.container, 2)
        return held

    def open(self, held: OpenGroup, name: str = "a") -> OpenDevice:
        return self.framework.open_member(held, name)

    def map(self) -> None:
        assert self.container.type1
        self.container.type1.map(0, PAGE, 0, self.me, None, readable=True, writable=True)


@pytest.fixture
def room() -> Room:
    return Room()


# -- group files ---------------------------------------------------------------------------------


def test_an_exclusive_group_opens_once(room: Room) -> None:
    held = room.take(1)
    assert room.group(1).iommu is None
    with refused(room, Busy):
        room.take(1)
    with refused(room, Busy):
        room.hold(1, room.me)
    room.framework.close_group(held)
    room.take(1)


def test_an_ordinary_open_keeps_exclusive_ones_out(room: Room) -> None:
    room.hold(1, room.me)
    with refused(room, Busy):
        room.take(1)
    room.hold(1, room.mm())


def test_a_device_that_is_still_open_keeps_the_group_taken(room: Room) -> None:
    held = room.enabled()
    opened = room.open(held)
    room.framework.close_group(held)
    with refused(room, Busy):
        room.take(1)
    with refused(room, Busy):
        room.hold(1, room.me)
    room.framework.close_device(opened)
    room.take(1)


def test_an_open_device_of_2011_keeps_exclusive_opens_out(room: Room) -> None:
    held = room.hold(1, room.me)
    room.framework.open_device(held, "a", room.me)
    room.framework.close_group(held)
    with refused(room, Busy):
        room.take(1)


def test_a_group_that_went_cannot_be_taken(room: Room) -> None:
    group = room.group(1)
    room.unbind("a")
    room.unplug("a")
    with refused(room, NoSuchGroup):
        room.framework.open_group(group, room.me, exclusive=True)


def test_an_ordinary_open_may_become_exclusive(room: Room) -> None:
    held = room.hold(1, room.me)
    room.framework.make_exclusive(held)
    assert held.exclusive
    assert room.group(1).iommu is None
    with same_state(room):
        room.framework.make_exclusive(held)
    room.framework.join(held, room.container)


def test_only_a_lonely_idle_open_may_become_exclusive(room: Room) -> None:
    held = room.hold(1, room.me)
    second = room.hold(1, room.me)
    with refused(room, Busy):
        room.framework.make_exclusive(held)
    room.framework.close_group(second)
    opened = room.framework.open_iommu(held, room.me)
    with refused(room, Busy):
        room.framework.make_exclusive(held)
    room.framework.close_iommu(opened)
    room.framework.make_exclusive(held)


def test_a_member_of_a_merged_set_cannot_become_exclusive() -> None:
    room = Room()
    room.bind("c")
    one, two = room.hold(1, room.me), room.hold(2, room.me)
    room.framework.merge(one, two, room.me)
    with refused(room, Busy):
        room.framework.make_exclusive(one)


def test_an_exclusive_open_may_become_ordinary(room: Room) -> None:
    held = room.take(1)
    room.framework.make_shared(held)
    assert room.framework.group_state(held) == (True, False)
    room.hold(1, room.mm())
    with same_state(room):
        room.framework.make_shared(held)


def test_inside_a_container_there_is_no_way_back(room: Room) -> None:
    held = room.joined()
    with refused(room, Busy):
        room.framework.make_shared(held)


# -- status and viability ------------------------------------------------------------------------


def test_devices_without_a_driver_are_no_obstacle(room: Room) -> None:
    held = room.take(2)
    assert room.framework.group_status(held) == (True, False)
    room.framework.join(held, room.container)
    assert room.framework.group_status(held) == (True, True)


def test_a_driver_of_the_host_is_one(room: Room) -> None:
    held = room.take(2)
    room.framework.bind_foreign(room.devices["c"], "nvme")
    assert room.framework.group_status(held) == (False, False)
    with refused(room, NotViable) as caught:
        room.framework.join(held, room.container)
    assert "c belongs to the driver nvme" in str(caught.value)
    room.framework.bind_foreign(room.devices["c"], "")
    room.framework.join(held, room.container)


def test_a_driver_that_uses_no_dma_is_none(room: Room) -> None:
    room.framework.bind_foreign(room.devices["c"], "pci-stub")
    room.joined(2)


def test_the_host_may_not_have_what_is_in_a_container(room: Room) -> None:
    held = room.joined(2)
    with refused(room, Busy):
        room.framework.bind_foreign(room.devices["c"], "nvme")
    room.framework.leave(held)
    room.framework.bind_foreign(room.devices["c"], "nvme")
    with refused(room, Busy):
        room.framework.bind_foreign(room.devices["b"], "nvme")


def test_vfio_may(room: Room) -> None:
    held = room.enabled(2)
    room.bind("c")
    assert room.devices["c"].domain is room.container.domain
    room.open(held, "c")


# -- join and leave ------------------------------------------------------------------------------


def test_a_group_is_in_one_container_at_a_time(room: Room) -> None:
    held = room.joined()
    with refused(room, InvalidArgument):
        room.framework.join(held, room.container)
    with refused(room, InvalidArgument):
        room.framework.join(held, room.framework.open_container())


def test_a_container_is_a_context_that_dies_with_its_handle(room: Room) -> None:
    room.joined()
    assert room.group(1).iommu is room.container
    assert room.container.lifetime is Lifetime.WITH_HANDLE


def test_groups_share_what_is_mapped(room: Room) -> None:
    room.enabled(1)
    room.map()
    room.joined(2)
    assert room.devices["b"].domain is room.devices["a"].domain
    assert room.devices["c"].domain is room.devices["a"].domain


def test_a_device_that_cannot_be_attached_keeps_its_group_out(room: Room) -> None:
    room.enabled(1)
    held = room.take(2)
    room.devices["c"].attach_error = NoMemory("no page table")
    with refused(room, NoMemory):
        room.framework.join(held, room.container)
    assert room.devices["b"].domain is None


def test_unsafe_interrupts_keep_a_group_out() -> None:
    room = Room(UNSAFE)
    room.enabled(1)
    held = room.take(2)
    with refused(room, UnsafeInterrupts):
        room.framework.join(held, room.container)


def test_a_group_with_open_devices_cannot_leave(room: Room) -> None:
    held = room.enabled()
    opened = room.open(held)
    with refused(room, Busy):
        room.framework.leave(held)
    room.framework.close_device(opened)
    room.framework.leave(held)
    with refused(room, InvalidArgument):
        room.framework.leave(held)


def test_the_last_group_takes_the_mappings_with_it(room: Room) -> None:
    one, two = room.enabled(1), room.joined(2)
    room.map()
    domain = room.container.domain
    room.framework.leave(one)
    assert room.container.domain is domain is not None
    assert room.me.locked_pages == 1
    room.framework.leave(two)
    assert room.container.domain is None
    assert room.container.type1 is None
    assert room.me.locked_pages == 0
    room.framework.join(one, room.container)
    room.framework.enable_container(room.container, 1)


# -- enable --------------------------------------------------------------------------------------


def test_a_container_needs_a_group_before_it_gets_an_iommu(room: Room) -> None:
    with refused(room, InvalidArgument):
        room.framework.enable_container(room.container, 1)
    room.joined()
    room.framework.enable_container(room.container, 1)
    with refused(room, InvalidArgument):
        room.framework.enable_container(room.container, 2)
    assert room.container.type1
    assert room.container.type1.version == 1


@pytest.mark.parametrize(("unit", "error"), [(None, NoSuchDevice), (UNSAFE, UnsafeInterrupts)])
def test_an_iommu_that_is_not_fit_is_refused(unit: IommuUnit | None, error: type) -> None:
    room = Room(unit)
    room.joined(2)
    with refused(room, error):
        room.framework.enable_container(room.container, 1)
    assert room.container.type1 is None


# -- who keeps whom alive ------------------------------------------------------------------------


def test_mappings_outlive_devices(room: Room) -> None:
    held = room.enabled()
    room.map()
    room.framework.close_device(room.open(held))
    assert room.me.locked_pages == 1


def test_a_closed_group_file_takes_the_group_out(room: Room) -> None:
    held = room.enabled()
    room.map()
    room.framework.close_group(held)
    assert room.container.domain is None
    assert room.me.locked_pages == 0


def test_an_open_device_keeps_its_group_and_its_container(room: Room) -> None:
    held = room.enabled()
    room.map()
    opened = room.open(held)
    room.framework.close_container(room.container)
    room.framework.close_group(held)
    assert room.devices["a"].domain is room.container.domain is not None
    assert room.me.locked_pages == 1
    room.framework.close_device(opened)
    assert room.group(1).iommu is None
    assert room.me.locked_pages == 0


def test_a_container_lives_while_its_file_is_closed_and_it_has_groups(room: Room) -> None:
    held = room.enabled()
    room.framework.close_container(room.container)
    assert not room.container.file_open
    room.framework.close_device(room.open(held))


# -- devices -------------------------------------------------------------------------------------


def test_the_order_of_opening_a_device(room: Room) -> None:
    held = room.take(1)
    with refused(room, NoSuchDevice):
        room.open(held, "b")
    with refused(room, InvalidArgument):
        room.open(held)
    room.framework.join(held, room.container)
    with refused(room, InvalidArgument):
        room.open(held)
    room.framework.enable_container(room.container, 2)
    room.bounds["a"].errors["get"] = NoMemory("no")
    before = room.container.domain
    with refused(room, NoMemory):
        room.open(held)
    assert room.container.domain is before


def test_only_the_group_asked_is_searched(room: Room) -> None:
    held = room.enabled(1)
    room.joined(2)
    with refused(room, NoSuchDevice):
        room.open(held, "b")


def test_a_device_without_vfio_cannot_be_opened(room: Room) -> None:
    held = room.enabled(2)
    with refused(room, NoSuchDevice):
        room.open(held, "c")


def test_a_device_opens_many_times(room: Room) -> None:
    held = room.enabled()
    for opened in [room.open(held), room.open(held)]:
        room.framework.close_device(opened)
    assert room.bounds["a"].enabled == 0


def test_options_are_the_drivers_business(room: Room) -> None:
    class Choosy:
        name = "choosy"

        def match(self, dev: BusDevice, name: str) -> bool:
            raise AssertionError("not asked")

        def match_with_options(self, dev: BusDevice, text: str, data: BoundDevice) -> bool:
            if text == "bad":
                raise InvalidArgument("bad option")
            return text == "good"

        def bind_hotplugged(self, dev: BusDevice) -> None:
            raise AssertionError("not asked")

    held = room.take(1)
    room.record("a").driver = Choosy()
    with refused(room, NoSuchDevice):
        room.open(held, "a")
    with refused(room, InvalidArgument):
        room.open(held, "bad")
    room.framework.join(held, room.container)
    room.framework.enable_container(room.container, 1)
    room.open(held, "good")


# -- unbind and revoke ---------------------------------------------------------------------------


def test_unbinding_waits_for_the_device_alone(room: Room) -> None:
    room.bind("c")
    held = room.enabled(2)
    opened = room.open(held, "b")
    room.unbind("c")
    with refused(room, Busy):
        room.unbind("b")
    room.framework.close_device(opened)
    room.unbind("b")


def test_a_device_that_is_being_taken_away_takes_no_new_users(room: Room) -> None:
    held = room.enabled()
    opened = room.open(held)
    asked = threading.Event()
    room.bounds["a"].on_call = lambda method: asked.set() if method == "request" else None
    waiter = threading.Thread(target=lambda: room.unbind("a", timeout=20))
    waiter.start()
    assert asked.wait(10)
    with pytest.raises(NoSuchDevice):
        room.open(held)
    room.framework.close_device(opened)
    waiter.join(10)
    assert not room.record("a").bound


def test_a_group_without_vfio_devices_is_over(room: Room) -> None:
    held = room.enabled()
    room.unbind("a")
    assert held.orphan
    assert room.container.domain is None
    for call in (
        lambda: room.framework.group_status(held),
        lambda: room.framework.join(held, room.container),
        lambda: room.open(held),
        lambda: room.framework.make_shared(held),
    ):
        with refused(room, NoSuchDevice):
            call()
    with refused(room, InvalidArgument):
        room.framework.leave(held)


def test_a_group_that_comes_back_is_another_one(room: Room) -> None:
    held = room.enabled()
    room.unbind("a")
    room.bind("a")
    again = room.take(1)
    with refused(room, NoSuchDevice):
        room.framework.group_status(held)
    room.framework.close_group(held)
    assert room.framework.group_status(again) == (True, False)


def test_an_orphan_does_not_keep_its_group(room: Room) -> None:
    held = room.take(1)
    room.unbind("a")
    room.unplug("a")
    with pytest.raises(NoSuchGroup):
        room.group(1)
    room.framework.close_group(held)


def test_a_group_lives_while_one_of_its_devices_is_bound(room: Room) -> None:
    room.bind("c")
    held = room.enabled(2)
    room.unbind("c")
    assert room.framework.group_status(held) == (True, True)


def test_a_revoked_device_leaves_its_group_in_the_container(room: Room) -> None:
    room.bind("c")
    held = room.enabled(2)
    taken, other = room.open(held, "b"), room.open(held, "c")
    room.unbind("b", revoke=True)
    assert taken.data is None
    assert other.data is not None
    assert room.framework.group_status(held) == (True, True)


def test_a_device_that_is_pulled_out_leaves_the_container(room: Room) -> None:
    room.bind("c")
    held = room.enabled(2)
    room.unbind("c")
    room.unplug("c")
    assert room.devices["c"].domain is None
    with refused(room, NoSuchDevice):
        room.open(held, "c")


def test_a_device_plugged_into_a_group_in_a_container_is_attached(room: Room) -> None:
    held = room.enabled(2)
    dev = room.plug("d", 2, bind=False)
    assert dev.domain is room.container.domain
    room.bind("d")
    room.open(held, "d")


def test_a_bound_device_that_is_gone_cannot_be_opened(room: Room) -> None:
    held = room.enabled()
    room.unplug("a")
    with refused(room, NoSuchDevice):
        room.open(held)
    with pytest.raises(Gone):
        room.framework.bind_device(room.devices["a"], room.bounds["a"])
