"""``Domain`` against a dictionary with one entry per mapped page.

The oracle knows pages only. That is enough to say what every map, unmap and access must do, what is
charged to whom, and how many mappings there are: as many as there are runs of pages that continue each
other in every respect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support.world import FakeBusDevice, SparseMemory, see_mappings
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import (
    BadAddress,
    DmaFault,
    InvalidArgument,
    LimitExceeded,
    Overlap,
    TooManyMappings,
    VfioError,
)

PAGE = 4096
PAGES = 24  # of I/O address space that the rules play with
MEMORY = range(40)  # pages of each program's memory
HOLES = {30, 31}
READ_ONLY = {20, 21, 22}
DEVICE = {10, 11, 12, 13}
ENTRY_LIMIT = 5
WIDTH = 64
RESERVED = (18, 19)


class Entry(NamedTuple):
    """Where one page leads."""

    owner: int
    vpage: int
    writable: bool
    charged: bool

    def continued_by(self, other: Entry | None) -> bool:
        return other == self._replace(vpage=self.vpage + 1)


@dataclass
class Oracle:
    """The whole truth about a domain, one page at a time."""

    pages: dict[int, Entry] = field(default_factory=dict)

    def runs(self) -> int:
        """Mappings that there must be."""
        return sum(
            1
            for page, entry in self.pages.items()
            if page - 1 not in self.pages or not self.pages[page - 1].continued_by(entry)
        )

    def locked(self, owner: int) -> int:
        return sum(entry.charged for entry in self.pages.values() if entry.owner == owner)

    def map(
        self, page: int, count: int, owner: int, vpage: int, writable: bool, limit: int | None
    ) -> type[VfioError] | None:
        wanted, behind = range(page, page + count), range(vpage, vpage + count)
        if not count or any(p >= WIDTH or p in RESERVED for p in wanted):
            return InvalidArgument
        if any(p in self.pages for p in wanted):
            return Overlap
        if limit is not None and self.locked(owner) + count > limit:
            return LimitExceeded
        if any(v in HOLES or (writable and v in READ_ONLY) for v in behind):
            return BadAddress
        charged = any(v not in DEVICE for v in behind)
        after = Oracle(
            self.pages
            | {p: Entry(owner, v, writable, charged) for p, v in zip(wanted, behind, strict=True)}
        )
        if after.runs() > ENTRY_LIMIT:
            return TooManyMappings
        self.pages = after.pages
        return None

    def unmap(self, page: int, count: int) -> tuple[type[VfioError] | None, int]:
        wanted = range(page, page + count)
        after = Oracle({p: e for p, e in self.pages.items() if p not in wanted})
        if after.runs() > ENTRY_LIMIT:
            return TooManyMappings, 0
        done = len(self.pages) - len(after.pages)
        self.pages = after.pages
        return None, done * PAGE


class DomainMachine(RuleBasedStateMachine):
    """Two owners map into one domain, one device accesses it."""

    def __init__(self) -> None:
        super().__init__()
        unit = IommuUnit(
            address_bits=12 + WIDTH.bit_length() - 1,
            reserved=((RESERVED[0] * PAGE, (RESERVED[1] + 1) * PAGE - 1),),
        )
        self.domain = Domain(entry_limit=ENTRY_LIMIT)
        self.device = FakeBusDevice("edu", 1, unit=unit)
        self.domain.attach(self.device)
        self.memories = [SparseMemory(), SparseMemory()]
        for memory in self.memories:
            memory.holes, memory.read_only, memory.device = HOLES, READ_ONLY, DEVICE
        self.mms = [Mm(memory) for memory in self.memories]
        self.oracle = Oracle()
        self.contents: list[dict[int, bytes]] = [{}, {}]

    def attempt(self, expected: type[VfioError] | None, call: object, *arguments: object) -> object:
        """Do it; a refusal must be the one expected and leave everything as it was."""
        assert callable(call)
        before = (see_mappings(self.domain), [mm.locked_pages for mm in self.mms])
        if expected is None:
            return call(*arguments)
        with pytest.raises(VfioError) as caught:
            call(*arguments)
        assert type(caught.value) is expected
        assert before == (see_mappings(self.domain), [mm.locked_pages for mm in self.mms])
        return None

    @rule(
        page=st.integers(0, PAGES) | st.just(WIDTH - 1),
        count=st.integers(0, 6),
        owner=st.integers(0, 1),
        vpage=st.integers(0, len(MEMORY) - 7),
        writable=st.booleans(),
        limit=st.none() | st.integers(0, 12),
    )
    def map(
        self, page: int, count: int, owner: int, vpage: int, writable: bool, limit: int | None
    ) -> None:
        expected = self.oracle.map(page, count, owner, vpage, writable, limit)
        limit_bytes = None if limit is None else limit * PAGE
        self.attempt(
            expected,
            partial(Rules2011(self.domain).map, writable=writable),
            page * PAGE,
            count * PAGE,
            vpage * PAGE,
            self.mms[owner],
            limit_bytes,
        )

    @precondition(lambda self: self.oracle.pages)
    @rule(data=st.data(), count=st.integers(1, 3), above=st.booleans())
    def continue_a_mapping(self, data: st.DataObject, count: int, above: bool) -> None:
        """Random numbers rarely fit to what is there; these always do."""
        page = data.draw(st.sampled_from(sorted(self.oracle.pages)))
        entry = self.oracle.pages[page]
        step = 1 if above else -count
        while above and page + 1 in self.oracle.pages:
            page, entry = page + 1, self.oracle.pages[page + 1]
        while not above and page - 1 in self.oracle.pages:
            page, entry = page - 1, self.oracle.pages[page - 1]
        if page + step >= 0 and entry.vpage + step >= 0:
            self.map(page + step, count, entry.owner, entry.vpage + step, entry.writable, None)

    @rule(page=st.integers(0, PAGES), count=st.integers(0, 10))
    def unmap(self, page: int, count: int) -> None:
        expected, done = self.oracle.unmap(page, count)
        result = self.attempt(expected, Rules2011(self.domain).unmap, page * PAGE, count * PAGE)
        assert expected or result == done

    @rule()
    def unmap_all(self) -> None:
        self.domain.unmap_all()
        self.oracle.pages.clear()

    @rule(
        iova=st.integers(0, PAGES * PAGE),
        data=st.binary(min_size=1, max_size=8) | st.just(b"long" * 2000),
    )
    def write(self, iova: int, data: bytes) -> None:
        pages = range(iova // PAGE, (iova + len(data) - 1) // PAGE + 1)
        entries = [self.oracle.pages.get(page) for page in pages]
        if not all(entry and entry.writable for entry in entries):
            faults = self.domain.fault_count
            with pytest.raises(DmaFault):
                self.domain.dma_write("edu", iova, data)
            assert self.domain.fault_count == faults + 1
            return
        self.domain.dma_write("edu", iova, data)
        assert self.domain.dma_read("edu", iova, len(data)) == data
        assert self.through_the_oracle(iova, len(data)) == data

    @rule(iova=st.integers(0, PAGES * PAGE), size=st.sampled_from([0, 1, 4, PAGE, 3 * PAGE]))
    def read(self, iova: int, size: int) -> None:
        pages = range(iova // PAGE, (iova + size - 1) // PAGE + 1) if size else ()
        if all(page in self.oracle.pages for page in pages):
            assert self.domain.dma_read("edu", iova, size) == self.through_the_oracle(iova, size)
        else:
            with pytest.raises(DmaFault):
                self.domain.dma_read("edu", iova, size)

    def through_the_oracle(self, iova: int, size: int) -> bytes:
        """The bytes as the program sees them, found page by page."""
        found = b""
        while len(found) < size:
            at = iova + len(found)
            entry = self.oracle.pages[at // PAGE]
            n = min(PAGE - at % PAGE, size - len(found))
            memory = self.memories[entry.owner]
            found += memory.read(entry.vpage * PAGE + at % PAGE, n)
        return found

    @invariant()
    def every_page_leads_where_it_should(self) -> None:
        seen = {}
        for m in self.domain.mappings:
            for n in range(m.size // PAGE):
                owner = self.mms.index(m.mm)
                entry = Entry(owner, m.vaddr // PAGE + n, m.writable, m.charged)
                seen[m.first // PAGE + n] = entry
        assert seen == self.oracle.pages

    @invariant()
    def there_are_as_few_mappings_as_possible(self) -> None:
        assert len(self.domain.mappings) == self.oracle.runs()

    @invariant()
    def accounts_are_right(self) -> None:
        for owner, mm in enumerate(self.mms):
            assert mm.locked_pages == self.oracle.locked(owner)

    def teardown(self) -> None:
        self.domain.close()
        assert [mm.locked_pages for mm in self.mms] == [0, 0]
        assert self.device.domain is None


TestDomain = DomainMachine.TestCase
TestDomain.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    iova=st.integers(-(1 << 12), 1 << 65),
    size=st.integers(-(1 << 12), 1 << 65),
    vaddr=st.integers(-(1 << 12), 1 << 65),
)
def test_no_numbers_make_a_mapping_that_is_not_whole_pages_within_64_bits(
    iova: int, size: int, vaddr: int
) -> None:
    domain, mm = Domain(), Mm(SparseMemory())
    try:
        Rules2011(domain).map(iova, size, vaddr, mm, None, writable=True)
    except InvalidArgument:
        assert len(domain.mappings) == 0
        assert mm.locked_pages == 0
    else:
        [m] = domain.mappings
        assert 0 <= m.first < m.last < 1 << 64
        assert 0 <= m.vaddr <= m.vaddr + m.size <= 1 << 64
        assert (m.first % PAGE, m.size % PAGE, m.vaddr % PAGE) == (0, 0, 0)


def aligned(limit: int) -> st.SearchStrategy[int]:
    return st.integers(-2, limit).map(lambda pages: pages * PAGE)


@settings(max_examples=200, deadline=None)
@given(iova=aligned(1 << 53), size=aligned(1 << 53), vaddr=aligned(1 << 53))
def test_aligned_numbers_either_fit_64_bits_or_are_refused(
    iova: int, size: int, vaddr: int
) -> None:
    domain, mm = Domain(), Mm(SparseMemory())
    fits = min(iova, vaddr) >= 0 < size and max(iova, vaddr) + size <= 1 << 64
    if fits:
        Rules2011(domain).map(iova, size, vaddr, mm, None, writable=True)
        assert Rules2011(domain).unmap(iova, size) == size
    else:
        with pytest.raises(InvalidArgument):
            Rules2011(domain).map(iova, size, vaddr, mm, None, writable=True)
    assert mm.locked_pages == 0
