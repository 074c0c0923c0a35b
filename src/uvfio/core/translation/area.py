"""``Area`` and ``Backing``: the mappings of an iommufd's address space, and the memory behind them.

An ``Area`` is a mapping that has a ``Backing``: the memory that a program named in one call. Copies of an area in other
address spaces share the backing, so a page is charged once, however often it is mapped. An area is *held* while a page
table translates it: its pages are checked and charged then, and only then.

Holding and releasing an area costs the same however many areas of the backing are held (``coverage.py``).

A backing does not know which address space its areas are in. The caller holds the lock of the domain.
Behaviour: drivers/iommu/iommufd/pages.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.translation.address import PAGE_SIZE
from uvfio.core.translation.coverage import Coverage
from uvfio.core.translation.iova import UNPINNED, Mapping
from uvfio.core.translation.patches import Patch, join
from uvfio.errors import BadAddress, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvfio.core.seams import Mm, Pages

__all__ = ["Area", "Backing"]


class Backing:
    """Memory that a program named in one call (struct iopt_pages).

    ``mm`` is where it is; ``payer`` is charged for it within ``limit`` bytes (None: none). ``from_file``: addresses are
    offsets in a file and not in an address space.
    """

    __slots__ = ("_held", "_pages", "_patches", "from_file", "limit", "mm", "payer", "writable")

    def __init__(
        self,
        mm: Mm,
        writable: bool,
        payer: Mm,
        limit: int | None,
        *,
        from_file: bool = False,
    ) -> None:
        self.mm = mm
        self.writable = writable
        self.payer = payer
        self.limit = limit
        self.from_file = from_file
        self._held: dict[Area, None] = {}  # a set, in order
        self._pages = Coverage()
        self._patches: list[Patch] = []

    @property
    def locked(self) -> int:
        """How many pages are held."""
        return self._pages.total

    def hold(self, area: Area) -> None:
        """Check and charge the pages of ``area`` that are not held yet.

        Raises InvalidArgument (no permission), BadAddress (not mapped, not writable, or a device's own memory),
        LimitExceeded.
        """
        if not (area.readable or area.writable):
            raise InvalidArgument(f"{area!r} can be neither read nor written")
        span = _pages(area)
        more = self._pages.add(*span)
        if more:
            try:
                pages = self._pin(area)
                self.payer.charge(more, self.limit)
            except BaseException:
                self._pages.remove(*span)
                raise
            self._patches += self._missing(area, pages)
        self._held[area] = None
        first, last = _span(area)
        area.pages = join(
            (max(low, first), min(high, last), part)
            for low, high, part in self._patches
            if low < last and first < high
        )

    def _pin(self, area: Area) -> Pages:
        pages, taken = self.mm.memory.pin(area.vaddr, area.size, self.writable)
        if taken < area.size:
            raise BadAddress(
                f"{area.vaddr:#x}+{area.size:#x} has {area.size - taken:#x} bytes of a device's memory",
                "containers of /dev/vfio/vfio take it, /dev/iommu does not",
            )
        return pages

    def release(self, area: Area) -> None:
        """Stop holding the area; pages that no other area holds are uncharged."""
        del self._held[area]
        area.pages = UNPINNED
        first, last = _pages(area)
        fewer = self._pages.remove(first, last)
        self.payer.uncharge(fewer)
        if not self._held:
            self._patches = []
        elif fewer:
            for low, high in self._pages.gaps(first, last):
                self._drop(low * PAGE_SIZE, (high + 1) * PAGE_SIZE)

    def _drop(self, start: int, end: int) -> None:
        """No page from ``start`` to before ``end`` is held any more."""
        left: list[Patch] = []
        for low, high, part in self._patches:
            if low < min(high, start):
                left.append((low, min(high, start), part))
            if max(low, end) < high:
                left.append((max(low, end), high, part))
        self._patches = left

    def _missing(self, area: Area, pages: Pages) -> list[Patch]:
        """What of the pages of ``area`` is not held yet: a page that is held stays the page that it was."""
        at, end = _span(area)
        found: list[Patch] = []
        for low, high, _ in sorted(self._patches, key=lambda patch: patch[0]):
            if low < end and at < high:
                if at < low:
                    found.append((at, low, pages))
                at = high
        if at < end:
            found.append((at, end, pages))
        return found

    def divide(self, area: Area, parts: Sequence[Area]) -> None:
        """Replace ``area`` by ``parts``, which together are the same range; what is held stays held."""
        if area in self._held:
            for part in parts:
                self._pages.add(*_pages(part))
                self._held[part] = None
            del self._held[area]
            self._pages.remove(*_pages(area))


class Area(Mapping):
    """What one call has mapped, or a part of it after a cut (struct iopt_area). Its ``backing`` is charged."""

    __slots__ = ("backing",)

    def __init__(
        self, first: int, last: int, vaddr: int, backing: Backing, readable: bool, writable: bool
    ) -> None:
        super().__init__(first, last, vaddr, writable, backing.mm, False, readable)
        self.backing = backing

    def part(self, first: int, last: int) -> Area:
        """The part from ``first`` to ``last``, both inclusive: the same backing at the matching address."""
        vaddr = self.vaddr + (first - self.first)
        made = Area(first, last, vaddr, self.backing, self.readable, self.writable)
        made.pages = self.pages
        return made


def _span(area: Area) -> tuple[int, int]:
    """The pages of the area: the address of the first, and the address behind the last."""
    end = area.vaddr + area.size
    return area.vaddr & -PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE


def _pages(area: Area) -> tuple[int, int]:
    """The first and the last page of the backing that the area touches."""
    return area.vaddr // PAGE_SIZE, (area.vaddr + area.size - 1) // PAGE_SIZE
