"""Waits that are polled."""

from __future__ import annotations

import pytest

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
