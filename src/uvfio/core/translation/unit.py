"""``IommuUnit``: an IOMMU as hardware, built into the machine and unchanged as long as the machine exists.

A unit has properties only. What several units can do together is worked out by ``Domain``; the registers that programs
find in sysfs and in IOMMU_GET_HW_INFO are made from the properties by ``vtd.py``. A unit knows neither devices nor
mappings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvfio.core.translation.address import Span

__all__ = ["IommuUnit"]


@dataclass(frozen=True, slots=True)
class IommuUnit:
    """The properties of one IOMMU.

    ``interrupt_remapping``: a device's interrupts are isolated. ``coherent``: DMA snoops the caches. ``page_sizes``:
    bytes, smallest first. ``address_bits``: width of an I/O virtual address. ``reserved``: inclusive ranges of I/O
    virtual addresses that no mapping may touch.
    """

    name: str = "iommu0"
    interrupt_remapping: bool = True
    coherent: bool = True
    page_sizes: tuple[int, ...] = (4096, 2 << 20, 1 << 30)
    address_bits: int = 48
    reserved: tuple[Span, ...] = ((0xFEE00000, 0xFEEFFFFF),)
