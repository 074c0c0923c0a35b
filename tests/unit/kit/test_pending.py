"""What a model wants to do later: while time stands still, and written down for another model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import RLock

import pytest

from support.model_world import FakeClock
from uvfio.core.seams import Clock
from uvfio.errors import DmaFault, Unsupported
from uvfio.kit.pending import PendingCalls


class Model:
    name = "0000:00:01.0"

    def __init__(self) -> None:
        self.lock = RLock()
        self.fake = FakeClock()
        self.clock: Clock = self.fake
        self.calls = PendingCalls(self)
        self.done: list[tuple[float, object]] = []

    def ring(self, what: object = "ring", more: int = 0) -> None:
        self.done.append((self.fake.now, what))

    def fault(self) -> None:
        raise DmaFault("recorded")


@pytest.fixture
def model() -> Model:
    return Model()


def test_calls_are_made_once_in_time(model: Model) -> None:
    model.calls.after(2.0, model.ring)
    model.calls.after(1.0, partial(model.ring, 7))
    model.fake.advance(1.0)
    model.fake.advance(5.0)
    assert model.done == [(1.0, 7), (6.0, "ring")]
    assert len(model.calls) == 0


def test_cancelled_calls_are_not_made(model: Model) -> None:
    timer = model.calls.after(1.0, model.ring)
    model.calls.after(1.0, model.ring)
    timer.cancel()
    timer.cancel()
    assert len(model.calls) == 1
    model.calls.cancel_all()
    model.fake.advance(2.0)
    assert model.done == []


def test_a_fault_ends_the_call_and_no_more(model: Model) -> None:
    model.calls.after(1.0, model.fault)
    model.calls.after(1.0, model.ring)
    model.fake.advance(1.0)
    assert model.done == [(1.0, "ring")]


def test_time_stands_still(model: Model) -> None:
    model.calls.after(3.0, partial(model.ring, "early"))
    model.fake.advance(1.0)
    model.calls.pause()
    model.calls.pause()
    assert model.fake.waiting == 0
    model.calls.after(1.5, partial(model.ring, "meanwhile"))
    model.fake.advance(100.0)
    assert model.done == []
    model.calls.resume()
    model.calls.resume()
    assert model.fake.waiting == 2
    model.fake.advance(1.5)
    model.fake.advance(0.5)
    assert model.done == [(102.5, "meanwhile"), (103.0, "early")]


def test_a_call_that_falls_due_just_as_time_stops_is_made_later(model: Model) -> None:
    model.calls.after(1.0, model.calls.pause)
    model.calls.after(1.0, model.ring)
    model.fake.advance(1.0)
    assert model.done == []
    assert len(model.calls) == 1
    model.calls.resume()
    model.fake.advance(0.0)
    assert model.done == [(1.0, "ring")]


def test_a_timer_can_be_cancelled_while_time_stands_still(model: Model) -> None:
    timer = model.calls.after(1.0, model.ring)
    model.calls.pause()
    timer.cancel()
    model.calls.resume()
    model.fake.advance(2.0)
    assert model.done == []


def test_what_is_to_come_is_written_down(model: Model) -> None:
    model.calls.after(3.0, model.ring)
    model.calls.after(0.0, partial(model.ring, 1, 2))
    model.calls.pause()
    assert model.calls.export() == [(3.0, "ring", ()), (0.0, "ring", (1, 2))]


@pytest.mark.parametrize("kind", ["lambda", "text", "keyword", "other"])
def test_what_has_no_name_is_not(model: Model, kind: str) -> None:
    callbacks: dict[str, Callable[[], None]] = {
        "lambda": lambda: model.ring("x"),
        "text": partial(model.ring, "text"),
        "keyword": partial(model.ring, what=1),
        "other": Model().ring,
    }
    model.calls.after(1.0, callbacks[kind])
    model.calls.pause()
    with pytest.raises(Unsupported, match="cannot be saved"):
        model.calls.export()
