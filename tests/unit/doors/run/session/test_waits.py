"""What the supervisor owes an answer for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.waits import LOOK, Waits
from uvfio.errors import Busy


class Steps:
    """Done after ``polls`` looks, or raises then."""

    what, ready = "steps", False

    def __init__(self, polls: int, error: Exception | None = None, delay: float = 60.0) -> None:
        self.polls = polls
        self.error = error
        self.seconds = delay
        self.cancelled = False

    def poll(self) -> bool:
        self.polls -= 1
        if self.polls <= 0 and self.error:
            raise self.error
        return self.polls <= 0

    def delay(self) -> float:
        return self.seconds

    def cancel(self) -> None:
        self.cancelled = True


class Told(list[BaseException | None]):
    """What ``finish`` was called with."""


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


def test_it_is_finished_once_when_it_is_done(reactor: Reactor) -> None:
    waits, told = Waits(reactor), Told()
    waits.add(Steps(2), told.append, lambda: True)
    assert reactor.busy
    waits.poll()
    assert told == []
    waits.poll()
    assert told == [None]
    waits.poll()
    assert told == [None]
    assert not waits.owed
    assert not reactor.busy


def test_an_error_is_passed_on(reactor: Reactor) -> None:
    waits, told = Waits(reactor), Told()
    error = Busy("in use")
    waits.add(Steps(1, error), told.append, lambda: True)
    waits.poll()
    assert told == [error]


def test_nobody_is_told_when_nobody_waits(reactor: Reactor) -> None:
    waits, told, steps = Waits(reactor), Told(), Steps(1)
    waits.add(steps, told.append, lambda: False)
    waits.poll()
    assert (told, steps.cancelled, steps.polls) == ([], True, 1)


def test_time_alone_polls(reactor: Reactor) -> None:
    waits, told = Waits(reactor), Told()
    waits.add(Steps(1, delay=0.0), told.append, lambda: True)
    while not told:
        reactor.wait_for(-1)
    assert told == [None]
    assert LOOK < 60, "whoever is gone is noticed before the wait has news"


def test_one_that_ends_another(reactor: Reactor) -> None:
    waits, told = Waits(reactor), Told()
    waits.add(Steps(1), lambda _: waits.close(), lambda: True)
    second = Steps(1)
    waits.add(second, told.append, lambda: True)
    waits.poll()
    assert (told, second.cancelled) == ([], True)


def test_the_end_of_the_run_cancels(reactor: Reactor) -> None:
    waits, told, steps = Waits(reactor), Told(), Steps(1)
    waits.add(steps, told.append, lambda: True)
    waits.close()
    assert steps.cancelled
    assert told == []
    assert not reactor.busy
