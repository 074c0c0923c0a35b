"""When to look for stores in mapped registers: a timer, while there is something to look at.

As long as nobody ``watch``es, no timer runs and the supervisor sleeps in RECV. Then every look that found nothing
doubles the time to the next one, up to ``LONGEST``: a store is noticed within 5 ms, and while a driver is at work
sooner. Besides, whoever handles a call says ``look()`` first, so that a store and the call after it keep their order.

A look that raises is the bug of one model: ``on_error`` is called inside the ``except``, and the others go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Clock, Timer

__all__ = ["LONGEST", "SHORTEST", "Polls"]

SHORTEST = 0.0005  # epoll waits whole milliseconds: this is one
LONGEST = 0.004


class Polls:
    """Those who look, and their timer. ``active`` is true while there are any."""

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
        """Everybody looks; whether somebody found something."""
        found = False
        for look in tuple(self.active):
            try:
                found |= look()
            except Exception:
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
