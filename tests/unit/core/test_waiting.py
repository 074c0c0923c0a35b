"""Waits that are polled."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from uvfio.core import waiting
from uvfio.core.waiting import Then
from uvfio.errors import Busy


class Steps:
    """Done at the ``last`` poll, or fails there."""

    what = "taking steps"

    def __init__(self, last: int, error: Exception | None = None) -> None:
        self.left = last
        self.error = error
        self.cancelled = 0

    def poll(self) -> bool:
        self.left -= 1
        if not self.left and self.error:
            raise self.error
        return not self.left

    @property
    def ready(self) -> bool:
        return self.left == 1

    def delay(self) -> float:
        return 1.5

    def cancel(self) -> None:
        self.cancelled += 1


def test_then_acts_when_it_is_done() -> None:
    done: list[str] = []
    wait = Then(Steps(2), lambda: done.append("x"))
    assert not wait.poll()
    assert done == []
    assert (wait.what, wait.ready, wait.delay()) == ("taking steps", True, 1.5)
    assert wait.poll()
    assert done == ["x"]


def test_then_does_nothing_after_an_error_or_a_cancel() -> None:
    done: list[str] = []
    steps = Steps(1, Busy("no"))
    wait = Then(steps, lambda: done.append("x"))
    with pytest.raises(Busy):
        wait.poll()
    wait.cancel()
    assert (done, steps.cancelled) == ([], 1)


def test_steps_go_on_to_the_next_yield_and_keep_the_result() -> None:
    log: list[int] = []

    def work() -> Generator[None, None, int]:
        for n in range(2):
            log.append(n)
            yield
        return 5

    steps = waiting.Steps(work(), "adding")
    assert (steps.what, steps.ready, steps.delay()) == ("adding", True, 0)
    assert [steps.poll() for _ in range(3)] == [False, False, True]
    assert (log, steps.value, steps.taken) == ([0, 1], 5, 3)
    left = waiting.Steps(work(), "adding")
    left.poll()
    left.cancel()
    left.cancel()
    assert log == [0, 1, 0]
