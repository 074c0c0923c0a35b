"""``uvfio list``, ``tree``, ``show`` and ``models``: the text that scripts get, and the JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from uvfio.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

PCI_IDS = b"""\
# a comment
1233  Other
\t11e8  Not this one
1234  Technical Corp.
# in between
\t0001  Something
\t11e8  Teaching Device
\t\t1af4 1100  Sub
1af4  Red Hat, Inc.
C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C ff  Unassigned class
\t00  Nothing in particular
"""


@pytest.fixture(autouse=True)
def _no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVFIO_PCI_IDS", "/dev/null")


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pci.ids"
    path.write_bytes(PCI_IDS)
    monkeypatch.setenv("UVFIO_PCI_IDS", str(path))


def out(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "list") == (
        "ADDRESS       GROUP  DRIVER    ID         MODEL  NAME\n"
        "0000:06:0d.0  240    vfio-pci  1234:11e8  edu\n"
        "0000:06:0d.1  240    vfio-pci  1234:11e8  edu\n"
        "0000:07:00.0  241    vfio-pci  1234:11e8  edu\n"
    )


@pytest.mark.usefixtures("names")
def test_names_come_from_pci_ids(capsys: pytest.CaptureFixture[str]) -> None:
    lines = out(capsys, "list", "-d", "edu,driver=none").splitlines()
    assert lines[1].split(None, 5) == [
        *("0000:00:01.0", "0", "-", "1234:11e8", "edu"),
        "Technical Corp. Teaching Device",
    ]


def test_tree(capsys: pytest.CaptureFixture[str]) -> None:
    lines = out(capsys, "tree", "-d", "edu,group=4", "-d", "edu@6:d.0,group=4,driver=e1000")
    assert lines.splitlines() == [
        "iommu0: 48 bits, pages 4K 2M 1G, coherent, interrupt remapping",
        "└─ group 4: /dev/vfio/4, group 4 is not viable: 0000:06:0d.0 is not bound to a VFIO driver",
        "   ├─ 0000:00:01.0  1234:11e8  edu, driver vfio-pci",
        "   └─ 0000:06:0d.0  1234:11e8  edu, driver e1000",
    ]


@pytest.mark.usefixtures("names")
def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "show", "6:d.0")
    title, *rest = text.splitlines()
    assert title == "0000:06:0d.0  edu (Technical Corp. Teaching Device)"
    facts: dict[str, list[str]] = {}
    key = ""
    for line in rest:
        key = line[2:14].strip() or key
        facts.setdefault(key, []).append(line[14:].strip())
    assert facts["id"] == ["1234:11e8 (Technical Corp. Teaching Device)"]
    assert facts["driver"] == ["vfio-pci"]
    assert facts["group"] == ["240: /dev/vfio/240, viable"]
    assert facts["with"] == ["0000:06:0d.1"]
    assert facts["regions"][0].startswith("BAR 0: 1M at 0xc")
    assert facts["capabilities"] == ["0x40: MSI"]
    assert facts["interrupts"] == ["INTx, MSI 1"]


def test_show_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "9:0.0"]) == 1
    assert capsys.readouterr().err == (
        "uvfio: the machine has no device 0000:09:00.0\n"
        "hint: its devices: 0000:06:0d.0, 0000:06:0d.1, 0000:07:00.0\n"
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    devices = json.loads(out(capsys, "list", "--json"))
    assert [dev["address"] for dev in devices] == ["0000:06:0d.0", "0000:06:0d.1", "0000:07:00.0"]
    about = json.loads(out(capsys, "tree", "--json"))
    assert set(about) == {"iommu", "iommus", "groups", "devices"}
    assert about["iommus"] == [about["iommu"]]
    assert about["devices"] == devices
    shown = json.loads(out(capsys, "show", "--json", "6:d.0"))
    assert shown["device"] == devices[0]
    assert shown["group"] == about["groups"][0]
    dev: dict[str, Any] = shown["device"]
    assert (dev["vendor"], dev["device"], dev["group"], dev["revision"]) == (
        "1234",
        "11e8",
        240,
        0x10,
    )


def test_list_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    assert out(capsys, "list", "-m", str(path)).splitlines() == [
        "ADDRESS  GROUP  DRIVER  ID  MODEL  NAME"
    ]
    assert json.loads(out(capsys, "list", "--json", "-m", str(path))) == []


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    lines = out(capsys, "models").splitlines()
    assert any(line.split()[:2] == ["edu", "1234:11e8"] for line in lines)
    names = [model["name"] for model in json.loads(out(capsys, "models", "--json"))]
    assert "edu" in names
    text = out(capsys, "models", "edu")
    assert "dma_mask=0xfffffff (int): " in text
    assert "factorial" in text
    about = json.loads(out(capsys, "models", "edu", "--json"))
    assert {option["name"] for option in about["options"]} >= {"dma_mask"}
    assert main(["models", "edx"]) == 1


def test_into_a_pipe_nothing_is_cut_and_without_utf8_lines_are_ascii() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uvfio", "tree"],
        capture_output=True,
        check=True,
        env={**os.environ, "COLUMNS": "20", "PYTHONIOENCODING": "ascii"},
    )
    assert b"+- group 240: /dev/vfio/240, viable\n" in done.stdout
    assert b"|  `- 0000:06:0d.1  1234:11e8  edu, driver vfio-pci\n" in done.stdout


def terminal(*words: str, **env: str) -> bytes:
    """What a person at a terminal sees."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvfio", *words],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **env},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert process.wait() == 0
    return seen


def test_at_a_terminal_there_is_style_and_no_color_takes_the_colours_away() -> None:
    plain = dict(os.environ)
    plain.pop("NO_COLOR", None)
    assert b"\x1b[1m" in terminal("list", NO_COLOR="")
    assert b"\x1b[36m" in terminal("show", "6:d.0", NO_COLOR="")
    assert b"\x1b[36m" not in terminal("show", "6:d.0", NO_COLOR="1")
    assert b"\x1b" not in terminal("tree", TERM="dumb")
