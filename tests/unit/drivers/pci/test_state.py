"""drivers.pci.state: what is saved comes back, in an order that hardware needs."""

from __future__ import annotations

from support.pci_function import AF, PM, VPD, FakeFunction, express, msi
from uvfio.drivers.pci.bars import BarRegisters
from uvfio.drivers.pci.capabilities import survey
from uvfio.drivers.pci.state import SavedState
from uvfio.uapi import pci


def save(function: FakeFunction) -> SavedState:
    bars = BarRegisters(function)
    bars.save()
    return SavedState(function, survey(function), bars)


def test_nothing_is_written_when_nothing_differs() -> None:
    function = FakeFunction(caps=(PM, msi(), express()))
    save(function).restore()
    assert function.log == []


def test_everything_that_a_reset_wipes_comes_back() -> None:
    function = FakeFunction(caps=(msi(), express(), PM))
    control = function.where[pci.PCI_CAP_ID_EXP] + pci.PCI_EXP_DEVCTL
    mask = function.where[pci.PCI_CAP_ID_MSI] + pci.PCI_MSI_MASK_64
    function.poke(pci.PCI_COMMAND, 7)
    function.poke(0x10, 0xFE000000, 4)
    function.poke(pci.PCI_CACHE_LINE_SIZE, 16, 1)
    function.poke(pci.PCI_INTERRUPT_LINE, 9, 1)
    function.poke(control, 0x2810)
    function.poke(mask, 5, 4)
    before = bytes(function.config)
    state = save(function)
    function.reset()
    function.log.clear()
    state.restore()
    assert bytes(function.config) == before
    assert function.log[-1] == ("config", pci.PCI_COMMAND, 7, 2)


def test_the_function_is_woken_up_first() -> None:
    function = FakeFunction(caps=(express(), PM))
    ctrl = function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL
    function.poke(pci.PCI_CACHE_LINE_SIZE, 16, 1)
    state = save(function)
    function.reset()
    function.poke(ctrl, 3)
    function.log.clear()
    state.restore()
    assert function.log[0] == ("config", ctrl, 0, 2)


def test_a_power_event_is_not_acknowledged() -> None:
    function = FakeFunction(caps=(PM,))
    ctrl = function.where[pci.PCI_CAP_ID_PM] + pci.PCI_PM_CTRL
    function.poke(ctrl, pci.PCI_PM_CTRL_PME_STATUS)
    state = save(function)
    function.poke(ctrl, pci.PCI_PM_CTRL_PME_STATUS | 3)
    state.restore()
    assert function.written(ctrl) == [(0, 2)]


def test_actions_are_never_written() -> None:
    function = FakeFunction(caps=(VPD, AF))
    state = save(function)
    function.poke(function.where[pci.PCI_CAP_ID_VPD] + pci.PCI_VPD_ADDR, 0x8004)
    function.poke(function.where[pci.PCI_CAP_ID_AF] + pci.PCI_AF_CTRL, 1, 1)
    state.restore()
    assert function.log == []


def test_another_command_may_be_given() -> None:
    function = FakeFunction()
    function.poke(pci.PCI_COMMAND, 7)
    state = save(function)
    assert state.command == 7
    state.restore(3)
    assert function.word(pci.PCI_COMMAND) == 3
