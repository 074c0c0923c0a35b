"""How an interrupt leaves a function: MSI-X, MSI or the INTx wire, whichever the host has enabled.

A message (MSI, MSI-X) is a memory write of the device. It is sent while bus mastering is on and lost while
it is off, which is what happens to drivers that forget the bit on real hardware. A vector that the capability does not
have, or that has no eventfd, is lost as well; ``lost`` counts all of them. A masked vector sets its pending bit instead
and is sent when the mask goes away. ``report(kind, vector, reason, pending)`` is told of each that is not sent.

INTx is a level. The status bit shows it whatever happens outside; the wire follows it unless the command
register disables it or messages are enabled. The sink is told of changes of the wire only.

While ``held`` (the function is stopped for migration) nothing is sent and the wire does not go up: what becomes due
stays pending until ``hold(False)``. ``save`` and ``load`` move what no register holds, the level and the pending bits
of MSI-X; the table is the host's business.

This class owns the MSI-X table and the pending bits, which are in memory of their own or where programs can map them
(``msix.py``), and reads the rest from configuration space. While something is pending it asks ``watch`` for looks at a
table whose masks can change without an event. It
masks nothing on its own: that is the driver's business (vfio-pci masks INTx when it fires).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.drivers.pci.hardware import InterruptSink
    from uvfio.kit.pci.capability import Msi, MsiX
    from uvfio.kit.pci.config import ConfigSpace
    from uvfio.kit.pci.msix import MsixTable
    from uvfio.kit.register import RegisterMap

__all__ = ["Interrupts", "check_table"]

_TABLE_WIDTHS = (4, 8)
NO_DRIVER = "no driver uses the device"
NO_EVENT = "the program has set no eventfd for it"
MASKED = "the vector is masked"
HELD = "the function is stopped for migration"


def check_table(cap: MsiX, registers: type[RegisterMap], name: str) -> None:
    """ValueError if the table or the pending bits of ``cap`` hide registers of the BAR that they are in."""
    parts = (("table", cap.table, cap.table_size), ("pending bits", cap.pba, cap.pba_size))
    for what, first, size in parts:
        hidden = [registers.describe(at) for at, _, _ in registers.touched(first, size)]
        if hidden:
            shown = ", ".join(hidden[:4]) + (f" and {len(hidden) - 4} more" if hidden[4:] else "")
            raise ValueError(
                f"MsiX({cap.vectors}, bar={cap.bar}): registers of {name} are hidden by the {what} at "
                f"{first:#x}-{first + size - 1:#x} of BAR {cap.bar}: {shown}; give it another BAR, or table= "
                f"and pba= from {registers.span:#x} on"
            )


class Interrupts:
    """The interrupt logic of one function. ``msi`` and ``msix`` come with the offset of their capability."""

    def __init__(
        self,
        config: ConfigSpace,
        msi: tuple[Msi, int] | None,
        msix: tuple[MsiX, int] | None,
        report: Callable[[str, int, str, bool], None] | None = None,
    ) -> None:
        self._report = report
        self.sink: InterruptSink | None = None
        self.lost = 0
        self.held = False
        self.level = False
        self.wire = False
        self._config = config
        self._msi = msi[0] if msi else None
        self._msi_at = msi[1] if msi else 0
        self._msix = msix[0] if msix else None
        self._msix_at = msix[1] if msix else 0
        self.table: MsixTable | None = None
        self._pending = 0
        self._watch: Callable[[], Callable[[], None]] | None = None
        self._stop: Callable[[], None] | None = None
        config.on_write(pci.PCI_COMMAND, self.update)
        if self._msi:
            config.on_write(self._msi_at + pci.PCI_MSI_FLAGS, self.update)
            if self._msi.maskable:
                config.on_write(self._msi_at + self._msi.mask_at, self.update)
        if self._msix:
            config.on_write(self._msix_at + pci.PCI_MSIX_FLAGS, self.update)
            from uvfio.kit.pci.msix import own_table

            self.table = own_table(self._msix)
        self.reset()

    def place(
        self, table: MsixTable, watch: Callable[[], Callable[[], None]] | None = None
    ) -> None:
        """The table is there from now on. ``watch`` begins looks (``look``) every few milliseconds, until the function
        that it returns is called."""
        self.table = table
        self._watch = watch
        self.reset_table()

    # -- what is enabled -------------------------------------------------------------------------

    @property
    def msi_enabled(self) -> bool:
        """Whether the host has enabled MSI."""
        at = self._msi_at
        return bool(at and self._config.data[at + pci.PCI_MSI_FLAGS] & pci.PCI_MSI_FLAGS_ENABLE)

    @property
    def msix_enabled(self) -> bool:
        """Whether the host has enabled MSI-X."""
        return bool(self._msix_at and self._msix_flags() & pci.PCI_MSIX_FLAGS_ENABLE)

    # -- the device's side -----------------------------------------------------------------------

    def send(self, vector: int) -> None:
        """Interrupt ``vector``; without messages enabled: raise the INTx level.

        MSI with fewer vectors allotted than the device has uses the low bits of the number. A vector
        that the capability does not have is lost.
        """
        if self.msix_enabled:
            self._send_msix(vector)
        elif self.msi_enabled:
            assert self._msi is not None
            if not 0 <= vector < self._msi.vectors:
                self.lose(
                    vector, f"Msi({self._msi.vectors}) has vectors 0 to {self._msi.vectors - 1}"
                )
                return
            allotted = 1 << (self._msi_flags() & pci.PCI_MSI_FLAGS_QSIZE) // 0x10
            self._send_msi(vector & (allotted - 1))
        elif self._config.data[pci.PCI_INTERRUPT_PIN]:
            self.set_level(True)
        else:
            self.lose(0, "neither MSI nor MSI-X is enabled, and the function has no interrupt pin")

    def lose(self, vector: int, reason: str, pending: bool = False) -> None:
        """Count and report ``vector`` as lost, or only report it as pending."""
        if not pending:
            self.lost += 1
        if self._report is not None:
            kind = "MSI-X" if self.msix_enabled else "MSI" if self.msi_enabled else "INTx"
            self._report(kind, vector, reason, pending)

    def set_level(self, level: bool) -> None:
        """The device's INTx condition."""
        if level != self.level:
            self.level = level
            self.update()
            if level and not self.wire and not (self.msi_enabled or self.msix_enabled):
                self._explain_level()

    def _explain_level(self) -> None:
        """Report why the wire does not follow the level."""
        config = self._config
        if not config.data[pci.PCI_INTERRUPT_PIN]:
            self.lose(0, "the function has no interrupt pin")
        elif config.get(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_INTX_DISABLE:
            self.lose(0, "INTx is disabled in the command register", pending=True)
        elif self.held:
            self.lose(0, HELD, pending=True)

    def reset(self) -> None:
        """Nothing pending, every MSI-X entry masked, INTx low (the sink is told)."""
        self.reset_table()
        self.level = False
        self.update()

    def reset_table(self) -> None:
        """Nothing pending, every MSI-X entry masked."""
        self._set_pending(0)
        if self.table is not None:
            self.table.reset()

    def look(self) -> bool:
        """Send what is pending and not masked any more; returns whether there was something."""
        before = self._pending
        if before and self.msix_enabled and not self.held:
            self._flush_msix()
        return self._pending != before

    def end(self) -> None:
        """The function is gone: nobody looks at its table."""
        self._set_pending(0)

    def update(self) -> None:
        """Configuration space or the level changed: move the wire, send what was pending."""
        config = self._config
        bit = pci.PCI_STATUS_INTERRUPT if self.level and config.data[pci.PCI_INTERRUPT_PIN] else 0
        config.data[pci.PCI_STATUS] = config.data[pci.PCI_STATUS] & ~pci.PCI_STATUS_INTERRUPT | bit
        disabled = config.get(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_INTX_DISABLE
        wire = bool(bit) and not (disabled or self.msi_enabled or self.msix_enabled)
        if wire != self.wire and not (wire and self.held):
            self.wire = wire
            if self.sink is None:
                if wire:
                    self.lose(0, NO_DRIVER, pending=True)
            elif not self.sink.intx(wire) and wire:
                self.lose(0, NO_EVENT, pending=True)
        if self.held:
            return
        if self.msix_enabled and self._pending:
            self._flush_msix()
        elif self.msi_enabled and self._msi and self._msi.maskable:
            self._flush_msi()

    # -- migration -------------------------------------------------------------------------------

    def hold(self, held: bool) -> None:
        """Send nothing from now on, or again."""
        self.held = held
        self.update()

    def save(self) -> bytes:
        """Level (1 byte) and the pending bits of MSI-X."""
        return bytes((self.level,)) + self._pending.to_bytes(self._vectors // 8 + 1, "little")

    def load(self, state: bytes) -> None:
        """What ``save`` of the same function gave. ValueError if it has another size."""
        if len(state) != self._vectors // 8 + 2 or state[0] > 1:
            raise ValueError(f"{len(state)} bytes of interrupt state")
        self.level = bool(state[0])
        self._set_pending(int.from_bytes(state[1:], "little") & (1 << self._vectors) - 1)
        self.update()

    # -- messages --------------------------------------------------------------------------------

    def _deliver(self, vector: int, send: Callable[[InterruptSink], bool]) -> None:
        """Send a message, or lose it."""
        if self.held:
            self.lose(vector, HELD)
        elif not self._config.data[pci.PCI_COMMAND] & pci.PCI_COMMAND_MASTER:
            self.lose(vector, "bus mastering is off")
        elif self.sink is None:
            self.lose(vector, NO_DRIVER)
        elif not send(self.sink):
            self.lose(vector, NO_EVENT)

    def _send_msi(self, vector: int) -> None:
        if self._msi and self._msi.maskable:
            at = self._msi_at + self._msi.mask_at
            if self._config.get(at, 4) >> vector & 1:
                self._config.put(at + 4, 4, self._config.get(at + 4, 4) | 1 << vector)
                self.lose(vector, MASKED, pending=True)
                return
        self._deliver(vector, lambda sink: sink.msi(vector))

    def _flush_msi(self) -> None:
        assert self._msi is not None
        at = self._msi_at + self._msi.mask_at
        masked, pending = self._config.get(at, 4), self._config.get(at + 4, 4)
        ready = pending & ~masked
        if ready:
            self._config.put(at + 4, 4, pending & masked)
            for vector in range(self._msi.vectors):
                if ready >> vector & 1:
                    self._send_msi(vector)

    def _send_msix(self, vector: int) -> None:
        if not 0 <= vector < self._vectors:
            last = self._vectors - 1
            self.lose(vector, f"MsiX({last + 1}) has vectors 0 to {last}")
        elif self.held or self._msix_masked(vector):
            self._set_pending(self._pending | 1 << vector)
            self.lose(vector, HELD if self.held else MASKED, pending=True)
        else:
            self._deliver(vector, lambda sink: sink.msix(vector))

    def _flush_msix(self) -> None:
        pending = self._pending
        for vector in range(pending.bit_length()):
            if pending >> vector & 1 and not self._msix_masked(vector):
                self._set_pending(self._pending & ~(1 << vector))
                self._send_msix(vector)

    def _set_pending(self, pending: int) -> None:
        if pending == self._pending:
            return
        self._pending = pending
        if self.table is not None:
            self.table.show(pending)
        if pending and self._watch is not None and self._stop is None:
            self._stop = self._watch()
        elif not pending and self._stop is not None:
            stop, self._stop = self._stop, None
            stop()

    @property
    def _vectors(self) -> int:
        return self.table.vectors if self.table is not None else 0

    def _msix_masked(self, vector: int) -> bool:
        if self._msix_flags() & pci.PCI_MSIX_FLAGS_MASKALL:
            return True
        return self.table is None or self.table.masked(vector)

    def _msi_flags(self) -> int:
        return self._config.get(self._msi_at + pci.PCI_MSI_FLAGS, 2)

    def _msix_flags(self) -> int:
        return self._config.get(self._msix_at + pci.PCI_MSIX_FLAGS, 2)

    # -- table and pending bits in their BAR -----------------------------------------------------

    def read_table(self, offset: int, size: int) -> int:
        """A bus read of the table. Widths other than 4 and 8 are answered too."""
        return self.table.read(offset, size) if self.table is not None else 0

    def write_table(self, offset: int, value: int, size: int) -> None:
        """A bus write of 4 or 8 aligned bytes of the table; other widths are undefined and ignored."""
        end = self._vectors * pci.PCI_MSIX_ENTRY_SIZE
        if self.table is None or size not in _TABLE_WIDTHS or offset % size or offset + size > end:
            return
        self.table.write(offset, value, size)
        self.look()

    def read_pending(self, offset: int, size: int) -> int:
        """A bus read of the pending bits, which are read-only."""
        return self._pending >> 8 * offset & ((1 << 8 * size) - 1)
