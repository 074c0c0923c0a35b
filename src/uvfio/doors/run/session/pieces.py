"""Calls whose work is longer than one turn of the loop may take: they are done in pieces, one per turn.

A program chooses how much one call does: the bytes of a ``pread``, the parts of a ``readv``, the room for an answer.
The rule of the runner is that one call holds the loop for a bounded amount of work. What is longer becomes a ``Steps``
(``core/waiting.py``), and this queue does one step of one of them per turn of the reactor, in rotation. Other programs'
calls are answered between any two steps, however many long calls there are.

    added -> last step: ``finish`` with None        -> a step raised: ``finish`` with the error
          -> ``alive`` returns False: cancelled; ``finish`` is not called

What this does not do: answer (``finish`` does), or wait for anything (``waits.py``).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Steps
    from uvfio.doors.run.session.reactor import Reactor, RunTimer

__all__ = ["Pieces"]

LOOK = 64
"""Steps of one call between two looks whether its caller is alive."""


class _Long(NamedTuple):
    steps: Steps
    finish: Callable[[BaseException | None], None]
    alive: Callable[[], bool]


class Pieces:
    """The long calls of a run. ``done`` counts the steps of all."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._calls: deque[_Long] = deque()
        self._timer: RunTimer | None = None
        self.done = 0

    def __len__(self) -> int:
        return len(self._calls)

    def add(
        self,
        steps: Steps,
        finish: Callable[[BaseException | None], None],
        alive: Callable[[], bool],
    ) -> None:
        """Do ``steps`` from the next turn on."""
        self._calls.append(_Long(steps, finish, alive))
        self._plan()

    def close(self) -> None:
        """Cancel all; no ``finish`` is called."""
        calls, self._calls = self._calls, deque()
        for call in calls:
            call.steps.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        if self._calls and self._timer is None:
            self._timer = self._reactor.call_later(0, self._turn)

    def _turn(self) -> None:
        self._timer = None
        call = self._calls.popleft()
        try:
            self._step(call)
        finally:
            self._plan()

    def _step(self, call: _Long) -> None:
        if call.steps.taken % LOOK == 0 and not call.alive():
            call.steps.cancel()
            return
        self.done += 1
        try:
            done = call.steps.poll()
        except BaseException as error:
            call.finish(error)
        else:
            if done:
                call.finish(None)
            else:
                self._calls.append(call)
