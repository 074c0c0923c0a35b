"""Regions and interrupt lines of a platform model: how they are declared, and what is on an instance.

A declaration is a class attribute of the model and gives, on an instance, the thing itself::

    regs = RegisterRegion(0, TimerRegisters)        # self.regs: a TimerRegisters
    log = MemoryRegion(1, 4096, node="log")         # self.log: a memoryview
    elapsed = LevelLine(0)                          # self.elapsed.set(True)
    overflow = EdgeLine(1, node="log")              # self.overflow.pulse()

Numbers are those that programs use. ``node`` names the child node that the resource stems from; it counts only
where the machine makes the device tree up itself, a described tree says it itself.

The size is the least that a device tree may give: registers need all of theirs, memory takes what it gets.
What the declarations do not do: they allocate nothing and know no device tree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload

from uvfio.kit.polled import check_mapped, kind_of_mapping
from uvfio.kit.register import RegisterMap

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EdgeLine",
    "EdgeWire",
    "LevelLine",
    "LevelWire",
    "LineDeclaration",
    "MemoryRegion",
    "RegionDeclaration",
    "RegisterRegion",
]

PAGE = 4096
M = TypeVar("M", bound=RegisterMap)


class LevelWire:
    """A level interrupt. ``tell(index, level)`` hears of changes only."""

    __slots__ = ("_index", "_tell", "level")

    def __init__(self, index: int, tell: Callable[[int, bool], None]) -> None:
        self._index = index
        self._tell = tell
        self.level = False

    def set(self, level: bool) -> None:
        """The wire has this level from now on."""
        if level != self.level:
            self.level = level
            self._tell(self._index, level)


class EdgeWire:
    """An edge interrupt. ``tell(index, True)`` hears of each edge."""

    __slots__ = ("_index", "_tell")

    def __init__(self, index: int, tell: Callable[[int, bool], None]) -> None:
        self._index = index
        self._tell = tell

    def pulse(self) -> None:
        """One edge."""
        self._tell(self._index, True)


class _HasResources(Protocol):
    register_maps: dict[int, RegisterMap]
    memories: dict[int, memoryview]
    wires: dict[int, LevelWire | EdgeWire]


class RegionDeclaration:
    """What the kinds of region have in common. ``size`` is what a made-up device tree gives, ``least`` what a
    described one has to. ValueError for a size that is no multiple of 4 or less than ``least``."""

    polled = False

    def __init__(self, index: int, size: int, least: int, node: str, mappable: bool) -> None:
        if size < least or size <= 0 or size % 4:
            raise ValueError(
                f"region {index}: size {size:#x} is no multiple of 4 of at least {least:#x}"
            )
        self.name = ""
        self.index = index
        self.size = size
        self.least = least
        self.node = node
        self.mappable = mappable

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "index": self.index,
            "name": self.name,
            "kind": "memory" if isinstance(self, MemoryRegion) else "registers",
            "size": self.size,
            "mappable": self.mappable,
            "mapping": kind_of_mapping(self.mappable, self.polled),
            "node": self.node,
            "registers": [],
        }


class RegisterRegion(RegionDeclaration, Generic[M]):
    """Registers as region ``index``. ``size`` 0: whole pages.

    ``mapped`` "polled": programs can map it if the device tree puts it on whole pages, and ``polled.py`` says what
    that is worth. ValueError for registers that cannot be polled.
    """

    def __init__(
        self,
        index: int,
        registers: type[M],
        *,
        size: int = 0,
        node: str = "",
        mapped: str = "",
    ) -> None:
        pages = -(-max(registers.span, 1) // PAGE) * PAGE
        self.polled = check_mapped(mapped, registers, f"region {index}")
        super().__init__(index, size or pages, registers.span, node, mappable=self.polled)
        self.registers = registers

    def describe(self) -> dict[str, object]:
        """As JSON values, with the registers."""
        registers = [register.describe() for register in self.registers.registers.values()]
        return {**super().describe(), "registers": registers}

    @overload
    def __get__(self, instance: None, owner: type) -> RegisterRegion[M]: ...
    @overload
    def __get__(self, instance: _HasResources, owner: type) -> M: ...
    def __get__(self, instance: _HasResources | None, owner: type) -> object:
        return self if instance is None else instance.register_maps[self.index]


class MemoryRegion(RegionDeclaration):
    """Plain memory as region ``index``, mappable by programs if the device tree puts it on whole pages.

    A reset clears it, so that the next owner does not see the data of the last one; ``keep`` preserves the contents.
    ``writable`` False: programs read it only, and cannot map it.
    """

    def __init__(
        self,
        index: int,
        size: int,
        *,
        node: str = "",
        mappable: bool = True,
        writable: bool = True,
        keep: bool = False,
    ) -> None:
        super().__init__(index, size, size, node, mappable and writable)
        self.writable = writable
        self.keep = keep

    @overload
    def __get__(self, instance: None, owner: type) -> MemoryRegion: ...
    @overload
    def __get__(self, instance: _HasResources, owner: type) -> memoryview: ...
    def __get__(self, instance: _HasResources | None, owner: type) -> object:
        return self if instance is None else instance.memories[self.index]


class LineDeclaration:
    """What the kinds of interrupt line have in common."""

    level: bool

    def __init__(self, index: int, *, node: str = "") -> None:
        self.name = ""
        self.index = index
        self.node = node

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "index": self.index,
            "name": self.name,
            "trigger": "level" if self.level else "edge",
            "node": self.node,
        }


class LevelLine(LineDeclaration):
    """Interrupt ``index``, level-triggered: high until the program has dealt with the cause."""

    level = True

    @overload
    def __get__(self, instance: None, owner: type) -> LevelLine: ...
    @overload
    def __get__(self, instance: _HasResources, owner: type) -> LevelWire: ...
    def __get__(self, instance: _HasResources | None, owner: type) -> object:
        return self if instance is None else instance.wires[self.index]


class EdgeLine(LineDeclaration):
    """Interrupt ``index``, edge-triggered: an event, over when it has happened."""

    level = False

    @overload
    def __get__(self, instance: None, owner: type) -> EdgeLine: ...
    @overload
    def __get__(self, instance: _HasResources, owner: type) -> EdgeWire: ...
    def __get__(self, instance: _HasResources | None, owner: type) -> object:
        return self if instance is None else instance.wires[self.index]
