"""What a model wants to do later: ``PendingCalls``, behind the ``after`` of every kind of model.

A call is made once, on the clock's thread, under the model's lock, unless it was cancelled before: by its
timer, or with all others by a reset or an unplug. A call that the clock was just about to make when it was
cancelled is not made either. A DMA fault that the callback does not catch ends what it was doing, and no
more: the domain has recorded it.

It keeps no time of its own: that is the clock's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import DmaFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Clock, Timer

__all__ = ["PendingCalls"]


class _Model(Protocol):
    """Whoever has pending calls. ``lock`` may be replaced while some are pending."""

    lock: Any
    clock: Clock


class PendingCalls:
    """The calls of one model that are still to come."""

    __slots__ = ("_calls", "model")

    def __init__(self, model: _Model) -> None:
        self.model = model
        self._calls: set[_PendingCall] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now or later."""
        call = _PendingCall(self, callback)
        self._calls.add(call)
        call.timer = self.model.clock.call_later(seconds, call.fire)
        return call

    def cancel_all(self) -> None:
        """Make none of them."""
        for call in tuple(self._calls):
            call.cancel()

    def take(self, call: _PendingCall) -> bool:
        """Whether ``call`` is still to be made; it is not any more afterwards."""
        if call in self._calls:
            self._calls.remove(call)
            return True
        return False


class _PendingCall:
    """One call; a ``Timer``."""

    __slots__ = ("_all", "_callback", "timer")

    def __init__(self, calls: PendingCalls, callback: Callable[[], None]) -> None:
        self._all = calls
        self._callback = callback
        self.timer: Timer | None = None

    def cancel(self) -> None:
        self._all.take(self)
        if self.timer is not None:
            self.timer.cancel()

    def fire(self) -> None:
        with self._all.model.lock:
            if self._all.take(self):
                try:
                    self._callback()
                except DmaFault:
                    pass  # recorded; the device's own business ends here
