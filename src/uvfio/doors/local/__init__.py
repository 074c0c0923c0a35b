"""The local door: a machine is used from its own Python process."""

from __future__ import annotations

from uvfio.doors.local.memory import LocalEvent, LocalMemory, MemoryFile
from uvfio.doors.local.process import Process

__all__ = ["LocalEvent", "LocalMemory", "MemoryFile", "Process"]
