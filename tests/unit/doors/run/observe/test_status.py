"""The lines of --status-fd."""

from __future__ import annotations

import os

import pytest

from uvfio.core.events import GroupAdded
from uvfio.doors.run.observe.status import StatusLines
from uvfio.doors.run.session.events import FileReleased, RunEnded, RunStarted


def test_a_line_for_the_start_and_the_end_and_for_nothing_else() -> None:
    reader, writer = os.pipe()
    lines = StatusLines(writer)
    for event in (
        RunStarted(77),
        GroupAdded("1", "pci", 1, 0),
        FileReleased("/dev/vfio/1"),
        RunEnded(256),
    ):
        lines.observe(event)
    os.close(writer)
    with open(reader, "rb") as written:
        assert written.read() == (
            b'{"event": "started", "pid": 77}\n{"event": "ended", "status": 256}\n'
        )


def test_a_reader_that_has_gone_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    lines = StatusLines(writer)
    lines.observe(RunStarted(77))
    lines.observe(RunEnded(0))
    os.close(writer)
    assert capsys.readouterr().err == "uvfio: lines for --status-fd are lost: Broken pipe\n"
