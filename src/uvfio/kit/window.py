"""Windows: what answers bus accesses inside a BAR or a region of a model.

An access reaches a window aligned, with 1, 2, 4 or 8 bytes, at an offset from the beginning of the BAR or region. A
``RegisterMap`` is a window too. Values are little-endian integers.

Windows do not know configuration space, device trees or programs, and check no bounds: that is done by the driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AbsentWindow", "CallWindow", "MemoryWindow", "OverlayWindow", "Window", "zero"]

PIECE = 1 << 20
ZEROS = bytes(PIECE)


class Window(Protocol):
    """What answers accesses to a BAR or region. Offsets count from its beginning."""

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes at ``offset``, as a little-endian integer."""

    def write(self, offset: int, value: int, size: int) -> None:
        """Store ``value``, of ``size`` bytes, at ``offset``."""


class AbsentWindow:
    """Nothing answers: reads give ones, writes vanish."""

    def read(self, offset: int, size: int) -> int:
        """Ones."""
        return (1 << 8 * size) - 1

    def write(self, offset: int, value: int, size: int) -> None:
        """Discard the store."""


class MemoryWindow:
    """Plain memory: the bytes that ``memories`` has for number ``index`` at the time of the access."""

    def __init__(self, memories: dict[int, memoryview], index: int) -> None:
        self._memories = memories
        self._index = index

    def read(self, offset: int, size: int) -> int:
        """``size`` bytes at ``offset`` of the memory, as a little-endian integer."""
        return int.from_bytes(self._memories[self._index][offset : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """Slice assignment copies at once: an aligned word is not seen half written on x86-64."""
        self._memories[self._index][offset : offset + size] = value.to_bytes(size, "little")


def zero(memory: memoryview) -> None:
    """Zero memory in pieces of 1 MiB. A piece that is zero is not written, so it takes no pages if it had none."""
    for at in range(0, len(memory), PIECE):
        piece = memory[at : at + PIECE]
        if bytes(piece) != ZEROS[: len(piece)]:
            piece[:] = ZEROS[: len(piece)]


class CallWindow:
    """Functions of (offset, size) and (offset, value, size); without ``write`` it is read-only."""

    def __init__(
        self,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        """What the function for reads returns."""
        return self._read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """Call the function for writes; without one the store is discarded."""
        if self._write is not None:
            self._write(offset, value, size)


class OverlayWindow:
    """``base`` with others laid over ranges of it: the MSI-X table inside a BAR of registers."""

    def __init__(self, base: Window, parts: Sequence[tuple[int, int, Window]]) -> None:
        self._base = base
        self._parts = tuple(parts)

    def read(self, offset: int, size: int) -> int:
        """Read from the part that has ``offset``, else from the base."""
        for first, end, window in self._parts:
            if first <= offset < end:
                return window.read(offset - first, size)
        return self._base.read(offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """Store in the part that has ``offset``, else in the base."""
        for first, end, window in self._parts:
            if first <= offset < end:
                window.write(offset - first, value, size)
                return
        self._base.write(offset, value, size)
