"""Registers that programs have mapped, polled: the mapping shows them, and stores in it take effect a little later.

A load or store through a mapping causes no event. Therefore there is a *shadow*, the bytes that the program
sees, which is compared with its last contents every few milliseconds (``Store.watch``) and before each call:

    model changes a register     the shadow has the value at once
    call reads or writes one     looks first; the shadow has the new values when the call returns
    program loads                what is in the shadow: what a call would have read
    program stores               found by the next look: a write of that register, then the shadow shows what is
                                 read (which may be something else: a register that cannot be read is blank again)

Order. No store takes effect before what the same program stored earlier. A look copies the shadows of all maps of
the device that are mapped, until two copies agree: on x86-64 stores become visible in order, so what precedes a store
that is in the first copy is in the second. Then all registers that changed are stored, and only then are their
``on_write`` hooks called, in ascending order of offsets: a doorbell's hook finds the addresses that were stored before
it, at whatever offset. A reset by a hook drops the hooks still to come, because it has wiped what was stored with
them. A hook that raises ends the look; the next one goes on with the hooks that were left.

A program that stores without pause prevents copies that agree. After ``TRIES`` of them: if one unit alone changes, its
value of the last copy but one is taken, since the copies before and after prove the order; if several do, nothing is
taken until the next look.

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
the shadow is compared and the one when it is changed, some 100 ns, is lost; so is the second of two stores of one
value to a register that cannot be read, if it comes between the copy and the blanking, some microseconds.

``MappedRegisters`` is one map while it is mapped; ``Looking`` looks at those of one device together; ``Polling`` is a
model's, mapped or not. It is polled by the serving loop, under the model's lock as timers do, or the thread that
accesses the device; never two at a time. It starts no thread and keeps no time.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from uvfio.errors import DmaFault
from uvfio.kit.mistake import PASSED
from uvfio.kit.register import RegisterMap

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Store
    from uvfio.kit.window import Window

__all__ = [
    "POLLED",
    "TRIES",
    "Looking",
    "MappedRegisters",
    "Polling",
    "check_mapped",
    "kind_of_mapping",
]

POLLED = "polled"

TRIES = 16
"""How many pairs of copies a look compares."""

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

    __slots__ = ("at", "blind", "computed", "halves", "offset", "shown", "size", "words")

    def __init__(
        self,
        offset: int,
        size: int,
        words: memoryview,
        *,
        halves: bool,
        computed: bool,
        blind: bool,
    ) -> None:
        self.offset = offset
        self.size = size
        self.words = words
        self.at = offset // size
        self.halves = halves
        self.computed = computed
        self.blind = blind  # cannot be read
        self.shown: int = words[self.at]


class Looking:
    """Processes what programs have stored in the maps of one device; the module's head has the order."""

    __slots__ = ("_busy", "_due", "_failed", "maps")

    def __init__(self, failed: Callable[[BaseException], Exception] | None = None) -> None:
        """``failed`` makes what is raised for a mistake in a hook of it; without, hooks raise what they raise."""
        self._failed = failed
        self.maps: list[MappedRegisters] = []
        self._busy = Lock()
        self._due: deque[Callable[[], object]] = deque()

    def look(self) -> bool:
        """Process what is found; returns whether there was something. Does nothing inside itself."""
        if not self._busy.acquire(blocking=False):
            return False
        try:
            found = bool(self._due)
            self._run_due()
            if not self._is_shown(first := self._copy()):
                found = True
                copies = self._settled(first)
                if copies is not None:
                    self._take(copies)
            for mapped in self.maps:
                mapped.settle()
            return found
        finally:
            self._busy.release()

    def finish(self) -> None:
        """Look for the last time. Errors of hooks are raised when all hooks have been called."""
        errors = []
        while True:
            try:
                self.look()
            except Exception as error:
                errors.append(error)
            if not self._due:
                break
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} register hooks failed", errors)

    def drop_hooks(self) -> None:
        """Do not call the hooks that are still to be called."""
        self._due.clear()

    def _copy(self) -> list[bytes]:
        return [mapped.copy() for mapped in self.maps]

    def _is_shown(self, copies: list[bytes]) -> bool:
        return all(mapped.is_shown(copy) for mapped, copy in zip(self.maps, copies, strict=True))

    def _settled(self, copies: list[bytes]) -> list[bytes] | None:
        """The stores of one moment, or None while there is no such copy."""
        before = copies
        for _ in range(TRIES):
            again = self._copy()
            if again == copies:
                return copies
            before, copies = copies, again
        after = self._copy()
        moving = 0
        for mapped, *versions in zip(self.maps, before, copies, after, strict=True):
            moving += mapped.count_moving(versions)
        return copies if moving <= 1 else None

    def _take(self, copies: list[bytes]) -> None:
        changes = [mapped.note(copy) for mapped, copy in zip(self.maps, copies, strict=True)]
        for mapped, changed in zip(self.maps, changes, strict=True):
            mapped.store(changed, self._due)
        self._run_due()

    def _run_due(self) -> None:
        while self._due:
            try:
                self._due.popleft()()
            except DmaFault:
                pass  # recorded; the write was posted
            except PASSED:
                raise
            except BaseException as error:
                if self._failed is None:
                    raise
                raise self._failed(error) from error


_Change = tuple[_Unit, int, int]
"""A unit, what is stored in it, and what it showed before."""


class MappedRegisters:
    """A window on ``registers`` whose shadow is ``memory``, at least as long as they are.

    ``write(offset, value, size)`` is how a store found in the shadow reaches the device. ``looking`` looks at this map
    together with others of the device.
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
        looking: Looking | None = None,
    ) -> None:
        self.registers = registers
        self._write = write
        self._looking = looking or Looking()
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
        self._looking.maps.append(self)

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
        """``Looking.look``: at this map and the others of the device."""
        return self._looking.look()

    def copy(self) -> bytes:
        """What the shadow has now."""
        return bytes(self._span)

    def is_shown(self, copy: bytes) -> bool:
        """Whether ``copy`` is what was last shown."""
        return copy == self._copy

    def count_moving(self, copies: list[bytes]) -> int:
        """In how many units the copies differ."""
        first, *others = copies
        count = 0
        for unit in self._units:
            here = slice(unit.offset, unit.offset + unit.size)
            count += any(other[here] != first[here] for other in others)
        return count

    def note(self, copy: bytes) -> list[_Change]:
        """The changes in ``copy``. From here on a difference is another store."""
        if self.is_shown(copy):
            return []
        view = memoryview(copy)
        casts = {1: view, 2: view.cast("H"), 4: view.cast("I"), 8: view.cast("Q")}
        changes = []
        for unit in self._units:
            stored = casts[unit.size][unit.at]
            if stored != unit.shown:
                changes.append((unit, stored, unit.shown))
                self._note(unit, stored)
                if unit.blind:
                    self._show(unit)
        for start, end in self._gaps:
            self._blank(start, end)
        return changes

    def store(self, changes: list[_Change], due: deque[Callable[[], object]]) -> None:
        """Write the changes to the registers; add the hooks to be called to ``due``, and errors, which they raise."""
        self.registers.due = due
        try:
            for unit, stored, before in changes:
                try:
                    self._store(unit, stored, before)
                except Exception as error:
                    due.append(partial(_raise, error))
                finally:
                    self._show(unit)
        finally:
            self.registers.due = None

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
        """The last mapping is gone."""
        self.registers.values = list(self.registers.values)

    def _store(self, unit: _Unit, stored: int, before: int) -> None:
        offset, value, size = unit.offset, stored, unit.size
        if unit.halves:
            if not (stored ^ before) & _HALF:
                offset, value, size = offset + 4, value >> 32, 4
            elif not (stored ^ before) >> 32:
                value, size = value & _HALF, 4
        self._write(offset, value, size)

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
            units = [
                _Unit(
                    offset,
                    size,
                    casts[size],
                    halves=size == 8 and 4 in sizes,
                    computed=registers.is_computed(start),
                    blind=register.access == "wo",
                )
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


def _raise(error: Exception) -> None:
    raise error


class _Model(Protocol):
    """A model with polled registers."""

    lock: Any

    @property
    def name(self) -> str: ...


class Polling:
    """The polled registers of one model, by region number.

    ``windows`` is the model's list of what answers; a map that is mapped is replaced there by its
    ``MappedRegisters``. ``write(index, offset, value, size)`` is an access as from a call, ``failed(error)`` makes
    what is raised for a mistake in a hook. ``shadows`` is their memory, which the model fills in.
    """

    __slots__ = (
        "_looking",
        "_mapped",
        "_model",
        "_stop",
        "_store",
        "_windows",
        "_write",
        "shadows",
    )

    def __init__(
        self,
        model: _Model,
        store: Store,
        windows: list[Window],
        write: Callable[[int, int, int, int], None],
        failed: Callable[[BaseException], Exception] | None = None,
    ) -> None:
        self._model = model
        self._store = store
        self._windows = windows
        self._write = write
        self.shadows: dict[int, memoryview] = {}
        self._mapped: dict[int, MappedRegisters] = {}
        self._looking = Looking(failed)
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

        mapped = MappedRegisters(registers, shadow, write, self._looking)
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
        try:
            self._looking.finish()
        finally:
            for index, registers in mapped.items():
                registers.end()
                self._windows[index] = registers.registers
            self._looking.maps.clear()

    def end(self) -> None:
        """The device is gone: stop, and drop the shadows."""
        self._looking.drop_hooks()
        self.stop()
        self.shadows.clear()

    def look(self) -> bool:
        """Process what programs have stored; returns whether there was something."""
        with self._model.lock:
            return self._looking.look()

    def settle(self) -> None:
        """Update computed registers in the shadows, before an interrupt reports their change."""
        for registers in self._mapped.values():
            registers.settle()

    def refresh(self) -> None:
        """After a reset: what it has wiped must not reach a hook."""
        self._looking.drop_hooks()
        for registers in self._mapped.values():
            registers.refresh()
