"""Base address registers of a model: how they are declared.

A declaration is a class attribute of the model and gives, on an instance, what is behind the BAR::

    regs = RegisterBar(0, EduRegisters)             # self.regs: an EduRegisters
    memory = MemoryBar(2, 1 << 20)                  # self.memory: a memoryview

What a program may do with a BAR is its *mapping*: ``""`` registers, reached by calls only; ``"memory"`` plain bytes,
mapped; ``"polled"`` registers that are mapped too, see ``polled.py``.

What the declarations do not do: they allocate nothing and know no configuration space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, overload

from uvfio.drivers.pci.hardware import Bar, BarKind, bar_fault
from uvfio.kit.polled import check_mapped, kind_of_mapping
from uvfio.kit.register import RegisterMap

if TYPE_CHECKING:
    from uvfio.kit.option import Option

__all__ = [
    "BarDeclaration",
    "MemoryBar",
    "RegisterBar",
    "power_of_two",
]

PAGE = 4096
M = TypeVar("M", bound=RegisterMap)


class _HasBars(Protocol):
    register_maps: dict[int, RegisterMap]
    memories: dict[int, memoryview]


class BarDeclaration:
    """What the kinds of BAR have in common. ``size`` may be an option of the model."""

    def __init__(
        self,
        index: int,
        size: int | Option[int],
        kind: BarKind,
        prefetchable: bool = False,
        mappable: bool = False,
        polled: bool = False,
    ) -> None:
        self.name = ""
        self.index = index
        self.size = size
        self.kind = kind
        self.prefetchable = prefetchable
        self.mappable = mappable
        self.polled = polled

    @property
    def mapping(self) -> str:
        """ "memory", "polled" or empty; the module's head says what that means."""
        return kind_of_mapping(self.mappable, self.polled)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def facts(self, size: int) -> Bar:
        """The BAR with its size known. ValueError if no base address register can have it."""
        bar = Bar(size, self.kind, self.prefetchable, self.mappable, self.polled)
        fault = bar_fault(0, bar, least=PAGE if self.mappable else 0)  # neighbours: see PciModel
        if fault:
            raise ValueError(f"BAR {self.index}{fault}")
        return bar


class RegisterBar(BarDeclaration, Generic[M]):
    """Registers behind BAR ``index``. ``size`` 0: the next power of two, at least a page (I/O: 4 bytes).

    ``mapped`` "polled": programs can map it, and ``polled.py`` says what that is worth. ValueError for
    registers that cannot be polled.
    """

    def __init__(
        self,
        index: int,
        registers: type[M],
        *,
        size: int | Option[int] = 0,
        kind: BarKind = BarKind.MEMORY32,
        prefetchable: bool = False,
        mapped: str = "",
    ) -> None:
        least = 4 if kind is BarKind.IO else PAGE
        polled = check_mapped(mapped, registers, f"BAR {index}")
        if polled and kind is BarKind.IO:
            raise ValueError(f"BAR {index}: ports cannot be mapped")
        size = size or power_of_two(registers.span, least)
        super().__init__(index, size, kind, prefetchable, mappable=polled, polled=polled)
        self.registers = registers

    @overload
    def __get__(self, instance: None, owner: type) -> RegisterBar[M]: ...
    @overload
    def __get__(self, instance: _HasBars, owner: type) -> M: ...
    def __get__(self, instance: _HasBars | None, owner: type) -> object:
        return self if instance is None else instance.register_maps[self.index]


class MemoryBar(BarDeclaration):
    """Plain memory behind BAR ``index``; by default 64-bit, prefetchable, and mappable by programs.

    A reset clears it, so that the next owner does not see the data of the last one; ``keep`` preserves them,
    for large memories and for those that survive a reset in silicon.
    """

    def __init__(
        self,
        index: int,
        size: int | Option[int],
        *,
        kind: BarKind = BarKind.MEMORY64,
        prefetchable: bool = True,
        mappable: bool = True,
        keep: bool = False,
    ) -> None:
        super().__init__(index, size, kind, prefetchable, mappable)
        self.keep = keep

    @overload
    def __get__(self, instance: None, owner: type) -> MemoryBar: ...
    @overload
    def __get__(self, instance: _HasBars, owner: type) -> memoryview: ...
    def __get__(self, instance: _HasBars | None, owner: type) -> object:
        return self if instance is None else instance.memories[self.index]


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``size`` and ``least``."""
    return max(least, 1 << (size - 1).bit_length() if size > 1 else 1)
