"""The local door: a machine is used from its own Python process."""

from __future__ import annotations

from uvfio.doors.local.process import LocalEvent, LocalMemory, MemoryFile, Process

__all__ = ["LocalEvent", "LocalMemory", "MemoryFile", "Process"]
