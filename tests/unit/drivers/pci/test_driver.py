"""drivers.pci.driver: recognising, taking and hot-plugged functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.pci_function import FakeFunction
from uvfio.drivers.pci.driver import VfioPciDriver
from uvfio.errors import Unsupported

if TYPE_CHECKING:
    from uvfio.core.bus import BoundDevice, BusDevice, VfioDriver
    from uvfio.drivers.pci.hardware import PciFunction


def test_protocols_are_implemented() -> None:
    driver = VfioPciDriver()
    function: PciFunction = FakeFunction()
    as_driver: VfioDriver = driver
    as_device: BoundDevice = driver.probe(function)
    assert as_driver.name == "vfio-pci"
    assert as_device.num_regions == 8


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("0000:06:0d.0", True),
        ("06:0d.0", False),
        ("0000:06:0d.1", False),
        ("0000:06:0d.0\n", False),
        ("0000:06:0D.0", False),
        ("", False),
    ],
)
def test_match_is_exact_equality(name: str, same: bool) -> None:
    assert VfioPciDriver().match(FakeFunction(), name) is same


def test_d31_multi_function_endpoints_are_taken() -> None:
    assert VfioPciDriver().probe(FakeFunction(header_type=0x80)).num_irqs == 3


@pytest.mark.parametrize("header_type", [1, 2, 0x81])
def test_d31_bridges_do_not_pass_probe(header_type: int) -> None:
    with pytest.raises(Unsupported, match=f"header type {header_type & 0x7F}"):
        VfioPciDriver().probe(FakeFunction(header_type=header_type))


def test_a_hotplugged_function_is_passed_on() -> None:
    hotplugged: list[BusDevice] = []
    function = FakeFunction()
    VfioPciDriver(hotplugged.append).bind_hotplugged(function)
    assert hotplugged == [function]


def test_a_hotplugged_function_without_a_way_is_unsupported() -> None:
    with pytest.raises(Unsupported, match=r"0000:06:0d\.0"):
        VfioPciDriver().bind_hotplugged(FakeFunction())
