"""``uvfio list``, ``tree``, ``show`` and ``models``: the text that scripts get, and the JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uvfio.cli.main import main
from uvfio.cli.pciids import PciIds

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


SOC = str(Path(__file__).resolve().parents[3] / "examples" / "soc.toml")
TIMER = "10010000.timer"


def test_list_of_platform_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "list", "-m", SOC).splitlines() == [
        "ADDRESS         GROUP  DRIVER         ID               MODEL  NAME",
        "0000:01:00.0    3      vfio-pci       1234:11e8        edu",
        "10010000.timer  3      vfio-platform  uvfio,timer-1.0  timer  /soc/timer@10010000",
        "10030000.timer  4      vfio-platform  uvfio,timer-1.0  timer  /soc/timer@10030000",
    ]


def test_tree_of_several_iommus(capsys: pytest.CaptureFixture[str]) -> None:
    assert out(capsys, "tree", "-m", SOC).splitlines() == [
        "machine",
        "├─ iommu0: 40 bits, pages 4K 2M 1G, coherent, interrupt remapping",
        "│  ├─ group 3: /dev/vfio/3, viable",
        "│  │  └─ 0000:01:00.0  1234:11e8  edu, driver vfio-pci",
        "│  └─ group 3: /dev/vfio/platform:3, viable",
        "│     └─ 10010000.timer  uvfio,timer-1.0  timer, driver vfio-platform (/soc/timer@10010000)",
        "└─ slow: 40 bits, pages 4K, not coherent, interrupt remapping",
        "   └─ group 4: /dev/vfio/4, viable",
        "      └─ 10030000.timer  uvfio,timer-1.0  timer, driver vfio-platform (/soc/timer@10030000)",
    ]


@pytest.mark.parametrize("address", [TIMER, "/soc/timer@10010000"])
def test_show_of_a_platform_device(capsys: pytest.CaptureFixture[str], address: str) -> None:
    log = "/soc/timer@10010000/log@10020000"
    assert out(capsys, "show", "-m", SOC, address).splitlines() == [
        "10010000.timer  timer (/soc/timer@10010000)",
        "  node        /soc/timer@10010000",
        "  compatible  uvfio,timer-1.0",
        "              uvfio,timer",
        "  options     period=1000",
        "  driver      vfio-platform",
        "  group       3: /dev/vfio/platform:3, viable",
        "  iommu       iommu0: 40 bits, pages 4K 2M 1G, coherent, interrupt remapping",
        "  regions     0: 4K at 0x10010000 (registers; /soc/timer@10010000 reg[0])",
        f"              1: 4K at 0x10020000 (memory, can be mapped (memory); {log} reg[0])",
        "  interrupts  0: 5, level (/soc/timer@10010000 interrupts[0])",
        f"              1: 6, edge ({log} interrupts[0])",
        "  reset       device",
    ]


def test_json_of_a_platform_device(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(out(capsys, "show", "--json", "-m", SOC, "10030000.timer"))
    assert shown["device"]["bus"] == shown["group"]["bus"] == "platform"
    assert shown["group"]["number"] == 4
    assert (shown["iommu"]["name"], shown["iommu"]["coherent"]) == ("slow", False)
    pci = json.loads(out(capsys, "show", "--json", "-m", SOC, "1:0.0"))
    assert (pci["group"]["bus"], pci["group"]["number"]) == ("pci", 3)


def test_models_of_both_buses(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split(None, 3)[:3] for line in out(capsys, "models").splitlines()]
    assert ["edu", "1234:11e8", "pci"] in rows
    assert ["timer", "uvfio,timer-1.0", "platform"] in rows
    text = out(capsys, "models", "timer")
    assert "  compatible  uvfio,timer-1.0\n" in text
    assert "0: regs, 4K (registers, 8 registers)\n" in text
    assert "1: log, 4K (memory, from node log, can be mapped (memory))\n" in text
    assert "1: overflowed (edge, from node log)\n" in text
    assert "Region 0, registers" in text
    about = {model["name"]: model for model in json.loads(out(capsys, "models", "--json"))}
    assert (about["edu"]["bus"], about["timer"]["bus"]) == ("pci", "platform")
    assert [line["trigger"] for line in about["timer"]["interrupts"]] == ["level", "edge"]


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


@pytest.mark.parametrize("verb", ["list", "tree"])
@pytest.mark.usefixtures("names")
def test_many_devices_read_the_names_once(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[PciIds] = []
    read = PciIds._read

    def counted(self: PciIds) -> bytes:
        reads.append(self)
        return read(self)

    monkeypatch.setattr(PciIds, "_read", counted)
    devices = [word for n in range(200) for word in ("-d", f"edu@0000:{n + 1:02x}:00.0,group={n}")]
    text = out(capsys, verb, *devices)
    assert text.count("Technical Corp. Teaching Device") == 200
    assert len(reads) == 1


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


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("regs = RegisterBar(0, Regs, size=16)", "mine.py:5: M: BAR 0: its registers need 0x18"),
        ("def on_reset(self): self.x += 1", "mine.py:7: M.on_reset failed: AttributeError"),
        ("def __init__(self): pass", "mine.py:7: M.__init__: TypeError"),
        ("resets = 0\n  def on_reset(self):\n    self.n = 1 / (1 - getattr(self, 'n', 0))", "Zero"),
    ],
)
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_models_finds_what_run_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, says: str, json: list[str]
) -> None:
    """The last one fails only when it is reset once more."""
    (tmp_path / "mine.py").write_text(
        "from uvfio.kit import *\nclass Regs(RegisterMap):\n  a = Register(0x0, doc='first')\n"
        "  b = RegisterArray(0x8, 8, count=2, fields={'on': 0, 'n': (7, 4)})\n"
        f"class M(PciModel):\n  vendor_id, device_id = 1, 2\n  {body}\n"
    )
    assert main(["models", f"{tmp_path}/mine.py:M", *json]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert "uvfio's" not in said.err
    assert "Traceback" not in said.err


def test_models_prints_registers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from uvfio.kit import *\nclass Regs(RegisterMap):\n  a = Register(0x0, doc='first')\n"
        "  b = RegisterArray(0x8, 8, count=2, fields={'on': 0, 'n': (7, 4)})\n"
        "class M(PciModel):\n  vendor_id, device_id = 1, 2\n  regs = RegisterBar(0, Regs)\n"
    )
    text = out(capsys, "models", f"{tmp_path}/mine.py:M")
    assert text.split("\n\n")[1].splitlines() == [
        "registers of regs:",
        "OFFSET  SIZE  NAME  ACCESS  RESET  FIELDS AND USE",
        "0x0     4     a     rw      0x0    first",
        "0x8     8     b[2]  rw      0x0    on 0, n 7:4",
    ]
    assert "One PCI function" not in text  # the base class's own documentation
