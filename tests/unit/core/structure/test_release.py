"""Taking a device from its driver while somebody uses it: refuse, ask, wait, revoke (review row 15)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from support.world import FakeBusDevice, World, refused, same_state
from uvfio.core.events import DeviceRequested, DeviceRevoked
from uvfio.core.seams import Mm, Timer
from uvfio.core.structure.group import OpenGroup
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.errors import (
    Busy,
    Cancelled,
    Gone,
    InvalidArgument,
    NoSuchDevice,
    NotViable,
    VfioError,
)
from uvfio.machine.clock import ManualClock

PATIENCE = 20.0  # a test that needs this long has failed


class Used(World):
    """Device a of group 1, device b of group 2; ``owner`` holds both groups open."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.plug("a", 1)
        self.plug("b", 2)
        self.owner: Mm = self.mm("owner")
        self.a: OpenGroup = self.hold(1, self.owner)
        self.b: OpenGroup = self.hold(2, self.owner)

    def merge(self) -> None:
        self.framework.merge(self.a, self.b, self.owner)


@pytest.fixture
def world() -> Used:
    return Used()


class Waiter:
    """An unbind on a thread of its own. ``settled`` returns when it certainly waits."""

    def __init__(self, world: World, name: str, **how: Any) -> None:
        self._waits = threading.Event()
        self._stop = False
        self.outcome: object = None
        how = {"timeout": None, "interval": 3600.0, "cancelled": self._cancelled} | how

        def run() -> None:
            try:
                self.outcome = world.unbind(name, **how)
            except VfioError as error:
                self.outcome = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _cancelled(self) -> bool:
        """Called under the framework's lock, which is given up only by waiting."""
        self._waits.set()
        return self._stop

    def settled(self) -> Waiter:
        assert self._waits.wait(PATIENCE)
        return self

    def cancel(self, world: World) -> None:
        self._stop = True
        with world.framework.lock:
            world.framework.released.notify_all()

    def result(self) -> object:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "unbind still waits"
        return self.outcome


# -- an idle device ------------------------------------------------------------------------------


def test_an_idle_device_is_given_back_at_once(world: Used) -> None:
    assert world.unbind("a") is world.bounds["a"]
    assert not world.record("a").bound
    assert world.bounds["a"].requests == []


def test_unbind_makes_the_set_unviable_for_new_users(world: Used) -> None:
    world.unbind("a")
    with refused(world, NotViable):
        world.framework.open_iommu(world.a, world.owner)
    world.bind("a")
    world.framework.open_iommu(world.a, world.owner)


def test_an_open_group_file_does_not_block_unbind(world: Used) -> None:
    assert world.group(1).is_open
    assert world.framework.removable(world.record("a"))
    world.unbind("a")


def test_a_device_without_a_context_is_removable() -> None:
    world = World()
    world.plug("a", 1)
    assert world.framework.removable(world.record("a"))


def test_d22_unbinding_a_device_that_is_not_bound_is_refused(world: Used) -> None:
    world.devices["x"] = FakeBusDevice("x", 1)
    with refused(world, InvalidArgument):
        world.unbind("x")
    world.unbind("a")
    with refused(world, InvalidArgument):
        world.unbind("a")


# -- a device in use -----------------------------------------------------------------------------


def test_an_open_device_file_blocks_unbind(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy) as caught:
        world.unbind("a")
    assert "a is in use (group 1)" in str(caught.value)


def test_an_open_iommu_file_blocks_unbind(world: Used) -> None:
    world.framework.open_iommu(world.a, world.owner)
    with refused(world, Busy):
        world.unbind("a")


def test_use_of_any_member_blocks_unbind_of_all(world: Used) -> None:
    world.merge()
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy) as caught:
        world.unbind("b")
    assert "(group 2+1)" in str(caught.value)


def test_a_refused_unbind_lets_new_users_in_again(world: Used) -> None:
    world.framework.open_iommu(world.a, world.owner)
    with refused(world, Busy):
        world.unbind("a")
    world.framework.open_device(world.a, "a", world.owner)


def test_d03_an_idle_merged_set_is_unbound_without_a_domain_left_behind(world: Used) -> None:
    world.merge()
    world.unbind("b")
    assert world.devices["b"].domain is None
    with refused(world, NotViable):
        world.framework.open_device(world.a, "a", world.owner)


# -- step 1: no new users ------------------------------------------------------------------------


def test_d23_while_somebody_waits_the_whole_set_takes_no_new_users(world: Used) -> None:
    world.merge()
    device = world.framework.open_device(world.a, "a", world.owner)
    world.plug("c", 3)
    third = world.hold(3, world.owner)
    waiter = Waiter(world, "b").settled()
    with refused(world, Gone):
        world.framework.open_iommu(world.a, world.owner)
    with refused(world, Gone):
        world.framework.open_device(world.b, "a", world.owner)
    with refused(world, Gone):
        world.framework.merge(world.a, third, world.owner)
    world.framework.close_device(device)
    assert waiter.result() is world.bounds["b"]


def test_review_15_opens_are_refused_even_when_they_come_as_fast_as_closes(world: Used) -> None:
    opened = world.framework.open_iommu(world.a, world.owner)
    waiter = Waiter(world, "a").settled()
    with refused(world, Gone):
        world.framework.open_iommu(world.a, world.owner)
    world.framework.close_iommu(opened)
    assert waiter.result() is world.bounds["a"]


def test_a_device_that_departs_cannot_be_merged_either(world: Used) -> None:
    opened = world.framework.open_iommu(world.b, world.owner)
    waiter = Waiter(world, "b").settled()
    world.record("a").departing += 1
    world.framework.close_iommu(opened)
    waiter.result()
    world.bind("b")
    with refused(world, Gone):
        world.framework.merge(world.b, world.a, world.owner)


# -- step 2: ask ---------------------------------------------------------------------------------


def test_review_15_the_holder_is_asked_once_even_without_waiting(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy):
        world.unbind("a")
    assert world.bounds["a"].requests == [1]
    assert world.events[-1] == DeviceRequested(device="a", count=1)


def test_review_15_the_holder_of_an_iommu_file_alone_is_asked_too(world: Used) -> None:
    world.framework.open_iommu(world.a, world.owner)
    with refused(world, Busy):
        world.unbind("a")
    assert world.bounds["a"].requests == [1]


def test_review_15_a_holder_who_lets_go_when_asked_ends_the_wait(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    bound = world.bounds["a"]

    def on_call(method: str) -> None:
        if method == "request" and bound.requests == [1, 2, 3]:
            world.framework.close_device(device)

    bound.on_call = on_call
    assert world.unbind("a", timeout=PATIENCE, interval=0.001) is bound
    assert bound.requests == [1, 2, 3]


def test_requests_are_numbered_from_one_again_after_the_device_was_unbound(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    for _ in range(2):
        with refused(world, Busy):
            world.unbind("a")
    assert world.bounds["a"].requests == [1, 2]
    world.framework.close_device(device)
    world.unbind("a")
    world.bind("a")
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy):
        world.unbind("a")
    assert world.bounds["a"].requests == [1]


class FakeTime:
    """A clock that waiting moves.

    ``early`` are times at which something else wakes the waiter; ``limit`` ends the test.
    """

    def __init__(self, world: World, *early: float, limit: float = 100.0) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._early = list(early)
        self._limit = limit
        bound = world.bounds["a"]
        bound.on_call = lambda method: self.asked.append(self.now) if method == "request" else None

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        raise AssertionError("the framework has no timers")

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        assert seconds > 0
        end = self.now + seconds
        if self._early and self._early[0] < end:
            end = self._early.pop(0)
        self.now = end
        assert self.now <= self._limit, "unbind waits too long"


@pytest.fixture
def timed(world: Used, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTime]:
    """Device a is in use, and time is what the test says."""
    world.framework.open_device(world.a, "a", world.owner)

    def make(*early: float) -> FakeTime:
        time = FakeTime(world, *early)
        monkeypatch.setattr(world.framework, "clock", time)
        return time

    return make


def test_review_15_requests_are_repeated_at_the_interval(
    world: Used, timed: Callable[..., FakeTime]
) -> None:
    time = timed()
    with refused(world, Busy):
        world.unbind("a", timeout=35, interval=10)
    assert time.asked == [0, 10, 20, 30]
    assert time.now == 35


def test_being_woken_early_does_not_delay_the_next_request(
    world: Used, timed: Callable[..., FakeTime]
) -> None:
    time = timed(3, 9, 12)
    with refused(world, Busy):
        world.unbind("a", timeout=25, interval=10)
    assert time.asked == [0, 10, 20]


def test_an_interval_longer_than_the_timeout_asks_once(
    world: Used, timed: Callable[..., FakeTime]
) -> None:
    time = timed()
    with refused(world, Busy):
        world.unbind("a", timeout=5, interval=10)
    assert (time.asked, time.now) == ([0], 5)


def test_an_interval_of_nothing_still_ends_at_the_timeout(
    world: Used, timed: Callable[..., FakeTime]
) -> None:
    time = timed()
    world.bounds["a"].on_call = lambda method: setattr(time, "now", time.now + 1)
    with refused(world, Busy):
        world.unbind("a", timeout=5, interval=0)
    assert world.bounds["a"].requests == [1, 2, 3, 4, 5]


# -- step 3: wait --------------------------------------------------------------------------------


def test_d23_a_wait_ends_at_its_timeout(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy) as caught:
        world.unbind("a", timeout=0.01)
    assert "was not released within 0.01 s" in str(caught.value)
    assert "revoke" in getattr(caught.value, "hint", "")


def test_d23_a_wait_can_be_cancelled(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    with same_state(world):
        waiter = Waiter(world, "a").settled()
        waiter.cancel(world)
        assert isinstance(waiter.result(), Cancelled)


@pytest.mark.parametrize(
    "let_go",
    ["close_device", "close_iommu", "close_group", "unmerge"],
)
def test_every_way_of_letting_go_wakes_the_waiter(world: Used, let_go: str) -> None:
    """The waiter would look again by itself only after an hour."""
    world.merge()
    iommu = world.framework.open_iommu(world.a, world.owner)
    device = world.framework.open_device(world.a, "a", world.owner)
    if let_go == "close_device":
        world.framework.close_iommu(iommu)
    elif let_go == "close_iommu":
        world.framework.close_device(device)
    waiter = Waiter(world, "b").settled()
    if let_go == "close_device":
        world.framework.close_device(device)
    elif let_go == "close_iommu":
        world.framework.close_iommu(iommu)
    elif let_go == "unmerge":
        world.framework.unmerge(world.a, world.b, world.owner)
    else:
        world.framework.close_group(world.b)
    assert waiter.result() is world.bounds["b"]


def test_of_two_waiters_one_gets_the_device(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    waiters = [Waiter(world, "a").settled(), Waiter(world, "a").settled()]
    world.framework.close_device(device)
    outcomes = [waiter.result() for waiter in waiters]
    assert world.bounds["a"] in outcomes
    assert sum(isinstance(outcome, InvalidArgument) for outcome in outcomes) == 1
    assert world.record("a").departing == 0


def test_a_request_that_fails_ends_the_unbind_without_effect(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    world.bounds["a"].errors["request"] = InvalidArgument("no bell")
    with refused(world, InvalidArgument):
        world.unbind("a")


# -- step 4: revoke ------------------------------------------------------------------------------


def test_review_15_revoke_takes_the_device_away_at_once(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    opened = world.framework.open_iommu(world.a, world.owner)
    assert world.unbind("a", timeout=None, revoke=True) is world.bounds["a"]
    assert device.data is None
    assert opened.iommu is None
    assert world.bounds["a"].enabled == 0
    assert world.devices["a"].domain is None
    assert world.iommu(1).owner is None
    assert DeviceRevoked(device="a", group="1") in world.events


def test_an_idle_device_needs_no_revoke(world: Used) -> None:
    world.unbind("a", revoke=True)
    assert "revoke" not in [event.kind for event in world.events]


def test_revoke_after_a_timeout_asks_first(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    world.unbind("a", timeout=0.01, revoke=True)
    assert world.bounds["a"].requests == [1]


def test_files_of_a_revoked_device_can_be_closed(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    opened = world.framework.open_iommu(world.a, world.owner)
    world.unbind("a", revoke=True)
    with same_state(world):
        world.framework.close_device(device)
        world.framework.close_iommu(opened)
    world.framework.close_group(world.a)
    assert world.bounds["a"].puts == 1
    assert world.group(1).iommu is None


def test_revoke_of_a_member_leaves_the_others_undisturbed(world: Used) -> None:
    world.merge()
    a = world.framework.open_device(world.a, "a", world.owner)
    b = world.framework.open_device(world.a, "b", world.owner)
    opened = world.framework.open_iommu(world.b, world.owner)
    domain = world.iommu(1).domain
    assert domain is not None
    Rules2011(domain).map(0, 4096, 0, world.owner, None, writable=True)
    world.unbind("b", revoke=True)
    assert a.data is world.bounds["a"]
    assert b.data is None
    assert opened.iommu is world.iommu(1)
    assert world.iommu(1).domain is domain
    assert len(domain.mappings) == 1
    assert world.devices["b"].domain is None
    assert world.iommu(2).owner is None


def test_revoke_takes_all_devices_of_the_group(world: Used) -> None:
    world.plug("a2", 1)
    a2 = world.framework.open_device(world.a, "a2", world.owner)
    world.unbind("a", revoke=True)
    assert a2.data is None
    assert world.bounds["a2"].enabled == 0
    assert world.record("a2").bound


def test_a_pulled_device_is_finished_by_a_revoke(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    world.unplug("a")
    world.unbind("a", revoke=True)
    assert world.framework.lookup(world.devices["a"]) is None
    with refused(world, NoSuchDevice):
        world.framework.open_device(world.a, "a", world.owner)
    world.framework.close_device(device)
    world.framework.close_group(world.a)
    assert [g.number for g in world.framework.groups] == [2]


# -- revoke, between the steps of an open or a close ----------------------------------------------


class Gap:
    """A device's lock in front of which something happens once."""

    def __init__(self, world: World, name: str, happens: Callable[[], object]) -> None:
        self._lock = world.record(name).lock
        self._happens: Callable[[], object] | None = happens
        world.record(name).lock = self  # type: ignore[assignment]

    def __enter__(self) -> None:
        happens, self._happens = self._happens, None
        if happens:
            happens()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_d24_a_device_revoked_before_it_was_enabled_is_never_enabled(world: Used) -> None:
    Gap(world, "a", lambda: world.unbind("a", revoke=True))
    with pytest.raises(Gone):
        world.framework.open_device(world.a, "a", world.owner)
    assert (world.bounds["a"].gets, world.bounds["a"].puts) == (0, 0)
    assert not world.record("a").in_use
    assert world.iommu(1).domain is None


def test_d24_a_device_revoked_before_its_close_is_quiesced_once(world: Used) -> None:
    device = world.framework.open_device(world.a, "a", world.owner)
    Gap(world, "a", lambda: world.unbind("a", revoke=True))
    world.framework.close_device(device)
    assert (world.bounds["a"].gets, world.bounds["a"].puts) == (1, 1)
    assert not world.record("a").in_use


@pytest.mark.parametrize("method", ["get", "put"])
def test_d12_a_revoke_waits_for_the_driver_to_finish(world: Used, method: str) -> None:
    """unbind must not give the driver's data away while the driver still works with it."""
    revoking = threading.Event()
    done: list[str] = []
    world.framework.observer = lambda event: (
        revoking.set() if isinstance(event, DeviceRevoked) else None
    )
    bound = world.bounds["a"]

    def on_call(called: str) -> None:
        if called == method and not done:
            done.append("begin")
            thread.start()
            assert revoking.wait(PATIENCE)
            done.append("end")

    def unbind() -> None:
        world.unbind("a", revoke=True)
        done.append("unbound")

    thread = threading.Thread(target=unbind, daemon=True)
    bound.on_call = on_call
    world.framework.close_device(world.framework.open_device(world.a, "a", world.owner))
    thread.join(PATIENCE)
    assert done == ["begin", "end", "unbound"]
    assert bound.enabled == 0
    assert bound.gets == 1


# -- without waiting -----------------------------------------------------------------------------


def test_an_unbind_can_be_polled(world: Used) -> None:
    opened = world.framework.open_device(world.a, "a", world.owner)
    release = world.framework.begin_unbind(world.devices["a"], interval=3600.0)
    assert not release.poll()
    assert world.bounds["a"].requests == [1]
    assert not release.poll()
    assert world.bounds["a"].requests == [1], "asked once an interval"
    assert 3000 < release.delay() <= 3600
    world.framework.close_device(opened)
    assert release.poll()
    assert release.data is world.bounds["a"]
    assert not world.record("a").bound
    release.cancel()


def test_a_polled_unbind_that_is_given_up_changes_nothing(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    with same_state(world):
        release = world.framework.begin_unbind(world.devices["a"])
        assert not release.poll()
        release.cancel()
        release.cancel()
    world.framework.open_device(world.a, "a", world.owner)


def test_a_polled_unbind_times_out(world: Used) -> None:
    world.framework.open_device(world.a, "a", world.owner)
    release = world.framework.begin_unbind(world.devices["a"], timeout=0)
    with pytest.raises(Busy):
        release.poll()
    world.framework.open_device(world.a, "a", world.owner)


def test_a_polled_unbind_revokes_at_its_end(world: Used) -> None:
    opened = world.framework.open_device(world.a, "a", world.owner)
    release = world.framework.begin_unbind(world.devices["a"], revoke=True)
    assert release.poll()
    assert opened.data is None


# -- by the clock of the machine -----------------------------------------------------------------


class Polled:
    """Device a is open, and is being taken back by polls; time is what the test moves."""

    def __init__(self, **how: Any) -> None:
        self.clock = ManualClock(1000.0)
        self.world = Used(clock=self.clock)
        self.opened = self.world.framework.open_device(self.world.a, "a", self.world.owner)
        self.release = self.world.framework.begin_unbind(self.world.devices["a"], **how)
        assert not self.release.poll()

    @property
    def requests(self) -> list[int]:
        return self.world.bounds["a"].requests

    def after(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        return self.release.poll()


def test_requests_have_a_growing_number_and_are_an_interval_apart() -> None:
    polled = Polled(interval=10.0)
    for number in range(1, 5):
        assert polled.requests == list(range(1, number + 1))
        assert polled.release.delay() == 10.0
        assert not polled.after(9.75)
        assert polled.requests == list(range(1, number + 1))
        assert polled.release.delay() == 0.25
        assert not polled.after(0.25)
    polled.world.framework.close_device(polled.opened)
    assert polled.release.poll()
    assert polled.requests == [1, 2, 3, 4, 5]


def test_the_time_out_comes_exactly_at_the_deadline() -> None:
    polled = Polled(timeout=25.0, interval=10.0)
    assert not polled.after(10.0)
    assert not polled.after(10.0)
    assert polled.release.delay() == 5.0
    assert not polled.after(4.75)
    with pytest.raises(Busy, match="was not released within 25.0 s"):
        polled.after(0.25)
    assert polled.requests == [1, 2, 3]
    assert polled.world.record("a").departing == 0
    assert polled.opened.data is not None


def test_revocation_comes_at_the_deadline_and_not_before() -> None:
    polled = Polled(timeout=5.0, revoke=True)
    assert not polled.after(4.75)
    assert polled.opened.data is not None
    assert polled.after(0.25)
    assert polled.opened.data is None
    assert polled.release.data is polled.world.bounds["a"]
    assert [event.kind for event in polled.world.events[-2:]] == ["revoke", "unbind"]


def test_time_changes_nothing_after_it_was_cancelled() -> None:
    polled = Polled(timeout=5.0, revoke=True)
    polled.release.cancel()
    assert polled.after(100.0)
    assert (polled.requests, polled.release.data) == ([1], None)
    assert polled.opened.data is not None
    polled.world.framework.open_device(polled.world.a, "a", polled.world.owner)


def test_a_close_is_noticed_at_whatever_time_it_comes() -> None:
    polled = Polled(timeout=25.0)
    polled.clock.advance(24.0)
    polled.world.framework.close_device(polled.opened)
    assert polled.after(100.0)
    assert polled.release.data is polled.world.bounds["a"]


def test_a_machine_with_a_clock_that_is_moved_by_hand_times_out_too() -> None:
    clock = ManualClock()
    world = Used(clock=clock)
    world.framework.open_device(world.a, "a", world.owner)
    with refused(world, Busy):
        world.unbind("a", timeout=0.01)
    assert clock.monotonic() == 0.01
