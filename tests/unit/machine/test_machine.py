"""The living machine: plugging, pulling out, drivers, and that a refusal leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uvfio.core.events import (
    DeviceBound,
    DevicePlugged,
    DeviceUnbound,
    DeviceUnplugged,
    FrameworkEvent,
    GroupAdded,
    GroupRemoved,
)
from uvfio.doors.local import Process
from uvfio.errors import Busy, ConfigError, Gone, InvalidArgument, NoSuchDevice, VfioError
from uvfio.kit.pci.bar import MemoryBar
from uvfio.kit.pci.model import PciModel
from uvfio.machine.machine import Machine
from uvfio.machine.spec import DeviceSpec, IommuSpec, MachineSpec
from uvfio.machine.store import ByteStore
from uvfio.models.edu import Edu
from uvfio.uapi import pci, rfc

A, B, C = "0000:06:0d.0", "0000:06:0d.1", "0000:07:00.0"


class Ram(PciModel):
    """Memory that can be mapped, a ROM, no interrupt."""

    vendor_id, device_id = 0x1AF4, 0x0001
    interrupt_pin = 0
    rom_image = b"\x55\xaa"
    memory = MemoryBar(2, 8192)


class Broken(Ram):
    """Fails when it has taken its memory."""

    def on_reset(self) -> None:
        raise InvalidArgument("broken on purpose")


class Bridge(Ram):
    """A header that vfio-pci does not take."""

    def config_read(self, offset: int, size: int) -> int:
        if (offset, size) == (pci.PCI_HEADER_TYPE, 1):
            return pci.PCI_HEADER_TYPE_BRIDGE
        return super().config_read(offset, size)


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvfio.models import catalogue

    find = catalogue.find
    mine: dict[str, type[PciModel]] = {"ram": Ram, "broken": Broken, "bridge": Bridge}
    monkeypatch.setattr(catalogue, "find", lambda spec: mine.get(spec) or find(spec))


def state(machine: Machine) -> object:
    """Everything that a refused operation must leave alone."""
    store = machine.store
    assert isinstance(store, ByteStore)
    return (machine.describe(), [slot.address for slot in machine.slots], store.devices)


def test_default_machine() -> None:
    machine = Machine()
    assert [slot.address for slot in machine.slots] == [A, B, C]
    assert {g.number: (g.viable, len(g.devices)) for g in machine.framework.groups} == {
        240: (True, 2),
        241: (True, 1),
    }
    assert isinstance(machine.function(A), Edu)
    assert machine.record("6:d.1").bound


def test_described_in_place_or_by_a_spec_but_not_both() -> None:
    machine = Machine(iommu=IommuSpec(address_bits=39), devices=["edu@6:d.0", DeviceSpec("edu")])
    assert [slot.address for slot in machine.slots] == ["0000:00:01.0", A]
    assert machine.unit.address_bits == 39
    assert Machine(devices=[]).slots == ()
    assert Machine(MachineSpec()).slots == ()
    with pytest.raises(InvalidArgument):
        Machine(MachineSpec(), devices=[])


def test_limits_reach_the_framework() -> None:
    machine = Machine(iommu=IommuSpec(dma_entry_limit=7, allow_unsafe_interrupts=True))
    assert machine.framework.dma_entry_limit == 7
    assert machine.framework.allow_unsafe_interrupts


def test_drivers_decide_whether_a_group_is_viable() -> None:
    machine = Machine(
        devices=[
            "edu,group=1",
            "edu,group=1,driver=none",
            "edu,group=2,driver=e1000",
            "edu,group=3",
        ]
    )
    viable = {group.number: group.viable for group in machine.framework.groups}
    assert viable == {1: False, 2: False, 3: True}
    assert [slot.driver for slot in machine.slots] == ["vfio-pci", "none", "e1000", "vfio-pci"]
    machine.bind("0000:00:02.0")
    machine.unbind("0000:00:03.0")
    machine.bind("0000:00:03.0", "vfio-pci")
    assert all(group.viable for group in machine.framework.groups)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../../tmp/x", "a/b", "a\0b", "\ud800", "a\nb", "d" * 300, "vfio_pci", "é"],
)
def test_a_driver_whose_name_is_no_files_is_refused_everywhere(name: str) -> None:
    machine = Machine()
    machine.unbind(C)
    before = state(machine), machine.binding.drivers("pci")
    with pytest.raises(InvalidArgument, match=f"^{C}: driver") as wrong:
        machine.bind(C, name)
    assert wrong.value.hint
    with pytest.raises(ConfigError, match="driver"):
        machine.plug("edu", driver=name)
    with pytest.raises(ConfigError, match="driver"):
        DeviceSpec("edu", driver=name)
    assert (state(machine), machine.binding.drivers("pci")) == before


def test_bind_and_unbind_refuse_what_makes_no_sense() -> None:
    machine = Machine(devices=["edu@6:d.0", "edu@6:d.1,driver=none"])
    before = state(machine)
    refused: list[tuple[Callable[[], None], type[VfioError]]] = [
        (lambda: machine.bind(A), Busy),
        (lambda: machine.bind(A, "e1000"), Busy),
        (lambda: machine.bind(B, "none"), InvalidArgument),
        (lambda: machine.unbind(B), InvalidArgument),
        (lambda: machine.bind("7:0.0"), NoSuchDevice),
        (lambda: machine.bind("7.0"), ConfigError),
    ]
    for wrong, condition in refused:
        with pytest.raises(condition):
            wrong()
        assert state(machine) == before


def test_plug_and_unplug() -> None:
    machine = Machine(devices=["ram@6:d.0,group=4"])
    empty = Machine(devices=[])
    slot = machine.plug("ram")
    assert (slot.address, slot.function.group) == ("0000:00:01.0", 0)
    assert isinstance(machine.store, ByteStore)
    assert set(machine.store.devices) == {A, "0000:00:01.0"}
    machine.unplug("0:1.0")
    machine.unplug(A)
    assert state(machine) == state(empty)
    assert machine.framework.groups == ()
    with pytest.raises(NoSuchDevice) as info:
        machine.unplug(A)
    assert info.value.hint == "its devices: none"


@pytest.mark.parametrize(
    "device",
    ["edx", "edu@6:d.0", "edu,no_such_option=1", "broken", "bridge", "edu,driver=/", "ram,group=x"],
)
def test_a_refused_plug_leaves_no_trace(device: str) -> None:
    machine = Machine()
    before = state(machine)
    with pytest.raises(VfioError):
        machine.plug(device)
    assert state(machine) == before
    machine.plug("ram")


def test_a_machine_that_cannot_be_built_gives_everything_back() -> None:
    store = ByteStore()
    with pytest.raises(InvalidArgument, match="broken on purpose"):
        Machine(devices=["ram", "broken"], store=store)
    assert store.devices == ()


def test_bus_reset_is_for_functions_alone_on_a_bus_behind_a_bridge() -> None:
    machine = Machine(devices=["ram@0:1.0", "ram@6:d.0", "ram@6:d.1", "ram@7:0.0", "ram@1:0:1.0"])
    alone = [slot.address for slot in machine.slots if "bus" in slot.function.reset_methods]
    assert alone == ["0000:07:00.0"]


def test_the_bus_reset_goes_and_comes_with_neighbours() -> None:
    machine = Machine(devices=["ram@6:d.0,group=1", "ram@0:1.0"])
    first = machine.function("6:d.0")
    me, device = open_device(machine, A, 1)
    flags = bytearray(8)

    def can_be_reset() -> bool:
        me.ioctl(device, rfc.VFIO_DEVICE_GET_FLAGS, flags)
        return bool(flags[0] & rfc.VFIO_DEVICE_FLAGS_RESET)

    assert can_be_reset()
    second = machine.plug("ram@6:d.1").function
    assert not first.reset_methods + second.reset_methods
    assert not can_be_reset()
    with pytest.raises(VfioError, match="has no function reset"):
        me.ioctl(device, rfc.VFIO_DEVICE_RESET)
    with pytest.raises(VfioError):
        machine.plug("broken@6:d.2")
    machine.unplug("6:d.1")
    assert first.reset_methods == ("bus",)
    assert can_be_reset()
    with pytest.raises(VfioError):
        machine.plug("broken@6:d.2")
    assert can_be_reset()
    machine.plug("ram@0:2.0")  # the root bus cannot be reset
    assert machine.function("0:1.0").reset_methods == ()


def test_firmware_gives_every_bar_an_address_of_its_own() -> None:
    machine = Machine(devices=["ram", "edu", "ram"])
    taken = [
        range(resource["start"], resource["start"] + resource["size"])
        for device in machine.describe()["devices"]
        for resource in device["resources"]
    ]
    assert len(taken) == 5
    for number, one in enumerate(taken):
        assert one.start
        assert one.start % len(one) == 0
        assert not any(
            one.start < other.stop and other.start < one.stop for other in taken[:number]
        )
    edu = machine.function("0:2.0")
    assert edu.config_read(pci.PCI_INTERRUPT_LINE, 1) in range(16, 20)
    decodes = pci.PCI_COMMAND_IO | pci.PCI_COMMAND_MEMORY
    assert edu.config_read(pci.PCI_COMMAND, 2) == decodes | pci.PCI_COMMAND_SERR
    first = machine.function("0:1.0").config_read(pci.PCI_BASE_ADDRESS_2, 4)
    machine.unplug("0:1.0")
    machine.plug("ram@9:0.0")
    assert machine.function("9:0.0").config_read(pci.PCI_BASE_ADDRESS_2, 4) == first


def open_device(machine: Machine, address: str = A, group: int = 240) -> tuple[Process, int]:
    from uvfio.uapi.rfc import VFIO_GROUP_GET_DEVICE_FD

    me = Process(machine)
    fd = me.open(f"/dev/vfio/{group}")
    return me, me.ioctl(fd, VFIO_GROUP_GET_DEVICE_FD, address)


def test_a_device_plugged_into_a_group_in_use_goes_to_vfio_whatever_was_asked_for() -> None:
    machine = Machine()
    me, _ = open_device(machine)
    slot = machine.plug("edu@6:d.2,group=240,driver=e1000")
    assert slot.driver == "vfio-pci"
    assert machine.record("6:d.2").bound
    me.exit()
    machine.unbind("6:d.2")
    machine.bind("6:d.2", "e1000")


def test_a_plug_into_a_group_in_use_that_vfio_cannot_take_leaves_no_trace() -> None:
    machine = Machine()
    open_device(machine)
    before = state(machine)
    with pytest.raises(VfioError, match="header type"):
        machine.plug("bridge@6:d.2,group=240")
    assert state(machine) == before
    assert all(group.viable for group in machine.framework.groups)


def test_unbind_waits_and_revokes_as_told() -> None:
    machine = Machine()
    me, device = open_device(machine)
    before = state(machine)
    with pytest.raises(Busy, match="in use"):
        machine.unbind(A, timeout=0)
    assert state(machine) == before
    machine.unbind(A, revoke=True)
    assert machine.slot(A).driver == "none"
    with pytest.raises(Gone):
        me.pread(device, 4, 7 << 40)


def test_unplug_takes_a_device_from_who_uses_it() -> None:
    machine = Machine()
    me, device = open_device(machine)
    machine.unplug(A)
    assert [slot.address for slot in machine.slots] == [B, C]
    with pytest.raises(Gone):
        me.pread(device, 4, 7 << 40)
    me.exit()
    machine.plug("edu@6:d.0,group=240")
    open_device(machine)


def test_observer_hears_of_groups_and_devices() -> None:
    heard: list[FrameworkEvent] = []
    machine = Machine(devices=[], observer=heard.append)
    machine.plug("edu,group=9")
    machine.unplug("0:1.0")
    name = "0000:00:01.0"
    assert heard == [
        GroupAdded("9", "pci", 9, 0),
        DevicePlugged(name, "pci", "9"),
        DeviceBound(name, "vfio-pci", "9"),
        DeviceUnplugged(name, "9"),
        DeviceUnbound(name, "vfio-pci", "9"),
        GroupRemoved("9", "pci", 9),
    ]


def test_describe_says_why_a_group_is_not_viable() -> None:
    machine = Machine(devices=["edu@6:d.0,group=5,driver=none"])
    (group,) = machine.describe()["groups"]
    assert not group["viable"]
    assert A in group["not_viable_because"]
    (device,) = machine.describe()["devices"]
    assert device["driver"] is None
    assert (device["vendor"], device["device"]) == ("1234", "11e8")
