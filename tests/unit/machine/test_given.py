"""Devices as Python gives them: descriptions, strings, classes, and the folder of relative paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvfio.errors import ConfigError
from uvfio.kit.pci.bar import MemoryBar
from uvfio.kit.pci.model import PciModel
from uvfio.machine.given import Given
from uvfio.machine.machine import Machine
from uvfio.machine.spec import DeviceSpec
from uvfio.models.edu import Edu
from uvfio.models.timer import Timer

FILE = """
from uvfio.kit import PciModel
class Small(PciModel):
    vendor_id, device_id = 0x1234, {}
"""


def test_classes() -> None:
    machine = Machine(devices=[Edu, Timer, "edu", DeviceSpec("edu"), Timer])
    assert [type(slot.device) for slot in machine.slots] == [Edu, Edu, Edu, Timer, Timer]
    assert [slot.address for slot in machine.slots][3:] == ["10000000.device", "10010000.device"]
    assert type(machine.plug(Edu).device) is Edu


def made(number: int) -> type[PciModel]:
    class Local(PciModel):
        """Defined anew by each call."""

        vendor_id, device_id = 0x1234, number
        memory = MemoryBar(0, 4096)

    return Local


def test_classes_of_one_name() -> None:
    one, two = made(1), made(2)
    machine = Machine(devices=[one, two, one])
    assert [type(slot.device) for slot in machine.slots] == [one, two, one]
    assert [slot.function.device_id for slot in machine.slots] == [1, 2, 1]
    machine.unbind("0:2.0")
    machine.binding.remove(machine.slot("0:2.0"))
    machine.binding.rescan()
    assert type(machine.device("0:2.0")) is two


def test_what_is_no_model() -> None:
    for wrong in (int, made, 3):
        with pytest.raises(ConfigError, match="is no subclass of"):
            Machine(devices=[wrong])  # type: ignore[list-item]


def test_the_folder_of_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("one", "two"), 1):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(FILE.format(number))
    monkeypatch.chdir(tmp_path / "one")
    machine = Machine(devices=["mine.py:Small"], folder=str(tmp_path / "two"))
    assert machine.slots[0].function.device_id == 2
    assert machine.plug(f"{tmp_path}/one/mine.py:Small").function.device_id == 1
    assert Machine(devices=["mine.py:Small"]).slots[0].function.device_id == 1
    monkeypatch.chdir(tmp_path / "two")
    assert Machine(devices=["./mine.py:Small"]).slots[0].function.device_id == 2
    assert Given("/").spec("a.py:B").model == "/a.py:B"
    assert Given("/x").spec("a.b:C").model == "a.b:C"
