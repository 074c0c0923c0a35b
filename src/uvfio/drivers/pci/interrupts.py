"""Interrupts of a PCI function: which kind is in use, where its events go, what the hardware is told.

A function has three kinds and a program uses one at a time::

    index 0  INTx   one level interrupt      core.irq.LevelInterrupt
    index 1  MSI    1-32 messages            core.irq.EdgeVectors
    index 2  MSI-X  1-2048 messages          core.irq.EdgeVectors

    mode     set(INTx, 1)   set(MSI, n)   set(MSI-X, n)   set(kind of mode, 0)   set(other kind, 0)
    NONE     -> INTX        -> MSI        -> MSIX         -                      refused, INTx accepts
    INTX     -> INTX        refused       refused         -> NONE                refused
    MSI      refused        refused       refused         -> NONE                refused, INTx accepts
    MSIX     refused        refused       refused         -> NONE                refused, INTx accepts

The driver switches the capability on when a program sets events for MSI or MSI-X; a program's own writes to
those registers never do it. While a message kind is in use the
level interrupt is disabled in the hardware, as the PCI specification asks.

The level interrupt is masked before it is signalled: by INTX_DISABLE where the function has a working one
(PCI 2.3), else in this object alone, which is what disabling the interrupt line at the host's controller
amounts to.

An *unmask event* of a program unmasks INTx at each signal, until the program ends that or closes its eventfd: one that
nobody can signal any more does not count (virqfd_wakeup, EPOLLHUP, in drivers/vfio/virqfd.c). By 2011 it is
independent of the events of INTx; by mainline it goes with INTx (``irqset.py``).

Invariants: a failed set leaves nothing bound, programmed or busy; each event that was taken over is closed
exactly once, when it is dropped. All methods take the device's lock, hardware may call from any thread.

Does not: read the program's descriptors, or know the program's view of the registers (``config.py``).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from uvfio.core.bus import IrqInfo
from uvfio.core.irq import EdgeVectors, LevelInterrupt
from uvfio.drivers.pci.config import log2_ceil
from uvfio.errors import Busy, InvalidArgument, NoSuchDevice
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import RLock

    from uvfio.core.seams import Event
    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["INTX", "MSI", "MSIX", "NUM_IRQS", "Interrupts", "Mode"]

INTX, MSI, MSIX = range(3)
NUM_IRQS = 3
_NAMES = ("INTx", "MSI", "MSI-X")
_MOST_MSI = 32

# Where messages of an x86 host go. No model looks at it, but a program that reads the registers through
# another door must see an address that an interrupt can have.
_MESSAGE_ADDRESS = 0xFEE00000


class Mode(Enum):
    """Which kind of interrupt is in use."""

    NONE = None
    INTX = INTX
    MSI = MSI
    MSIX = MSIX


class Interrupts:
    """The interrupts of one open or closed device. It is the function's ``InterruptSink``."""

    def __init__(self, function: PciFunction, layout: CapabilityMap, lock: RLock) -> None:
        self._function = function
        self._lock = lock
        self._msi = layout.find(pci.PCI_CAP_ID_MSI)
        self._msix = layout.find(pci.PCI_CAP_ID_MSIX)
        self._mode = Mode.NONE
        self._level = LevelInterrupt(self._gate)
        self._vectors = EdgeVectors()
        self._unmask_event: tuple[Event, Callable[[], None]] | None = None
        self._has_disable_bit = True
        self._infos = (
            IrqInfo(INTX, 1, level=True, name="INTx")
            if self._pin()
            else IrqInfo(INTX, 0, name="INTx"),
            IrqInfo(MSI, self._count_msi(), name="MSI"),
            IrqInfo(MSIX, self._count_msix(), name="MSI-X"),
        )

    # What there is

    @property
    def mode(self) -> Mode:
        """The kind in use."""
        return self._mode

    @property
    def msi_vectors(self) -> int:
        """How many MSI vectors are set; 0: MSI is not in use."""
        return len(self._vectors) if self._mode is Mode.MSI else 0

    @property
    def exclusive(self) -> bool:
        """Whether the line could not be shared: the function cannot mask INTx by itself (before PCI 2.3)."""
        return not self._has_disable_bit

    def info(self, index: int) -> IrqInfo:
        """What interrupt ``index`` is. InvalidArgument for an unknown one."""
        self._check_index(index)
        return self._infos[index]

    # Life of the device

    def start(self) -> None:
        """The device is being opened: test and clear INTX_DISABLE, listen to the function."""
        with self._lock:
            function = self._function
            command = function.config_read(pci.PCI_COMMAND, 2)
            flipped = command ^ pci.PCI_COMMAND_INTX_DISABLE
            function.config_write(pci.PCI_COMMAND, flipped, 2)
            works = function.config_read(pci.PCI_COMMAND, 2) == flipped
            self._has_disable_bit = works or not self._pin()
            function.config_write(pci.PCI_COMMAND, command & ~pci.PCI_COMMAND_INTX_DISABLE, 2)
            function.connect(self)
            self._level.wire(function.intx_asserted)

    def stop(self) -> None:
        """The device is being closed: drop every event, switch every kind off, listen no more."""
        with self._lock:
            try:
                self._drop_unmask_event()
                self._drop()
            finally:
                self._level.guest_mask(False)
                self._level.wire(False)
                self._function.connect(None)

    def reprogram(self) -> None:
        """The hardware was reset: tell it again what is in use."""
        with self._lock:
            self._program()
            self._level.wire(self._function.intx_asserted)

    # What a program asks

    def check(self, index: int, count: int) -> None:
        """Refuse what SET_IRQ_EVENTFDS refuses before it looks at descriptors.

        InvalidArgument for: an unknown index; INTx without a line, or with another count than 0 and 1;
        anything while another kind is in use, but dropping INTx; messages that are in use already, or
        dropping ones that are not; more vectors than there are. An accepted call on INTx drops the event
        that is bound, whatever follows: the 2011 driver did, and its clients set INTx without dropping it.
        """
        self._check_index(index)
        with self._lock:
            available = self._infos[index].count
            if index == INTX:
                if not available:
                    raise self._refuse("has no INTx line (interrupt pin 0)")
                if not 0 <= count <= 1:
                    raise self._refuse(f"INTx is one interrupt, not {count}")
                if self._mode is Mode.INTX:
                    self._drop()
                if count and self._mode is not Mode.NONE:
                    raise self._in_use(index)
                return
            if self._mode.value not in (None, index):
                raise self._in_use(index)
            active = self._mode is not Mode.NONE
            if count < 0:
                raise self._refuse(f"{_NAMES[index]} cannot have {count} vectors")
            if active and count:
                raise self._in_use(index)
            if not active and not count:
                raise self._refuse(f"{_NAMES[index]} is not in use, there is nothing to drop")
            if count > available:
                raise self._refuse(f"has {available} {_NAMES[index]} vectors, not {count}")

    def set(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events`` from interrupt ``index``; none: drop what is set and switch the kind off.

        The errors are those of ``check``, then what the function raises when it is programmed. The events
        are taken over on success only.
        """
        with self._lock:
            self.check(index, len(events))
            if not events:
                if self._mode.value == index:
                    self._drop()
                return
            self._mode = Mode(index)
            try:
                if index != INTX:
                    # Bound first: a message may be pending in the hardware and arrive at once.
                    self._vectors.bind(events)
                self._program()
                if index == INTX:
                    self._level.bind(events[0])
            except BaseException:
                self._mode = Mode.NONE
                self._vectors.unbind()
                self._level.unbind()
                self._program()
                raise

    def unmask(self, index: int) -> None:
        """INTx may fire again, and does if the line is still asserted. InvalidArgument for other indexes."""
        self._check_level(index)
        with self._lock:
            self._level.unmask()

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let each signal of ``event`` unmask INTx, also one that is pending; None ends that.

        InvalidArgument for another index, Busy if one is set, NoSuchDevice (ENODEV) if there is none to
        end. The event is taken over on success only.
        """
        self._check_level(index)
        with self._lock:
            if self._unmask_event is not None and self._unmask_event[0].abandoned():
                self._drop_unmask_event()
            if event is None:
                if self._unmask_event is None:
                    raise NoSuchDevice(f"{self._function.name}: INTx has no unmask event")
                self._drop_unmask_event()
            elif self._unmask_event is not None:
                raise Busy(
                    f"{self._function.name}: INTx has an unmask event already",
                    "unset it with fd -1",
                )
            else:
                self._unmask_event = event, event.watch(self._on_unmask_event)

    def guest_mask(self, on: bool) -> None:
        """The program set or cleared INTX_DISABLE in its view of the command register."""
        with self._lock:
            self._level.guest_mask(on)

    # What the function tells (InterruptSink)

    def intx(self, asserted: bool) -> bool:
        """The INTx wire changed to this level. Returns whether an event is set for it."""
        with self._lock:
            self._level.wire(asserted)
            return self._level.bound

    def msi(self, vector: int) -> bool:
        """An MSI message was sent; dropped, and False, while MSI is not in use or the vector has no event."""
        with self._lock:
            return self._mode is Mode.MSI and self._vectors.fire(vector)

    def msix(self, vector: int) -> bool:
        """An MSI-X message was sent; dropped, and False, while MSI-X is not in use or the vector has no event."""
        with self._lock:
            return self._mode is Mode.MSIX and self._vectors.fire(vector)

    # Dropping

    def _drop(self) -> None:
        self._mode = Mode.NONE
        events = self._vectors.unbind()
        level = self._level.unbind()
        try:
            self._program()
        finally:
            for event in events if level is None else (level,):
                event.close()

    def _drop_unmask_event(self) -> None:
        if self._unmask_event is not None:
            (event, cancel), self._unmask_event = self._unmask_event, None
            cancel()
            event.close()

    def _on_unmask_event(self) -> None:
        with self._lock:
            self._level.unmask()

    # Hardware

    def _program(self) -> None:
        """Bring the function's registers to what ``mode`` says. Switching off goes before switching on."""
        count = len(self._vectors)
        if self._mode is not Mode.MSI:
            self._program_msi(0)
        if self._mode is not Mode.MSIX:
            self._program_msix(0)
        self._gate(self._level.open)
        if self._mode is Mode.MSI:
            self._program_msi(count)
        elif self._mode is Mode.MSIX:
            self._program_msix(count)

    def _program_msi(self, count: int) -> None:
        if not self._msi:
            return
        function, at = self._function, self._msi + pci.PCI_MSI_FLAGS
        flags = function.config_read(at, 2)
        wanted = flags & ~(pci.PCI_MSI_FLAGS_ENABLE | pci.PCI_MSI_FLAGS_QSIZE)
        if count:
            wide = flags & pci.PCI_MSI_FLAGS_64BIT
            function.config_write(self._msi + pci.PCI_MSI_ADDRESS_LO, _MESSAGE_ADDRESS, 4)
            if wide:
                function.config_write(self._msi + pci.PCI_MSI_ADDRESS_HI, 0, 4)
            data = pci.PCI_MSI_DATA_64 if wide else pci.PCI_MSI_DATA_32
            function.config_write(self._msi + data, 0, 2)
            wanted |= pci.PCI_MSI_FLAGS_ENABLE | log2_ceil(count) << 4
        if wanted != flags:
            function.config_write(at, wanted, 2)

    def _program_msix(self, count: int) -> None:
        if not self._msix:
            return
        function, at = self._function, self._msix + pci.PCI_MSIX_FLAGS
        flags = function.config_read(at, 2)
        wanted = flags & ~(pci.PCI_MSIX_FLAGS_ENABLE | pci.PCI_MSIX_FLAGS_MASKALL)
        if count:
            # Enabled while masked as a whole, so that no entry fires before all are written.
            wanted |= pci.PCI_MSIX_FLAGS_ENABLE
            function.config_write(at, wanted | pci.PCI_MSIX_FLAGS_MASKALL, 2)
            self._write_table(count)
            flags = wanted | pci.PCI_MSIX_FLAGS_MASKALL
        if wanted != flags:
            function.config_write(at, wanted, 2)

    def _write_table(self, count: int) -> None:
        """Give the first ``count`` entries of the MSI-X table a message and unmask them; mask the others.

        The host does this on real hardware, so a program that only sets events need not touch the table.
        """
        function = self._function
        table = function.config_read(self._msix + pci.PCI_MSIX_TABLE, 4)
        bir, start = table & pci.PCI_MSIX_TABLE_BIR, table & pci.PCI_MSIX_TABLE_OFFSET
        size = self._infos[MSIX].count
        bar = function.bars.get(bir)
        if bar is None or start + size * pci.PCI_MSIX_ENTRY_SIZE > bar.size:
            raise self._refuse(
                f"the MSI-X table of {size} entries at BAR {bir} offset {start:#x} is outside the BAR",
                "the device model is wrong",
            )
        write = function.bar_write
        for vector in range(size):
            entry = start + vector * pci.PCI_MSIX_ENTRY_SIZE
            if vector < count:
                write(bir, entry + pci.PCI_MSIX_ENTRY_LOWER_ADDR, _MESSAGE_ADDRESS, 4)
                write(bir, entry + pci.PCI_MSIX_ENTRY_UPPER_ADDR, 0, 4)
                write(bir, entry + pci.PCI_MSIX_ENTRY_DATA, vector, 4)
            masked = 0 if vector < count else pci.PCI_MSIX_ENTRY_CTRL_MASKBIT
            write(bir, entry + pci.PCI_MSIX_ENTRY_VECTOR_CTRL, masked, 4)

    def _gate(self, is_open: bool) -> None:
        """INTX_DISABLE in the hardware: clear only if the level interrupt may pass and no messages are used."""
        if not self._has_disable_bit:
            return
        command = self._function.config_read(pci.PCI_COMMAND, 2)
        wanted = command & ~pci.PCI_COMMAND_INTX_DISABLE
        if not is_open or self._mode in (Mode.MSI, Mode.MSIX):
            wanted |= pci.PCI_COMMAND_INTX_DISABLE
        if wanted != command:
            self._function.config_write(pci.PCI_COMMAND, wanted, 2)

    def _pin(self) -> int:
        return self._function.config_read(pci.PCI_INTERRUPT_PIN, 1)

    def _count_msi(self) -> int:
        if not self._msi:
            return 0
        flags = self._function.config_read(self._msi + pci.PCI_MSI_FLAGS, 2)
        return min(1 << ((flags & pci.PCI_MSI_FLAGS_QMASK) >> 1), _MOST_MSI)

    def _count_msix(self) -> int:
        if not self._msix:
            return 0
        flags = self._function.config_read(self._msix + pci.PCI_MSIX_FLAGS, 2)
        return (flags & pci.PCI_MSIX_FLAGS_QSIZE) + 1

    # Refusals

    def _check_index(self, index: int) -> None:
        if not 0 <= index < NUM_IRQS:
            raise self._refuse(f"interrupt {index} does not exist", "0 INTx, 1 MSI, 2 MSI-X")

    def _check_level(self, index: int) -> None:
        self._check_index(index)
        if index != INTX:
            raise self._refuse(f"{_NAMES[index]} cannot be masked", "only INTx (index 0) can")

    def _in_use(self, index: int) -> InvalidArgument:
        mode = _NAMES[self._mode.value]
        return self._refuse(
            f"{_NAMES[index]} cannot be set while {mode} is in use", f"drop {mode} first (count 0)"
        )

    def _refuse(self, why: str, hint: str = "") -> InvalidArgument:
        return InvalidArgument(f"{self._function.name}: {why}", hint)
