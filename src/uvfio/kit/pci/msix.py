"""Where the MSI-X table and the pending bits of a function are, for its interrupt logic and for programs.

    the table's BAR is              table and pending bits are in      a program that maps the BAR
    made for it, or registers       memory of their own                -
    memory, mapped                  the BAR's memory itself            sees and changes them as they are
    polled registers                registers of the BAR's map         sees them; stores are found by polling

An entry has four words: address (low, high), data, control. Only the mask bit of the control word means something to
the device. Pending bits are read-only; what a program stores there lasts until the device changes them.

A store through a mapping of memory causes no event. So whoever owns a ``MemoryTable`` looks again at the masks while
something is pending (``Interrupts.look``).

It does not know when a message is sent (``interrupt.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from uvfio.kit.register import RegisterArray, RegisterMap
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.kit.pci.capability import MsiX

__all__ = ["MemoryTable", "MsixTable", "RegisterTable", "own_table", "with_table"]

_ENTRY = pci.PCI_MSIX_ENTRY_SIZE
_WORDS = ("msix_address", "msix_address_high", "msix_data", "msix_control")
_WIDTHS = (4, 8)
_MASKED = pci.PCI_MSIX_ENTRY_CTRL_MASKBIT


class MsixTable(Protocol):
    """Table and pending bits of a function. Offsets count from the beginning of the table."""

    vectors: int

    def masked(self, vector: int) -> bool:
        """Whether the entry's mask bit is set."""

    def read(self, offset: int, size: int) -> int:
        """A bus read of the table."""

    def write(self, offset: int, value: int, size: int) -> None:
        """A bus write of 4 or 8 aligned bytes inside the table."""

    def show(self, pending: int) -> None:
        """The pending bits are these now, bit n for vector n."""

    def reset(self) -> None:
        """Every entry 0 and masked, nothing pending."""


class MemoryTable:
    """A table in the memory that ``memory()`` gives, at ``table``, and the pending bits at ``pba``."""

    def __init__(
        self, memory: Callable[[], memoryview], vectors: int, table: int, pba: int, pba_size: int
    ) -> None:
        self.vectors = vectors
        self._memory = memory
        self._table = table
        self._pba = pba
        self._pba_size = pba_size

    def masked(self, vector: int) -> bool:
        """Whether the entry's mask bit is set."""
        at = self._table + vector * _ENTRY + pci.PCI_MSIX_ENTRY_VECTOR_CTRL
        return bool(self._memory()[at] & _MASKED)

    def read(self, offset: int, size: int) -> int:
        """A bus read of the table."""
        at = self._table + offset
        return int.from_bytes(self._memory()[at : at + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """A bus write of 4 or 8 aligned bytes inside the table."""
        at = self._table + offset
        self._memory()[at : at + size] = value.to_bytes(size, "little")

    def show(self, pending: int) -> None:
        """The pending bits are these now."""
        end = self._pba + self._pba_size
        self._memory()[self._pba : end] = pending.to_bytes(self._pba_size, "little")

    def reset(self) -> None:
        """Every entry 0 and masked, nothing pending."""
        entry = bytes(pci.PCI_MSIX_ENTRY_VECTOR_CTRL) + _MASKED.to_bytes(4, "little")
        end = self._table + self.vectors * _ENTRY
        self._memory()[self._table : end] = entry * self.vectors
        self.show(0)


def own_table(cap: MsiX) -> MemoryTable:
    """A table in memory of its own."""
    memory = memoryview(bytearray(cap.table_size + cap.pba_size))
    return MemoryTable(lambda: memory, cap.vectors, 0, cap.table_size, cap.pba_size)


class RegisterTable:
    """A table in ``registers``, whose class is one that ``with_table`` made."""

    def __init__(self, registers: RegisterMap, vectors: int) -> None:
        self.vectors = vectors
        self._registers = registers
        found: dict[str, Any] = dict(type(registers).registers)
        self._slots = [found[name].slot for name in _WORDS]
        self._pending = found["msix_pending"]

    def masked(self, vector: int) -> bool:
        """Whether the entry's mask bit is set."""
        return bool(self._registers.values[self._slots[3] + vector] & _MASKED)

    def read(self, offset: int, size: int) -> int:
        """A bus read of the table."""
        first, values = offset & ~3, self._registers.values
        raw = b"".join(
            values[self._slot(at)].to_bytes(4, "little") for at in range(first, offset + size, 4)
        )
        return int.from_bytes(raw[offset - first : offset - first + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """A bus write of 4 or 8 aligned bytes inside the table."""
        for at in range(offset, offset + size, 4):
            self._registers.values[self._slot(at)] = value & 0xFFFFFFFF
            value >>= 32

    def show(self, pending: int) -> None:
        """The pending bits are these now."""
        for n in range(self._pending.count):
            self._registers.values[self._pending.slot + n] = pending >> 64 * n & (1 << 64) - 1

    def reset(self) -> None:
        """Every entry 0 and masked, nothing pending."""
        for at in range(0, self.vectors * _ENTRY, 4):
            masked = at % _ENTRY == pci.PCI_MSIX_ENTRY_VECTOR_CTRL
            self._registers.values[self._slot(at)] = _MASKED if masked else 0
        self.show(0)

    def _slot(self, offset: int) -> int:
        return int(self._slots[offset % _ENTRY >> 2]) + offset // _ENTRY


def with_table(registers: type[RegisterMap], cap: MsiX) -> type[RegisterMap]:
    """``registers`` with the table and the pending bits of ``cap`` among them. ValueError where they overlap others.

    The owner's ``interrupts.look`` is called after each write to the table.
    """
    key = registers, cap.vectors, cap.table, cap.pba, cap.pba_size // 8
    if key not in _made:
        _made[key] = _with_table(*key)
    return _made[key]


_made: dict[tuple[type[RegisterMap], int, int, int, int], type[RegisterMap]] = {}


def _with_table(
    registers: type[RegisterMap], vectors: int, table: int, pba: int, words: int
) -> type[RegisterMap]:
    body: dict[str, Any] = {"__doc__": registers.__doc__}
    for n, name in enumerate(_WORDS):
        reset = _MASKED if n == 3 else 0
        body[name] = RegisterArray(
            table + 4 * n, count=vectors, stride=_ENTRY, reset=reset, widths=_WIDTHS
        )
    body["msix_pending"] = RegisterArray(pba, 8, count=words, access="ro", widths=_WIDTHS)

    def msix_written(regs: RegisterMap, index: int, value: int) -> None:
        owner: Any = regs.owner
        owner.interrupts.look()

    for name in _WORDS:
        body[name].on_write(msix_written)
    body["msix_written"] = msix_written
    return type(registers.__name__, (registers,), body)
