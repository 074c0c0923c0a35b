"""A domain with one device, mapped by the rules of 2011."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.world import FakeBusDevice, SparseMemory, see_mappings
from uvfio.core.seams import Mm
from uvfio.core.translation.domain import Domain
from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.core.translation.unit import IommuUnit
from uvfio.errors import VfioError


class DomainBench:
    """A domain with one device behind one IOMMU, and one address space in which everything exists."""

    def __init__(self, entry_limit: int = 65535, unit: IommuUnit | None = None) -> None:
        self.domain = Domain(entry_limit=entry_limit)
        self.memory = SparseMemory()
        self.mm = Mm(self.memory, "owner")
        self.device = FakeBusDevice("edu", 1, unit=unit or IommuUnit(address_bits=64, reserved=()))
        self.domain.attach(self.device)

    def map(
        self,
        iova: int,
        size: int,
        vaddr: int,
        *,
        writable: bool = True,
        limit: int | None = None,
        mm: Mm | None = None,
    ) -> None:
        Rules2011(self.domain).map(iova, size, vaddr, mm or self.mm, limit, writable=writable)

    @property
    def mappings(self) -> list[tuple[int, int, int, bool]]:
        return see_mappings(self.domain)

    def refused(self, condition: type[VfioError], call: Callable[[], object]) -> str:
        """``call`` raises the condition and changes neither mappings nor accounts; its message."""
        before = (self.mappings, self.mm.locked_pages)
        with pytest.raises(VfioError) as caught:
            call()
        assert type(caught.value) is condition, caught.value
        assert (self.mappings, self.mm.locked_pages) == before
        return str(caught.value)
