"""IOMMU hardware and translation: ``IommuUnit`` (what is built into the machine), ``Domain`` (a page table
with devices attached to it). A refused access is a ``Fault`` (``core/events.py``).

Data flow of an access::

    model --dma_write(name, iova, data)--> Domain: translate every byte, or record a fault and refuse
                                             |
                                             +--> Mm.memory.write(vaddr, data) per mapping

An access is all or nothing as far as translation goes: before a byte moves, the whole range must be
mapped for that direction. Should the program's memory itself vanish (munmap after MAP_DMA), the access
faults at that point.

Translations that were used lately are kept by page number (``_tlb``): an access that begins in such a page and ends in
its mapping needs no search. An entry is the mapping itself, so a change of its address is seen at once, and it
goes when its mapping leaves the map (``_invalidate``).

The map is page granular (4096 bytes). What may be mapped and unmapped is a matter of the ABI: ``map_range`` and
``unmap_range`` follow the 2011 driver, which merges neighbours and cuts mappings anywhere;
``core/translation/rules_type1.py`` has today's rules, over the same map, limits and accounting. A domain has its
own lock, taken after the framework's and never before it.

A domain does not know groups, owners or files. Locked memory is charged to the ``Mm`` that maps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING

from uvfio.core.events import Fault
from uvfio.core.translation.iova import IovaMap, Mapping, Span, touched
from uvfio.errors import (
    BadAddress,
    DmaFault,
    Gone,
    InvalidArgument,
    Overlap,
    TooManyMappings,
    WrapsAround,
)

if TYPE_CHECKING:
    from uvfio.core.seams import Mm
    from uvfio.core.structure.device import BusDevice

__all__ = [
    "ADDRESS_MAX",
    "PAGE_SIZE",
    "DmaCounters",
    "Domain",
    "IommuUnit",
    "check_reserved",
    "check_wrap",
]

PAGE_SIZE = 4096
PAGE_SHIFT = 12
TLB_ENTRIES = 4096
FAULTS_KEPT = 256
ADDRESS_MAX = (1 << 64) - 1


def check_wrap(name: str, start: int, size: int) -> None:
    """WrapsAround unless ``size`` bytes from ``start`` are within 64-bit addresses."""
    if start < 0 or start + size - 1 > ADDRESS_MAX:
        raise WrapsAround(f"{name} {start:#x}+{size:#x} wraps around 2**64")


def check_reserved(reserved: Iterable[Span], first: int, last: int) -> None:
    """InvalidArgument if ``[first, last]`` has an address that no mapping may have."""
    span = touched(reserved, first, last)
    if span is not None:
        raise InvalidArgument(
            f"iova {first:#x}-{last:#x} touches the reserved range {span[0]:#x}-{span[1]:#x}"
        )


@dataclass(frozen=True, slots=True)
class IommuUnit:
    """An IOMMU in silicon. ``reserved`` are inclusive address ranges that no mapping may touch."""

    name: str = "iommu0"
    interrupt_remapping: bool = True
    coherent: bool = True
    page_sizes: tuple[int, ...] = (4096, 2 << 20, 1 << 30)
    address_bits: int = 48
    reserved: tuple[tuple[int, int], ...] = ((0xFEE00000, 0xFEEFFFFF),)


class DmaCounters:
    """Bytes that devices have moved, and faults, over the life of a machine."""

    __slots__ = ("faults", "read", "written")

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self.faults = 0


class Domain:
    """One translation, shared by the devices attached to it.

    ``entry_limit`` bounds the number of mappings. ``on_fault(fault)`` is called for each fault when it happens.
    ``counters`` are those of the machine, shared by all its domains. ``generation`` grows when something is not
    mapped any more, or elsewhere: who keeps a window looks at it before each use.

    What the IOMMUs in front of the attached devices can do together is known once for all accesses: ``units`` (the
    distinct ones), ``coherent`` (accesses snoop the caches), ``interrupt_remapping`` (interrupts are isolated),
    ``address_bits`` (width of an I/O virtual address), ``page_sizes`` (what all can map at once, smallest first) and
    ``reserved`` (inclusive ranges that cannot be mapped). An ``IommuUnit`` never changes.
    """

    def __init__(
        self,
        *,
        entry_limit: int = 65535,
        on_fault: Callable[[Fault], None] | None = None,
        counters: DmaCounters | None = None,
    ) -> None:
        self.lock = RLock()
        self.mappings = IovaMap()
        self.entry_limit = entry_limit
        self.devices: list[BusDevice] = []
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0
        self.closed = False
        self.counters = DmaCounters() if counters is None else counters
        self._on_fault = on_fault
        self._tlb: dict[int, Mapping] = {}
        self._survey()
        self.generation = 0

    # -- the hardware behind it ------------------------------------------------------------------

    def _survey(self) -> None:
        """Sum up the IOMMUs in front of the devices; after each change of ``devices``."""
        self.units = units = tuple(dict.fromkeys(d.unit for d in self.devices if d.unit))
        self.coherent = all(unit.coherent for unit in units)
        self.interrupt_remapping = all(unit.interrupt_remapping for unit in units)
        self.address_bits = min((unit.address_bits for unit in units), default=64)
        sizes = [set(unit.page_sizes) for unit in units]
        self.page_sizes = tuple(sorted(set.intersection(*sizes))) if sizes else (PAGE_SIZE,)
        self.reserved = tuple(sorted({r for unit in units for r in unit.reserved}))

    def attach(self, dev: BusDevice) -> None:
        """Route the device's DMA through this domain; the device's own error passes through."""
        with self.lock:
            dev.attach(self)
            self.devices.append(dev)
            self._survey()

    def detach(self, dev: BusDevice) -> None:
        """Cut the device off. Nothing happens if it was not attached."""
        with self.lock:
            if dev in self.devices:
                self.devices.remove(dev)
                self._survey()
                dev.detach()

    # -- mappings --------------------------------------------------------------------------------

    def map_range(
        self, iova: int, size: int, vaddr: int, writable: bool, mm: Mm, limit: int | None
    ) -> None:
        """Map ``size`` bytes at ``iova`` to ``vaddr`` of ``mm`` (2011 vfio_iommu.c, vfio_dma_map).

        ``limit`` is the owner's RLIMIT_MEMLOCK in bytes (None: none). Order of the checks: range and
        alignment (InvalidArgument), Overlap, LimitExceeded (memory), BadAddress, LimitExceeded (number of
        mappings). Neighbours with the same permission that continue each other in both spaces become
        one mapping. A range that is device memory only in part is charged as a whole.
        """
        self._check_range(iova, size, vaddr)
        last = iova + size - 1
        with self.lock:
            self.check_open(iova)
            self.check_window(iova, last)
            self.check_overlap(iova, last)
            below, above = self._neighbours(iova, last, vaddr, writable, mm)
            pages = size // PAGE_SIZE
            mm.charge(pages, limit)
            try:
                charged = mm.memory.pin(vaddr, size, writable) > 0
                joined = [m for m in (below, above) if m is not None and m.charged == charged]
                self.check_entries(len(self.mappings) + 1 - len(joined))
            except BaseException:
                mm.uncharge(pages)
                raise
            if not charged:
                mm.uncharge(pages)
            for neighbour in joined:
                self._remove(neighbour)
            self.mappings.insert(
                Mapping(
                    min([m.first for m in joined] + [iova]),
                    max([m.last for m in joined] + [last]),
                    min([m.vaddr for m in joined] + [vaddr]),
                    writable,
                    mm,
                    charged,
                )
            )

    def unmap_range(self, iova: int, size: int) -> int:
        """Unmap what is mapped in the range, cutting mappings where it begins and ends.

        Nothing mapped there, holes, and size 0 are no errors. Returns the number of bytes unmapped.
        LimitExceeded if a mapping would have to become two and there are too many.
        """
        self._check_range(iova, size, 0, allow_empty=True)
        if size == 0:
            return 0
        last = iova + size - 1
        with self.lock:
            found = self.mappings.overlapping(iova, last)
            if len(found) == 1 and found[0].first < iova and found[0].last > last:
                self.check_entries(len(self.mappings) + 1)
            done = self.drop(found[1:-1])
            for m in dict.fromkeys(found[:1] + found[-1:]):
                self._remove(m)
                low, high = max(m.first, iova), min(m.last, last)
                if m.first < low:
                    self.mappings.insert(
                        Mapping(m.first, low - 1, m.vaddr, m.writable, m.mm, m.charged)
                    )
                if m.last > high:
                    vaddr = m.vaddr + (high + 1 - m.first)
                    self.mappings.insert(
                        Mapping(high + 1, m.last, vaddr, m.writable, m.mm, m.charged)
                    )
                done += high - low + 1
                if m.charged:
                    m.mm.uncharge((high - low + 1) // PAGE_SIZE)
            return done

    def drop(self, mappings: list[Mapping]) -> int:
        """Forget whole mappings, given in order, and uncharge them; returns how many bytes they were."""
        if not mappings:
            return 0
        with self.lock:
            if len(mappings) == 1:
                self.mappings.remove(mappings[0])
            else:
                self.mappings.remove_all(mappings)
            self._invalidate(mappings[0].first, mappings[-1].last)
            return self._uncharge(mappings)

    def unmap_all(self) -> None:
        """Forget every mapping and uncharge it."""
        with self.lock:
            self._uncharge(self.mappings)
            self.mappings.clear()
            self._tlb.clear()
            self.generation += 1

    def _remove(self, mapping: Mapping) -> None:
        self.mappings.remove(mapping)
        self._invalidate(mapping.first, mapping.last)

    @staticmethod
    def _uncharge(mappings: Iterable[Mapping]) -> int:
        """Give back what ``mappings`` lock, once for each owner; returns how many bytes they are."""
        total = 0
        locked: dict[Mm, int] = {}
        for m in mappings:
            size = m.last - m.first + 1
            total += size
            if m.charged:
                locked[m.mm] = locked.get(m.mm, 0) + size
        for mm, size in locked.items():
            mm.uncharge(size // PAGE_SIZE)
        return total

    def close(self) -> None:
        """Detach every device, drop every mapping; accesses and mappings fail from now on."""
        with self.lock:
            self.closed = True
            for dev in list(self.devices):
                self.detach(dev)
            self.unmap_all()

    def _check_range(self, iova: int, size: int, vaddr: int, allow_empty: bool = False) -> None:
        for name, value in (("vaddr", vaddr), ("iova", iova), ("size", size)):
            if value % PAGE_SIZE:
                raise InvalidArgument(
                    f"{name} {value:#x} is not a multiple of the page size 0x1000"
                )
        if size < 0 or (size == 0 and not allow_empty):
            raise InvalidArgument(f"size is {size}")
        check_wrap("iova", iova, size)
        check_wrap("vaddr", vaddr, size)

    def check_open(self, iova: int) -> None:
        """Gone once the domain is closed."""
        if self.closed:
            raise Gone(f"the iommu context is closed; iova {iova:#x} cannot be mapped")

    def check_overlap(self, first: int, last: int) -> None:
        """Overlap if anything is mapped in the range."""
        other = self.mappings.first_overlap(first, last)
        if other:
            raise Overlap(
                f"iova {first:#x}+{last + 1 - first:#x} overlaps mapping {other.first:#x}+{other.size:#x}",
                "unmap it first",
            )

    def check_window(self, first: int, last: int) -> None:
        """InvalidArgument for what the IOMMU cannot address or must not translate."""
        if last >> self.address_bits:
            raise InvalidArgument(
                f"iova {first:#x}-{last:#x} exceeds the IOMMU's {self.address_bits} address bits"
            )
        check_reserved(self.reserved, first, last)

    def check_entries(self, count: int) -> None:
        """TooManyMappings if there would be ``count`` and that is over the limit."""
        if count > self.entry_limit:
            raise TooManyMappings(
                f"there would be {count} mappings, {self.entry_limit} are allowed",
                "raise dma_entry_limit in the machine file",
            )

    def _neighbours(
        self, first: int, last: int, vaddr: int, writable: bool, mm: Mm
    ) -> tuple[Mapping | None, Mapping | None]:
        """The mappings below and above that the new one continues."""
        below = self.mappings.find(first - 1) if first else None
        if below and not (
            below.writable == writable and below.mm is mm and below.vaddr + below.size == vaddr
        ):
            below = None
        above = self.mappings.find(last + 1) if last < ADDRESS_MAX else None
        if above and not (
            above.writable == writable
            and above.mm is mm
            and above.vaddr == vaddr + (last - first + 1)
        ):
            above = None
        return below, above

    # -- accesses by devices ---------------------------------------------------------------------

    def dma_read(self, requester: str, iova: int, size: int) -> bytes:
        """Read ``size`` bytes for the device named ``requester``. DmaFault if any is not mapped."""
        with self.lock:
            m = self._tlb.get(iova >> PAGE_SHIFT)
            if m is None or not m.readable or iova + size - 1 > m.last:
                pieces = self._translate(requester, iova, size, write=False)
                self.counters.read += size
                return b"".join(self._fetch(requester, m, at, n) for m, at, n in pieces)
            self.counters.read += size
            return self._fetch(requester, m, iova, size)

    def dma_write(self, requester: str, iova: int, data: bytes) -> None:
        """Write ``data``; nothing is written when any byte is not mapped writable (DmaFault)."""
        size = len(data)
        with self.lock:
            m = self._tlb.get(iova >> PAGE_SHIFT)
            if m is None or not m.writable or iova + size - 1 > m.last:
                done = 0
                for m, at, n in self._translate(requester, iova, size, write=True):
                    self._put(requester, m, at, data[done : done + n])
                    done += n
            else:
                self._put(requester, m, iova, data)
            self.counters.written += size

    def dma_store(self, requester: str, iova: int, value: int, width: int) -> None:
        """One store of 2, 4 or 8 bytes at an aligned address that nobody can see half of."""
        if width not in (2, 4, 8) or iova % width:
            raise InvalidArgument(f"a store of {width} bytes at iova {iova:#x} cannot be atomic")
        with self.lock:
            m = self._tlb.get(iova >> PAGE_SHIFT)
            if m is None or not m.writable or iova + width - 1 > m.last:
                m = self._translate(requester, iova, width, write=True)[0][0]
            self.counters.written += width
            try:
                m.mm.memory.store(m.vaddr + (iova - m.first), value, width)
            except BadAddress as gone:
                raise self.fault(
                    requester, iova, width, True, f"the memory is gone: {gone}"
                ) from gone

    def dma_view(self, requester: str, iova: int, size: int) -> memoryview | None:
        """A writable window on the program's own memory, or None where there cannot be one.

        It stays valid as memory after an unmap, as a window on a page that a device has cached does;
        whoever keeps it must drop it when the range is unmapped.
        """
        with self.lock:
            pieces = self._translate(requester, iova, size, write=True)
            if len(pieces) != 1 or not pieces[0][0].readable:
                return None
            m, at, n = pieces[0]
            return m.mm.memory.view(m.vaddr + (at - m.first), n)

    def dma_window(self, iova: int) -> tuple[int, int, memoryview] | None:
        """The whole mapping around ``iova`` as (first address, address behind it, window), for who moves much.

        None where there is none, it is not readable and writable, or the memory cannot be seen that way; nothing
        is recorded. Valid while ``generation`` stays the same. Bytes moved are counted by who moves them.
        """
        with self.lock:
            m = self.mappings.find(iova)
            if m is None or not (m.readable and m.writable):
                return None
            window = m.mm.memory.view(m.vaddr, m.size)
            return None if window is None else (m.first, m.last + 1, window)

    def fault(self, device: str, iova: int, size: int, write: bool, reason: str) -> DmaFault:
        """Record a fault and return the condition to raise."""
        fault = Fault(device, iova, size, write, reason)
        with self.lock:
            self.faults.append(fault)
            self.fault_count += 1
            self.counters.faults += 1
        if self._on_fault:
            self._on_fault(fault)
        return DmaFault(f"dma fault: {fault}")

    def _fetch(self, requester: str, m: Mapping, at: int, size: int) -> bytes:
        try:
            return m.mm.memory.read(m.vaddr + (at - m.first), size)
        except BadAddress as gone:
            raise self.fault(requester, at, size, False, f"the memory is gone: {gone}") from gone

    def _put(self, requester: str, m: Mapping, at: int, data: bytes) -> None:
        try:
            m.mm.memory.write(m.vaddr + (at - m.first), data)
        except BadAddress as gone:
            reason = f"the memory is gone: {gone}"
            raise self.fault(requester, at, len(data), True, reason) from gone

    def _translate(
        self, requester: str, iova: int, size: int, write: bool
    ) -> list[tuple[Mapping, int, int]]:
        """Pieces (mapping, iova, bytes) that cover the access, or a recorded fault."""
        if iova < 0 or iova + size - 1 > ADDRESS_MAX:
            raise self.fault(requester, iova, size, write, "address wraps around 2**64")
        pieces = []
        m: Mapping | None = None
        at, end = iova, iova + size
        while at < end:
            m = self.mappings.find(at)
            if m is None:
                raise self.fault(requester, at, end - at, write, "not mapped")
            if write and not m.writable:
                raise self.fault(requester, at, end - at, write, "mapped read-only")
            if not write and not m.readable:
                raise self.fault(requester, at, end - at, write, "mapped write-only")
            n = min(m.last + 1, end) - at
            pieces.append((m, at, n))
            at += n
        if m is not None and len(pieces) == 1 and m.first <= iova >> PAGE_SHIFT << PAGE_SHIFT:
            if len(self._tlb) >= TLB_ENTRIES:
                self._tlb.clear()
            self._tlb[iova >> PAGE_SHIFT] = m
        return pieces

    def _invalidate(self, first: int, last: int) -> None:
        """Forget what was translated in the range; whoever takes a mapping out of the map calls it."""
        self.generation += 1
        tlb = self._tlb
        if not tlb:
            return
        low, high = first >> PAGE_SHIFT, last >> PAGE_SHIFT
        if high - low < len(tlb):
            for page in range(low, high + 1):
                tlb.pop(page, None)
        else:
            for page in [page for page in tlb if low <= page <= high]:
                del tlb[page]
