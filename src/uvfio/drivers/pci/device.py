"""``VfioPciDevice``: one PCI function in the hands of vfio-pci, put together from its parts.

Life: closed -> (first ``get``) open -> ... -> (last ``put``) closed. Between the two the program's own things
exist: the virtual configuration space, the events, the saved state to return to.

    first get    save the state; try a function reset; test INTX_DISABLE; switch decoding on; copy the
                 configuration space
    reset        the function is woken; function reset; hardware state back as it was just before; the copy and the
                 events stay; a migration ends. The same by the reset bit of a capability, and for a bus reset
    D3hot        hardware state saved on the way there and back on the way to D0, if the way resets the function. A
                 physical function stays in D0 while it has virtual ones
    last put     mappings over; bus master off; interrupts off, events dropped; copy dropped; reset; saved state back

Invariants: a ``get`` that fails leaves the function as it was and the device closed; a ``put`` finishes
whatever the function raises on the way. One reentrant lock serialises everything, so that the count of opens
cannot race (D24) and a slow reset delays no other device (D27); interrupts take it too.

The four-byte BAR access is the hot path: it is decided here, without a call in between, and everything else
goes through the region's window.

Does not: translate file offsets (callers give region and offset), gate DMA (the function does), or
decide who may open the device.

Behaviour: drivers/vfio/pci/vfio_pci_core.c (vfio_pci_set_power_state, vfio_pci_ioctl_reset, vfio_pci_core_enable),
drivers/pci/pci.c (pci_set_power_state, pci_reset_function).
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from struct import Struct
from typing import TYPE_CHECKING

from uvfio.core.bus import Dependent, DeviceKind, Region
from uvfio.drivers.pci.access import bar_window, rom_window
from uvfio.drivers.pci.bars import ROM_INDEX, BarRegisters
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.config import ConfigSpace
from uvfio.drivers.pci.decoding import AccessRules, place_of
from uvfio.drivers.pci.interrupts import NUM_IRQS, Interrupts
from uvfio.drivers.pci.ioevents import Ioevents
from uvfio.drivers.pci.irqset import IrqSets
from uvfio.drivers.pci.mainline import ConfigWindow, MainlinePci
from uvfio.drivers.pci.sriov import Offspring, TokenRule
from uvfio.drivers.pci.state import SavedState
from uvfio.errors import DecodingOff, Gone, Unsupported, VfioError
from uvfio.uapi import pci

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvfio.core.bus import BusDevice
    from uvfio.drivers.pci.hardware import PciFunction
    from uvfio.drivers.window import Window

__all__ = ["CONFIG_INDEX", "NUM_REGIONS", "VfioPciDevice"]

CONFIG_INDEX = 7
NUM_REGIONS = 8

_D0, _D3HOT = 0, 3
_LIGHT_SLEEPS = {1: pci.PCI_PM_CAP_D1, 2: pci.PCI_PM_CAP_D2}

_WORD = Struct("<I")
_pack_word = _WORD.pack
_unpack_word = _WORD.unpack


class VfioPciDevice(MainlinePci):
    """Implements ``core.bus.BoundDevice`` for one ``PciFunction``; ``MainlinePci`` has what came after 2011.

    ``parent`` is the physical function of a virtual one, if vfio-pci has it too. InvalidArgument if the function's
    BARs or ROM are laid out as no silicon can be.
    """

    regions_hint = "0-5 BARs, 6 ROM, 7 configuration space"

    def __init__(self, function: PciFunction, parent: VfioPciDevice | None = None) -> None:
        super().__init__(function.name, function.lock)
        self.function = function
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
        self._silent = False
        self._wakeup = None
        self._saved: SavedState | None = None
        self._slept: SavedState | None = None
        self._config = ConfigWindow(function.name, Region(CONFIG_INDEX, function.config_size))
        self._windows: tuple[Window, ...] = (
            *(
                bar_window(function, n, function.bars.get(n), self._rules.msix_ranges(n))
                for n in range(ROM_INDEX)
            ),
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

    # Facts

    @property
    def kind(self) -> DeviceKind:
        """PCI."""
        return DeviceKind.PCI

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
        """The interrupts."""
        return self._interrupts

    # Life

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
                raise Gone(f"{self.name} is not open")
            self._reset_and_restore()

    def reset_by_config(self) -> None:
        """``FunctionControl.reset_by_config``: as ``reset``, by the best way that the function has."""
        with (
            self._lock,
            suppress(VfioError),
        ):  # pci_try_reset_function: what it answers is not looked at
            self.reset()

    def _reset_and_restore(self) -> None:
        self.set_power_state(_D0)
        opened = self._saved is not None
        if not opened:
            self._bars.save()
        before = SavedState(self.function, self._layout, self._bars)
        try:
            self._reset_hardware()
        finally:
            before.restore(before.command | (self._bars.decode if opened else 0))
            if opened:
                self._note_decoding()
                self._interrupts.reprogram()
                self._decodes = False
                if not self._shown:
                    self._settle_mappings()
            if self.migration is not None:
                self.migration.reset()

    def set_power_state(self, state: int) -> None:
        """``FunctionControl.set_power_state``: D0 to D3hot are 0 to 3; nothing for a state that cannot be entered."""
        at = self._rules.power
        if not at or (state and self.offspring.number):
            return
        with self._lock:
            control = self.function.config_read(at + pci.PCI_PM_CTRL, 2)
            now = control & pci.PCI_PM_CTRL_STATE_MASK
            if state == now or 0 < state < now or not self._supports(state):
                return
            loses = not control & pci.PCI_PM_CTRL_NO_SOFT_RESET
            if state == _D3HOT and loses and self._saved is not None:
                self._slept = SavedState(self.function, self._layout, self._bars)
            kept = pci.PCI_PM_CTRL_STATE_MASK | pci.PCI_PM_CTRL_PME_STATUS
            self.function.config_write(at + pci.PCI_PM_CTRL, control & ~kept | state, 2)
            if state == _D0:
                self._awaken()

    def _supports(self, state: int) -> bool:
        capable = self.function.config_read(self._rules.power + pci.PCI_PM_PMC, 2)
        return state in (_D0, _D3HOT) or bool(capable & _LIGHT_SLEEPS[state])

    def _awaken(self) -> None:
        """The function is in D0 again: give it back what it lost on the way."""
        slept, self._slept = self._slept, None
        if slept is not None:
            slept.restore()
            self.offspring.restore()
            self._interrupts.reprogram()

    def request(self, count: int) -> None:
        """Record that the device is wanted back for the ``count``-th time, and signal the program's event for that."""
        self._requests = count
        self._interrupts.signal_request()

    def _first_open(self) -> None:
        self._bars.save()
        saved = self._saved = SavedState(self.function, self._layout, self._bars)
        try:
            self._try_reset()
            saved.restore()
            self._interrupts.start()
            command = self.function.config_read(pci.PCI_COMMAND, 2)
            self.function.config_write(pci.PCI_COMMAND, command | self._bars.decode, 2)
            self._config.space = ConfigSpace(
                self.function, self._layout, self._bars, self._interrupts, self
            )
            if getattr(self.function, "migratable", False):
                from uvfio.drivers.pci.migration import begin

                self.migration, self.dma_logger = begin(
                    self.function, self._config.space, self.recover, self._settle_mappings
                )
        except BaseException:
            self._saved = self._slept = self._config.space = None
            try:
                self._interrupts.stop()
            finally:
                saved.restore()
            raise
        self._token.opened()
        self._note_decoding()

    def _last_close(self) -> None:
        self._token.closed()
        saved, self._saved, self._config.space = self._saved, None, None
        self._slept = None
        self._decodes = self._silent = False
        assert saved is not None
        try:
            self.function.end_mappings()  # which takes the last stores
            self._show_mappings(True)
        finally:
            self._quiesce(saved)

    def _quiesce(self, saved: SavedState) -> None:
        with ExitStack() as rest:  # from the last line up, each whatever the ones before it raise
            rest.callback(saved.restore, saved.command & ~pci.PCI_COMMAND_MASTER)
            rest.callback(self._try_reset)
            rest.callback(self._end_migration)
            rest.callback(self._end_mainline)
            rest.callback(self._interrupts.stop)
            # First of all: a device without a reset goes on with its DMA until this bit is gone.
            command = self.function.config_read(pci.PCI_COMMAND, 2)
            self.function.config_write(pci.PCI_COMMAND, command & ~pci.PCI_COMMAND_MASTER, 2)

    def _has_reset(self) -> bool:
        return bool(self.function.reset_methods)

    def _reset_hardware(self) -> None:
        try:
            self.function.reset()
        finally:
            self.offspring.restore()

    def recover(self) -> None:
        """``FunctionControl.recover``: give the function its addresses and interrupts again."""
        self._bars.restore()
        command = self.function.config_read(pci.PCI_COMMAND, 2)
        self.function.config_write(pci.PCI_COMMAND, command | self._bars.decode, 2)
        self.offspring.restore()
        self._interrupts.reprogram()

    # Resets of the bus

    def reset_scope(self, others: Iterable[BusDevice]) -> list[Dependent] | None:
        """``MainlineDevice.reset_scope``: the functions below the same bridge, or None on a bus without one."""
        segment, bus, _ = place_of(self.name)
        if not bus:
            return None
        scope = [Dependent(dev, *place_of(dev.name)) for dev in others if dev.bus == "pci"]
        return [found for found in scope if (found.segment, found.bus) == (segment, bus)]

    def bus_reset(self) -> None:
        """``MainlineDevice.bus_reset``."""
        with self._lock:
            self._reset_and_restore()

    # Regions

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset`` of region ``index``; ``access.py`` has the rules.

        InvalidArgument for a region that does not exist or a range outside it, DecodingOff.
        """
        with self._lock:
            if self._silent:
                self._check_silent(index, offset, count)
            if count == 4 and not offset & 3 and 0 <= offset < self._words.get(index, 0):
                return _pack_word(self._bar_read(index, offset, 4))
            return self._window(index).read(offset, count)

    def write(self, index: int, offset: int, data: bytes) -> int:
        """How many bytes of ``data`` were written at ``offset`` of region ``index``. Errors as ``read``."""
        with self._lock:
            if self._silent:
                self._check_silent(index, offset, len(data))
            if len(data) == 4 and not offset & 3 and 0 <= offset < self._words.get(index, 0):
                self._bar_write(index, offset, _unpack_word(data)[0], 4)
                return 4
            taken = self._window(index).write(offset, data)
            if index == CONFIG_INDEX:
                self._note_decoding()
            return taken

    def _check_silent(self, index: int, offset: int, count: int) -> None:
        """Raises DecodingOff, and InvalidArgument as the access would, for a region that does not answer now."""
        if index <= ROM_INDEX:
            inside = self._window(index).inside(offset, count)
            try:
                self._rules.check_decoding(index, self._command())
            except DecodingOff as off:
                off.inside = inside
                raise

    # Interrupts
