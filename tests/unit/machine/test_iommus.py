"""Machines with several IOMMUs: how they are described, who is behind which, what that means for merging."""

from __future__ import annotations

import errno

import pytest

from uvfio.cli.machinefile import parse
from uvfio.doors.local import Process
from uvfio.errors import ConfigError, VfioError
from uvfio.machine.machine import Machine
from uvfio.machine.spec import DeviceSpec, IommuSpec, MachineSpec
from uvfio.uapi import rfc

A, B, C = "0000:06:0d.0", "0000:07:00.0", "0000:08:00.0"

TEXT = f"""
[iommu]
address_bits = 39
reserved = [[0, 4095]]
dma_entry_limit = 7

[iommu.slow]
coherent = false
page_sizes = ["4K"]

[iommu.open]
interrupt_remapping = false
address_bits = 48
reserved = []

[[device]]
model = "edu"
address = "{A}"
group = 1

[[device]]
model = "edu"
address = "{B}"
group = 2
iommu = "slow"

[[device]]
model = "edu"
address = "{C}"
group = 3
iommu = "open"
"""


@pytest.fixture
def machine() -> Machine:
    return Machine(parse(TEXT.encode(), "m.toml"))


def test_sub_tables_inherit_and_override() -> None:
    base = IommuSpec(address_bits=39, reserved=((0, 4095),), dma_entry_limit=7)
    spec = parse(TEXT.encode(), "m.toml")
    assert spec.iommu == base
    assert dict(spec.iommus) == {
        "slow": IommuSpec(
            coherent=False,
            page_sizes=(4096,),
            address_bits=39,
            reserved=((0, 4095),),
            dma_entry_limit=7,
        ),
        "open": IommuSpec(interrupt_remapping=False, reserved=(), dma_entry_limit=7),
    }
    assert [dev.iommu for dev in spec.devices] == [None, "slow", "open"]


def test_devices_are_behind_the_iommu_they_choose(machine: Machine) -> None:
    units = [machine.function(address).unit for address in (A, B, C)]
    assert [unit and unit.name for unit in units] == ["iommu0", "slow", "open"]
    assert units[0] is machine.unit
    about = machine.describe()
    assert [dev["iommu"] for dev in about["devices"]] == ["iommu0", "slow", "open"]
    assert [group["iommu"] for group in about["groups"]] == ["iommu0", "slow", "open"]
    assert [unit["name"] for unit in about["iommus"]] == ["iommu0", "slow", "open"]
    assert about["iommu"] == about["iommus"][0]
    assert (about["iommus"][1]["coherent"], about["iommus"][1]["address_bits"]) == (False, 39)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (
            "[iommu.x]\nadress_bits = 3",
            "m.toml: iommu.x.adress_bits = 3: unknown key",
            "address_bits",
        ),
        ("[iommu.x]\ncoherent = 'no'", "m.toml: iommu.x.coherent = 'no': expected bool", ""),
        ("[iommu.x]\naddress_bits = 3", "m.toml: iommu.x: address_bits 3 is out of range", ""),
        ("[iommu.x]\npage_sizes = ['4X']", "m.toml: iommu.x: page_sizes '4X' is not a size", ""),
        ("[iommu.x]\ndma_entry_limit = 3", "iommu.x.dma_entry_limit = 3: unknown key", "keys here"),
        (
            "[iommu.x]\nallow_unsafe_interrupts = true",
            "iommu.x.allow_unsafe_interrupts = True: unknown key",
            "keys here",
        ),
        ("[iommu.x.y]\ncoherent = true", "m.toml: iommu.x.y = {'coherent': True}: unknown key", ""),
        ("[iommu.coherent]\nx = 1", "m.toml: iommu.coherent = {'x': 1}: expected bool", ""),
        ("[iommu.'a b']", "m.toml: iommu.a b: name 'a b' is not a name for a further IOMMU", ""),
        ("[iommu.iommu0]", "name 'iommu0' is not a name for a further IOMMU", ""),
        (
            "[iommu.fast]\n[[device]]\nmodel = 'edu'\niommu = 'fats'",
            "m.toml: device[0]: iommu 'fats' is not an IOMMU of the machine",
            "there are fast",
        ),
        (
            "[[device]]\nmodel = 'edu'\niommu = 'fast'",
            "m.toml: device[0]: iommu 'fast' is not an IOMMU of the machine",
            "[iommu.fast] in a machine file makes one",
        ),
        (
            "device = [{model='edu', group=1}, {model='edu', group=1, iommu='fast'}]\n[iommu.fast]",
            "m.toml: device[1]: iommu 'fast' does not fit: group 1 is behind iommu0 (0000:00:01.0)",
            "a group has one IOMMU",
        ),
    ],
)
def test_mistakes(text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        Machine(parse(text.encode(), "m.toml"))
    assert says in str(error.value)
    assert hint in error.value.hint


def test_in_python_and_in_strings() -> None:
    machine = Machine(
        devices=["edu@6:d.0,iommu=slow", DeviceSpec("edu", iommu="slow"), "edu"],
        iommus={"slow": IommuSpec(coherent=False)},
    )
    names = [slot.device.unit and slot.device.unit.name for slot in machine.slots]
    assert names == ["slow", "iommu0", "slow"]
    machine.plug("edu@9:0.0,iommu=slow")
    with pytest.raises(ConfigError, match="iommu 'other' is not an IOMMU"):
        machine.plug("edu@9:1.0,iommu=other")
    with pytest.raises(ConfigError, match="iommu is not an IOMMU"):
        machine.plug("edu@9:1.0,iommu=")
    with pytest.raises(ConfigError, match="iommu 'slow' is not an IOMMU"):
        Machine(devices=["edu,iommu=slow"])


def test_a_group_stays_behind_its_iommu(machine: Machine) -> None:
    before = machine.describe()
    with pytest.raises(ConfigError, match="group 2 is behind slow"):
        machine.plug("edu@7:0.1,group=2")
    assert machine.describe() == before
    machine.plug("edu@7:0.1,group=2,iommu=slow")
    # a group of another bus is another group
    machine.plug("timer@/t@1000,group=2")


def open_groups(machine: Machine, *numbers: int) -> tuple[Process, list[int]]:
    me = Process(machine)
    return me, [me.open(f"/dev/vfio/{number}") for number in numbers]


def state(machine: Machine) -> object:
    contexts = [
        (
            group.iommu and id(group.iommu),
            group.iommu and group.iommu.owner,
            group.iommu and group.iommu.domain and id(group.iommu.domain),
            [(held.mm, held.joined) for held in group.opens],
            [(device.name, device.attached, device.reserved) for device in group.devices],
        )
        for group in machine.framework.groups
    ]
    return machine.describe(), contexts


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
@pytest.mark.parametrize("used", [False, True])
def test_groups_of_different_coherency_cannot_be_merged(
    machine: Machine, order: tuple[int, int], used: bool
) -> None:
    me, (one, two) = open_groups(machine, *order)
    if used:
        me.ioctl(one, rfc.VFIO_GROUP_GET_IOMMU_FD)
    before = state(machine)
    with pytest.raises(VfioError, match="differ in cache coherency") as error:
        me.ioctl(one, rfc.VFIO_GROUP_MERGE, rfc.S32.pack(two))
    assert error.value.errno == errno.EINVAL
    assert state(machine) == before
    flags = bytearray(8)
    me.ioctl(two, rfc.VFIO_GROUP_GET_FLAGS, flags)
    assert rfc.U64.unpack(flags) == (rfc.VFIO_GROUP_FLAGS_VIABLE,)
    me.ioctl(two, rfc.VFIO_GROUP_GET_IOMMU_FD)  # it goes on alone


def test_groups_behind_two_iommus_that_are_alike_can_be_merged() -> None:
    machine = Machine(
        devices=["edu@6:d.0,group=1", "edu@7:0.0,group=2,iommu=twin"],
        iommus={"twin": IommuSpec(address_bits=32, reserved=((0x5000, 0x5FFF),))},
    )
    me, (one, two) = open_groups(machine, 1, 2)
    me.ioctl(one, rfc.VFIO_GROUP_MERGE, rfc.S32.pack(two))
    iommu = me.ioctl(one, rfc.VFIO_GROUP_GET_IOMMU_FD)
    buffer = me.memory.allocate(4096)

    def map_at(iova: int) -> int:
        return me.ioctl(iommu, rfc.VFIO_IOMMU_MAP_DMA, rfc.DMA_MAP.pack(40, buffer, iova, 4096, 1))

    assert map_at(0x1000) == 0
    for iova in (0x5000, 0xFEE00000, 1 << 32):  # what either of them cannot do
        with pytest.raises(OSError) as error:
            map_at(iova)
        assert error.value.errno == errno.EINVAL


def test_interrupt_remapping_is_that_of_the_iommu_in_front(machine: Machine) -> None:
    me, (safe, unsafe) = open_groups(machine, 1, 3)
    before = state(machine)
    with pytest.raises(OSError, match="does not remap interrupts") as error:
        me.ioctl(unsafe, rfc.VFIO_GROUP_GET_IOMMU_FD)
    assert error.value.errno == errno.EPERM
    assert state(machine) == before
    me.ioctl(safe, rfc.VFIO_GROUP_GET_IOMMU_FD)
    allowed = Machine(
        MachineSpec(
            IommuSpec(allow_unsafe_interrupts=True),
            (DeviceSpec("edu", group=1, iommu="x"),),
            {"x": IommuSpec(interrupt_remapping=False)},
        )
    )
    you, (group,) = open_groups(allowed, 1)
    you.ioctl(group, rfc.VFIO_GROUP_GET_IOMMU_FD)
