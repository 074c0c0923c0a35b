"""The first 64 bytes of configuration space."""

from __future__ import annotations

import pytest

from support.model_world import power_on
from uvfio.drivers.pci.hardware import Bar
from uvfio.kit import BarKind, PciModel, PowerManagement, Register, RegisterBar, RegisterMap
from uvfio.kit.pci.config import ConfigSpace
from uvfio.kit.pci.header import define_bars, padded_rom
from uvfio.models.exerciser import Exerciser
from uvfio.uapi import pci


class Regs(RegisterMap):
    a = Register(0)


class Plain(PciModel):
    vendor_id, device_id, revision = 0x1234, 0x5678, 0x9A
    class_code = 0x020001
    subsystem_vendor_id, subsystem_id = 0xAAAA, 0xBBBB
    interrupt_pin = 2
    multifunction = True
    regs = RegisterBar(1, Regs, size=256)


def test_identity() -> None:
    model = power_on(Plain, master=False).model
    assert model.config_size == 256
    assert model.config_read(pci.PCI_VENDOR_ID, 4) == 0x56781234
    assert model.config_read(pci.PCI_CLASS_REVISION, 4) == 0x0200019A
    assert model.config_read(pci.PCI_HEADER_TYPE, 1) == 0x80
    assert model.config_read(pci.PCI_SUBSYSTEM_VENDOR_ID, 4) == 0xBBBBAAAA
    assert model.config_read(pci.PCI_INTERRUPT_PIN, 1) == 2
    assert model.config_read(pci.PCI_CAPABILITY_LIST, 1) == 0
    before = model.config.data[:]
    for offset in (0x00, 0x08, 0x28, 0x2C, 0x34):
        model.config_write(offset, 0xFFFFFFFF, 4)
    assert model.config.data == before


def test_storage() -> None:
    model = power_on(Plain).model
    for offset, mask in (
        (pci.PCI_INTERRUPT_LINE, 0xFF),
        (pci.PCI_CACHE_LINE_SIZE, 0xFF),
        (pci.PCI_LATENCY_TIMER, 0xF8),
    ):
        model.config_write(offset, 0xFF, 1)
        assert model.config_read(offset, 1) == mask
    express = power_on(Exerciser).model
    express.config_write(pci.PCI_LATENCY_TIMER, 0xFF, 1)
    assert express.config_read(pci.PCI_LATENCY_TIMER, 1) == 0


def test_sizing() -> None:
    model = power_on(Exerciser).model
    for at in range(pci.PCI_BASE_ADDRESS_0, pci.PCI_CARDBUS_CIS, 4):
        model.config_write(at, 0xFFFFFFFF, 4)
    bars = [model.config_read(pci.PCI_BASE_ADDRESS_0 + 4 * i, 4) for i in range(6)]
    assert bars == [0xFFFFF000, 0xFFFFF000, 0xFFF0000C, 0xFFFFFFFF, 0xFFFFFFF1, 0]
    model.config_write(pci.PCI_ROM_ADDRESS, 0xFFFFFFFF, 4)
    assert model.config_read(pci.PCI_ROM_ADDRESS, 4) == 0xFFFFF801


def test_large_bar_sizes_in_both_halves() -> None:
    config = ConfigSpace(256)
    define_bars(config, {2: Bar(8 << 30, BarKind.MEMORY64)})
    for at in (pci.PCI_BASE_ADDRESS_2, pci.PCI_BASE_ADDRESS_3):
        config.write(at, 0xFFFFFFFF, 4)
    assert config.read(pci.PCI_BASE_ADDRESS_2, 4) == 0x4
    assert config.read(pci.PCI_BASE_ADDRESS_3, 4) == 0xFFFFFFFE


def test_enable_bits_exist_where_there_is_something_to_enable() -> None:
    model = power_on(Plain).model
    model.config_write(pci.PCI_COMMAND, 0xFFFF, 2)
    common = (
        pci.PCI_COMMAND_MASTER
        | pci.PCI_COMMAND_PARITY
        | pci.PCI_COMMAND_SERR
        | pci.PCI_COMMAND_INTX_DISABLE
        | pci.PCI_COMMAND_IO
    )
    assert model.config_read(pci.PCI_COMMAND, 2) == common | pci.PCI_COMMAND_MEMORY
    both = power_on(Exerciser).model
    both.config_write(pci.PCI_COMMAND, 0xFFFF, 2)
    assert both.config_read(pci.PCI_COMMAND, 2) == common | pci.PCI_COMMAND_MEMORY

    class Io(PciModel):
        vendor_id, device_id = 1, 2
        regs = RegisterBar(0, Regs, kind=BarKind.IO)
        capabilities = (PowerManagement(),)

    io = power_on(Io).model
    io.config_write(pci.PCI_COMMAND, 0xFFFF, 2)
    assert io.config_read(pci.PCI_COMMAND, 2) == common | pci.PCI_COMMAND_IO


def test_rom_is_padded() -> None:
    assert padded_rom(b"") == b""
    assert padded_rom(b"\x55\xaa") == b"\x55\xaa" + b"\xff" * 2046
    assert len(padded_rom(bytes(2049))) == 4096
    with pytest.raises(ValueError, match=r"^a ROM of 0x2000000 bytes exceeds 0x1000000$"):
        padded_rom(bytes((16 << 20) + 1))
