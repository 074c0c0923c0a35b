"""Devices that are opened by their own nodes, and groups that join an iommufd: the framework's part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.iommufd import describe
from support.world import World, refused
from uvfio.core.structure.device import OpenCdev
from uvfio.core.structure.iommufd import Assigned, Iommufd
from uvfio.errors import (
    Busy,
    Gone,
    InvalidArgument,
    NoSuchDevice,
    NotOwner,
    VfioError,
    WrongToken,
)


class Bench:
    """A world with devices a and b in group 1, c in group 2, and an iommufd."""

    def __init__(self) -> None:
        self.world = World()
        self.framework = self.world.framework
        for name, group in (("a", 1), ("b", 1), ("c", 2)):
            self.world.plug(name, group)
        self.context = self.framework.open_iommufd()

    def open(self, name: str) -> OpenCdev:
        number = next(n for n, device in self.framework.nodes.items() if device.name == name)
        return self.framework.open_cdev(number)

    def bound(self, name: str, context: Iommufd | None = None) -> OpenCdev:
        held = self.open(name)
        self.framework.bind_cdev(held, context or self.context, None)
        return held

    def ioas(self) -> int:
        return self.context.add(self.context.new_ioas())

    @contextmanager
    def refused(self, condition: type[VfioError]) -> Iterator[None]:
        before = self.see()
        with refused(self.world, condition):
            yield
        assert self.see() == before

    def see(self) -> object:
        nodes = {
            number: (device, [(held, held.opened, held.iommufd) for held in device.cdevs])
            for number, device in self.framework.nodes.items()
        }
        return describe(self.context), nodes


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- nodes ---------------------------------------------------------------------------------------


def test_a_device_has_the_lowest_free_node_while_it_is_bound(bench: Bench) -> None:
    def nodes() -> dict[int, str]:
        return {number: device.name for number, device in bench.framework.nodes.items()}

    assert nodes() == {0: "a", 1: "b", 2: "c"}
    before = bench.framework.generation
    bench.world.unbind("b")
    assert nodes() == {0: "a", 2: "c"}
    bench.world.plug("d", 3)
    assert nodes() == {0: "a", 1: "d", 2: "c"}
    assert bench.framework.generation > before + 1, "both changes can be noticed"


def test_there_is_no_such_node(bench: Bench) -> None:
    with bench.refused(NoSuchDevice):
        bench.framework.open_cdev(3)


def test_an_open_node_keeps_the_device_with_its_driver(bench: Bench) -> None:
    held = bench.open("c")
    with bench.refused(Busy):
        bench.world.unbind("c")
    bench.framework.close_cdev(held)
    bench.world.unbind("c")


def test_who_has_the_node_of_a_device_that_was_taken_away_has_nothing(bench: Bench) -> None:
    held = bench.bound("c")
    bench.world.unbind("c", revoke=True)
    assert held.gone
    assert bench.context.objects == {}
    bench.framework.unbind_cdev(held)
    with bench.refused(NoSuchDevice):
        bench.framework.bind_cdev(held, bench.context, None)
    bench.world.bind("c")
    with bench.refused(NoSuchDevice):
        bench.framework.bind_cdev(held, bench.context, None)
    bench.framework.close_cdev(held)
    assert bench.world.record("c").cdevs == []


# -- binding -------------------------------------------------------------------------------------


def test_binding_opens_the_device_and_closing_undoes_it(bench: Bench) -> None:
    held = bench.open("a")
    number = bench.framework.bind_cdev(held, bench.context, None)
    assert bench.context.find(number, Assigned).device is held.device
    assert bench.world.bounds["a"].enabled == 1
    assert held.opened is not None
    assert held.opened.ready
    bench.framework.close_cdev(held)
    assert bench.world.bounds["a"].enabled == 0
    assert (bench.context.objects, bench.context.claims) == ({}, [])
    assert bench.world.group(1).iommu is None


def test_a_file_is_bound_once_and_a_device_by_one_file(bench: Bench) -> None:
    held = bench.bound("a")
    with bench.refused(InvalidArgument):
        bench.framework.bind_cdev(held, bench.context, None)
    second = bench.open("a")
    with bench.refused(InvalidArgument):
        bench.framework.bind_cdev(second, bench.context, None)
    bench.framework.unbind_cdev(held)
    bench.framework.bind_cdev(second, bench.context, None)


def test_all_devices_of_a_group_belong_to_one_iommufd(bench: Bench) -> None:
    bench.bound("a")
    other = bench.framework.open_iommufd()
    held = bench.open("b")
    with bench.refused(NotOwner):
        bench.framework.bind_cdev(held, other, None)
    bench.bound("c", other)
    assert len(other.claims) == 1


def test_the_two_ways_to_a_device_exclude_each_other(bench: Bench) -> None:
    group = bench.world.hold(1, bench.world.mm())
    held = bench.open("a")
    with bench.refused(Busy):
        bench.framework.bind_cdev(held, bench.context, None)
    bench.framework.close_group(group)
    bench.framework.bind_cdev(held, bench.context, None)
    with bench.refused(Busy):
        bench.world.hold(1, bench.world.mm())


def test_a_device_that_cannot_be_enabled_is_not_bound(bench: Bench) -> None:
    held = bench.open("a")
    bench.world.bounds["a"].errors["get"] = Gone("it is off")
    with bench.refused(Gone):
        bench.framework.bind_cdev(held, bench.context, None)
    del bench.world.bounds["a"].errors["get"]
    bench.framework.bind_cdev(held, bench.context, None)


def test_a_claim_that_a_refused_device_would_have_begun_is_not_left_behind(bench: Bench) -> None:
    bench.world.plug("nic", 1, bind=False)
    bench.world.record("nic").host_driver = "e1000e"
    held = bench.open("a")
    with pytest.raises(VfioError):
        bench.framework.bind_cdev(held, bench.context, None)
    assert bench.context.claims == []
    assert bench.world.group(1).iommu is None


def test_a_device_without_tokens_takes_none(bench: Bench) -> None:
    held = bench.open("a")
    with bench.refused(InvalidArgument):
        bench.framework.bind_cdev(held, bench.context, bytes(16))


def test_a_device_with_a_token_is_asked_before_anything_happens(bench: Bench) -> None:
    bound = bench.world.bounds["a"]

    def check_token(token: bytes | None) -> None:
        if token != b"secret, 16 bytes":
            raise WrongToken("no")

    bound.check_token = check_token  # type: ignore[attr-defined]
    bound.set_token = lambda token: None  # type: ignore[attr-defined]
    held = bench.open("a")
    for token in (None, bytes(16)):
        with bench.refused(WrongToken):
            bench.framework.bind_cdev(held, bench.context, token)
    bench.framework.bind_cdev(held, bench.context, b"secret, 16 bytes")


# -- attaching -----------------------------------------------------------------------------------


def test_only_a_bound_file_can_be_attached_or_detached(bench: Bench) -> None:
    held = bench.open("a")
    number = bench.ioas()
    with bench.refused(InvalidArgument):
        bench.framework.attach_cdev(held, number)
    with bench.refused(InvalidArgument):
        bench.framework.detach_cdev(held)


def test_attach_detach_and_close(bench: Bench) -> None:
    held, number = bench.bound("a"), bench.ioas()
    page_table = bench.framework.attach_cdev(held, number)
    assert page_table in bench.context.objects
    assert bench.world.devices["a"].domain is not None
    for _ in range(2):
        bench.framework.detach_cdev(held)
        assert bench.world.devices["a"].domain is None
    bench.framework.attach_cdev(held, number)
    bench.framework.close_cdev(held)
    assert bench.world.devices["a"].domain is None
    assert list(bench.context.objects) == [number]


# -- groups that join, and numbers ---------------------------------------------------------------


def test_a_group_joins_an_iommufd_as_it_would_a_container(bench: Bench) -> None:
    mm = bench.world.mm()
    held = bench.world.hold(1, mm)
    with bench.refused(InvalidArgument):
        bench.framework.join_iommufd(held, bench.context)
    bench.framework.make_exclusive(held)
    bench.framework.join_iommufd(held, bench.context)
    (claim,) = bench.context.claims
    assert claim.joined
    assert bench.context.compat_ioas() in bench.context.objects.values()
    with bench.refused(InvalidArgument):
        bench.framework.join_iommufd(held, bench.context)
    bench.framework.close_group(held)
    assert bench.context.claims == []


def test_a_context_outlives_its_file_while_a_device_is_bound(bench: Bench) -> None:
    held, number = bench.bound("a"), bench.ioas()
    bench.framework.close_iommufd(bench.context)
    bench.framework.attach_cdev(held, number)
    bench.framework.close_cdev(held)
    assert bench.context.objects == {}


def test_numbers_of_devices(bench: Bench) -> None:
    number = bench.framework.bind_cdev(bench.open("a"), bench.context, None)
    number_in, record = bench.framework.number_in, bench.world.record
    assert number_in(bench.context, record("a")) == number
    assert number_in(bench.context, record("b")) == 0, "its group belongs to the context"
    assert number_in(bench.context, record("c")) is None
    assert number_in(bench.context, None) is None
