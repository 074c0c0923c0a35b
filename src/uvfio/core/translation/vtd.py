"""The capability registers of an IOMMU, in the layout of Intel's VT-d.

Programs find them in IOMMU_GET_HW_INFO and in sysfs. Each bit is worked out from a property of ``IommuUnit``, or is
fixed; there is no state. Layouts: Intel Virtualization Technology for Directed I/O, sections 11.4.2 and 11.4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from uvfio.core.translation.unit import IommuUnit

__all__ = ["capabilities", "extended_capabilities"]

DOMAINS_64K: Final = 6  # bits 2-0 (ND): 2 ** (4 + 2 * ND)
TABLE_LEVELS: Final = {
    39: 1,
    48: 2,
    57: 3,
}  # bits 12-8 (SAGAW), by the width that such a table translates
PAGES_2M: Final = 1 << 34
PAGES_1G: Final = 1 << 35
COHERENT_WALKS: Final = 1 << 0
QUEUED_INVALIDATION: Final = 1 << 1
INTERRUPT_REMAPPING: Final = 1 << 3
PASS_THROUGH: Final = 1 << 6
SNOOP_CONTROL: Final = 1 << 7


def capabilities(unit: IommuUnit) -> int:
    """The capability register (CAP_REG, 64 bits) of ``unit``."""
    width = next((bits for bits in TABLE_LEVELS if bits >= unit.address_bits), 57)
    value = DOMAINS_64K | 1 << 8 + TABLE_LEVELS[width] | (unit.address_bits - 1) << 16
    value |= PAGES_2M * (2 << 20 in unit.page_sizes)
    return value | PAGES_1G * (1 << 30 in unit.page_sizes)


def extended_capabilities(unit: IommuUnit) -> int:
    """The extended capability register (ECAP_REG, 64 bits) of ``unit``."""
    value = QUEUED_INVALIDATION | PASS_THROUGH
    value |= (COHERENT_WALKS | SNOOP_CONTROL) * unit.coherent
    return value | INTERRUPT_REMAPPING * unit.interrupt_remapping
