"""drivers.pci.config: what a program reads and writes in configuration space (5.3, 5.5)."""

from __future__ import annotations

import pytest

from support.pci_function import (
    AER,
    AF,
    DEFAULT_BARS,
    PM,
    POWER_BUDGET,
    VPD,
    FakeFunction,
    express,
    msi,
    msix,
)
from uvfio.drivers.pci.bars import BarRegisters
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.config import ConfigSpace, log2_ceil
from uvfio.errors import InvalidArgument
from uvfio.uapi import pci


class Interrupts:
    """Stands in for the interrupt side."""

    def __init__(self) -> None:
        self.msi_vectors = 0
        self.masks: list[bool] = []

    def guest_mask(self, on: bool) -> None:
        self.masks.append(on)


class Space:
    """A configuration space with everything around it, by register and number."""

    def __init__(self, function: FakeFunction) -> None:
        self.function = function
        self.interrupts = Interrupts()
        self.recovered = 0
        self.asked: list[str | int] = []
        bars = BarRegisters(function)
        self.config = ConfigSpace(function, survey(function), bars, self.interrupts, self)

    def recover(self) -> None:
        self.recovered += 1
        self.function.poke(pci.PCI_COMMAND, self.function.word(pci.PCI_COMMAND) | 3)

    def reset_by_config(self) -> None:
        self.asked.append("reset")

    def set_power_state(self, state: int) -> None:
        self.asked.append(state)

    def get(self, offset: int, size: int = 2) -> int:
        return int.from_bytes(self.config.read(offset, size), "little")

    def set(self, offset: int, value: int, size: int = 2) -> None:
        assert self.config.write(offset, value.to_bytes(size, "little")) == size


@pytest.fixture
def space() -> Space:
    function = FakeFunction(
        caps=(PM, msi(), msix(), VPD, express(), AF),
        extended=(AER, POWER_BUDGET),
        rom=bytes(2048),
    )
    function.poke(pci.PCI_COMMAND, 3)
    function.log.clear()
    return Space(function)


# 5.3: lengths


def test_read_stops_at_the_end(space: Space) -> None:
    assert len(space.config.read(4090, 100)) == 6
    assert space.config.read(4096, 4) == b""


def test_write_stops_at_the_end(space: Space) -> None:
    assert space.config.write(4094, bytes(8)) == 2
    assert space.config.write(4096, bytes(8)) == 0


@pytest.mark.parametrize("offset", [4097, 1 << 30, -1])
def test_beyond_the_end_is_invalid(space: Space, offset: int) -> None:
    with pytest.raises(InvalidArgument):
        space.config.read(offset, 1)
    with pytest.raises(InvalidArgument):
        space.config.write(offset, b"x")


def test_conventional_space_ends_at_256() -> None:
    space = Space(FakeFunction())
    assert len(space.config.read(0, 4096)) == 256
    assert space.config.read(256, 1) == b""
    with pytest.raises(InvalidArgument):
        space.config.read(257, 1)


def test_byte_by_byte_equals_as_a_whole(space: Space) -> None:
    whole = space.config.read(0, 4096)
    assert b"".join(space.config.read(n, 1) for n in range(4096)) == whole
    assert b"".join(space.config.read(n, 7) for n in range(0, 4096, 7)) == whole


def test_registers_reach_the_hardware_as_a_whole(space: Space) -> None:
    data = space.function.where[pci.PCI_CAP_ID_VPD] + pci.PCI_VPD_DATA
    space.set(data, 0x11223344, 4)
    assert space.function.written(data) == [(0x11223344, 4)]


def test_count_zero_does_nothing(space: Space) -> None:
    assert space.config.read(0, 0) == b""
    assert space.config.write(4, b"") == 0
    assert space.function.log == []


# 5.5: the general rules


def test_ids_are_frozen(space: Space) -> None:
    space.function.poke(0, 0xFFFFFFFF, 4)
    assert space.get(0, 4) == 0x11111234
    space.set(0, 0, 4)
    assert space.get(0, 4) == 0x11111234


def test_outside_of_capabilities_reads_zero_and_drops_writes(space: Space) -> None:
    space.function.poke(0xF8, 0xAAAA)
    assert space.get(0xF8) == 0
    space.set(0xF8, 0x5555)
    assert space.function.log == []
    assert space.get(0x800, 4) == 0


def test_header_outside_of_the_table_reads_the_hardware(space: Space) -> None:
    space.function.poke(0x38, 0xABCD)
    assert space.get(0x38) == 0xABCD
    space.set(0x38, 0)
    assert space.function.log == []


@pytest.mark.parametrize("offset", [pci.PCI_STATUS, pci.PCI_CLASS_DEVICE, pci.PCI_SUBSYSTEM_ID])
def test_read_only_registers_ignore_writes_and_count_them(space: Space, offset: int) -> None:
    before = space.get(offset)
    space.set(offset, 0xFFFF)
    assert space.get(offset) == before
    assert space.function.log == []


@pytest.mark.parametrize("offset", [pci.PCI_CACHE_LINE_SIZE, pci.PCI_LATENCY_TIMER])
def test_passed_through_bytes(space: Space, offset: int) -> None:
    space.set(offset, 0x40, 1)
    assert space.function.config[offset] == 0x40
    assert space.get(offset, 1) == 0x40


def test_interrupt_line_is_plain_storage(space: Space) -> None:
    space.set(pci.PCI_INTERRUPT_LINE, 11, 1)
    assert space.get(pci.PCI_INTERRUPT_LINE, 1) == 11
    assert space.function.config[pci.PCI_INTERRUPT_LINE] == 0
    assert space.function.log == []


# 5.5: command


def test_command_passes_real_bits_and_keeps_virtual_ones(space: Space) -> None:
    space.set(pci.PCI_COMMAND, pci.PCI_COMMAND_MASTER | pci.PCI_COMMAND_SERR)
    assert space.function.word(pci.PCI_COMMAND) == 0x103 | pci.PCI_COMMAND_MASTER
    assert space.get(pci.PCI_COMMAND) == pci.PCI_COMMAND_MASTER | pci.PCI_COMMAND_SERR


def test_switching_decoding_off_stays_in_the_copy(space: Space) -> None:
    space.set(pci.PCI_COMMAND, 0)
    assert space.get(pci.PCI_COMMAND) == 0
    assert space.function.word(pci.PCI_COMMAND) == 3


def test_status_bits_are_not_cleared_by_a_word_write(space: Space) -> None:
    space.set(pci.PCI_COMMAND, 0xFFFF0007, 4)
    assert space.function.written(pci.PCI_COMMAND) == [(7, 2)]
    assert space.function.written(pci.PCI_STATUS) == []


def test_intx_disable_is_virtual_and_tells_the_interrupts(space: Space) -> None:
    space.set(pci.PCI_COMMAND, 0x400)
    space.set(pci.PCI_COMMAND + 1, 0, 1)
    assert space.interrupts.masks == [True, False]
    assert not space.function.word(pci.PCI_COMMAND) & pci.PCI_COMMAND_INTX_DISABLE
    space.set(pci.PCI_COMMAND, 0x403)
    assert space.get(pci.PCI_COMMAND) == 0x403


def test_enabling_decoding_that_the_hardware_lost_recovers_first(space: Space) -> None:
    space.function.poke(pci.PCI_COMMAND, 0)
    space.set(pci.PCI_COMMAND, pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_MASTER)
    assert space.recovered == 1
    assert space.function.word(pci.PCI_COMMAND) == 7


def test_no_recovery_while_decoding_is_on_or_not_wanted(space: Space) -> None:
    space.set(pci.PCI_COMMAND, 3)
    space.set(pci.PCI_COMMAND + 1, 4, 1)
    space.function.poke(pci.PCI_COMMAND, 0)
    space.set(pci.PCI_COMMAND, pci.PCI_COMMAND_MASTER)
    assert space.recovered == 0


def test_no_recovery_for_decoding_that_the_function_has_not() -> None:
    function = FakeFunction(bars={0: DEFAULT_BARS[0]})
    function.poke(pci.PCI_COMMAND, pci.PCI_COMMAND_MEMORY)
    space = Space(function)
    space.set(pci.PCI_COMMAND, 3)
    assert space.recovered == 0


# 5.5: BARs


def test_bar_sizing_never_touches_the_hardware(space: Space) -> None:
    before = bytes(space.function.config[0x10:0x34])
    for offset in (*range(0x10, 0x28, 4), 0x30):
        space.set(offset, 0xFFFFFFFF, 4)
    assert [space.get(n, 4) for n in range(0x10, 0x28, 4)] == [
        0xFFFFF000,
        0xFFFFFFE1,
        0x0000000C,
        0xFFFFFFFE,
        0xFFFFE000,
        0xFFFFFF00,
    ]
    assert space.get(0x30, 4) == 0xFFFFF801
    assert bytes(space.function.config[0x10:0x34]) == before
    assert space.function.log == []


def test_bar_written_in_bytes(space: Space) -> None:
    for n in range(4):
        space.set(0x10 + n, 0xFE, 1)
    assert space.get(0x10, 4) == 0xFEFEF000


def test_bars_start_with_the_address_of_the_hardware() -> None:
    function = FakeFunction()
    function.poke(0x10, 0xFEB00000, 4)
    assert Space(function).get(0x10, 4) == 0xFEB00000


# 5.5: power management, PCI Express, AF, VPD, AER, power budget


def test_power_state_is_changed_by_the_driver(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL
    space.set(ctrl, 3)
    space.set(ctrl, 0, 1)
    space.set(ctrl, 0xFFFF0003, 4)
    assert space.asked == [3, 0, 3]
    assert not space.function.word(ctrl)  # of which nobody here has made anything
    space.function.poke(ctrl, 3)
    assert space.get(ctrl) == 3


def test_other_bytes_of_the_power_register_change_no_state(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL
    for at in (-1, 1, 2):
        space.set(ctrl + at, 3, 1)
    assert space.asked == []


@pytest.mark.parametrize(
    ("offset", "value", "size"),
    [
        (pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_BCR_FLR | 0x10, 2),
        (pci.PCI_EXP_DEVCTL + 1, pci.PCI_EXP_DEVCTL_BCR_FLR >> 8, 1),
        (pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_BCR_FLR, 4),
    ],
)
def test_function_level_reset_is_made_by_the_driver(
    space: Space, offset: int, value: int, size: int
) -> None:
    express = space.function.where[pci.PCI_CAP_ID_EXP]
    space.set(express + offset, value, size)
    assert space.asked == ["reset"]
    assert space.function.resets == 0
    assert not space.get(express + pci.PCI_EXP_DEVCTL) & pci.PCI_EXP_DEVCTL_BCR_FLR
    space.set(express + pci.PCI_EXP_DEVCTL, 0x0010)
    assert space.asked == ["reset"]


def test_reset_bits_of_capabilities_without_the_reset_do_nothing() -> None:
    lame = AF[0], bytes([6, pci.PCI_AF_CAP_FLR, 0, 0]), AF[2]
    plain = express()[0], bytes([2, *bytes(57)]), express()[2]
    space = Space(FakeFunction(caps=(plain, lame)))
    for at, bit in (
        (space.function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL, 0x8000),
        (space.function.where[pci.PCI_CAP_ID_AF] + pci.PCI_AF_CTRL, 1),
    ):
        space.set(at, bit)
        assert not space.get(at) & bit
    assert space.asked == []
    assert space.function.resets == 0


def test_the_payload_size_stays_in_the_copy(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL
    space.set(ctrl, 0x20 | 0x10)
    assert space.get(ctrl) == 0x30
    assert space.function.word(ctrl) == 0x10


def test_phantom_functions_cannot_be_enabled(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL
    space.set(ctrl, 0x7FFF)
    assert space.get(ctrl) == 0x7FFF & ~pci.PCI_EXP_DEVCTL_PHANTOM
    unreached = pci.PCI_EXP_DEVCTL_PHANTOM | pci.PCI_EXP_DEVCTL_PAYLOAD
    assert space.function.word(ctrl) == 0x7FFF & ~unreached


def test_device_status_is_not_acknowledged_by_a_word_write(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL
    space.function.poke(ctrl + 2, 0x000F)
    space.set(ctrl, 0x00000010, 4)
    assert space.function.written(ctrl) == [(0x10, 2)]
    assert space.function.written(ctrl + 2) == []


def test_ari_cannot_be_enabled(space: Space) -> None:
    ctrl = space.function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL2
    space.set(ctrl, 0xFFFF)
    assert space.function.word(ctrl) == 0xFFFF & ~pci.PCI_EXP_DEVCTL2_ARI


def test_advanced_features_reset_is_made_by_the_driver(space: Space) -> None:
    af = space.function.where[pci.PCI_CAP_ID_AF]
    space.set(af + pci.PCI_AF_CTRL, 0xFF, 1)
    assert space.asked == ["reset"]
    assert space.function.written(af + pci.PCI_AF_CTRL) == []
    assert space.get(af + pci.PCI_AF_CTRL, 1) == 0


def test_aer_passes_architected_bits(space: Space) -> None:
    aer = space.function.where[0x10001]
    space.set(aer + pci.PCI_ERR_COR_MASK, 0xFFFFFFFF, 4)
    assert space.function.word(aer + pci.PCI_ERR_COR_MASK, 4) == 0xF1C1


def test_power_budget_selector_alone_is_written(space: Space) -> None:
    power = space.function.where[0x10004]
    space.set(power + pci.PCI_PWR_DSR, 0xFFFFFF05, 4)
    assert space.function.written(power + pci.PCI_PWR_DSR) == [(5, 1)]


# 5.5: MSI and MSI-X


def flags_of(space: Space) -> int:
    return space.get(space.function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS)


def test_msi_registers_never_program_the_hardware(space: Space) -> None:
    start = space.function.where[pci.PCI_CAP_ID_MSI]
    space.set(start + pci.PCI_MSI_ADDRESS_LO, 0xFEE01000, 4)
    space.set(start + pci.PCI_MSI_ADDRESS_HI, 1, 4)
    space.set(start + pci.PCI_MSI_DATA_64, 0x4041)
    space.set(start + pci.PCI_MSI_FLAGS, 0x31)
    assert space.function.log == []
    assert space.get(start + pci.PCI_MSI_ADDRESS_LO, 4) == 0xFEE01000
    assert space.get(start + pci.PCI_MSI_ADDRESS_HI, 4) == 1
    assert space.get(start + pci.PCI_MSI_DATA_64) == 0x4041


def test_msi_enable_reads_zero_unless_vectors_are_set(space: Space) -> None:
    flags = space.function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS
    space.set(flags, pci.PCI_MSI_FLAGS_ENABLE)
    assert not flags_of(space) & pci.PCI_MSI_FLAGS_ENABLE
    space.interrupts.msi_vectors = 1
    assert flags_of(space) & pci.PCI_MSI_FLAGS_ENABLE
    space.interrupts.msi_vectors = 0
    assert not flags_of(space) & pci.PCI_MSI_FLAGS_ENABLE


@pytest.mark.parametrize(("vectors", "capable"), [(0, 3), (1, 0), (2, 1), (3, 2), (4, 2), (8, 3)])
def test_msi_capable_follows_the_vectors_set(space: Space, vectors: int, capable: int) -> None:
    space.interrupts.msi_vectors = vectors
    assert (flags_of(space) & pci.PCI_MSI_FLAGS_QMASK) >> 1 == capable


def test_msi_capable_is_not_writable(space: Space) -> None:
    flags = space.function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS
    space.set(flags, 0)
    assert flags_of(space) == 0x180 | 3 << 1


@pytest.mark.parametrize(("vectors", "asked", "enabled"), [(0, 5, 3), (1, 3, 0), (4, 1, 1)])
def test_msi_enabled_is_limited_to_capable(
    space: Space, vectors: int, asked: int, enabled: int
) -> None:
    flags = space.function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_FLAGS
    space.set(flags, asked << 4)
    space.interrupts.msi_vectors = vectors
    assert (flags_of(space) & pci.PCI_MSI_FLAGS_QSIZE) >> 4 == enabled


def test_msi_reserved_capable_values_read_as_32_vectors() -> None:
    assert (flags_of(Space(FakeFunction(caps=(msi(7),)))) & pci.PCI_MSI_FLAGS_QMASK) >> 1 == 5


def test_msi_mask_passes_through(space: Space) -> None:
    mask = space.function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_MASK_64
    space.set(mask, 0xA5, 4)
    assert space.function.word(mask, 4) == 0xA5


def test_msix_is_read_only_and_shows_the_hardware(space: Space) -> None:
    flags = space.function.where[pci.PCI_CAP_ID_MSIX] + pci.PCI_MSIX_FLAGS
    space.set(flags, 0xC000)
    assert space.function.log == []
    assert space.get(flags) == 15
    space.function.poke(flags, 0x800F)
    assert space.get(flags) == 0x800F


@pytest.mark.parametrize(("count", "log2"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (32, 5)])
def test_log2_ceil(count: int, log2: int) -> None:
    assert log2_ceil(count) == log2
