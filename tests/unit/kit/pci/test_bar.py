"""Base address registers as declared, and the windows behind them."""

from __future__ import annotations

import pytest

from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.kit.pci.bar import MemoryBar, RegisterBar, power_of_two
from uvfio.kit.register import Register, RegisterMap


class Regs(RegisterMap):
    a = Register(0x100)


class Ports(RegisterMap):
    a = Register(0, 1)


def test_facts() -> None:
    assert RegisterBar(0, Regs).facts(4096) == Bar(4096)
    expected = Bar(1 << 20, BarKind.MEMORY64, prefetchable=True, mappable=True)
    assert MemoryBar(2, 1 << 20).facts(1 << 20) == expected


def test_default_sizes() -> None:
    assert RegisterBar(0, Regs).size == 4096
    assert RegisterBar(0, Ports, kind=BarKind.IO).size == 4


@pytest.mark.parametrize(
    ("declared", "size", "message"),
    [
        (RegisterBar(0, Regs), 24, "size 0x18 is not a power of two from 0x10 to"),
        (RegisterBar(0, Regs), 8, "size 0x8 is not a power of two from 0x10 to"),
        (
            RegisterBar(0, Ports, kind=BarKind.IO),
            512,
            "size 0x200 is not a power of two from 0x4 to",
        ),
        (
            MemoryBar(0, 1 << 41),
            1 << 41,
            "size 0x20000000000 exceeds 0x10000000000, and regions of a device file",
        ),
        (MemoryBar(0, 2048), 2048, "size 0x800 is not a power of two from 0x1000 to"),
        (MemoryBar(0, 1, kind=BarKind.MEMORY32), 1 << 32, "size 0x100000000 needs a 64-bit BAR"),
    ],
)
def test_impossible_sizes(
    declared: RegisterBar[RegisterMap] | MemoryBar, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^BAR 0: {message}"):
        declared.facts(size)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)]
)
def test_power_of_two(size: int, expected: int) -> None:
    assert power_of_two(size) == expected
    assert power_of_two(size, 16) == max(expected, 16)
