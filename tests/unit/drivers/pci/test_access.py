"""drivers.pci.access: reading, writing and mapping regions (5.3, 5.4)."""

from __future__ import annotations

import pytest

from support.pci_function import FakeFunction
from uvfio.drivers.pci.access import bar_window, rom_window
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.drivers.window import width_at
from uvfio.errors import InvalidArgument


def test_absent_region_refuses_everything() -> None:
    absent = bar_window(FakeFunction(), 3, None)
    assert absent.region.size == 0
    with pytest.raises(InvalidArgument, match="region 3 is not implemented"):
        absent.read(0, 4)
    with pytest.raises(InvalidArgument, match="region 3 is not implemented"):
        absent.write(0, b"abcd")
    with pytest.raises(InvalidArgument, match="cannot be mapped"):
        absent.mmap(0, 4096)


@pytest.mark.parametrize("kind", [BarKind.MEMORY32, BarKind.IO])
def test_ranges_are_cut_into_the_largest_aligned_pieces(kind: BarKind) -> None:
    function = FakeFunction(bars={0: Bar(0x100, kind)})
    registers = bar_window(function, 0, function.bars[0])
    assert registers.read(1, 12) == bytes(12)
    assert function.log == [
        ("read", 0, 1, 1),
        ("read", 0, 2, 2),
        ("read", 0, 4, 4),
        ("read", 0, 8, 4),
        ("read", 0, 12, 1),
    ]
    function.log.clear()
    assert registers.write(2, bytes(range(1, 8))) == 7
    assert function.log == [
        ("write", 0, 2, 0x0201, 2),
        ("write", 0, 4, 0x06050403, 4),
        ("write", 0, 8, 7, 1),
    ]


def test_values_are_little_endian() -> None:
    function = FakeFunction(bars={0: Bar(0x100)})
    registers = bar_window(function, 0, function.bars[0])
    function.registers[0, 8] = 0x11223344
    assert registers.read(8, 4) == b"\x44\x33\x22\x11"
    registers.write(8, b"\x01\x02")
    assert function.registers[0, 8] == 0x0201


def test_memory_bar_is_truncated_at_its_end() -> None:
    function = FakeFunction(bars={0: Bar(0x100)})
    registers = bar_window(function, 0, function.bars[0])
    assert len(registers.read(0xF8, 100)) == 8
    assert registers.write(0xFF, b"abc") == 1
    assert registers.read(0x100, 4) == b""
    assert registers.write(0x100, b"abcd") == 0


@pytest.mark.parametrize("mappable", [False, True])
def test_memory_bar_beyond_its_end_is_invalid(mappable: bool) -> None:
    function = FakeFunction(bars={0: Bar(0x1000, mappable=mappable)})
    memory = bar_window(function, 0, function.bars[0])
    with pytest.raises(InvalidArgument, match="ends at 0x1000, before offset 0x1001"):
        memory.read(0x1001, 1)
    with pytest.raises(InvalidArgument):
        memory.write(0x1001, b"x")
    assert function.log == []


def test_io_bar_is_never_partial() -> None:
    function = FakeFunction(bars={0: Bar(0x20, BarKind.IO)})
    ports = bar_window(function, 0, function.bars[0])
    assert len(ports.read(0x1C, 4)) == 4
    for offset, count in ((0x1C, 5), (0x20, 1), (0x100, 1)):
        with pytest.raises(InvalidArgument, match="not inside"):
            ports.read(offset, count)
        with pytest.raises(InvalidArgument, match="not inside"):
            ports.write(offset, bytes(count))
    assert function.log == [("read", 0, 0x1C, 4)]


def test_plain_memory_is_copied_as_it_is() -> None:
    function = FakeFunction(bars={4: Bar(0x2000, mappable=True)})
    memory = bar_window(function, 4, function.bars[4])
    assert memory.write(3, b"hello") == 5
    assert bytes(function.memory[4][3:8]) == b"hello"
    assert memory.read(2, 7) == b"\0hello\0"
    assert memory.write(0x1FFE, b"abcd") == 2
    assert memory.read(0x1FFE, 10) == b"ab"
    assert memory.read(0x2000, 10) == b""
    assert function.log == []


def test_rom_reads_and_refuses_writes() -> None:
    function = FakeFunction(rom=b"\x55\xaa" + bytes(2046))
    rom = rom_window(function, 6)
    assert (rom.region.size, rom.region.writable) == (2048, False)
    assert rom.read(0, 2) == b"\x55\xaa"
    assert len(rom.read(2040, 100)) == 8
    assert rom.read(2048, 1) == b""
    with pytest.raises(InvalidArgument):
        rom.read(2049, 1)
    with pytest.raises(InvalidArgument, match="read-only"):
        rom.write(0, b"x")
    with pytest.raises(InvalidArgument, match="cannot be mapped"):
        rom.mmap(0, 2048)


def test_no_rom_image_is_invalid() -> None:
    rom = rom_window(FakeFunction(), 6)
    assert rom.region.size == 0
    with pytest.raises(InvalidArgument):
        rom.read(0, 1)


# 5.4


def test_mmap_gives_the_memory_itself() -> None:
    function = FakeFunction(bars={4: Bar(0x2000, mappable=True)})
    memory = bar_window(function, 4, function.bars[4])
    view = memory.mmap(0x1000, 0x1000)
    view[0] = 7
    assert len(view) == 0x1000
    assert function.memory[4][0x1000] == 7


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0x3000), (0x1000, 0x2000), (0x2000, 0x1000), (0, 0), (-0x1000, 0x1000)]
)
def test_mmap_beyond_the_bar_is_invalid(offset: int, size: int) -> None:
    function = FakeFunction(bars={4: Bar(0x2000, mappable=True)})
    with pytest.raises(InvalidArgument, match="not inside"):
        bar_window(function, 4, function.bars[4]).mmap(offset, size)


def test_mmap_of_less_than_a_page_is_invalid() -> None:
    function = FakeFunction(bars={0: Bar(0x800, mappable=True)})
    small = bar_window(function, 0, function.bars[0])
    assert not small.region.mappable
    with pytest.raises(InvalidArgument, match="smaller than a page"):
        small.mmap(0, 0x800)


@pytest.mark.parametrize("bar", [Bar(0x1000), Bar(0x1000, BarKind.IO)])
def test_mmap_of_registers_and_ports_is_invalid(bar: Bar) -> None:
    function = FakeFunction(bars={0: bar})
    with pytest.raises(InvalidArgument, match="cannot be mapped"):
        bar_window(function, 0, bar).mmap(0, 0x1000)


@pytest.mark.parametrize(
    ("offset", "left", "width"),
    [(0, 4, 4), (0, 3, 2), (0, 1, 1), (1, 8, 1), (2, 8, 2), (4, 8, 4), (8, 8, 4), (6, 1, 1)],
)
def test_width_at(offset: int, left: int, width: int) -> None:
    assert width_at(offset, left) == width


def test_polled_registers_are_reached_and_mapped() -> None:
    function = FakeFunction(bars={0: Bar(0x2000, mappable=True, polled=True)})
    window = bar_window(function, 0, function.bars[0])
    assert window.region.mappable
    window.write(4, b"\x01\x00\x00\x00")
    assert window.read(4, 4) == b"\x01\x00\x00\x00"
    assert function.log == [("write", 0, 4, 1, 4), ("read", 0, 4, 4)]
    assert len(window.mmap(0x1000, 0x1000)) == 0x1000
    with pytest.raises(InvalidArgument, match="is not inside"):
        window.mmap(0x1000, 0x2000)


# An MSI-X table in memory

RANGES = ((0x800, 0x840), (0x900, 0x908))


@pytest.mark.parametrize(("offset", "count"), [(0, 0x1000), (0x7FE, 4), (0x83C, 0xD0), (0x904, 8)])
def test_a_table_in_memory_is_registers_to_calls(offset: int, count: int) -> None:
    function = FakeFunction(bars={0: Bar(0x1000, mappable=True)})
    window = bar_window(function, 0, function.bars[0], RANGES)
    data = bytes((at * 7 & 0xFF) | 1 for at in range(count))
    assert window.write(offset, data) == count
    memory = bytes(function.memory[0])
    for at in range(0x1000):
        inside = any(first <= at < end for first, end in RANGES)
        there = offset <= at < offset + count and not inside
        assert memory[at] == (data[at - offset] if there else 0)
    written = [(entry[2], entry[4]) for entry in function.log if entry[0] == "write"]
    assert sum(int(str(size)) for _, size in written) == sum(
        max(0, min(end, offset + count) - max(first, offset)) for first, end in RANGES
    )
    found = window.read(offset, count)
    assert len(found) == count
    assert window.read(0x1000, 4) == b""
    with pytest.raises(InvalidArgument):
        window.read(0x1001, 4)
    assert window.mmap(0, 0x1000)[0x800] == 0
