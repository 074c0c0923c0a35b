"""``Area`` and ``Backing``: a page of a backing is charged once, and only while an area of it is held."""

from __future__ import annotations

import pytest

from support.world import PAGE, SparseMemory
from uvfio.core.seams import Mm, Pin
from uvfio.core.translation.area import Area, Backing
from uvfio.errors import BadAddress, InvalidArgument, LimitExceeded


class Bench:
    def __init__(self, limit: int | None = None) -> None:
        self.memory = SparseMemory()
        self.mm, self.payer = Mm(self.memory, "mapped"), Mm(self.memory, "payer")
        self.backing = Backing(self.mm, True, self.payer, limit)

    def area(self, first: int, pages: int, vaddr: int, *, readable: bool = True) -> Area:
        last = first + pages * PAGE - 1
        return Area(first, last, vaddr, self.backing, readable, readable)


def test_pages_that_two_areas_share_are_charged_once_to_the_payer() -> None:
    bench = Bench()
    one, other = bench.area(0, 2, 0x10000), bench.area(0x9000, 2, 0x11000)
    bench.backing.hold(one)
    bench.backing.hold(other)
    assert (bench.payer.locked_pages, bench.mm.locked_pages) == (3, 0)
    bench.backing.release(one)
    assert bench.payer.locked_pages == 2
    bench.backing.release(other)
    assert bench.payer.locked_pages == 0


def test_memory_is_checked_before_its_limit() -> None:
    bench = Bench(limit=0)
    bench.memory.holes.add(0x10)
    with pytest.raises(BadAddress):
        bench.backing.hold(bench.area(0, 1, 0x10000))
    with pytest.raises(LimitExceeded):
        bench.backing.hold(bench.area(0, 1, 0x20000))
    assert (bench.payer.locked_pages, bench.backing.locked) == (0, 0)


def test_a_devices_memory_cannot_be_held() -> None:
    bench = Bench()
    bench.memory.device.add(0x10)
    with pytest.raises(BadAddress, match="device's memory"):
        bench.backing.hold(bench.area(0, 1, 0x10000))


def test_an_area_without_permission_cannot_be_held() -> None:
    bench = Bench()
    with pytest.raises(InvalidArgument):
        bench.backing.hold(bench.area(0, 1, 0x10000, readable=False))


def test_a_part_leads_to_the_same_memory_and_has_the_same_backing() -> None:
    bench = Bench()
    part = bench.area(0x1000, 4, 0x10000).part(0x2000, 0x3FFF)
    assert (part.first, part.size, part.vaddr, part.backing) == (
        0x2000,
        2 * PAGE,
        0x11000,
        bench.backing,
    )


def test_parts_of_an_area_that_is_held_are_held() -> None:
    bench = Bench()
    area = bench.area(0, 2, 0x10000)
    bench.backing.hold(area)
    parts = area.part(0, PAGE - 1), area.part(PAGE, 2 * PAGE - 1)
    bench.backing.divide(area, parts)
    assert bench.payer.locked_pages == 2
    bench.backing.release(parts[0])
    assert bench.payer.locked_pages == 1


class Renewed(SparseMemory):
    """Each pin gives other memory, as after an munmap and mmap of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.pins: list[SparseMemory] = []

    def pin(self, address: int, size: int, writable: bool) -> Pin:
        self.pins.append(SparseMemory())
        return Pin(self.pins[-1], size)


def test_a_page_that_is_held_stays_the_page_that_it_was() -> None:
    bench = Bench()
    memory = Renewed()
    bench.backing.mm = Mm(memory)
    one, other = bench.area(0, 2, 0x10000), bench.area(0x9000, 2, 0x11000)
    bench.backing.hold(one)
    bench.backing.hold(other)
    first, second = memory.pins
    other.pages.write(0x11FFE, b"abcd")
    assert first.read(0x11FFE, 2) == one.pages.read(0x11FFE, 2) == b"ab"
    assert second.read(0x12000, 2) == b"cd"
    bench.backing.release(one)
    assert other.pages.read(0x11FFE, 4) == b"abcd"
    with pytest.raises(BadAddress):
        one.pages.read(0x11FFE, 2)
    again = bench.area(0, 2, 0x11000)
    bench.backing.hold(again)
    assert len(memory.pins) == 2
    assert again.pages.read(0x11FFE, 4) == b"abcd"
    bench.backing.release(other)
    bench.backing.release(again)
    bench.backing.hold(again)
    assert len(memory.pins) == 3
    assert again.pages.read(0x11FFE, 4) == bytes(4)


def test_a_refused_hold_leaves_the_pages_as_they_were() -> None:
    bench = Bench(limit=2 * PAGE)
    held = bench.area(0, 2, 0x10000)
    bench.backing.hold(held)
    with pytest.raises(LimitExceeded):
        bench.backing.hold(bench.area(0x9000, 2, 0x11000))
    assert (bench.payer.locked_pages, bench.backing.locked) == (2, 2)
    bench.backing.release(held)
    assert (bench.payer.locked_pages, bench.backing.locked) == (0, 0)


def test_pages_that_are_held_already_are_not_checked_again() -> None:
    """Thousands of copies of one area: memory is looked at once."""
    bench, pinned = Bench(), list[int]()
    pin = bench.memory.pin

    def counted(address: int, size: int, writable: bool) -> Pin:
        pinned.append(size)
        return pin(address, size, writable)

    bench.memory.pin = counted  # type: ignore[method-assign]
    bench.backing.hold(bench.area(0, 64, 0x10000))
    for n in range(1000):
        bench.backing.hold(bench.area(0x100000 * (n + 1), 1 + n % 64, 0x10000))
    assert pinned == [64 * PAGE]
    assert bench.payer.locked_pages == 64
