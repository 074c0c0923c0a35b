"""Machine files: what they may say, and that each mistake names file, key and value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from uvfio.cli.machinefile import load, parse
from uvfio.errors import ConfigError
from uvfio.machine.spec import DeviceSpec, IommuSpec, MachineSpec

if TYPE_CHECKING:
    from pathlib import Path

FULL = b"""
[iommu]
interrupt_remapping = false
coherent = false
page_sizes = ["4K", "2M", 1073741824]
address_bits = 39
reserved = [["0xfee00000", "0xfeefffff"], [0, 4095]]
dma_entry_limit = 100
allow_unsafe_interrupts = true

[[device]]
address = "6:d.0"
model = "edu"
group = 240
driver = "none"
options = { dma_bits = 32, name = "x" }

[[device]]
model = "edu"
"""


def test_everything() -> None:
    assert parse(FULL, "m.toml") == MachineSpec(
        IommuSpec(
            interrupt_remapping=False,
            coherent=False,
            page_sizes=(4096, 2 << 20, 1 << 30),
            address_bits=39,
            reserved=((0, 4095), (0xFEE00000, 0xFEEFFFFF)),
            dma_entry_limit=100,
            allow_unsafe_interrupts=True,
        ),
        (
            DeviceSpec("edu", "0000:06:0d.0", 240, "none", {"dma_bits": 32, "name": "x"}),
            DeviceSpec("edu", "0000:00:01.0", 0),
        ),
    )


def test_an_empty_file_is_a_machine_without_devices() -> None:
    assert parse(b"", "m.toml") == MachineSpec()


def test_model_files_are_relative_to_the_machine_file(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text('device = [{model = "mine.py:A"}, {model = "/x/y.py:B"}, {model = "p.q:C"}]')
    models = [dev.model for dev in load(str(path)).devices]
    assert models == [f"{tmp_path}/mine.py:A", "/x/y.py:B", "p.q:C"]


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("x = 1", "m.toml: x = 1: unknown key", "keys here: iommu, device"),
        ("devices = []", "m.toml: devices = []: unknown key", "did you mean device?"),
        ("[iommu]\nadress_bits = 3", "iommu.adress_bits = 3: unknown key", "address_bits"),
        ("[[device]]\nmodel='a'\ngrp=1", "device[0].grp = 1: unknown key", "group"),
        ("[[device]]\ngroup = 1", "m.toml: device[0].model: this key is required", "model ="),
        ("[[device]]\nmodel=1", "device[0].model = 1: expected str, got int", ""),
        ("[iommu]\ncoherent='yes'", "iommu.coherent = 'yes': expected bool, got str", ""),
        ("[iommu]\npage_sizes=[1.5]", "iommu.page_sizes[0] = 1.5: expected", ""),
        ("[iommu]\nreserved=[['0']]", "iommu.reserved[0] = ['0']: expected", ""),
        ("[iommu]\nreserved=[['a','b']]", "m.toml: iommu: reserved 'a' is not a number", "0x"),
        ("[iommu]\npage_sizes=['4X']", "m.toml: iommu: page_sizes '4X' is not a size", "4K"),
        ("[iommu]\naddress_bits=8", "m.toml: iommu: address_bits 8 is out of range", ""),
        (
            "device=[{model='a'},{model='b',address='1.2.3'}]",
            "m.toml: device[1]: address '1.2.3' is not a PCI address",
            "SSSS:BB:DD.F",
        ),
        (
            "device=[{model='a',address='6:d.0'},{model='b',address='06:0d.0'}]",
            "m.toml: device[1]: address '0000:06:0d.0' is where m.toml: device[0] is",
            "",
        ),
        ("device=[{model='a',group=-3}]", "m.toml: device[0]: group -3 is out of range", ""),
        ("device=1", "m.toml: device = 1: expected array, got int", ""),
        ("[device]\nmodel='a'", "m.toml: [device] is one table, and there may be", "[[device]]"),
        ("[[iommu]]\ncoherent=true", "m.toml: [[iommu]] is a list, and there is one", "[iommu]"),
        ("[[device_tree]]\na=1", "m.toml: [[device_tree]] is a list", "[device_tree]"),
        ("a = ", "m.toml: is not TOML: Invalid value (at end of document)", ""),
    ],
)
def test_mistakes_name_file_key_and_value(text: str, says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse(text.encode(), "m.toml")
    assert says in str(info.value)
    assert hint in info.value.hint
    assert "\n" not in str(info.value)


def test_not_text() -> None:
    with pytest.raises(ConfigError, match=r"^m\.toml: is not UTF-8 text"):
        parse(b"\xff\xfe", "m.toml")


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(str(tmp_path / "absent.toml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(str(tmp_path))


def test_an_option_that_the_model_refuses_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from uvfio.cli.main import main

    file = tmp_path / "machine.toml"
    file.write_text('[[device]]\nmodel = "edu"\n[[device]]\nmodel = "edu"\noptions = { foo = 1 }\n')
    assert main(["list", "-m", str(file)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"uvfio: {file}: device[1]: 0000:00:02.0: Edu: foo 1 is not an option")
    assert "dma_mask" in second
