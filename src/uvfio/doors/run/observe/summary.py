"""``--trace-summary``: at the end of a run, what its VFIO calls were and what they cost, like ``strace -c``.

    % time      seconds   us/call     calls    errors  call
     71.20     0.004310         9       480         0  pread
      ...
    DMA: 8192 bytes read, 4096 written; 3 interrupts, 1 fault

The time is the supervisor's from the receipt of a call to its answer; the round trip of the notification comes
on top. Only calls that VFIO answered are counted. Wraps the table of handlers, as a trace does.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, TextIO

from uvfio.core.events import Interrupt
from uvfio.doors.run.filter.rules import BY_KEY, INT
from uvfio.doors.run.observe import trace_mainline as trace_modern
from uvfio.doors.run.session.events import FileReleased
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from uvfio.doors.run.filter.rules import Handler, Key
    from uvfio.doors.run.session.events import RunEvent
    from uvfio.doors.run.session.session import Session

__all__ = ["Summary"]


class Count:
    """One line."""

    __slots__ = ("calls", "errors", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.seconds = 0.0


class Summary:
    """Counts until ``write``; wraps the entries of ``handlers`` on creation."""

    def __init__(
        self, session: Session, handlers: dict[Key, Handler], out: TextIO, *, as_json: bool = False
    ) -> None:
        self.out = out
        self.as_json = as_json
        self.counts: dict[str, Count] = {}
        self.interrupts = 0
        self.dma = session.machine.framework.dma_counters
        self.processes = session.processes
        for key, handler in handlers.items():
            if BY_KEY[key].shown:
                handlers[key] = self._wrap(BY_KEY[key].family, handler)

    def _wrap(self, shown: str, handler: Handler) -> Handler:
        def counted(request: tuple[int, ...]) -> int | None:
            begun = perf_counter()
            failed = False
            value = None
            try:
                value = handler(request)
            except OSError:
                failed = True
                raise
            finally:
                if failed or value is not None or shown == "mmap":
                    seconds = perf_counter() - begun
                    name = self._request_name(request) if shown == "ioctl" else shown
                    count = self.counts.setdefault(name, Count())
                    count.calls += 1
                    count.errors += failed
                    count.seconds += seconds
            return value

        return counted

    def _request_name(self, request: tuple[int, ...]) -> str:
        """The name that the file has for it; one that is closed by now is taken for a file of 2011."""
        command = request[7] & INT
        try:
            file = self.processes.get(request[1]).lookup(request[1], request[6] & INT)
        except OSError:
            file = None
        if file is not None and file.abi_of(command) == "mainline":
            return trace_modern.name_of(file.kind, command)
        return rfc.ioctl_name(command)

    def observe(self, event: RunEvent) -> None:
        """Count an interrupt, and a released file as a close."""
        if isinstance(event, Interrupt):
            self.interrupts += 1
        elif isinstance(event, FileReleased):
            self.counts.setdefault("close", Count()).calls += 1

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
                "faults": self.dma.faults,
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
        self.out.write(
            f"DMA: {self.dma.read} bytes read, {self.dma.written} written; "
            f"{_plural(self.interrupts, 'interrupt')}, {_plural(self.dma.faults, 'fault')}\n"
        )


def _plural(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
