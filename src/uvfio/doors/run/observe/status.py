"""What a run reports about itself to the programs that manage it: the lines of ``--status-fd`` and the facts of
``uvfio ctl status``.

``StatusLines`` consumes the events ``RunStarted`` and ``RunEnded`` and writes one JSON object per line. ``run_facts``
is the part ``run`` of the control socket's answer to ``status``: numbers that are true at the moment of the request. No
event is needed for it. docs/reference/cli.md and docs/reference/control.md have the keys.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from uvfio.doors.run.linux.output import Output, say
from uvfio.doors.run.session.events import RunEnded, RunStarted

if TYPE_CHECKING:
    from uvfio.doors.run.session.events import RunEvent
    from uvfio.doors.run.session.session import Session

__all__ = ["StatusLines", "run_facts"]


class StatusLines:
    """Write lines to descriptor ``fd``, which stays the caller's."""

    def __init__(self, fd: int) -> None:
        self._out = Output(
            fd, on_loss=lambda why: say(f"uvfio: lines for --status-fd are lost: {why}\n")
        )

    def observe(self, event: RunEvent) -> None:
        """Write a line if the program started or the run ended. If nobody reads, one line on stderr says so."""
        if isinstance(event, RunStarted):
            self._write({"event": "started", "pid": event.pid})
        elif isinstance(event, RunEnded):
            self._write({"event": "ended", "status": event.status})
            self._out.close()

    def _write(self, facts: dict[str, Any]) -> None:
        import json

        self._out.write(json.dumps(facts) + "\n")


def run_facts(session: Session) -> dict[str, Any]:
    """What is open and mapped now, and what the supervisor itself uses (for tests that look for leaks)."""
    framework = session.machine.framework
    return {
        "pid": os.getpid(),
        "processes": len(session.processes.by_tgid),
        "open_files": len(session.tokens),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "contexts": [
            {
                "groups": [str(group) for group in iommu.groups],
                "owner": iommu.holder or None,
                "mappings": len(iommu.domain.mappings) if iommu.domain else 0,
                "faults": iommu.domain.fault_count if iommu.domain else 0,
            }
            for iommu in {id(g.iommu): g.iommu for g in framework.groups}.values()
            if iommu is not None
        ],
    }
