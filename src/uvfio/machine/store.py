"""``ByteStore``: region memory in bytearrays, the ``Store`` of a machine that lives in the caller's own process.

Loads and stores in this memory cannot fault. A door that maps it checks ``hidden`` before each access. Stores in
mapped registers take effect when ``look()`` is called; the calls of a local process do that.

Large memory takes no pages before it is written to, so that a machine with a BAR of 1 TiB can be listed.

The module does no I/O and starts no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.errors import Busy, NoMemory
from uvfio.kit.window import zero

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["ByteStore"]


LARGE: Final = 1 << 20
MAP_NORESERVE: Final = 0x4000  # <asm-generic/mman-common.h>; in the module mmap from Python 3.13 on


def _zeroed(device: str, size: int) -> memoryview:
    if size < LARGE:
        return memoryview(bytearray(size))
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    try:
        return memoryview(mmap.mmap(-1, size, flags=flags))
    except (OSError, MemoryError) as error:
        raise NoMemory(f"{device}: no {size:#x} bytes of memory: {error}") from error


class ByteStore:
    """Region memory in bytearrays. A device's memory lives as long as a view of it."""

    def __init__(self) -> None:
        self._memory: dict[str, dict[int, memoryview]] = {}
        self._hidden: set[str] = set()
        self._looks: list[Callable[[], bool]] = []

    def allocate(
        self, device: str, sizes: Mapping[int, int], late: Collection[int] = ()
    ) -> Mapping[int, memoryview]:
        """Zeroed memory for each region. Busy when ``device`` has some already, NoMemory."""
        if device in self._memory:
            raise Busy(f"{device} has memory already")
        views = {index: _zeroed(device, size) for index, size in sizes.items()}
        self._memory[device] = views
        return views

    def release(self, device: str) -> None:
        """Forget the device's memory (idempotent)."""
        self._memory.pop(device, None)
        self._hidden.discard(device)

    def populate(self, device: str, index: int) -> None:
        """Nothing: ``allocate`` gave the region its memory."""

    def clear(self, device: str, index: int) -> None:
        """Let the region be zero."""
        zero(self._memory[device][index])

    def hide(self, device: str) -> None:
        """Mark the memory as hidden (idempotent). A bytearray cannot fault: accessors check ``hidden``."""
        self._hidden.add(device)

    def show(self, device: str) -> None:
        """Mark the memory as shown (idempotent)."""
        self._hidden.discard(device)

    def hidden(self, device: str) -> bool:
        """Whether accesses of programs to the device's memory have to fault."""
        return device in self._hidden

    def watch(self, look: Callable[[], bool]) -> Callable[[], None]:
        """Register ``look``. There is no timer: only ``look()`` calls it."""
        self._looks.append(look)

        def stop() -> None:
            if look in self._looks:
                self._looks.remove(look)

        return stop

    def look(self) -> None:
        """Take up what was stored in mapped registers."""
        for look in tuple(self._looks):
            look()

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that have memory."""
        return tuple(self._memory)
