"""The gate in front of a device's DMA: attached to a domain, and not quiet."""

from __future__ import annotations

import pytest

from uvfio.core.translation.domain import Domain
from uvfio.errors import DmaFault
from uvfio.kit.dma import PlainDma


def test_without_a_domain_everything_faults() -> None:
    dma = PlainDma("timer")
    assert not dma.direct
    for access in (
        lambda: dma.read(0x1000, 4),
        lambda: dma.write(0x1000, b"abcd"),
        lambda: dma.store(0x1000, 1, 4),
        lambda: dma.view(0x1000, 4),
    ):
        with pytest.raises(DmaFault, match=r"timer (read|write) iova 0x1000\+0x4: attached to no"):
            access()


def test_a_quiet_device_faults_and_the_domain_records_it() -> None:
    dma, domain = PlainDma("timer"), Domain()
    dma.domain = domain
    assert dma.direct
    dma.quiet = True
    assert not dma.direct
    with pytest.raises(DmaFault, match="P2P state of migration"):
        dma.write(0x1000, b"abcd")
    (fault,) = domain.faults
    assert (fault.device, fault.iova, fault.size, fault.write) == ("timer", 0x1000, 4, True)
