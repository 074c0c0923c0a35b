"""The gate in front of memory: bus mastering, power state, attachment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.model_world import ADDRESS, World, power_on
from uvfio.errors import DmaFault
from uvfio.kit.pci.dma import PciDma
from uvfio.models.exerciser import Exerciser
from uvfio.uapi import pci

Access = Callable[[PciDma], object]
ACCESSES: list[Access] = [
    lambda dma: dma.read(0x1000, 16),
    lambda dma: dma.write(0x1000, b"x" * 16),
    lambda dma: dma.store(0x1000, 1, 4),
    lambda dma: dma.view(0x1000, 16),
]


@pytest.fixture
def world() -> World[Exerciser]:
    return power_on(Exerciser)


def test_the_four_ways(world: World[Exerciser]) -> None:
    dma = world.model.dma
    dma.write(0x2000, b"hello")
    assert dma.read(0x2000, 5) == b"hello"
    dma.store(0x2008, 0x1122, 2)
    assert world.domain.stores == [(0x2008, 0x1122, 2)]
    view = dma.view(0x2000, 5)
    assert view is not None
    view[:] = b"world"
    assert world.domain.memory[0x2000:0x2005] == b"world"


@pytest.mark.parametrize("access", ACCESSES)
def test_bus_mastering_off(world: World[Exerciser], access: Access) -> None:
    world.command(pci.PCI_COMMAND_MEMORY)
    before = bytes(world.domain.memory)
    with pytest.raises(DmaFault, match=r"bus mastering is off$"):
        access(world.model.dma)
    assert world.domain.memory == before
    [(device, iova, _, _, reason)] = world.domain.faults
    assert (device, iova, reason) == (ADDRESS, 0x1000, "bus mastering is off")


@pytest.mark.parametrize("access", ACCESSES)
def test_detached(world: World[Exerciser], access: Access) -> None:
    world.model.detach()
    with pytest.raises(DmaFault, match=r"iova 0x1000\+0x(10|4): attached to no domain$"):
        access(world.model.dma)
    assert world.domain.faults == []


@pytest.mark.parametrize("access", ACCESSES)
def test_in_d3hot(world: World[Exerciser], access: Access) -> None:
    at = world.capability(pci.PCI_CAP_ID_PM)
    world.model.config_write(at + pci.PCI_PM_CTRL, 3, 2)
    with pytest.raises(DmaFault, match=r"the function is in D3hot$"):
        access(world.model.dma)


def test_a_read_that_faults_is_seen_in_the_status(world: World[Exerciser]) -> None:
    def status() -> int:
        return world.model.config_read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_REC_MASTER_ABORT

    world.domain.holes.add(1)
    with pytest.raises(DmaFault):
        world.model.dma.write(0x1000, b"x")
    assert not status()
    with pytest.raises(DmaFault):
        world.model.dma.read(0x1000, 1)
    assert status()
    world.model.config_write(pci.PCI_STATUS, pci.PCI_STATUS_REC_MASTER_ABORT, 2)
    assert not status()
