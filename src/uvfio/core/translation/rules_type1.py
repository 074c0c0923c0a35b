"""``RulesType1``: what a container of type1 may map and unmap, in its two versions.

The rules stand over a ``Domain``: its map, its limits and its accounting are the same for every ABI. What
differs from ``Rules2011``: mappings are never joined, never cut, and reading is a
permission of its own.

    unmap of a range that ...        version 1                             version 2
    begins inside a mapping          stops there: nothing more is unmapped InvalidArgument
    ends inside a mapping            the whole mapping goes                InvalidArgument
    holds nothing                    0 bytes                               0 bytes

*Stale* addresses: a program that is about to execute another image announces (``invalidate``) that its
mappings will stand for other addresses, and names them afterwards (``renew``). Devices go on meanwhile.

*Dirty pages*: no IOMMU here keeps a log, so while tracking is on each page that is mapped counts as written,
as it does in a kernel whose hardware has no log either.

Every check comes before the first change. A caller holds no lock; the domain's is taken here.
Behaviour: drivers/vfio/vfio_iommu_type1.c, vfio_dma_do_map, vfio_dma_do_unmap, vfio_iova_dirty_bitmap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.core.translation.address import (
    PAGE_SIZE,
    Span,
    check_aligned,
    check_size,
    check_wrap,
    gaps,
)
from uvfio.core.translation.iova import UNPINNED, Mapping
from uvfio.errors import BadAddress, InvalidArgument, NotMapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.seams import Mm
    from uvfio.core.translation.domain import Domain

__all__ = ["RulesType1"]


class RulesType1:
    """The mappings of one container; ``version`` is 1 or 2. ``tracking``: dirty pages are asked for."""

    __slots__ = ("domain", "tracking", "version")

    def __init__(self, domain: Domain, version: int) -> None:
        self.domain = domain
        self.version = version
        self.tracking = False

    # -- questions -------------------------------------------------------------------------------

    @property
    def granule(self) -> int:
        """The smallest page: everything is aligned to it."""
        return self.domain.page_sizes[0]

    @property
    def available(self) -> int:
        """How many mappings may still be made."""
        return max(self.domain.entry_limit - len(self.domain.mappings), 0)

    def windows(self) -> list[Span]:
        """The inclusive ranges that can be mapped, in order."""
        return gaps(self.domain.reserved, (1 << self.domain.address_bits) - 1)

    # -- map -------------------------------------------------------------------------------------

    def map(
        self,
        iova: int,
        size: int,
        vaddr: int,
        mm: Mm,
        limit: int | None,
        *,
        readable: bool,
        writable: bool,
    ) -> None:
        """Map ``size`` bytes at ``iova`` to ``vaddr`` of ``mm``; ``limit`` is RLIMIT_MEMLOCK in bytes.

        Order: InvalidArgument (no size), WrapsAround, InvalidArgument (no permission, alignment), Overlap,
        TooManyMappings, InvalidArgument (outside of ``windows``), BadAddress, LimitExceeded.
        """
        self._check(iova, size, vaddr, wanted=readable or writable)
        domain, last = self.domain, iova + size - 1
        with domain.lock:
            domain.check_open(iova)
            domain.check_overlap(iova, last)
            domain.check_entries(len(domain.mappings) + 1)
            domain.check_window(iova, last)
            pages, locked = mm.memory.pin(vaddr, size, writable)
            if locked:  # the last step that may fail: there is nothing to undo
                mm.charge(size // PAGE_SIZE, limit, mlocked=True)
            domain.mappings.insert(
                Mapping(iova, last, vaddr, writable, mm, locked > 0, readable, pages)
            )

    def renew(
        self,
        iova: int,
        size: int,
        vaddr: int,
        mm: Mm,
        limit: int | None,
        *,
        permitted: bool = True,
    ) -> None:
        """The stale mapping at ``iova`` leads to ``vaddr`` of ``mm`` from now on.

        Its permissions stay: ``permitted`` is false if others are given, which is refused. NotMapped if nothing is
        there, InvalidArgument if it is not exactly one stale mapping, LimitExceeded.
        """
        self._check(iova, size, vaddr, wanted=permitted)
        with self.domain.lock:
            found = self.domain.mappings.first_overlap(iova, iova + size - 1)
            if found is None:
                raise NotMapped(f"nothing is mapped in {iova:#x}+{size:#x}")
            if not found.stale or (found.first, found.size) != (iova, size):
                raise InvalidArgument(
                    f"{found!r} is not waiting for the address of {iova:#x}+{size:#x}",
                    "unmap it with the flag VADDR first",
                )
            if found.charged and found.mm is not mm:
                mm.charge(size // PAGE_SIZE, limit, mlocked=True)
                found.mm.uncharge(size // PAGE_SIZE)
            try:
                found.pages = mm.memory.pin(vaddr, size, found.writable).pages
            except BadAddress:  # no error here, as in the kernel; an access of a device is a fault
                found.pages = UNPINNED
            found.mm, found.vaddr, found.stale, found.told = mm, vaddr, False, ""
            self.domain.generation += 1

    def _check(self, iova: int, size: int, vaddr: int, *, wanted: bool) -> None:
        check_size(size)
        check_wrap("iova", iova, size)
        check_wrap("vaddr", vaddr, size)
        if not wanted:
            raise InvalidArgument(
                "the permissions make no sense", "READ, WRITE or both; VADDR keeps what was given"
            )
        check_aligned(self.domain.page_sizes[0], "the page ", iova=iova, size=size, vaddr=vaddr)

    def _check_range(self, iova: int, size: int) -> int:
        """Check a range that is not to be mapped; returns its last address."""
        granule = self.domain.page_sizes[0]
        check_aligned(granule, "the page ", iova=iova)
        check_size(size)
        check_aligned(granule, "the page ", size=size)
        check_wrap("iova", iova, size)
        return iova + size - 1

    # -- unmap -----------------------------------------------------------------------------------

    def unmap(
        self,
        iova: int,
        size: int,
        *,
        everything: bool = False,
        dirty_page: int | None = None,
        before: Callable[[Mapping], None] | None = None,
    ) -> int:
        """Unmap whole mappings as the table in the module's head says; returns how many bytes.

        ``everything``: all there are; then ``iova`` and ``size`` must be 0. ``before`` is called with each
        mapping while all are still there; if it raises, all stay. ``dirty_page``: their dirty pages of this size are
        asked for. Order: InvalidArgument (alignment, size), WrapsAround, InvalidArgument (dirty pages, a mapping
        would be cut).
        """
        with self.domain.lock:
            found = self._found(iova, size, everything, dirty_page)
            if before:
                for mapping in found:
                    before(mapping)
            return self.domain.drop(found)

    def invalidate(self, iova: int, size: int, *, everything: bool = False) -> int:
        """Make the mappings that ``unmap`` would unmap stale; InvalidArgument if one is already."""
        with self.domain.lock:
            found = self._found(iova, size, everything)
            for mapping in found:
                if mapping.stale:
                    raise InvalidArgument(f"the address of {mapping!r} is invalid already")
            for mapping in found:
                mapping.stale = True
            return sum(mapping.size for mapping in found)

    def _found(
        self, iova: int, size: int, everything: bool, dirty_page: int | None = None
    ) -> list[Mapping]:
        mappings = self.domain.mappings
        if everything:
            check_aligned(self.domain.page_sizes[0], "the page ", iova=iova)
            if iova or size:
                raise InvalidArgument(f"all shall be unmapped, but {iova:#x}+{size:#x} is given")
            return list(mappings)
        last = self._check_range(iova, size)
        if dirty_page is not None:
            self._check_tracking(dirty_page)
        found = mappings.overlapping(iova, last)
        if self.version > 1:
            self._check_whole(iova, last, found)
        elif found and found[0].first < iova:
            return []
        return found

    @staticmethod
    def _check_whole(first: int, last: int, found: list[Mapping]) -> None:
        """InvalidArgument if the range begins or ends inside one of ``found``, which are all it touches."""
        for mapping in (*found[:1], *found[-1:]):
            if mapping.first < first or mapping.last > last:
                raise InvalidArgument(
                    f"{first:#x}-{last:#x} cuts {mapping!r}", "take it as a whole"
                )

    # -- dirty pages -----------------------------------------------------------------------------

    def track(self, on: bool) -> None:
        """Begin or end to keep account of dirty pages; again is no error."""
        self.tracking = on

    def dirty(self, iova: int, size: int, page: int) -> list[Mapping]:
        """The mappings in the range, every page of which is dirty; ``page`` is the size of one.

        InvalidArgument: alignment, no size, a mapping would be cut, tracking is off, another page size.
        """
        last = self._check_range(iova, size)
        self._check_tracking(page)
        with self.domain.lock:
            found = self.domain.mappings.overlapping(iova, last)
            self._check_whole(iova, last, found)
            return found

    def _check_tracking(self, page: int) -> None:
        if not self.tracking:
            raise InvalidArgument("dirty pages are not tracked", "start it first")
        if page != self.granule:
            raise InvalidArgument(
                f"pages of {page:#x} bytes are asked for, {self.granule:#x} are kept"
            )
