"""Virtual functions of a machine: where they are, who has them, how they come and go; refusals change nothing."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import pytest

from support.mainline import Desk
from uvfio.core.events import DeviceRequested, FrameworkEvent
from uvfio.doors.local import Process
from uvfio.drivers.pci.sriov import find
from uvfio.errors import (
    Busy,
    Cancelled,
    ConfigError,
    Gone,
    InvalidArgument,
    NoMemory,
    NoSuchDevice,
    Unsupported,
    VfioError,
)
from uvfio.machine.facts import resources
from uvfio.machine.machine import Machine
from uvfio.machine.nodes import Link, Text
from uvfio.machine.spec import IommuSpec
from uvfio.machine.sysfs import attributes
from uvfio.machine.sysfs.tree import nodes
from uvfio.uapi import vfio

PF = "0000:06:00.0"
VFS = ("0000:06:10.0", "0000:06:10.1", "0000:06:10.2", "0000:06:10.3")
DEVICE = f"/sys/bus/pci/devices/{PF}"


def build(options: str = "vfs=4", *others: str, **how: object) -> Machine:
    return Machine(devices=[f"exerciser@{PF},{options}", *others], **how)  # type: ignore[arg-type]


def addresses(machine: Machine) -> tuple[str, ...]:
    return tuple(slot.address for slot in machine.slots)


def picture(machine: Machine) -> object:
    """All that can be seen of a machine, memory included."""
    store = machine.store.allocated if hasattr(machine.store, "allocated") else None
    return machine.describe(), nodes(machine, "mainline"), store, machine.binding.overrides.copy()


@contextmanager
def refused(
    machine: Machine, condition: type[VfioError], number: int | None = None
) -> Iterator[None]:
    before = picture(machine)
    with pytest.raises(condition) as caught:
        yield
    assert number is None or caught.value.errno == number
    assert picture(machine) == before


class User:
    """A program that has a virtual function open, in a container of its own."""

    def __init__(self, machine: Machine, address: str) -> None:
        self.me = Process(machine, abi="mainline")
        container = self.me.open("/dev/vfio/vfio")
        record = machine.record(address)
        self.group = self.me.open(f"/dev/vfio/{record.group.node_name}")
        self.me.ioctl(self.group, vfio.VFIO_GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
        self.me.ioctl(container, vfio.VFIO_SET_IOMMU, vfio.VFIO_TYPE1v2_IOMMU)
        pf = machine.slot(address).physical
        text = address
        if pf is not None and pf.driver == "vfio-pci":
            own = machine.record(pf.address).data._token.own  # type: ignore[union-attr]
            text += f" vf_token={UUID(bytes=own.uuid)}"
        self.device = self.me.ioctl(self.group, vfio.VFIO_GROUP_GET_DEVICE_FD, text)


# -- how they come -------------------------------------------------------------------------------


def test_where_they_are_and_who_has_them() -> None:
    machine = build("vfs=4", "edu@0000:07:00.0,group=1")
    machine.set_numvfs(PF, 3)
    assert addresses(machine) == (PF, *VFS[:3], "0000:07:00.0")
    for number, address in enumerate(VFS[:3]):
        slot = machine.slot(address)
        assert slot.physical is machine.slot(PF)
        assert slot.driver == "vfio-pci"
        assert machine.record(address).bound
        assert slot.device.group == (2, 3, 4)[number]
        assert slot.function.dma.domain is None
        assert machine.binding.overrides[address] == "vfio-pci"
    capability = find(machine.function(PF))
    assert capability
    assert capability.number == 3


def test_options_of_the_physical_function_are_theirs() -> None:
    machine = build("vfs=1,memory=8K,numvfs=1")
    assert machine.function(VFS[0]).bars[2].size == 8192


def test_from_the_start() -> None:
    machine = build("vfs=4,numvfs=2", "edu@0000:07:00.0,group=1")
    assert addresses(machine) == (PF, *VFS[:2], "0000:07:00.0")
    assert [machine.slot(vf).device.group for vf in VFS[:2]] == [2, 3]
    plugged = machine.plug("exerciser@0000:08:00.0,vfs=1,numvfs=1")
    assert [vf.address for vf in plugged.virtual] == ["0000:08:10.0"]
    machine.close()
    assert addresses(machine) == ()


def test_they_go_beyond_their_bus() -> None:
    machine = build("vfs=255,memory=4K")
    machine.set_numvfs(PF, 255)
    assert machine.slot(PF).virtual[-1].address == "0000:07:0f.6"
    assert machine.slot("0000:07:00.0").function.bus_reset is False
    machine.set_numvfs(PF, 0)
    assert machine.function(PF).bus_reset


def test_their_memory_is_a_piece_of_one_range() -> None:
    machine = build("vfs=4,numvfs=4")
    whole = {r.number: r for r in resources(machine.function(PF)) if r.number > 6}
    assert [whole[n].size for n in (7, 8, 9)] == [16384, 16384, 4 << 20]
    for number, address in enumerate(VFS):
        for resource in resources(machine.function(address)):
            above = whole[7 + resource.number]
            assert resource.start == above.start + number * resource.size
            assert resource.flags & 0x200


def test_a_bus_with_virtual_functions_is_no_reset_of_one() -> None:
    machine = build()
    assert machine.function(PF).bus_reset
    machine.set_numvfs(PF, 1)
    assert not machine.function(PF).bus_reset
    machine.set_numvfs(PF, 0)
    assert machine.function(PF).bus_reset


# -- what is refused -----------------------------------------------------------------------------


def test_numbers() -> None:
    machine = build()
    with refused(machine, InvalidArgument, errno.ERANGE):
        machine.set_numvfs(PF, 5)
    with refused(machine, InvalidArgument, errno.EINVAL):
        machine.set_numvfs(PF, -1)
    machine.set_numvfs(PF, 0)
    machine.set_numvfs(PF, 2)
    before = picture(machine)
    machine.set_numvfs(PF, 2)
    assert picture(machine) == before
    with refused(machine, Busy, errno.EBUSY):
        machine.set_numvfs(PF, 3)


def test_functions_that_have_none() -> None:
    machine = build("vfs=1,numvfs=1", "edu@0000:08:00.0")
    for address in ("0000:08:00.0", VFS[0]):
        with refused(machine, Unsupported, errno.ENOENT):
            machine.set_numvfs(address, 1)
    with refused(machine, NoSuchDevice):
        machine.set_numvfs("0000:09:00.0", 1)


@pytest.mark.parametrize("driver", ["none", "igb", "pci-stub"])
def test_drivers_that_make_none(driver: str) -> None:
    machine = build(f"vfs=4,driver={driver}")
    with refused(machine, Unsupported, errno.ENOENT):
        machine.set_numvfs(PF, 1)


def test_the_parameter() -> None:
    machine = build(iommu=IommuSpec(enable_sriov=False))
    with refused(machine, Unsupported, errno.ENOENT):
        machine.set_numvfs(PF, 1)


def test_a_device_in_the_way() -> None:
    machine = build("vfs=4", f"edu@{VFS[2]}")
    with refused(machine, Busy, errno.EBUSY):
        machine.set_numvfs(PF, 3)
    machine.set_numvfs(PF, 2)
    with refused(machine, ConfigError):
        machine.plug(f"edu@{VFS[1]}")


def test_no_bus_left() -> None:
    machine = Machine(devices=["exerciser@0000:ff:1f.0,vfs=1"])
    with refused(machine, NoMemory, errno.ENOMEM):
        machine.set_numvfs("0000:ff:1f.0", 1)


def test_all_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = build()
    made = machine.put_in
    count = iter(range(9))

    def put_in(*words: object) -> object:
        if next(count) == 2:
            raise NoMemory("on purpose")
        return made(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "put_in", put_in)
    with refused(machine, NoMemory):
        machine.set_numvfs(PF, 4)
    monkeypatch.undo()
    machine.set_numvfs(PF, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("vfs=2,numvfs=3", "numvfs 3: .* can have 2"),
        ("numvfs=1", "numvfs 1: .* no SR-IOV"),
        ("vfs=1,numvfs=1,driver=none", "numvfs 1: .* no driver"),
        ("vfs=1,numvfs=x", "numvfs 'x' is not a number"),
        ("vfs=1,numvfs=-1", "numvfs -1 is out of range"),
    ],
)
def test_a_description_that_cannot_be(options: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(options)


def test_a_refused_plug_leaves_nothing() -> None:
    machine = build()
    with refused(machine, ConfigError):
        machine.plug("exerciser@0000:08:00.0,vfs=1,numvfs=2")


# -- how they go ---------------------------------------------------------------------------------


def test_set_to_none() -> None:
    machine = build("vfs=4")
    before = picture(machine)
    machine.set_numvfs(PF, 4)
    machine.set_numvfs(PF, 0)
    assert picture(machine) == before


def test_with_their_physical_function() -> None:
    machine = build("vfs=4,numvfs=2")
    machine.unbind(PF)
    assert addresses(machine) == (PF,)
    with refused(machine, Unsupported):
        machine.set_numvfs(PF, 2)
    machine.bind(PF)
    machine.set_numvfs(PF, 2)
    user = User(machine, VFS[0])
    machine.unplug(PF)
    assert addresses(machine) == ()
    with pytest.raises(Gone):
        user.me.pread(user.device, 4, 0)


def test_not_one_by_one() -> None:
    machine = build("vfs=4,numvfs=2")
    with refused(machine, InvalidArgument):
        machine.unplug(VFS[0])


def test_one_may_have_another_driver() -> None:
    machine = build("vfs=4,numvfs=2")
    machine.unbind(VFS[0])
    machine.bind(VFS[0], "igbvf")
    machine.set_numvfs(PF, 0)
    assert addresses(machine) == (PF,)


def test_a_stub_makes_them_for_others_and_leaves_them() -> None:
    machine = build("vfs=4,driver=pci-pf-stub")
    machine.set_numvfs(PF, 2)
    assert [machine.slot(vf).driver for vf in VFS[:2]] == ["none", "none"]
    machine.bind(VFS[0])
    User(machine, VFS[0])  # needs no token
    machine.unbind(PF)
    assert len(machine.slot(PF).virtual) == 2
    with refused(machine, Busy):
        machine.bind(PF)
    with refused(machine, Unsupported):
        machine.set_numvfs(PF, 0)


def test_users_are_waited_for() -> None:
    machine = build("vfs=4,numvfs=2")
    user = User(machine, VFS[1])
    with refused(machine, Busy):
        machine.set_numvfs(PF, 0, timeout=0)
    with refused(machine, Busy):
        machine.unbind(PF, timeout=0)
    departure = machine.begin_numvfs(PF, 0)
    assert departure is not None
    assert not departure.poll()
    with pytest.raises(NoSuchDevice):  # the other takes no new users meanwhile
        User(machine, VFS[0])
    user.me.exit()
    assert departure.poll()
    assert addresses(machine) == (PF,)


def test_a_departure_can_be_cancelled() -> None:
    machine = build("vfs=4,numvfs=2")
    user = User(machine, VFS[1])
    before = picture(machine)
    departure = machine.begin_numvfs(PF, 0)
    assert departure is not None
    assert 0 < departure.delay() <= 10
    departure.cancel()
    with refused(machine, Cancelled):
        machine.set_numvfs(PF, 0, cancelled=lambda: True)
    assert picture(machine) == before
    User(machine, VFS[0])
    assert user.me.pread(user.device, 4, 0) == b"EXER"


def test_they_can_be_taken_away() -> None:
    machine = build("vfs=4,numvfs=2")
    user = User(machine, VFS[1])
    machine.set_numvfs(PF, 0, revoke=True)
    assert addresses(machine) == (PF,)
    with pytest.raises(Gone):
        user.me.pread(user.device, 4, 0)
    user.me.exit()
    assert len(machine.framework.groups) == 1


def test_a_thread_waits_while_others_work() -> None:
    machine = build("vfs=4,numvfs=2")
    user = User(machine, VFS[1])
    asked = threading.Event()

    def observe(event: FrameworkEvent) -> None:
        if isinstance(event, DeviceRequested):
            asked.set()

    machine.framework.observer = observe
    thread = threading.Thread(target=machine.set_numvfs, args=(PF, 0))
    thread.start()
    assert asked.wait(10)
    user.me.exit()
    thread.join(10)
    assert not thread.is_alive()
    assert addresses(machine) == (PF,)


def test_those_who_let_go_early_are_bound_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out that comes after another release is done: all or none."""
    machine = build("vfs=4,numvfs=2")
    user, stubborn = User(machine, VFS[0]), User(machine, VFS[1])
    departure = machine.begin_numvfs(PF, 0, timeout=3600)
    assert departure is not None
    first = departure._releases[0][1]  # type: ignore[attr-defined]
    user.me.exit()
    assert first.poll()
    assert not machine.record(VFS[0]).bound
    second = departure._releases[1][1]  # type: ignore[attr-defined]
    monkeypatch.setattr(type(second), "poll", lambda self: (_ for _ in ()).throw(Busy("late")))
    with pytest.raises(Busy):
        departure.poll()
    monkeypatch.undo()
    assert machine.record(VFS[0]).bound
    assert machine.slot(VFS[0]).driver == "vfio-pci"
    User(machine, VFS[0])
    assert stubborn.me.pread(stubborn.device, 4, 0) == b"EXER"


# -- what is shown -------------------------------------------------------------------------------


def text(machine: Machine, name: str) -> str:
    node = nodes(machine, "mainline")[f"{DEVICE}/{name}"]
    assert isinstance(node, Text)
    return node.data.decode().strip()


def test_files() -> None:
    machine = build("vfs=4,numvfs=2")
    shown = {name: text(machine, f"sriov_{name}") for name in ("totalvfs", "numvfs", "offset")}
    assert shown == {"totalvfs": "4", "numvfs": "2", "offset": "128"}
    assert text(machine, "sriov_stride") == "1"
    assert text(machine, "sriov_vf_device") == "e8f"
    tree = nodes(machine, "mainline")
    assert tree[f"{DEVICE}/virtfn1"] == Link(f"../{VFS[1]}")
    assert tree[f"/sys/bus/pci/devices/{VFS[1]}/physfn"] == Link(f"../{PF}")
    assert f"/sys/bus/pci/devices/{VFS[1]}/sriov_numvfs" not in tree
    assert text(machine, "resource").count("\n") == 12
    ids = tree[f"/sys/bus/pci/devices/{VFS[0]}/uevent"]
    assert isinstance(ids, Text)
    assert b"PCI_ID=1234:0E8F" in ids.data


def write(machine: Machine, name: str, data: bytes) -> None:
    bound = attributes.find(machine, f"{DEVICE}/{name}")
    assert bound is not None
    assert bound.write(0, data) == (len(data), None)


def test_writing_the_number() -> None:
    machine = build("vfs=4")
    write(machine, "sriov_numvfs", b"0x2\n")
    assert text(machine, "sriov_numvfs") == "2"
    for bad, number in ((b"70000", 22), (b"-1", 22), (b"99999999999999999999", 22), (b"5", 34)):
        with refused(machine, InvalidArgument, number):
            write(machine, "sriov_numvfs", bad)
    write(machine, "sriov_drivers_autoprobe", b"0")
    assert text(machine, "sriov_drivers_autoprobe") == "0"


def test_description() -> None:
    machine = build("vfs=4,numvfs=1", "edu@0000:08:00.0")
    about = {dev["address"]: dev for dev in machine.describe()["devices"]}
    assert about[PF]["sriov"] == {
        "totalvfs": 4,
        "numvfs": 1,
        "offset": 128,
        "stride": 1,
        "vf_device": "0e8f",
        "vfs": [VFS[0]],
    }
    assert about[PF]["physfn"] is None
    assert about[VFS[0]]["physfn"] == PF
    assert about[VFS[0]]["sriov"] is None
    assert (about[VFS[0]]["vendor"], about[VFS[0]]["device"]) == ("1234", "0e8f")
    assert about["0000:08:00.0"]["sriov"] is None


def test_a_program_that_shares_a_bus_reset_with_them() -> None:
    """All functions of the bus are reset with each other; one that is open elsewhere prevents it."""
    desk = Desk()
    desk.machine.plug("exerciser@0000:05:00.0,vfs=1,numvfs=1,group=9")
    record = desk.machine.record("0000:05:00.0")
    mainline = record.data
    scope = desk.framework.bus_reset_scope(mainline, record)  # type: ignore[arg-type]
    assert sorted(found.dev.name for found in scope) == ["0000:05:00.0", "0000:05:10.0"]
