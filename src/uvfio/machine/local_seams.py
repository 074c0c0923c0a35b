"""The seams of a machine that lives in the caller's own process: where region memory lies, and time.

``ByteStore`` keeps region memory in bytearrays; whoever stores in mapped registers says ``look()`` then, or makes a
call, which does. ``ManualClock`` stands still until it is moved, so that
what a model does after a while happens exactly when a test or a notebook says so. ``RealClock`` follows
the system's clock; whoever serves the machine asks it how long to sleep and lets it call what is due.

Neither clock starts a thread: callbacks run inside ``advance`` and ``run_due``, in the order of their
times, and those of equal time in the order in which they were asked for. A callback that raises ends
the call; what is due after it runs at the next one.
"""

from __future__ import annotations

import heapq
import time
from itertools import count
from typing import TYPE_CHECKING

from uvfio.errors import Busy, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from threading import Condition

__all__ = ["ByteStore", "ManualClock", "RealClock"]


class ByteStore:
    """Region memory in this process. A device's memory lives until the last view of it is gone."""

    def __init__(self) -> None:
        self._memory: dict[str, dict[int, memoryview]] = {}
        self._hidden: set[str] = set()
        self._looks: list[Callable[[], bool]] = []

    def allocate(
        self, device: str, sizes: Mapping[int, int], late: Collection[int] = ()
    ) -> Mapping[int, memoryview]:
        """Zeroed memory for each region. Busy when ``device`` has some already."""
        if device in self._memory:
            raise Busy(f"{device} has memory already")
        views = {index: memoryview(bytearray(size)) for index, size in sizes.items()}
        self._memory[device] = views
        return views

    def release(self, device: str) -> None:
        """Forget the device's memory (idempotent)."""
        self._memory.pop(device, None)
        self._hidden.discard(device)

    def populate(self, device: str, index: int) -> None:
        """It has its memory already."""

    def hide(self, device: str) -> None:
        """See ``hidden``: this memory cannot fault by itself."""
        self._hidden.add(device)

    def show(self, device: str) -> None:
        self._hidden.discard(device)

    def hidden(self, device: str) -> bool:
        """Whether accesses of programs to the device's memory have to fault."""
        return device in self._hidden

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        """There is no timer: ``look`` is called by ``look()`` only."""
        self._looks.append(look)

        def stop() -> None:
            if look in self._looks:
                self._looks.remove(look)

        return stop

    def look(self) -> None:
        """Take up what was stored in mapped registers."""
        for look in tuple(self._looks):
            look()

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that have memory."""
        return tuple(self._memory)


class _Call:
    """A pending call; ``callback`` is None when it was cancelled or made."""

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
    """A clock that its owner moves."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._agenda = _Agenda()

    def monotonic(self) -> float:
        """Seconds."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Call:
        """Call once the clock has been moved ``delay`` seconds on."""
        return self._agenda.add(self._now + max(delay, 0.0), callback)

    def wait(self, condition: Condition, seconds: float) -> None:
        """Wait for other threads. If none notifies in time, the clock has moved on by ``seconds``.

        Calls that fell due are made by the next ``advance``: the caller holds a lock.
        """
        end = self._now + seconds
        if not condition.wait(seconds):
            self._now = max(self._now, end)

    def advance(self, seconds: float) -> None:
        """Move on. Each callback sees the time it asked for, and may ask for more calls."""
        if seconds < 0:
            raise InvalidArgument(f"the clock cannot go back by {-seconds} s")
        end = self._now + seconds
        while (when := self._agenda.next_time()) is not None and when <= end:
            self._now = max(self._now, when)
            callback = self._agenda.pop()
            if callback is not None:
                callback()
        self._now = end


class RealClock:
    """The system's monotonic clock, for a loop that sleeps ``timeout()`` and then calls ``run_due()``."""

    def __init__(self) -> None:
        self._agenda = _Agenda()

    def monotonic(self) -> float:
        """Seconds."""
        return time.monotonic()

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Call:
        """Call in the first ``run_due`` after ``delay`` seconds."""
        return self._agenda.add(time.monotonic() + max(delay, 0.0), callback)

    def wait(self, condition: Condition, seconds: float) -> None:
        """Wait on ``condition``, for ``seconds`` at most."""
        condition.wait(seconds)

    def timeout(self) -> float | None:
        """Seconds until the next call is due; None when there is none."""
        when = self._agenda.next_time()
        return None if when is None else max(when - time.monotonic(), 0.0)

    def run_due(self) -> None:
        """Make the calls whose time has come. Those that they ask for wait for the next ``run_due``."""
        now = time.monotonic()
        while (when := self._agenda.next_time()) is not None and when <= now:
            callback = self._agenda.pop()
            if callback is not None:
                callback()
