"""Registers, declared: one description serves the model, the trace that decodes accesses, and a driver.

Theory of operation. A class body lists registers the way a data sheet does::

    class TimerRegisters(RegisterMap):
        control = Register(0x00, fields={"enable": 0, "mode": (3, 1)}, doc="starts the timer")
        count = Register(0x08, 8, access="ro")
        compare = RegisterArray(0x40, count=4)

On the class, ``TimerRegisters.control`` is the ``Register``: offset, size, fields, ``decode``. On an
instance it is the value, an ``int`` that may be read and assigned (the silicon's own access: no access
rule, no hook). What is assigned has at most one bit more than the register, which is dropped, so that counters
and sums wrap; anything wider is a ValueError, and a name that the class does not have an AttributeError.
``read`` and ``write`` are accesses from the bus and obey the rules:

- ``rw`` stores the bits of ``writable`` (default: all); ``ro`` ignores writes; ``wo`` stores and reads as
  absent; ``w1c`` clears the bits that are written as 1.
- ``@register.on_read`` marks the method that supplies the value read; ``@register.on_store`` the one that is
  given the old and the new value and returns the one to keep; ``@register.on_write`` the one that is called
  with the word written when it has been stored. A method of the map is called on the map, a method of the
  map's owner (a model) on the owner. For an array the index comes first.
- While ``due`` is a queue, calls of ``on_write`` are added to it instead of being made: several registers are then
  stored before the first hook is called (``polled.py``).
- An access of a register's own size costs a lookup and a call. Any other is composed of byte lanes: each
  register that it touches is accessed once, in ascending order. Lanes not written keep their value (0 in
  ``w1c`` and ``wo``), bytes of no register read as ``absent`` and ignore writes. A register refuses the widths
  that its ``widths`` does not list: the whole access then reads as ones, or is ignored.

Mistakes in a description are found when the class is made and name the register. Dispatch tables are made
once per pair of map and owner class. Values are little-endian; offsets and sizes count bytes.

What it does not do: it has no lock, knows no bus, and raises nothing for any access.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from uvfio.kit.description import (
    MARKS,
    SIZES,
    Access,
    ArrayValues,
    Description,
    Field,
    FieldSpec,
    Register,
    RegisterArray,
)
from uvfio.kit.mistake import check_hook

if TYPE_CHECKING:
    from collections import deque

__all__ = [
    "Access",
    "ArrayValues",
    "Field",
    "FieldSpec",
    "Register",
    "RegisterArray",
    "RegisterMap",
]

_set = object.__setattr__
_Reader = Callable[["RegisterMap"], int]
_Writer = Callable[["RegisterMap", int], None]
_Hook = Callable[..., int]  # what on_write returns is ignored
_Hooks = dict[tuple[Description, str], _Hook]


_Element = tuple[int, Description, int]
"""One word of the map: its offset, the register, and which element of an array it is."""


class _Tables:
    """The dispatch of one map class for one class of owner."""

    __slots__ = ("computed", "readers", "sized_readers", "sized_writers", "writers")

    def __init__(self, elements: list[_Element], on_map: _Hooks, on_owner: _Hooks) -> None:
        self.readers: dict[int, _Reader] = {}  # by offset, for the composition of lanes
        self.writers: dict[int, _Writer] = {}
        self.sized_readers: dict[int, _Reader] = {}  # by offset << 4 | size
        self.sized_writers: dict[int, _Writer] = {}
        self.computed: set[int] = set()  # offsets of what a hook supplies
        for element in elements:
            offset, register, _ = element
            reader = _make_reader(element, on_map, on_owner)
            writer = _make_writer(element, on_map, on_owner)
            self.readers[offset] = reader
            self.writers[offset] = writer
            if (register, "read") in on_owner or (register, "read") in on_map:
                self.computed.add(offset)
            if register.size in register.widths:
                key = offset << 4 | register.size
                if register.access != "wo":
                    self.sized_readers[key] = reader
                self.sized_writers[key] = writer


class RegisterMap:
    """Base of a description. ``owner`` is the object whose hooks the accesses call (a model), if any.

    Class attributes a description may set: ``widths``, the sizes of access that its registers take unless
    they say otherwise; ``absent``, the byte read where there is no register; ``narrowest``, the least bytes of an
    access that gets through at all: smaller ones read 0 and write nothing, wherever they go.
    """

    widths: ClassVar[tuple[int, ...]] = SIZES
    absent: ClassVar[int] = 0
    narrowest: ClassVar[int] = 1
    registers: ClassVar[dict[str, Description]] = {}
    """The registers by name, in the order of their offsets."""
    span: ClassVar[int] = 0
    """Bytes from offset 0 to the end of the last register."""

    _elements: ClassVar[list[_Element]] = []
    _offsets: ClassVar[list[int]] = []
    _initial: ClassVar[list[int]] = []
    _dispatch: ClassVar[dict[type, _Tables]] = {}
    _names: ClassVar[frozenset[str]] = frozenset(
        ("owner", "values", "due", "_tables", "_readers", "_writers")
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        found: dict[str, Description] = {}
        initial: list[int] = []
        for base in cls.__bases__:
            if issubclass(base, RegisterMap):
                if found and base.registers:
                    raise TypeError(f"{cls.__name__}: only one base may have registers")
                found.update(base.registers)
                initial.extend(base._initial)
        for name, value in vars(cls).items():
            found.pop(name, None)
            if isinstance(value, Description):
                if hasattr(RegisterMap, name) or name in ("values", "owner", "due"):
                    raise ValueError(f"{cls.__name__}.{name}: the name is taken by RegisterMap")
                if value.slot >= 0 or value.name != name:
                    raise ValueError(f"{cls.__name__}.{name}: declared before, as {value.name}")
                value.check(cls.__name__, cls.widths)
                if min(value.widths) < cls.narrowest:
                    raise ValueError(
                        f"{cls.__name__}.{name}: widths {value.widths} go below the map's narrowest, "
                        f"{cls.narrowest}"
                    )
                value.slot = len(initial)
                initial.extend([value.reset] * value.count)
                found[name] = value
        ordered = sorted(found.values(), key=lambda r: r.offset)
        elements = [(r.offset + i * r.stride, r, i) for r in ordered for i in range(r.count)]
        elements.sort(key=lambda e: e[0])
        for i, high in enumerate(elements[1:]):
            low = elements[i]
            if low[0] + low[1].size > high[0]:
                raise ValueError(
                    f"{cls.__name__}.{high[1].name} at {high[0]:#x} overlaps {low[1].name} at "
                    f"{low[0]:#x}"
                )
        cls.registers = {r.name: r for r in ordered}
        cls.span = max((at + register.size for at, register, _ in elements), default=0)
        cls._elements = elements
        cls._offsets = [at for at, _, _ in elements]
        cls._initial = initial
        cls._dispatch = {}
        annotated = getattr(cls, "__annotations__", {})
        cls._names = cls._names | frozenset(vars(cls)) | frozenset(annotated)
        for (register, kind), hook in hooks_of(cls).items():
            check_hook(cls, hook, register, kind, isinstance(register, RegisterArray))

    def __init__(self, owner: object = None) -> None:
        self.owner = owner
        self.values = list(self._initial)
        self.due: deque[Callable[[], object]] | None = None
        kind = type(owner)
        tables = self._dispatch.get(kind)
        if tables is None:
            on_map, on_owner = hooks_of(type(self)), hooks_of(kind)
            tables = self._dispatch[kind] = _Tables(self._elements, on_map, on_owner)
        self._tables = tables
        self._readers = tables.sized_readers
        self._writers = tables.sized_writers

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._names:
            from uvfio.kit.option import suggest

            near = suggest(name, self.registers)
            raise AttributeError(
                f"{type(self).__name__} has no register {name!r}"
                + (f", {near}" if near else ": an attribute of its own is declared in the class")
            )
        _set(self, name, value)

    def reset(self) -> None:
        """Every register takes its reset value; no hook is called."""
        self.values[:] = self._initial

    def update(self, register: Register, **fields: int) -> None:
        """Change fields of ``register`` as the silicon does: ``regs.update(Regs.status, busy=0)``."""
        self.values[register.slot] = register.replace(self.values[register.slot], **fields)

    # -- accesses from the bus -------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """What a bus read of 1, 2, 4 or 8 bytes gets."""
        reader = self._readers.get(offset << 4 | size)
        if reader is not None:
            return reader(self)
        return self._read_lanes(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """A bus write of 1, 2, 4 or 8 bytes."""
        writer = self._writers.get(offset << 4 | size)
        if writer is not None:
            writer(self, value)
        else:
            self._write_lanes(offset, value, size)

    def is_computed(self, offset: int) -> bool:
        """Whether a hook supplies what is read of the register at ``offset``."""
        return offset in self._tables.computed

    def _read_lanes(self, offset: int, size: int) -> int:
        if size < self.narrowest:
            return 0
        ones = (1 << 8 * size) - 1
        value = int.from_bytes(bytes([self.absent]) * size, "little")
        touched = self.touched(offset, size)
        for _, register, _ in touched:
            if size not in register.widths:
                return ones
        for start, register, _ in touched:
            if register.access != "wo":
                word = self._tables.readers[start](self)
                lanes = _shift(register.mask, start - offset)
                value = value & ~lanes | _shift(word, start - offset)
        return value & ones

    def _write_lanes(self, offset: int, value: int, size: int) -> None:
        if size < self.narrowest:
            return
        touched = self.touched(offset, size)
        for _, register, _ in touched:
            if size not in register.widths:
                return
        ones = (1 << 8 * size) - 1
        for start, register, index in touched:
            lanes = _shift(ones, offset - start) & register.mask
            word = _shift(value & ones, offset - start) & lanes
            if register.access == "rw":
                word |= self.values[register.slot + index] & ~lanes
            self._tables.writers[start](self, word)

    # -- for traces and drivers ------------------------------------------------------------------

    @classmethod
    def touched(cls, offset: int, size: int) -> list[_Element]:
        """The words that an access of ``size`` bytes at ``offset`` touches: (offset, register, index)."""
        first = bisect_right(cls._offsets, offset) - 1
        if first < 0 or offset >= cls._offsets[first] + cls._elements[first][1].size:
            first += 1
        last = bisect_right(cls._offsets, offset + size - 1)
        return cls._elements[first:last]

    @classmethod
    def describe(cls, offset: int) -> str:
        """The name of what is at ``offset``: ``status``, ``doorbell[3]``, ``source+4``; a number in a gap."""
        touched = cls.touched(offset, 1)
        if not touched:
            return f"{offset:#x}"
        start, register, index = touched[0]
        name = f"{register.name}[{index}]" if isinstance(register, RegisterArray) else register.name
        return name if start == offset else f"{name}+{offset - start}"

    @classmethod
    def decode(cls, offset: int, value: int, size: int) -> str:
        """One access for people: ``status = 0x81 [computing raise_irq]``."""
        touched = cls.touched(offset, size)
        name = cls.describe(offset)
        if len(touched) == 1 and touched[0][0] == offset and touched[0][1].size == size:
            return f"{name} = {touched[0][1].decode(value)}"
        return f"{name} = {value:#x}"


def hooks_of(owner: type) -> _Hooks:
    """The hooks that a class and its bases define, by (register, kind); a subclass's override counts."""
    names: dict[tuple[Description, str], str] = {}
    for base in reversed(owner.__mro__):
        here: dict[tuple[Description, str], str] = {}
        for name, value in vars(base).items():
            marks = getattr(value, "__dict__", {}).get(MARKS, ()) if callable(value) else ()
            for mark in marks:
                if mark in here:
                    raise ValueError(
                        f"{owner.__name__}: {here[mark]} and {name} are both on_{mark[1]} of register "
                        f"{mark[0].name}"
                    )
                here[mark] = name
        names.update(here)
    return {mark: getattr(owner, name) for mark, name in names.items()}


def _shift(value: int, lanes: int) -> int:
    return value << 8 * lanes if lanes >= 0 else value >> -8 * lanes


def _call(element: _Element, kind: str, on_map: _Hooks, on_owner: _Hooks) -> _Hook | None:
    """The hook as a function of the map and its arguments, or None. The owner's replaces the map's."""
    _, register, index = element
    array = isinstance(register, RegisterArray)
    hook = on_owner.get((register, kind))
    if hook is not None:
        call = hook
        if array:
            return lambda regs, *arguments: call(regs.owner, index, *arguments)
        return lambda regs, *arguments: call(regs.owner, *arguments)
    hook = on_map.get((register, kind))
    if hook is not None and array:
        inner = hook
        return lambda regs, *arguments: inner(regs, index, *arguments)
    return hook


def _make_reader(element: _Element, on_map: _Hooks, on_owner: _Hooks) -> _Reader:
    _, register, index = element
    slot, mask = register.slot + index, register.mask
    supply = on_owner.get((register, "read"))
    if supply is not None and isinstance(register, Register):  # the hot path: no call in between
        method = supply
        return lambda regs: method(regs.owner) & mask
    supply = _call(element, "read", on_map, on_owner)
    if supply is None:
        return lambda regs: regs.values[slot]
    function = supply
    return lambda regs: function(regs) & mask


def _make_writer(element: _Element, on_map: _Hooks, on_owner: _Hooks) -> _Writer:
    _, register, index = element
    slot, mask = register.slot + index, register.mask
    writable, access = register.writable, register.access
    on_store = _call(element, "store", on_map, on_owner)
    on_write = _call(element, "write", on_map, on_owner)

    if access == "ro":
        return lambda regs, value: None
    if on_store is None and on_write is None and access != "w1c" and writable == mask:

        def store(regs: RegisterMap, value: int) -> None:
            regs.values[slot] = value & mask

        return store

    def write(regs: RegisterMap, value: int) -> None:
        value &= mask
        old = regs.values[slot]
        new = old & ~(value & writable) if access == "w1c" else old & ~writable | value & writable
        if on_store is not None:
            new = on_store(regs, old, new) & mask
        regs.values[slot] = new
        if on_write is None:
            return
        if regs.due is None:
            on_write(regs, value)
        else:
            regs.due.append(partial(on_write, regs, value))

    return write
