"""What an open of a device node makes, for each ABI."""

from __future__ import annotations

import errno

import pytest

from uvfio.core.structure.claim import claim_for
from uvfio.doors.local import Process
from uvfio.errors import NoSuchGroup
from uvfio.machine.machine import Machine

EVERY = ("2011", "mainline", "auto")


@pytest.mark.parametrize("abi", EVERY)
@pytest.mark.parametrize(
    ("path", "kind", "only_mainline"),
    [
        ("/dev/vfio/240", "group", False),
        ("/dev/vfio/vfio", "container", True),
        ("/dev/iommu", "iommufd", True),
        ("/dev/vfio/devices/vfio0", "device", True),
    ],
)
def test_kinds_of_files(abi: str, path: str, kind: str, only_mainline: bool) -> None:
    machine = Machine()
    task = Process(machine, abi=abi)
    if only_mainline and abi == "2011":
        with pytest.raises(NoSuchGroup) as refused:
            machine.open(path, task, abi)
        assert refused.value.errno == errno.ENOENT
        assert not task.mm.abi
        return
    file = machine.open(path, task, abi)
    assert file.kind == kind
    assert task.mm.abi == ("mainline" if kind in ("container", "iommufd") else "")
    file.release()


def test_containers_and_iommufds_know_who_opened_them() -> None:
    """So that a status can name a process, although nobody owns the context of a mainline program."""
    machine = Machine()
    tasks = [Process(machine, abi="mainline") for _ in range(2)]
    for task, path in zip(tasks, ("/dev/vfio/vfio", "/dev/iommu"), strict=True):
        task.mm.name = f"opener of {path}"
    container = machine.open("/dev/vfio/vfio", tasks[0], "mainline").container
    context = machine.open("/dev/iommu", tasks[1], "mainline").context
    assert container is not None
    assert context is not None
    assert container.holder == "opener of /dev/vfio/vfio"
    group = machine.framework.group("pci", 240)
    assert claim_for(context, group, allow_unsafe=True).holder == "opener of /dev/iommu"


@pytest.mark.parametrize("abi", EVERY)
@pytest.mark.parametrize("path", ["/dev/vfio/1", "/dev/vfio", "/dev/vfio/devices/vfio9", "", "240"])
def test_no_node_is_enoent_and_opens_nothing(abi: str, path: str) -> None:
    machine = Machine()
    with pytest.raises(NoSuchGroup) as refused:
        machine.open(path, Process(machine, abi=abi), abi)
    assert refused.value.errno == errno.ENOENT
    assert not any(group.is_open for group in machine.framework.groups)
