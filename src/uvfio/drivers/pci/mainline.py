"""The mainline interfaces of a PCI function beyond 2011; implements ``core.bus.MainlineDevice`` and
``TakesToken``.

Accesses differ from ``VfioPciDevice.read`` and ``write`` in four things:

    8-byte accesses      reach registers as one
    memory decoding      switched off by the program (or the function sleeps in D3hot): memory BARs and the ROM
                         answer DecodingOff; I/O BARs do not care, nor does a virtual function for the bit
    outside              at and beyond the end InvalidArgument; configuration space BadAddress, never cut
    MSI-X table          reads ones and takes no writes: the host programs it
    mappings             loads and stores fault (SIGBUS) while memory decoding is off, in D3hot and in low power;
                         what is behind them stays. A reset is over before anybody can look

``Ioevents`` are stores that the host makes for the program whenever an event is signalled. They end with the last
close of the device.

A bus reset reaches every function below the same bridge. Buses 00 have no bridge above them here.

Behaviour: drivers/vfio/pci/vfio_pci_rdwr.c (vfio_pci_bar_rw, vfio_pci_ioeventfd), vfio_pci_core.c
(vfio_pci_rw, hot reset, low power; vfio_pci_zap_and_down_write_memory_lock and the fault handler).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from uvfio.core.bus import Dependent, IrqAction, IrqData
from uvfio.drivers.pci.bars import ROM_INDEX
from uvfio.drivers.pci.hardware import BarKind
from uvfio.drivers.window import RegisterWindow
from uvfio.errors import (
    BadAddress,
    DecodingOff,
    InvalidArgument,
    NoSpace,
    NoSuchDevice,
    Overlap,
    UnknownCommand,
)
from uvfio.uapi import pci

if TYPE_CHECKING:
    from threading import RLock

    from uvfio.core.bus import BusDevice
    from uvfio.core.seams import Event
    from uvfio.drivers.pci.capabilities import CapabilityMap
    from uvfio.drivers.pci.hardware import PciFunction
    from uvfio.drivers.pci.irqset import IrqSets
    from uvfio.drivers.pci.sriov import TokenRule

__all__ = ["AccessRules", "Ioevents", "MainlinePci", "place_of"]

IOEVENTS_MAX = 1000
_WIDEST = 8
_CONFIG = 7
_WORD = struct.Struct("<I")


def place_of(name: str) -> tuple[int, int, int]:
    """Segment, bus, and device and function number of the address ``name``."""
    segment, bus, rest = name.split(":")
    device, function = rest.split(".")
    return int(segment, 16), int(bus, 16), int(device, 16) << 3 | int(function, 16)


class AccessRules:
    """Facts about one function that decide what an access may do."""

    __slots__ = ("_function", "_memory", "power", "table", "virtual")

    def __init__(self, function: PciFunction, layout: CapabilityMap) -> None:
        self._function = function
        self._memory = {n for n, bar in function.bars.items() if bar.kind is not BarKind.IO} | {
            ROM_INDEX
        }
        self.power = layout.find(pci.PCI_CAP_ID_PM)
        self.virtual = function.physfn is not None
        self.table = self._table(function, layout.find(pci.PCI_CAP_ID_MSIX))

    @staticmethod
    def _table(function: PciFunction, msix: int) -> tuple[int, int, int]:
        """(BAR, start, end) of the MSI-X table; BAR -1 without one."""
        if not msix:
            return -1, 0, 0
        table = function.config_read(msix + pci.PCI_MSIX_TABLE, 4)
        size = (function.config_read(msix + pci.PCI_MSIX_FLAGS, 2) & pci.PCI_MSIX_FLAGS_QSIZE) + 1
        start = table & pci.PCI_MSIX_TABLE_OFFSET
        return table & pci.PCI_MSIX_TABLE_BIR, start, start + size * pci.PCI_MSIX_ENTRY_SIZE

    def check_decoding(self, index: int, command: int) -> None:
        """DecodingOff if region ``index`` does not answer with this command register."""
        if index not in self._memory:
            return
        if not command & pci.PCI_COMMAND_MEMORY and not self.virtual:
            raise DecodingOff(
                f"{self._function.name}: memory decoding is off",
                "set bit 1 of the command register",
            )
        if self.asleep():
            raise DecodingOff(f"{self._function.name} sleeps in D3hot", "put it into D0 first")

    def asleep(self) -> bool:
        """Whether the function is in D3hot."""
        if not self.power:
            return False
        state = self._function.config_read(self.power + pci.PCI_PM_CTRL, 2)
        return state & pci.PCI_PM_CTRL_STATE_MASK == 3

    def pieces(self, index: int, offset: int, count: int) -> Iterable[tuple[int, int, bool]]:
        """The range as (offset, bytes, whether it is the MSI-X table's)."""
        bar, start, end = self.table
        if index != bar or offset >= end or offset + count <= start:
            yield offset, count, False
            return
        if offset < start:
            yield offset, start - offset, False
        low, high = max(offset, start), min(offset + count, end)
        yield low, high - low, True
        if offset + count > end:
            yield end, offset + count - end, False


class Ioevents:
    """Stores on demand: (BAR, offset, width, value) -> the event that asks for it."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], tuple[Event, Callable[[], None]]] = {}

    def add(
        self,
        key: tuple[int, int, int, int],
        event: Callable[[], Event],
        store: Callable[[], None],
    ) -> None:
        """Call ``store`` at each signal. Overlap, NoSpace, then what ``event`` raises."""
        if key in self._known:
            raise Overlap("an eventfd does exactly this store already", "remove it with fd -1")
        if len(self._known) >= IOEVENTS_MAX:
            raise NoSpace(f"there are {IOEVENTS_MAX} stores by eventfd, which is the most")
        got = event()
        self._known[key] = got, got.watch(store)

    def remove(self, key: tuple[int, int, int, int]) -> None:
        """NoSuchDevice if there is none."""
        found = self._known.pop(key, None)
        if found is None:
            raise NoSuchDevice("no eventfd does exactly this store")
        _end(found)

    def clear(self) -> None:
        """The device is closed."""
        known, self._known = self._known, {}
        for found in known.values():
            _end(found)


def _end(found: tuple[Event, Callable[[], None]]) -> None:
    event, cancel = found
    cancel()
    event.close()


class MainlinePci:
    """The part of ``VfioPciDevice`` that today's ABIs use. Its state is the device's."""

    function: PciFunction
    _lock: RLock
    _bar_read: Callable[[int, int, int], int]
    _bar_write: Callable[[int, int, int, int], None]
    _open_words: dict[int, int]
    _interrupts: IrqSets
    _rules: AccessRules
    _ioevents: Ioevents
    _opens: int
    _low_power: bool
    _shown: bool
    _decodes: bool
    _token: TokenRule
    _wakeup: Event | None

    if TYPE_CHECKING:
        from uvfio.drivers.window import Window

        def _window(self, index: int) -> Window: ...
        def _command(self) -> int: ...
        def _reset_and_restore(self) -> None: ...

    # Regions

    def load(self, index: int, offset: int, count: int) -> bytes:
        if not count:
            return b""
        with self._lock:
            if count == 4 and not offset & 3 and 0 <= offset < self._open_words.get(index, 0):
                if not self._decodes:
                    self._check_word(index)
                return _WORD.pack(self._bar_read(index, offset, 4))
            count = self._admit(index, offset, count)
            window = self._window(index)
            if not isinstance(window, RegisterWindow):
                return window.read(offset, count)
            if index != self._rules.table[0]:
                return window.read(offset, count, _WIDEST)
            return b"".join(
                b"\xff" * size if hidden else window.read(at, size, _WIDEST)
                for at, size, hidden in self._rules.pieces(index, offset, count)
            )

    def store(self, index: int, offset: int, data: bytes) -> int:
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
            if not isinstance(window, RegisterWindow):
                return window.write(offset, data[:count])
            for at, size, hidden in self._rules.pieces(index, offset, count):
                if not hidden:
                    start = at - offset
                    window.write(at, data[start : start + size], _WIDEST)
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
        return self._interrupts.count(index)

    def irq_resizable(self, index: int) -> bool:
        return self._interrupts.resizable(index)

    def apply_irqs(
        self, index: int, action: IrqAction, start: int, count: int, data: IrqData
    ) -> None:
        self._interrupts.apply(index, action, start, count, data)

    # Stores on demand

    def set_ioevent(
        self, index: int, offset: int, width: int, value: int, event: Callable[[], Event] | None
    ) -> None:
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
            pass  # nobody listens at that address

    # Tokens

    def check_token(self, token: bytes | None) -> None:
        self._token.check(token)

    def set_token(self, token: bytes | None) -> None:
        own = self._token.own
        if own is None:
            raise UnknownCommand(
                f"{self.function.name} is no physical function and has no VF token"
            )
        if token is not None:
            own.uuid = token

    # Resets

    def reset_scope(self, others: Iterable[BusDevice]) -> list[Dependent] | None:
        segment, bus, _ = place_of(self.function.name)
        if not bus:
            return None
        scope = [Dependent(dev, *place_of(dev.name)) for dev in others if dev.bus == "pci"]
        return [found for found in scope if (found.segment, found.bus) == (segment, bus)]

    def bus_reset(self) -> None:
        with self._lock:
            self._reset_and_restore()

    # Power

    def enter_low_power(self, wakeup: Event | None) -> None:
        with self._lock:
            if self._low_power:
                raise InvalidArgument(f"{self.function.name} is in low power already")
            self._low_power, self._wakeup = True, wakeup
            self._settle_mappings()

    def leave_low_power(self) -> None:
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
        if self._opens:
            on = self._rules.virtual or self._command() & pci.PCI_COMMAND_MEMORY
            self._show_mappings(bool(on) and not self._low_power and not self._rules.asleep())

    def _show_mappings(self, visible: bool) -> None:
        if visible != self._shown:
            self.function.show_mappings(visible)
            self._shown = visible

    def _end_mainline(self) -> None:
        """The last close: what the program left behind goes."""
        self._ioevents.clear()
        self.leave_low_power()
