"""The exerciser: every part of its documented map."""

from __future__ import annotations

from typing import Any

import pytest

from support.model_world import World, power_on
from uvfio.errors import ConfigError
from uvfio.models.exerciser import Exerciser
from uvfio.uapi import pci

DONE, FAULT, RANGE = 1, 2, 4
GO, TO_RAM, INTERRUPT = 1, 2, 4


@pytest.fixture
def world() -> World[Exerciser]:
    return power_on(Exerciser)


def dma(world: World[Exerciser], address: int, offset: int, length: int, control: int) -> int:
    """Do a transfer and return its status."""
    world.write(0x80, address, 8)
    world.write(0x88, offset, 8)
    world.write(0x90, length)
    world.write(0x94, control | GO)
    assert world.read(0x94) & GO
    world.clock.advance()
    assert not world.read(0x94) & GO
    status = world.read(0x98)
    world.write(0x98, status)
    assert world.read(0x98) == 0
    return status


class TestFunction:
    def test_one_of_everything(self, world: World[Exerciser]) -> None:
        model = world.model
        assert model.config_size == 4096
        assert set(world.capabilities()) == {
            pci.PCI_CAP_ID_PM,
            pci.PCI_CAP_ID_MSI,
            pci.PCI_CAP_ID_EXP,
            pci.PCI_CAP_ID_MSIX,
        }
        assert model.config_read(0x100, 4) & 0xFFFF == pci.PCI_EXT_CAP_ID_ERR
        assert model.reset_methods == ("flr", "pm")
        kinds = {i: (b.kind.value, b.prefetchable, b.mappable) for i, b in model.bars.items()}
        assert kinds == {
            0: ("mem32", False, False),
            1: ("mem32", False, False),
            2: ("mem64", True, True),
            4: ("io", False, False),
        }

    def test_msi_and_msix_as_documented(self, world: World[Exerciser]) -> None:
        at = world.capability(pci.PCI_CAP_ID_MSI)
        flags = world.model.config_read(at + pci.PCI_MSI_FLAGS, 2)
        assert flags == 2 << 1 | pci.PCI_MSI_FLAGS_64BIT | pci.PCI_MSI_FLAGS_MASKBIT
        at = world.capability(pci.PCI_CAP_ID_MSIX)
        assert world.model.config_read(at + pci.PCI_MSIX_FLAGS, 2) == 7
        assert world.model.config_read(at + pci.PCI_MSIX_TABLE, 4) == 1

    def test_rom(self, world: World[Exerciser]) -> None:
        rom = world.model.rom
        assert len(rom) == rom[2] * 512 == 2048
        assert rom[:2] == b"\x55\xaa"
        assert rom[3] == 0xCB, "a far return: firmware calls what is there"
        at = int.from_bytes(rom[0x18:0x1A], "little")
        assert rom[at : at + 8] == b"PCIR" + bytes.fromhex("34128e0e")
        assert rom[at + 0x15] == 0x80
        assert sum(rom) & 0xFF == 0

    def test_options_take_parts_away(self) -> None:
        world = power_on(Exerciser, msi=0, msix="0", flr="no", memory="64K")
        assert set(world.capabilities()) == {pci.PCI_CAP_ID_PM, pci.PCI_CAP_ID_EXP}
        assert 1 not in world.model.bars
        assert world.model.bars[2].size == world.read(4) == 1 << 16
        assert world.model.reset_methods == ("pm",)

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("msi", 3, "msi 3 is not 0, 1, 2, 4, 8, 16 or 32$"),
            ("msix", 2049, "msix 2049 is not 0 to 2048$"),
            ("memory", "2K", "memory '2K' is not a power of two from 4K to 4G$"),
            ("dma_delay", -1, "dma_delay -1 is negative$"),
        ],
    )
    def test_bad_options(self, option: str, value: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            power_on(Exerciser, **{option: value})


class TestRegisters:
    def test_identification_and_size(self, world: World[Exerciser]) -> None:
        assert world.read(0) == int.from_bytes(b"EXER", "little")
        assert world.read(4) == 1 << 20
        world.model.reset()
        assert world.read(4) == 1 << 20

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_scratch_takes_any_width(self, world: World[Exerciser], size: int) -> None:
        for i in range(0, 24, size):
            world.write(0x10 + i, 0x11 * (i + 1), size)
        for i in range(0, 24, size):
            assert world.read(0x10 + i, size) == 0x11 * (i + 1) & (1 << 8 * size) - 1

    def test_events(self, world: World[Exerciser]) -> None:
        world.write(0x2C, 0b1010)
        world.write(0x2C, 0b0100)
        world.write(0x28, 0b0010)
        assert world.read(0x28) == 0b1100

    def test_counter_clears_when_read(self, world: World[Exerciser]) -> None:
        world.write(0x34, 5)
        world.write(0x34, 2)
        assert [world.read(0x30), world.read(0x30)] == [7, 0]

    def test_soft_reset(self, world: World[Exerciser]) -> None:
        world.write(0x10, 1)
        world.write(0x4C, 0)
        assert world.read(0x10) == 0
        assert not world.model.config_read(pci.PCI_COMMAND, 2)


class TestInterrupts:
    def test_wire(self, world: World[Exerciser]) -> None:
        world.write(0x44, 1)
        assert world.read(0x44) == 1
        world.write(0x44, 0)
        assert world.sink.take() == [("intx", True), ("intx", False)]
        world.write(0x40, 0)
        assert world.read(0x44) == 1

    def test_messages(self, world: World[Exerciser]) -> None:
        world.enable_msi(2)
        world.write(0x40, 3)
        assert world.sink.take() == [("msi", 3)]

    def test_later(self, world: World[Exerciser]) -> None:
        world.enable_msi(2)
        world.write(0x48, 2000)
        world.write(0x40, 1)
        world.clock.advance(0.001)
        assert world.sink.take() == []
        world.clock.advance(0.001)
        assert world.sink.take() == [("msi", 1)]


class TestDma:
    def test_there_and_back(self, world: World[Exerciser]) -> None:
        world.domain.memory[0x3000:0x3004] = b"data"
        assert dma(world, 0x3000, 0x100, 4, 0) == DONE
        assert bytes(world.model.ram[0x100:0x104]) == b"data"
        assert dma(world, 0x4000, 0x100, 4, TO_RAM) == DONE
        assert world.domain.memory[0x4000:0x4004] == b"data"

    def test_interrupt_with_vector(self, world: World[Exerciser]) -> None:
        world.enable_msi(2)
        assert dma(world, 0, 0, 1, INTERRUPT | 2 << 8) == DONE
        assert world.sink.take() == [("msi", 2)]

    @pytest.mark.parametrize("control", [0, TO_RAM])
    def test_fault(self, world: World[Exerciser], control: int) -> None:
        world.domain.holes.add(1)
        before = bytes(world.domain.memory)
        assert dma(world, 0x0800, 0, 0x1000, control) == DONE | FAULT
        assert world.domain.memory == before
        assert not any(world.model.ram[:0x1000])

    @pytest.mark.parametrize("offset", [1 << 20, (1 << 20) - 3, (1 << 64) - 1])
    def test_range(self, world: World[Exerciser], offset: int) -> None:
        assert dma(world, 0, offset, 4, 0) == DONE | RANGE
        assert world.domain.faults == []

    def test_running(self) -> None:
        world = power_on(Exerciser, dma_delay=1)
        world.write(0x94, GO)
        world.write(0x94, 0)
        assert world.read(0x94) == GO
        world.clock.advance(1)
        assert world.read(0x98) == DONE

    def test_store(self, world: World[Exerciser]) -> None:
        world.write(0xA0, 0x1008, 8)
        world.write(0xA8, 0x1122_3344_5566_7788, 8)
        for width in (2, 4, 8, 1, 16):
            world.write(0xB0, width)
        assert world.domain.stores == [
            (0x1008, 0x7788, 2),
            (0x1008, 0x5566_7788, 4),
            (0x1008, 0x1122_3344_5566_7788, 8),
        ]
        world.write(0xA0, 0x1001, 8)
        world.write(0xB0, 2)
        assert len(world.domain.stores) == 3
        world.write(0xA0, 1 << 40, 8)
        world.write(0xB0, 2)
        assert world.read(0x98) == FAULT


class TestPorts:
    def test_index_and_data(self, world: World[Exerciser]) -> None:
        for index, value in ((3, 0x33), (200, 0xC8)):
            world.write(0, index, 1, bar=4)
            world.write(1, value, 1, bar=4)
        world.write(0, 3, 1, bar=4)
        assert world.read(1, 1, bar=4) == 0x33
        assert world.read(0, 2, bar=4) == 0x3303

    def test_others(self, world: World[Exerciser]) -> None:
        world.write(2, 0x1234, 2, bar=4)
        assert world.read(2, 2, bar=4) == 0x3412
        assert [world.read(4, bar=4) for _ in range(3)] == [1, 2, 3]
        world.write(8, 0x55AA55AA, bar=4)
        assert world.read(8, bar=4) == 0x55AA55AA


def test_reset_clears_table_and_memory(world: World[Exerciser]) -> None:
    world.write(1, 0x33, 1, bar=4)
    world.write(0x500, 0x33, bar=2)
    world.model.reset()
    assert (world.read(1, 1, bar=4), world.read(0x500, bar=2)) == (0, 0)
