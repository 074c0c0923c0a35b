"""SR-IOV in silicon: the registers of a physical function, and how a virtual one differs from an ordinary one."""

from __future__ import annotations

from typing import Any

import pytest

from support.model_world import FakeClock, FakeStore
from uvfio.core.bus import Activity
from uvfio.drivers.pci.sriov import find
from uvfio.errors import ConfigError
from uvfio.kit import BarKind, MemoryBar, PciExpress, PciModel, Register, RegisterBar
from uvfio.kit.pci.sriov import Sriov
from uvfio.kit.register import RegisterMap
from uvfio.models.exerciser import Exerciser, ExerciserVf
from uvfio.uapi import pci

PF, VF = "0000:06:00.0", "0000:06:10.0"
ONES = 0xFFFFFFFF
SCRATCH = 0x10


class Ports(RegisterMap):
    first = Register(0)


class WithPorts(PciModel):
    vendor_id, device_id = 0x1234, 0x0001
    ports = RegisterBar(0, Ports, size=16, kind=BarKind.IO)


class Pair(PciModel):
    """A physical function whose virtual ones have other BARs than itself."""

    vendor_id, device_id = 0x1AF4, 0x0002
    memory = MemoryBar(0, 8192)
    capabilities = (PciExpress(), Sriov(ExerciserVf, 3, first=8, stride=2, device_id=0x77))


def make(model: type[PciModel], address: str = PF, **how: Any) -> PciModel:
    return model(address, group=1, unit=None, clock=FakeClock(), store=FakeStore(), **how)


def pair(**options: object) -> tuple[PciModel, PciModel]:
    """An exerciser and its first virtual function, enabled."""
    pf = make(Exerciser, options={"vfs": 4, **options})
    vf = make(ExerciserVf, VF, physfn=pf)
    pf.virtual_functions.append(vf)
    switch(pf)
    return pf, vf


def switch(pf: PciModel, number: int = 1) -> None:
    capability = find(pf)
    assert capability
    capability.enable(number)


def register(pf: PciModel, offset: int) -> int:
    return pf.config.get(pf._places[Sriov] + offset, 2)


def test_the_capability() -> None:
    capability = find(make(Pair))
    assert capability is not None
    assert (capability.total, capability.first, capability.stride) == (3, 8, 2)
    assert (capability.device_id, capability.number, capability.enabled) == (0x77, 0, False)


def test_an_exerciser_has_it_by_option() -> None:
    assert make(Exerciser).sriov is None
    assert find(make(Exerciser)) is None
    assert make(Exerciser).virtual_bars == {}
    pf = make(Exerciser, options={"vfs": "4", "memory": 8192, "msix": 3})
    assert pf.sriov is not None
    assert pf.sriov.total == 4
    assert {index: bar.size for index, bar in pf.virtual_bars.items()} == {
        0: 4096,
        1: 4096,
        2: 8192,
    }
    with pytest.raises(ConfigError, match="vfs 256 is not 0 to 255"):
        make(Exerciser, options={"vfs": 256})


def test_vf_bars_tell_their_sizes() -> None:
    pf = make(Exerciser, options={"vfs": 2})
    capability = find(pf)
    assert capability
    for index in range(6):
        capability.set_bar(index, ONES)
    assert [capability.bar(index) for index in range(6)] == [
        *(0xFFFFF000, 0xFFFFF000, 0xFFF0000C, ONES, 0, 0)
    ]


def test_the_number_is_fixed_while_vfs_are_enabled() -> None:
    pf = make(Exerciser, options={"vfs": 4})
    at = pf._places[Sriov]
    pf.config_write(at + pci.PCI_SRIOV_NUM_VF, 3, 2)
    switch(pf, 2)
    pf.config_write(at + pci.PCI_SRIOV_NUM_VF, 4, 2)
    assert register(pf, pci.PCI_SRIOV_NUM_VF) == 2
    pf.config_write(at + pci.PCI_SRIOV_CTRL, 0, 2)
    pf.config_write(at + pci.PCI_SRIOV_NUM_VF, 4, 2)
    assert register(pf, pci.PCI_SRIOV_NUM_VF) == 4


def test_the_header_of_a_virtual_function() -> None:
    _, vf = pair()
    assert vf.config_read(0, 4) == ONES
    assert vf.config_read(pci.PCI_INTERRUPT_PIN, 1) == 0
    for offset in range(pci.PCI_BASE_ADDRESS_0, pci.PCI_BASE_ADDRESS_5 + 4, 4):
        vf.config_write(offset, ONES, 4)
        assert vf.config_read(offset, 4) == 0
    vf.config_write(pci.PCI_COMMAND, 0xFFFF, 2)
    assert vf.config_read(pci.PCI_COMMAND, 2) == pci.PCI_COMMAND_MASTER
    vf.config_write(pci.PCI_INTERRUPT_LINE, 5, 1)
    assert vf.config_read(pci.PCI_INTERRUPT_LINE, 1) == 0
    assert vf.rom == b""
    assert vf.physfn is not None
    assert vf.reset_methods == ("flr",)


def test_bars_answer_while_the_physical_function_says_so() -> None:
    pf, vf = pair()
    at = pf._places[Sriov] + pci.PCI_SRIOV_CTRL
    assert vf.bar_read(0, 0, 4) == 0x52455845
    for off in (pci.PCI_SRIOV_CTRL_VFE, pci.PCI_SRIOV_CTRL_MSE, 0):
        pf.config_write(at, off, 2)
        assert vf.bar_read(0, 0, 4) == ONES
    switch(pf)
    assert vf.bar_read(0, 0, 4) == 0x52455845


def test_a_new_virtual_function_answers_when_it_is_told_to() -> None:
    pf = make(Exerciser, options={"vfs": 1})
    vf = make(ExerciserVf, VF, physfn=pf)
    assert vf.bar_read(0, 0, 4) == ONES
    vf.decode(True)
    assert vf.bar_read(0, 0, 4) == 0x52455845


def test_a_reset_of_the_physical_function_takes_all_along() -> None:
    pf, vf = pair()
    vf.bar_write(0, SCRATCH, 7, 4)
    pf.bar_write(0, SCRATCH, 7, 4)
    pf.reset()
    assert register(pf, pci.PCI_SRIOV_CTRL) == register(pf, pci.PCI_SRIOV_NUM_VF) == 0
    assert vf.bar_read(0, SCRATCH, 4) == ONES
    switch(pf, 3)
    assert register(pf, pci.PCI_SRIOV_NUM_VF) == 3
    assert vf.bar_read(0, SCRATCH, 4) == 0


def test_a_reset_of_a_virtual_function_is_its_own() -> None:
    pf, vf = pair()
    vf.bar_write(0, SCRATCH, 7, 4)
    pf.bar_write(0, SCRATCH, 8, 4)
    vf.reset()
    assert vf.bar_read(0, SCRATCH, 4) == 0
    assert pf.bar_read(0, SCRATCH, 4) == 8
    assert register(pf, pci.PCI_SRIOV_NUM_VF) == 1


def test_a_virtual_function_moves_and_its_physical_one_does_not() -> None:
    pf, other_pf = pair(migration=True)[0], pair(migration=True)[0]
    assert not pf.migratable
    assert pf.sriov is not None
    assert pf.sriov.options["migration"] is True
    vf, other = (
        make(ExerciserVf, VF, physfn=p, options={"migration": True}) for p in (pf, other_pf)
    )
    for each in (vf, other):
        assert each.migratable
        each.decode(True)
    vf.bar_write(0, SCRATCH, 7, 4)
    vf.quiesce(Activity.STOPPED)
    other.quiesce(Activity.STOPPED)
    other.load_state(vf.save_state())
    other.quiesce(Activity.FULL)
    assert other.bar_read(0, SCRATCH, 4) == 7
    assert other.config_read(0, 4) == ONES


def test_what_no_silicon_has() -> None:
    with pytest.raises(ValueError, match="VFs must be 1 to 255, not 0"):
        Sriov(ExerciserVf, 0)
    with pytest.raises(ValueError, match="offset 0 and stride 1"):
        Sriov(ExerciserVf, 1, first=0)
    with pytest.raises(ValueError, match="BAR 0 of WithPorts is I/O"):
        Sriov(WithPorts, 1)
    with pytest.raises(ConfigError, match="no_such"):
        Sriov(ExerciserVf, 1, options={"no_such": 1})
