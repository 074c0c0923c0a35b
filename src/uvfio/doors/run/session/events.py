"""The events of a run: those of the framework, and what only the runner knows.

``RunEvent`` is the union of ``core.events.FrameworkEvent`` and the classes here. The session and the loop emit them,
the folder ``observe`` consumes them; the module is part of ``session``, the lower of the two, so that no emitter
imports an observer. They are not in the core, which knows neither processes nor runs.

Events are values without a reference to an open file or a process. All are emitted on the thread of the loop, between
two calls of programs. Without an observer none is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvfio.core.events import FrameworkEvent

__all__ = ["FileReleased", "RunEnded", "RunEvent", "RunObserver", "RunStarted"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The program is executing; ``pid`` is its process. Emitted once, before the first call is answered."""

    pid: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The last process of the run ended; ``status`` is the wait status of the first one.

    Emitted once, before what is still open is released. Not emitted if the loop itself fails.
    """

    status: int


@dataclass(frozen=True, slots=True)
class FileReleased:
    """The last reference to an open file is gone: closed in every process, and unmapped.

    ``file`` is its name, as a link of /proc/PID/fd shows it. Emitted after ``File.release``.
    """

    file: str


RunEvent = FrameworkEvent | RunStarted | RunEnded | FileReleased

RunObserver = Callable[[RunEvent], None]
