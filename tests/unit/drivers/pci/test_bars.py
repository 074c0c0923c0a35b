"""drivers.pci.bars: sizing of every kind of register, and restoring the real addresses."""

from __future__ import annotations

import pytest

from support.pci_function import FakeFunction
from uvfio.drivers.pci.bars import ROM_INDEX, BarRegisters
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.errors import InvalidArgument
from uvfio.uapi import pci

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("bar", "sized"),
    [
        (Bar(16), 0xFFFFFFF0),
        (Bar(0x1000), 0xFFFFF000),
        (Bar(1 << 31), 0x80000000),
        (Bar(0x1000, prefetchable=True), 0xFFFFF008),
        (Bar(4, BarKind.IO), 0xFFFFFFFD),
        (Bar(0x100, BarKind.IO), 0xFFFFFF01),
    ],
)
def test_sizing_of_32_bit_registers(bar: Bar, sized: int) -> None:
    bars = BarRegisters(FakeFunction(bars={0: bar}))
    assert bars.virtual(0, ONES) == sized
    assert bars.virtual(0, 0) == sized & 0xF & ~(0xC if bar.kind is BarKind.IO else 0)


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [
        (0x1000, 0xFFFFF004, ONES),
        (1 << 31, 0x80000004, ONES),
        (1 << 32, 0x00000004, ONES),
        (1 << 33, 0x00000004, 0xFFFFFFFE),
        (1 << 40, 0x00000004, 0xFFFFFF00),
    ],
)
def test_sizing_of_64_bit_registers(size: int, low: int, high: int) -> None:
    bars = BarRegisters(FakeFunction(bars={2: Bar(size, BarKind.MEMORY64)}))
    assert bars.virtual(2, ONES) == low
    assert bars.virtual(3, ONES) == high
    assert bars.virtual(3, 0) == 0


def test_addresses_are_stored_above_the_size() -> None:
    bars = BarRegisters(FakeFunction(bars={0: Bar(0x1000)}))
    assert bars.virtual(0, 0xFEB12345) == 0xFEB12000


def test_rom_keeps_its_enable_bit() -> None:
    bars = BarRegisters(FakeFunction(bars={}, rom=bytes(0x10000)))
    assert bars.virtual(ROM_INDEX, ONES) == 0xFFFF0001
    assert bars.virtual(ROM_INDEX, 0xFFFFFFFE) == 0xFFFF0000


def test_absent_registers_read_zero() -> None:
    bars = BarRegisters(FakeFunction(bars={}))
    assert [bars.virtual(n, ONES) for n in range(7)] == [0] * 7


@pytest.mark.parametrize(
    ("bars", "rom", "decode"),
    [
        ({}, b"", 0),
        ({0: Bar(16)}, b"", pci.PCI_COMMAND_MEMORY),
        ({0: Bar(16, BarKind.IO)}, b"", pci.PCI_COMMAND_IO),
        ({0: Bar(16, BarKind.IO)}, bytes(2048), pci.PCI_COMMAND_IO | pci.PCI_COMMAND_MEMORY),
    ],
)
def test_decode_bits(bars: dict[int, Bar], rom: bytes, decode: int) -> None:
    assert BarRegisters(FakeFunction(bars=bars, rom=rom)).decode == decode


def test_index_of_offsets() -> None:
    offsets = {n: BarRegisters.index_of(n) for n in range(0, 0x40, 4)}
    assert offsets[0x10] == 0
    assert offsets[0x24] == 5
    assert offsets[0x30] == ROM_INDEX
    assert offsets[0x28] is offsets[0x0C] is None


@pytest.mark.parametrize(
    "bars",
    [
        {0: Bar(3000)},
        {0: Bar(8)},
        {0: Bar(2, BarKind.IO)},
        {6: Bar(16)},
        {-1: Bar(16)},
        {5: Bar(16, BarKind.MEMORY64)},
        {0: Bar(16, BarKind.MEMORY64), 1: Bar(16)},
    ],
)
def test_impossible_layouts_are_refused(bars: dict[int, Bar]) -> None:
    with pytest.raises(InvalidArgument, match=r"BAR -?\d cannot be"):
        BarRegisters(FakeFunction(bars=bars))


@pytest.mark.parametrize("size", [1024, 3000])
def test_impossible_roms_are_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match="ROM"):
        BarRegisters(FakeFunction(rom=bytes(size)))


def test_restore_writes_what_differs_only() -> None:
    function = FakeFunction(bars={0: Bar(0x1000), 1: Bar(0x1000)})
    function.poke(0x10, 0xFE000000, 4)
    function.poke(0x14, 0xFE001000, 4)
    bars = BarRegisters(function)
    bars.save()
    bars.restore()
    assert function.log == []
    function.poke(0x14, 0, 4)
    bars.restore()
    assert function.log == [("config", 0x14, 0xFE001000, 4)]
