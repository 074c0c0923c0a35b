"""Registers that programs have mapped, polled: the mapping shows them, and stores in it take effect a little later.

A load or store through a mapping causes no event. Therefore there is a *shadow*, the bytes that the program
sees, which is compared with its last contents every few milliseconds (``Store.watch``) and before each call:

    model changes a register     the shadow has the value at once
    call reads or writes one     looks first; the shadow has the new values when the call returns
    program loads                what is in the shadow: what a call would have read
    program stores               found by the next look: a write of that register, then the shadow shows what is
                                 read (which may be something else: a register that cannot be read is blank again)

Units. A register is one unit as wide as itself, or units of its widest access if it takes none so wide. Units are
looked at in ascending order of offsets. A unit that differs from what was last shown was stored to, and is
written as a whole; if only one half of 8 bytes differs and the register takes accesses of 4 bytes, that half is.
What a call cannot write changes nothing here either. Bytes that are no register read as the map's ``absent``; a
store there is wiped by a look that finds something, or by a reset beyond the last register.

What polling cannot detect: a store of the value that is shown, what was stored first if there were two between two
looks, in which order different registers were stored to, the width of a store, and that something was read.
So registers where a 1 clears (``w1c``) cannot be polled, and a hook that supplies values (``on_read``) must be
without effect: it is called at each look. Registers behind an index register, or cleared by reading, should not be.

The hand-over of each value is one aligned store. A store of the program that comes between the moment when
the shadow is compared and the one when it is changed, some 100 ns, is lost.

``MappedRegisters`` is one map while it is mapped; ``Polling`` is a model's, mapped or not. It is polled by the serving
loop, under the model's lock as timers do, or the thread that accesses the device; never two at a time. It starts no
thread and keeps no time.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import DmaFault
from uvfio.kit.register import RegisterMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Store
    from uvfio.kit.window import Window

__all__ = ["POLLED", "MappedRegisters", "Polling", "check_mapped", "kind_of_mapping"]

POLLED = "polled"

_PIECE = 1 << 16
_HALF = 0xFFFFFFFF


def kind_of_mapping(mappable: bool, polled: bool) -> str:
    """How a region can be mapped: "memory", "polled", or empty if it cannot."""
    return (POLLED if polled else "memory") if mappable else ""


def check_mapped(mapped: str, registers: type[RegisterMap], where: str) -> bool:
    """Whether ``mapped`` says that the registers are polled. ValueError if they cannot be, or it says nothing known."""
    if not mapped:
        return False
    if mapped != POLLED:
        raise ValueError(f"{where}: mapped must be {POLLED!r} or empty, not {mapped!r}")
    for register in registers.registers.values():
        if register.access == "w1c":
            raise ValueError(
                f"{where}: {registers.__name__}.{register.name} is w1c and cannot be polled: "
                "a store of the value that is shown is not seen"
            )
    return True


class _Values(list[int]):
    """The values of a map, which tell ``changed`` of assignments: the slot, or None for several."""

    __slots__ = ("changed",)

    def __init__(self, values: list[int], changed: Callable[[int | None], None]) -> None:
        super().__init__(values)
        self.changed = changed

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.changed(key if isinstance(key, int) else None)


class _Unit:
    """One word of the shadow. ``shown`` is what it has unless a program stored something else."""

    __slots__ = ("at", "computed", "halves", "offset", "shown", "size", "words")

    def __init__(
        self, offset: int, size: int, words: memoryview, halves: bool, computed: bool
    ) -> None:
        self.offset = offset
        self.size = size
        self.words = words
        self.at = offset // size
        self.halves = halves
        self.computed = computed
        self.shown: int = words[self.at]


class MappedRegisters:
    """A window on ``registers`` whose shadow is ``memory``, at least as long as they are.

    ``write(offset, value, size)`` is how a store found in the shadow reaches the device.
    """

    __slots__ = (
        "_by_slot",
        "_computed",
        "_copy",
        "_gaps",
        "_looking",
        "_memory",
        "_span",
        "_units",
        "_write",
        "registers",
    )

    def __init__(
        self,
        registers: RegisterMap,
        memory: memoryview,
        write: Callable[[int, int, int], None],
    ) -> None:
        self.registers = registers
        self._write = write
        self._looking = Lock()
        self._memory = memory
        self._span = memory[: -(-registers.span // 8) * 8]
        self._blank(0, len(memory))
        self._copy = bytearray(self._span)
        self._units: list[_Unit] = []
        self._by_slot: dict[int, list[_Unit]] = {}
        self._make_units()
        self._computed = [unit for unit in self._units if unit.computed]
        self._gaps = self._find_gaps()
        registers.values = _Values(registers.values, self._changed)
        self._changed(None)

    # -- Window ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read a register as a call does, after the stores that programs have made; then update the shadow."""
        self.look()
        try:
            return self.registers.read(offset, size)
        finally:
            self.settle()

    def write(self, offset: int, value: int, size: int) -> None:
        """Write a register as a call does, after the stores that programs have made; then update the shadow."""
        self.look()
        try:
            self.registers.write(offset, value, size)
        finally:
            self.settle()

    # -- the shadow ------------------------------------------------------------------------------

    def look(self) -> bool:
        """Process what programs have stored; returns whether there was something. Does nothing inside itself."""
        if not self._looking.acquire(blocking=False):
            return False
        try:
            if bytes(self._span) == self._copy:
                self.settle()
                return False
            for unit in self._units:
                if unit.words[unit.at] != unit.shown:
                    self._take(unit)
            for start, end in self._gaps:
                self._blank(start, end)
            self.settle()
            return True
        finally:
            self._looking.release()

    def settle(self) -> None:
        """Show what hooks supply now."""
        for unit in self._computed:
            self._show(unit)

    def refresh(self) -> None:
        """Show everything as it is, also beyond the last register; stores not taken up yet are lost."""
        self._blank(len(self._span), len(self._memory))
        for start, end in self._gaps:
            self._blank(start, end)
        for unit in self._units:
            self._show(unit)
            if unit.words[unit.at] != unit.shown:
                unit.words[unit.at] = unit.shown

    def end(self) -> None:
        """The last mapping is gone: process the last stores."""
        try:
            self.look()
        finally:
            self.registers.values = list(self.registers.values)

    def _take(self, unit: _Unit) -> None:
        stored, before = unit.words[unit.at], unit.shown
        offset, value, size = unit.offset, stored, unit.size
        if unit.halves:
            if not (stored ^ before) & _HALF:
                offset, value, size = offset + 4, value >> 32, 4
            elif not (stored ^ before) >> 32:
                value, size = value & _HALF, 4
        self._note(unit, stored)  # from here on a difference is another store
        try:
            self._write(offset, value, size)
        finally:
            self._show(unit)

    def _show(self, unit: _Unit) -> None:
        try:
            value = self.registers.read(unit.offset, unit.size)
        except DmaFault:
            value = (1 << 8 * unit.size) - 1  # as a call would read it
        if value != unit.shown:
            if unit.words[unit.at] == unit.shown:
                unit.words[unit.at] = value  # else: a store that the next look finds
            self._note(unit, value)

    def _note(self, unit: _Unit, value: int) -> None:
        unit.shown = value
        self._copy[unit.offset : unit.offset + unit.size] = value.to_bytes(unit.size, "little")

    def _changed(self, slot: int | None) -> None:
        units = self._units if slot is None else self._by_slot.get(slot, ())
        for unit in units:
            self._show(unit)

    def _blank(self, start: int, end: int) -> None:
        absent = bytes([self.registers.absent]) * min(end - start, _PIECE)
        for at in range(start, end, _PIECE):
            piece = self._memory[at : min(at + _PIECE, end)]
            if bytes(piece) != absent[: len(piece)]:
                piece[:] = absent[: len(piece)]

    # -- construction ----------------------------------------------------------------------------

    def _make_units(self) -> None:
        registers = self.registers
        span = self._span
        casts = {1: span, 2: span.cast("H"), 4: span.cast("I"), 8: span.cast("Q")}
        for start, register, index in registers.touched(0, registers.span):
            sizes = [w for w in register.widths if registers.narrowest <= w <= register.size]
            if not sizes:
                continue  # no access fits: it is like no register
            size = max(sizes)
            computed = registers.is_computed(start)
            units = [
                _Unit(offset, size, casts[size], size == 8 and 4 in sizes, computed)
                for offset in range(start, start + register.size, size)
            ]
            self._units += units
            self._by_slot[register.slot + index] = units

    def _find_gaps(self) -> list[tuple[int, int]]:
        gaps, at = [], 0
        for unit in self._units:
            if unit.offset > at:
                gaps.append((at, unit.offset))
            at = unit.offset + unit.size
        if at < len(self._span):
            gaps.append((at, len(self._span)))
        return gaps


class _Model(Protocol):
    """A model with polled registers."""

    lock: Any

    @property
    def name(self) -> str: ...


class Polling:
    """The polled registers of one model, by region number.

    ``windows`` is the model's list of what answers; a map that is mapped is replaced there by its
    ``MappedRegisters``. ``write(index, offset, value, size)`` is an access as from a call. ``shadows`` is their
    memory, which the model fills in.
    """

    __slots__ = ("_mapped", "_model", "_stop", "_store", "_windows", "_write", "shadows")

    def __init__(
        self,
        model: _Model,
        store: Store,
        windows: list[Window],
        write: Callable[[int, int, int, int], None],
    ) -> None:
        self._model = model
        self._store = store
        self._windows = windows
        self._write = write
        self.shadows: dict[int, memoryview] = {}
        self._mapped: dict[int, MappedRegisters] = {}
        self._stop: Callable[[], None] | None = None

    def start(self, index: int) -> memoryview:
        """A program maps region ``index``, whose window is a ``RegisterMap``: its shadow. NoMemory, NoSpace;
        KeyError after the end."""
        shadow = self.shadows[index]
        if index in self._mapped:
            return shadow
        registers = self._windows[index]
        assert isinstance(registers, RegisterMap)
        self._store.populate(self._model.name, index)

        def write(offset: int, value: int, size: int) -> None:
            self._write(index, offset, value, size)

        mapped = MappedRegisters(registers, shadow, write)
        self._mapped[index] = self._windows[index] = mapped
        if self._stop is None:
            self._stop = self._store.watch(self.look)
        return shadow

    def stop(self) -> None:
        """Nothing is mapped any more (idempotent). The last stores are taken up."""
        if self._stop is not None:
            self._stop()
            self._stop = None
        mapped, self._mapped = self._mapped, {}
        for index, registers in mapped.items():
            try:
                registers.end()
            finally:
                self._windows[index] = registers.registers

    def end(self) -> None:
        """The device is gone: stop, and drop the shadows."""
        self.stop()
        self.shadows.clear()

    def look(self) -> bool:
        """Process what programs have stored; returns whether there was something."""
        found = False
        with self._model.lock:
            for registers in tuple(self._mapped.values()):
                found |= registers.look()
        return found

    def settle(self) -> None:
        """Update computed registers in the shadows, before an interrupt reports their change."""
        for registers in self._mapped.values():
            registers.settle()

    def refresh(self) -> None:
        """After a reset."""
        for registers in self._mapped.values():
            registers.refresh()
