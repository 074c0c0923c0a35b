"""models.region: what a declaration is on the class, on an instance, and which ones are no declarations."""

from __future__ import annotations

import pytest

from uvfio.kit.platform.region import (
    EdgeLine,
    EdgeWire,
    LevelLine,
    LevelWire,
    MemoryRegion,
    RegisterRegion,
)
from uvfio.kit.register import Register, RegisterMap


class Registers(RegisterMap):
    first = Register(0x0)
    last = Register(0x1000)


class Device:
    regs = RegisterRegion(0, Registers, node="part")
    log = MemoryRegion(1, 0x2000)
    level = LevelLine(0)
    edge = EdgeLine(1, node="part")

    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []
        self.register_maps: dict[int, RegisterMap] = {0: Registers()}
        self.memories = {1: memoryview(bytearray(0x2000))}
        self.wires: dict[int, LevelWire | EdgeWire] = {
            0: LevelWire(0, lambda *told: self.told.append(told)),
            1: EdgeWire(1, lambda *told: self.told.append(told)),
        }


def test_an_instance_has_the_thing_itself_and_the_class_the_declaration() -> None:
    device = Device()
    assert device.regs is device.register_maps[0]
    assert device.log is device.memories[1]
    assert device.level is device.wires[0]
    assert device.edge is device.wires[1]
    names = [declared.name for declared in (Device.regs, Device.log, Device.level, Device.edge)]
    assert names == ["regs", "log", "level", "edge"]


def test_a_level_is_told_when_it_changes_and_an_edge_each_time() -> None:
    device = Device()
    for level in (False, True, True, False):
        device.level.set(level)
    for _ in range(2):
        device.edge.pulse()
    assert device.told == [(0, True), (0, False), (1, True), (1, True)]


def test_registers_take_whole_pages_unless_a_size_is_given() -> None:
    assert (Device.regs.size, Device.regs.least) == (0x2000, 0x1004)
    assert RegisterRegion(0, Registers, size=0x1004).size == 0x1004
    for size in (0x1000, 0x1006, -4):
        with pytest.raises(ValueError, match="multiple of 4 of at least 0x1004"):
            RegisterRegion(0, Registers, size=size)


@pytest.mark.parametrize("size", [0, -4, 6])
def test_memory_has_a_size_of_whole_words(size: int) -> None:
    with pytest.raises(ValueError, match="region 1: size"):
        MemoryRegion(1, size)


def test_only_memory_that_can_be_written_can_be_mapped() -> None:
    assert Device.log.mappable
    assert not MemoryRegion(1, 4096, writable=False).mappable
    assert not MemoryRegion(1, 4096, mappable=False).mappable
    assert not Device.regs.mappable
    assert RegisterRegion(0, Registers, mapped="polled").mappable
    with pytest.raises(ValueError, match="region 0"):
        RegisterRegion(0, Registers, mapped="always")


def test_what_is_told_of_them() -> None:
    about = Device.regs.describe()
    registers = about.pop("registers")
    assert isinstance(registers, list)
    assert len(registers) == 2
    assert about == {
        "index": 0,
        "name": "regs",
        "kind": "registers",
        "size": 0x2000,
        "mappable": False,
        "mapping": "",
        "node": "part",
    }
    assert (Device.log.describe()["kind"], Device.log.describe()["mapping"]) == ("memory", "memory")
    assert RegisterRegion(0, Registers, mapped="polled").describe()["mapping"] == "polled"
    assert Device.edge.describe() == {"index": 1, "name": "edge", "trigger": "edge", "node": "part"}
    assert Device.level.describe()["trigger"] == "level"
