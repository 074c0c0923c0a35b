"""A machine in JSON values: which keys there are, and that they are JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.author import Author
from support.mainline import Desk
from uvfio.machine.machine import Machine

PF, EDU, TIMER = "0000:06:00.0", "0000:08:00.0", "10010000.timer"
PCI = {
    *("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision"),
    *("config_size", "resources", "capabilities", "interrupts", "reset_methods"),
    *("physfn", "sriov"),
}
PLATFORM = {"node", "compatible", "resources", "interrupt_lines", "reset_methods"}
ALL = {
    *("address", "bus", "model", "options", "group", "driver", "bound", "open_files", "iommu"),
    *("statistics", "mistake"),
}


def machine() -> Machine:
    return Machine(
        devices=[
            f"exerciser@{PF},vfs=2,numvfs=1",
            f"edu@{EDU},driver=none,group=9",
            "timer@/soc/timer@10010000,group=2",
        ]
    )


def devices(made: Machine) -> dict[str, dict[str, object]]:
    return {device["address"]: device for device in made.describe()["devices"]}


def test_it_is_json() -> None:
    described = machine().describe()
    assert json.loads(json.dumps(described)) == described
    assert set(described) == {"iommu", "iommus", "groups", "devices"}
    assert described["iommu"] == described["iommus"][0]


def test_the_bus_says_which_keys_a_device_has() -> None:
    found = devices(machine())
    assert set(found[EDU]) == ALL | PCI
    assert set(found[TIMER]) == ALL | PLATFORM
    assert found[EDU]["driver"] is None
    assert (found[TIMER]["bus"], found[TIMER]["iommu"]) == ("platform", "iommu0")


def test_physical_and_virtual_functions_name_each_other() -> None:
    found = devices(machine())
    (virtual,) = (address for address, device in found.items() if device.get("physfn"))
    assert found[virtual]["physfn"] == PF
    assert found[virtual]["sriov"] is None
    sriov = found[PF]["sriov"]
    assert isinstance(sriov, dict)
    assert (sriov["totalvfs"], sriov["numvfs"], sriov["vfs"]) == (2, 1, [virtual])


def test_a_group_says_why_it_is_not_viable() -> None:
    groups = {group["number"]: group for group in machine().describe()["groups"]}
    assert (groups[9]["viable"], groups[9]["devices"]) == (False, [EDU])
    assert EDU in groups[9]["not_viable_because"]
    assert groups[2]["not_viable_because"] is None
    assert groups[2]["bus"] == "platform"


def test_it_follows_what_programs_do() -> None:
    desk = Desk()
    before = desk.machine.describe()
    fd = desk.me.open(f"/dev/vfio/{desk.machine.describe()['groups'][0]['number']}")
    assert desk.machine.describe()["groups"][0]["open"]
    desk.me.close(fd)
    assert desk.machine.describe() == before


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ArithmeticError('odd')", "statistics() failed: ArithmeticError: odd"),
        ("raise type('Odd', (BaseException,), {})", "statistics() failed: Odd"),
        ("raise InvalidArgument('no cable')", "statistics() failed: InvalidArgument: no cable"),
        ("sys.exit(0)", "statistics() failed: SystemExit"),
        ("return {'frames': {1}}", "statistics() failed: TypeError"),
        ("return None", "statistics() failed: TypeError"),
    ],
)
def test_statistics_that_fail_hide_no_other_device(tmp_path: Path, body: str, says: str) -> None:
    spec = Author(tmp_path / "mine.py").write(
        f"class M(PciModel):\n  vendor_id, device_id = 1, 2\n  def statistics(self): {body}"
    )
    found = devices(Machine(devices=[f"{spec}@{PF}", f"edu@{EDU}"]))
    assert found[PF]["statistics"] == {}
    assert says in str(found[PF]["mistake"])
    assert found[EDU]["mistake"] is None
