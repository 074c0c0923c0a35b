"""The clock that stands still until it is moved."""

from __future__ import annotations

from threading import Condition, Thread

import pytest

from uvfio.errors import InvalidArgument
from uvfio.machine.clock import ManualClock


def test_manual_clock_calls_in_order_of_time() -> None:
    clock = ManualClock(100.0)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock.monotonic()))

    clock.call_later(2, lambda: note("b"))
    clock.call_later(1, lambda: note("a"))
    clock.call_later(2, lambda: note("c"))
    clock.call_later(9, lambda: note("late"))
    clock.call_later(-5, lambda: note("now"))
    assert seen == []
    clock.advance(3)
    assert seen == [("now", 100.0), ("a", 101.0), ("b", 102.0), ("c", 102.0)]
    assert clock.monotonic() == 103.0


def test_manual_clock_calls_what_a_callback_asks_for_within_the_same_advance() -> None:
    clock = ManualClock()
    times: list[float] = []

    def tick() -> None:
        times.append(clock.monotonic())
        clock.call_later(1, tick)

    tick()
    clock.advance(3)
    assert times == [0, 1, 2, 3]


def test_cancelled_calls_are_not_made() -> None:
    clock = ManualClock()
    seen: list[int] = []
    timers = [clock.call_later(1, lambda n=n: seen.append(n)) for n in range(3)]  # type: ignore[misc]
    timers[1].cancel()
    timers[1].cancel()
    clock.advance(1)
    assert seen == [0, 2]
    timers[0].cancel()


def test_time_does_not_go_back() -> None:
    with pytest.raises(InvalidArgument, match="cannot go back"):
        ManualClock().advance(-1)


def test_a_callback_that_raises_leaves_the_rest_for_the_next_time() -> None:
    clock = ManualClock()
    seen: list[str] = []
    clock.call_later(1, lambda: seen.remove("x"))
    clock.call_later(2, lambda: seen.append("b"))
    with pytest.raises(ValueError):
        clock.advance(5)
    assert seen == []
    clock.advance(5)
    assert seen == ["b"]


def test_a_wait_that_nothing_ends_moves_a_manual_clock_but_makes_no_calls() -> None:
    clock, called = ManualClock(), []
    clock.call_later(0.005, lambda: called.append(clock.monotonic()))
    condition = Condition()
    with condition:
        clock.wait(condition, 0.01)
    assert (clock.monotonic(), called) == (0.01, [])
    clock.advance(0)
    assert called == [0.01]


def test_a_wait_that_is_notified_leaves_a_manual_clock_alone() -> None:
    clock, condition = ManualClock(), Condition()

    def notify() -> None:
        with condition:
            condition.notify_all()

    with condition:
        thread = Thread(target=notify)
        thread.start()
        clock.wait(condition, 20.0)
    thread.join()
    assert clock.monotonic() == 0.0
