"""Capabilities: their registers, and where they are put."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uvfio.kit.pci.capability import (
    AdvancedErrorReporting,
    AdvancedFeatures,
    Capability,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    RawCapability,
    RawExtendedCapability,
    SerialNumber,
    VendorSpecific,
    place,
)
from uvfio.kit.pci.config import ConfigSpace
from uvfio.uapi import pci


def build(*capabilities: Capability, size: int = 4096) -> ConfigSpace:
    config = ConfigSpace(size)
    place(config, capabilities)
    return config


def writable(config: ConfigSpace, offset: int, size: int) -> int:
    """The bits that a bus can change, found out as a driver would."""
    before = config.read(offset, size)
    config.write(offset, (1 << 8 * size) - 1, size)
    ones = config.read(offset, size)
    config.write(offset, 0, size)
    return ones ^ config.read(offset, size) | ones ^ before


def test_chain_in_the_order_listed() -> None:
    config = build(VendorSpecific(b"\x11\x22"), PowerManagement(), Msi())
    assert config.read(pci.PCI_CAPABILITY_LIST, 1) == 0x40
    assert config.read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST
    assert config.read(0x40, 4) == 0x11_05_48_09
    assert config.read(0x48, 2) == 0x5001
    assert config.read(0x50, 2) == 0x0005


def test_no_capability() -> None:
    config = build()
    assert config.read(pci.PCI_CAPABILITY_LIST, 1) == 0
    assert not config.read(pci.PCI_STATUS, 2) & pci.PCI_STATUS_CAP_LIST


def test_fixed_places() -> None:
    config = build(PowerManagement(offset=0xC8), Msi(offset=0x50), MsiX(1, 0))
    assert config.read(pci.PCI_CAPABILITY_LIST, 1) == 0xC8
    assert config.read(0xC8, 2) == 0x5001
    assert config.read(0x50, 2) == 0xD005


@pytest.mark.parametrize(
    "capabilities",
    [
        (PowerManagement(offset=0x42),),
        (PowerManagement(offset=0x3C),),
        (PowerManagement(offset=0xFC),),
        (PowerManagement(offset=0x40), Msi(offset=0x44)),
        (RawCapability(1, bytes(100)), RawCapability(1, bytes(100))),
    ],
)
def test_misplaced(capabilities: tuple[Capability, ...]) -> None:
    with pytest.raises(ValueError, match=r"is unaligned, overlaps another or leaves 0x40-0x100$"):
        build(*capabilities)


def test_extended_chain() -> None:
    config = build(AdvancedErrorReporting(), SerialNumber(0x1122334455667788))
    assert config.read(0x100, 4) == 0x148_2_0001
    assert config.read(0x148, 4) == 0x000_1_0003
    assert config.read(0x14C, 4) == 0x55667788
    with pytest.raises(
        ValueError, match=r"^the first extended capability is at 0x200, not at 0x100$"
    ):
        build(SerialNumber(1, offset=0x200))
    with pytest.raises(ValueError, match=r"leaves 0x100-0x100$"):
        build(SerialNumber(1), size=256)


def test_first_of_each_class_is_found() -> None:
    vendor = VendorSpecific(b"\0")
    where = place(ConfigSpace(256), (vendor, Msi(), VendorSpecific(b"\0")))
    assert where == {VendorSpecific: 0x40, Msi: 0x44}


@pytest.mark.parametrize(
    ("msi", "size", "flags", "masks"),
    [
        (Msi(1), 14, 0x0080, {0x04: 0xFFFFFFFC, 0x08: 0xFFFFFFFF, 0x0C: 0xFFFF}),
        (Msi(32, address64=False), 10, 0x000A, {0x04: 0xFFFFFFFC, 0x08: 0xFFFF}),
        (Msi(4, maskable=True), 24, 0x0184, {0x0C: 0xFFFF, 0x10: 0xF, 0x14: 0}),
        (Msi(2, address64=False, maskable=True), 20, 0x0102, {0x08: 0xFFFF, 0x0C: 3, 0x10: 0}),
    ],
)
def test_msi(msi: Msi, size: int, flags: int, masks: dict[int, int]) -> None:
    config = build(msi)
    assert msi.size == size
    assert config.read(0x42, 2) == flags
    assert writable(config, 0x42, 2) == 0x71
    assert {at: writable(config, 0x40 + at, 4) for at in masks} == masks


def test_msix() -> None:
    msix = MsiX(65, bar=3, table=0x1000)
    config = build(msix)
    assert config.read(0x42, 2) == 64
    assert config.read(0x44, 4) == 0x1003
    assert config.read(0x48, 4) == 0x1413
    assert writable(config, 0x42, 2) == 0xC000
    assert writable(config, 0x44, 4) == 0
    assert (msix.table_size, msix.pba_size, msix.end) == (0x410, 16, 0x1420)
    assert repr(Msi(2)).startswith("Msi(vectors=2, address64=True")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Msi(3), r"^MSI vectors must be 1, 2, 4, 8, 16 or 32, not 3$"),
        (lambda: MsiX(0, 0), r"^MSI-X vectors must be 1 to 2048, not 0$"),
        (lambda: MsiX(2049, 0), r"^MSI-X vectors must be 1 to 2048, not 2049$"),
        (lambda: MsiX(1, 6), r"^MSI-X BAR must be 0 to 5, not 6$"),
        (lambda: MsiX(1, 0, 4), r"^MSI-X table 0x4 is not a multiple of 8$"),
        (lambda: MsiX(4, 0, 0, 0x38), r"^MSI-X table 0x0 and pba 0x38 overlap$"),
        (
            lambda: MsiX(4, 0, 0, 0),
            r"^MSI-X table 0x0 and pba 0x0 overlap$",
        ),
        (lambda: PciExpress(speed=7), r"^PCI Express speed must be 1 to 6, not 7$"),
        (
            lambda: PciExpress(width=3),
            r"^PCI Express width must be 1, 2, 4, 8, 12, 16 or 32, not 3$",
        ),
    ],
)
def test_impossible(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_power_management() -> None:
    assert build(PowerManagement()).read(0x44, 2) == 0
    assert build(PowerManagement(soft_reset=False)).read(0x44, 2) == pci.PCI_PM_CTRL_NO_SOFT_RESET
    assert writable(build(PowerManagement()), 0x44, 2) == pci.PCI_PM_CTRL_STATE_MASK


def test_express() -> None:
    config = build(PciExpress(speed=3, width=4))
    assert config.read(0x42, 2) == 2
    assert config.read(0x44, 4) & pci.PCI_EXP_DEVCAP_FLR
    assert config.read(0x52, 2) == 0x43
    assert config.read(0x40 + pci.PCI_EXP_LNKCAP2, 4) == 0b1110
    without = build(PciExpress(flr=False))
    assert not without.read(0x44, 4) & pci.PCI_EXP_DEVCAP_FLR
    assert not writable(without, 0x48, 2) & pci.PCI_EXP_DEVCTL_BCR_FLR


def test_advanced_features() -> None:
    config = build(AdvancedFeatures())
    assert config.read(0x42, 1) == 6
    assert config.read(0x43, 1) == pci.PCI_AF_CAP_TP | pci.PCI_AF_CAP_FLR
    assert writable(config, 0x44, 1) == pci.PCI_AF_CTRL_FLR


def test_aer_status_clears_by_writing_one() -> None:
    config = build(AdvancedErrorReporting())
    config.put(0x104, 4, pci.PCI_ERR_UNC_UNSUP | pci.PCI_ERR_UNC_ECRC)
    config.write(0x104, pci.PCI_ERR_UNC_ECRC, 4)
    assert config.read(0x104, 4) == pci.PCI_ERR_UNC_UNSUP
    assert config.read(0x114, 4) == pci.PCI_ERR_COR_ADV_NFAT


def test_raw() -> None:
    config = build(
        RawCapability(pci.PCI_CAP_ID_VPD, bytes(6), b"\xff\xff"),
        RawExtendedCapability(pci.PCI_EXT_CAP_ID_LTR, b"\1\2\3\4", b"\xff"),
    )
    assert config.read(0x40, 1) == pci.PCI_CAP_ID_VPD
    assert writable(config, 0x40, 4) == 0xFFFF0000
    assert config.read(0x100, 4) == 0x000_1_0018
    assert config.read(0x104, 4) == 0x04030201
    assert writable(config, 0x104, 4) == 0xFF
    with pytest.raises(ValueError, match=r"^a writable mask of 2 bytes for 1 bytes$"):
        build(VendorSpecific(b"\0", b"\xff\xff"))
