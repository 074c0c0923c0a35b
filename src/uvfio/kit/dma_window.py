"""``DmaWindows``: DMA for devices that make millions of accesses.

``self.dma`` asks the gate and the domain at each access. A device that moves frames does that once per burst
instead: ``refresh`` looks whether the gate is open and whether the mappings are still those of the last burst, and
until the next ``refresh`` accesses go straight to windows on the program's own memory. Where there is no window
(private memory of a program, an access across two mappings, a hole) they take the way of ``self.dma``, with its
copies and its faults, so that nothing but the speed depends on windows.

Invariants: no window is used across a change of mappings, bus mastering or attachment that happened before the
burst. Within a burst no other code runs, as long as one thread serves the machine. Bytes are counted like those
of other accesses.

It knows no ring and no frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from uvfio.errors import DmaFault

if TYPE_CHECKING:
    from uvfio.core.translation.domain import Domain, WindowUser
    from uvfio.kit.dma import PlainDma

__all__ = ["DmaWindows"]

_PAGE_SHIFT = 12
_KEPT = 65536
_Window = tuple[int, int, memoryview]
_NOWHERE: _Window = (0, 0, memoryview(b""))


class DmaWindows:
    """Windows of the device behind ``dma``. ``changes`` counts how often all of them were given up."""

    __slots__ = (
        "__weakref__",
        "_dma",
        "_domain",
        "_generation",
        "_last",
        "_pages",
        "_users",
        "changes",
    )

    def __init__(self, dma: PlainDma) -> None:
        self._dma = dma
        self._domain: Domain | None = None
        self._generation = -1
        self._pages: dict[int, _Window] = {}
        self._last = _NOWHERE
        self._users: WeakSet[WindowUser] = WeakSet()
        self.changes = 0

    def refresh(self) -> None:
        """A burst begins: give up windows that may not be used any more."""
        domain = self._dma.domain if self._dma.direct else None
        generation = domain.generation if domain is not None else -1
        if domain is not self._domain or generation != self._generation:
            if self._domain is not None:
                self._domain.window_users.discard(self)
            if domain is not None:
                domain.window_users.add(self)
            self._domain = domain
            self.forget()
            self._generation = generation

    def add_user(self, user: WindowUser) -> None:
        """``user`` keeps views from one burst to the next: call its ``forget`` when they may not be used any more."""
        self._users.add(user)

    def forget(self) -> None:
        """Give up all windows, and let those who keep views do so."""
        self._pages.clear()
        self._last = _NOWHERE
        self._generation = -1
        self.changes += 1
        for user in tuple(self._users):
            user.forget()

    def read(self, iova: int, size: int) -> bytes:
        """``size`` bytes at ``iova``. DmaFault."""
        first, end, window = self._last
        if not (first <= iova and iova + size <= end):
            first, end, window = self._find(iova)
            if iova + size > end:
                return self._dma.read(iova, size)
        domain = self._domain
        assert domain is not None
        domain.counters.read += size
        at = iova - first
        return bytes(window[at : at + size])

    def write(self, iova: int, data: bytes) -> None:
        """All of ``data`` to ``iova``. DmaFault."""
        size = len(data)
        first, end, window = self._last
        if not (first <= iova and iova + size <= end):
            first, end, window = self._find(iova)
            if iova + size > end:
                self._dma.write(iova, data)
                return
        domain = self._domain
        assert domain is not None
        domain.counters.written += size
        at = iova - first
        window[at : at + size] = data

    def read_all(self, segments: list[tuple[int, int]]) -> list[bytes]:
        """What is at each (address, size), without those where a DmaFault was recorded."""
        found: list[bytes] = []
        first, end, window = self._last
        size = 0
        for iova, length in segments:
            if first <= iova and iova + length <= end:
                at = iova - first
                found.append(window[at : at + length].tobytes())
                size += length
                continue
            try:
                found.append(self.read(iova, length))
            except DmaFault:
                pass  # the others are not concerned
            first, end, window = self._last
        if self._domain is not None:
            self._domain.counters.read += size
        return found

    def store(self, iova: int, value: int, width: int) -> None:
        """One aligned store, as ``PlainDma.store``. DmaFault, InvalidArgument."""
        self._dma.store(iova, value, width)

    def view(self, iova: int, size: int) -> memoryview | None:
        """A window on exactly these bytes, valid until ``changes`` changes, or None where there is none."""
        first, end, window = self._find(iova)
        return window[iova - first : iova - first + size] if iova + size <= end else None

    def _find(self, iova: int) -> _Window:
        """The window around ``iova``; an empty one where there is none."""
        page = iova >> _PAGE_SHIFT
        found = self._pages.get(page)
        if found is None:
            domain = self._domain
            found = (
                domain.dma_window(iova, self._dma.name) if domain is not None else None
            ) or _NOWHERE
            if len(self._pages) >= _KEPT:
                self._pages.clear()
            self._pages[page] = found
        if found is not _NOWHERE:
            self._last = found
        return found
