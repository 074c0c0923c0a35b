"""Physical configuration space of a function, bit by bit.

Every bit is one of: fixed, writable, or write-1-to-clear; ``define`` says which. ``write`` is what the bus
does and obeys; ``get`` and ``put`` are the silicon's own access. A hook is called after a bus write that
touched its aligned double word: enabling MSI, starting a function level reset and the like hang there.

Reads outside the space give ones, writes there are ignored, as on the bus. No hook is called by ``put``,
``reset`` or construction. This class knows neither capabilities nor what any bit means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ConfigSpace"]


class ConfigSpace:
    """``size`` bytes, all 0 and fixed until they are defined. ``seal`` makes the present state power-on."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)
        self._writable = bytearray(size)
        self._clearable = bytearray(size)
        self._power_on = bytes(size)
        self._hooks: dict[int, Callable[[], None]] = {}

    def define(
        self, offset: int, size: int, value: int, *, writable: int = 0, w1c: int = 0
    ) -> None:
        """A register of ``size`` bytes with its power-on ``value`` and the masks of its bits."""
        end = offset + size
        self.data[offset:end] = value.to_bytes(size, "little")
        self._writable[offset:end] = writable.to_bytes(size, "little")
        self._clearable[offset:end] = w1c.to_bytes(size, "little")

    def seal(self) -> None:
        """What the space holds now is what a reset restores."""
        self._power_on = bytes(self.data)

    @property
    def power_on(self) -> bytes:
        """What a reset restores."""
        return self._power_on

    def reset(self) -> None:
        """Power-on values everywhere."""
        self.data[:] = self._power_on

    def on_write(self, offset: int, hook: Callable[[], None]) -> None:
        """Call ``hook`` after each bus write to the aligned double word around ``offset``."""
        self._hooks[offset & ~3] = hook

    def get(self, offset: int, size: int) -> int:
        """The silicon reads."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int) -> None:
        """The silicon writes, whatever the masks say."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def read(self, offset: int, size: int) -> int:
        """A bus read of 1, 2 or 4 bytes."""
        if not 0 <= offset <= self.size - size:
            return (1 << 8 * size) - 1
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """A bus write of 1, 2 or 4 bytes."""
        if not 0 <= offset <= self.size - size:
            return
        end = offset + size
        value &= (1 << 8 * size) - 1
        old = int.from_bytes(self.data[offset:end], "little")
        writable = int.from_bytes(self._writable[offset:end], "little")
        clearable = int.from_bytes(self._clearable[offset:end], "little")
        new = (old & ~writable | value & writable) & ~(value & clearable)
        self.data[offset:end] = new.to_bytes(size, "little")
        hook = self._hooks.get(offset & ~3)
        if hook is not None:
            hook()
