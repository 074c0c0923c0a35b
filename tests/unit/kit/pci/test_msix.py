"""The MSI-X table of a function in a BAR that programs map: memory, polled registers, registers."""

from __future__ import annotations

import pytest

from support.model_world import ADDRESS, World, power_on
from uvfio.errors import ConfigError
from uvfio.kit.pci.bar import MemoryBar, RegisterBar
from uvfio.kit.pci.capability import MsiX, PciExpress
from uvfio.kit.pci.model import PciModel
from uvfio.kit.pci.msix import RegisterTable, own_table, with_table
from uvfio.kit.register import Register, RegisterMap

TABLE, PBA, VECTORS = 0x5200, 0xD600, 129
CAP = MsiX(VECTORS, bar=0, table=TABLE, pba=PBA)
CONTROL = 12
ENABLE = 0x8000


class Few(RegisterMap):
    first = Register(0)
    second = Register(0x1000)


class Drive(PciModel):
    vendor_id, device_id = 0x1234, 0x0F10
    capabilities = (PciExpress(), CAP)


class InMemory(Drive):
    ram = MemoryBar(0, 1 << 16)


class Kept(Drive):
    ram = MemoryBar(0, 1 << 16, keep=True)


class InPolled(Drive):
    regs = RegisterBar(0, Few, size=1 << 16, mapped="polled")


class InRegisters(Drive):
    regs = RegisterBar(0, Few, size=1 << 16)


Mapped = pytest.mark.parametrize("kind", [InMemory, Kept, InPolled])
Any = pytest.mark.parametrize("kind", [InMemory, Kept, InPolled, InRegisters, Drive])


def shared(world: World[Drive] | World[InMemory] | World[InPolled]) -> memoryview:
    """What a program has mapped."""
    return world.model.bar_memory(0).cast("B")


def word(memory: memoryview, at: int, size: int = 4) -> int:
    return int.from_bytes(memory[at : at + size], "little")


@Any
def test_the_bus_sees_the_same_table_wherever_it_is(kind: type[Drive]) -> None:
    world = power_on(kind)
    last = TABLE + 16 * (VECTORS - 1)
    assert [world.read(last + at) for at in (0, 4, 8, CONTROL)] == [0, 0, 0, 1]
    world.write(last, 0x1122334455667788, 8)
    world.write(last + 8, 5)
    assert [world.read(last + at) for at in (0, 4, 8)] == [0x55667788, 0x11223344, 5]
    assert world.read(last, 8) == 0x1122334455667788
    world.write(last + 8, 0xFF, 1)  # undefined, and ignored
    assert world.read(last + 8) == 5
    world.enable_msix()
    world.model.interrupt(VECTORS - 1)
    assert (world.read(PBA + 16, 4), world.read(PBA, 8)) == (1, 0)
    world.write(PBA, 0xFF)  # read-only
    assert world.read(PBA, 8) == 0
    world.write(last + CONTROL, 0)
    assert world.sink.take() == [("msix", VECTORS - 1)]
    assert world.read(PBA + 16, 4) == 0
    world.model.reset()
    assert [world.read(last + at) for at in (0, 4, 8, CONTROL)] == [0, 0, 0, 1]


@Mapped
def test_a_program_sees_and_changes_the_table_through_a_mapping(kind: type[Drive]) -> None:
    world = power_on(kind)
    memory, entry = shared(world), TABLE + 16 * 3
    assert word(memory, entry + CONTROL) == 1
    world.write(entry, 0xFEE00000)
    assert word(memory, entry) == 0xFEE00000
    memory[entry + 8 : entry + 12] = b"\x07\0\0\0"
    world.store.look()
    assert world.read(entry + 8) == 7


@Mapped
def test_pending_bits_are_in_the_mapping_and_go_when_it_unmasks(kind: type[Drive]) -> None:
    world = power_on(kind)
    memory = shared(world)
    world.enable_msix()
    for vector in (3, 64):
        world.model.interrupt(vector)
    assert (word(memory, PBA, 8), word(memory, PBA + 8, 8)) == (1 << 3, 1)
    assert world.sink.take() == []
    memory[TABLE + 16 * 3 + CONTROL] = 0
    world.store.look()
    assert world.sink.take() == [("msix", 3)]
    assert (word(memory, PBA, 8), word(memory, PBA + 8, 8)) == (0, 1)
    memory[TABLE + 16 * 64 + CONTROL] = 0
    world.store.look()
    assert world.sink.take() == [("msix", 64)]


def test_memory_is_looked_at_only_while_something_is_pending() -> None:
    world = power_on(InMemory)
    world.enable_msix()
    assert world.store.looks == []
    world.model.interrupt(1)
    world.model.interrupt(2)
    assert len(world.store.looks) == 1
    for vector in (1, 2):
        world.write(TABLE + 16 * vector + CONTROL, 0)
    assert world.store.looks == []
    world.model.interrupt(5)
    world.model.reset()
    assert world.store.looks == []
    world.enable_msix()
    world.model.interrupt(5)
    world.model.unplug()
    assert world.store.looks == []


@pytest.mark.parametrize("kind", [InMemory, Kept])
def test_a_reset_clears_the_table_and_what_the_bar_does_not_keep(kind: type[Drive]) -> None:
    world = power_on(kind)
    memory = shared(world)
    world.write(0x10, 0x77)
    world.write(TABLE + CONTROL, 0)
    world.model.reset()
    assert word(memory, TABLE + CONTROL) == 1
    assert world.read(0x10) == (0x77 if kind is Kept else 0)
    assert sum(memory[TABLE : TABLE + 16 * VECTORS]) == VECTORS


def test_other_memory_has_a_table_after_a_reset() -> None:
    world = power_on(InMemory)
    world.write(TABLE + CONTROL, 0)
    world.model.renew_memory()
    assert world.read(TABLE + CONTROL) == 1
    world.enable_msix()
    world.model.interrupt(0)
    assert word(shared(world), PBA, 8) == 1


def test_the_registers_of_the_bar_stay_what_they_are() -> None:
    world = power_on(InPolled)
    world.write(0x1000, 7)
    assert (world.model.regs.second, world.read(0x1000)) == (7, 7)
    memory = shared(world)
    memory[0:4] = b"\x09\0\0\0"
    world.store.look()
    assert world.read(0) == 9
    assert Few.span == 0x1004
    assert with_table(Few, CAP) is with_table(Few, CAP)


def test_polled_registers_where_the_table_is_are_refused() -> None:
    class Under(RegisterMap):
        hidden = Register(TABLE + 4)

    class Bad(Drive):
        regs = RegisterBar(0, Under, size=1 << 16, mapped="polled")

    with pytest.raises(ConfigError, match=rf"^{ADDRESS}: Bad: .*overlaps"):
        power_on(Bad)


def test_tables_of_all_kinds_do_the_same() -> None:
    one, other = own_table(CAP), RegisterTable(with_table(Few, CAP)(), VECTORS)
    for table in (one, other):
        table.reset()
        assert table.vectors == VECTORS
        assert all(table.masked(vector) for vector in range(VECTORS))
        table.write(0x2C, 0, 4)
        table.write(0x30, 0xAABBCCDD11223344, 8)
        assert [table.masked(vector) for vector in (1, 2, 3)] == [True, False, True]
        assert (table.read(0x34, 4), table.read(0x31, 1)) == (0xAABBCCDD, 0x33)
        table.show(1 << 128 | 5)
    assert one.read(0, 16 * VECTORS) == other.read(0, 16 * VECTORS)
