"""core.irq: the table in its head, line by line."""

from __future__ import annotations

from typing import Any, cast

import pytest

from support.pci_function import FakeEvent
from uvfio.core.irq import EdgeVectors, LevelInterrupt, ReportedEvent
from uvfio.errors import Busy


class Gate:
    """Records the gate; optionally a wire behind it."""

    def __init__(self) -> None:
        self.open = True
        self.history: list[bool] = []

    def __call__(self, is_open: bool) -> None:
        self.open = is_open
        self.history.append(is_open)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def level(gate: Gate) -> LevelInterrupt:
    return LevelInterrupt(gate)


def test_fires_once_and_masks_itself(level: LevelInterrupt, gate: Gate) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    level.wire(True)
    assert event.count == 1
    assert level.masked
    assert not gate.open


def test_is_masked_before_the_signal(level: LevelInterrupt, gate: Gate) -> None:
    event = FakeEvent()
    seen: list[tuple[bool, bool]] = []
    event.on_signal = lambda: seen.append((level.masked, gate.open))
    level.bind(event)
    level.wire(True)
    assert seen == [(True, False)]


def test_unmask_refires_while_asserted(level: LevelInterrupt) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    level.unmask()
    assert event.count == 2
    level.wire(False)
    level.unmask()
    assert event.count == 2
    assert not level.masked


def test_unmask_from_inside_the_signal_refires(level: LevelInterrupt) -> None:
    event = FakeEvent()

    def serve() -> None:
        if event.count < 3:
            level.unmask()

    event.on_signal = serve
    level.bind(event)
    level.wire(True)
    assert event.count == 3
    assert level.masked


def test_unmask_without_anything_pending_is_harmless(level: LevelInterrupt) -> None:
    level.unmask()
    event = FakeEvent()
    level.bind(event)
    level.unmask()
    assert event.count == 0
    assert level.open


def test_bind_fires_at_once_when_asserted(level: LevelInterrupt) -> None:
    level.wire(True)
    event = FakeEvent()
    level.bind(event)
    assert event.count == 1


def test_bind_under_guest_mask_stays_silent_until_it_is_cleared(level: LevelInterrupt) -> None:
    level.guest_mask(True)
    level.wire(True)
    event = FakeEvent()
    level.bind(event)
    assert event.count == 0
    level.guest_mask(False)
    assert event.count == 1


def test_unmask_does_not_override_the_guest(level: LevelInterrupt, gate: Gate) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    level.guest_mask(True)
    level.unmask()
    assert event.count == 1
    assert not gate.open


def test_clearing_the_guest_mask_also_unmasks(level: LevelInterrupt) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    level.guest_mask(True)
    level.guest_mask(False)
    assert event.count == 2


def test_guest_mask_repeated_changes_nothing(level: LevelInterrupt, gate: Gate) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    before = list(gate.history)
    level.guest_mask(False)
    assert gate.history == before
    assert level.masked
    assert event.count == 1


def test_second_bind_is_refused_and_changes_nothing(level: LevelInterrupt) -> None:
    first, second = FakeEvent(), FakeEvent()
    level.bind(first)
    level.wire(True)
    with pytest.raises(Busy):
        level.bind(second)
    assert level.masked
    level.unmask()
    assert (first.count, second.count) == (2, 0)


def test_unbind_gives_the_event_back_and_clears_the_mask(level: LevelInterrupt, gate: Gate) -> None:
    event = FakeEvent()
    level.bind(event)
    level.wire(True)
    assert level.unbind() is event
    assert gate.open
    assert not level.bound
    assert not level.masked
    level.wire(True)
    assert event.count == 1
    assert level.unbind() is None


def test_spurious_wire_changes_without_an_event(level: LevelInterrupt) -> None:
    level.wire(False)
    level.wire(True)
    level.wire(False)
    event = FakeEvent()
    level.bind(event)
    level.wire(False)
    assert event.count == 0
    assert not level.asserted


def test_a_wire_behind_the_gate_fires_once_per_unmask() -> None:
    """The usual silicon: closing the gate pulls the wire low, opening it lets it rise again."""
    request = True
    level: LevelInterrupt

    def gate(is_open: bool) -> None:
        wire = is_open and request
        if wire != level.asserted:
            level.wire(wire)

    level = LevelInterrupt(gate)
    event = FakeEvent()
    level.bind(event)
    assert event.count == 1
    assert not level.asserted
    level.unmask()
    assert event.count == 2
    request = False
    level.unmask()
    assert event.count == 2


def test_vectors_fire_their_event_only() -> None:
    vectors = EdgeVectors()
    a, b = FakeEvent(), FakeEvent()
    vectors.bind([a, None, b])
    assert len(vectors) == 3
    assert vectors.fire(0)
    assert vectors.fire(2)
    assert vectors.fire(2)
    assert (a.count, b.count) == (1, 2)


@pytest.mark.parametrize("vector", [1, 3, -1, 4096])
def test_vectors_without_event_are_dropped(vector: int) -> None:
    vectors = EdgeVectors()
    a, b = FakeEvent(), FakeEvent()
    vectors.bind([a, None, b])
    assert not vectors.fire(vector)
    assert (a.count, b.count) == (0, 0)


def test_vectors_are_bound_once() -> None:
    vectors = EdgeVectors()
    a = FakeEvent()
    vectors.bind([a])
    with pytest.raises(Busy):
        vectors.bind([FakeEvent(), FakeEvent()])
    assert len(vectors) == 1
    assert vectors.unbind() == (a,)
    assert not vectors.fire(0)
    assert vectors.unbind() == ()


def test_a_reported_event_is_abandoned_as_its_eventfd_is() -> None:
    event = FakeEvent()
    reported = ReportedEvent(event, cast("Any", None), cast("Any", None))
    assert not reported.abandoned()
    event.left = True
    assert reported.abandoned()
