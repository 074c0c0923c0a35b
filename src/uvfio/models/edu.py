"""The educational device of QEMU (docs/specs/edu): identification, a factorial unit, interrupts, DMA.

===========  ======  ==========================================================================
offset       access  meaning
===========  ======  ==========================================================================
0x00         ro      0x010000ed: major version, minor version, "ed"
0x04         rw      liveness: reads as the complement of what was written
0x08         rw      factorial: write n, read n! modulo 2**32 when bit 0 of status is clear
0x20         rw      status: bit 0 computing (ro), bit 7 raise interrupt 0x1 after the factorial
0x24         ro      interrupt status: the causes that were raised and not acknowledged
0x60         wo      raise these causes
0x64         wo      acknowledge these causes
0x80         rw      DMA source address           (0x80-0x9f take 4 or 8 bytes, the rest exactly 4)
0x88         rw      DMA destination address
0x90         rw      DMA byte count
0x98         rw      DMA command: bit 0 start, bit 1 from the device to RAM, bit 2 interrupt 0x100 after it
===========  ======  ==========================================================================

The DMA engine's own 4096 bytes are at 0x40000 in its address space (not in the BAR); RAM addresses are cut
to ``dma_mask``. Results come later: the factorial while bit 0 of status is set, a transfer while bit 0 of the
command is; writes to the unit at work are ignored. A transfer that leaves the engine's bytes moves nothing,
nor does one that faults; both end, with the interrupt if one was asked for.

Everything else reads as ones and ignores writes, 8 bytes where 4 are due too; 1 and 2 bytes read as 0 everywhere. One
thing goes beyond QEMU: the upper halves of the 64-bit registers can be reached with 4-byte accesses, so that an
8-byte access which a host splits into two means the same.

The BAR can be mapped and is polled (``polled.py``): no register changes by being read, each command has its own.
"""

from __future__ import annotations

from uvfio.kit import (
    DmaFault,
    InvalidArgument,
    Msi,
    Option,
    PciModel,
    Register,
    RegisterBar,
    RegisterMap,
    not_negative,
)

__all__ = ["Edu", "EduRegisters", "factorial"]

DMA_BASE = 0x40000
DMA_SIZE = 4096
FACTORIAL_INTERRUPT = 0x1
DMA_INTERRUPT = 0x100
DMA_START, DMA_TO_RAM, DMA_RAISE = 0x1, 0x2, 0x4

_WIDE = (4, 8)


def _mask(bits: int) -> str:
    return "" if 0 <= bits < 1 << 64 else "does not fit 64 bits"


class EduRegisters(RegisterMap):
    """BAR 0."""

    widths = (4,)
    absent = 0xFF
    narrowest = 4

    identification = Register(0x00, reset=0x010000ED, access="ro", doc="major, minor, 0xed")
    liveness = Register(0x04, doc="reads as the complement of what was written")
    factorial = Register(0x08, doc="n, later n! modulo 2**32")
    status = Register(0x20, fields={"computing": 0, "raise_irq": 7}, writable=0x80)
    interrupt_status = Register(0x24, access="ro", doc="causes raised and not acknowledged")
    interrupt_raise = Register(0x60, access="wo", doc="raise these causes")
    interrupt_acknowledge = Register(0x64, access="wo", doc="acknowledge these causes")
    dma_source = Register(0x80, 8, widths=_WIDE)
    dma_destination = Register(0x88, 8, widths=_WIDE)
    dma_count = Register(0x90, 8, widths=_WIDE, doc="bytes")
    dma_command = Register(
        0x98, 8, widths=_WIDE, fields={"start": 0, "to_ram": 1, "raise_irq": 2}, writable=0x7
    )


class Edu(PciModel):
    """The educational device of QEMU: factorials, interrupts, DMA to and from a 4 KiB buffer."""

    vendor_id, device_id, revision = 0x1234, 0x11E8, 0x10
    class_code = 0x00FF00
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100
    capabilities = (Msi(1, offset=0x40),)

    regs = RegisterBar(0, EduRegisters, size=1 << 20, mapped="polled")

    dma_mask = Option(int, (1 << 28) - 1, "address bits that the DMA engine drives", check=_mask)
    dma_delay = Option(float, 0.0, "seconds that a transfer takes", check=not_negative)
    factorial_delay = Option(float, 0.0, "seconds that a factorial takes", check=not_negative)
    migration = Option(bool, False, "state can be saved and resumed, DMA can be logged")

    def on_reset(self) -> None:
        """The DMA buffer is zeroed."""
        self.buffer = bytearray(DMA_SIZE)

    # -- migration -------------------------------------------------------------------------------

    @property
    def migratable(self) -> bool:
        """The option ``migration``."""
        return self.migration

    def save(self) -> bytes:
        """The DMA buffer."""
        return bytes(self.buffer)

    def load(self, state: bytes) -> None:
        """Take over a DMA buffer. Raises InvalidArgument for another size."""
        if len(state) != DMA_SIZE:
            raise InvalidArgument(f"a buffer of {len(state)} bytes")
        self.buffer[:] = state

    # -- liveness and factorial ------------------------------------------------------------------

    @EduRegisters.liveness.on_store
    def invert(self, old: int, new: int) -> int:
        """A store in the liveness register: it reads as the inverse."""
        return ~new

    @EduRegisters.factorial.on_store
    def compute(self, old: int, new: int) -> int:
        """A store in the factorial register starts the computation; it is ignored while one is in progress."""
        if self.regs.status & 1:
            return old
        self.regs.update(EduRegisters.status, computing=1)
        self.after(self.factorial_delay, self.computed)
        return new

    def computed(self) -> None:
        """The factorial unit is done."""
        self.regs.factorial = factorial(self.regs.factorial)
        self.regs.update(EduRegisters.status, computing=0)
        if self.regs.status & 0x80:
            self.raise_cause(FACTORIAL_INTERRUPT)

    # -- interrupts ------------------------------------------------------------------------------

    @EduRegisters.interrupt_raise.on_write
    def raise_cause(self, causes: int) -> None:
        """Raise ``causes``. With any cause set, an MSI is sent each time; INTx is up until all are gone."""
        self.regs.interrupt_status |= causes
        if self.regs.interrupt_status:
            self.interrupt()

    @EduRegisters.interrupt_acknowledge.on_write
    def acknowledge(self, causes: int) -> None:
        """Clear interrupt causes; INTx drops with the last one."""
        self.regs.interrupt_status &= ~causes
        if not self.regs.interrupt_status:
            self.intx(False)

    # -- DMA -------------------------------------------------------------------------------------

    @EduRegisters.dma_source.on_store
    @EduRegisters.dma_destination.on_store
    @EduRegisters.dma_count.on_store
    def unless_running(self, old: int, new: int) -> int:
        """DMA registers keep their values while a transfer is in progress."""
        return old if self.regs.dma_command & DMA_START else new

    @EduRegisters.dma_command.on_store
    def start(self, old: int, new: int) -> int:
        """Bit 0 of the DMA command starts a transfer; a store without it, or during one, is ignored."""
        if old & DMA_START or not new & DMA_START:
            return old
        self.after(self.dma_delay, self.transfer)
        return new

    def transfer(self) -> None:
        """Move the bytes, or not, and end the command."""
        regs = self.regs
        command, count = regs.dma_command, regs.dma_count
        inside = regs.dma_source if command & DMA_TO_RAM else regs.dma_destination
        first = inside - DMA_BASE
        try:
            if first >= 0 and first + count <= DMA_SIZE:
                if command & DMA_TO_RAM:
                    target = regs.dma_destination & self.dma_mask
                    self.dma.write(target, bytes(self.buffer[first : first + count]))
                else:
                    origin = regs.dma_source & self.dma_mask
                    self.buffer[first : first + count] = self.dma.read(origin, count)
        except DmaFault:
            pass  # recorded; the engine does not know
        regs.update(EduRegisters.dma_command, start=0)
        if command & DMA_RAISE:
            self.raise_cause(DMA_INTERRUPT)


def factorial(n: int) -> int:
    """n! modulo 2**32, as a 32-bit unit that multiplies n times would leave it; 0 from 34 on."""
    if n >= 34:
        return 0  # 34! has 32 factors of two
    product = 1
    for i in range(2, n + 1):
        product *= i
    return product & 0xFFFFFFFF
