"""``Slot``: what sits where."""

from __future__ import annotations

import pytest

from uvfio.errors import NoSuchDevice
from uvfio.machine.machine import Machine


def test_a_slot_of_either_bus() -> None:
    machine = Machine(devices=["edu@0000:08:00.0,group=1", "timer@/soc/timer@10010000,group=2"])
    function, platform = machine.slots
    assert function.address == "0000:08:00.0"
    assert function.function is function.device
    assert platform.address == "10010000.timer"
    assert (function.vfio_driver, platform.vfio_driver) == ("vfio-pci", "vfio-platform")
    with pytest.raises(NoSuchDevice, match="10010000.timer is no PCI function"):
        _ = platform.function


def test_a_virtual_function_and_its_physical_one_know_each_other() -> None:
    machine = Machine(devices=["exerciser@0000:06:00.0,vfs=2,numvfs=2"])
    physical, *virtual = machine.slots
    assert physical.virtual == virtual
    assert [slot.physical for slot in machine.slots] == [None, physical, physical]
    machine.set_numvfs(physical.address, 0)
    assert physical.virtual == []
