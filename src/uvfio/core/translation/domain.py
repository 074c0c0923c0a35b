"""``Domain``: one translation, the mechanism that every set of mapping rules stands over.

A domain has a map, the devices attached to it, limits, and an account of faults. Data flow of an access::

    model --dma_write(name, iova, data)--> Domain: translate every byte, or record a fault and refuse
                                             |
                                             +--> Mapping.pages.write(vaddr, data) per mapping

An access is all or nothing as far as translation goes: before a byte moves, the whole range must be mapped for that
direction. If the memory itself vanishes (a cut file, munmap of private memory), the access faults at that point.

``dma_read``, ``dma_write``, ``dma_store``, ``dma_view`` and ``dma_window`` of one address reach the same bytes: all go
through the ``Pages`` that the mapping got when it was made.

Recent translations are kept by page number (``_tlb``): an access that begins in such a page and ends in its mapping
needs no search. An entry is the mapping itself, so a change of its address takes effect at once, and the entry goes
when its mapping leaves the map (``_invalidate``).

What may be mapped and unmapped is a matter of the ABI: ``rules_2011.py``, ``rules_type1.py`` and ``ioas.py``. They
choose which checks are made and in which order; the checks, the undo of a change
that fails half-way (``Change``) and the changes of the map are made here.

A domain has its own lock, taken after the framework's and never before it. A domain does not know groups, owners or
files. Locked memory is charged to the ``Mm`` that maps.
"""

from __future__ import annotations

from collections import deque
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from weakref import WeakSet, ref

from uvfio.core.translation.address import ADDRESS_MAX, PAGE_SHIFT, PAGE_SIZE, check_reserved
from uvfio.core.translation.iova import UNPINNED, IovaMap, Mapping
from uvfio.core.translation.patches import Patches
from uvfio.errors import BadAddress, DmaFault, Gone, InvalidArgument, Overlap, TooManyMappings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from uvfio.core.events import Fault, MemoryExchanged
    from uvfio.core.seams import Mm
    from uvfio.core.translation.unit import IommuUnit

__all__ = ["Change", "DmaCounters", "DmaSource", "Domain"]

TLB_ENTRIES: Final = 4096
FAULTS_KEPT: Final = 256


class DmaCounters:
    """Bytes that devices have read and written, and faults, over the life of a machine.

    What is read and written through a view is not seen: ``viewed`` counts the bytes of the views that were given out.
    ``exchanged`` counts mappings whose memory the program exchanged, as far as a domain looks for them.
    """

    __slots__ = ("exchanged", "faults", "read", "viewed", "written")

    def __init__(self) -> None:
        self.read = 0
        self.written = 0
        self.viewed = 0
        self.faults = 0
        self.exchanged = 0


class WindowUser(Protocol):
    """What keeps windows of a domain from one access to the next."""

    def forget(self) -> None:
        """Give up all windows: a mapping went, or leads elsewhere."""


class DmaSource(Protocol):
    """What a domain needs of a device: its place behind an IOMMU."""

    @property
    def name(self) -> str:
        """Unique on its bus: "0000:06:0d.0" on PCI; a fault records it."""

    @property
    def unit(self) -> IommuUnit | None:
        """The IOMMU in front of the device."""

    def attach(self, domain: Domain) -> None:
        """Send the device's DMA through ``domain``. May raise; then nothing has changed."""

    def detach(self) -> None:
        """Send the device's DMA nowhere."""


class Change:
    """One change of a domain's mappings, as a context manager: it holds the lock, and undoes its steps on an error.

    A rule set makes its checks and steps inside, in the order of its ABI. Steps that were done are undone in reverse
    order if an exception leaves the block.
    """

    __slots__ = ("_lock", "_undo")

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._undo: list[tuple[Callable[[Any], object], Any]] = []

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                for undo, argument in reversed(self._undo):
                    undo(argument)
        finally:
            self._lock.release()

    def charge(self, mm: Mm, pages: int, limit: int | None) -> None:
        """Charge ``pages`` to ``mm`` within ``limit`` bytes (None: none), beside what it has locked by mlock. Raises
        LimitExceeded."""
        mm.charge(pages, limit, mlocked=True)
        self._undo.append((mm.uncharge, pages))

    def done(self, undo: Callable[[Any], object], argument: object) -> None:
        """Register a step that was done: ``undo(argument)`` takes it back."""
        self._undo.append((undo, argument))


class Domain:
    """One translation, shared by the devices attached to it.

    With ``on_exchange``, or ``strict``, each access, unmap and refused map looks whether the program still has the
    memory that was mapped; what it finds is passed on once for each mapping. ``strict``: an access to it is a fault,
    too. What can be found is said by ``Pages.exchanged``. Without both nobody looks, because it costs a system call.
    ``entry_limit`` bounds the number of mappings. ``on_fault`` is called with each fault when it happens. ``counters``
    are those of the machine, shared by all its domains. ``generation`` grows when something is not mapped any more, or
    is mapped elsewhere: a device that keeps a window compares it before each use. ``window_users`` are told then, so
    that the memory is given back though the device is idle.

    What the IOMMUs in front of the attached devices can do together is worked out when a device comes or goes, and not
    for each access: ``units`` (the
    distinct ones), ``coherent`` (accesses snoop the caches), ``interrupt_remapping`` (interrupts are isolated),
    ``address_bits`` (width of an I/O virtual address), ``page_sizes`` (what all can map at once, smallest first) and
    ``reserved`` (inclusive ranges that cannot be mapped). An ``IommuUnit`` never changes.
    """

    def __init__(
        self,
        *,
        entry_limit: int = 65535,
        on_fault: Callable[[Fault], None] | None = None,
        on_exchange: Callable[[MemoryExchanged], None] | None = None,
        strict: bool = False,
        counters: DmaCounters | None = None,
    ) -> None:
        self.lock = RLock()
        self.mappings = IovaMap()
        self.entry_limit = entry_limit
        self.devices: list[DmaSource] = []
        self.faults: deque[Fault] = deque(maxlen=FAULTS_KEPT)
        self.fault_count = 0
        self.closed = False
        self.counters = DmaCounters() if counters is None else counters
        self._on_fault = on_fault
        self._on_exchange = on_exchange
        self._strict = strict
        self._looks = strict or on_exchange is not None
        self._tlb: dict[int, Mapping] = {}
        self._survey()
        self.generation = 0
        self.window_users: WeakSet[WindowUser] = WeakSet()

    # -- the hardware behind it ------------------------------------------------------------------

    def _survey(self) -> None:
        """Work out what the IOMMUs can do together; called after each change of ``devices``."""
        self.units = units = tuple(dict.fromkeys(d.unit for d in self.devices if d.unit))
        self.coherent = all(unit.coherent for unit in units)
        self.interrupt_remapping = all(unit.interrupt_remapping for unit in units)
        self.address_bits = min((unit.address_bits for unit in units), default=64)
        sizes = [set(unit.page_sizes) for unit in units]
        self.page_sizes = tuple(sorted(set.intersection(*sizes))) if sizes else (PAGE_SIZE,)
        self.reserved = tuple(sorted({r for unit in units for r in unit.reserved}))

    def attach(self, dev: DmaSource) -> None:
        """Route the device's DMA through this domain. Raises what the device's ``attach`` raises."""
        with self.lock:
            dev.attach(self)
            self.devices.append(dev)
            self._survey()

    def detach(self, dev: DmaSource) -> None:
        """Send the device's DMA nowhere. Nothing happens if it was not attached."""
        with self.lock:
            if dev in self.devices:
                self.devices.remove(dev)
                self._survey()
                dev.detach()

    # -- mappings --------------------------------------------------------------------------------

    def change(self) -> Change:
        """Hold the lock for one change of the mappings that happens as a whole or not at all; see ``Change``."""
        return Change(self.lock)

    def replace(self, gone: Sequence[Mapping], new: Iterable[Mapping]) -> None:
        """Take mappings out and put others in for the same addresses. What is charged does not change."""
        with self.lock:
            for mapping in gone:
                self.mappings.remove(mapping)
                self._invalidate(mapping.first, mapping.last)
            for mapping in new:
                self.mappings.insert(mapping)

    def drop(self, mappings: list[Mapping]) -> int:
        """Take whole mappings, given in order, out of the map and uncharge them; returns how many bytes they were."""
        if not mappings:
            return 0
        with self.lock:
            self.look(mappings)
            if len(mappings) == 1:
                self.mappings.remove(mappings[0])
            else:
                self.mappings.remove_all(mappings)
            self._invalidate(mappings[0].first, mappings[-1].last)
            return self._uncharge(mappings)

    def unmap_all(self) -> None:
        """Take every mapping out of the map and uncharge it."""
        with self.lock:
            self._uncharge(self.mappings)
            self.mappings.clear()
            self._tlb.clear()
            self._end_windows()

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

    def check_open(self, iova: int) -> None:
        """Check that the domain can be mapped into. Raises Gone once it is closed."""
        if self.closed:
            raise Gone(f"the iommu context is closed; iova {iova:#x} cannot be mapped")

    def check_overlap(self, first: int, last: int) -> None:
        """Check that nothing is mapped in the range. Raises Overlap."""
        other = self.mappings.first_overlap(first, last)
        if other:
            self.look((other,))
            raise Overlap(
                f"iova {first:#x}+{last + 1 - first:#x} overlaps mapping {other.first:#x}+{other.size:#x}",
                f"unmap it first; its memory was exchanged: {other.told}"
                if other.told
                else "unmap it first",
            )

    def check_window(self, first: int, last: int) -> None:
        """Check that the IOMMUs can translate the range. Raises InvalidArgument (address bits, reserved)."""
        if last >> self.address_bits:
            raise InvalidArgument(
                f"iova {first:#x}-{last:#x} exceeds the IOMMU's {self.address_bits} address bits"
            )
        if self.reserved:
            check_reserved(self.reserved, first, last)

    def check_entries(self, count: int) -> None:
        """Check that there may be ``count`` mappings. Raises TooManyMappings."""
        if count > self.entry_limit:
            raise TooManyMappings(
                f"there would be {count} mappings, {self.entry_limit} are allowed",
                "raise dma_entry_limit in the machine file",
            )

    # -- accesses by devices ---------------------------------------------------------------------

    def dma_read(self, requester: str, iova: int, size: int) -> bytes:
        """Read ``size`` bytes for the device named ``requester``. Raises DmaFault if any is not mapped readable."""
        with self.lock:
            m = self._tlb.get(iova >> PAGE_SHIFT)
            if m is None or not m.readable or iova + size - 1 > m.last:
                pieces = self._translate(requester, iova, size, write=False)
                self.counters.read += size
                return b"".join(self._fetch(requester, m, at, n) for m, at, n in pieces)
            self.counters.read += size
            return self._fetch(requester, m, iova, size)

    def dma_write(self, requester: str, iova: int, data: bytes) -> None:
        """Write ``data``. Raises DmaFault, and writes nothing, if any byte is not mapped writable."""
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
        """Store ``width`` bytes (2, 4 or 8) at an aligned address atomically. Raises InvalidArgument, DmaFault."""
        if width not in (2, 4, 8) or iova % width:
            raise InvalidArgument(f"a store of {width} bytes at iova {iova:#x} cannot be atomic")
        with self.lock:
            m = self._tlb.get(iova >> PAGE_SHIFT)
            if m is None or not m.writable or iova + width - 1 > m.last:
                m = self._translate(requester, iova, width, write=True)[0][0]
            self.counters.written += width
            if self._looks:
                self._check_same(requester, m, iova, width, True)
            try:
                m.pages.store(m.vaddr + (iova - m.first), value, width)
            except BadAddress as gone:
                raise self.fault(
                    requester, iova, width, True, f"the memory is gone: {gone}"
                ) from gone

    def dma_view(
        self, requester: str, iova: int, size: int, *, writable: bool = True
    ) -> memoryview | None:
        """Return a window on the program's own memory, or None where there cannot be one. Raises DmaFault.

        The window stays valid as memory after an unmap, as a page does whose translation a device has cached; a
        device that keeps one must drop it when the range is unmapped. An access to a part that is lost (the file was
        cut) is recorded as a fault; the part reads as zeroes from then on.
        """
        with self.lock:
            pieces = self._translate(requester, iova, size, write=writable)
            if len(pieces) != 1 or not pieces[0][0].readable:
                return None
            m, at, n = pieces[0]
            window = self._view(requester, m, m.vaddr + (at - m.first), n, writable)
            if window is not None:
                self.counters.viewed += size
            return window

    def dma_window(self, iova: int, requester: str = "") -> tuple[int, int, memoryview] | None:
        """Return what is around ``iova`` as (first address, address behind it, window), for bulk transfers.

        That is the whole mapping, or what one window can show of it. None where there is no mapping, where it is not
        readable and writable, or where the memory has no view; no fault is recorded. Valid while ``generation`` stays
        the same. The caller counts the bytes that it moves.
        """
        with self.lock:
            m = self.mappings.find(iova)
            if m is None or not (m.readable and m.writable):
                return None
            if self._looks and self._look(m, m.vaddr, m.size) and self._strict:
                return None  # each access finds it
            start, end = m.vaddr, m.vaddr + m.size
            try:
                if isinstance(m.pages, Patches):
                    low, high, _ = m.pages.around(m.vaddr + (iova - m.first))
                    start, end = max(start, low), min(end, high)
                cut = (requester, self._cut_of(requester, m))
                window = m.pages.view(start, end - start, cut=cut)
            except BadAddress:
                return None
            shift = m.first - m.vaddr
            return None if window is None else (start + shift, end + shift, window)

    def _view(
        self, requester: str, m: Mapping, address: int, size: int, writable: bool
    ) -> memoryview | None:
        if self._looks:
            iova = address - m.vaddr + m.first
            self._check_same(requester, m, iova, size, writable)
        cut = (requester, self._cut_of(requester, m))
        try:
            return m.pages.view(address, size, writable=writable, cut=cut)
        except BadAddress as gone:
            iova = address - m.vaddr + m.first
            reason = f"the memory is gone: {gone}"
            raise self.fault(requester, iova, size, writable, reason) from gone

    def _cut_of(self, requester: str, m: Mapping) -> Callable[[int], None]:
        """The function to call when a page of a window is lost. It keeps nothing alive."""
        domain, shift = ref(self), m.first - m.vaddr

        def cut(address: int) -> None:
            here = domain()
            if here is not None:
                here.generation += 1
                here.fault(
                    requester, address + shift, 1, False, "its memory is gone: the file was cut"
                )

        return cut

    def fault(self, device: str, iova: int, size: int, write: bool, reason: str) -> DmaFault:
        """Record a fault; returns the condition to raise."""
        from uvfio.core.events import Fault

        fault = Fault(device, iova, size, write, reason)
        with self.lock:
            self.faults.append(fault)
            self.fault_count += 1
            self.counters.faults += 1
        if self._on_fault:
            self._on_fault(fault)
        return DmaFault(f"dma fault: {fault}")

    def look(self, mappings: Iterable[Mapping]) -> None:
        """Find mappings whose memory the program exchanged, if this domain looks for that at all."""
        if self._looks:
            for m in mappings:
                if m.pages is not UNPINNED:
                    self._look(m, m.vaddr, m.size)

    def _look(self, m: Mapping, address: int, size: int) -> str:
        """How the range differs from what was mapped, or ""; pass on the first difference of a mapping."""
        if m.told and not self._strict:
            return m.told
        found = m.pages.exchanged(address, size)
        if found and not m.told:
            m.told = found
            self.counters.exchanged += 1
            if self._on_exchange is not None:
                from uvfio.core.events import MemoryExchanged

                self._on_exchange(MemoryExchanged(m.first, m.size, m.vaddr, found))
        return found

    def _check_same(self, requester: str, m: Mapping, iova: int, size: int, write: bool) -> None:
        """Look at what an access reaches. Raises DmaFault if it was exchanged and this domain is strict."""
        told = self._look(m, m.vaddr + (iova - m.first), size)
        if told and self._strict:
            raise self.fault(requester, iova, size, write, f"its memory was exchanged: {told}")

    def _fetch(self, requester: str, m: Mapping, at: int, size: int) -> bytes:
        if self._looks:
            self._check_same(requester, m, at, size, False)
        try:
            return m.pages.read(m.vaddr + (at - m.first), size)
        except BadAddress as gone:
            raise self.fault(requester, at, size, False, f"the memory is gone: {gone}") from gone

    def _put(self, requester: str, m: Mapping, at: int, data: bytes) -> None:
        if self._looks:
            self._check_same(requester, m, at, len(data), True)
        try:
            m.pages.write(m.vaddr + (at - m.first), data)
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

    def _end_windows(self) -> None:
        """Windows that devices keep may not be used any more, and give their memory back."""
        self.generation += 1
        if self.window_users:  # to iterate over no user costs more than to ask
            for user in tuple(self.window_users):
                user.forget()

    def _invalidate(self, first: int, last: int) -> None:
        """Forget kept translations of the range; every method that takes a mapping out of the map calls it."""
        self._end_windows()
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
