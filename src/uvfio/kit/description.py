"""What a data sheet says about one register: ``Register``, ``RegisterArray``, ``Field``.

A description is immutable once the class it stands in is made, and holds no value: the values live in the
``RegisterMap`` instance (``register.py``, which is where the rules are told and where these names are to be
imported from). As descriptors they give the value on an instance and themselves on the class.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from uvfio.kit.register import RegisterMap

__all__ = [
    "Access",
    "ArrayValues",
    "Description",
    "Field",
    "FieldSpec",
    "Register",
    "RegisterArray",
]

Access = Literal["rw", "ro", "wo", "w1c"]
FieldSpec = int | tuple[int, int] | tuple[int, int, type[Enum]]
"""A bit, ``(msb, lsb)``, or ``(msb, lsb, names of the values)``."""

S = TypeVar("S")
R = TypeVar("R", bound="Description")

SIZES = (1, 2, 4, 8)
MARKS = "_register_hooks"


class Field:
    """Bits ``msb`` down to ``lsb`` of a register; ``values`` names what they may say. ``mask``: them in place."""

    __slots__ = ("lsb", "mask", "msb", "values")

    def __init__(self, msb: int, lsb: int, values: type[Enum] | None = None) -> None:
        self.msb = msb
        self.lsb = lsb
        self.values = values
        self.mask = (2 << msb) - (1 << lsb) if 0 <= lsb <= msb else 0


class Description:
    """What a scalar register and an array have in common. Constant once its map's class is made."""

    def __init__(
        self,
        offset: int,
        size: int = 4,
        *,
        reset: int = 0,
        access: Access = "rw",
        fields: Mapping[str, FieldSpec] | None = None,
        writable: int | None = None,
        widths: tuple[int, ...] | None = None,
        doc: str = "",
        count: int = 1,
        stride: int | None = None,
    ) -> None:
        self.name = ""
        self.offset = offset
        self.size = size
        self.reset = reset
        self.access = access
        self.doc = doc
        self.count = count
        self.stride = size if stride is None else stride
        self.mask = (1 << 8 * size) - 1 if size in SIZES else 0
        self.writable = self.mask if writable is None else writable
        self.widths = widths or ()
        self.slot = -1
        self._specs = dict(fields or {})
        self.fields: dict[str, Field] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __repr__(self) -> str:
        array = f", count={self.count}, stride={self.stride:#x}" if self.count > 1 else ""
        return f"<{type(self).__name__} {self.name} at {self.offset:#x}, {self.size} bytes{array}>"

    # -- values ----------------------------------------------------------------------------------

    def unpack(self, value: int) -> dict[str, int]:
        """The fields of ``value`` by name."""
        return {name: (value & f.mask) >> f.lsb for name, f in self.fields.items()}

    def pack(self, **fields: int) -> int:
        """The value with these fields, all other bits 0. ValueError for a field or value that does not fit."""
        return self.replace(0, **fields)

    def replace(self, value: int, **fields: int) -> int:
        """``value`` with these fields changed. ValueError for a field or value that does not fit."""
        for name, bits in fields.items():
            field = self.fields.get(name)
            if field is None:
                raise ValueError(f"register {self.name} has no field {name!r}")
            if not 0 <= bits << field.lsb <= field.mask:
                raise ValueError(f"{bits:#x} does not fit field {name} of register {self.name}")
            value = value & ~field.mask | bits << field.lsb
        return value

    def fit(self, value: int) -> int:
        """``value`` in the bits of the register; a carry or a sign is dropped. ValueError for a value that is wider,
        TypeError for what is no whole number."""
        try:
            if value >> 8 * self.size in (0, 1, -1):
                return value & self.mask
        except TypeError:
            raise TypeError(f"register {self.name} takes a whole number, not {value!r}") from None
        raise ValueError(
            f"{value:#x} is wider than register {self.name}, which has {self.size} bytes: cut it with a mask"
        )

    def decode(self, value: int) -> str:
        """``0x81 [computing raise_irq]``: the value and its fields that are not 0, for people."""
        parts = []
        for name, field in self.fields.items():
            bits = (value & field.mask) >> field.lsb
            if field.values is not None:
                label = next((m.name for m in field.values if m.value == bits), f"{bits:#x}")
                parts.append(f"{name}={label}")
            elif bits:
                parts.append(name if field.msb == field.lsb else f"{name}={bits:#x}")
        return f"{value:#x} [{' '.join(parts)}]" if parts else f"{value:#x}"

    def describe(self) -> dict[str, object]:
        """The description as JSON values; fields are ``[msb, lsb]``."""
        return {
            "name": self.name,
            "offset": self.offset,
            "size": self.size,
            "access": self.access,
            "reset": self.reset,
            "count": self.count,
            "stride": self.stride,
            "fields": {name: [f.msb, f.lsb] for name, f in self.fields.items()},
            "doc": self.doc,
        }

    # -- definition ------------------------------------------------------------------------------

    def check(self, where: str, widths: tuple[int, ...]) -> None:
        """Complete the description, or raise ValueError that says what is wrong with it."""
        name = f"{where}.{self.name}"
        if self.size not in SIZES:
            raise ValueError(f"{name}: size must be 1, 2, 4 or 8, not {self.size}")
        if self.offset < 0 or self.offset % self.size:
            raise ValueError(
                f"{name}: offset {self.offset:#x} is not a multiple of its size {self.size}"
            )
        if self.access not in ("rw", "ro", "wo", "w1c"):
            raise ValueError(f"{name}: access must be rw, ro, wo or w1c, not {self.access!r}")
        if self.count < 1:
            raise ValueError(f"{name}: count must be at least 1, not {self.count}")
        if self.stride < self.size or self.stride % self.size:
            raise ValueError(
                f"{name}: stride {self.stride:#x} is not a multiple of its size {self.size}"
            )
        for what, value in (("reset value", self.reset), ("writable mask", self.writable)):
            if not 0 <= value <= self.mask:
                raise ValueError(f"{name}: {what} {value:#x} does not fit {self.size} bytes")
        self.widths = self.widths or widths
        if not set(self.widths) <= set(SIZES):
            raise ValueError(f"{name}: widths must be some of 1, 2, 4, 8, not {self.widths}")
        taken = 0
        for label, spec in self._specs.items():
            field = Field(spec, spec) if isinstance(spec, int) else Field(*spec)
            if not 0 <= field.lsb <= field.msb < 8 * self.size:
                raise ValueError(
                    f"{name}: field {label} ({field.msb}, {field.lsb}) is not (msb, lsb) within "
                    f"{8 * self.size} bits"
                )
            if taken & field.mask:
                raise ValueError(f"{name}: field {label} shares bits with another field")
            taken |= field.mask
            self.fields[label] = field

    def _mark(self, function: Callable[..., object], kind: str) -> None:
        forbidden = {"read": "wo", "store": "ro", "write": "ro"}[kind]
        if self.access == forbidden:
            raise ValueError(f"on_{kind} of register {self.name}, which is {forbidden}")
        vars(function).setdefault(MARKS, []).append((self, kind))


class Register(Description):
    """One register of ``size`` 1, 2, 4 or 8 bytes at ``offset``.

    ``fields`` names bits, ``writable`` limits the bits that ``rw`` and ``wo`` store or ``w1c`` clears, ``widths``
    the sizes of access (default: the map's). A keyword given wrongly is a ValueError of the map's class.
    """

    def __init__(
        self,
        offset: int,
        size: int = 4,
        *,
        reset: int = 0,
        access: Access = "rw",
        fields: Mapping[str, FieldSpec] | None = None,
        writable: int | None = None,
        widths: tuple[int, ...] | None = None,
        doc: str = "",
    ) -> None:
        super().__init__(
            offset,
            size,
            reset=reset,
            access=access,
            fields=fields,
            writable=writable,
            widths=widths,
            doc=doc,
        )

    @overload
    def __get__(self: R, instance: None, owner: type) -> R: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> int: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> object:
        return self if instance is None else instance.values[self.slot]

    def __set__(self, instance: RegisterMap, value: int) -> None:
        mask = self.mask
        if value.__class__ is int and 0 <= value <= mask:
            instance.values[self.slot] = value
        else:
            instance.values[self.slot] = self.fit(value)

    def on_read(self, method: Callable[[S], int]) -> Callable[[S], int]:
        """Mark the method that returns the value a bus read gets."""
        self._mark(method, "read")
        return method

    def on_store(self, method: Callable[[S, int, int], int]) -> Callable[[S, int, int], int]:
        """Mark the method that, given the old and the new value, returns the value to keep."""
        self._mark(method, "store")
        return method

    def on_write(self, method: Callable[[S, int], None]) -> Callable[[S, int], None]:
        """Mark the method that is called with the word written, after it was stored."""
        self._mark(method, "write")
        return method


class RegisterArray(Description):
    """``count`` registers, each ``stride`` bytes after the one before (default: side by side)."""

    @overload
    def __get__(self: R, instance: None, owner: type) -> R: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> ArrayValues: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> object:
        return self if instance is None else ArrayValues(instance, self)

    def __set__(self, instance: RegisterMap, value: ArrayValues) -> None:
        raise AttributeError(f"assign the elements of {self.name}, not the array")

    def on_read(self, method: Callable[[S, int], int]) -> Callable[[S, int], int]:
        """Mark the method that, given the index, returns the value a bus read gets."""
        self._mark(method, "read")
        return method

    def on_store(
        self, method: Callable[[S, int, int, int], int]
    ) -> Callable[[S, int, int, int], int]:
        """Mark the method that, given index, old and new value, returns the value to keep."""
        self._mark(method, "store")
        return method

    def on_write(self, method: Callable[[S, int, int], None]) -> Callable[[S, int, int], None]:
        """Mark the method that is called with the index and the word written, after it was stored."""
        self._mark(method, "write")
        return method


class ArrayValues:
    """The values of a register array, as a sequence of fixed length."""

    __slots__ = ("_array", "_map")

    def __init__(self, registers: RegisterMap, array: RegisterArray) -> None:
        self._map = registers
        self._array = array

    def __len__(self) -> int:
        return self._array.count

    def __iter__(self) -> Iterator[int]:
        first = self._array.slot
        return iter(self._map.values[first : first + self._array.count])

    def __getitem__(self, index: int) -> int:
        return self._map.values[self._array.slot + self._index(index)]

    def __setitem__(self, index: int, value: int) -> None:
        self._map.values[self._array.slot + self._index(index)] = self._array.fit(value)

    def _index(self, index: int) -> int:
        if not 0 <= index < self._array.count:
            raise IndexError(f"{self._array.name}[{index}]: it has {self._array.count} elements")
        return index
