"""Facts read off a function: identity, resources, capability lists however odd, interrupts."""

from __future__ import annotations

from support.pci_function import AER, PM, SERIAL, STRANGE, FakeFunction, msi, msix
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.machine.facts import capabilities, config_space, identity, interrupts, resources
from uvfio.uapi import pci


def test_identity() -> None:
    who = identity(FakeFunction())
    assert (who.vendor, who.device) == (0x1234, 0x1111)
    assert (who.subsystem_vendor, who.subsystem_device) == (0xBEEF, 0xDEAD)
    assert (who.class_code, who.revision) == (0xFF00, 1)
    assert who.modalias == "pci:v00001234d00001111sv0000BEEFsd0000DEADbc00scFFi00"


def test_config_space_is_all_of_it() -> None:
    assert len(config_space(FakeFunction())) == 256
    data = config_space(FakeFunction(extended=(AER,)))
    assert len(data) == 4096
    assert data[:4] == bytes.fromhex("34121111")


def test_resources_of_every_kind() -> None:
    bars = {
        0: Bar(0x1000),
        1: Bar(0x20, BarKind.IO),
        2: Bar(1 << 33, BarKind.MEMORY64, prefetchable=True),
        4: Bar(0x2000, prefetchable=True, mappable=True),
    }
    function = FakeFunction(bars=bars, rom=bytes(2048))
    function.config_write(0x10, 0xC000_0000, 4)
    function.config_write(0x14, 0x1001, 4)
    function.config_write(0x18, 0x0000_000C, 4)
    function.config_write(0x1C, 0x38, 4)
    function.config_write(0x30, 0xC100_0000, 4)
    found = {resource.number: resource for resource in resources(function)}
    assert {number: (r.start, r.size, r.kind) for number, r in found.items()} == {
        0: (0xC000_0000, 0x1000, "mem32"),
        1: (0x1000, 0x20, "io"),
        2: (0x38_0000_0000, 1 << 33, "mem64"),
        4: (0, 0x2000, "mem32"),
        6: (0xC100_0000, 2048, "rom"),
    }
    assert {number: r.flags for number, r in found.items()} == {
        0: 0x40200,
        1: 0x40101,
        2: 0x14220C,
        4: 0x20002208,  # no address: unset
        6: 0x46200,
    }
    assert found[4].mappable
    assert found[2].prefetchable


def test_capabilities_of_both_lists_with_names_of_the_header() -> None:
    function = FakeFunction(caps=(PM, msi(), msix(), STRANGE), extended=(AER, SERIAL))
    assert [(cap.name, cap.extended) for cap in capabilities(function)] == [
        ("PM", False),
        ("MSI", False),
        ("MSIX", False),
        ("0x7e", False),
        ("ERR", True),
        ("DSN", True),
    ]
    assert capabilities(function)[0].offset == 0x40


def test_a_list_that_runs_in_a_circle_ends() -> None:
    function = FakeFunction(caps=(PM, msi()))
    second = function.where[pci.PCI_CAP_ID_MSI]
    function.config[second + 1] = 0x40
    assert [cap.name for cap in capabilities(function)] == ["PM", "MSI"]
    function.config[second + 1] = 0x10  # into the header
    assert [cap.name for cap in capabilities(function)] == ["PM", "MSI"]


def test_no_list_without_the_status_bit() -> None:
    function = FakeFunction()
    function.config[pci.PCI_STATUS] = 0
    assert capabilities(function) == ()
    assert interrupts(function) == {"intx": 1, "msi": 0, "msix": 0}


def test_interrupts() -> None:
    function = FakeFunction(pin=0, caps=(msi(4), msix(17)))
    assert interrupts(function) == {"intx": 0, "msi": 16, "msix": 17}
