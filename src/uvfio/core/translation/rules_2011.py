"""``Rules2011``: what may be mapped and unmapped by the ABI of 2011.

The rules stand over a ``Domain``, as those of a type1 container (``rules_type1.py``) and of an iommufd (``ioas.py``)
do. They have no state, so an object of them may be made for one call. What differs from the mainline rules: a range is
a range of pages and not of mappings.

    map      neighbours with the same permission that continue each other in both spaces become one mapping
    unmap    cuts mappings where the range begins and ends; holes, nothing mapped and size 0 are no errors

Every mapping can be read. A refused call changes nothing. A caller holds no lock; the domain's is taken here.
Behaviour: drivers/vfio/vfio_iommu.c of the RFC (vfio_dma_map), with the corrections listed in docs/rfc-2011.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.translation.address import (
    ADDRESS_MAX,
    PAGE_SIZE,
    check_aligned,
    check_size,
    check_wrap,
)
from uvfio.core.translation.iova import Mapping
from uvfio.core.translation.patches import join

if TYPE_CHECKING:
    from uvfio.core.seams import Mm
    from uvfio.core.translation.domain import Domain

__all__ = ["Rules2011"]


class Rules2011:
    """The mapping rules of 2011 over one domain."""

    __slots__ = ("domain",)

    def __init__(self, domain: Domain) -> None:
        self.domain = domain

    def map(
        self, iova: int, size: int, vaddr: int, mm: Mm, limit: int | None, *, writable: bool
    ) -> None:
        """Map ``size`` bytes at ``iova`` to ``vaddr`` of ``mm``; ``limit`` is RLIMIT_MEMLOCK in bytes (None: none).

        A range that is device memory only in part is charged as a whole. Raises, in this order: InvalidArgument
        (alignment, no size), WrapsAround, Gone, InvalidArgument (outside of what the IOMMU translates), Overlap,
        LimitExceeded (memory), BadAddress, TooManyMappings.
        """
        self._check(iova, size, vaddr)
        domain, last, pages = self.domain, iova + size - 1, size // PAGE_SIZE
        with domain.change() as change:
            domain.check_open(iova)
            domain.check_window(iova, last)
            domain.check_overlap(iova, last)
            change.charge(mm, pages, limit)
            pin = mm.memory.pin(vaddr, size, writable)
            charged = pin.locked > 0
            new = Mapping(iova, last, vaddr, writable, mm, charged, pages=pin.pages)
            joined = self._neighbours(new)
            domain.check_entries(len(domain.mappings) + 1 - len(joined))
            if joined:
                new.pages = join((m.vaddr, m.vaddr + m.size, m.pages) for m in (*joined, new))
            for neighbour in joined:
                new.first = min(new.first, neighbour.first)
                new.last = max(new.last, neighbour.last)
                new.vaddr = min(new.vaddr, neighbour.vaddr)
            domain.replace(joined, (new,))
            if not charged:
                mm.uncharge(pages)

    def unmap(self, iova: int, size: int) -> int:
        """Unmap what is mapped in the range; returns how many bytes that was.

        Raises, in this order: InvalidArgument (alignment), WrapsAround, TooManyMappings (one mapping would become
        two).
        """
        self._check(iova, size, 0, empty=True)
        if size == 0:
            return 0
        domain, last = self.domain, iova + size - 1
        with domain.lock:
            found = domain.mappings.overlapping(iova, last)
            if len(found) == 1 and found[0].first < iova and found[0].last > last:
                domain.check_entries(len(domain.mappings) + 1)
            done = domain.drop(found[1:-1])
            for mapping in dict.fromkeys(found[:1] + found[-1:]):
                done += self._trim(mapping, iova, last)
            return done

    def _trim(self, mapping: Mapping, first: int, last: int) -> int:
        """Unmap what ``mapping`` has in ``[first, last]``; returns how many bytes that was."""
        low, high = max(mapping.first, first), min(mapping.last, last)
        left = []
        if mapping.first < low:
            left.append(mapping.part(mapping.first, low - 1))
        if mapping.last > high:
            left.append(mapping.part(high + 1, mapping.last))
        self.domain.replace((mapping,), left)
        size = high - low + 1
        if mapping.charged:
            mapping.mm.uncharge(size // PAGE_SIZE)
        return size

    @staticmethod
    def _check(iova: int, size: int, vaddr: int, *, empty: bool = False) -> None:
        if (vaddr | iova | size) % PAGE_SIZE:
            check_aligned(PAGE_SIZE, "the page size ", vaddr=vaddr, iova=iova, size=size)
        if not empty:
            check_size(size)
        check_wrap("iova", iova, size)
        check_wrap("vaddr", vaddr, size)

    def _neighbours(self, new: Mapping) -> list[Mapping]:
        """The mappings below and above that ``new`` continues, with the same permission and kind of memory."""
        find, found = self.domain.mappings.find, []
        below = find(new.first - 1) if new.first else None
        if below and _alike(below, new) and below.vaddr + below.size == new.vaddr:
            found.append(below)
        above = find(new.last + 1) if new.last < ADDRESS_MAX else None
        if above and _alike(above, new) and above.vaddr == new.vaddr + new.size:
            found.append(above)
        return found


def _alike(one: Mapping, other: Mapping) -> bool:
    return (one.writable, one.mm, one.charged) == (other.writable, other.mm, other.charged)
