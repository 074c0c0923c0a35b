"""The files of physical functions in sysfs."""

from __future__ import annotations

import pytest

from uvfio.errors import Busy, InvalidArgument, VfioError
from uvfio.machine.facts import identity
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs import sriov as sriov_files
from uvfio.machine.sysfs.attributes import Bound, find, shown

PF, PLAIN = "0000:06:00.0", "0000:07:00.0"
FOLDER = "/sys/bus/pci/devices"


@pytest.fixture
def machine() -> Machine:
    return Machine(devices=[f"exerciser@{PF},vfs=4", f"edu@{PLAIN},group=1"])


def file(machine: Machine, name: str, address: str = PF) -> Bound:
    found = find(machine, f"{FOLDER}/{address}/{name}")
    assert found is not None, name
    return found


def show(machine: Machine, name: str) -> str:
    return file(machine, name).text().decode().rstrip("\n")


def store(machine: Machine, name: str, text: str) -> None:
    """A write, and all that it waits for."""
    taken, wait = file(machine, name).write(0, text.encode())
    assert taken == len(text)
    assert wait is None or wait.poll()


def test_only_physical_functions_have_them(machine: Machine) -> None:
    store(machine, "sriov_numvfs", "1")
    names = {bound.path.rpartition("/")[2] for bound in shown(machine, f"{FOLDER}/*", PF)}
    ours = {name for name in names if name.startswith("sriov_")}
    assert ours == {
        *("sriov_totalvfs", "sriov_numvfs", "sriov_offset", "sriov_stride"),
        *("sriov_vf_device", "sriov_drivers_autoprobe"),
    }
    virtual = machine.slot(PF).virtual[0].address
    assert sriov_files.physical(machine, PF)
    for address in (PLAIN, virtual):
        assert not sriov_files.physical(machine, address)
        assert all(find(machine, f"{FOLDER}/{address}/{name}") is None for name in ours)


def test_what_they_say(machine: Machine) -> None:
    assert show(machine, "sriov_totalvfs") == "4"
    assert show(machine, "sriov_numvfs") == "0"
    first, stride = int(show(machine, "sriov_offset")), int(show(machine, "sriov_stride"))
    store(machine, "sriov_numvfs", "2\n")
    assert show(machine, "sriov_numvfs") == "2"
    virtual = [slot.function for slot in machine.slot(PF).virtual]
    where = [
        int(f.name[5:7], 16) << 8 | int(f.name[8:10], 16) << 3 | int(f.name[11]) for f in virtual
    ]
    assert where == [0x600 + first, 0x600 + first + stride]
    assert int(show(machine, "sriov_vf_device"), 16) == identity(virtual[0]).device


def test_which_can_be_written(machine: Machine) -> None:
    assert file(machine, "sriov_totalvfs").mode == 0o444
    assert (
        file(machine, "sriov_numvfs").mode == file(machine, "sriov_drivers_autoprobe").mode == 0o644
    )


@pytest.mark.parametrize(
    ("text", "number"), [("x", 22), ("-1", 22), ("", 22), ("65536", 22), ("5", 34), ("1" * 30, 22)]
)
def test_no_number_of_virtual_functions(machine: Machine, text: str, number: int) -> None:
    before = machine.describe()
    bound = file(machine, "sriov_numvfs")
    with pytest.raises(VfioError) as caught:
        bound.attribute.store(machine, PF, text)  # type: ignore[misc]
    assert caught.value.errno == number
    assert machine.describe() == before


def test_another_number_only_by_way_of_0(machine: Machine) -> None:
    store(machine, "sriov_numvfs", "0x2")
    with pytest.raises(Busy):
        store(machine, "sriov_numvfs", "3")
    assert show(machine, "sriov_numvfs") == "2"
    store(machine, "sriov_numvfs", "0")
    store(machine, "sriov_numvfs", "3")
    assert show(machine, "sriov_numvfs") == "3"


def test_autoprobe_is_remembered(machine: Machine) -> None:
    assert show(machine, "sriov_drivers_autoprobe") == "1"
    store(machine, "sriov_drivers_autoprobe", "N\n")
    assert show(machine, "sriov_drivers_autoprobe") == "0"
    with pytest.raises(InvalidArgument):
        store(machine, "sriov_drivers_autoprobe", "maybe")
    assert show(machine, "sriov_drivers_autoprobe") == "0"
