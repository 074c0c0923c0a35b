"""``Ioas``: an I/O address space of an iommufd, and the rules of what is mapped there.

An address space stands over one ``Domain``: its map, its translation and its faults are those of every ABI. The page
tables that hardware would have (``Hwpt``) are users of the address space: memory is held while there is one, and
mappings are recorded, but neither checked nor charged, while there is none::

    no page table --first one--> every area is checked and charged, or nothing is changed
    page table    --last one---> every area is uncharged, and stays mapped

*Areas* (``area.py``) are never joined and, but for ``cut``, never split: what was mapped by one call is unmapped as a
whole.

    granule     1 byte; 4096 if large pages are off; at least the smallest page of each page table
    reserved    what the IOMMUs cannot address, and what the attached devices must not; nothing is mapped there
    allowed     where ``place`` may choose addresses; empty: anywhere. Fixed addresses may be outside

What a call costs depends on the areas that it names, and not on how many page tables, copies or users there are. One
call copies ``COPY_MAX`` areas and takes ``ALLOWED_MAX`` ranges at most: what copies are made of can double with each.

A refused call changes nothing: that holds also for an unmap of a range that ends inside an area, of which Linux
unmaps what comes before. Callers hold no lock; the domain's is taken here.
Behaviour: drivers/iommu/iommufd/io_pagetable.c (iopt_map_pages, iopt_unmap_iova).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from uvfio.core.translation.address import (
    ADDRESS_MAX,
    PAGE_SIZE,
    Span,
    check_aligned,
    check_end,
    check_reserved,
    check_size,
    gaps,
    join,
    last_of,
    touched,
)
from uvfio.core.translation.area import Area, Backing
from uvfio.errors import (
    InvalidArgument,
    IovaInUse,
    LimitExceeded,
    NoSpace,
    NoSuchObject,
    NotMapped,
    ReadOnly,
    WrapsAround,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uvfio.core.translation.domain import Change, Domain
    from uvfio.core.translation.unit import IommuUnit

__all__ = ["ALLOWED_MAX", "COPY_MAX", "Hwpt", "Ioas"]

Piece = tuple[Backing, int, int]  # address in the backing's memory, bytes
HUGE_PAGE = 2 << 20
COPY_MAX = 1 << 16
ALLOWED_MAX = 1 << 16


class Hwpt:
    """A page table of an address space, for devices behind one IOMMU (struct iommufd_hw_pagetable).

    ``auto``: it was made by the attachment of a device. ``users`` counts the devices that are attached to it.
    """

    __slots__ = ("auto", "ioas", "unit", "users")

    def __init__(self, ioas: Ioas, unit: IommuUnit, *, auto: bool) -> None:
        self.ioas = ioas
        self.unit = unit
        self.auto = auto
        self.users = 0

    def suits(self, unit: IommuUnit) -> bool:
        """Whether devices behind ``unit`` can use it."""
        mine = self.unit
        return (mine.page_sizes, mine.address_bits) == (unit.page_sizes, unit.address_bits)


class Ioas:
    """See the module's head."""

    __slots__ = (
        "_granules",
        "_hints",
        "_holders",
        "_hwpts",
        "_needs",
        "allowed",
        "domain",
        "large_pages",
        "reserved",
    )

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.large_pages = True
        self.allowed: tuple[Span, ...] = ()
        self.reserved: tuple[Span, ...] = ()
        self._hwpts: dict[Hwpt, None] = {}  # a set, in order
        self._granules: dict[int, int] = {}  # smallest page of a page table: how many have it
        self._holders: dict[object, tuple[Span, ...]] = {}
        self._needs: dict[tuple[Span, ...], int] = {}  # how many holders need these addresses
        self._hints: dict[tuple[int, int, int], int] = {}

    # -- questions -------------------------------------------------------------------------------

    @property
    def hwpts(self) -> list[Hwpt]:
        """Its page tables, the oldest first."""
        return list(self._hwpts)

    @property
    def users(self) -> int:
        """Whether it can be destroyed: only without page tables."""
        return len(self._hwpts)

    @property
    def granule(self) -> int:
        """What addresses and sizes must be multiples of."""
        least = 1 if self.large_pages else PAGE_SIZE
        return max((least, *self._granules))

    def windows(self) -> list[Span]:
        """The inclusive ranges that can be mapped, in order."""
        return gaps(self.reserved, ADDRESS_MAX)

    # -- map -------------------------------------------------------------------------------------

    def map(
        self,
        backing: Backing,
        address: int,
        size: int,
        iova: int | None,
        *,
        readable: bool,
        writable: bool,
    ) -> int:
        """Map ``size`` bytes at ``address`` of the backing's memory at ``iova``, or where there is room (None).

        Returns the I/O address. Order: WrapsAround (memory), InvalidArgument (no size), what ``place`` raises.
        """
        check_end("memory", address, size)
        check_size(size)
        return self.place([(backing, address, size)], iova, readable=readable, writable=writable)

    def place(
        self, pieces: Sequence[Piece], iova: int | None, *, readable: bool, writable: bool
    ) -> int:
        """Map pieces of memory one behind the other, as ``map`` does and ``copy_from`` hands them on.

        Order: InvalidArgument (size), what choosing or checking the address raises (InvalidArgument, WrapsAround,
        Overlap; NoSpace), ReadOnly, InvalidArgument (offset in a page), BadAddress, LimitExceeded.
        """
        size = sum(piece[2] for piece in pieces)
        with self.domain.change() as change:
            self._check_open()
            granule = self.granule
            check_aligned(granule, "", size=size)
            if iova is None:
                iova = self._choose(pieces[0][1], size)
            else:
                self._check_iova(iova, size)
            areas, at = [], iova
            for backing, address, length in pieces:
                if writable and not backing.writable:
                    raise ReadOnly(f"the memory at {address:#x} was mapped to be read only")
                if address % PAGE_SIZE % granule:
                    raise InvalidArgument(f"address {address:#x} is not a multiple of {granule:#x}")
                areas.append(Area(at, at + length - 1, address, backing, readable, writable))
                at += length
            if self._hwpts:
                self._hold(change, areas)
            for area in areas:
                self.domain.mappings.insert(area)
            return iova

    def copy_from(self, source: Ioas, iova: int, size: int) -> list[Piece]:
        """What ``size`` bytes at ``iova`` of ``source`` lead to, for ``place``.

        InvalidArgument (no size), WrapsAround, NotMapped if any of it is not mapped, LimitExceeded if that is more
        than ``COPY_MAX`` areas.
        """
        last = last_of(iova, size)
        with source.domain.lock:
            found: list[Piece] = []
            at = iova
            while at <= last:
                area = source.domain.mappings.find(at)
                if not isinstance(area, Area):
                    raise NotMapped(f"iova {at:#x} is not mapped")
                if len(found) == COPY_MAX:
                    raise LimitExceeded(
                        f"{iova:#x}+{size:#x} has more than {COPY_MAX} areas", "copy it in parts"
                    )
                length = min(area.last, last) - at + 1
                found.append((area.backing, area.vaddr + at - area.first, length))
                at += length
            return found

    def _check_iova(self, iova: int, size: int) -> None:
        check_aligned(self.granule, "", iova=iova)
        last = last_of(iova, size)
        check_reserved(self.reserved, iova, last)
        self.domain.check_overlap(iova, last)

    def _choose(self, address: int, size: int) -> int:
        """The lowest address with room, aligned as ``address`` is, so that large pages stay possible."""
        if size >= ADDRESS_MAX // 2:
            raise WrapsAround(f"there can be no room for {size:#x} bytes")
        align = 1 << (size - 1).bit_length()
        if address:
            align = min(align, address & -address)
        align = min(align, HUGE_PAGE)
        if align < self.granule:
            raise InvalidArgument(f"address {address:#x} is not a multiple of {self.granule:#x}")
        offset = address % PAGE_SIZE
        hint = self._hints.get((align, offset, size), 0)
        low, high = PAGE_SIZE, ADDRESS_MAX - PAGE_SIZE
        for first, end_of in self.allowed or ((low, high),):
            at, last = max(first, low, hint), min(end_of, high)
            while at + size - 1 <= last:
                start = -(-at // align) * align | offset
                end = start + size - 1
                if end > last:
                    break
                taken = self._obstacle(start, end)
                if taken is None:
                    self._hints[align, offset, size] = start
                    return start
                at = taken + 1
        raise NoSpace(f"there is no room for {size:#x} bytes")

    def _obstacle(self, first: int, last: int) -> int | None:
        """Where something ends that is in the way."""
        reserved = touched(self.reserved, first, last)
        if reserved is not None:
            return reserved[1]
        other = self.domain.mappings.first_overlap(first, last)
        return other.last if other else None

    @staticmethod
    def _hold(change: Change, areas: Iterable[Area]) -> None:
        """Hold the areas as steps of ``change``: all or none."""
        for area in areas:
            area.backing.hold(area)
            change.done(area.backing.release, area)

    # -- unmap -----------------------------------------------------------------------------------

    def unmap(self, iova: int, size: int, *, cut: bool = False) -> int:
        """Unmap the areas in the range; returns how many bytes they were.

        ``cut``: an area that begins before or ends behind the range is cut there, if that is at the granule. Order:
        InvalidArgument (no size), WrapsAround, NotMapped (nothing there, or only a part of an area),
        InvalidArgument (a cut that is not at the granule).
        """
        last = last_of(iova, size)
        with self.domain.lock:
            found = self._areas(iova, last)
            for edge in (iova, last + 1):
                area = next((a for a in found if a.first < edge <= a.last), None)
                if area is None:
                    continue
                if not cut:
                    raise NotMapped(
                        f"{iova:#x}-{last:#x} has only a part of {area!r}", "unmap it as a whole"
                    )
                if edge % self.granule:
                    raise InvalidArgument(f"{area!r} cannot be cut at {edge:#x}")
            if not found:
                raise NotMapped(f"nothing is mapped in {iova:#x}-{last:#x}")
            for edge in (iova, last + 1):
                self._cut(edge)
            return self._drop(self._areas(iova, last))

    def unmap_all(self) -> int:
        """Unmap everything; returns how many bytes that was."""
        with self.domain.lock:
            return self._drop(self._areas(0, ADDRESS_MAX))

    def _areas(self, first: int, last: int) -> list[Area]:
        found = self.domain.mappings.overlapping(first, last)
        return [area for area in found if isinstance(area, Area)]

    def _cut(self, edge: int) -> None:
        """Make two areas of one that begins before ``edge`` and ends behind it."""
        area = self.domain.mappings.find(edge)
        if not isinstance(area, Area) or area.first == edge:
            return
        parts = area.part(area.first, edge - 1), area.part(edge, area.last)
        area.backing.divide(area, parts)
        self.domain.replace((area,), parts)

    def _drop(self, areas: list[Area]) -> int:
        self._hints.clear()
        if self._hwpts:
            self.domain.look(areas)
            for area in areas:
                area.backing.release(area)
        return self.domain.drop(list(areas))

    # -- where may be mapped ---------------------------------------------------------------------

    def allow(self, spans: Iterable[Span]) -> None:
        """Choose addresses in these ranges only; none: anywhere.

        InvalidArgument for a range that is empty, has one address, or overlaps another one: each is checked before
        the next is asked for. LimitExceeded for more than ``ALLOWED_MAX``. IovaInUse for one that touches what is
        reserved.
        """
        ordered: list[Span] = []
        for first, last in spans:
            if len(ordered) == ALLOWED_MAX:
                raise LimitExceeded(f"more than {ALLOWED_MAX} ranges are given")
            if first >= last:
                raise InvalidArgument(f"{first:#x}-{last:#x} is no range")
            at = bisect_left(ordered, (first, last))
            other = touched(ordered[max(at - 1, 0) : at + 1], first, last)
            if other is not None:
                raise InvalidArgument(f"{first:#x}-{last:#x} overlaps {_text(other)}")
            ordered.insert(at, (first, last))
        with self.domain.lock:
            self._check_open()
            for span in ordered:
                reserved = touched(self.reserved, *span)
                if reserved is not None:
                    raise IovaInUse(f"{_text(span)} touches the reserved range {_text(reserved)}")
            self._hints.clear()
            self.allowed = tuple(ordered)

    def use_large_pages(self, on: bool) -> None:
        """Without them everything has to be aligned to pages, and areas can be cut.

        InvalidArgument if they shall go while something is mapped in a page table, IovaInUse if something is not
        aligned.
        """
        with self.domain.lock:
            if on or not self.large_pages:
                self.large_pages = self.large_pages or on
                return
            if self._hwpts and len(self.domain.mappings):
                raise InvalidArgument("something is mapped with large pages", "unmap it first")
            self.check_granule(PAGE_SIZE)
            self.large_pages = False

    def reserve(self, holder: object, spans: Sequence[Span]) -> None:
        """``holder`` needs these addresses to stay unmapped. IovaInUse if they are mapped, or allowed."""
        with self.domain.lock:
            self._check_open()
            for span in spans:
                other = self.domain.mappings.first_overlap(*span)
                if other:
                    raise IovaInUse(f"{_text(span)} must not be mapped, {other!r} is")
                allowed = touched(self.allowed, *span)
                if allowed is not None:
                    raise IovaInUse(
                        f"{_text(span)} must not be mapped, {_text(allowed)} is allowed"
                    )
            changed = self._forget(holder)
            needed = self._holders[holder] = tuple(spans)
            self._needs[needed] = self._needs.get(needed, 0) + 1
            if changed or self._needs[needed] == 1:
                self._settle_reserved()

    def unreserve(self, holder: object) -> None:
        """``holder`` does not need its addresses any more; nothing if it had none."""
        with self.domain.lock:
            if self._forget(holder):
                self._settle_reserved()

    def _forget(self, holder: object) -> bool:
        """Whether nobody needs any more what ``holder`` needed."""
        needed = self._holders.pop(holder, None)
        if needed is None:
            return False
        self._needs[needed] -= 1
        if self._needs[needed]:
            return False
        del self._needs[needed]
        return True

    def _settle_reserved(self) -> None:
        self.reserved = tuple(join(span for spans in self._needs for span in spans))
        self._hints.clear()

    def check_granule(self, granule: int) -> None:
        """IovaInUse if an area does not fit a granule."""
        for area in self._areas(0, ADDRESS_MAX):
            if (area.first | area.size | area.vaddr % PAGE_SIZE) % granule:
                raise IovaInUse(f"{area!r} is not aligned to {granule:#x}")

    # -- page tables -----------------------------------------------------------------------------

    def add_hwpt(self, hwpt: Hwpt) -> None:
        """A page table has to translate everything from now on (iopt_table_add_domain).

        InvalidArgument (its smallest page), IovaInUse (alignment, beyond its reach), and with the first one what
        holding the memory raises.
        """
        unit = hwpt.unit
        with self.domain.change() as change:
            if unit.page_sizes[0] > PAGE_SIZE:
                raise InvalidArgument(
                    f"the pages of {unit.name} have at least {unit.page_sizes[0]:#x} bytes"
                )
            if unit.page_sizes[0] > self.granule:
                self.check_granule(unit.page_sizes[0])
            self.reserve(hwpt, _beyond(unit))
            change.done(self.unreserve, hwpt)
            if not self._hwpts:
                self._hold(change, self._areas(0, ADDRESS_MAX))
            self._hwpts[hwpt] = None
            smallest = unit.page_sizes[0]
            self._granules[smallest] = self._granules.get(smallest, 0) + 1

    def remove_hwpt(self, hwpt: Hwpt) -> None:
        """The page table is gone; with the last one the memory is held no longer."""
        with self.domain.lock:
            del self._hwpts[hwpt]
            smallest = hwpt.unit.page_sizes[0]
            self._granules[smallest] -= 1
            if not self._granules[smallest]:
                del self._granules[smallest]
            self.unreserve(hwpt)
            if not self._hwpts:
                for area in self._areas(0, ADDRESS_MAX):
                    area.backing.release(area)

    def close(self) -> None:
        """It is destroyed: everything is unmapped, and nothing can be mapped again."""
        with self.domain.lock:
            self.unmap_all()
            self.domain.close()

    def _check_open(self) -> None:
        if self.domain.closed:
            raise NoSuchObject("the address space was destroyed meanwhile")


def _text(span: Span) -> str:
    return f"{span[0]:#x}-{span[1]:#x}"


def _beyond(unit: IommuUnit) -> tuple[Span, ...]:
    """What the IOMMU cannot address."""
    end = 1 << unit.address_bits
    return ((end, ADDRESS_MAX),) if end <= ADDRESS_MAX else ()
