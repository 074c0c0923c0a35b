"""``--trace-summary``: at the end of a run, how often each VFIO call was made and its time, like ``strace -c``.

    % time      seconds   us/call     calls    errors  call
     71.20     0.004310         9       480         0  pread
      ...
    DMA: 8192 bytes read, 4096 written; 3 interrupts, 1 fault
    Devices: 1 plugged, 0 unplugged, 0 bound, 1 unbound

The time is that in the handler of the call; the round trip of the notification comes on top. Only calls that VFIO
answers at once are counted: neither those that the kernel executes nor those whose answer had to wait.

``Summary.observe`` consumes the events of a run (``session/events.py``); calls become events by ``calls.tap``. The
bytes that devices moved and their faults are counted by the framework itself and read at the end. The line on devices
is left out if none came, went or changed its driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.events import (
    DeviceBound,
    DevicePlugged,
    DeviceUnbound,
    DeviceUnplugged,
    Interrupt,
    InterruptLost,
)
from uvfio.doors.run.filter.rules import INT, call_of
from uvfio.doors.run.observe.calls import decoder
from uvfio.doors.run.session.events import CallExit, FileReleased

if TYPE_CHECKING:
    from uvfio.doors.run.linux.output import Sink
    from uvfio.doors.run.session.events import CallEntry, RunEvent
    from uvfio.doors.run.session.session import Session

__all__ = ["Summary"]

CHANGES = {
    DevicePlugged: "plugged",
    DeviceUnplugged: "unplugged",
    DeviceBound: "bound",
    DeviceUnbound: "unbound",
}


class Count:
    """One line: number of calls, number of those that failed, seconds of all."""

    __slots__ = ("calls", "errors", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.seconds = 0.0


class Summary:
    """Counts until ``write``. Calls are seen if ``calls.tap`` was called for the table of handlers."""

    def __init__(self, session: Session, out: Sink, *, as_json: bool = False) -> None:
        self.out = out
        self.as_json = as_json
        self.counts: dict[str, Count] = {}
        self.interrupts = 0
        self.lost = 0
        self.changes = dict.fromkeys(CHANGES.values(), 0)
        self.dma = session.machine.framework.dma_counters
        self.processes = session.processes

    def observe(self, event: RunEvent) -> None:
        """Count an answered call, an interrupt, a change of the machine, and a released file as a close."""
        if isinstance(event, CallExit):
            self._count(event)
        elif isinstance(event, Interrupt):
            self.interrupts += 1
        elif isinstance(event, InterruptLost):
            self.lost += not event.pending
        elif isinstance(event, FileReleased):
            self.counts.setdefault("close", Count()).calls += 1
        elif type(event) in CHANGES:
            self.changes[CHANGES[type(event)]] += 1

    def _count(self, event: CallExit) -> None:
        failed, shown = isinstance(event.error, OSError), call_of(event.entry.request).family
        if event.seconds is None or not (failed or event.value is not None or shown == "mmap"):
            return
        name = self._request_name(event.entry) if shown == "ioctl" else shown
        count = self.counts.setdefault(name, Count())
        count.calls += 1
        count.errors += failed
        count.seconds += event.seconds

    def _request_name(self, entry: CallEntry) -> str:
        """The name of the request for its file; a file that is closed by now counts as one of 2011."""
        request = entry.request
        command = request[7] & INT
        try:
            file = self.processes.get(request[1]).lookup(
                request[1], call_of(request).descriptor(request)
            )
        except OSError:
            file = None
        return decoder(file, command).name_of(file.kind if file else "", command)

    def write(self) -> None:
        """Print the table, or one JSON object."""
        lines = sorted(self.counts.items(), key=lambda item: (-item[1].seconds, item[0]))
        if self.as_json:
            import json

            calls = {
                name: {"calls": c.calls, "errors": c.errors, "seconds": round(c.seconds, 6)}
                for name, c in lines
            }
            facts = {
                "calls": calls,
                "dma_read": self.dma.read,
                "dma_written": self.dma.written,
                "interrupts": self.interrupts,
                "interrupts_lost": self.lost,
                "faults": self.dma.faults,
                "dma_viewed": self.dma.viewed,
                "exchanged": self.dma.exchanged,
                **self.changes,
            }
            self.out.write(json.dumps({"summary": facts}) + "\n")
            return
        total = sum(count.seconds for count in self.counts.values()) or 1.0
        self.out.write("% time      seconds   us/call     calls    errors  call\n")
        for name, c in lines:
            each = c.seconds / c.calls * 1e6
            self.out.write(
                f"{100 * c.seconds / total:6.2f} {c.seconds:12.6f} {each:9.0f} {c.calls:9} "
                f"{c.errors or '':>9}  {name}\n"
            )
        lost = f" ({self.lost} more lost)" if self.lost else ""
        viewed = f", {self.dma.viewed} in views" if self.dma.viewed else ""
        mappings = _plural(self.dma.exchanged, "mapping")
        exchanged = f", memory of {mappings} exchanged" if self.dma.exchanged else ""
        self.out.write(
            f"DMA: {self.dma.read} bytes read, {self.dma.written} written{viewed}; "
            f"{_plural(self.interrupts, 'interrupt')}{lost}, {_plural(self.dma.faults, 'fault')}{exchanged}\n"
        )
        if any(self.changes.values()):
            words = ", ".join(f"{number} {what}" for what, number in self.changes.items())
            self.out.write(f"Devices: {words}\n")


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
