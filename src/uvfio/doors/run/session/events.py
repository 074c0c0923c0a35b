"""The events of a run: those of the framework, and what only the runner knows.

``RunEvent`` is the union of ``core.events.FrameworkEvent`` and the classes here. The session and the loop emit them,
the folder ``observe`` consumes them; the module is part of ``session``, the lower of the two, so that no emitter
imports an observer. They are not in the core, which knows neither processes nor runs.

Events are values without a reference to an open file or a process. All of this module are emitted on the thread of
the loop. Without an observer none is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uvfio.core.events import FrameworkEvent

__all__ = [
    "CallEntry",
    "CallExit",
    "FileReleased",
    "RunEnded",
    "RunEvent",
    "RunObserver",
    "RunStarted",
]


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

    ``file`` is its name, as a link of /proc/PID/fd shows it; ``device`` is the device that it belonged to, if the
    name does not tell. Emitted after ``File.release``.
    """

    file: str
    device: str | None = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CallEntry:
    """A program makes one of the observed calls (``observe/calls.py``); emitted before its handler runs.

    ``name`` is the kernel's in the program's architecture (``pread64``, ``mmap2``), ``request`` the unpacked
    notification. Each entry is an object of its own, so that an observer can keep what it decoded by it; what is kept
    by a weak reference goes even if the program is killed before the call is answered and no ``CallExit`` follows.
    """

    name: str
    request: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CallExit:
    """The call of ``entry`` has its answer; emitted before the answer is sent.

    ``value`` is the result; None without an ``error``: the kernel executes the call itself. An ``error`` that is no
    OSError is a defect of a handler or a model: the program gets EIO. ``seconds`` is the time in the handler; None for
    a call whose answer had to wait (``fops.file.Deferred``).
    """

    entry: CallEntry
    value: int | None
    error: BaseException | None
    seconds: float | None


RunEvent = FrameworkEvent | RunStarted | RunEnded | FileReleased | CallEntry | CallExit

RunObserver = Callable[[RunEvent], None]
