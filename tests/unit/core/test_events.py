"""Each event of the framework is emitted once, with the right fields, by the operation that its docstring names."""

from __future__ import annotations

import threading
from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args

import pytest

from support.world import World
from uvfio.core.events import (
    DeviceBound,
    DevicePlugged,
    DeviceRequested,
    DeviceRevoked,
    DeviceTainted,
    DeviceUnbound,
    DeviceUnplugged,
    Fault,
    FrameworkEvent,
    GroupAdded,
    GroupRemoved,
    Interrupt,
    InterruptLost,
    MemoryExchanged,
    Observer,
    Unanswered,
)
from uvfio.core.irq import ReportedEvent
from uvfio.errors import Busy, DmaFault

KINDS: tuple[Any, ...] = get_args(FrameworkEvent)
EXAMPLES: tuple[FrameworkEvent, ...] = (
    GroupAdded("7", "pci", 7, 0),
    GroupRemoved("7", "pci", 7),
    DeviceTainted("a", "7", "broken"),
    DeviceRequested("a", 1),
    DeviceRevoked("a", "7"),
    Fault("a", 0x9000, 4, True, "not mapped"),
    MemoryExchanged(0x9000, 0x1000, 0x7000, "nothing is mapped there now"),
    Interrupt("a", "MSI", 3),
    InterruptLost("a", "MSI", 3, "bus mastering is off", False),
    Unanswered("a", 0, 4, 4, False, "memory decoding is off"),
    DevicePlugged("a", "pci", "7"),
    DeviceUnplugged("a", "7"),
    DeviceBound("a", "vfio-pci", "7"),
    DeviceUnbound("a", "vfio-pci", "7"),
)


class Eventfd:
    """Counts its signals."""

    def __init__(self) -> None:
        self.count = 0

    def signal(self) -> None:
        self.count += 1

    def watch(self, callback: Any) -> Any:
        return callback

    def abandoned(self) -> bool:
        return self.count == -1

    def close(self) -> None:
        self.count = -1


class Source:
    """What a framework is for ``ReportedEvent``."""

    def __init__(self, observer: Observer | None) -> None:
        self.observer = observer


@pytest.fixture
def world() -> World:
    """Group 1 with the bound device ``a``; the events so far are dropped."""
    made = World()
    made.plug("a", 1)
    made.events.clear()
    return made


def locked(world: World) -> list[bool]:
    """A list that grows by whether the framework's lock is held at each event, if the observer is called on."""
    held: list[bool] = []
    append = world.framework.observer

    def observe(event: FrameworkEvent) -> None:
        free: list[bool] = []

        def try_it() -> None:
            free.append(world.framework.lock.acquire(blocking=False))
            if free[0]:
                world.framework.lock.release()

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        held.append(not free[0])
        assert append is not None
        append(event)

    world.framework.observer = observe
    return held


# -- the classes -----------------------------------------------------------------------------------


def test_the_examples_are_all_events() -> None:
    assert tuple(type(event) for event in EXAMPLES) == KINDS


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: str(event.kind))
def test_an_event_is_a_value(event: FrameworkEvent) -> None:
    names = [field.name for field in fields(event)]
    assert list(event.facts()) == names
    assert event == type(event)(**event.facts())
    assert all(isinstance(value, str | int) for value in event.facts().values())
    assert not hasattr(event, "__dict__")
    with pytest.raises(FrozenInstanceError):
        setattr(event, names[0], "other")


def test_kinds_are_distinct() -> None:
    assert len({kind.kind for kind in KINDS}) == len(KINDS)


# -- who emits them --------------------------------------------------------------------------------


def test_adding_a_device_emits_plug_and_group_added_for_the_first_one(world: World) -> None:
    held = locked(world)
    world.plug("b", 2)
    world.plug("c", 2)
    assert world.events == [
        GroupAdded("2", "pci", 2, 1),
        DevicePlugged("b", "pci", "2"),
        DeviceBound("b", "vfio-pci", "2"),
        DevicePlugged("c", "pci", "2"),
        DeviceBound("c", "vfio-pci", "2"),
    ]
    assert held == [True] * 5


def test_a_second_add_of_the_same_device_emits_nothing(world: World) -> None:
    world.framework.add_device(world.devices["a"], world.driver)
    assert world.events == []


def test_removing_the_last_device_emits_group_removed(world: World) -> None:
    world.plug("b", 1)
    world.events.clear()
    held = locked(world)
    world.unbind("a")
    world.unplug("a")
    assert world.events == [DeviceUnbound("a", "vfio-pci", "1"), DeviceUnplugged("a", "1")]
    world.events.clear()
    world.unbind("b")
    world.unplug("b")
    assert world.events == [
        DeviceUnbound("b", "vfio-pci", "1"),
        DeviceUnplugged("b", "1"),
        GroupRemoved("1", "pci", 1),
    ]
    assert held == [True] * 5


def test_an_unbind_of_a_device_that_was_pulled_out_emits_group_removed(world: World) -> None:
    world.unplug("a")
    world.unplug("a")
    assert world.events == [DeviceUnplugged("a", "1")]
    world.events.clear()
    world.unbind("a")
    assert world.events == [DeviceUnbound("a", "vfio-pci", "1"), GroupRemoved("1", "pci", 1)]


def test_closing_the_file_of_an_empty_group_emits_group_removed(world: World) -> None:
    held = world.hold(1, world.mm())
    world.unbind("a")
    world.unplug("a")
    world.events.clear()
    world.framework.close_group(held)
    assert world.events == [GroupRemoved("1", "pci", 1)]


def test_a_device_that_is_not_claimed_emits_taint(world: World) -> None:
    mm = world.mm()
    world.framework.open_iommu(world.hold(1, mm), mm)

    def claim(dev: Any) -> None:
        raise Busy("b is broken")

    world.driver.on_hotplug = claim
    held = locked(world)
    world.plug("b", 1, bind=False)
    assert world.events == [
        DevicePlugged("b", "pci", "1"),
        DeviceTainted("b", "1", "vfio-pci did not claim b: b is broken"),
    ]
    assert held == [True, True]


def test_drivers_of_the_host_emit_bind_and_unbind(world: World) -> None:
    """Each once, and none if nothing changes or the bind is refused."""
    dev = world.devices["a"]
    with pytest.raises(Busy):
        world.framework.bind_foreign(dev, "e1000e")
    world.unbind("a")
    world.events.clear()
    held = locked(world)
    world.framework.bind_foreign(dev, "")
    world.framework.bind_foreign(dev, "e1000e")
    world.framework.bind_foreign(dev, "e1000e")
    world.framework.bind_foreign(dev, "")
    assert world.events == [DeviceBound("a", "e1000e", "1"), DeviceUnbound("a", "e1000e", "1")]
    assert held == [True, True]


def test_an_unbind_that_waits_emits_request_and_then_revoke(world: World) -> None:
    mm = world.mm()
    world.framework.open_device(world.hold(1, mm), "a", mm)
    held = locked(world)
    world.unbind("a", timeout=0, revoke=True)
    assert world.events == [
        DeviceRequested("a", 1),
        DeviceRevoked("a", "1"),
        DeviceUnbound("a", "vfio-pci", "1"),
    ]
    assert held == [False, True, True]


def test_an_unbind_that_is_refused_emits_no_unbind(world: World) -> None:
    mm = world.mm()
    world.framework.open_device(world.hold(1, mm), "a", mm)
    with pytest.raises(Busy):
        world.unbind("a", timeout=0)
    assert world.events == [DeviceRequested("a", 1)]


def test_a_refused_access_emits_the_fault_that_the_domain_keeps(world: World) -> None:
    mm = world.mm()
    world.framework.open_iommu(world.hold(1, mm), mm)
    domain = world.iommu(1).domain
    assert domain is not None
    with pytest.raises(DmaFault):
        domain.dma_read("a", 0x9000, 4)
    assert world.events == [Fault("a", 0x9000, 4, False, "not mapped")]
    assert world.events[0] is domain.faults[-1]


def test_a_signal_emits_the_interrupt_before_the_counter_grows() -> None:
    eventfd, interrupt = Eventfd(), Interrupt("a", "MSI", 3)
    seen: list[tuple[FrameworkEvent, int]] = []
    source = Source(lambda event: seen.append((event, eventfd.count)))
    reported = ReportedEvent(eventfd, source, interrupt)
    reported.signal()
    assert seen == [(interrupt, 0)]
    assert eventfd.count == 1
    source.observer = None
    reported.signal()
    assert len(seen) == 1
    assert eventfd.count == 2
    reported.close()
    assert eventfd.count == -1


# -- without an observer -----------------------------------------------------------------------------


def test_without_an_observer_no_event_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object) -> None:
        raise AssertionError("an event was made")

    world.framework.observer = None
    for name in (
        *("GroupAdded", "GroupRemoved", "DeviceTainted", "DeviceRequested", "DeviceRevoked"),
        *("DevicePlugged", "DeviceUnplugged", "DeviceBound", "DeviceUnbound"),
    ):
        monkeypatch.setattr(f"uvfio.core.events.{name}", made)
    mm = world.mm()
    held = world.hold(1, mm)
    opened = world.framework.open_device(held, "a", mm)

    def claim(dev: Any) -> None:
        raise Busy("b is broken")

    world.driver.on_hotplug = claim
    world.plug("b", 1, bind=False)
    world.unbind("a", timeout=0, revoke=True)
    assert opened.data is None
    world.plug("c", 3, bind=False)
    world.unplug("c")
    assert world.events == []
