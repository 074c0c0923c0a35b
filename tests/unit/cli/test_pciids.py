"""Names from pci.ids, found by searching."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvfio.cli.pciids import PciIds

TEXT = """\
# comment
1233  Other
\t11e8  Not this one
1234  Technical  Corp.
# in between
\t0001  Something
\t\t11e8 0001  A subsystem
\t11e8  Teaching Device
1af4  Red Hat, Inc.
\t1000  Virtio network device
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
\t0a  Last"""


@pytest.fixture
def names(tmp_path: Path) -> PciIds:
    path = tmp_path / "pci.ids"
    path.write_text(TEXT)
    return PciIds(str(path))


def test_names(names: PciIds) -> None:
    assert names.vendor("1af4") == "Red Hat, Inc."
    assert names.vendor("1234") == "Technical  Corp."
    assert names.device("1234", "11e8") == "Teaching Device"
    assert names.device("1233", "11e8") == "Not this one"
    assert names.device("1af4", "1000") == "Virtio network device"
    assert names.class_("010802") == "Non-Volatile memory controller (NVM Express)"
    assert names.class_("010803") == "Non-Volatile memory controller"
    assert names.class_("010900") == "Mass storage controller"
    assert names.class_("010a00") == "Last"


def test_unknown_numbers_have_no_name(names: PciIds) -> None:
    assert names.vendor("ffff") == ""
    assert names.device("1233", "0001") == "", "that is another vendor's"
    assert names.device("ffff", "0001") == ""
    assert names.class_("ff0000") == ""


def test_many_names_are_one_pass_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known numbers and unknown ones."""
    path = tmp_path / "pci.ids"
    path.write_text("".join(f"{number:04x}  Vendor {number}\n" for number in range(300)))
    passes: list[int] = []
    whole = PciIds._pass

    def counted(data: bytes) -> dict[bytes, bytes]:
        passes.append(len(data))
        return whole(data)

    monkeypatch.setattr(PciIds, "_pass", staticmethod(counted))
    names = PciIds(str(path))
    for number in range(400):
        assert names.vendor(f"{number:04x}") == (f"Vendor {number}" if number < 300 else "")
        assert names.device(f"{number:04x}", "0001") == ""
    assert passes == [len(path.read_bytes()) + 1]


def test_without_a_file_there_are_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UVFIO_PCI_IDS", str(tmp_path / "absent"))
    assert PciIds().vendor("1234") == ""
    path = tmp_path / "mine"
    path.write_text("1234  Mine\n")
    monkeypatch.setenv("UVFIO_PCI_IDS", str(path))
    assert PciIds().vendor("1234") == "Mine"
