"""``PendingCalls``: the calls that a model has delayed by ``after``.

A call is made once, on the clock's thread, under the model's lock, unless it was cancelled before: by its
timer, or with all others by a reset or an unplug. A call that the clock was just about to make when it was
cancelled is not made either. A DMA fault that the callback does not catch ends what it was doing, and no
more: the domain has recorded it.

While the model is paused no time passes for its calls: each keeps what was left of its delay, and new ones wait with
all of it. ``export`` writes down what is to come, for another model of the same class; a call is known there by the
name of the model's method, so it must be one, alone or in a ``functools.partial`` with numbers.

It keeps no time of its own: that is the clock's business.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import DmaFault, ModelMistake, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Clock, Timer

__all__ = ["PendingCalls"]


class _Model(Protocol):
    """A model with pending calls."""

    lock: Any
    clock: Clock

    @property
    def name(self) -> str: ...


class PendingCalls:
    """The calls of one model that are still to come."""

    __slots__ = ("_calls", "_paused", "model")

    def __init__(self, model: _Model) -> None:
        self.model = model
        self._calls: dict[
            _PendingCall, None
        ] = {}  # a set, in the order in which they were asked for
        self._paused = False

    def __len__(self) -> int:
        return len(self._calls)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once, ``seconds`` from now or later."""
        call = _PendingCall(self, seconds, callback)
        self._calls[call] = None
        if not self._paused:
            call.start()
        return call

    def cancel_all(self) -> None:
        """Make none of them."""
        for call in tuple(self._calls):
            call.cancel()

    def pause(self) -> None:
        """Time stands still (idempotent)."""
        if not self._paused:
            self._paused = True
            for call in self._calls:
                call.stop()

    def resume(self) -> None:
        """Time goes on (idempotent)."""
        if self._paused:
            self._paused = False
            for call in self._calls:
                call.start()

    def take(self, call: _PendingCall) -> bool:
        """Whether ``call`` is to be made now; it is not pending any more afterwards."""
        if call in self._calls and not self._paused:
            del self._calls[call]
            return True
        return False

    def drop(self, call: _PendingCall) -> None:
        """``call`` shall not be made (idempotent)."""
        self._calls.pop(call, None)

    def export(self) -> list[tuple[float, str, tuple[int, ...]]]:
        """While paused: what is to come, as (seconds left, method, arguments). Unsupported for what has no name."""
        return [call.describe() for call in self._calls]


class _PendingCall:
    """One call; a ``Timer``. ``left``: seconds to go while time stands still."""

    __slots__ = ("_all", "_callback", "_due", "left", "timer")

    def __init__(self, calls: PendingCalls, seconds: float, callback: Callable[[], None]) -> None:
        self._all = calls
        self._callback = callback
        self._due = 0.0
        self.left = seconds
        self.timer: Timer | None = None

    def start(self) -> None:
        """Time goes on."""
        clock = self._all.model.clock
        self._due = clock.monotonic() + self.left
        self.timer = clock.call_later(self.left, self.fire)

    def stop(self) -> None:
        """Time stands still."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            self.left = max(self._due - self._all.model.clock.monotonic(), 0.0)

    def cancel(self) -> None:
        self._all.drop(self)
        if self.timer is not None:
            self.timer.cancel()

    def fire(self) -> None:
        with self._all.model.lock:
            if self._all.take(self):
                try:
                    self._callback()
                except DmaFault:
                    pass  # recorded; the device's own business ends here
                except (ModelMistake, KeyboardInterrupt):
                    raise
                except BaseException as error:  # no program waits: a refusal is a mistake here
                    from uvfio.kit.explain import mistaken

                    called = getattr(self._callback, "__qualname__", repr(self._callback))
                    what = f"{called}, called by after(),"
                    raise mistaken(self._all.model, what, error) from error

    def describe(self) -> tuple[float, str, tuple[int, ...]]:
        """See ``PendingCalls.export``."""
        function: Any = self._callback
        arguments: tuple[Any, ...] = ()
        if isinstance(function, partial) and not function.keywords:
            arguments, function = function.args, function.func
        name = getattr(function, "__name__", "")
        if getattr(function, "__self__", None) is not self._all.model or not all(
            isinstance(value, int) for value in arguments
        ):
            raise Unsupported(
                f"a pending call of {self._callback!r} cannot be saved",
                "give after() a method of the model, or functools.partial of one with numbers",
            )
        return self.left, name, arguments
