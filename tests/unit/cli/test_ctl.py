"""``uvfio ctl status`` as text."""

from __future__ import annotations

from typing import Any

import pytest

from uvfio.cli import ctl


def device(address: str, **more: Any) -> dict[str, Any]:
    return {
        "address": address,
        "group": 1,
        "driver": "vfio-pci",
        "model": "edu",
        "open_files": 0,
        **more,
    }


def test_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [
        {"groups": ["1", "2"], "owner": "pid 12", "mappings": 1, "faults": 0},
        {"groups": ["3"], "owner": None, "mappings": 0, "faults": 2},
    ]
    answer = {
        "ok": True,
        "machine": {
            "devices": [
                device("0000:06:0d.0", open_files=1, statistics={}),
                device("0000:07:00.0", driver=None, statistics={"tx_frames": 3, "rx_frames": 0}),
                device("10010000.timer"),  # of a run of an earlier version
            ]
        },
        "run": {"contexts": contexts, "processes": 1, "open_files": 2},
    }
    monkeypatch.setattr(ctl, "ask", lambda path, request: answer)
    assert ctl.ctl(["run.sock", "status"]) == 0
    assert capsys.readouterr().out == (
        "ADDRESS         GROUP  DRIVER    MODEL  FILES\n"
        "0000:06:0d.0    1      vfio-pci  edu    1 open\n"
        "0000:07:00.0    1      -         edu\n"
        "10010000.timer  1      vfio-pci  edu\n"
        "group 1+2: owned by pid 12, 1 mappings, 0 faults\n"
        "group 3: owned by nobody, 0 mappings, 2 faults\n"
        "0000:07:00.0: tx_frames 3, rx_frames 0\n"
        "1 processes, 2 open VFIO files\n"
    )
