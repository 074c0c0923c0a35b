"""Calls and requests that wait for a condition before they are answered.

The supervisor has one thread and answers everything else meanwhile, so a wait is polled: between two calls, when
a file was closed, and after the delay that the wait itself returns. Meanwhile the supervisor sleeps in the reactor,
which reacts to closes at once.

    added -> done: ``finish`` with None        -> failed: ``finish`` with the error
          -> ``alive`` returns False: cancelled; ``finish`` is not called

``alive`` is called every ``LOOK`` seconds at least. If one of these functions raises what is no answer, its own wait
ends and ``Reactor.on_error`` is called; the other waits go on.

What this does not do: answer. ``finish`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.doors.run.session.reactor import Reactor, RunTimer

__all__ = ["LOOK", "Waits"]

LOOK = 0.5


class Owed(NamedTuple):
    """One call or request, its wait, and what to call at the end."""

    wait: Wait
    finish: Callable[[BaseException | None], None]
    alive: Callable[[], bool]


class Waits:
    """All waits of a run, and the timer of the next poll."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._timer: RunTimer | None = None
        self.owed: list[Owed] = []

    def add(
        self, wait: Wait, finish: Callable[[BaseException | None], None], alive: Callable[[], bool]
    ) -> None:
        """Poll ``wait`` until it is done."""
        self.owed.append(Owed(wait, finish, alive))
        self._set_timer()

    def poll(self) -> None:
        """Poll each wait once; finish those that are done, cancel those whose caller has gone."""
        for owed in list(self.owed):
            if owed not in self.owed:
                continue  # an earlier one made a call that ended it
            try:
                self._poll(owed)
            except BaseException:
                self._reactor.on_error()
                if owed in self.owed:
                    self.owed.remove(owed)
        self._set_timer()

    def _poll(self, owed: Owed) -> None:
        if not owed.alive():
            self.owed.remove(owed)
            owed.wait.cancel()
            return
        failure: BaseException | None = None
        try:
            done = owed.wait.poll()
        except BaseException as error:
            done, failure = True, error
        if done:
            self.owed.remove(owed)
            owed.finish(failure)

    def close(self) -> None:
        """Cancel all waits; no ``finish`` is called."""
        owed, self.owed = self.owed, []
        for one in owed:
            try:
                one.wait.cancel()
            except BaseException:
                self._reactor.on_error()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.owed:
            delay = min(LOOK, *(owed.wait.delay() for owed in self.owed))
            self._timer = self._reactor.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self.poll()
