"""Operations that take a while, for callers that cannot wait: polled until they are done.

A caller that serves others meanwhile (a supervisor) polls a ``Wait`` after every close, which may end it, and when
``delay`` has passed. A caller with nothing else to do calls ``Framework.wait_for``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Then", "Wait"]


class Wait(Protocol):
    """Something that goes on: see ``core.structure.release.Release``."""

    @property
    def what(self) -> str:
        """What goes on, for people: "unbinding 0000:06:0d.0"."""

    @property
    def ready(self) -> bool:
        """Whether ``poll`` has something to do now; asked with the framework's lock held."""

    def poll(self) -> bool:
        """Do the next thing; whether all is done. Raises what the write shall fail with."""

    def delay(self) -> float:
        """Seconds until the next ``poll``, unless something is closed before."""

    def cancel(self) -> None:
        """Give up; harmless at the end."""


class Then:
    """``wait``, and ``action`` once when it is done."""

    __slots__ = ("_action", "_wait")

    def __init__(self, wait: Wait, action: Callable[[], None]) -> None:
        self._wait = wait
        self._action = action

    def poll(self) -> bool:
        done = self._wait.poll()
        if done:
            self._action()
        return done

    @property
    def what(self) -> str:
        return self._wait.what

    @property
    def ready(self) -> bool:
        return self._wait.ready

    def delay(self) -> float:
        return self._wait.delay()

    def cancel(self) -> None:
        self._wait.cancel()
