"""``MainlinePci``: the operations of a PCI function that the mainline ABIs have and 2011 does not. With what
``VfioPciDevice`` adds it implements ``core.bus.MainlineDevice`` and ``TakesToken``.

Accesses differ from ``VfioPciDevice.read`` and ``write`` in four things:

    8-byte accesses      reach registers as one
    memory decoding      switched off by the program (or the function sleeps in D3hot): memory BARs and the ROM
                         answer DecodingOff; I/O BARs answer always; a virtual function has no bit
    outside              at and beyond the end InvalidArgument; configuration space BadAddress, never cut
    MSI-X table          reads ones and takes no writes: the host programs it
    mappings             loads and stores fault (SIGBUS) while memory decoding is off, in D3hot and in low power;
                         what is behind them stays. A reset is over before the next call

A bus reset reaches every function below the same bridge. Buses 00 have no bridge above them here.

Behaviour: drivers/vfio/pci/vfio_pci_rdwr.c (vfio_pci_bar_rw, vfio_pci_ioeventfd), vfio_pci_core.c
(vfio_pci_rw, hot reset, low power; vfio_pci_zap_and_down_write_memory_lock and the fault handler).
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from uvfio.drivers.life import VfioDevice
from uvfio.drivers.pci.bars import ROM_INDEX
from uvfio.drivers.window import RegisterWindow, Window
from uvfio.errors import (
    BadAddress,
    DecodingOff,
    Gone,
    InvalidArgument,
    UnknownCommand,
)
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.bus import IrqAction, IrqData, Region
    from uvfio.core.seams import Event
    from uvfio.drivers.pci.config import ConfigSpace
    from uvfio.drivers.pci.decoding import AccessRules
    from uvfio.drivers.pci.hardware import PciFunction
    from uvfio.drivers.pci.ioevents import Ioevents
    from uvfio.drivers.pci.irqset import IrqSets
    from uvfio.drivers.pci.sriov import TokenRule

__all__ = ["ConfigWindow", "MainlinePci"]

_WIDEST = 8
_CONFIG = 7
_WORD = struct.Struct("<I")


class ConfigWindow(Window):
    """Region 7. The space behind it exists while the device is open."""

    __slots__ = ("space",)

    def __init__(self, name: str, region: Region) -> None:
        super().__init__(name, region)
        self.space: ConfigSpace | None = None

    def read(self, offset: int, count: int) -> bytes:
        """As ``ConfigSpace.read``. Raises Gone while the device is not open."""
        return self._opened().read(offset, count)

    def write(self, offset: int, data: bytes) -> int:
        """As ``ConfigSpace.write``. Raises Gone while the device is not open."""
        return self._opened().write(offset, data)

    def _opened(self) -> ConfigSpace:
        if self.space is None:
            raise Gone(f"{self.name} is not open")
        return self.space


class MainlinePci(VfioDevice):
    """The operations of a PCI function that 2011 does not have."""

    function: PciFunction
    _interrupts: IrqSets
    _bar_read: Callable[[int, int, int], int]
    _bar_write: Callable[[int, int, int, int], None]
    _open_words: dict[int, int]
    _config: ConfigWindow
    _rules: AccessRules
    _ioevents: Ioevents
    _low_power: bool
    _shown: bool
    _silent: bool
    _decodes: bool
    _token: TokenRule
    _wakeup: Event | None

    def _command(self) -> int:
        """The command register as the program sees it. Raises Gone while the device is not open."""
        if self._config.space is None:
            raise Gone(f"{self.name} is not open")
        return self._config.space.command

    # Regions

    def load(self, index: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of region ``index``; registers with accesses of up to 8 bytes. Raises
        DecodingOff, and InvalidArgument or BadAddress outside the region; see the module's head."""
        if not count:
            return b""
        with self._lock:
            if count == 4 and not offset & 3 and 0 <= offset < self._open_words.get(index, 0):
                if not self._decodes:
                    self._check_word(index)
                return _WORD.pack(self._bar_read(index, offset, 4))
            count = self._admit(index, offset, count)
            window = self._window(index)
            read = window.read
            if isinstance(window, RegisterWindow):
                read = partial(window.read, widest=_WIDEST)
            if index != self._rules.table[0]:
                return read(offset, count)
            return b"".join(
                b"\xff" * size if hidden else read(at, size)
                for at, size, hidden in self._rules.pieces(index, offset, count)
            )

    def store(self, index: int, offset: int, data: bytes) -> int:
        """Store ``data`` at ``offset`` of region ``index``; returns the number of bytes taken. Raises as ``load``,
        and InvalidArgument for a region that is read-only."""
        if not data:
            return 0
        with self._lock:
            if len(data) == 4 and not offset & 3 and 0 <= offset < self._open_words.get(index, 0):
                if not self._decodes:
                    self._check_word(index)
                self._bar_write(index, offset, _WORD.unpack(data)[0], 4)
                return 4
            window = self._window(index)
            if index == ROM_INDEX or not window.region.writable:
                raise InvalidArgument(f"{self.function.name}: region {index} is read-only")
            count = self._admit(index, offset, len(data))
            if index == _CONFIG:
                taken = window.write(offset, data)
                self._settle_mappings()
                return taken
            write = window.write
            if isinstance(window, RegisterWindow):
                write = partial(window.write, widest=_WIDEST)
            for at, size, hidden in self._rules.pieces(index, offset, count):
                if not hidden:
                    start = at - offset
                    write(at, data[start : start + size])
            return count

    def _check_word(self, index: int) -> None:
        """``check_decoding``, and whether the next one may be left out: memory is decoded, and the function cannot
        sleep. Whatever changes that goes through the configuration space, so ``_settle_mappings`` asks again."""
        command = self._command()
        self._rules.check_decoding(index, command)
        self._decodes = not self._rules.power and bool(command & pci.PCI_COMMAND_MEMORY)

    def _admit(self, index: int, offset: int, count: int) -> int:
        """How many bytes of the access are inside; all of it refused as the module's head says."""
        size = self._window(index).region.size
        if index == _CONFIG:
            if offset < 0 or offset >= size or offset + count > size:
                raise BadAddress(
                    f"{self.function.name}: {offset:#x}+{count:#x} is not inside the {size:#x} bytes "
                    "of configuration space"
                )
            return count
        if not 0 <= offset < size:
            raise InvalidArgument(
                f"{self.function.name}: region {index} has {size:#x} bytes, none at {offset:#x}"
            )
        self._rules.check_decoding(index, self._command())
        return min(count, size - offset)

    # Interrupts

    def irq_count(self, index: int) -> int:
        """The number of interrupts of this kind. InvalidArgument for a kind that does not exist."""
        return self._interrupts.count(index)

    def irq_resizable(self, index: int) -> bool:
        """Whether a set of this kind may grow while it is in use."""
        return self._interrupts.resizable(index)

    def apply_irqs(
        self, index: int, action: IrqAction, start: int, count: int, data: IrqData
    ) -> None:
        """Do ``action``. The range is inside ``irq_count``. UnknownCommand for what the kind cannot do at all,
        InvalidArgument for what it cannot do now, NoVectors, what an ``EventSource`` raises."""
        self._interrupts.apply(index, action, start, count, data)

    # Stores on demand

    def set_ioevent(
        self, index: int, offset: int, width: int, value: int, event: Callable[[], Event] | None
    ) -> None:
        """Store ``value`` at ``offset`` of BAR ``index`` at each signal of the event; None removes exactly this
        store. Raises InvalidArgument outside of a BAR and in the MSI-X table, and as ``Ioevents``."""
        name = self.function.name
        if not 0 <= index < ROM_INDEX:
            raise InvalidArgument(f"{name}: region {index} is no BAR")
        with self._lock:
            if offset + width > self._window(index).region.size:
                raise InvalidArgument(f"{name}: {offset:#x}+{width} is not inside BAR {index}")
            bar, start, end = self._rules.table
            if index == bar and offset < end and offset + width > start:
                raise InvalidArgument(
                    f"{name}: {offset:#x} is in the MSI-X table", "the host writes it"
                )
            value &= (1 << 8 * width) - 1
            key = index, offset, width, value
            if event is None:
                self._ioevents.remove(key)
            else:
                data = value.to_bytes(width, "little")
                self._ioevents.add(key, event, lambda: self._store_on_demand(index, offset, data))

    def _store_on_demand(self, index: int, offset: int, data: bytes) -> None:
        try:
            self.store(index, offset, data)
        except DecodingOff:
            pass  # no device answers at that address

    # Tokens

    def check_token(self, token: bytes | None) -> None:
        """Check the VF token, 16 bytes or None. WrongToken if it differs, InvalidArgument if none is wanted."""
        self._token.check(token)

    def set_token(self, token: bytes | None) -> None:
        """Set the token that later opens must present. UnknownCommand for a device that has none; None only checks
        that."""
        own = self._token.own
        if own is None:
            raise UnknownCommand(
                f"{self.function.name} is no physical function and has no VF token"
            )
        if token is not None:
            own.uuid = token

    # Power

    def enter_low_power(self, wakeup: Event | None) -> None:
        """Put the device into low power; ``wakeup`` is signalled when it wakes. InvalidArgument if it is there."""
        with self._lock:
            if self._low_power:
                raise InvalidArgument(f"{self.function.name} is in low power already")
            self._low_power, self._wakeup = True, wakeup
            self._settle_mappings()

    def leave_low_power(self) -> None:
        """Leave low power; nothing if the device is not there."""
        with self._lock:
            wakeup, self._wakeup = self._wakeup, None
            self._low_power = False
            if wakeup is not None:
                wakeup.close()
            self._settle_mappings()

    # Mappings

    def _settle_mappings(self) -> None:
        """Mappings answer or fault, as the device is now. Between closing and opening they answer.

        NoMemory, NoSpace: they stay as they were, and the next change of the configuration space tries again.
        """
        self._decodes = False
        self._note_decoding()
        if self._opens:
            on = self._rules.virtual or self._command() & pci.PCI_COMMAND_MEMORY
            self._show_mappings(bool(on) and not self._low_power and not self._rules.asleep())

    def _note_decoding(self) -> None:
        """Work out whether memory BARs do not answer. The program changes that by the configuration space alone."""
        if self._config.space is not None:
            on = self._rules.virtual or self._command() & pci.PCI_COMMAND_MEMORY
            self._silent = not on or self._rules.asleep()

    def _show_mappings(self, visible: bool) -> None:
        if visible != self._shown:
            self.function.show_mappings(visible)
            self._shown = visible

    def _end_mainline(self) -> None:
        """The last close: what the program left behind goes."""
        self._ioevents.clear()
        self.leave_low_power()
