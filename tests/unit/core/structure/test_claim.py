"""``Claim``: the devices of one group at an iommufd share a page table, move together, or stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from support.iommufd import describe
from support.world import PAGE, UNIT, World
from uvfio.core.structure.claim import Claim, claim_for
from uvfio.core.structure.iommufd import Iommufd
from uvfio.core.translation.area import Backing
from uvfio.core.translation.ioas import Hwpt, Ioas
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    InvalidArgument,
    IovaInUse,
    NoSuchDevice,
    NotOwner,
    NotViable,
    UnsafeInterrupts,
    VfioError,
)

RESERVED = UNIT.reserved[0][0]


class Bench:
    """An iommufd that has the DMA of group 1, whose devices are ``names``, behind ``unit``."""

    def __init__(
        self,
        names: Iterable[str] = ("a", "b"),
        unit: IommuUnit | None = UNIT,
        *,
        allow_unsafe: bool = False,
    ) -> None:
        self.world = World()
        for name in names:
            self.world.plug(name, unit=unit)
        self.context = self.world.framework.open_iommufd()
        self.claim = self.claim_of(self.context, allow_unsafe=allow_unsafe)

    def claim_of(self, context: Iommufd, *, allow_unsafe: bool = False) -> Claim:
        return claim_for(context, self.world.group(1), allow_unsafe=allow_unsafe)

    def bind(self, *names: str) -> None:
        for name in names:
            self.claim.bind(self.world.record(name))

    def attach(self, name: str, target: Ioas | Hwpt) -> Hwpt:
        return self.claim.attach(self.world.record(name), target)

    def detach(self, name: str) -> None:
        self.claim.detach(self.world.record(name))

    def ioas(self) -> Ioas:
        ioas = self.context.new_ioas()
        self.context.add(ioas)
        return ioas

    def domains(self) -> list[object]:
        return [dev.domain for dev in self.world.devices.values()]

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> str:
        before = self.world.snapshot(), describe(self.context)
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert (self.world.snapshot(), describe(self.context)) == before
        return str(caught.value)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.bind("a", "b")
    return made


# -- who has the group ---------------------------------------------------------------------------


def test_a_context_has_one_claim_on_a_group_and_no_other_context_has_one(bench: Bench) -> None:
    assert bench.claim_of(bench.context) is bench.claim
    other = bench.world.framework.open_iommufd()
    bench.refused(NotOwner, lambda: bench.claim_of(other))
    assert other.claims == []


def test_dma_is_owned_while_a_device_is_bound_and_not_by_joining() -> None:
    bench = Bench()
    bench.claim.join()
    assert (bench.claim.joined, bench.claim.owns_dma) == (True, False)
    bench.bind("a")
    assert bench.claim.owns_dma
    assert not bench.claim.depart(bench.world.group(1)), "a device is bound"
    assert not bench.claim.joined
    bench.claim.unbind(bench.world.record("a"))
    assert not bench.claim.owns_dma
    bench.claim.join()
    assert bench.claim.depart(bench.world.group(1))


# -- binding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "condition"),
    [
        (None, InvalidArgument),
        (IommuUnit(coherent=False), InvalidArgument),
        (IommuUnit(interrupt_remapping=False), UnsafeInterrupts),
    ],
)
def test_an_iommu_that_will_not_do(unit: IommuUnit | None, condition: type[VfioError]) -> None:
    bench = Bench(unit=unit)
    bench.refused(condition, lambda: bench.bind("a"))


def test_unsafe_interrupts_can_be_accepted() -> None:
    bench = Bench(unit=IommuUnit(interrupt_remapping=False), allow_unsafe=True)
    bench.bind("a")
    assert bench.claim.owns_dma


def test_a_driver_of_the_host_in_the_group_is_in_the_way() -> None:
    bench = Bench(("a",))
    bench.world.plug("nic", bind=False)
    bench.world.record("nic").host_driver = "e1000e"
    message = bench.refused(NotViable, lambda: bench.bind("a"))
    assert "the driver e1000e of the host, which has nic" in message
    bench.world.record("nic").host_driver = "pci-stub"
    bench.bind("a")


# -- page tables ---------------------------------------------------------------------------------


def test_the_whole_group_follows_the_first_device_that_is_attached() -> None:
    bench = Bench()
    bench.bind("a")
    ioas = bench.ioas()
    hwpt = bench.attach("a", ioas)
    assert bench.domains() == [ioas.domain] * 2, "b is not bound, but in the group"
    assert (hwpt.auto, hwpt.users, bench.claim.hwpt) == (True, 1, hwpt)
    bench.bind("b")
    assert bench.attach("b", ioas) is hwpt
    assert hwpt.users == 2
    assert bench.attach("b", ioas) is hwpt
    assert hwpt.users == 2


def test_the_group_leaves_with_the_last_attached_device(bench: Bench) -> None:
    ioas = bench.ioas()
    hwpt = bench.attach("a", ioas)
    bench.attach("b", ioas)
    bench.detach("a")
    bench.detach("a")
    assert bench.domains() == [ioas.domain] * 2
    assert hwpt.users == 1
    bench.detach("b")
    assert bench.domains() == [None, None]
    assert (ioas.hwpts, ioas.reserved) == ([], ()), "a page table that was made for them is gone"
    assert hwpt not in bench.context.objects.values()


def test_a_page_table_that_a_program_made_stays(bench: Bench) -> None:
    ioas = bench.ioas()
    own = bench.context.new_hwpt(ioas, UNIT)
    bench.attach("a", own)
    bench.detach("a")
    assert own in bench.context.objects.values()
    assert (ioas.hwpts, own.users) == ([own], 0)


def test_a_group_has_one_page_table(bench: Bench) -> None:
    first, second = bench.ioas(), bench.ioas()
    bench.attach("a", first)
    bench.refused(InvalidArgument, lambda: bench.attach("b", second))
    own = bench.context.new_hwpt(first, UNIT)
    bench.refused(InvalidArgument, lambda: bench.attach("b", own))


def test_replacing_it_for_one_replaces_it_for_all(bench: Bench) -> None:
    first, second = bench.ioas(), bench.ioas()
    bench.attach("a", first)
    bench.attach("b", first)
    hwpt = bench.attach("a", second)
    assert (hwpt.users, bench.claim.hwpt) == (2, hwpt)
    assert bench.domains() == [second.domain] * 2
    assert (first.hwpts, first.reserved) == ([], ())
    assert any(low == RESERVED for low, _ in second.reserved)
    bench.detach("a")
    bench.detach("b")
    assert second.reserved == ()


def test_a_page_table_of_another_iommu(bench: Bench) -> None:
    short = bench.context.new_hwpt(bench.ioas(), IommuUnit("short", address_bits=39))
    message = bench.refused(InvalidArgument, lambda: bench.attach("a", short))
    assert "is for short, not iommu0" in message


def test_what_the_device_reserves_must_not_be_mapped(bench: Bench) -> None:
    ioas = bench.ioas()
    mm = bench.world.mm()
    ioas.map(Backing(mm, True, mm, None), 0, PAGE, RESERVED, readable=True, writable=True)
    bench.refused(IovaInUse, lambda: bench.attach("a", ioas))
    assert mm.locked_pages == 0
    ioas.unmap_all()
    bench.attach("a", ioas)
    assert any(low == RESERVED for low, _ in ioas.reserved)


def test_a_device_that_cannot_move_keeps_all_where_they_are(bench: Bench) -> None:
    first, second = bench.ioas(), bench.ioas()
    bench.attach("a", first)
    bench.attach("b", first)
    b = bench.world.devices["b"]
    attach, b_refuses = b.attach, [True]

    def once(domain: object) -> None:
        if domain is second.domain and b_refuses:
            raise InvalidArgument("b does not want to")
        attach(domain)  # type: ignore[arg-type]

    b.attach = once  # type: ignore[method-assign]
    assert bench.refused(InvalidArgument, lambda: bench.attach("a", second)) == "b does not want to"
    b_refuses.clear()
    bench.attach("a", second)
    assert bench.domains() == [second.domain] * 2


# -- groups that joined --------------------------------------------------------------------------


def test_a_device_is_admitted_to_the_address_space_of_containers() -> None:
    bench = Bench()
    bench.refused(NoSuchDevice, lambda: bench.claim.admit(bench.world.record("a")))
    bench.context.make_compat()
    for _ in range(2):
        bench.claim.admit(bench.world.record("a"))
    assert list(bench.claim.bound) == bench.claim.attached == [bench.world.record("a")]
    assert bench.domains() == [bench.context.compat_ioas().domain] * 2


def test_devices_that_are_not_open_any_more_are_unbound(bench: Bench) -> None:
    ioas = bench.ioas()
    bench.attach("a", ioas)
    bench.claim.forget_closed()
    assert bench.claim.bound == {}
    assert bench.domains() == [None, None]
    assert list(bench.context.objects.values()) == [ioas]


def test_its_end_may_be_that_of_the_context(bench: Bench) -> None:
    bench.ioas()
    bench.context.file_open = False
    for name in ("a", "b"):
        bench.claim.unbind(bench.world.record(name))
    bench.claim.detach_group(bench.world.group(1))
    bench.claim.close()
    assert (bench.context.claims, bench.context.objects) == ([], {})
