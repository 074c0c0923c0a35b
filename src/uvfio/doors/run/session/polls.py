"""Polling of mapped registers for stores: a timer that runs while a device has such registers.

Without a ``watch`` no timer runs and the supervisor sleeps in RECV. With one, each poll that found nothing
doubles the time to the next one, up to ``LONGEST``: a store is found within 5 ms, and sooner while a driver is at work.
Besides, a handler of a call calls ``look()`` first, so that a store and the call after it keep their order.

A poll that raises is the bug of one model: ``on_error`` is called inside the ``except``, and the other polls go on.

What this does not do: know registers or devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Clock, Timer

__all__ = ["LONGEST", "SHORTEST", "Polls"]

SHORTEST = 0.0005
LONGEST = 0.004


class Polls:
    """The functions that poll, in ``active``, and their timer. ``look`` returns whether it found a store."""

    def __init__(self, clock: Clock, on_error: Callable[[], None]) -> None:
        self._clock = clock
        self._on_error = on_error
        self._timer: Timer | None = None
        self._delay = LONGEST
        self.active: list[Callable[[], bool]] = []

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        """See ``Store.watch``."""
        self.active.append(look)
        if self._timer is None:
            self._again(SHORTEST)

        def stop() -> None:
            if look in self.active:
                self.active.remove(look)
                if not self.active and self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

        return stop

    def look(self) -> bool:
        """Poll all devices; returns whether one found a store."""
        found = False
        for look in tuple(self.active):
            try:
                found |= look()
            except BaseException:
                self._on_error()
        return found

    def _again(self, delay: float) -> None:
        self._delay = delay
        self._timer = self._clock.call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        found = self.look()
        if self.active and self._timer is None:
            self._again(SHORTEST if found else min(2 * self._delay, LONGEST))
