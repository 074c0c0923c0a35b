"""The capability registers of an Intel IOMMU: each says what the IOMMU of the machine can do."""

from __future__ import annotations

import pytest

from uvfio.core.translation.unit import IommuUnit
from uvfio.core.translation.vtd import capabilities, extended_capabilities


def field(value: int, msb: int, lsb: int) -> int:
    return value >> lsb & (1 << msb - lsb + 1) - 1


@pytest.mark.parametrize(("bits", "tables"), [(30, 2), (39, 2), (40, 4), (48, 4), (57, 8), (64, 8)])
def test_width(bits: int, tables: int) -> None:
    value = capabilities(IommuUnit(address_bits=bits))
    assert field(value, 21, 16) == bits - 1  # MGAW
    assert field(value, 12, 8) == tables  # SAGAW: bit 1 for 39, 2 for 48, 3 for 57
    assert field(value, 2, 0) == 6  # ND: 65536 domains


@pytest.mark.parametrize(
    ("sizes", "large"),
    [((4096,), 0), ((4096, 2 << 20), 1), ((4096, 1 << 30), 2), ((4096, 2 << 20, 1 << 30), 3)],
)
def test_large_pages(sizes: tuple[int, ...], large: int) -> None:
    assert field(capabilities(IommuUnit(page_sizes=sizes)), 37, 34) == large


def test_nothing_else_is_claimed() -> None:
    value = capabilities(IommuUnit(page_sizes=(4096,), address_bits=48))
    assert value == 47 << 16 | 1 << 10 | 6


@pytest.mark.parametrize(
    ("coherent", "remapping", "value"),
    [(False, False, 0x42), (True, False, 0xC3), (False, True, 0x4A), (True, True, 0xCB)],
)
def test_extended(coherent: bool, remapping: bool, value: int) -> None:
    unit = IommuUnit(coherent=coherent, interrupt_remapping=remapping)
    assert extended_capabilities(unit) == value
