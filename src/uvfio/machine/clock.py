"""``ManualClock``: the ``Clock`` of a machine that lives in the caller's own process.

The clock stands still until ``advance`` moves it, so a test or a notebook decides when a delayed action of a model
happens. The clock starts no thread and does not read the system's time. Callbacks run inside ``advance`` in the order
of their times; callbacks of equal time run in the order in which they were registered. An exception of a callback ends
``advance``; the callbacks that are due after it run in the next call.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Condition

__all__ = ["ManualClock"]


class _Call:
    """A pending call; ``callback`` is None after the call or its cancellation."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call (idempotent)."""
        self.callback = None


class _Agenda:
    """Calls by time; the earliest is at the front of the heap."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Call]] = []
        self._order = count()

    def add(self, when: float, callback: Callable[[], None]) -> _Call:
        call = _Call(callback)
        heapq.heappush(self._heap, (when, next(self._order), call))
        return call

    def next_time(self) -> float | None:
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Callable[[], None] | None:
        _, _, call = heapq.heappop(self._heap)
        callback, call.callback = call.callback, None
        return callback


class ManualClock:
    """A clock that only ``advance`` moves. ``start`` is its first time in seconds."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._agenda = _Agenda()

    def monotonic(self) -> float:
        """The clock's time in seconds."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Call:
        """Call ``callback`` when the clock has moved ``delay`` seconds; a negative delay counts as 0."""
        return self._agenda.add(self._now + max(delay, 0.0), callback)

    def wait(self, condition: Condition, seconds: float) -> None:
        """Wait for other threads. If none notifies within ``seconds``, the clock has moved on by as much.

        Callbacks that fell due run in the next ``advance``, because the caller holds a lock.
        """
        end = self._now + seconds
        if not condition.wait(seconds):
            self._now = max(self._now, end)

    def advance(self, seconds: float) -> None:
        """Move the clock and run what is due. A callback sees its own time and may register more callbacks.

        Raises InvalidArgument for negative ``seconds``.
        """
        if seconds < 0:
            raise InvalidArgument(f"the clock cannot go back by {-seconds} s")
        end = self._now + seconds
        while (when := self._agenda.next_time()) is not None and when <= end:
            self._now = max(self._now, when)
            callback = self._agenda.pop()
            if callback is not None:
                callback()
        self._now = end
