"""uapi.pci: the numbers that everything else leans on, and the form of the module."""

from __future__ import annotations

from uvfio.uapi import pci


def test_every_name_is_a_register_of_the_header() -> None:
    names = [name for name in vars(pci) if not name.startswith("_")]
    assert [name for name in names if not name.startswith("PCI_")] == ["Final"]
    assert len(names) > 250


def test_every_value_fits_a_register() -> None:
    for name, value in vars(pci).items():
        if name.startswith("PCI_"):
            assert isinstance(value, int), name
            assert 0 <= value <= 0xFFFFFFFF, name


def test_header_layout() -> None:
    assert (pci.PCI_VENDOR_ID, pci.PCI_COMMAND, pci.PCI_STATUS) == (0, 4, 6)
    assert (pci.PCI_BASE_ADDRESS_0, pci.PCI_BASE_ADDRESS_5, pci.PCI_ROM_ADDRESS) == (
        0x10,
        0x24,
        0x30,
    )
    assert pci.PCI_COMMAND_INTX_DISABLE == 1 << 10


def test_masks_are_cut_to_the_register() -> None:
    assert pci.PCI_BASE_ADDRESS_MEM_MASK == 0xFFFFFFF0
    assert pci.PCI_BASE_ADDRESS_IO_MASK == 0xFFFFFFFC
    assert pci.PCI_ROM_ADDRESS_MASK == 0xFFFFF800
