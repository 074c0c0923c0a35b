"""A function with one of everything, for testing drivers, bus drivers and VMMs. It does nothing useful.

Four BARs, a ROM, PCI Express with FLR, power management, MSI, MSI-X, AER and a serial number; 4096 bytes of
configuration space. Options take parts away.

BAR 0, registers, 4 KiB, 32-bit memory:

======  =====  ======  ==================================================================================
offset  bytes  access  meaning
======  =====  ======  ==================================================================================
0x000   4      ro      0x52455845 ("EXER")
0x004   4      ro      size of the memory BAR in bytes
0x010   4 x 4  rw      scratch
0x020   8      rw      scratch, 64 bits
0x028   4      w1c     events: bits stay until written as 1
0x02c   4      wo      sets bits of events
0x030   4      ro      counter: reading returns it and clears it
0x034   4      wo      adds to the counter
0x040   4      wo      interrupt n: message n by MSI-X or MSI, or INTx up
0x044   4      rw      bit 0: level of INTx
0x048   4      rw      microseconds from a write to 0x040 to its interrupt (0: at once)
0x04c   4      wo      any value resets the function
0x080   8      rw      DMA address in RAM
0x088   8      rw      DMA offset in the memory BAR
0x090   4      rw      DMA length in bytes
0x094   4      rw      DMA control: bit 0 go (reads 1 until done), bit 1 from the memory BAR to RAM, bit 2 interrupt
                       when done, bits 15-8 its vector
0x098   4      w1c     DMA status: bit 0 done, bit 1 fault, bit 2 range (offset + length exceeds the BAR)
0x0a0   8      rw      store address in RAM
0x0a8   8      rw      store value
0x0b0   4      wo      does one aligned store of so many bytes (2, 4, 8); a fault sets bit 1 of 0x098
======  =====  ======  ==================================================================================

BAR 1, MSI-X: table at 0, pending bits behind it. BAR 2 (and 3), memory, 64-bit, prefetchable, mappable,
``memory`` bytes; a reset clears it.

BAR 4, ports, 16 bytes of I/O:

======  =====  ======  ==================================================================================
0x0     1      rw      index
0x1     1      rw      the byte of a 256-byte table that the index selects
0x2     2      rw      reads with its bytes swapped
0x4     4      ro      counts its own reads
0x8     4      rw      scratch
======  =====  ======  ==================================================================================

With the option ``vfs`` it is the physical function of so many virtual ones (``ExerciserVf``), which have all of
this but the ROM, the ports, power management and INTx.

Registers take any width; every register access is done by lanes (``register.py``). DMA is asynchronous.
"""

from __future__ import annotations

from functools import partial

from uvfio.kit import (
    AdvancedErrorReporting,
    BarKind,
    Capability,
    DmaFault,
    InvalidArgument,
    MemoryBar,
    Msi,
    MsiX,
    Option,
    PciExpress,
    PciModel,
    PowerManagement,
    Register,
    RegisterArray,
    RegisterBar,
    RegisterMap,
    SerialNumber,
    Sriov,
    not_negative,
)

__all__ = ["Exerciser", "ExerciserPorts", "ExerciserRegisters", "ExerciserVf"]

GO, TO_RAM, INTERRUPT = 0x1, 0x2, 0x4
DONE, FAULT, RANGE = 0x1, 0x2, 0x4
ROM_SIZE = 2048
FAR_RETURN = 0xCB


def _msi_count(vectors: int) -> str:
    return "" if vectors in (0, 1, 2, 4, 8, 16, 32) else "is not 0, 1, 2, 4, 8, 16 or 32"


def _msix_count(vectors: int) -> str:
    return "" if 0 <= vectors <= 2048 else "is not 0 to 2048"


def _bar_size(size: int) -> str:
    fits = 4096 <= size <= 1 << 32 and size & (size - 1) == 0
    return "" if fits else "is not a power of two from 4K to 4G"


def _vf_count(vfs: int) -> str:
    return "" if 0 <= vfs <= 255 else "is not 0 to 255"


class ExerciserRegisters(RegisterMap):
    """BAR 0."""

    identification = Register(0x000, reset=0x52455845, access="ro", doc='"EXER"')
    memory_size = Register(0x004, access="ro", doc="size of the memory BAR")
    scratch = RegisterArray(0x010, count=4)
    scratch64 = Register(0x020, 8)
    events = Register(0x028, access="w1c", doc="bits stay until written as 1")
    raise_events = Register(0x02C, access="wo", doc="sets bits of events")
    counter = Register(0x030, access="ro", doc="reading clears it")
    tick = Register(0x034, access="wo", doc="adds to counter")
    interrupt = Register(0x040, access="wo", doc="raises this vector")
    intx = Register(0x044, fields={"level": 0}, writable=1)
    interrupt_delay = Register(0x048, doc="microseconds")
    soft_reset = Register(0x04C, access="wo")
    dma_address = Register(0x080, 8, doc="in RAM")
    dma_offset = Register(0x088, 8, doc="in the memory BAR")
    dma_length = Register(0x090, doc="bytes")
    dma_control = Register(
        0x094, fields={"go": 0, "to_ram": 1, "interrupt": 2, "vector": (15, 8)}, writable=0xFF07
    )
    dma_status = Register(0x098, access="w1c", fields={"done": 0, "fault": 1, "range": 2})
    store_address = Register(0x0A0, 8, doc="in RAM")
    store_value = Register(0x0A8, 8)
    store_width = Register(0x0B0, access="wo", doc="does one store of 2, 4 or 8 bytes")


class ExerciserPorts(RegisterMap):
    """BAR 4."""

    index = Register(0x0, 1)
    data = Register(0x1, 1, doc="the byte that index selects")
    swapped = Register(0x2, 2, doc="reads with its bytes swapped")
    reads = Register(0x4, 4, access="ro", doc="counts its own reads")
    scratch = Register(0x8, 4)


class _Function(PciModel):
    """What physical and virtual exercisers have in common."""

    vendor_id, revision = 0x1234, 0x01
    class_code = 0xFF0000
    subsystem_vendor_id, subsystem_id = 0x1234, 0x0001

    memory = Option(int, 1 << 20, "bytes of the memory BAR", check=_bar_size)
    msi = Option(int, 4, "MSI vectors, 0 for no capability", check=_msi_count)
    msix = Option(int, 8, "MSI-X vectors, 0 for no capability and no BAR 1", check=_msix_count)
    flr = Option(bool, True, "function level reset")
    dma_delay = Option(float, 0.0, "seconds that a transfer takes", check=not_negative)
    migration = Option(bool, False, "state can be saved and resumed, DMA can be logged")

    regs = RegisterBar(0, ExerciserRegisters)
    ram = MemoryBar(2, memory)

    def build_capabilities(self) -> tuple[Capability, ...]:
        built: list[Capability] = []
        for cap in self.capabilities:
            if isinstance(cap, PciExpress):
                built.append(PciExpress(self.flr, speed=cap.speed, width=cap.width))
            elif isinstance(cap, Msi):
                built += [Msi(self.msi, maskable=True)] if self.msi else []
            elif isinstance(cap, MsiX):
                built += [MsiX(self.msix, bar=cap.bar)] if self.msix else []
            else:
                built.append(cap)
        return tuple(built)

    def on_reset(self) -> None:
        self.regs.memory_size = len(self.ram)

    # -- migration -------------------------------------------------------------------------------

    @property
    def migratable(self) -> bool:
        return self.migration

    # -- events, counter, reset ------------------------------------------------------------------

    @ExerciserRegisters.raise_events.on_write
    def set_events(self, bits: int) -> None:
        self.regs.events |= bits

    @ExerciserRegisters.tick.on_write
    def count(self, ticks: int) -> None:
        self.regs.counter += ticks

    @ExerciserRegisters.counter.on_read
    def take_counter(self) -> int:
        counted, self.regs.counter = self.regs.counter, 0
        return counted

    @ExerciserRegisters.soft_reset.on_write
    def reset_requested(self, _: int) -> None:
        self.reset()

    # -- interrupts ------------------------------------------------------------------------------

    @ExerciserRegisters.interrupt.on_write
    def interrupt_requested(self, vector: int) -> None:
        delay = self.regs.interrupt_delay
        if delay:
            self.after(delay / 1e6, partial(self.interrupt, vector))
        else:
            self.interrupt(vector)

    @ExerciserRegisters.intx.on_read
    def intx_level(self) -> int:
        return int(self.interrupts.level)

    @ExerciserRegisters.intx.on_write
    def intx_written(self, level: int) -> None:
        self.intx(bool(level & 1))

    # -- DMA -------------------------------------------------------------------------------------

    @ExerciserRegisters.dma_control.on_store
    def control(self, old: int, new: int) -> int:
        if old & GO:
            return old
        if new & GO:
            self.after(self.dma_delay, self.transfer)
        return new

    def transfer(self) -> None:
        """Move the bytes between RAM and the memory BAR; says in the status how it went."""
        regs, control = self.regs, self.regs.dma_control
        first, length = regs.dma_offset, regs.dma_length
        status = DONE
        try:
            if first + length > len(self.ram):
                status |= RANGE
            elif control & TO_RAM:
                self.dma.write(regs.dma_address, bytes(self.ram[first : first + length]))
            else:
                self.ram[first : first + length] = self.dma.read(regs.dma_address, length)
        except DmaFault:
            status |= FAULT
        regs.dma_status |= status
        regs.dma_control = control & ~GO
        if control & INTERRUPT:
            self.interrupt(control >> 8)

    @ExerciserRegisters.store_width.on_write
    def store(self, width: int) -> None:
        """One aligned store; an address or width that cannot be stored at once does nothing."""
        address, value = self.regs.store_address, self.regs.store_value
        if width not in (2, 4, 8) or address % width:
            return
        try:
            self.dma.store(address, value & ((1 << 8 * width) - 1), width)
        except DmaFault:
            self.regs.dma_status |= FAULT


class ExerciserVf(_Function):
    """A virtual function of an exerciser: its registers, memory, MSI and MSI-X, and a reset of its own."""

    device_id = 0x0E8F
    capabilities = (Msi(4, maskable=True), PciExpress(flr=True, speed=3, width=4), MsiX(8, bar=1))


class Exerciser(_Function):
    """A function with one of everything: every kind of BAR, interrupt, capability and register."""

    device_id = 0x0E8E

    vfs = Option(int, 0, "virtual functions that it can have, 0 for no SR-IOV", check=_vf_count)

    ports = RegisterBar(4, ExerciserPorts, size=16, kind=BarKind.IO)

    capabilities = (
        PowerManagement(),
        Msi(4, maskable=True),
        PciExpress(flr=True, speed=3, width=4),
        MsiX(8, bar=1),
        AdvancedErrorReporting(),
        SerialNumber(0x0E8E_0000_0000_0001),
    )

    def build_capabilities(self) -> tuple[Capability, ...]:
        """Those of the base, and SR-IOV if the option ``vfs`` is not 0."""
        built = super().build_capabilities()
        if not self.vfs:
            return built
        options: dict[str, object] = {"memory": self.memory, "msi": self.msi, "msix": self.msix}
        options |= {"flr": self.flr, "dma_delay": self.dma_delay, "migration": self.migration}
        return (*built, Sriov(ExerciserVf, self.vfs, options=options))

    def build_rom(self) -> bytes:
        """A ROM image with the function's identity."""
        return rom_image(self.vendor_id, self.device_id, self.class_code)

    def on_reset(self) -> None:
        """As the base; the table of the ports is zeroed."""
        super().on_reset()
        self.table = bytearray(256)

    @property
    def migratable(self) -> bool:
        """The option ``migration``, for a function without virtual ones."""
        return self.migration and not self.vfs  # then its virtual functions are what moves

    def save(self) -> bytes:
        """The table of the ports."""
        return bytes(self.table)

    def load(self, state: bytes) -> None:
        """Take over a table. Raises InvalidArgument for another size."""
        if len(state) != len(self.table):
            raise InvalidArgument(f"a table of {len(state)} bytes")
        self.table[:] = state

    @ExerciserPorts.data.on_read
    def table_read(self) -> int:
        """The entry of the table that the index selects."""
        return self.table[self.ports.index]

    @ExerciserPorts.data.on_write
    def table_write(self, value: int) -> None:
        """Store an entry of the table that the index selects."""
        self.table[self.ports.index] = value

    @ExerciserPorts.swapped.on_read
    def read_swapped(self) -> int:
        """What was stored, with its two bytes exchanged."""
        value = self.ports.swapped
        return value >> 8 | (value & 0xFF) << 8

    @ExerciserPorts.reads.on_read
    def read_reads(self) -> int:
        """How often this register has been read, this read included."""
        self.ports.reads += 1
        return self.ports.reads


def rom_image(vendor: int, device: int, class_code: int) -> bytes:
    """A valid expansion ROM: signature, PCI data structure, checksum (PCI 3.0, 6.3.1).

    A PC's firmware calls offset 3; the one instruction there returns.
    """
    rom = bytearray(ROM_SIZE)
    rom[0:4] = bytes((0x55, 0xAA, ROM_SIZE // 512, FAR_RETURN))
    rom[0x18:0x1A] = (0x1C).to_bytes(2, "little")
    rom[0x1C:0x34] = (
        b"PCIR"
        + vendor.to_bytes(2, "little")
        + device.to_bytes(2, "little")
        + bytes(2)
        + (0x18).to_bytes(2, "little")
        + bytes(1)
        + class_code.to_bytes(3, "little")
        + (ROM_SIZE // 512).to_bytes(2, "little")
        + bytes(2)  # revision of the code
        + bytes((0x00, 0x80))  # code for x86, the last image
        + bytes(2)
    )
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)
