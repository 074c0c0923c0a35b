"""The files of buses and drivers: what a write to each means."""

from __future__ import annotations

import pytest

from uvfio.errors import InvalidArgument, NoSuchDevice
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs import tree
from uvfio.machine.sysfs.attributes import find

A, TIMER = "0000:00:05.0", "10010000.timer"


@pytest.fixture
def machine() -> Machine:
    return Machine(devices=[f"edu@{A},group=5", "timer@/soc/timer@10010000,group=1"])


def write(machine: Machine, path: str, text: str) -> None:
    bound = find(machine, path)
    assert bound is not None, path
    bound.check_open(reads=False, writes=True)
    assert bound.write(0, text.encode()) == (len(text), None)


def text(machine: Machine, path: str) -> str:
    bound = find(machine, path)
    assert bound is not None, path
    return bound.text().decode()


@pytest.mark.parametrize(("bus", "name"), [("pci", A), ("platform", TIMER)])
def test_a_device_changes_hands(machine: Machine, bus: str, name: str) -> None:
    root, driver = f"/sys/bus/{bus}", f"vfio-{bus}"
    write(machine, f"{root}/drivers/{driver}/unbind", f"{name}\n")
    assert f"{root}/devices/{name}/driver" not in tree.nodes(machine)
    assert "DRIVER" not in text(machine, f"{root}/devices/{name}/uevent")
    write(machine, f"{root}/devices/{name}/driver_override", "hugo\n")
    assert text(machine, f"{root}/devices/{name}/driver_override") == "hugo\n"
    with pytest.raises(NoSuchDevice):
        write(machine, f"{root}/drivers/{driver}/bind", name)
    write(machine, f"{root}/devices/{name}/driver_override", "\n")
    assert text(machine, f"{root}/devices/{name}/driver_override") == "(null)\n"
    write(machine, f"{root}/drivers_probe", name)
    assert text(machine, f"{root}/devices/{name}/uevent").startswith(f"DRIVER={driver}\n")
    with pytest.raises(NoSuchDevice):
        write(machine, f"{root}/drivers_probe", "nobody")


def test_autoprobe(machine: Machine) -> None:
    path = "/sys/bus/pci/drivers_autoprobe"
    assert text(machine, path) == "1\n"
    write(machine, path, "0")
    assert text(machine, path) == "0\n"
    assert text(machine, "/sys/bus/platform/drivers_autoprobe") == "1\n"


def test_uevents(machine: Machine) -> None:
    for path in (f"/sys/bus/pci/devices/{A}", "/sys/bus/pci", "/sys/bus/pci/drivers/vfio-pci"):
        write(machine, f"{path}/uevent", "change\n")
        write(machine, f"{path}/uevent", "add 12345678-1234-1234-1234-123456789abc A=1")
        with pytest.raises(InvalidArgument):
            write(machine, f"{path}/uevent", "explode")


def test_ids_and_rescan(machine: Machine) -> None:
    driver = "/sys/bus/pci/drivers/vfio-pci"
    write(machine, f"{driver}/new_id", "8086 1234")
    write(machine, f"{driver}/remove_id", "8086 1234")
    write(machine, f"{driver}/unbind", A)
    write(machine, f"/sys/bus/pci/devices/{A}/remove", "0")
    write(machine, f"/sys/bus/pci/devices/{A}/remove", "1")
    write(machine, "/sys/bus/pci/rescan", "0")
    assert len(machine.slots) == 1
    write(machine, "/sys/bus/pci/rescan", "1\n")
    assert machine.slot(A).driver == "vfio-pci"
