"""``Iommu``: opening in order and undone on errors, closing, members, ownership."""

from __future__ import annotations

import pytest

from support.world import FakeBound, FakeBusDevice, FakeDriver, World
from uvfio.core.seams import Mm
from uvfio.core.structure.device import Device
from uvfio.core.structure.group import Group
from uvfio.core.structure.iommu import Iommu, Lifetime, OpenIommu
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    Gone,
    InvalidArgument,
    NoMemory,
    NoSuchDevice,
    NotOwner,
    NotViable,
    UnsafeInterrupts,
    VfioError,
)

UNSAFE = IommuUnit("unsafe", interrupt_remapping=False)


class Context:
    """A context with one group of two bound devices, without a framework."""

    def __init__(self, *, unit: IommuUnit | None = IommuUnit(), allow_unsafe: bool = False) -> None:  # noqa: B008
        self.iommu = Iommu(Domain, allow_unsafe=allow_unsafe)
        self.mm = World().mm("owner")
        self.group = self.make_group(1, "a", "b", unit=unit)
        self.iommu.attach_group(self.group)

    @staticmethod
    def make_group(number: int, *names: str, unit: IommuUnit | None = IommuUnit()) -> Group:  # noqa: B008
        group = Group("pci", number, 0, str(number))
        for name in names:
            device = Device(FakeBusDevice(name, number, unit=unit), FakeDriver(), group)
            device.data = FakeBound(name)
            group.devices.append(device)
        return group

    def device(self, name: str) -> Device:
        return next(d for g in self.iommu.groups for d in g.devices if d.name == name)

    def bus(self, name: str) -> FakeBusDevice:
        dev = self.device(name).dev
        assert isinstance(dev, FakeBusDevice)
        return dev

    @property
    def state(self) -> list[object]:
        """What a refused call must not change."""
        seen: list[object] = [self.iommu.domain, self.iommu.owner, list(self.iommu.groups)]
        for group in self.iommu.groups:
            seen += [group.iommu]
            seen += [(d.name, d.attached, self.bus(d.name).domain) for d in group.devices]
        return seen

    def open_is_refused(self, condition: type[VfioError], mm: Mm | None = None) -> str:
        before = self.state
        with pytest.raises(VfioError) as caught:
            self.iommu.open(mm or self.mm)
        assert type(caught.value) is condition
        assert self.state == before
        return str(caught.value)


# -- open ----------------------------------------------------------------------------------------


def test_open_attaches_every_device_of_every_group_and_takes_ownership() -> None:
    context = Context()
    context.iommu.attach_group(context.make_group(2, "c"))
    domain = context.iommu.open(context.mm)
    assert context.iommu.domain is domain
    assert context.iommu.owner is context.mm
    assert {context.bus(name).domain for name in "abc"} == {domain}
    assert all(context.device(name).attached for name in "abc")


def test_open_needs_every_device_bound() -> None:
    context = Context()
    context.device("b").data = None
    assert "b is not bound" in context.open_is_refused(NotViable)


def test_open_needs_every_group_of_the_set_viable() -> None:
    context = Context()
    context.iommu.attach_group(context.make_group(2, "c"))
    context.device("c").data = None
    context.open_is_refused(NotViable)


def test_open_needs_devices() -> None:
    context = Context()
    context.group.devices.clear()
    context.open_is_refused(NoSuchDevice)


def test_open_refuses_while_a_device_is_being_taken_away() -> None:
    context = Context()
    context.device("b").departing = 1
    assert "b is being taken away" in context.open_is_refused(Gone)


def test_open_of_an_open_context_is_refused() -> None:
    context = Context()
    context.iommu.open(context.mm)
    context.open_is_refused(InvalidArgument)


def test_viability_comes_before_open_already() -> None:
    context = Context()
    context.iommu.open(context.mm)
    context.device("a").data = None
    context.open_is_refused(NotViable)


def test_d08_no_iommu_is_no_memory_for_a_domain() -> None:
    context = Context(unit=None)
    context.open_is_refused(NoMemory)


def test_viability_comes_before_the_iommu() -> None:
    context = Context(unit=None)
    context.device("a").data = None
    context.open_is_refused(NotViable)


def test_a_failing_attach_undoes_those_before_it() -> None:
    context = Context()
    context.bus("b").attach_error = InvalidArgument("b cannot be attached")
    assert context.open_is_refused(InvalidArgument) == "b cannot be attached"
    assert context.bus("a").calls == ["attach", "detach"]


def test_d08_missing_interrupt_remapping_is_refused_by_name() -> None:
    context = Context(unit=UNSAFE)
    context.open_is_refused(UnsafeInterrupts)
    assert context.bus("a").calls == ["attach", "detach"]


def test_an_attach_error_comes_before_missing_remapping() -> None:
    context = Context(unit=UNSAFE)
    context.bus("a").attach_error = InvalidArgument("no")
    context.open_is_refused(InvalidArgument)


def test_missing_interrupt_remapping_can_be_allowed() -> None:
    context = Context(unit=UNSAFE, allow_unsafe=True)
    context.iommu.open(context.mm)
    assert context.iommu.owner is context.mm


# -- close ---------------------------------------------------------------------------------------


def test_close_detaches_everything_and_gives_memory_back() -> None:
    context = Context()
    domain = context.iommu.open(context.mm)
    Rules2011(domain).map(0, 4096, 0, context.mm, None, writable=True)
    context.device("a").reserved = True
    context.iommu.close()
    assert context.iommu.domain is None
    assert [context.bus(name).domain for name in "ab"] == [None, None]
    assert not any(d.attached or d.reserved for d in context.group.devices)
    assert context.mm.locked_pages == 0


def test_closing_a_closed_context_does_nothing() -> None:
    context = Context()
    before = context.state
    context.iommu.close()
    assert context.state == before


# -- members -------------------------------------------------------------------------------------


def test_review_09_attach_group_joins_the_open_domain() -> None:
    context = Context()
    domain = context.iommu.open(context.mm)
    group = context.make_group(2, "c")
    context.iommu.attach_group(group)
    assert group.iommu is context.iommu
    assert context.bus("c").domain is domain


def test_attach_group_to_a_closed_context_attaches_no_device() -> None:
    context = Context()
    context.iommu.attach_group(context.make_group(2, "c"))
    assert context.bus("c").calls == []


def test_the_newest_member_is_first() -> None:
    context = Context()
    group = context.make_group(2)
    context.iommu.attach_group(group)
    assert context.iommu.groups == [group, context.group]


def test_a_group_that_cannot_be_attached_stays_outside() -> None:
    context = Context()
    context.iommu.open(context.mm)
    group = context.make_group(2, "c", "d")
    assert isinstance(group.devices[1].dev, FakeBusDevice)
    group.devices[1].dev.attach_error = InvalidArgument("no")
    before = context.state
    with pytest.raises(InvalidArgument):
        context.iommu.attach_group(group)
    assert context.state == before
    assert group.iommu is None
    assert not any(d.attached for d in group.devices)
    assert isinstance(group.devices[0].dev, FakeBusDevice)
    assert group.devices[0].dev.domain is None


def test_review_09_detach_group_needs_only_the_group_that_leaves() -> None:
    context = Context()
    context.iommu.attach_group(context.make_group(2, "c"))
    domain = context.iommu.open(context.mm)
    Rules2011(domain).map(0, 4096, 0, context.mm, None, writable=True)
    dev = context.bus("a")
    context.iommu.detach_group(context.group)
    assert context.group.iommu is None
    assert dev.domain is None
    assert context.bus("c").domain is domain
    assert len(domain.mappings) == 1


def test_attaching_and_detaching_a_device_twice_does_it_once() -> None:
    context = Context()
    context.iommu.open(context.mm)
    context.iommu.attach_device(context.device("a"))
    context.iommu.detach_device(context.device("a"))
    context.iommu.detach_device(context.device("a"))
    assert context.bus("a").calls == ["attach", "detach"]


# -- questions -----------------------------------------------------------------------------------


def test_review_06_in_use_means_an_iommu_file_or_a_device_file() -> None:
    world = World()
    world.plug("edu")
    mm = world.mm()
    held = world.hold(1, mm)
    assert not world.iommu(1).in_use
    assert world.group(1).is_open
    opened = world.framework.open_iommu(held, mm)
    assert world.iommu(1).in_use
    device = world.framework.open_device(held, "edu", mm)
    world.framework.close_iommu(opened)
    assert world.iommu(1).in_use
    world.framework.close_device(device)
    assert not world.iommu(1).in_use


def test_a_context_without_groups_is_not_viable() -> None:
    assert not Iommu(Domain).viable


def test_a_context_is_viable_and_departing_as_its_members_are() -> None:
    context = Context()
    assert context.iommu.viable
    assert not context.iommu.departing
    context.device("a").departing = 1
    assert context.iommu.departing
    context.device("a").data = None
    assert not context.iommu.viable


def test_only_the_owner_passes_the_owner_check_once_there_is_one() -> None:
    context, other = Context(), World().mm("other")
    context.iommu.check_owner(other)
    context.iommu.open(context.mm)
    context.iommu.check_owner(context.mm)
    with pytest.raises(NotOwner, match="belongs to another process \\(owner\\)"):
        context.iommu.check_owner(other)


def test_an_open_iommu_file_points_to_its_context() -> None:
    context = Context()
    assert OpenIommu(context.iommu).iommu is context.iommu


def test_a_context_of_2011_dies_with_its_users() -> None:
    assert Context().iommu.lifetime is Lifetime.WITH_USERS
