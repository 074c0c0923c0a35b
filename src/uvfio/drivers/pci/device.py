"""``VfioPciDevice``: one PCI function in the hands of vfio-pci, put together from its parts.

Life: closed -> (first ``get``) open -> ... -> (last ``put``) closed. Between the two the program's own things
exist: the virtual configuration space, the events, the saved state to return to.

    first get    save the state; try a function reset; test INTX_DISABLE; switch decoding on; copy the
                 configuration space
    reset        function reset; hardware state back as it was just before; the copy and the events stay; a migration
                 ends
    last put     mappings over; bus master off; interrupts off, events dropped; copy dropped; reset; saved state back

Invariants: a ``get`` that fails leaves the function as it was and the device closed; a ``put`` finishes
whatever the function raises on the way. One reentrant lock serialises everything, so that the count of opens
cannot race (D24) and a slow reset holds up nobody else (D27); interrupts take it too.

The four-byte BAR access is the hot path: it is decided here, without a call in between, and everything else
goes through the region's window.

Does not: translate file offsets (callers give region and offset), gate DMA (the function does), or
decide who may open the device.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct
from threading import RLock
from typing import TYPE_CHECKING

from uvfio.core.bus import DeviceKind, IrqInfo, Region
from uvfio.drivers.pci.access import bar_window, rom_window
from uvfio.drivers.pci.bars import ROM_INDEX, BarRegisters
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.config import ConfigSpace
from uvfio.drivers.pci.interrupts import NUM_IRQS, Interrupts
from uvfio.drivers.pci.irqset import IrqSets
from uvfio.drivers.pci.mainline import AccessRules, Ioevents, MainlinePci
from uvfio.drivers.pci.sriov import Offspring, TokenRule
from uvfio.drivers.pci.state import SavedState
from uvfio.drivers.window import Window
from uvfio.errors import Gone, InvalidArgument, Unsupported, VfioError
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.core.migration.states import Migration
    from uvfio.core.seams import Event
    from uvfio.core.translation.dma_log import DmaLogger
    from uvfio.drivers.pci.hardware import PciFunction

__all__ = ["CONFIG_INDEX", "NUM_REGIONS", "VfioPciDevice"]

CONFIG_INDEX = 7
NUM_REGIONS = 8

_WORD = Struct("<I")
_pack_word = _WORD.pack
_unpack_word = _WORD.unpack


class _ConfigWindow(Window):
    """Region 7. The space behind it exists while the device is open."""

    __slots__ = ("space",)

    def __init__(self, name: str, region: Region) -> None:
        super().__init__(name, region)
        self.space: ConfigSpace | None = None

    def read(self, offset: int, count: int) -> bytes:
        return self._opened().read(offset, count)

    def write(self, offset: int, data: bytes) -> int:
        return self._opened().write(offset, data)

    def _opened(self) -> ConfigSpace:
        if self.space is None:
            raise Gone(f"{self.name} is not open")
        return self.space


class VfioPciDevice(MainlinePci):
    """Implements ``core.bus.BoundDevice`` for one ``PciFunction``; ``MainlinePci`` has what came after 2011.

    ``parent`` is the physical function of a virtual one, if vfio-pci has it too. InvalidArgument if the function's
    BARs or ROM are laid out as no silicon can be.
    """

    def __init__(self, function: PciFunction, parent: VfioPciDevice | None = None) -> None:
        self.function = function
        self._lock = RLock()
        self._opens = 0
        self._requests = 0
        self._reset_failed = False
        self._layout = survey(function)
        self._bars = BarRegisters(function)
        self._interrupts = IrqSets(function, self._layout, self._lock)
        self._rules = AccessRules(function, self._layout)
        self._token = TokenRule(function, parent._token.own if parent else None)
        self.offspring = Offspring(function)
        self._ioevents = Ioevents()
        self._low_power = False
        self._shown = True
        self._decodes = False
        self._wakeup = None
        self._saved: SavedState | None = None
        self.migration: Migration | None = None
        self.dma_logger: DmaLogger | None = None
        self._config = _ConfigWindow(function.name, Region(CONFIG_INDEX, function.config_size))
        self._windows: tuple[Window, ...] = (
            *(bar_window(function, n, function.bars.get(n)) for n in range(ROM_INDEX)),
            rom_window(function, ROM_INDEX),
            self._config,
        )
        table = self._rules.table[0]
        if table >= 0 and self._windows[table].region.mappable:
            self._windows[table].region = replace(self._windows[table].region, msix_table=True)
        # Up to where a four-byte access may take the short way: BARs that are registers, mapped or not.
        self._words = {
            index: bar.size
            for index, bar in function.bars.items()
            if not bar.mappable or bar.polled
        }
        self._open_words = {index: size for index, size in self._words.items() if index != table}
        self._bar_read = function.bar_read
        self._bar_write = function.bar_write

    def __repr__(self) -> str:
        return f"<VfioPciDevice {self.function.name} opens={self._opens}>"

    # Facts

    @property
    def kind(self) -> DeviceKind:
        """PCI."""
        return DeviceKind.PCI

    @property
    def resettable(self) -> bool:
        """Whether the function has a reset of its own that has not been seen failing."""
        return bool(self.function.reset_methods) and not self._reset_failed

    @property
    def num_regions(self) -> int:
        """0-5 BARs, 6 ROM, 7 configuration space."""
        return NUM_REGIONS

    @property
    def num_irqs(self) -> int:
        """0 INTx, 1 MSI, 2 MSI-X."""
        return NUM_IRQS

    @property
    def interrupts(self) -> Interrupts:
        """The interrupts, for those who show or trace them."""
        return self._interrupts

    @property
    def opens(self) -> int:
        """How many ``get`` have no ``put`` yet."""
        return self._opens

    @property
    def requests(self) -> int:
        """The count of the latest request to give the device back; 0 before the first."""
        return self._requests

    def region(self, index: int) -> Region:
        """Size and access of region ``index``. InvalidArgument for one that does not exist."""
        return self._window(index).region

    def irq(self, index: int) -> IrqInfo:
        """Count and kind of interrupt ``index``. InvalidArgument for one that does not exist."""
        return self._interrupts.info(index)

    # Life

    def get(self) -> None:
        """Count an open; the first one enables the device. What the function raises passes through."""
        with self._lock:
            if not self._opens:
                self._enable()
                self._token.opened()
            self._opens += 1

    def put(self) -> None:
        """Count a close; the last one quiesces the device and puts the hardware back as it was.

        Gone without a matching ``get``.
        """
        with self._lock:
            if not self._opens:
                raise Gone(f"{self.function.name} is not open")
            self._opens -= 1
            if not self._opens:
                self._token.closed()
                self._disable()

    def reset(self) -> None:
        """Reset the function. Unsupported if it has no way to be reset; else what the function raises.

        What the host and the program had set up in the hardware (addresses, decoding, bus master,
        interrupts) is back afterwards, as the kernel's pci_reset_function leaves it.
        """
        with self._lock:
            if not self.function.reset_methods:
                raise Unsupported(
                    f"{self.function.name} has no function reset", "see VFIO_DEVICE_GET_FLAGS"
                )
            if self._saved is None:
                raise Gone(f"{self.function.name} is not open")
            self._reset_and_restore()

    def _reset_and_restore(self) -> None:
        opened = self._saved is not None
        if not opened:
            self._bars.save()
        before = SavedState(self.function, self._layout, self._bars)
        try:
            self._reset_function()
        finally:
            before.restore(before.command | (self._bars.decode if opened else 0))
            if opened:
                self._interrupts.reprogram()
                self._decodes = False
                if not self._shown:
                    self._settle_mappings()
            if self.migration is not None:
                self.migration.reset()

    def request(self, count: int) -> None:
        """Record that somebody wants the device back for the ``count``-th time, and tell the program."""
        self._requests = count
        self._interrupts.signal_request()

    def _command(self) -> int:
        if self._config.space is None:
            raise Gone(f"{self.function.name} is not open")
        return self._config.space.command

    def _enable(self) -> None:
        self._bars.save()
        saved = self._saved = SavedState(self.function, self._layout, self._bars)
        try:
            self._try_reset()
            saved.restore()
            self._interrupts.start()
            command = self.function.config_read(pci.PCI_COMMAND, 2)
            self.function.config_write(pci.PCI_COMMAND, command | self._bars.decode, 2)
            self._config.space = ConfigSpace(
                self.function, self._layout, self._bars, self._interrupts, self._recover
            )
            if getattr(self.function, "migratable", False):
                from uvfio.drivers.pci.migration import begin

                self.migration, self.dma_logger = begin(
                    self.function, self._config.space, self._recover, self._settle_mappings
                )
        except BaseException:
            self._saved = self._config.space = None
            try:
                self._interrupts.stop()
            finally:
                saved.restore()
            raise

    def _disable(self) -> None:
        saved, self._saved, self._config.space = self._saved, None, None
        self._decodes = False
        assert saved is not None
        try:
            self.function.end_mappings()  # which takes the last stores
            self._show_mappings(True)
        finally:
            self._quiesce(saved)

    def _quiesce(self, saved: SavedState) -> None:
        try:
            command = self.function.config_read(pci.PCI_COMMAND, 2)
            # First of all: a device without a reset goes on with its DMA until this bit is gone.
            self.function.config_write(pci.PCI_COMMAND, command & ~pci.PCI_COMMAND_MASTER, 2)
            self._interrupts.stop()
            self._end_mainline()
            self._end_migration()
            self._try_reset()
        finally:
            saved.restore(saved.command & ~pci.PCI_COMMAND_MASTER)

    def _end_migration(self) -> None:
        """The last close: no session and no log stay, and the function runs."""
        migration, self.migration = self.migration, None
        logger, self.dma_logger = self.dma_logger, None
        if logger is not None:
            logger.stop()
        if migration is not None:
            migration.close()

    def _try_reset(self) -> None:
        """Reset if there is a way. A reset that fails costs the program its reset, not the device."""
        if self.function.reset_methods:
            try:
                self._reset_function()
                self._reset_failed = False
            except VfioError:
                self._reset_failed = True

    def _reset_function(self) -> None:
        try:
            self.function.reset()
        finally:
            self.offspring.restore()

    def _recover(self) -> None:
        """The hardware was reset behind the driver's back: give it its addresses and interrupts again."""
        self._bars.restore()
        command = self.function.config_read(pci.PCI_COMMAND, 2)
        self.function.config_write(pci.PCI_COMMAND, command | self._bars.decode, 2)
        self.offspring.restore()
        self._interrupts.reprogram()

    # Regions

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of region ``index``; ``access.py`` has the rules.

        InvalidArgument for a region that does not exist or a range outside it.
        """
        with self._lock:
            if count == 4 and not offset & 3 and 0 <= offset < self._words.get(index, 0):
                return _pack_word(self._bar_read(index, offset, 4))
            return self._window(index).read(offset, count)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were written at ``offset`` of region ``index``. Errors as ``read``."""
        with self._lock:
            if len(data) == 4 and not offset & 3 and 0 <= offset < self._words.get(index, 0):
                self._bar_write(index, offset, _unpack_word(data)[0], 4)
                return 4
            return self._window(index).write(offset, data)

    def mmap(self, index: int, offset: int, size: int) -> memoryview:
        """The memory behind ``size`` bytes at ``offset`` of region ``index``.

        InvalidArgument for ROM and configuration space, BARs that are no plain memory or smaller than a
        page, and ranges that are not inside.
        """
        return self._window(index).mmap(offset, size)

    def _window(self, index: int) -> Window:
        if not 0 <= index < NUM_REGIONS:
            raise InvalidArgument(
                f"{self.function.name}: region {index} does not exist",
                "0-5 BARs, 6 ROM, 7 configuration space",
            )
        return self._windows[index]

    # Interrupts

    def check_irqs(self, index: int, count: int) -> None:
        """What SET_IRQ_EVENTFDS refuses before it looks at descriptors; see ``Interrupts.check``."""
        self._interrupts.check(index, count)

    def set_irqs(self, index: int, events: Sequence[Event]) -> None:
        """Signal ``events`` from interrupt ``index``; see ``Interrupts.set``."""
        self._interrupts.set(index, events)

    def unmask_irq(self, index: int) -> None:
        """Let INTx fire again. InvalidArgument for an index other than 0 (D32c)."""
        self._interrupts.unmask(index)

    def set_unmask_event(self, index: int, event: Event | None) -> None:
        """Let ``event`` unmask INTx, or end that; see ``Interrupts.set_unmask_event``."""
        self._interrupts.set_unmask_event(index, event)
