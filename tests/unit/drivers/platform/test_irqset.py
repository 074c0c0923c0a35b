"""Interrupts of a platform device in the vocabulary of mainline: events, masks, tests of themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.pci_function import FakeEvent
from support.platform_device import FakePlatform
from uvfio.core.bus import EventSource, IrqAction, IrqData, IrqDevice
from uvfio.drivers.platform.device import VfioPlatformDevice
from uvfio.errors import BadDescriptor, Busy, InvalidArgument

LEVEL, EDGE, LEVEL2 = range(3)
MASK, UNMASK, TRIGGER = IrqAction


class Bench:
    def __init__(self) -> None:
        self.hardware = FakePlatform()
        self.device = VfioPlatformDevice(self.hardware)
        self.device.get()

    def apply(
        self, index: int, action: IrqAction, data: IrqData = None, start: int = 0, count: int = 1
    ) -> None:
        self.device.apply_irqs(index, action, start, count, data)

    def connect(self, index: int, action: IrqAction = TRIGGER) -> FakeEvent:
        event = FakeEvent()
        self.apply(index, action, lambda at: event)
        return event

    def wire(self, index: int, level: bool) -> None:
        self.hardware.levels[index] = level
        assert self.hardware.sink is not None
        self.hardware.sink.irq(index, level)


def nobody(at: int) -> None:
    """What a program gave was -1."""


def bad(at: int) -> None:
    raise BadDescriptor("closed")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_protocol_is_implemented(bench: Bench) -> None:
    as_irqs: IrqDevice = bench.device
    assert isinstance(as_irqs, IrqDevice)
    assert [as_irqs.irq_count(index) for index in range(3)] == [1, 1, 1]
    assert not as_irqs.irq_resizable(0)
    for index in (-1, 3):
        with pytest.raises(InvalidArgument, match="does not exist"):
            as_irqs.irq_count(index)
        with pytest.raises(InvalidArgument, match="does not exist"):
            bench.apply(index, TRIGGER)


def test_a_level_masks_itself(bench: Bench) -> None:
    event = bench.connect(LEVEL)
    bench.wire(LEVEL, True)
    bench.wire(LEVEL, True)
    assert event.count == 1
    bench.apply(LEVEL, UNMASK)
    assert event.count == 2, "still high"
    bench.wire(LEVEL, False)
    bench.apply(LEVEL, UNMASK)
    bench.apply(LEVEL, UNMASK)
    assert event.count == 2


def test_a_level_that_is_high_already(bench: Bench) -> None:
    bench.wire(LEVEL, True)
    assert bench.connect(LEVEL).count == 1


def test_masks_stay_when_events_come_and_go(bench: Bench) -> None:
    bench.apply(LEVEL, MASK)
    first = bench.connect(LEVEL)
    bench.wire(LEVEL, True)
    second = bench.connect(LEVEL)
    assert (first.count, first.closed, second.count) == (0, 1, 0)
    bench.apply(LEVEL, UNMASK)
    assert second.count == 1


def test_masks_by_byte(bench: Bench) -> None:
    event = bench.connect(LEVEL)
    bench.apply(LEVEL, MASK, b"\0")
    bench.wire(LEVEL, True)
    assert event.count == 1
    bench.apply(LEVEL, UNMASK, b"\0")
    assert event.count == 1
    bench.apply(LEVEL, UNMASK, b"\1")
    assert event.count == 2
    bench.wire(LEVEL, False)
    bench.apply(LEVEL, UNMASK)
    bench.apply(LEVEL, MASK, b"\1")
    bench.wire(LEVEL, True)
    assert event.count == 2


def test_masks_by_event(bench: Bench) -> None:
    event = bench.connect(LEVEL)
    unmask, mask = bench.connect(LEVEL, UNMASK), bench.connect(LEVEL, MASK)
    bench.wire(LEVEL, True)
    unmask.kick()
    assert event.count == 2
    bench.wire(LEVEL, False)
    unmask.kick()
    mask.kick()
    bench.wire(LEVEL, True)
    assert event.count == 2
    for action, known in ((UNMASK, unmask), (MASK, mask)):
        with pytest.raises(Busy):
            bench.connect(LEVEL, action)
        assert known.closed == 0
        bench.apply(LEVEL, action, nobody)
        assert known.closed == 1
        bench.apply(LEVEL, action, nobody)
    bench.connect(LEVEL, MASK)


def test_an_edge(bench: Bench) -> None:
    event = bench.connect(EDGE)
    bench.wire(EDGE, True)
    bench.wire(EDGE, True)
    assert event.count == 2
    other = bench.connect(EDGE)
    bench.wire(EDGE, True)
    assert (event.count, event.closed, other.count) == (2, 1, 1)
    bench.apply(EDGE, TRIGGER, nobody)
    bench.wire(EDGE, True)
    assert (other.count, other.closed) == (1, 1)


@pytest.mark.parametrize("data", [None, b"\1", nobody])
@pytest.mark.parametrize("action", [MASK, UNMASK])
def test_an_edge_has_no_mask(bench: Bench, action: IrqAction, data: IrqData) -> None:
    with pytest.raises(InvalidArgument, match="cannot be masked"):
        bench.apply(EDGE, action, data)


@pytest.mark.parametrize("data", [None, b"\1"])
def test_a_program_tests_itself(bench: Bench, data: IrqData) -> None:
    level, edge = bench.connect(LEVEL), bench.connect(EDGE)
    for _ in range(2):
        bench.apply(LEVEL, TRIGGER, data)
        bench.apply(EDGE, TRIGGER, data)
    assert (level.count, edge.count) == (1, 2), "the level has masked itself"
    bench.apply(LEVEL, TRIGGER, b"\0")
    bench.apply(EDGE, TRIGGER, b"\0")
    assert (level.count, edge.count) == (1, 2)


def test_a_test_without_an_event_masks_too(bench: Bench) -> None:
    bench.apply(EDGE, TRIGGER)
    bench.apply(LEVEL, TRIGGER)
    event = bench.connect(LEVEL)
    bench.wire(LEVEL, True)
    assert event.count == 0
    bench.apply(LEVEL, UNMASK)
    assert event.count == 1


@pytest.mark.parametrize("index", [LEVEL, EDGE])
@pytest.mark.parametrize(
    "drop",
    [
        lambda bench, index: bench.apply(index, TRIGGER, count=0),
        lambda bench, index: bench.apply(index, TRIGGER, nobody),
        lambda bench, index: bench.device.put(),
    ],
)
def test_dropping(bench: Bench, index: int, drop: Callable[[Bench, int], None]) -> None:
    event = bench.connect(index)
    drop(bench, index)
    assert event.closed == 1


def test_the_last_close_drops_everything(bench: Bench) -> None:
    events = [bench.connect(LEVEL, action) for action in IrqAction]
    events += [bench.connect(LEVEL2, action) for action in IrqAction]
    bench.apply(LEVEL, MASK)
    bench.device.put()
    assert [event.closed for event in events] == [1] * 6
    bench.device.get()
    event = bench.connect(LEVEL)
    bench.wire(LEVEL, True)
    assert event.count == 1, "the mask went, too"


@pytest.mark.parametrize(("start", "count"), [(1, 1), (0, 2), (0, 0), (1, 0)])
@pytest.mark.parametrize("action", IrqAction)
@pytest.mark.parametrize("data", [None, b"\1\1", nobody])
def test_ranges(
    bench: Bench, action: IrqAction, data: bytes | EventSource | None, start: int, count: int
) -> None:
    if action is TRIGGER and not count and data is None:
        return bench.apply(LEVEL, action, data, start, count)
    with pytest.raises(InvalidArgument, match="one alone"):
        bench.apply(LEVEL, action, data, start, count)
    return None


@pytest.mark.parametrize("action", IrqAction)
def test_a_bad_descriptor_changes_nothing(bench: Bench, action: IrqAction) -> None:
    event = bench.connect(LEVEL, action)
    with pytest.raises(BadDescriptor):
        bench.apply(LEVEL, action, bad)
    assert event.closed == 0


def test_the_calls_of_2011_and_of_today_meet(bench: Bench) -> None:
    event = bench.connect(EDGE)
    old = FakeEvent()
    bench.device.set_irqs(EDGE, [old])
    bench.wire(EDGE, True)
    assert (event.closed, old.count) == (1, 1)
    event = bench.connect(EDGE)
    assert old.closed == 1
    bench.device.set_irqs(EDGE, [])
    assert event.closed == 1
