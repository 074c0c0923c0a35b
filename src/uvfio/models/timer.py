"""A timer block of a system on a chip: counts periods down, interrupts, and keeps a log that programs can map.

Region 0, registers (4 or 8 bytes wide as listed; other widths are done by lanes):

======  =====  ======  ==================================================================================
offset  bytes  access  meaning
======  =====  ======  ==================================================================================
0x00    4      ro      0x454d4954 ("TIME")
0x04    4      rw      load: value begins here, and again after an overflow
0x08    4      ro      value: one less after each period; the period that finds it 0 is an overflow
0x0c    4      rw      control: bit 0 run, bit 1 interrupt 0 at each period, bit 2 interrupt 1 at an overflow,
                       bit 3 write entries to memory, bit 4 stop at an overflow
0x10    4      w1c     status: bit 0 period elapsed, bit 1 overflow, bit 2 DMA fault
0x14    4      rw      period in microseconds; 0 stands still. After a reset: option ``period``
0x18    4      ro      events since a reset: how many entries were logged
0x20    8      rw      DMA address of the entry in memory, a multiple of 8
======  =====  ======  ==================================================================================

Region 1, memory, one page or more, from the child node ``log``: the event log. A word of 8 bytes that counts the
entries, 8 bytes of 0, then a ring of entries; entry n is at 16 + 16 * (n modulo their number). It is written by the
timer and may be mapped; what programs write there is theirs.

An entry, 16 bytes, here and in memory:

======  =====  ==========================================================================================
0       8      microseconds since the reset
8       4      bits 0 and 1 as in status: what happened
12      4      its number, from 1. Stored last and at once: a program that polls it sees a whole entry
======  =====  ==========================================================================================

Interrupt 0, level: high while status bit 0 and control bit 1 are set; writing 1 to status bit 0 acknowledges.
Interrupt 1, edge, from the child node ``log``: an overflow, if control bit 2 is set.

Setting the run bit starts with value = load. Changing the period or setting the run bit begins a new period;
load takes effect at the next start or overflow. Periods that pass while the machine is not served are counted
when it is served again, all in one event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.kit import DmaFault, Option, Register, RegisterMap
from uvfio.kit.platform import EdgeLine, LevelLine, MemoryRegion, PlatformModel, RegisterRegion

if TYPE_CHECKING:
    from uvfio.kit import Timer as Alarm

__all__ = ["ENTRY_SIZE", "LOG_HEAD", "Timer", "TimerRegisters"]

RUN, PERIOD_IRQ, OVERFLOW_IRQ, TO_MEMORY, ONE_SHOT = 0x01, 0x02, 0x04, 0x08, 0x10
ELAPSED, OVERFLOW, FAULT = 0x1, 0x2, 0x4
ENTRY_SIZE = 16
LOG_HEAD = 16
WORD = 0xFFFFFFFF


def _period(microseconds: int) -> str:
    return "" if 0 <= microseconds <= WORD else "does not fit 32 bits"


class TimerRegisters(RegisterMap):
    """Region 0."""

    identification = Register(0x00, reset=0x454D4954, access="ro", doc='"TIME"')
    load = Register(0x04, doc="value begins here")
    value = Register(0x08, access="ro", doc="periods until the one that overflows")
    control = Register(
        0x0C,
        fields={"run": 0, "period_irq": 1, "overflow_irq": 2, "to_memory": 3, "one_shot": 4},
        writable=0x1F,
    )
    status = Register(0x10, access="w1c", fields={"elapsed": 0, "overflow": 1, "fault": 2})
    period = Register(0x14, doc="microseconds; 0 stands still")
    events = Register(0x18, access="ro", doc="entries logged since a reset")
    entry_address = Register(0x20, 8, doc="DMA address of the entry in memory")


class Timer(PlatformModel):
    """A timer block: level and edge interrupts, DMA of a timestamp, an event log that programs can map."""

    compatible = ("uvfio,timer-1.0", "uvfio,timer")

    period = Option(int, 1000, "microseconds of a period after a reset", check=_period)

    regs = RegisterRegion(0, TimerRegisters)
    log = MemoryRegion(1, 4096, node="log")
    elapsed = LevelLine(0)
    overflowed = EdgeLine(1, node="log")

    def on_reset(self) -> None:
        """The period of the option; time begins at 0, and nothing is counted."""
        self.regs.period = self.period
        self.born = self.clock.monotonic()
        self.alarm: Alarm | None = None
        self.began = 0  # microseconds, as now()
        self.counted = 0

    def now(self) -> int:
        """Microseconds since the reset."""
        return round((self.clock.monotonic() - self.born) * 1e6)

    # -- registers -------------------------------------------------------------------------------

    @TimerRegisters.control.on_store
    def control_written(self, old: int, new: int) -> int:
        """Start, stop and enable interrupts, by the bits of the control register."""
        if new & ~old & RUN:
            self.regs.value = self.regs.load
        self.regs.control = new
        if (new ^ old) & RUN:
            self.begin()
        self.update_level()
        return new

    @TimerRegisters.period.on_write
    def period_written(self, _: int) -> None:
        """A new period begins."""
        self.begin()

    @TimerRegisters.status.on_write
    def acknowledged(self, _: int) -> None:
        """Bits of the status register were cleared: the interrupt line follows."""
        self.update_level()

    def update_level(self) -> None:
        """Interrupt 0 follows status and control."""
        regs = self.regs
        self.elapsed.set(bool(regs.status & ELAPSED and regs.control & PERIOD_IRQ))

    # -- time ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A period begins now, if the timer runs; one that has begun is forgotten."""
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        self.began, self.counted = self.now(), 0
        self.wait()

    def wait(self) -> None:
        """Until the end of the next period that was not counted."""
        if self.regs.control & RUN and self.regs.period:
            due = self.began + (self.counted + 1) * self.regs.period
            self.alarm = self.after(max(due - self.now(), 0) / 1e6, self.tick)

    def tick(self) -> None:
        """At least one period has ended."""
        regs = self.regs
        ended = max((self.now() - self.began) // regs.period - self.counted, 1)
        self.counted += ended
        what = ELAPSED
        if ended > regs.value:
            what |= OVERFLOW
            if regs.control & ONE_SHOT:
                regs.value = 0
                regs.control &= ~RUN
            else:
                regs.value = regs.load - (ended - regs.value - 1) % (regs.load + 1)
        else:
            regs.value -= ended
        regs.status |= what
        self.record(what)
        self.wait()
        self.update_level()
        if what & OVERFLOW and regs.control & OVERFLOW_IRQ:
            self.overflowed.pulse()

    # -- log -------------------------------------------------------------------------------------

    def record(self, what: int) -> None:
        """Log an entry, and write it to memory if that is wanted."""
        regs, log = self.regs, self.log
        regs.events += 1
        head = self.now().to_bytes(8, "little") + what.to_bytes(4, "little")
        number = regs.events.to_bytes(4, "little")
        room = (len(log) - LOG_HEAD) // ENTRY_SIZE
        at = LOG_HEAD + (regs.events - 1) % room * ENTRY_SIZE
        log[at : at + 12] = head
        log[at + 12 : at + 16] = number
        log[0:8] = regs.events.to_bytes(8, "little")
        if regs.control & TO_MEMORY:
            address = regs.entry_address & ~7
            try:
                self.dma.write(address, head)
                self.dma.store(address + 12, regs.events, 4)
            except DmaFault:
                regs.status |= FAULT
