"""Files of sysfs that a run serves: which are, and what happens around a write."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uvfio.doors.run.handlers.attributes import Written, open_attribute
from uvfio.errors import InvalidArgument
from uvfio.fops.attribute import AttributeFile
from uvfio.machine import nodes
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs import attributes
from uvfio.machine.sysfs.attributes import Refused

EDU = "0000:08:00.0"
DEVICE = f"/sys/bus/pci/devices/{EDU}"


class Run:
    """What is needed of a supervisor; ``log`` says what was asked of it, in order."""

    def __init__(self) -> None:
        self.machine = Machine(devices=[f"edu@{EDU},group=1"])
        self.log: list[object] = []
        self.tree = SimpleNamespace(virtual=lambda real: real, renew=self._renew)

    def _renew(self, path: str, node: nodes.Text) -> None:
        self.log.append((path, node.data))

    def settle(self) -> None:
        self.log.append("settle")

    def refresh_tree(self) -> None:
        self.log.append("refresh")

    def open(self, path: str, flags: int) -> AttributeFile | None:
        found = SimpleNamespace(real=path)
        return open_attribute(cast("Any", self), cast("Any", found), flags)


@pytest.fixture
def run() -> Run:
    return Run()


def test_a_file_that_is_read_is_a_real_one_with_what_it_says_now(run: Run) -> None:
    path = f"{DEVICE}/driver_override"
    run.machine.binding.overrides[EDU] = "vfio-pci"
    assert run.open(path, os.O_RDONLY) is None
    assert run.log == [(path, b"vfio-pci\n")]


def test_other_files_are_not_its_business(run: Run) -> None:
    assert run.open(f"{DEVICE}/vendor", os.O_RDWR) is None
    assert run.log == []


def test_a_write_only_file_cannot_be_read(run: Run) -> None:
    with pytest.raises(Refused) as caught:
        run.open("/sys/bus/pci/drivers/vfio-pci/bind", os.O_RDONLY)
    assert caught.value.errno == 13
    assert run.log == []


def test_a_write_settles_what_was_closed_before_and_shows_its_effect(run: Run) -> None:
    file = run.open(f"{DEVICE}/driver_override", os.O_WRONLY)
    assert file is not None
    assert file.pwrite(cast("Any", None), b"nvme\n", 0) == 5
    assert run.machine.binding.overrides[EDU] == "nvme"
    assert run.log == ["settle", "refresh"]


def test_a_refused_write_is_shown_as_well(run: Run) -> None:
    file = run.open(f"{DEVICE}/numa_node", os.O_RDWR)
    assert file is not None
    with pytest.raises(InvalidArgument):
        file.pwrite(cast("Any", None), b"x", 0)
    assert run.log == ["settle", "refresh"]


def test_a_file_of_bytes_does_not_change_the_tree(run: Run) -> None:
    bound = attributes.find(run.machine, f"{DEVICE}/config")
    assert bound is not None
    contents = Written(bound, run.settle, run.refresh_tree)
    assert contents.read(0, 2) == b"\x34\x12"
    assert contents.write(4, b"\6\0") == (2, None)
    assert run.machine.function(EDU).config_read(4, 2) == 6
    assert run.log == ["settle"]
