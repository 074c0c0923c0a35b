"""``Iommufd``: numbered objects, what needs what, who pays, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import RLock

import pytest

from support.iommufd import describe
from support.world import PAGE, SparseMemory, World
from uvfio.core.seams import Mm
from uvfio.core.structure.claim import claim_for
from uvfio.core.structure.iommufd import Assigned, Iommufd, Object
from uvfio.core.translation.area import Backing
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    Busy,
    InvalidArgument,
    IovaInUse,
    LimitExceeded,
    NoSuchDevice,
    NoSuchObject,
    Unsupported,
    VfioError,
)

UNIT = IommuUnit(reserved=())


def new_context() -> Iommufd:
    return Iommufd(RLock(), Domain)


def new_ioas(context: Iommufd) -> tuple[int, Ioas]:
    ioas = context.new_ioas()
    return context.add(ioas), ioas


def refused(context: Iommufd, condition: type[VfioError], call: Callable[[], object]) -> str:
    before = describe(context)
    with pytest.raises(VfioError) as caught:
        call()
    assert type(caught.value) is condition, caught.value
    assert describe(context) == before
    return str(caught.value)


def map_at(ioas: Ioas, iova: int, backing: Backing, size: int = PAGE) -> None:
    ioas.map(backing, iova, size, iova, readable=True, writable=True)


class Bound:
    """A context to which the device of a world is bound."""

    def __init__(self) -> None:
        self.world = World()
        self.world.plug("edu", 1, unit=UNIT)
        self.context = self.world.framework.open_iommufd()
        self.device = self.world.record("edu")
        self.claim = claim_for(self.context, self.world.group(1), allow_unsafe=False)
        self.number = self.claim.bind(self.device)


# -- objects -------------------------------------------------------------------------------------


def test_numbers_are_the_lowest_free_ones_from_1_on() -> None:
    context = new_context()
    assert [new_ioas(context)[0] for _ in range(3)] == [1, 2, 3]
    context.destroy(2)
    assert new_ioas(context)[0] == 2


def test_an_object_is_found_by_number_and_kind() -> None:
    context = new_context()
    number, ioas = new_ioas(context)
    assert context.find(number, Ioas) is ioas
    assert context.number_of(ioas) == number
    assert refused(context, NoSuchObject, lambda: context.find(number, Hwpt)) == (
        "1 is an object of kind Ioas, not Hwpt"
    )
    assert refused(context, NoSuchObject, lambda: context.find(2, Ioas)) == (
        "2 is nothing, not Ioas"
    )


def test_what_another_object_needs_cannot_be_destroyed() -> None:
    context = new_context()
    number, ioas = new_ioas(context)
    hwpt = context.new_hwpt(ioas, UNIT)
    refused(context, Busy, lambda: context.destroy(number))
    hwpt.users = 1
    refused(context, Busy, lambda: context.destroy(context.number_of(hwpt)))
    hwpt.users = 0
    context.destroy(context.number_of(hwpt))
    assert ioas.hwpts == []
    context.destroy(number)
    assert ioas.domain.closed
    refused(context, NoSuchObject, lambda: context.destroy(number))


def test_a_page_table_that_cannot_translate_everything_gets_no_number() -> None:
    context = new_context()
    _, ioas = new_ioas(context)
    map_at(ioas, 1, Backing(Mm(SparseMemory()), True, Mm(SparseMemory()), None))
    refused(context, IovaInUse, lambda: context.new_hwpt(ioas, UNIT))


@pytest.mark.parametrize(
    ("other", "suits"),
    [
        (IommuUnit("another", coherent=False), True),
        (IommuUnit(address_bits=39), False),
        (IommuUnit(page_sizes=(4096,)), False),
    ],
)
def test_a_page_table_suits_iommus_of_the_same_pages_and_width(
    other: IommuUnit, suits: bool
) -> None:
    _, ioas = new_ioas(new_context())
    assert Hwpt(ioas, IommuUnit(), auto=False).suits(other) is suits


# -- the container's address space ---------------------------------------------------------------


def test_the_address_space_of_containers_is_made_once_and_goes_when_it_is_destroyed() -> None:
    context = new_context()
    refused(context, NoSuchDevice, context.compat_ioas)
    context.make_compat()
    ioas = context.compat_ioas()
    context.make_compat()
    assert context.compat_ioas() is ioas
    assert list(context.objects) == [1]
    context.destroy(1)
    refused(context, NoSuchDevice, context.compat_ioas)


# -- who pays ------------------------------------------------------------------------------------


def test_how_locked_memory_is_counted_is_chosen_before_anything_else() -> None:
    context = new_context()
    context.count_by_process(True)
    assert context.per_process
    number, _ = new_ioas(context)
    refused(context, Busy, lambda: context.count_by_process(False))
    context.destroy(number)
    context.count_by_process(False)
    assert not context.per_process


def test_another_process_takes_over_what_is_held_of_files() -> None:
    context = new_context()
    files, old, new = SparseMemory(), Mm(SparseMemory(), "old"), Mm(SparseMemory(), "new")
    _, ioas = new_ioas(context)
    context.new_hwpt(ioas, UNIT)
    backing = Backing(Mm(files), True, old, None, from_file=True)
    map_at(ioas, 0, backing, 2 * PAGE)
    map_at(ioas, 0x10000, backing)
    assert old.locked_pages == 3
    refused(context, LimitExceeded, lambda: context.change_process(new, 2 * PAGE))
    assert (old.locked_pages, new.locked_pages) == (3, 0)
    for _ in range(2):
        context.change_process(new, 3 * PAGE)
        assert (old.locked_pages, new.locked_pages) == (0, 3)
    assert (backing.payer, backing.limit) == (new, 3 * PAGE)
    ioas.unmap_all()
    assert new.locked_pages == 0


def test_memory_of_a_process_stays_with_it() -> None:
    context = new_context()
    mm, new = Mm(SparseMemory()), Mm(SparseMemory())
    _, ioas = new_ioas(context)
    map_at(ioas, 0, Backing(mm, True, mm, None, from_file=True))
    map_at(ioas, PAGE, Backing(mm, True, mm, None))
    refused(context, InvalidArgument, lambda: context.change_process(new, None))
    assert all(area.backing.payer is mm for area in ioas.domain.mappings)  # type: ignore[attr-defined]


# -- devices -------------------------------------------------------------------------------------


def test_a_bound_device_is_an_object_that_cannot_be_destroyed() -> None:
    bound = Bound()
    context = bound.context
    assert context.find(bound.number, Assigned).device is bound.device
    assert context.assigned(bound.device).claim is bound.claim
    refused(context, Busy, lambda: context.destroy(bound.number))
    stranger = bound.world.plug("other", 2)
    with pytest.raises(InvalidArgument, match="other is not bound"):
        context.assigned(bound.world.record(stranger.name))


def test_a_page_table_is_made_for_a_device_and_of_an_address_space() -> None:
    bound = Bound()
    context = bound.context
    parent, ioas = new_ioas(context)
    hwpt = context.alloc_hwpt(bound.number, parent)
    assert (hwpt.ioas, hwpt.unit, hwpt.auto, ioas.hwpts) == (ioas, UNIT, False, [hwpt])
    nested = context.number_of(hwpt)
    refused(context, Unsupported, lambda: context.alloc_hwpt(bound.number, nested))
    refused(context, InvalidArgument, lambda: context.alloc_hwpt(bound.number, bound.number))
    refused(context, InvalidArgument, lambda: context.alloc_hwpt(bound.number, 99))
    refused(context, NoSuchObject, lambda: context.alloc_hwpt(parent, parent))


def test_a_device_is_attached_to_an_address_space_or_a_page_table() -> None:
    bound = Bound()
    context = bound.context
    parent, ioas = new_ioas(context)
    made = context.attach(bound.device, parent)
    assert context.find(made, Hwpt).auto
    own = context.number_of(context.alloc_hwpt(bound.number, parent))
    assert context.attach(bound.device, own) == own
    assert made not in context.objects, "nothing needs it any more"
    assert ioas.hwpts == [context.objects[own]]
    refused(context, NoSuchObject, lambda: context.attach(bound.device, 99))
    refused(context, InvalidArgument, lambda: context.attach(bound.device, bound.number))


# -- life ----------------------------------------------------------------------------------------


def test_it_ends_when_neither_its_file_nor_a_group_has_it() -> None:
    bound = Bound()
    context = bound.context
    number, ioas = new_ioas(context)
    context.attach(bound.device, number)
    bound.world.framework.close_iommufd(context)
    assert ioas in context.objects.values()
    bound.claim.unbind(bound.device)
    bound.claim.detach_group(bound.world.group(1))
    bound.claim.close()
    assert context.objects == {}
    assert ioas.domain.closed


def test_an_open_file_keeps_it() -> None:
    context = new_context()
    number, _ = new_ioas(context)
    context.settle()
    assert number in context.objects


# -- many objects --------------------------------------------------------------------------------


class Unlisted(dict[int, Object]):
    """Objects that are found by their number and never gone through one by one."""

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("an operation goes through all objects")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_no_operation_depends_on_how_many_objects_there_are() -> None:
    bound = Bound()
    context = bound.context
    context.objects = Unlisted(context.objects.items())
    made = [new_ioas(context) for _ in range(100)]
    assert [number for number, _ in made] == list(range(2, 102))
    assert context.assigned(bound.device) is bound.claim.bound[bound.device]
    for number, ioas in made[10:90]:
        assert context.number_of(ioas) == number
        context.destroy(number)
    assert [new_ioas(context)[0] for _ in range(80)] == list(range(12, 92))
    hwpt = context.new_hwpt(made[0][1], UNIT)
    assert context.attach(bound.device, context.number_of(hwpt)) == 102
    bound.claim.unbind(bound.device)
    with pytest.raises(InvalidArgument):
        context.assigned(bound.device)
    assert new_ioas(context)[0] == 1


def test_numbers_begin_anew_when_all_objects_are_gone() -> None:
    context = new_context()
    for numbers in ([3, 1, 2], [2, 3, 1], [1, 2, 3]):
        assert [new_ioas(context)[0] for _ in range(3)] == [1, 2, 3]
        for number in numbers:
            context.destroy(number)
