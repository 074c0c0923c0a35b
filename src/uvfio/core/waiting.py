"""``Wait``: an operation that takes a while, for callers that cannot block: polled until it is done.

A caller that serves others meanwhile (a supervisor) polls a ``Wait`` after every close, since a close may end it, and
when ``delay`` has passed. A caller that may block uses ``ReleaseMixin.wait_for``. ``Then`` adds an action at the end.
``Steps`` is work that waits for nothing and is too long to be done at once.

This module has no clock and no thread, and does not know what is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Steps", "Then", "Wait"]


class Wait(Protocol):
    """An operation in progress; ``core/structure/release.py`` has the one of the framework, ``Release``."""

    @property
    def what(self) -> str:
        """A description for people: "unbinding 0000:06:0d.0"."""

    @property
    def ready(self) -> bool:
        """Whether ``poll`` has something to do now; read with the framework's lock held."""

    def poll(self) -> bool:
        """Do the next step; returns whether all is done. Raises the condition that the caller's write fails with."""

    def delay(self) -> float:
        """Seconds until the next ``poll``, unless a file is closed before."""

    def cancel(self) -> None:
        """Give up (idempotent; nothing happens at the end)."""


class Then:
    """A ``Wait`` that goes on as ``wait`` does, and calls ``action`` once when that is done."""

    __slots__ = ("_action", "_wait")

    def __init__(self, wait: Wait, action: Callable[[], None]) -> None:
        self._wait = wait
        self._action = action

    def poll(self) -> bool:
        """Poll the inner wait; do the action when it is done. Raises what either raises."""
        done = self._wait.poll()
        if done:
            self._action()
        return done

    @property
    def what(self) -> str:
        """As the inner wait."""
        return self._wait.what

    @property
    def ready(self) -> bool:
        """As the inner wait."""
        return self._wait.ready

    def delay(self) -> float:
        """As the inner wait."""
        return self._wait.delay()

    def cancel(self) -> None:
        """Cancel the inner wait; the action is not done."""
        self._wait.cancel()


class Steps:
    """A ``Wait`` for work in pieces: each poll lets ``work`` go on to its next yield.

    ``value`` is what ``work`` returned, once it is done; ``taken`` counts the polls.
    """

    __slots__ = ("_work", "taken", "value", "what")

    def __init__(self, work: Generator[None, None, int], what: str) -> None:
        self._work = work
        self.what = what
        self.value = 0
        self.taken = 0

    def poll(self) -> bool:
        """Do the next piece. Raises what the work raises."""
        self.taken += 1
        try:
            next(self._work)
        except StopIteration as end:
            self.value = int(end.value)
            return True
        return False

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def delay(self) -> float:
        """No time."""
        return 0.0

    def cancel(self) -> None:
        """Leave the rest undone."""
        self._work.close()
