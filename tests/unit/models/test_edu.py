"""The educational device against docs/specs/edu."""

from __future__ import annotations

import math

import pytest

from support.model_world import World, power_on
from uvfio.errors import ConfigError
from uvfio.models.edu import Edu, EduRegisters, factorial
from uvfio.uapi import pci

BUFFER = 0x40000
START, TO_RAM, RAISE = 1, 2, 4


@pytest.fixture
def edu() -> World[Edu]:
    return power_on(Edu)


def dma(world: World[Edu], source: int, destination: int, count: int, command: int) -> None:
    world.write(0x80, source, 8)
    world.write(0x88, destination, 8)
    world.write(0x90, count, 8)
    world.write(0x98, command, 8)


class TestFunction:
    def test_identity(self, edu: World[Edu]) -> None:
        model = edu.model
        assert model.config_size == 256
        assert model.config_read(0, 4) == 0x11E81234
        assert model.config_read(pci.PCI_CLASS_REVISION, 4) == 0x00FF0010
        assert model.config_read(pci.PCI_SUBSYSTEM_VENDOR_ID, 4) == 0x11001AF4
        assert model.config_read(pci.PCI_INTERRUPT_PIN, 1) == 1
        assert {i: (b.size, b.kind.value, b.mappable) for i, b in model.bars.items()} == {
            0: (1 << 20, "mem32", True)
        }
        assert (model.rom, model.reset_methods) == (b"", ())

    def test_msi_is_the_only_capability(self, edu: World[Edu]) -> None:
        assert edu.capabilities() == {pci.PCI_CAP_ID_MSI: 0x40}
        assert edu.model.config_read(0x42, 2) == pci.PCI_MSI_FLAGS_64BIT

    def test_options(self) -> None:
        for options, message in (
            ({"dma_mask": -1}, r"dma_mask -1 does not fit 64 bits$"),
            ({"dma_delay": "-0.5"}, r"dma_delay '-0.5' is negative$"),
            ({"factorial_delay": "x"}, r"factorial_delay 'x' is not a number$"),
        ):
            with pytest.raises(ConfigError, match=message):
                power_on(Edu, **options)


class TestRegisters:
    def test_identification_is_read_only(self, edu: World[Edu]) -> None:
        edu.write(0, 0)
        assert edu.read(0) == 0x010000ED

    def test_liveness(self, edu: World[Edu]) -> None:
        assert edu.read(4) == 0
        edu.write(4, 0x1234_5678)
        assert edu.read(4) == 0xEDCB_A987

    def test_status_takes_bit_7_only(self, edu: World[Edu]) -> None:
        edu.write(0x20, 0xFFFF_FFFF)
        assert edu.read(0x20) == 0x80

    @pytest.mark.parametrize("offset", [0x60, 0x64, 0x0C, 0xA0, 0x40000])
    def test_elsewhere_ones(self, edu: World[Edu], offset: int) -> None:
        assert edu.read(offset) == 0xFFFF_FFFF

    @pytest.mark.parametrize(("offset", "size"), [(4, 1), (4, 2), (0, 8), (0x80, 1), (0x80, 2)])
    def test_wrong_widths(self, edu: World[Edu], offset: int, size: int) -> None:
        edu.write(4, 0)
        before = list(edu.model.regs.values)
        edu.write(offset, 0x55, size)
        assert edu.model.regs.values == before
        assert edu.read(offset, size) == ((1 << 64) - 1 if size == 8 else 0)

    def test_wide_registers_by_halves(self, edu: World[Edu]) -> None:
        edu.write(0x80, 0x1111_1111)
        edu.write(0x84, 0x2222_2222)
        assert edu.read(0x80, 8) == 0x2222_2222_1111_1111
        assert (edu.read(0x80), edu.read(0x84)) == (0x1111_1111, 0x2222_2222)

    def test_decoding(self) -> None:
        assert EduRegisters.decode(0x20, 0x81, 4) == "status = 0x81 [computing raise_irq]"
        assert EduRegisters.decode(0x98, 0x5, 8) == "dma_command = 0x5 [start raise_irq]"


class TestFactorial:
    @pytest.mark.parametrize("n", [0, 1, 2, 12, 13, 20, 33, 34, 35, 0xFFFF_FFFF])
    def test_modulo_2_to_the_32(self, edu: World[Edu], n: int) -> None:
        edu.write(8, n)
        edu.clock.advance()
        assert edu.read(8) == (math.factorial(n) % 2**32 if n < 100 else 0)
        assert edu.read(0x20) == 0

    def test_at_33_something_is_left_and_at_34_nothing(self) -> None:
        assert factorial(33) == 0x8000_0000
        assert factorial(34) == 0

    def test_computing_and_ignored_writes(self) -> None:
        edu = power_on(Edu, factorial_delay=1)
        edu.write(8, 5)
        assert edu.read(0x20) == 1
        edu.write(8, 6)
        edu.write(0x20, 0)
        assert edu.read(0x20) == 1
        edu.clock.advance(0.5)
        assert edu.read(8) == 5
        edu.clock.advance(0.5)
        assert (edu.read(8), edu.read(0x20)) == (120, 0)

    def test_interrupt(self, edu: World[Edu]) -> None:
        edu.write(0x20, 0x80)
        edu.write(8, 3)
        assert edu.sink.take() == []
        edu.clock.advance()
        assert edu.read(0x24) == 1
        assert edu.sink.take() == [("intx", True)]


class TestInterrupts:
    def test_wire_until_every_cause_is_acknowledged(self, edu: World[Edu]) -> None:
        edu.write(0x60, 0x6)
        edu.write(0x60, 0x8)
        edu.write(0x64, 0xC)
        assert (edu.read(0x24), edu.model.intx_asserted) == (2, True)
        edu.write(0x64, 0xFFFF_FFFF)
        assert (edu.read(0x24), edu.model.intx_asserted) == (0, False)
        assert edu.sink.take() == [("intx", True), ("intx", False)]

    def test_raising_nothing(self, edu: World[Edu]) -> None:
        edu.write(0x60, 0)
        assert edu.sink.take() == []

    def test_status_is_read_only(self, edu: World[Edu]) -> None:
        edu.write(0x24, 5)
        assert edu.read(0x24) == 0

    def test_msi_each_time(self, edu: World[Edu]) -> None:
        edu.enable_msi()
        edu.write(0x60, 1)
        edu.write(0x60, 1)
        assert edu.sink.take() == [("msi", 0)] * 2
        assert not edu.model.intx_asserted


class TestDma:
    def test_there_and_back(self, edu: World[Edu]) -> None:
        edu.domain.memory[0x1000:0x1005] = b"hello"
        dma(edu, 0x1000, BUFFER + 0x10, 5, START)
        assert edu.read(0x98, 8) == START
        edu.clock.advance()
        assert edu.read(0x98, 8) == 0
        assert edu.model.buffer[0x10:0x15] == b"hello"
        dma(edu, BUFFER + 0x10, 0x2000, 5, START | TO_RAM)
        edu.clock.advance()
        assert edu.domain.memory[0x2000:0x2005] == b"hello"
        assert edu.sink.take() == []

    def test_interrupt_at_the_end(self, edu: World[Edu]) -> None:
        dma(edu, 0, BUFFER, 4096, START | RAISE)
        assert edu.sink.take() == []
        edu.clock.advance()
        assert edu.read(0x24) == 0x100
        assert edu.sink.take() == [("intx", True)]

    def test_writes_while_running_are_ignored(self) -> None:
        edu = power_on(Edu, dma_delay=0.1)
        edu.domain.memory[0:4] = b"abcd"
        dma(edu, 0, BUFFER, 4, START)
        dma(edu, 2, BUFFER + 8, 1, START | TO_RAM)
        assert [edu.read(at, 8) for at in (0x80, 0x88, 0x90, 0x98)] == [0, BUFFER, 4, START]
        edu.clock.advance(0.1)
        assert edu.clock.waiting == 0
        assert edu.model.buffer[:4] == b"abcd"

    def test_command_without_start_is_ignored(self, edu: World[Edu]) -> None:
        edu.write(0x98, TO_RAM | RAISE, 8)
        assert edu.read(0x98, 8) == 0
        assert edu.clock.waiting == 0

    @pytest.mark.parametrize(
        ("inside", "count"),
        [
            (BUFFER - 1, 1),
            (BUFFER + 4096, 1),
            (BUFFER + 1, 4096),
            (0, 4),
            (BUFFER, (1 << 64) - 1),
            ((1 << 64) - 1, 2),
        ],
    )
    @pytest.mark.parametrize("command", [START, START | TO_RAM])
    def test_outside_the_buffer_nothing_moves(
        self, edu: World[Edu], inside: int, count: int, command: int
    ) -> None:
        edu.domain.memory[:] = b"m" * len(edu.domain.memory)
        edu.model.buffer[:] = b"b" * 4096
        ends = (inside, 0x1000) if command & TO_RAM else (0x1000, inside)
        dma(edu, *ends, count, command | RAISE)
        edu.clock.advance()
        assert edu.model.buffer == b"b" * 4096
        assert edu.domain.memory == b"m" * len(edu.domain.memory)
        assert edu.domain.faults == []
        assert (edu.read(0x98, 8), edu.read(0x24)) == (command & TO_RAM | RAISE, 0x100)

    def test_mask_applies_to_ram(self, edu: World[Edu]) -> None:
        edu.domain.memory[0x1000] = 7
        dma(edu, 0x5_F000_1000, BUFFER, 1, START)
        edu.clock.advance()
        assert edu.model.buffer[0] == 7
        narrow = power_on(Edu, dma_mask="0xfff")
        narrow.model.buffer[0] = 9
        dma(narrow, BUFFER, 0x1234, 1, START | TO_RAM)
        narrow.clock.advance()
        assert narrow.domain.memory[0x234] == 9

    @pytest.mark.parametrize("command", [START, START | TO_RAM])
    def test_fault(self, edu: World[Edu], command: int) -> None:
        edu.domain.holes.add(2)
        edu.domain.memory[:] = b"m" * len(edu.domain.memory)
        edu.model.buffer[:] = b"b" * 4096
        ends = (BUFFER, 0x1800) if command & TO_RAM else (0x1800, BUFFER)
        dma(edu, *ends, 4096, command)
        edu.clock.advance()
        assert edu.read(0x98, 8) & START == 0
        assert edu.model.buffer == b"b" * 4096
        assert edu.domain.memory == b"m" * len(edu.domain.memory)
        assert len(edu.domain.faults) == 1

    def test_no_bus_master(self) -> None:
        edu = power_on(Edu, master=False)
        dma(edu, 0x1000, BUFFER, 4, START)
        edu.clock.advance()
        assert edu.read(0x98, 8) == 0
        assert [f[4] for f in edu.domain.faults] == ["bus mastering is off"]


def test_reset_ends_what_is_going_on() -> None:
    edu = power_on(Edu, factorial_delay=1, dma_delay=1)
    edu.model.buffer[0] = 1
    edu.write(8, 5)
    dma(edu, BUFFER, 0, 1, START | TO_RAM)
    edu.write(0x60, 1)
    edu.model.reset()
    edu.clock.advance(5)
    assert [edu.read(at) for at in (4, 8, 0x20, 0x24, 0x80, 0x98)] == [0] * 6
    assert edu.model.buffer == bytes(4096)
    assert edu.domain.memory[0] == 0
    assert not edu.model.intx_asserted
