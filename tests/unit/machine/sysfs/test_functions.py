"""The files of a PCI function that are more than its identity."""

from __future__ import annotations

import pytest

from support.mainline import ALONE, CONFIG, Desk
from uvfio.core.waiting import Wait
from uvfio.errors import Busy, InvalidArgument
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs import functions as function_files
from uvfio.machine.sysfs.attributes import Bound, find
from uvfio.uapi import pci

EDU, FOREIGN = "0000:00:05.0", "0000:00:06.0"


@pytest.fixture
def machine() -> Machine:
    return Machine(devices=[f"edu@{EDU},driver=none", f"exerciser@{FOREIGN},driver=nvme"])


def file(machine: Machine, name: str, address: str = EDU) -> Bound:
    found = find(machine, f"/sys/bus/pci/devices/{address}/{name}")
    assert found is not None, name
    return found


def show(machine: Machine, name: str, address: str = EDU) -> str:
    return file(machine, name, address).text().decode().rstrip("\n")


def store(machine: Machine, name: str, text: str, address: str = EDU) -> Wait | None:
    taken, wait = file(machine, name, address).write(0, text.encode())
    assert taken == len(text)
    return wait


def test_configuration_space_is_read_and_written_in_place(machine: Machine) -> None:
    config = file(machine, "config")
    assert config.positioned
    assert config.read(0, 4) == b"\x34\x12\xe8\x11"
    assert len(config.read(0, 9999)) == 256
    assert config.read(250, 16) == config.read(250, 6)
    assert config.read(256, 4) == b""
    assert config.write(pci.PCI_COMMAND, b"\x06\x00") == (2, None)
    assert machine.function(EDU).config_read(pci.PCI_COMMAND, 2) == 6
    assert config.write(pci.PCI_CACHE_LINE_SIZE, b"\x10") == (1, None)
    assert config.write(255, b"\0\0\0") == (1, None)
    assert config.write(256, b"x") == (0, None)
    before = config.read(0, 256)
    assert config.write(1, b"\xff\xff\xff") == (3, None)
    assert config.read(0, 4) == before[:4], "an id cannot be written"


def test_an_unaligned_write_is_taken_apart(machine: Machine) -> None:
    config = file(machine, "config")
    low = pci.PCI_BASE_ADDRESS_0 + 3
    assert config.write(low, b"\xab\x00\x00\x00\x00") == (5, None)
    assert config.read(low, 1) == b"\xab"


def test_enable_counts(machine: Machine) -> None:
    function = machine.function(EDU)
    function.config_write(pci.PCI_COMMAND, pci.PCI_COMMAND_MASTER, 2)
    assert show(machine, "enable") == "0"
    with pytest.raises(InvalidArgument) as caught:
        store(machine, "enable", "0")
    assert caught.value.errno == 5
    for count in ("1", "2"):
        store(machine, "enable", "1")
        assert show(machine, "enable") == count
    assert function.config_read(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_MEMORY
    store(machine, "enable", "0")
    assert function.config_read(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_MASTER
    store(machine, "enable", "0")
    assert not function.config_read(pci.PCI_COMMAND, 2) & pci.PCI_COMMAND_MASTER
    assert show(machine, "enable", FOREIGN) == "1"
    with pytest.raises(Busy):
        store(machine, "enable", "1", FOREIGN)


def test_vfio_enables_while_the_device_is_open() -> None:
    desk = Desk()
    assert show(desk.machine, "enable", ALONE) == "0"
    container, group, device = desk.ready()
    assert show(desk.machine, "enable", ALONE) == "1"
    for fd in (device, group, container):
        desk.me.close(fd)
    assert show(desk.machine, "enable", ALONE) == "0"


def test_reset_is_there_where_it_is_possible(machine: Machine) -> None:
    assert find(machine, f"/sys/bus/pci/devices/{EDU}/reset") is None
    assert show(machine, "reset_method", FOREIGN).split() == list(
        machine.function(FOREIGN).reset_methods
    )
    for text in ("0", "2"):
        with pytest.raises(InvalidArgument):
            store(machine, "reset", text, FOREIGN)


def test_a_reset_keeps_what_the_host_set_up() -> None:
    desk = Desk()
    _, _, device = desk.ready()
    bar = desk.machine.function(ALONE).config_read(pci.PCI_BASE_ADDRESS_0, 4)
    desk.me.pwrite(device, b"\x06\x00", CONFIG + pci.PCI_COMMAND)
    store(desk.machine, "reset", "1", ALONE)
    assert desk.machine.function(ALONE).config_read(pci.PCI_BASE_ADDRESS_0, 4) == bar
    assert desk.config(device, pci.PCI_COMMAND) & 6 == 6


def test_removing_waits_for_the_user_of_the_device() -> None:
    desk = Desk()
    _, _, device = desk.ready()
    wait = store(desk.machine, "remove", "1", ALONE)
    assert wait is not None
    assert not wait.poll()
    assert 0 < wait.delay() <= 10
    desk.me.close(device)
    assert wait.poll()
    assert ALONE not in [slot.address for slot in desk.machine.slots]
    desk.machine.binding.rescan()
    assert desk.machine.slot(ALONE).driver == "vfio-pci"


def test_removing_a_device_of_nobody(machine: Machine) -> None:
    assert store(machine, "remove", "1") is None
    assert store(machine, "remove", "1", FOREIGN) is None
    assert machine.slots == ()


def test_numa_node(machine: Machine) -> None:
    assert show(machine, "numa_node") == "-1"
    store(machine, "numa_node", "0\n")
    assert show(machine, "numa_node") == "0"
    for text in ("1", "-2", "x"):
        with pytest.raises(InvalidArgument):
            store(machine, "numa_node", text)
    store(machine, "numa_node", "-1")
    assert show(machine, "numa_node") == "-1"


def test_flags_are_remembered(machine: Machine) -> None:
    for name, default in (("msi_bus", "1"), ("broken_parity_status", "0"), ("d3cold_allowed", "1")):
        assert show(machine, name) == default
        store(machine, name, "7")
        assert show(machine, name) == "1"
        store(machine, name, "0")
        assert show(machine, name) == "0"
        assert show(machine, name, FOREIGN) == default


def test_power_state(machine: Machine) -> None:
    assert show(machine, "power_state") == "unknown"
    store(machine, "enable", "1")
    assert show(machine, "power_state") == "D0"
    function = machine.function(FOREIGN)
    at = function_files._capability(function, pci.PCI_CAP_ID_PM) + pci.PCI_PM_CTRL
    assert show(machine, "power_state", FOREIGN) == "D0"
    function.config_write(at, 3, 2)
    assert show(machine, "power_state", FOREIGN) == "D3hot"


@pytest.mark.parametrize(
    ("count", "mask", "words"),
    [(1, "1", "0"), (2, "3", "0-1"), (32, "ffffffff", "0-31"), (36, "f,ffffffff", "0-35")],
)
def test_processors(machine: Machine, count: int, mask: str, words: str) -> None:
    machine.processors = count
    assert show(machine, "local_cpus") == mask
    assert show(machine, "local_cpulist") == words


def test_links_of_express_functions(machine: Machine) -> None:
    assert find(machine, f"/sys/bus/pci/devices/{EDU}/max_link_speed") is None
    for kind in ("max", "current"):
        assert show(machine, f"{kind}_link_speed", FOREIGN) == "8.0 GT/s PCIe"
        assert show(machine, f"{kind}_link_width", FOREIGN) == "4"
