"""Translations that a ``Domain`` keeps: an access never goes where its page led to before.

A container of either version maps, unmaps, gives mappings new addresses and is emptied, in any order and with
accesses in between; the domain keeps so few translations that they are replaced all the time. The oracle is a
dictionary with one entry per page. Each page of memory holds its own name, so a read shows where it went.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.world import FakeBusDevice, SparseMemory
from uvfio.core.seams import Mm
from uvfio.core.translation import domain as domain_module
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.rules_type1 import RulesType1
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import BadAddress, DmaFault, VfioError

PAGE = 4096
PAGES = 6
FRAMES = 24
BASES = (0, (1 << 64) - PAGES * PAGE)  # the first and the last pages of 64 bits
KEPT = 3  # translations


class Where(NamedTuple):
    """Where one page leads."""

    owner: int
    frame: int
    readable: bool
    writable: bool


class TranslationMachine(RuleBasedStateMachine):
    """Two programs map into one container, one device accesses their memory."""

    @initialize(version=st.sampled_from([1, 2]), base=st.sampled_from(BASES))
    def begin(self, version: int, base: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(domain_module, "TLB_ENTRIES", KEPT)
        self.domain = Domain()
        unit = IommuUnit(address_bits=64, reserved=())
        self.domain.attach(FakeBusDevice("edu", 1, unit=unit))
        self.type1 = RulesType1(self.domain, version)
        self.base = base
        self.memories = (SparseMemory(), SparseMemory())
        self.mms = [Mm(memory) for memory in self.memories]
        for owner, memory in enumerate(self.memories):
            for frame in range(FRAMES):
                memory.write(frame * PAGE, self.name(owner, frame) * 2)
                memory.write(frame * PAGE + PAGE - 8, self.name(owner, frame))
        self.pages: dict[int, Where] = {}

    @staticmethod
    def name(owner: int, frame: int) -> bytes:
        return f"{'ab'[owner]}{frame:07}".encode()

    def iova(self, page: int) -> int:
        return self.base + page * PAGE

    def seen(self) -> dict[int, Where]:
        """The pages as the map has them, without any translation that is kept."""
        found = {}
        for m in self.domain.mappings:
            for n in range(m.size // PAGE):
                page = (m.first - self.base) // PAGE + n
                found[page] = Where(
                    self.mms.index(m.mm), m.vaddr // PAGE + n, m.readable, m.writable
                )
        return found

    # -- the program -----------------------------------------------------------------------------

    @rule(
        page=st.integers(0, PAGES - 1),
        count=st.integers(1, 4),
        owner=st.integers(0, 1),
        frame=st.integers(0, FRAMES - 4),
        mode=st.sampled_from([(True, True), (True, False), (False, True)]),
    )
    def map(self, page: int, count: int, owner: int, frame: int, mode: tuple[bool, bool]) -> None:
        count = min(count, PAGES - page)
        wanted = range(page, page + count)
        readable, writable = mode
        try:
            self.type1.map(
                self.iova(page),
                count * PAGE,
                frame * PAGE,
                self.mms[owner],
                None,
                readable=readable,
                writable=writable,
            )
        except VfioError:
            assert any(p in self.pages for p in wanted)
        else:
            for n, p in enumerate(wanted):
                self.pages[p] = Where(owner, frame + n, readable, writable)

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, PAGES))
    def unmap(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        before = len(self.pages)
        try:
            done = self.type1.unmap(self.iova(page), count * PAGE)
        except VfioError:
            return
        self.pages = self.seen()  # what version 1 takes is its own test's matter
        assert before - len(self.pages) == done // PAGE

    @rule()
    def unmap_everything(self) -> None:
        self.type1.unmap(0, 0, everything=True)
        self.pages.clear()

    @rule(data=st.data(), owner=st.integers(0, 1), frame=st.integers(0, FRAMES - 4))
    def lead_elsewhere(self, data: st.DataObject, owner: int, frame: int) -> None:
        mappings = list(self.domain.mappings)
        if not mappings:
            return
        m = data.draw(st.sampled_from(mappings))
        self.type1.invalidate(m.first, m.size)
        self.type1.renew(m.first, m.size, frame * PAGE, self.mms[owner], None)
        first = (m.first - self.base) // PAGE
        for n in range(m.size // PAGE):
            self.pages[first + n] = self.pages[first + n]._replace(owner=owner, frame=frame + n)

    @rule(page=st.integers(0, PAGES - 1))
    def the_2011_way_to_cut(self, page: int) -> None:
        """The same domain under the rules that cut mappings, which do not know write-only ones."""
        where = self.pages.get(page)
        if where is None or where.readable:
            assert Rules2011(self.domain).unmap(self.iova(page), PAGE) == PAGE * (where is not None)
            self.pages.pop(page, None)

    # -- the device ------------------------------------------------------------------------------

    @rule(page=st.integers(0, PAGES - 1), at=st.sampled_from([0, 4, 8, PAGE - 8]))
    def read(self, page: int, at: int) -> None:
        where = self.pages.get(page)
        if where is None or not where.readable:
            with pytest.raises(DmaFault):
                self.domain.dma_read("edu", self.iova(page) + at, 4)
            return
        expected = self.memories[where.owner].read(where.frame * PAGE + at, 4)
        assert self.domain.dma_read("edu", self.iova(page) + at, 4) == expected

    @rule(page=st.integers(0, PAGES - 2))
    def read_across(self, page: int) -> None:
        both = [self.pages.get(page), self.pages.get(page + 1)]
        iova = self.iova(page + 1) - 8
        if not all(where and where.readable for where in both):
            with pytest.raises(DmaFault):
                self.domain.dma_read("edu", iova, 16)
            return
        names = [self.name(where.owner, where.frame) for where in both if where]
        assert self.domain.dma_read("edu", iova, 16) == b"".join(names)

    @rule(page=st.integers(0, PAGES - 1), value=st.integers(0, (1 << 32) - 1), whole=st.booleans())
    def write(self, page: int, value: int, whole: bool) -> None:
        where = self.pages.get(page)
        iova = self.iova(page) + 2048
        raw = value.to_bytes(4, "little")

        def access() -> None:
            if whole:
                self.domain.dma_store("edu", iova, value, 4)
            else:
                self.domain.dma_write("edu", iova, raw)

        if where is None or not where.writable:
            with pytest.raises(DmaFault):
                access()
            return
        access()
        assert self.memories[where.owner].read(where.frame * PAGE + 2048, 4) == raw

    @rule(page=st.integers(0, PAGES - 1))
    def memory_goes(self, page: int) -> None:
        """The program unmaps the memory itself: a kept translation does not bring it back."""
        where = self.pages.get(page)
        if where is None or not where.readable:
            return
        memory = self.memories[where.owner]
        memory.holes.add(where.frame)
        with pytest.raises(BadAddress):
            memory.read(where.frame * PAGE, 1)
        with pytest.raises(DmaFault):
            self.domain.dma_read("edu", self.iova(page), 1)
        memory.holes.clear()

    @invariant()
    def the_oracle_is_right(self) -> None:
        if hasattr(self, "pages"):
            assert self.seen() == self.pages

    @invariant()
    def few_translations_are_kept_and_none_is_stale(self) -> None:
        if hasattr(self, "pages"):
            assert len(self.domain._tlb) <= KEPT
            for number, mapping in self.domain._tlb.items():
                assert self.domain.mappings.find(number * PAGE) is mapping

    def teardown(self) -> None:
        if hasattr(self, "pages"):
            self.domain.close()
            self.patch.undo()
            assert not self.domain._tlb
            for page in self.pages:
                with pytest.raises(DmaFault):
                    self.domain.dma_read("edu", self.iova(page), 1)


TestTranslations = TranslationMachine.TestCase
TestTranslations.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
