"""Bus addresses and interrupt lines."""

from __future__ import annotations

from support.pci_function import FakeFunction
from uvfio.drivers.pci.hardware import Bar, BarKind
from uvfio.machine.facts import resources
from uvfio.machine.firmware import Firmware


def starts(function: FakeFunction) -> list[int]:
    return [resource.start for resource in resources(function)]


def test_each_kind_has_its_window() -> None:
    bars = {
        0: Bar(0x1000),
        1: Bar(0x20, BarKind.IO),
        2: Bar(1 << 33, BarKind.MEMORY64),
        4: Bar(1 << 20),
    }
    function = FakeFunction(bars=bars, rom=bytes(2048))
    Firmware().set_up(function)
    assert starts(function) == [0xC000_0000, 0x1000, 0x38_0000_0000, 0xC010_0000, 0xC000_1000]


def test_a_full_window_leaves_the_bar_without_an_address() -> None:
    firmware = Firmware()
    names = [f"0000:00:{slot:02x}.0" for slot in range(1, 4)]
    functions = [FakeFunction(name=name, bars={0: Bar(1 << 29)}) for name in names]
    for function in functions:
        firmware.set_up(function)
    assert [starts(function) for function in functions] == [[0xC000_0000], [0], [0]]
    firmware.forget(names[0])
    late = FakeFunction(name="0000:00:09.0", bars={0: Bar(1 << 29)})
    firmware.set_up(late)
    assert starts(late) == [0xC000_0000]


def test_interrupt_lines_differ_by_slot_and_pin() -> None:
    lines = []
    for slot, pin in ((1, 1), (1, 2), (2, 1), (0x1F, 4), (3, 0)):
        function = FakeFunction(name=f"0000:00:{slot:02x}.0", pin=pin)
        Firmware().set_up(function)
        lines.append(function.config_read(0x3C, 1))
    assert lines == [17, 18, 18, 18, 0]
