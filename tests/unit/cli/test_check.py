"""``uvfio check`` and the bare command: what the runner's probes become."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from uvfio.cli.main import main
from uvfio.doors.run.launch import check as probing


class Probe(NamedTuple):
    """As ``uvfio.doors.run.launch.check.Probe``."""

    name: str
    ok: bool
    detail: str
    hint: str
    required: bool


GOOD = Probe("kernel", True, "6.18", "", True)
WITHOUT = Probe("memory", False, "no huge pages", "reserve some", False)
BAD = Probe("notification", False, "refused: EPERM", "leave the container", True)


def use(monkeypatch: pytest.MonkeyPatch, *found: Probe) -> None:
    monkeypatch.setattr(probing, "probe_all", lambda: list(found))


def test_all_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, GOOD, WITHOUT)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "         NEEDED  FOUND",
        "ok       kernel  6.18",
        "without  memory  no huge pages",
        "                 hint: reserve some",
        "programs can be run here",
    ]


def test_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, GOOD, BAD)
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "MISSING  notification  refused: EPERM\n" in out
    assert out.endswith("programs cannot be run here\n")
    assert main(["check", "--json"]) == 1
    about = json.loads(capsys.readouterr().out)
    assert about["works"] is False
    assert about["probes"][1] == BAD._asdict()


@pytest.mark.parametrize("bad", [False, True])
def test_bare_command_is_a_status(
    bad: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, GOOD, *([BAD] if bad else []))
    assert main([]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert first.endswith(
        "programs cannot be run here: notification: refused: EPERM" if bad else "can be run here"
    )
    assert "group 240: /dev/vfio/240, viable" in out
    assert "usage: uvfio VERB" in out


def test_the_real_probes_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) in (0, 1)
    about = json.loads(capsys.readouterr().out)
    assert about["works"] == all(p["ok"] for p in about["probes"] if p["required"])
