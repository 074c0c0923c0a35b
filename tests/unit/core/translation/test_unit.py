"""``IommuUnit``: properties that never change."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from uvfio.core.translation.unit import IommuUnit


def test_a_unit_never_changes() -> None:
    unit = IommuUnit()
    with pytest.raises(FrozenInstanceError):
        unit.coherent = False  # type: ignore[misc]


def test_units_of_one_name_and_the_same_properties_are_the_same() -> None:
    assert IommuUnit("a") == IommuUnit("a")
    assert len({IommuUnit("a"), IommuUnit("a"), IommuUnit("b")}) == 2


def test_interrupt_addresses_are_reserved() -> None:
    assert IommuUnit().reserved == ((0xFEE0_0000, 0xFEEF_FFFF),)
