"""Interrupts as silicon sends them: the wire, MSI, MSI-X, masks and pending bits."""

from __future__ import annotations

from typing import TypeVar

import pytest

from support.model_world import ADDRESS, World, power_on
from uvfio.core.events import FrameworkEvent, InterruptLost, Observer
from uvfio.kit.pci.capability import Msi, PowerManagement
from uvfio.kit.pci.model import PciModel
from uvfio.models.exerciser import Exerciser
from uvfio.uapi import pci

P = TypeVar("P", bound=Exerciser)
MASTER = pci.PCI_COMMAND_MASTER


@pytest.fixture
def world() -> World[Exerciser]:
    return power_on(Exerciser)


def unmask(world: World[Exerciser], *vectors: int) -> None:
    for vector in vectors:
        world.write(vector * 16 + 12, 0, bar=1)


def interrupt_status(world: World[P]) -> bool:
    status = world.model.config_read(pci.PCI_STATUS, 2)
    return bool(status & pci.PCI_STATUS_INTERRUPT)


class TestIntx:
    def test_level_status_and_wire(self, world: World[Exerciser]) -> None:
        world.model.interrupt(3)
        world.model.interrupt(0)
        assert world.sink.take() == [("intx", True)]
        assert world.model.intx_asserted
        assert interrupt_status(world)
        world.model.intx(False)
        assert world.sink.take() == [("intx", False)]
        assert not interrupt_status(world)

    def test_disable_bit_cuts_the_wire_not_the_status(self, world: World[Exerciser]) -> None:
        world.model.intx(True)
        world.command(pci.PCI_COMMAND_INTX_DISABLE)
        assert not world.model.intx_asserted
        assert interrupt_status(world)
        world.command(0)
        assert world.model.intx_asserted
        assert world.sink.take() == [("intx", True), ("intx", False), ("intx", True)]

    def test_enabled_messages_silence_the_wire(self, world: World[Exerciser]) -> None:
        world.model.intx(True)
        at = world.enable_msi()
        assert not world.model.intx_asserted
        world.model.config_write(at + 2, 0, 2)
        assert world.model.intx_asserted
        world.enable_msix()
        assert not world.model.intx_asserted

    def test_without_a_pin_there_is_no_wire(self) -> None:
        class Pinless(Exerciser):
            interrupt_pin = 0

        world = power_on(Pinless)
        world.model.interrupt()
        assert world.sink.take() == []
        assert not interrupt_status(world)

    def test_without_a_sink_nothing_happens(self, world: World[Exerciser]) -> None:
        world.model.connect(None)
        world.model.interrupt()
        assert world.model.intx_asserted
        world.enable_msi()
        world.model.interrupt()
        assert world.sink.take() == []


class TestMsi:
    def test_vectors(self, world: World[Exerciser]) -> None:
        world.enable_msi(2)
        for vector in (0, 3, 2):
            world.model.interrupt(vector)
        assert world.sink.take() == [("msi", 0), ("msi", 3), ("msi", 2)]
        assert not interrupt_status(world)

    @pytest.mark.parametrize(("log2", "seen"), [(0, [0, 0, 0, 0]), (1, [0, 1, 0, 1])])
    def test_fewer_vectors_than_capable(
        self, world: World[Exerciser], log2: int, seen: list[int]
    ) -> None:
        world.enable_msi(log2)
        for vector in range(4):
            world.model.interrupt(vector)
        assert world.sink.take() == [("msi", vector) for vector in seen]

    def test_masked_vectors_wait(self, world: World[Exerciser]) -> None:
        at = world.enable_msi(2)
        world.model.config_write(at + pci.PCI_MSI_MASK_64, 0b0110, 4)
        for vector in (1, 2, 1, 3):
            world.model.interrupt(vector)
        assert world.sink.take() == [("msi", 3)]
        assert world.model.config_read(at + pci.PCI_MSI_PENDING_64, 4) == 0b0110
        world.model.config_write(at + pci.PCI_MSI_MASK_64, 0b0100, 4)
        assert world.sink.take() == [("msi", 1)]
        assert world.model.config_read(at + pci.PCI_MSI_PENDING_64, 4) == 0b0100

    def test_no_bus_master_no_message(self, world: World[Exerciser]) -> None:
        world.enable_msi()
        world.command(0)
        world.model.interrupt()
        world.command(MASTER)
        assert world.sink.take() == []
        assert world.model.interrupts.lost == 1


class TestMsiX:
    def test_entries_are_masked_after_reset(self, world: World[Exerciser]) -> None:
        world.enable_msix()
        assert world.read(12, bar=1) == 1
        world.model.interrupt(5)
        assert world.sink.take() == []
        assert world.read(8 * 16, 8, bar=1) == 1 << 5

    def test_unmasking_sends_what_is_pending_once(self, world: World[Exerciser]) -> None:
        world.enable_msix()
        world.model.interrupt(5)
        world.model.interrupt(5)
        world.model.interrupt(6)
        unmask(world, 5)
        assert world.sink.take() == [("msix", 5)]
        assert world.read(8 * 16, 4, bar=1) == 1 << 6
        unmask(world, 5)
        assert world.sink.take() == []

    def test_function_mask(self, world: World[Exerciser]) -> None:
        unmask(world, 0, 1)
        at = world.enable_msix(pci.PCI_MSIX_FLAGS_ENABLE | pci.PCI_MSIX_FLAGS_MASKALL)
        world.model.interrupt(1)
        world.model.interrupt(0)
        assert world.sink.take() == []
        world.model.config_write(at + 2, pci.PCI_MSIX_FLAGS_ENABLE, 2)
        assert world.sink.take() == [("msix", 0), ("msix", 1)]

    def test_it_goes_before_msi(self, world: World[Exerciser]) -> None:
        world.enable_msi(2)
        world.enable_msix()
        unmask(world, 0)
        world.model.interrupt(0)
        assert world.sink.take() == [("msix", 0)]

    def test_no_such_vector_is_lost(self, world: World[Exerciser]) -> None:
        world.enable_msix()
        world.model.interrupt(8)
        assert world.model.interrupts.lost == 1
        assert world.read(8 * 16, 8, bar=1) == 0

    def test_no_bus_master_no_message(self, world: World[Exerciser]) -> None:
        world.enable_msix()
        unmask(world, 0)
        world.command(0)
        world.model.interrupt(0)
        assert world.sink.take() == []
        assert world.model.interrupts.lost == 1

    def test_table_takes_double_and_quad_words(self, world: World[Exerciser]) -> None:
        world.write(16, 0xFEE0_0000, bar=1)
        world.write(24, 0x0000_0000_0000_0021, 8, bar=1)
        assert world.read(16, 8, bar=1) == 0xFEE0_0000
        assert world.read(24, 8, bar=1) == 0x21
        world.write(24, 0xFF, 1, bar=1)
        world.write(26, 0xFFFF, 2, bar=1)
        assert world.read(24, 2, bar=1) == 0x21

    def test_pending_bits_are_read_only(self, world: World[Exerciser]) -> None:
        world.write(8 * 16, 0xFFFF_FFFF, bar=1)
        assert world.read(8 * 16, bar=1) == 0

    def test_behind_the_table_nothing_answers(self, world: World[Exerciser]) -> None:
        assert world.read(0x800, bar=1) == 0xFFFF_FFFF

    def test_reset_masks_and_forgets(self, world: World[Exerciser]) -> None:
        world.enable_msix()
        unmask(world, 0)
        world.model.interrupt(3)
        world.model.reset()
        assert world.read(12, bar=1) == 1
        assert world.read(8 * 16, bar=1) == 0
        assert not world.model.interrupts.msix_enabled


def test_reset_lowers_the_wire(world: World[Exerciser]) -> None:
    world.model.interrupt()
    world.model.reset()
    assert world.sink.take() == [("intx", True), ("intx", False)]
    assert not world.model.intx_asserted


class Source:
    """The framework, as far as models see it: keeps what its observer is told."""

    def __init__(self) -> None:
        self.told: list[FrameworkEvent] = []
        self.observer: Observer | None = self.told.append

    def take(self) -> list[tuple[str, int, str, bool]]:
        told, self.told[:] = [*self.told], []
        lost = [event for event in told if isinstance(event, InterruptLost)]
        assert {event.device for event in lost} <= {ADDRESS}
        return [(event.irq, event.vector, event.reason, event.pending) for event in lost]


class Deaf:
    """A driver without an event of a program."""

    def intx(self, asserted: bool) -> bool:
        return False

    def msi(self, vector: int) -> bool:
        return False

    def msix(self, vector: int) -> bool:
        return False


class One(PciModel):
    """One MSI vector and no pin."""

    vendor_id, device_id = 0x1234, 0x0001
    interrupt_pin = 0
    capabilities = (Msi(1), PowerManagement())


class TestWhatIsNotSentIsReported:
    @pytest.fixture
    def source(self, world: World[Exerciser]) -> Source:
        world.model.observed = source = Source()
        return source

    def test_messages(self, world: World[Exerciser], source: Source) -> None:
        model = world.model
        at = world.enable_msi(2)
        model.interrupt(3)
        assert source.take() == []
        model.interrupt(4)
        model.interrupt(-1)
        reason = "Msi(4) has vectors 0 to 3"
        assert source.take() == [("MSI", 4, reason, False), ("MSI", -1, reason, False)]
        model.config_write(at + pci.PCI_MSI_MASK_64, 1, 4)
        model.interrupt(0)
        assert source.take() == [("MSI", 0, "the vector is masked", True)]
        model.connect(Deaf())
        model.interrupt(1)
        assert source.take() == [("MSI", 1, "the program has set no eventfd for it", False)]
        model.connect(None)
        model.interrupt(1)
        assert source.take() == [("MSI", 1, "no driver uses the device", False)]
        world.command(0)
        model.interrupt(1)
        assert source.take() == [("MSI", 1, "bus mastering is off", False)]
        assert model.interrupts.lost == 5

    def test_the_table(self, world: World[Exerciser], source: Source) -> None:
        world.enable_msix()
        world.model.interrupt(1)
        world.model.interrupt(8)
        unmask(world, 2)
        world.model.connect(Deaf())
        world.model.interrupt(2)
        assert source.take() == [
            ("MSI-X", 1, "the vector is masked", True),
            ("MSI-X", 8, "MsiX(8) has vectors 0 to 7", False),
            ("MSI-X", 2, "the program has set no eventfd for it", False),
        ]

    def test_the_wire(self, world: World[Exerciser], source: Source) -> None:
        model = world.model
        world.command(pci.PCI_COMMAND_INTX_DISABLE)
        model.intx(True)
        assert source.take() == [("INTx", 0, "INTx is disabled in the command register", True)]
        model.intx(False)
        world.command(0)
        model.connect(Deaf())
        model.interrupt()
        model.interrupt()  # it is up already
        assert source.take() == [("INTx", 0, "the program has set no eventfd for it", True)]
        assert model.interrupts.lost == 0

    def test_no_way_to_interrupt(self) -> None:
        world = power_on(One)
        world.model.observed = source = Source()
        world.model.interrupt(3)
        reason = "neither MSI nor MSI-X is enabled, and the function has no interrupt pin"
        assert source.take() == [("INTx", 0, reason, False)]
        world.enable_msi()
        world.model.interrupt(3)
        assert source.take() == [("MSI", 3, "Msi(1) has vectors 0 to 0", False)]
        assert world.sink.take() == []
        at = world.model._places[PowerManagement] + pci.PCI_PM_CTRL
        world.model.config_write(at, 3, 2)
        world.model.interrupt()
        assert source.take() == [("MSI", 0, "the function is in D3hot", False)]

    def test_without_an_observer_no_event_is_made(
        self, world: World[Exerciser], source: Source
    ) -> None:
        source.observer = None
        world.enable_msi(2)
        world.model.interrupt(4)
        assert world.model.interrupts.lost == 1
