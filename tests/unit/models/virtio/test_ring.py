"""The device's side of a split ring: chains, publication, flags, and everything a bad driver may write."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.virtio_driver import MEMORY, NEXT, WRITE, Memory, Ring, mapped
from uvfio.core.seams import Mm
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.errors import BrokenRing, DmaFault
from uvfio.kit.dma import PlainDma
from uvfio.kit.dma_window import DmaWindows
from uvfio.models.virtio.ring import SplitRing
from uvfio.uapi.virtio import VRING_DESC_F_INDIRECT

AT = 0x10000
SIZE = 8


class Pair:
    """Both sides of one ring."""

    def __init__(self, windows: bool, size: int = SIZE, at: int = AT) -> None:
        self.memory = Memory(windows=windows)
        self.domain = mapped(self.memory)
        self.dma = PlainDma("device")
        self.dma.domain = self.domain
        self.windows = DmaWindows(self.dma)
        self.driver = Ring(self.memory, at, size)
        self.device = SplitRing(self.windows, at, size)
        self.refresh()

    def refresh(self) -> None:
        self.windows.refresh()
        self.device.refresh()


@pytest.fixture(params=[True, False], ids=["windows", "copies"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def test_nothing_waits_in_a_new_ring(pair: Pair) -> None:
    assert pair.device.waiting == 0
    assert pair.device.take(10) == []


def test_chains_of_every_shape(pair: Pair) -> None:
    driver = pair.driver
    driver.describe(0, 0x1000, 10, NEXT, 1)
    driver.describe(1, 0x2000, 64)
    driver.describe(2, 0x3000, 2048, WRITE)
    driver.describe(3, 0x4000, 1, NEXT, 4)
    driver.describe(4, 0x5000, 2, NEXT | WRITE, 5)
    driver.describe(5, 0x6000, 3, WRITE)
    driver.describe(6, 0x7000, 4)
    driver.offer(0, 2, 3, 6)
    assert pair.device.take(10) == [
        (0, [(0x1000, 10), (0x2000, 64)], []),
        (2, [], [(0x3000, 2048)]),
        (3, [(0x4000, 1)], [(0x5000, 2), (0x6000, 3)]),
        (6, [(0x7000, 4)], []),
    ]
    assert pair.device.waiting == 0


def test_a_limit_and_a_return(pair: Pair) -> None:
    for slot in range(5):
        pair.driver.describe(slot, 0x1000 * slot, 1)
    pair.driver.offer(*range(5))
    assert [head for head, _, _ in pair.device.take(3)] == [0, 1, 2]
    assert pair.device.waiting == 2
    pair.device.untake(1)
    assert [head for head, _, _ in pair.device.take(9)] == [2, 3, 4]


def test_what_is_pushed_shows_when_published(pair: Pair) -> None:
    pair.device.push([3, 100, 1, 0])
    assert pair.driver.used_idx == 0
    pair.device.publish()
    assert pair.driver.take_used() == [(3, 100), (1, 0)]


def test_indices_wrap_at_the_ring_and_at_16_bits(pair: Pair) -> None:
    for slot in range(SIZE):
        pair.driver.describe(slot, 0x1000 * slot, 1)
    turns = 0
    while turns < 65536 + 3 * SIZE:
        heads = [(turns + i) % SIZE for i in range(5)]
        pair.driver.offer(*heads)
        assert [head for head, _, _ in pair.device.take(9)] == heads
        pair.device.push([n for head in heads for n in (head, turns)])
        pair.device.publish()
        assert pair.driver.take_used() == [(head, turns) for head in heads]
        turns += 5
    assert pair.device.used == pair.device.taken == turns % 65536


def test_handing_over_is_one_store() -> None:
    copying = Pair(windows=False)
    copying.device.push([0, 1])
    copying.memory.stores.clear()
    copying.device.publish()
    assert copying.memory.stores == [(copying.driver.used + 2, 1, 2)]


def test_notifications_on_and_off(pair: Pair) -> None:
    assert not pair.device.listen(False)
    assert pair.driver.deaf
    pair.driver.describe(0, 0x1000, 1)
    pair.driver.offer(0)
    assert pair.device.listen(True), "it came while nobody listened"
    assert not pair.driver.deaf
    pair.device.take(1)
    assert not pair.device.listen(True)


def test_interrupts_wanted(pair: Pair) -> None:
    assert pair.device.interrupts_wanted
    pair.driver.refuse_interrupts()
    assert not pair.device.interrupts_wanted


def test_chains_before_a_bad_one_are_delivered(pair: Pair) -> None:
    pair.driver.describe(0, 0x1000, 1)
    pair.driver.offer(0, SIZE)
    assert len(pair.device.take(9)) == 1
    with pytest.raises(BrokenRing, match=f"descriptor {SIZE} does not exist"):
        pair.device.take(9)


def broken(pair: Pair, match: str) -> None:
    before = pair.device.taken, pair.device.used
    with pytest.raises(BrokenRing, match=match):
        pair.device.take(9)
    assert (pair.device.taken, pair.device.used) == before


def test_more_chains_than_entries(pair: Pair) -> None:
    pair.driver.set_idx(SIZE + 1)
    broken(pair, "avail idx 9 is 9 ahead, it has 8 entries")


def test_an_index_that_goes_back(pair: Pair) -> None:
    pair.driver.set_idx(65535)
    broken(pair, "65535 ahead")


@pytest.mark.parametrize("length", [1, 2, 3, SIZE])
def test_a_loop(pair: Pair, length: int) -> None:
    for slot in range(length):
        pair.driver.describe(slot, 0x1000, 1, NEXT, (slot + 1) % length)
    pair.driver.offer(0)
    broken(pair, "it loops")


def test_the_longest_chain_is_no_loop(pair: Pair) -> None:
    for slot in range(SIZE):
        pair.driver.describe(slot, 0x1000, 1, NEXT if slot < SIZE - 1 else 0, slot + 1)
    pair.driver.offer(0)
    assert len(pair.device.take(1)[0][1]) == SIZE


def test_a_link_out_of_the_table(pair: Pair) -> None:
    pair.driver.describe(0, 0x1000, 1, NEXT, 0xFFFF)
    pair.driver.offer(0)
    broken(pair, "descriptor 65535 does not exist")


def test_indirect_descriptors_were_not_offered(pair: Pair) -> None:
    pair.driver.describe(0, 0x1000, 16, VRING_DESC_F_INDIRECT)
    pair.driver.offer(0)
    broken(pair, "indirect")


def test_reading_behind_writing(pair: Pair) -> None:
    pair.driver.describe(0, 0x1000, 1, WRITE | NEXT, 1)
    pair.driver.describe(1, 0x2000, 1)
    pair.driver.offer(0)
    broken(pair, "a buffer to read follows one to write")


@pytest.mark.parametrize("windows", [True, False])
def test_a_ring_that_is_not_mapped(windows: bool) -> None:
    pair = Pair(windows)
    pair.driver.offer(0)
    Rules2011(pair.domain).unmap(AT & ~0xFFF, 0x1000)
    pair.refresh()
    with pytest.raises(DmaFault):
        pair.device.take(1)
    Rules2011(pair.domain).map(
        AT & ~0xFFF, 0x1000, AT & ~0xFFF, Mm(pair.memory), None, writable=True
    )
    pair.refresh()
    assert len(pair.device.take(1)) == 1


def test_a_ring_across_two_mappings_is_copied() -> None:
    pair = Pair(windows=True)
    Rules2011(pair.domain).unmap(AT + 0x1000, MEMORY - AT - 0x1000)
    other = Memory()
    pair.driver.describe(0, 0x1000, 1)
    pair.driver.offer(0)
    other.bytes[:] = pair.memory.bytes
    Rules2011(pair.domain).map(AT + 0x1000, 0x1000, AT + 0x1000, Mm(other), None, writable=True)
    pair.refresh()
    assert pair.device.take(1) == [(0, [(0x1000, 1)], [])]
    pair.device.push([0, 7])
    pair.device.publish()
    assert struct.unpack_from("<HHII", other.bytes, pair.driver.used) == (0, 1, 0, 7)


@given(
    st.binary(min_size=16 * 4 + 2 * 7, max_size=16 * 4 + 2 * 7),
    st.integers(0, 65535),
    st.booleans(),
)
def test_any_bytes_at_all(contents: bytes, taken: int, windows: bool) -> None:
    """Whatever is in a ring: chains within the table, or one of two conditions."""
    pair = Pair(windows, size=4)
    pair.memory.bytes[AT : AT + len(contents)] = contents
    pair.device.taken = taken
    for _ in range(3):
        try:
            chains = pair.device.take(4)
        except BrokenRing:
            return
        for head, out, into in chains:
            assert head < 4
            assert 1 <= len(out) + len(into) <= 4


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 2, 3, 4]), st.integers(0, 4)),
        min_size=4,
        max_size=4,
    ),
    st.lists(st.integers(0, 4), max_size=4),
)
def test_windows_and_copies_agree(table: list[tuple[int, int, int]], heads: list[int]) -> None:
    answers = []
    for windows in (True, False):
        pair = Pair(windows, size=4)
        for slot, (length, flags, link) in enumerate(table):
            pair.driver.describe(slot, 0x1000 * slot, length, flags, link)
        pair.driver.offer(*heads)
        got: list[object] = []
        try:
            while found := pair.device.take(4):
                got += found
        except BrokenRing as why:
            got.append(str(why))
        answers.append(got)
    assert answers[0] == answers[1]
