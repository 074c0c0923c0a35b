"""Device trees: what files and strings describe, and the platform devices that a machine makes of it."""

from __future__ import annotations

import errno
import posixpath
import subprocess
import sys
from pathlib import Path

import pytest

from uvfio.cli.machinefile import load, parse
from uvfio.core.bus import DtProperty
from uvfio.doors.local import Process
from uvfio.drivers.platform.hardware import Origin, PlatformRegion, Resources
from uvfio.errors import Busy, ConfigError, Gone, InvalidArgument, NoSuchDevice, VfioError
from uvfio.machine.device_tree import check_path, platform_name
from uvfio.machine.machine import Machine
from uvfio.machine.nodes import CharDev, Directory, Link, Text
from uvfio.machine.spec import DeviceSpec, MachineSpec, parse_device
from uvfio.machine.store import ByteStore
from uvfio.machine.sysfs.tree import PREFIXES, nodes
from uvfio.models.timer import Timer
from uvfio.uapi import rfc

SOC = Path(__file__).resolve().parents[3] / "examples" / "soc.toml"
NODE, NAME = "/soc/timer@10010000", "10010000.timer"
LOG = f"{NODE}/log@10020000"
TIMER = f"timer@{NODE}"

TREE = f"""
[device_tree."{NODE}"]
model = "timer"
group = 3
reg = [["0x10010000", "0x1000"]]
interrupts = [[5, "level"]]
options = {{ period = 7 }}
[device_tree."{LOG}"]
reg = [["0x10020000", "4K"]]
interrupts = [["0x6", "edge"]]
"""


def machine_of(text: str) -> Machine:
    return Machine(parse(text.encode(), "m.toml"))


def state(machine: Machine) -> object:
    """Everything that a refused operation must leave alone."""
    store = machine.store
    assert isinstance(store, ByteStore)
    return (machine.describe(), [slot.address for slot in machine.slots], store.devices)


# -- paths and names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/a", "/soc/timer@10010000", "/soc@0/a,b._+-@1,2", "/" + "x" * 31]
)
def test_paths(path: str) -> None:
    check_path(path)
    assert DeviceSpec("timer", path).address == path


@pytest.mark.parametrize(
    "path", ["/", "/a/", "//a", "/a//b", "/a@", "/@1", "/a b", "/" + "x" * 32, "/a@1@2", "/\u00e4"]
)
def test_wrong_paths(path: str) -> None:
    with pytest.raises(ConfigError) as error:
        DeviceSpec("timer", path, source="m.toml: x")
    assert str(error.value).startswith(f"m.toml: x: address {path!r} is not the path of a device")


def resources(path: str, *regions: tuple[str, int]) -> Resources:
    made = [PlatformRegion(Origin(at, DtProperty.REG, 0), address, 4096) for at, address in regions]
    return Resources(path, tuple(made))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (resources("/soc/timer@10", ("/soc/timer@10", 0x10010000)), "10010000.timer"),
        (resources("/soc/timer", ("/soc/timer", 0)), "0.timer"),
        (resources("/soc/timer", ("/soc/timer/log@20", 0x20)), "soc:timer"),
        (resources("/soc@1/a/timer@2"), "soc@1:a:timer@2"),
        (resources("/timer"), "timer"),
    ],
)
def test_names_are_those_of_linux(given: Resources, name: str) -> None:
    assert platform_name(given) == name


# -- strings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "model", "address"),
    [
        ("timer@/soc/timer@10010000", "timer", "/soc/timer@10010000"),
        ("timer@/timer", "timer", "/timer"),
        ("p.q:C@/soc/x@1", "p.q:C", "/soc/x@1"),
        ("./my/dev.py:T@/soc/x@1", "./my/dev.py:T", "/soc/x@1"),
        ("/home/me@/dev.py:T@/soc/x@1", "/home/me@/dev.py:T", "/soc/x@1"),
        ("/home/me@/dev.py:T", "/home/me@/dev.py:T", None),
        ("/home/me@/dev.py:T@6:d.0", "/home/me@/dev.py:T", "0000:06:0d.0"),
    ],
)
def test_the_address_may_be_a_path(text: str, model: str, address: str | None) -> None:
    dev = parse_device(text)
    assert (dev.model, dev.address) == (model, address)


def test_the_driver_follows_the_bus() -> None:
    assert parse_device(TIMER).driver == "vfio-platform"
    assert parse_device("edu").driver == "vfio-pci"
    assert DeviceSpec("timer", NODE).bus == "platform"
    assert DeviceSpec("edu").bus == "pci"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{TIMER},driver=vfio-pci", "driver 'vfio-pci' does not take devices of the platform bus"),
        ("edu,driver=vfio-platform", "'vfio-platform' does not take devices of the pci bus"),
        (f"{TIMER},driver=", "driver is not a driver's name"),
        ("timer@/soc//x", "address '/soc//x' is not the path of a device tree node"),
        ("@/soc/x", "model is empty"),
        (f"{TIMER},iommu=slow", "iommu 'slow' is not an IOMMU of the machine"),
    ],
)
def test_wrong_strings(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        MachineSpec(devices=(parse_device(text),))
    assert says in str(error.value)
    assert str(error.value).startswith(f"-d {text!r}: ")


def test_a_string_is_enough() -> None:
    machine = Machine(devices=[f"{TIMER},group=3,period=5", "timer@/soc/timer@10012000"])
    first, second = (machine.device(name) for name in (NAME, "10012000.timer"))
    assert isinstance(first, Timer)
    assert isinstance(second, Timer)
    assert (first.group, first.period, first.path) == (3, 5, NODE)
    assert [(r.origin.path, r.address) for r in first.regions] == [
        (NODE, 0x10010000),
        (f"{NODE}/log@10011000", 0x10011000),
    ]
    assert [line.number for line in (*first.interrupts, *second.interrupts)] == [32, 33, 34, 35]


# -- files ---------------------------------------------------------------------------------------


def test_a_file() -> None:
    machine = machine_of(TREE)
    (slot,) = machine.slots
    assert (slot.address, slot.spec.address, slot.driver) == (NAME, NODE, "vfio-platform")
    timer = slot.device
    assert isinstance(timer, Timer)
    assert (timer.group, timer.period) == (3, 7)
    assert [(r.address, r.size, str(r.origin)) for r in timer.regions] == [
        (0x10010000, 0x1000, f"{NODE} reg[0]"),
        (0x10020000, 0x1000, f"{LOG} reg[0]"),
    ]
    assert [(i.number, i.level, str(i.origin)) for i in timer.interrupts] == [
        (5, True, f"{NODE} interrupts[0]"),
        (6, False, f"{LOG} interrupts[0]"),
    ]


def test_resources_come_in_tree_order() -> None:
    text = """
[device_tree."/bus/t@1/b/c@7"]
reg = [[7, 4096]]
[device_tree."/bus/t@1/a@5"]
reg = [[5, 4096], [6, 4096]]
[device_tree."/bus/t@1/b@3"]
reg = [[3, 4096]]
[device_tree."/bus/t@1/own@9"]
model = "y"
reg = [[9, 4096]]
[device_tree."/bus/t@1/own@9/x@8"]
reg = [[8, 4096]]
[device_tree."/bus/t@1"]
model = "x"
reg = [[1, 4096], [2, 4096]]
[device_tree."/bus"]
[device_tree."/bus/t@1/b"]
reg = [[4, 4096]]
"""
    first, second = parse(text.encode(), "m.toml").devices
    assert first.resources is not None
    assert second.resources is not None
    assert [(first.model, first.address), (second.model, second.address)] == [
        ("x", "/bus/t@1"),
        ("y", "/bus/t@1/own@9"),
    ]
    # its own node first; then below: b (named first, as part of a path) with c, a, b@3
    assert [r.address for r in first.resources.regions] == [1, 2, 4, 7, 5, 6, 3]
    assert [r.address for r in second.resources.regions] == [9, 8]
    assert [(r.origin.path, r.origin.entry) for r in first.resources.regions[3:6]] == [
        ("/bus/t@1/b/c@7", 0),
        ("/bus/t@1/a@5", 0),
        ("/bus/t@1/a@5", 1),
    ]


def test_the_example() -> None:
    machine = Machine(load(str(SOC)))
    assert [slot.address for slot in machine.slots] == [
        "0000:01:00.0",
        "10010000.timer",
        "10030000.timer",
    ]
    assert all(group.viable for group in machine.framework.groups)


def test_model_files_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "lamp.py").write_text(
        "from uvfio.kit.platform.model import PlatformModel\n"
        "class Lamp(PlatformModel):\n    compatible = ('acme,lamp',)\n"
    )
    path = tmp_path / "m.toml"
    path.write_text('[device_tree."/lamp"]\nmodel = "lamp.py:Lamp"\n')
    assert [slot.address for slot in Machine(load(str(path))).slots] == ["lamp"]


def node(path: str, *lines: str) -> str:
    return "\n".join([f'[device_tree."{path}"]', *lines])


MODEL = 'model = "timer"'
REG = 'reg = [["0x10010000", "0x1000"]]'
REG2 = 'reg = [["0x10010000", "0x1000"], ["0x10020000", "0x1000"]]'
IRQ2 = 'interrupts = [[5, "level"], [6, "edge"]]'
WHERE = f'm.toml: device_tree."{NODE}"'


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        (node(NODE, MODEL, "grp = 1"), f"{WHERE}.grp = 1: unknown key", "did you mean group?"),
        (node(NODE, MODEL, "group = 'x'"), f"{WHERE}.group = 'x': expected int, got str", ""),
        (node(NODE, MODEL, "reg = [['1']]"), f"{WHERE}.reg[0] = ['1']: expected", ""),
        (node(NODE, MODEL, "reg = [['x', 1]]"), f"{WHERE}: reg[0] address 'x' is not a number", ""),
        (node(NODE, MODEL, "reg = [[1, '4X']]"), f"{WHERE}: reg[0] size '4X' is not a size", "4K"),
        (node(NODE, MODEL, "reg = [[1, 0]]"), f"{WHERE}: reg[0] 0x1+0x0 is not a range", ""),
        (
            node(NODE, MODEL, "reg = [[0, 1], ['0xffffffffffffffff', 2]]"),
            f"{WHERE}: reg[1] 0xffffffffffffffff+0x2 is not a range of 64-bit addresses",
            "",
        ),
        (
            node(NODE, MODEL, "interrupts = [[5, 'rising']]"),
            f"{WHERE}: interrupts[0] 'rising' is neither 'level' nor 'edge'",
            "",
        ),
        (node(NODE, MODEL, "interrupts = [[-1, 'edge']]"), "interrupts[0] -1 is out of range", ""),
        (
            node("/soc", MODEL, REG) + "\n" + node("soc/x", REG),
            'm.toml: device_tree."soc/x": the path does not begin with /',
            "",
        ),
        (node("/a//b", MODEL), "address '/a//b' is not the path", ""),
        (node(NODE, REG), f"{WHERE}: reg belongs to no device", "give this node a model"),
        (node(NODE, IRQ2), f"{WHERE}: interrupts belongs to no device", ""),
        (node(NODE, "group = 1"), f"{WHERE}: group = 1 is for devices", "the node with the model"),
        (
            node(NODE, MODEL, REG2, IRQ2) + "\n" + node(LOG, "driver = 'none'"),
            f"device_tree.\"{LOG}\": driver = 'none' is for devices, and this node has no model",
            "",
        ),
        (node(NODE, MODEL, "driver = '/'"), f"{WHERE}: driver '/' is not a driver's name", ""),
        (node(NODE, MODEL, "group = -1"), f"{WHERE}: group -1 is out of range", ""),
        (node(NODE, MODEL, "iommu = 'x'"), f"{WHERE}: iommu 'x' is not an IOMMU", "[iommu.x]"),
        ("device_tree = 1", "m.toml: device_tree = 1: expected object, got int", ""),
        ("[device_tree]\n'/a' = 1", 'm.toml: device_tree."/a" = 1: expected object, got int', ""),
        # what the model finds
        (node(NODE, MODEL), f"{WHERE}: reg: model Timer has 2 (regs, log), the node", ""),
        (node(NODE, MODEL, REG, IRQ2), f"{WHERE}: reg: model Timer has 2", ""),
        (node(NODE, MODEL, REG2), f"{WHERE}: interrupts: model Timer has 2", ""),
        (
            node(NODE, MODEL, REG, "interrupts = [[5, 'level']]")
            + "\n"
            + node(LOG, "reg = [['0x10020000', '0x800']]", "interrupts = [[5, 'edge']]"),
            f'm.toml: device_tree."{LOG}": reg[0] size 0x800 is too small: region 1 (log)',
            "",
        ),
        (
            node(NODE, MODEL, REG2, "interrupts = [[5, 'level'], [6, 'level']]"),
            f"{WHERE}: interrupts[1] 'level' does not fit: interrupt 1 (overflowed) of model Timer",
            "",
        ),
        (
            node(NODE, MODEL, REG2, IRQ2, "options = {perid = 1}"),
            "10010000.timer: Timer: perid 1 is not an option",
            "did you mean 'period'?",
        ),
        (
            node(NODE, "model = 'edu'", REG),
            f"{WHERE}: model 'edu' is a PCI function, {NODE} a node",
            "SSSS:BB:DD.F",
        ),
        (
            "[[device]]\nmodel = 'timer'",
            "m.toml: device[0]: model 'timer' is a platform device and needs a node",
            "timer@/soc/device@10010000",
        ),
    ],
)
def test_mistakes_name_file_path_and_key(text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        machine_of(text)
    assert says in str(error.value)
    assert hint in error.value.hint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            node("/soc@1/timer@9", MODEL, REG2, IRQ2),
            "the device is called 10010000.timer, as the one",
        ),
        (
            node("/x@1", MODEL, 'reg = [["0x2000", "0x1000"], ["0x10020800", "0x1000"]]', IRQ2),
            'm.toml: device_tree."/x@1": reg[1] 0x10020800+0x1000 overlaps 0x10020000+0x1000 of '
            + LOG,
        ),
        (
            "[[device]]\nmodel = 'timer'\naddress = '/soc/timer@10010000'",
            "address '/soc/timer@10010000' is where m.toml: device[0] is",
        ),
    ],
)
def test_devices_that_cannot_be_together(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        machine_of(TREE + text)
    assert says in str(error.value)


# -- the machine ---------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Machine:
    return Machine(devices=["edu@6:d.0,group=3", f"{TIMER},group=3", "timer@/t@1000,group=4"])


def test_a_device_is_found_by_name_and_by_path(machine: Machine) -> None:
    assert machine.slot(NAME) is machine.slot(NODE)
    assert machine.record(NODE).name == NAME
    for address in ("/soc/timer", "/t@2000"):
        with pytest.raises(NoSuchDevice, match=f"has no device {address}"):
            machine.slot(address)
    with pytest.raises(ConfigError, match="is not a PCI address"):
        machine.slot("10020000.timer")
    with pytest.raises(NoSuchDevice, match=r"10010000\.timer is no PCI function"):
        machine.function(NAME)


def test_plug_and_unplug(machine: Machine) -> None:
    before = state(machine)
    slot = machine.plug("timer@/u@9000,period=3")
    assert (slot.address, slot.device.group, slot.driver) == ("9000.u", 0, "vfio-platform")
    machine.unplug("/u@9000")
    assert state(machine) == before
    machine.unplug(NODE)
    machine.plug(TIMER)
    machine.close()
    assert machine.framework.groups == ()
    assert machine.store.devices == ()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "device",
    [
        TIMER,  # the path is taken
        "timer@/other/timer@10010000",  # the name is
        "timer@/x@10011000",  # the region is
        "timer@/x@5000,period=no",
        "timer@/x@5000,driver=/",
        "timer@/x@5000,iommu=other",
        "timer@/x",
        "timer",
        "edu@/x@5000",
        "nothing@/x@5000",
    ],
)
def test_a_refused_plug_leaves_no_trace(machine: Machine, device: str) -> None:
    before = state(machine)
    with pytest.raises(VfioError):
        machine.plug(device)
    assert state(machine) == before
    machine.plug("timer@/x@5000")


def test_drivers(machine: Machine) -> None:
    machine.unbind(NAME)
    assert not machine.framework.group("platform", 3).viable
    assert machine.framework.group("pci", 3).viable
    before = state(machine)
    for driver in ("vfio-pci", "none"):
        with pytest.raises(InvalidArgument):
            machine.bind(NAME, driver)
    machine.unbind("6:d.0")
    with pytest.raises(
        InvalidArgument, match=r"^0000:06:0d\.0: driver 'vfio-platform' does not take"
    ):
        machine.bind("6:d.0", "vfio-platform")
    machine.bind("6:d.0")
    assert state(machine) == before
    machine.bind(NAME, "sp804")
    with pytest.raises(Busy):
        machine.bind(NODE)
    assert not machine.framework.group("platform", 3).viable
    machine.unbind(NAME)
    machine.bind(NODE)
    assert machine.slot(NAME).driver == "vfio-platform"
    assert machine.record(NAME).bound


def test_groups_of_two_buses_may_have_one_number(machine: Machine) -> None:
    names = {(group.bus, group.number): str(group) for group in machine.framework.groups}
    assert names == {("pci", 3): "3", ("platform", 3): "platform:3", ("platform", 4): "4"}
    me = Process(machine)
    for path, device in (("/dev/vfio/3", "0000:06:0d.0"), ("/dev/vfio/platform:3", NAME)):
        me.ioctl(me.open(path), rfc.VFIO_GROUP_GET_DEVICE_FD, device)
    reverse = Machine(devices=[f"{TIMER},group=3", "edu@6:d.0,group=3"])
    assert {str(group) for group in reverse.framework.groups} == {"3", "pci:3"}


def test_free_numbers_are_free_on_every_bus() -> None:
    spec = MachineSpec(
        devices=(parse_device("timer@/a@0"), parse_device("edu"), parse_device(TIMER))
    )
    assert [dev.group for dev in spec.devices] == [0, 1, 2]


def open_timer(
    machine: Machine, name: str = NAME, group: str = "platform:3"
) -> tuple[Process, int, int]:
    me = Process(machine)
    fd = me.open(f"/dev/vfio/{group}")
    return me, fd, me.ioctl(fd, rfc.VFIO_GROUP_GET_DEVICE_FD, name)


@pytest.mark.parametrize("name", [NAME, NODE])
def test_a_program_uses_it(machine: Machine, name: str) -> None:
    me, _, timer = open_timer(machine, name)
    flags = bytearray(8)
    me.ioctl(timer, rfc.VFIO_DEVICE_GET_FLAGS, flags)
    assert rfc.U64.unpack(flags) == (rfc.VFIO_DEVICE_FLAGS_DT | rfc.VFIO_DEVICE_FLAGS_RESET,)
    assert me.pread(timer, 4, 0) == b"TIME"
    event = me.eventfd()
    me.ioctl(timer, rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS, b"".join(map(rfc.S32.pack, (0, 1, event))))
    me.pwrite(timer, (3).to_bytes(4, "little"), 0x0C)
    machine.clock.advance(0.0015)  # type: ignore[attr-defined]
    assert me.event(event).take() == 1
    log = me.mmap(timer, 4096, 1 << rfc.VFIO_REGION_SHIFT)
    assert log[0] == 1
    buffer = me.memory.allocate(64)
    me.ioctl(timer, rfc.VFIO_DEVICE_GET_DTPATH, rfc.DTPATH.pack(24, 1, 1, buffer))
    assert me.memory.read(buffer, 64).split(b"\0")[0] == f"{NODE}/log@10011000".encode()
    me.exit()
    device = machine.device(NAME)
    assert isinstance(device, Timer)
    assert device.read(0, 0x0C, 4) == 0


def test_groups_of_two_buses_cannot_be_merged(machine: Machine) -> None:
    me = Process(machine)
    pci, platform = me.open("/dev/vfio/3"), me.open("/dev/vfio/platform:3")
    other = me.open("/dev/vfio/4")
    before = state(machine)
    for one, two in ((pci, platform), (platform, pci)):
        with pytest.raises(OSError, match="is on bus") as error:
            me.ioctl(one, rfc.VFIO_GROUP_MERGE, rfc.S32.pack(two))
        assert error.value.errno == errno.EINVAL
        assert state(machine) == before
    me.ioctl(platform, rfc.VFIO_GROUP_MERGE, rfc.S32.pack(other))
    for name in (NAME, "1000.t"):
        me.ioctl(other, rfc.VFIO_GROUP_GET_DEVICE_FD, name)


def test_a_device_plugged_into_a_group_in_use_goes_to_vfio(machine: Machine) -> None:
    me, group, _ = open_timer(machine)
    slot = machine.plug("timer@/x@5000,group=3,driver=sp804")
    assert slot.driver == "vfio-platform"
    assert me.ioctl(group, rfc.VFIO_GROUP_GET_DEVICE_FD, "/x@5000") > 0


def test_revoked_memory_is_not_given_to_the_next(machine: Machine) -> None:
    me, _, timer = open_timer(machine)
    old = me.mmap(timer, 4096, 1 << rfc.VFIO_REGION_SHIFT)
    with pytest.raises(Busy):
        machine.unbind(NAME, timeout=0)
    machine.unbind(NAME, revoke=True)
    with pytest.raises(Gone):
        me.pread(timer, 4, 0)
    machine.bind(NAME)
    old[0] = 0xFF
    you, _, timer = open_timer(machine)
    assert you.mmap(timer, 4096, 1 << rfc.VFIO_REGION_SHIFT)[0] == 0


# -- what it shows -------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", ["2011", "mainline"])
def test_files(machine: Machine, abi: str) -> None:
    tree = nodes(machine, abi)
    folder = f"/sys/bus/platform/devices/{NAME}"
    seen: set[str] = set()
    for path, node_ in tree.items():
        assert any(path.encode() == p or path.encode().startswith(p + b"/") for p in PREFIXES)
        parent = posixpath.dirname(path)
        assert path.encode() in PREFIXES or parent in seen, f"{parent} comes after {path}"
        seen.add(path)
        if isinstance(node_, Link):
            target = posixpath.normpath(f"{parent}/{node_.target}")
            assert isinstance(tree[target], Directory), path
    group = tree[f"{folder}/iommu_group"]
    if abi == "2011":
        assert group == Text(b"platform:3\n")
    else:
        assert group == Link("../../../../kernel/iommu_groups/platform:3")
    assert isinstance(tree["/dev/vfio/platform:3"], CharDev)
    assert tree[f"/sys/kernel/iommu_groups/platform:3/devices/{NAME}"] == Link(
        f"../../../../bus/platform/devices/{NAME}"
    )
    assert f"/sys/bus/platform/drivers/vfio-platform/{NAME}" in tree
    at = f"{folder}/of_node"
    assert tree[f"{at}/name"] == Text(b"timer\0")
    assert tree[f"{at}/compatible"] == Text(b"uvfio,timer-1.0\0uvfio,timer\0")
    assert tree[f"{at}/reg"] == Text(bytes.fromhex("00000000100100000000000000001000"))
    assert tree[f"{at}/interrupts"] == Text(bytes.fromhex("0000002000000004"))
    below = f"{at}/log@10011000"
    assert tree[f"{below}/reg"] == Text(bytes.fromhex("00000000100110000000000000001000"))
    assert tree[f"{below}/interrupts"] == Text(bytes.fromhex("0000002100000001"))


def test_files_of_an_unbound_device(machine: Machine) -> None:
    machine.unbind(NAME)
    folder = f"/sys/bus/platform/devices/{NAME}"
    tree = nodes(machine)
    assert f"{folder}/driver" not in tree
    uevent = tree[f"{folder}/uevent"]
    assert isinstance(uevent, Text)
    assert uevent.data.startswith(b"OF_NAME=timer\nOF_FULLNAME=/soc/timer@10010000\n")
    machine.bind(NAME, "sp804")
    assert nodes(machine)[f"{folder}/driver"] == Link("../../../../bus/platform/drivers/sp804")


def test_nodes_between_are_folders_too() -> None:
    text = node(NODE, MODEL, REG, IRQ2) + "\n" + node(f"{NODE}/a/b@5", 'reg = [[0, "4K"]]')
    tree = nodes(machine_of(text))
    at = f"/sys/bus/platform/devices/{NAME}/of_node"
    assert isinstance(tree[f"{at}/a"], Directory)
    assert f"{at}/a/reg" not in tree
    assert f"{at}/a/b@5/reg" in tree


def test_describe(machine: Machine) -> None:
    about = machine.describe()
    (device,) = [dev for dev in about["devices"] if dev["address"] == NAME]
    assert device == {
        "address": NAME,
        "bus": "platform",
        "model": "timer",
        "options": {},
        "group": 3,
        "driver": "vfio-platform",
        "bound": True,
        "open_files": 0,
        "node": NODE,
        "compatible": ["uvfio,timer-1.0", "uvfio,timer"],
        "resources": [
            {
                "index": 0,
                "kind": "registers",
                "start": 0x10010000,
                "size": 4096,
                "prefetchable": False,
                "mappable": False,
                "mapping": "",
                "node": NODE,
                "property": "reg",
                "entry": 0,
            },
            {
                "index": 1,
                "kind": "memory",
                "start": 0x10011000,
                "size": 4096,
                "prefetchable": False,
                "mappable": True,
                "mapping": "memory",
                "node": f"{NODE}/log@10011000",
                "property": "reg",
                "entry": 0,
            },
        ],
        "interrupt_lines": [
            {
                "index": 0,
                "number": 32,
                "trigger": "level",
                "node": NODE,
                "property": "interrupts",
                "entry": 0,
            },
            {
                "index": 1,
                "number": 33,
                "trigger": "edge",
                "node": f"{NODE}/log@10011000",
                "property": "interrupts",
                "entry": 0,
            },
        ],
        "reset_methods": ["device"],
        "statistics": {},
        "mistake": None,
        "iommu": "iommu0",
    }
    assert {dev["bus"] for dev in about["devices"]} == {"pci", "platform"}
    groups = [(g["bus"], g["number"], g["node"], g["devices"]) for g in about["groups"]]
    assert ("platform", 3, "/dev/vfio/platform:3", [NAME]) in groups


def test_a_machine_without_them_imports_nothing_for_them() -> None:
    code = (
        "import sys; from uvfio.machine.machine import Machine; from uvfio.machine.sysfs.tree import nodes;"
        "machine = Machine(); nodes(machine); machine.describe(); machine.close();"
        "print([m for m in sys.modules if 'platform' in m and m.startswith('uvfio')"
        " or m in ('uvfio.machine.device_tree', 'uvfio.kit.platform.region', 'uvfio.fops.rfc2011.device_tree')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
