"""What the read verbs print: plain into a pipe, drawn at a terminal, and the same facts in both."""

from __future__ import annotations

import re
import sys
from collections import Counter

import pytest

from uvfio.cli import output
from uvfio.cli.output import Branch

ROOT = Branch("iommu0", (Branch("group 1", (Branch("edu [not a style]"),)), Branch("group 2")))


def plain(text: str) -> str:
    """``text`` without styles."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1 << 20, "1M"), (3 << 30, "3G"), (1 << 40, "1T")],
)
def test_sizes_are_exact(number: int, text: str) -> None:
    assert output.size(number) == text


def test_json_keeps_order_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"b": "é", "a": [1]})
    assert capsys.readouterr().out == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'


def test_a_tree_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.tree(ROOT)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "iommu0"
    assert [line.split(" ", 1)[-1].strip("─└├│ ") for line in lines[1:]] == [
        "group 1",
        "edu [not a style]",
        "group 2",
    ]


@pytest.mark.usefixtures("terminal")
def test_a_tree_at_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.tree(ROOT)
    lines = capsys.readouterr().out.splitlines()
    assert [plain(line) for line in lines] == [
        "iommu0",
        "├── group 1",
        "│   └── edu [not a style]",
        "└── group 2",
    ]


@pytest.mark.usefixtures("terminal")
def test_tables_and_facts_at_a_terminal_have_what_a_pipe_has(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words() -> list[str]:
        output.table(("ADDRESS", "NAME"), [("0000:01:00.0", "edu"), ("0000:02:00.0", "[bold]x")])
        output.facts("device", [("address", "0000:01:00.0"), ("name", "[bold]x")])
        return plain(capsys.readouterr().out).split()

    drawn = words()
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: False)
    assert drawn == words()
    assert "[bold]x" in drawn


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("columns", [10, 20, 40, 60, 80])
def test_a_table_at_a_narrow_terminal_keeps_every_cell(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What identifies a device is in one piece; of the last column every letter is there."""
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "Teaching device of a long name, Unbreakableformanycolumns"
    rows = [(f"0000:0{n}:00.0", "vfio-pci", "1234:11e8", "virtio-net", name) for n in range(3)]
    output.table(("ADDRESS", "DRIVER", "ID", "MODEL", "NAME"), rows)
    text = plain(capsys.readouterr().out)
    for row in rows:
        assert all(cell in text for cell in row[:-1])
    assert not Counter("".join(name.split()) * 3) - Counter(text)
    assert "…" not in text


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("why", ["dumb", "no rich"])
def test_plain_where_rich_cannot_draw(
    why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    output.tree(ROOT)
    here = capsys.readouterr().out
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: False)
    output.tree(ROOT)
    assert capsys.readouterr().out == here
