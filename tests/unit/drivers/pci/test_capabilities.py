"""drivers.pci.capabilities: the walk, and the masks of the permission tables."""

from __future__ import annotations

import pytest

from support.pci_function import (
    AER,
    AF,
    PCIX,
    PM,
    POWER_BUDGET,
    SERIAL,
    STRANGE,
    VENDOR,
    VPD,
    FakeFunction,
    express,
    msi,
    msix,
)
from uvfio.drivers.pci.capabilities import CapabilityMap, survey
from uvfio.uapi import pci


def masks(layout: CapabilityMap, offset: int, width: int) -> tuple[int, int, int]:
    """(known, virtual, writable) of a register."""
    shift, lanes = (offset & 3) * 8, (1 << 8 * width) - 1
    word = offset >> 2
    return (
        layout.known[word] >> shift & lanes,
        layout.virtual[word] >> shift & lanes,
        layout.writable[word] >> shift & lanes,
    )


FULL = FakeFunction(
    caps=(PM, msi(), VPD, msix(), express(), AF, PCIX, VENDOR),
    extended=(AER, SERIAL, POWER_BUDGET),
)
LAYOUT = survey(FULL)


def at(cap_id: int, register: int) -> int:
    return FULL.where[cap_id] + register


def test_walk_finds_all_in_list_order() -> None:
    assert [(c.id, c.extended) for c in LAYOUT.capabilities] == [
        (pci.PCI_CAP_ID_PM, False),
        (pci.PCI_CAP_ID_MSI, False),
        (pci.PCI_CAP_ID_VPD, False),
        (pci.PCI_CAP_ID_MSIX, False),
        (pci.PCI_CAP_ID_EXP, False),
        (pci.PCI_CAP_ID_AF, False),
        (pci.PCI_CAP_ID_PCIX, False),
        (pci.PCI_CAP_ID_VNDR, False),
        (pci.PCI_EXT_CAP_ID_ERR, True),
        (pci.PCI_EXT_CAP_ID_DSN, True),
        (pci.PCI_EXT_CAP_ID_PWR, True),
    ]


def test_find_takes_conventional_ones_only() -> None:
    # An extended capability may have the same number as a conventional one.
    function = FakeFunction(caps=(PM,), extended=(SERIAL,))
    layout = survey(function)
    assert layout.find(pci.PCI_CAP_ID_PM) == function.where[pci.PCI_CAP_ID_PM]
    assert layout.find(pci.PCI_EXT_CAP_ID_DSN) == 0
    assert layout.find(pci.PCI_CAP_ID_MSI) == 0


ALL1, ALL2, ALL4 = 0xFF, 0xFFFF, 0xFFFFFFFF
TABLE = [
    # register, width, virtual, writable: the rows of the specification
    ("vendor", pci.PCI_VENDOR_ID, 2, ALL2, 0),
    ("device", pci.PCI_DEVICE_ID, 2, ALL2, 0),
    ("command", pci.PCI_COMMAND, 2, 0x403, ALL2),
    ("status", pci.PCI_STATUS, 2, 0, 0),
    ("revision and class", pci.PCI_CLASS_REVISION, 4, 0, 0),
    ("cache line", pci.PCI_CACHE_LINE_SIZE, 1, 0, ALL1),
    ("latency", pci.PCI_LATENCY_TIMER, 1, 0, ALL1),
    ("header type", pci.PCI_HEADER_TYPE, 1, 0, 0),
    ("BIST", pci.PCI_BIST, 1, 0, ALL1),
    *((f"BAR{n}", pci.PCI_BASE_ADDRESS_0 + 4 * n, 4, ALL4, ALL4) for n in range(6)),
    ("cardbus", pci.PCI_CARDBUS_CIS, 4, 0, 0),
    ("subsystem", pci.PCI_SUBSYSTEM_VENDOR_ID, 4, 0, 0),
    ("ROM", pci.PCI_ROM_ADDRESS, 4, ALL4, ALL4),
    ("capability pointer", pci.PCI_CAPABILITY_LIST, 1, 0, 0),
    ("interrupt line", pci.PCI_INTERRUPT_LINE, 1, ALL1, ALL1),
    ("interrupt pin", pci.PCI_INTERRUPT_PIN, 1, 0, 0),
    ("min_gnt, max_lat", pci.PCI_MIN_GNT, 2, 0, 0),
    ("PM header", at(pci.PCI_CAP_ID_PM, 0), 4, 0, 0),
    ("PM control/status", at(pci.PCI_CAP_ID_PM, pci.PCI_PM_CTRL), 2, 0, 0x7EFC),
    ("VPD address", at(pci.PCI_CAP_ID_VPD, pci.PCI_VPD_ADDR), 2, 0, ALL2),
    ("VPD data", at(pci.PCI_CAP_ID_VPD, pci.PCI_VPD_DATA), 4, 0, ALL4),
    ("PCI-X command", at(pci.PCI_CAP_ID_PCIX, pci.PCI_X_CMD), 2, 0, ALL2),
    ("PCI-X status", at(pci.PCI_CAP_ID_PCIX, pci.PCI_X_STATUS), 4, 0, 0),
    ("DEVCAP", at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_DEVCAP), 4, 0, 0),
    ("DEVCTL", at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_DEVCTL), 2, 0x80E0, 0xFDFF),
    ("DEVSTA", at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_DEVSTA), 2, 0, 0),
    ("LNKCTL", at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_LNKCTL), 2, 0, 0),
    ("DEVCTL2", at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_DEVCTL2), 2, 0, 0xFFDF),
    ("AF control", at(pci.PCI_CAP_ID_AF, pci.PCI_AF_CTRL), 1, 1, 1),
    ("MSI flags low", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_FLAGS), 1, ALL1, 0x71),
    ("MSI flags high", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_FLAGS + 1), 1, 0, 0),
    ("MSI address lo", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_ADDRESS_LO), 4, ALL4, ALL4),
    ("MSI address hi", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_ADDRESS_HI), 4, ALL4, ALL4),
    ("MSI data", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_DATA_64), 2, ALL2, ALL2),
    ("MSI mask", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_MASK_64), 4, 0, ALL4),
    ("MSI pending", at(pci.PCI_CAP_ID_MSI, pci.PCI_MSI_PENDING_64), 4, 0, 0),
    ("MSI-X flags", at(pci.PCI_CAP_ID_MSIX, pci.PCI_MSIX_FLAGS), 2, 0, 0),
    ("MSI-X table", at(pci.PCI_CAP_ID_MSIX, pci.PCI_MSIX_TABLE), 4, 0, 0),
    ("vendor-specific", at(pci.PCI_CAP_ID_VNDR, 4), 4, 0, 0),
    ("AER uncorrectable", at(0x10001, pci.PCI_ERR_UNCOR_STATUS), 4, 0, 0x03FFF030),
    ("AER mask", at(0x10001, pci.PCI_ERR_UNCOR_MASK), 4, 0, 0x03FFF030),
    ("AER severity", at(0x10001, pci.PCI_ERR_UNCOR_SEVER), 4, 0, 0x03FFF030),
    ("AER correctable", at(0x10001, pci.PCI_ERR_COR_STATUS), 4, 0, 0xF1C1),
    ("AER correctable mask", at(0x10001, pci.PCI_ERR_COR_MASK), 4, 0, 0xF1C1),
    ("AER control", at(0x10001, pci.PCI_ERR_CAP), 4, 0, 0),
    ("serial number", at(0x10003, 4), 4, 0, 0),
    ("power budget selector", at(0x10004, pci.PCI_PWR_DSR), 1, 0, ALL1),
    ("power budget data", at(0x10004, pci.PCI_PWR_DATA), 4, 0, 0),
]


@pytest.mark.parametrize(("name", "offset", "width", "virtual", "writable"), TABLE)
def test_permission_table(name: str, offset: int, width: int, virtual: int, writable: int) -> None:
    lanes = (1 << 8 * width) - 1
    assert masks(LAYOUT, offset, width) == (lanes, virtual, writable), name


def test_msi_layout_follows_its_flags() -> None:
    for wide, maskable, length in (
        (False, False, 10),
        (True, False, 14),
        (False, True, 20),
        (True, True, 24),
    ):
        function = FakeFunction(caps=(msi(wide=wide, maskable=maskable), PM))
        layout = survey(function)
        assert layout.capabilities[0].length == length
        start = function.where[pci.PCI_CAP_ID_MSI]
        if not wide:
            assert masks(layout, start + pci.PCI_MSI_DATA_32, 2) == (ALL2, ALL2, ALL2)
        if maskable and not wide:
            assert masks(layout, start + pci.PCI_MSI_MASK_32, 4) == (ALL4, 0, ALL4)
            assert masks(layout, start + pci.PCI_MSI_PENDING_32, 4) == (ALL4, 0, 0)


@pytest.mark.parametrize(
    ("version", "kind", "length"),
    [(1, pci.PCI_EXP_TYPE_ENDPOINT, 20), (1, pci.PCI_EXP_TYPE_RC_END, 12), (2, 0, 60)],
)
def test_express_length_follows_version_and_type(version: int, kind: int, length: int) -> None:
    cap_id, body, writable = express(version | kind << 4)
    layout = survey(FakeFunction(caps=((cap_id, body, writable),)))
    assert layout.capabilities[0].length == length


def test_pcix_has_ecc_from_version_1() -> None:
    body = (pci.PCI_CAP_ID_PCIX, b"\x00\x10" + bytes(20), b"\xff" * 22)
    function = FakeFunction(caps=(body,))
    layout = survey(function)
    assert layout.capabilities[0].length == pci.PCI_CAP_PCIX_SIZEOF_V1
    ecc = function.where[pci.PCI_CAP_ID_PCIX] + pci.PCI_X_ECC_CSR
    assert masks(layout, ecc, 4) == (ALL4, 0, ALL4)


def test_unlisted_capability_is_visible_up_to_the_next_and_read_only() -> None:
    function = FakeFunction(caps=(STRANGE, PM))
    layout = survey(function)
    strange = function.where[0x7E]
    assert layout.capabilities[0].length == function.where[pci.PCI_CAP_ID_PM] - strange
    assert masks(layout, strange + 4, 4) == (ALL4, 0, 0)


def test_vendor_capability_has_the_length_it_says() -> None:
    body = (pci.PCI_CAP_ID_VNDR, bytes([6, 1, 2, 3]) + bytes(10), b"")
    layout = survey(FakeFunction(caps=(body,)))
    assert layout.capabilities[0].length == 6


@pytest.mark.parametrize("cap_id", [pci.PCI_EXT_CAP_ID_VNDR, pci.PCI_EXT_CAP_ID_DVSEC])
def test_vendor_extended_capability_has_the_length_it_says(cap_id: int) -> None:
    header = (20 << 20 | 1).to_bytes(4, "little")
    layout = survey(FakeFunction(caps=(), extended=((cap_id, header + bytes(40), b""),)))
    assert layout.capabilities[0].length == 20


def test_outside_of_capabilities_nothing_is_known() -> None:
    layout = survey(FakeFunction(caps=(PM,), extended=(SERIAL,)))
    assert masks(layout, 0x3C, 4)[0] == ALL4
    assert masks(layout, 0x80, 4) == (0, 0, 0)
    assert masks(layout, 0x200, 4) == (0, 0, 0)


def test_no_list_without_the_status_bit() -> None:
    function = FakeFunction()
    function.config[pci.PCI_STATUS] = 0
    assert survey(function).capabilities == ()


def test_a_looping_list_ends() -> None:
    function = FakeFunction(caps=(PM, AF))
    function.config[function.where[pci.PCI_CAP_ID_AF] + 1] = function.where[pci.PCI_CAP_ID_PM]
    assert [c.id for c in survey(function).capabilities] == [pci.PCI_CAP_ID_PM, pci.PCI_CAP_ID_AF]


def test_a_list_into_the_header_or_into_nothing_ends() -> None:
    function = FakeFunction(caps=(PM,))
    function.config[function.where[pci.PCI_CAP_ID_PM] + 1] = 0x10
    assert len(survey(function).capabilities) == 1
    function.config[function.where[pci.PCI_CAP_ID_PM] + 1] = 0xF0
    function.config[0xF0:0xF2] = b"\xff\xff"
    assert len(survey(function).capabilities) == 1


def test_a_looping_extended_list_ends() -> None:
    function = FakeFunction(caps=(), extended=(SERIAL, POWER_BUDGET))
    last = function.where[0x10004]
    function.poke(last, 0x100 << 20 | 1 << 16 | 4, 4)
    assert len(survey(function).capabilities) == 2


def test_overlapping_structures_are_cut() -> None:
    function = FakeFunction(caps=(VPD, AF))
    # AF now starts in the middle of VPD
    vpd = function.where[pci.PCI_CAP_ID_VPD]
    function.config[vpd + 1] = vpd + 4
    function.config[vpd + 4 : vpd + 10] = bytes([pci.PCI_CAP_ID_AF, 0, 6, 3, 0, 0])
    layout = survey(function)
    assert [(c.id, c.length) for c in layout.capabilities] == [
        (pci.PCI_CAP_ID_VPD, 4),
        (pci.PCI_CAP_ID_AF, 6),
    ]
    assert masks(layout, vpd + 4, 4) == (ALL4, 0, 0)


def test_a_structure_at_the_very_end_is_cut() -> None:
    function = FakeFunction(caps=(PM,))
    function.config[function.where[pci.PCI_CAP_ID_PM] + 1] = 0xFC
    function.config[0xFC:0xFE] = bytes([pci.PCI_CAP_ID_VPD, 0])
    layout = survey(function)
    assert layout.capabilities[1].length == 4
    assert masks(layout, 0xFE, 2) == (ALL2, 0, ALL2)


def test_saved_fields_hold_no_status_and_no_action() -> None:
    saved = {offset: mask for offset, _, mask in LAYOUT.saved}
    assert not saved[at(pci.PCI_CAP_ID_PM, pci.PCI_PM_CTRL)] & pci.PCI_PM_CTRL_PME_STATUS
    assert not saved[at(pci.PCI_CAP_ID_EXP, pci.PCI_EXP_DEVCTL)] & pci.PCI_EXP_DEVCTL_BCR_FLR
    assert at(pci.PCI_CAP_ID_VPD, pci.PCI_VPD_ADDR) not in saved
    assert at(pci.PCI_CAP_ID_AF, pci.PCI_AF_CTRL) not in saved
    assert at(0x10001, pci.PCI_ERR_UNCOR_STATUS) not in saved
