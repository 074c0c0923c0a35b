"""Models that migrate: what stands still when, what is saved, and what another one of the kind makes of it."""

from __future__ import annotations

from functools import partial

import pytest

from support.model_world import World, power_on
from uvfio.core.bus import Activity
from uvfio.core.translation.dma_log import DmaLog
from uvfio.errors import DmaFault, InvalidArgument, Unsupported
from uvfio.kit import MemoryBar, PciModel, Register, RegisterBar, RegisterMap
from uvfio.kit.state import pack, unpack
from uvfio.models.edu import DMA_BASE, Edu
from uvfio.models.exerciser import Exerciser
from uvfio.uapi import pci

FULL, QUIET, STOPPED = Activity
SCRATCH, TICK, COUNTER, RAISE, LEVEL = 0x10, 0x34, 0x30, 0x40, 0x44
ENABLED = pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_MASTER | pci.PCI_COMMAND_IO
ONES = 0xFFFFFFFF


@pytest.fixture
def world() -> World[Exerciser]:
    return power_on(Exerciser, migration=True, dma_delay=1.0)


def transfer(world: World[Exerciser], address: int = 0x1000, length: int = 16) -> None:
    for offset, value, size in ((0x80, address, 8), (0x88, 0, 8), (0x90, length, 4), (0x94, 3, 4)):
        world.model.bar_write(0, offset, value, size)


# -- taking part -----------------------------------------------------------------------------------


def test_only_who_says_so_migrates() -> None:
    assert not power_on(Exerciser).model.migratable
    assert power_on(Exerciser, migration=True).model.migratable
    assert not power_on(Edu).model.migratable
    assert power_on(Edu, migration="yes").model.migratable


class PlainRegisters(RegisterMap):
    value = Register(0x0)


class Plain(PciModel):
    """Nothing of its own to save."""

    vendor_id, device_id = 0x1234, 0x7777
    regs = RegisterBar(0, PlainRegisters)
    small = MemoryBar(1, 64, mappable=False, prefetchable=False)

    def closure(self) -> None:
        self.after(1.0, lambda: None)


def test_a_model_without_hooks_of_its_own() -> None:
    one, two = power_on(Plain), power_on(Plain)
    assert not one.model.migratable
    one.model.regs.value = 77
    one.model.quiesce(STOPPED)
    two.model.load_state(one.model.save_state())
    assert two.model.regs.value == 77
    sections = unpack(one.model.save_state())
    with pytest.raises(InvalidArgument, match="none of its own"):
        two.model.load_state(pack(sections | {"model": b"x"}))


# -- what stands still -----------------------------------------------------------------------------


def test_a_stopped_function_does_not_answer_but_for_memory(world: World[Exerciser]) -> None:
    model = world.model
    model.bar_write(0, SCRATCH, 5, 4)
    model.bar_write(0, TICK, 3, 4)
    model.quiesce(STOPPED)
    for index, offset in ((0, SCRATCH), (0, COUNTER), (4, 8)):
        assert model.bar_read(index, offset, 4) == ONES
        model.bar_write(index, offset, 9, 4)
    model.bar_write(2, 0x10, 0x1234, 4)
    assert model.bar_read(2, 0x10, 4) == 0x1234
    assert model.config_read(pci.PCI_VENDOR_ID, 2) == 0x1234
    model.bar_write(1, 0, 0xFEE00000, 4)
    assert model.bar_read(1, 0, 4) == 0xFEE00000, "the host sets MSI-X up at any time"
    model.quiesce(FULL)
    assert model.bar_read(0, SCRATCH, 4) == 5
    assert model.bar_read(0, COUNTER, 4) == 3


@pytest.mark.parametrize("activity", [QUIET, STOPPED])
def test_no_time_passes(world: World[Exerciser], activity: Activity) -> None:
    transfer(world)
    world.clock.advance(0.75)
    world.model.quiesce(activity)
    world.clock.advance(10.0)
    assert world.model.regs.dma_status == 0
    world.model.quiesce(FULL)
    world.clock.advance(0.2)
    assert world.model.regs.dma_status == 0
    world.clock.advance(0.1)
    assert world.model.regs.dma_status == 1


def test_a_quiet_function_answers_and_its_dma_faults(world: World[Exerciser]) -> None:
    model = world.model
    model.quiesce(QUIET)
    model.bar_write(0, SCRATCH, 6, 4)
    assert model.bar_read(0, SCRATCH, 4) == 6
    model.bar_write(0, 0xA0, 0x2000, 8)
    model.bar_write(0, 0xB0, 8, 4)
    assert model.regs.dma_status == 2
    [(_, iova, _, _, reason)] = world.domain.faults
    assert (iova, reason) == (0x2000, "the function is in a P2P state of migration")
    model.bar_write(0, RAISE, 0, 4)
    assert world.sink.events == [("intx", True)]


def test_a_stopped_function_keeps_its_interrupts(world: World[Exerciser]) -> None:
    model = world.model
    world.enable_msix()
    model.bar_write(0, RAISE, 3, 4)
    assert world.sink.events == [], "masked"
    model.quiesce(STOPPED)
    model.bar_write(1, 3 * 16 + 12, 0, 4)
    assert world.sink.events == []
    model.interrupt(2)
    model.quiesce(FULL)
    assert world.sink.events == [("msix", 3)]
    model.bar_write(1, 2 * 16 + 12, 0, 4)
    assert world.sink.events == [("msix", 3), ("msix", 2)]


def test_the_wire_does_not_rise_while_stopped(world: World[Exerciser]) -> None:
    model = world.model
    model.config_write(pci.PCI_COMMAND, ENABLED | pci.PCI_COMMAND_INTX_DISABLE, 2)
    model.bar_write(0, LEVEL, 1, 4)
    model.quiesce(STOPPED)
    model.config_write(pci.PCI_COMMAND, ENABLED, 2)
    assert world.sink.events == []
    model.quiesce(QUIET)
    assert world.sink.events == [("intx", True)]


def test_a_reset_does_not_let_a_stopped_function_run(world: World[Exerciser]) -> None:
    model = world.model
    model.quiesce(STOPPED)
    model.reset()
    assert model.bar_read(0, SCRATCH, 4) == ONES
    assert model.resets == 0
    model.quiesce(FULL)
    assert model.bar_read(0, SCRATCH, 4) == 0


def test_sleep_and_stop(world: World[Exerciser]) -> None:
    model = world.model
    at = world.capability(pci.PCI_CAP_ID_PM)
    model.config_write(at + pci.PCI_PM_CTRL, 3, 2)
    model.quiesce(STOPPED)
    assert model.bar_read(2, 0, 4) == ONES
    other = power_on(Exerciser, migration=True)
    other.model.quiesce(STOPPED)
    other.model.load_state(model.save_state())
    other.model.quiesce(FULL)
    assert other.model.dma.asleep
    assert other.model.bar_read(2, 0, 4) == ONES


def test_a_reset_by_configuration_space_is_counted(world: World[Exerciser]) -> None:
    at = world.capability(pci.PCI_CAP_ID_EXP)
    world.model.config_write(at + pci.PCI_EXP_DEVCTL, pci.PCI_EXP_DEVCTL_BCR_FLR, 2)
    assert world.model.resets == 1


# -- moving ----------------------------------------------------------------------------------------


def test_everything_but_memory_moves(world: World[Exerciser]) -> None:
    model = world.model
    model.bar_write(0, SCRATCH, 0x11, 4)
    model.bar_write(0, TICK, 9, 4)
    model.bar_write(0, LEVEL, 1, 4)
    model.bar_write(4, 0, 17, 1)
    model.bar_write(4, 1, 0x55, 1)
    model.config_write(pci.PCI_INTERRUPT_LINE, 11, 1)
    transfer(world)
    world.clock.advance(0.25)
    model.quiesce(STOPPED)
    state = model.save_state()

    other = power_on(Exerciser, migration=True, dma_delay=9.0)
    other.model.after(0.1, partial(other.model.interrupt, 1))
    assert other.model.identity == model.identity
    other.model.quiesce(STOPPED)
    other.model.load_state(state)
    assert other.model.save_state() == state
    assert other.sink.events == []
    other.model.quiesce(FULL)
    assert other.sink.events == [("intx", True)]
    assert other.model.table[17] == 0x55
    assert other.model.config_read(pci.PCI_INTERRUPT_LINE, 1) == 11
    other.model.ram[:16] = b"sixteen bytes..."
    other.clock.advance(0.8)
    assert bytes(other.domain.memory[0x1000:0x1010]) == b"sixteen bytes..."
    assert other.clock.waiting == 0, "what was pending before is not"


def test_delayed_interrupts_move(world: World[Exerciser]) -> None:
    world.model.bar_write(0, 0x48, 500_000, 4)
    world.model.bar_write(0, RAISE, 0, 4)
    world.model.quiesce(STOPPED)
    other = power_on(Exerciser, migration=True)
    other.model.load_state(world.model.save_state())
    other.clock.advance(0.5)
    assert other.sink.events == [("intx", True)]


def test_edu_moves() -> None:
    one = power_on(Edu, migration=True, dma_delay=1.0, factorial_delay=2.0)
    one.domain.memory[0x100:0x104] = b"data"
    for offset, value in ((0x80, 0x100), (0x88, DMA_BASE), (0x90, 4), (0x98, 1)):
        one.model.bar_write(0, offset, value, 8)
    one.clock.advance(1.0)
    one.model.bar_write(0, 0x08, 5, 4)
    one.model.quiesce(STOPPED)
    two = power_on(Edu, migration=True)
    two.model.load_state(one.model.save_state())
    assert bytes(two.model.buffer[:4]) == b"data"
    two.clock.advance(2.0)
    assert two.model.bar_read(0, 0x08, 4) == 120
    with pytest.raises(InvalidArgument, match="buffer of 1 bytes"):
        two.model.load(b"x")


def test_what_has_no_name_cannot_be_saved() -> None:
    world = power_on(Plain)
    world.model.closure()
    world.model.quiesce(STOPPED)
    with pytest.raises(Unsupported, match="lambda") as error:
        world.model.save_state()
    assert "functools.partial" in error.value.hint


def test_identity_tells_options_apart() -> None:
    names = {
        power_on(Exerciser, migration=True, **options).model.identity
        for options in ({}, {"memory": 8192}, {"msix": 4}, {"msi": 0}, {"flr": False})
    }
    assert len(names) == 5
    assert power_on(Exerciser, dma_delay=3).model.identity in names


# -- wrong state -----------------------------------------------------------------------------------


def good(world: World[Exerciser]) -> dict[str, bytes]:
    world.model.quiesce(STOPPED)
    return unpack(world.model.save_state())


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": bytes(256)},
        {"registers 0": bytes(8)},
        {"registers 4": b""},
        {"interrupts": b"\0"},
        {"interrupts": b"\2\0"},
        {"calls": b"1.0 unplug"},
        {"calls": b"1.0 reset"},
        {"calls": b"1.0 __init__"},
        {"calls": b"1.0 nothing"},
        {"calls": b"1.0 table"},
        {"calls": b"-1 transfer"},
        {"calls": b"nan transfer"},
        {"calls": b"inf transfer"},
        {"calls": b"transfer"},
        {"calls": b"1.0 interrupt x"},
        {"calls": b"\xff"},
        {"model": bytes(255)},
    ],
)
def test_wrong_sections(world: World[Exerciser], wrong: dict[str, bytes]) -> None:
    sections = good(world)
    other = power_on(Exerciser, migration=True)
    with pytest.raises(InvalidArgument):
        other.model.load_state(pack(sections | wrong))
    if "model" not in wrong:
        assert unpack(other.model.save_state()) == unpack(power_on(Exerciser).model.save_state())


@pytest.mark.parametrize(
    "name", ["config", "registers 0", "registers 4", "interrupts", "calls", "model"]
)
def test_missing_sections(world: World[Exerciser], name: str) -> None:
    sections = good(world)
    del sections[name]
    with pytest.raises(InvalidArgument, match=name):
        power_on(Exerciser).model.load_state(pack(sections))


def test_sections() -> None:
    sections = {"a": b"1", "name": b"", "b": bytes(300)}
    packed = pack(sections)
    assert unpack(packed) == sections
    assert unpack(b"") == {}
    for cut in (1, 2, 3, 5, len(packed) - 1):
        with pytest.raises(InvalidArgument):
            unpack(packed[:cut])
    with pytest.raises(InvalidArgument):
        unpack(pack({"a": b""}) * 2)
    with pytest.raises(InvalidArgument):
        unpack(b"\x01\x00\xff\x00\x00\x00\x00")


# -- the log of DMA --------------------------------------------------------------------------------


def test_writes_are_logged(world: World[Exerciser]) -> None:
    log = DmaLog(4096, [(0, 1 << 20)])
    dma = world.model.dma
    world.model.log_dma(log)
    dma.write(0x1FFF, b"xx")
    dma.store(0x5008, 1, 8)
    dma.read(0x7000, 8)
    assert log.written(0, 1 << 20) == [1, 2, 5]
    assert dma.view(0x3000, 8) is None
    world.model.log_dma(None)
    dma.write(0x9000, b"x")
    assert log.written(0, 1 << 20) == [1, 2, 5]
    assert dma.view(0x3000, 8) is not None


def test_refused_writes_are_not_logged(world: World[Exerciser]) -> None:
    log = DmaLog(4096, [(0, 1 << 20)])
    world.model.log_dma(log)
    world.command(pci.PCI_COMMAND_MEMORY)
    with pytest.raises(DmaFault):
        world.model.dma.write(0x1000, b"x")
    world.command(ENABLED)
    with pytest.raises(DmaFault):
        world.model.dma.write((1 << 20) - 1, b"xx")
    assert len(log) == 0
