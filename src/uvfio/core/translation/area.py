"""``Area`` and ``Backing``: the mappings of an iommufd's address space, and the memory behind them.

An ``Area`` is a mapping that has a ``Backing``: the memory that a program named in one call. Copies of an area in other
address spaces share the backing, so a page is charged once, however often it is mapped. An area is *held* while a page
table translates it: its pages are checked and charged then, and only then.

A backing does not know which address space its areas are in. The caller holds the lock of the domain.
Behaviour: drivers/iommu/iommufd/pages.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.translation.address import PAGE_SIZE
from uvfio.core.translation.address import join as join_spans
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
    offsets in a file and not in an address space. ``locked`` counts the pages that are held.
    """

    __slots__ = ("_held", "_patches", "from_file", "limit", "locked", "mm", "payer", "writable")

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
        self.locked = 0
        self._held: list[Area] = []
        self._patches: list[Patch] = []

    def hold(self, area: Area) -> None:
        """Check and charge the pages of ``area`` that are not held yet.

        Raises InvalidArgument (no permission), BadAddress (not mapped, not writable, or a device's own memory),
        LimitExceeded.
        """
        if not (area.readable or area.writable):
            raise InvalidArgument(f"{area!r} can be neither read nor written")
        pages = _pages([*self._held, area])
        if pages > self.locked:
            pages_of, taken = self.mm.memory.pin(area.vaddr, area.size, self.writable)
            if taken < area.size:
                raise BadAddress(
                    f"{area.vaddr:#x}+{area.size:#x} has {area.size - taken:#x} bytes of a device's memory",
                    "containers of /dev/vfio/vfio take it, /dev/iommu does not",
                )
            self.payer.charge(pages - self.locked, self.limit)
            self._patches += self._missing(area, pages_of)
        self.locked = pages
        self._held.append(area)
        first, last = _span(area)
        area.pages = join(
            (max(low, first), min(high, last), part)
            for low, high, part in self._patches
            if low < last and first < high
        )

    def release(self, area: Area) -> None:
        """Stop holding the area; pages that no other area holds are uncharged."""
        self._held.remove(area)
        area.pages = UNPINNED
        pages = _pages(self._held)
        self.payer.uncharge(self.locked - pages)
        if pages < self.locked:
            spans = join_spans((first, last - 1) for first, last in map(_span, self._held))
            self._patches = [
                (max(low, first), min(high, last + 1), part)
                for low, high, part in self._patches
                for first, last in spans
                if low <= last and first < high
            ]
        self.locked = pages

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
            self._held.remove(area)
            self._held.extend(parts)


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


def _pages(areas: Sequence[Area]) -> int:
    """How many pages of one backing the areas touch together."""
    if not areas:
        return 0
    spans = [(area.vaddr // PAGE_SIZE, (area.vaddr + area.size - 1) // PAGE_SIZE) for area in areas]
    return sum(last - first + 1 for first, last in join_spans(spans))
