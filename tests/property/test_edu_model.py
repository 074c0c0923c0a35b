"""The edu model against a naive one, under random traffic.

The naive model is a dictionary and a chain of ifs, written from docs/specs/edu; it knows nothing of register maps,
lanes or hooks. Both get the same accesses, of every width and at every place, and must agree on every
answer, on memory, on the interrupt wire, and on what a refused access leaves unchanged: everything.

With the BAR mapped, stores through the mapping come in between; what the mapping shows must at all times be what
the naive model would answer to a call.
"""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from support.model_world import World, power_on
from uvfio.models.edu import Edu

BUFFER = 0x40000
ONES = (1 << 64) - 1
WIDE = (0x80, 0x88, 0x90, 0x98)

offsets = st.one_of(
    st.sampled_from([0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, *WIDE, *(at + 4 for at in WIDE)]),
    st.integers(0, 0x3FFFF).map(lambda n: n * 4),
)
values = st.one_of(
    st.integers(0, 40),
    st.sampled_from([0x80, 0x100, 0x1000, 0x1FFF, BUFFER, BUFFER + 0xFFF, 0xFFFF_FFFF, ONES]),
    st.integers(0, ONES),
)


class NaiveEdu:
    """State in plain attributes."""

    def __init__(self) -> None:
        self.live = self.fact = self.causes = 0
        self.computing = self.raise_fact = False
        self.wide = dict.fromkeys(WIDE, 0)
        self.buffer = bytearray(4096)
        self.memory = bytearray(1 << 20)
        self.faults = 0

    def read(self, offset: int, size: int) -> int:
        ones = (1 << 8 * size) - 1
        if size < 4:
            return 0
        if offset < 0x80:
            if size != 4:
                return ones
            if offset == 0x00:
                return 0x010000ED
            if offset == 0x04:
                return self.live
            if offset == 0x08:
                return self.fact
            if offset == 0x20:
                return self.computing | self.raise_fact << 7
            return self.causes if offset == 0x24 else ones
        if offset & ~7 not in WIDE:
            return ones
        return self.wide[offset & ~7] >> 8 * (offset & 7) & ones

    def write(self, offset: int, value: int, size: int) -> None:
        value &= (1 << 8 * size) - 1
        if offset < 0x80:
            if size != 4:
                return
            if offset == 0x04:
                self.live = value ^ 0xFFFF_FFFF
            elif offset == 0x08 and not self.computing:
                self.fact, self.computing = value, True
            elif offset == 0x20:
                self.raise_fact = bool(value & 0x80)
            elif offset == 0x60:
                self.causes |= value
            elif offset == 0x64:
                self.causes &= ~value
        elif size >= 4 and offset & ~7 in WIDE and not self.wide[0x98] & 1:
            at, shift = offset & ~7, 8 * (offset & 7)
            kept = self.wide[at] & ~((1 << 8 * size) - 1 << shift)
            new = kept | value << shift
            if at == 0x98:
                new &= 7
                if not new & 1:
                    return
            self.wide[at] = new

    def settle(self) -> None:
        """Let the factorial unit, then the DMA engine finish."""
        if self.computing:
            small = self.fact < 100
            self.fact = math.factorial(self.fact) % 2**32 if small else 0
            self.computing = False
            self.causes |= self.raise_fact
        if self.wide[0x98] & 1:
            self.transfer()

    def transfer(self) -> None:
        command = self.wide[0x98]
        source, target, count = (self.wide[at] for at in WIDE[:3])
        inside, ram = (source, target) if command & 2 else (target, source)
        ram &= 0x0FFF_FFFF
        if inside >= BUFFER and inside + count <= BUFFER + 4096:
            first = inside - BUFFER
            if ram + count > len(self.memory):
                self.faults += 1
            elif command & 2:
                self.memory[ram : ram + count] = self.buffer[first : first + count]
            else:
                self.buffer[first : first + count] = self.memory[ram : ram + count]
        self.wide[0x98] = command & ~1
        if command & 4:
            self.causes |= 0x100


class EduTraffic(RuleBasedStateMachine):
    @initialize(seed=st.binary(min_size=1, max_size=64))
    def start(self, seed: bytes) -> None:
        self.world: World[Edu] = power_on(Edu)
        self.naive = NaiveEdu()
        filled = (seed * 4096)[:0x4000]
        self.world.domain.memory[: len(filled)] = filled
        self.naive.memory[: len(filled)] = filled

    @rule(offset=offsets, size=st.sampled_from([1, 2, 4, 8]))
    def read(self, offset: int, size: int) -> None:
        offset -= offset % size
        assert self.world.read(offset, size) == self.naive.read(offset, size)

    @rule(offset=offsets, value=values, size=st.sampled_from([4, 4, 4, 8, 1, 2]))
    def write(self, offset: int, value: int, size: int) -> None:
        offset -= offset % size
        self.world.write(offset, value & ((1 << 8 * size) - 1), size)
        self.naive.write(offset, value, size)

    @rule(
        ram=st.one_of(st.integers(0, 0x5000), st.integers(0, ONES)),
        inside=st.integers(BUFFER - 2, BUFFER + 4098),
        count=st.integers(0, 4098),
        command=st.integers(0, 7),
    )
    def dma(self, ram: int, inside: int, count: int, command: int) -> None:
        ends = (inside, ram) if command & 2 else (ram, inside)
        for at, value in zip(WIDE, (*ends, count, command), strict=True):
            self.world.write(at, value, 8)
            self.naive.write(at, value, 8)

    @rule()
    def settle(self) -> None:
        self.naive.settle()
        self.world.clock.advance()

    @rule(offset=offsets, value=values, size=st.sampled_from([1, 2, 8]))
    def refused(self, offset: int, value: int, size: int) -> None:
        """An access of a width that the place does not take changes nothing and reads as ones, or 0 if too narrow."""
        offset = offset - offset % size
        if offset >= 0x80 and size == 8:
            return
        model = self.world.model
        before = (list(model.regs.values), model.buffer[:], model.config.data[:])
        waiting = self.world.clock.waiting
        self.world.write(offset, value & ((1 << 8 * size) - 1), size)
        assert self.world.read(offset, size) == ((1 << 64) - 1 if size == 8 else 0)
        assert before == (model.regs.values, model.buffer, model.config.data)
        assert waiting == self.world.clock.waiting

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "world"):
            return
        model, naive = self.world.model, self.naive
        for offset in (0x00, 0x04, 0x08, 0x20, 0x24):
            assert self.world.read(offset) == naive.read(offset, 4)
        for offset in WIDE:
            assert self.world.read(offset, 8) == naive.read(offset, 8)
        assert model.intx_asserted == bool(naive.causes)
        assert model.buffer == naive.buffer
        assert self.world.domain.memory == naive.memory
        assert len(self.world.domain.faults) == naive.faults


units = st.sampled_from([0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64, 0x0C, 0x68, *WIDE])
sizes = st.sampled_from([4, 4, 8])


class MappedTraffic(EduTraffic):
    """As before, with the BAR mapped from the beginning. Stores go to memory, then somebody looks."""

    @initialize(seed=st.binary(min_size=1, max_size=64))
    def start(self, seed: bytes) -> None:
        super().start(seed)
        self.bar = self.world.model.bar_memory(0)

    def shown(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bar[offset : offset + size], "little")

    @rule(
        stores=st.dictionaries(units, st.tuples(values, sizes), min_size=1, max_size=4),
        call=st.one_of(st.none(), units),
    )
    def store(self, stores: dict[int, tuple[int, int]], call: int | None) -> None:
        """In any order; they take effect by ascending offsets, before a call is answered."""
        for offset, (value, size) in stores.items():
            size = size if offset in WIDE else 4
            self.bar[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(
                size, "little"
            )
        for offset in sorted(stores):
            size = 8 if offset in WIDE else 4
            new, old = self.shown(offset, size), self.naive.read(offset, size)
            low, high = (new ^ old) & 0xFFFF_FFFF, (new ^ old) >> 32
            if low and high:
                self.naive.write(offset, new, 8)
            elif high:
                self.naive.write(offset + 4, new >> 32, 4)
            elif low:
                self.naive.write(offset, new, 4)
        if call is None:
            self.world.store.look()
        else:
            assert self.world.read(call) == self.naive.read(call, 4)

    @rule()
    def reset(self) -> None:
        self.world.model.reset()
        memory, faults = self.naive.memory, self.naive.faults
        self.naive = NaiveEdu()
        self.naive.memory, self.naive.faults = memory, faults
        self.world.command(0x6)

    @rule()
    def map_again(self) -> None:
        self.world.model.end_mappings()
        assert not self.world.store.looks
        self.bar[0x400:0x404] = self.bar[0x100:0x104] = b"junk"
        self.world.model.bar_memory(0)

    @invariant()
    def mapping_shows_the_registers(self) -> None:
        if hasattr(self, "world"):
            for offset in range(0, 0xA8, 4):
                assert self.shown(offset, 4) == self.naive.read(offset, 4), hex(offset)
            assert self.shown(0x100, 4) == self.shown(0x400, 4) == 0xFFFF_FFFF
            assert not any(look() for look in self.world.store.looks)


MappedTraffic.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, print_blob=True
)
TestMappedTraffic = MappedTraffic.TestCase
EduTraffic.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, print_blob=True
)
TestEduTraffic = EduTraffic.TestCase
