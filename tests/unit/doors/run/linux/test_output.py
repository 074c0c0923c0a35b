"""Lines that cannot be written cost nothing but themselves."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from uvfio.doors.run.linux import output as module
from uvfio.doors.run.linux.output import Output, say


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


def test_each_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    assert Output(fd).write("a line\n")
    assert path.read_text() == "a line\n"
    os.close(fd)


def test_a_pipe_that_nobody_reads(pipe: tuple[int, int]) -> None:
    """One line of patience in all; the rest is dropped at once, until somebody reads."""
    told: list[str] = []
    out = Output(pipe[1], patience=0.05, on_loss=told.append)
    while out.write("x" * 1023 + "\n"):
        pass
    out._patience = 1e9  # any further wait would show
    assert not any(out.write("lost\n") for _ in range(1000))
    assert (out.lost, told) == (1001, ["nobody reads it"])
    os.read(pipe[0], 8192)
    assert out.write("again\n")
    assert os.read(pipe[0], 8192) == b"again\n"
    out.close()


def test_a_long_line_is_torn_and_the_next_begins_anew(pipe: tuple[int, int]) -> None:
    out = Output(pipe[1], patience=0)
    assert not out.write("y" * 10000 + "\n")
    assert os.read(pipe[0], 20000) == b"y" * 4096
    assert out.write("next\n")
    assert os.read(pipe[0], 20000) == b"\nnext\n"
    out.close()


def test_the_flags_of_the_descriptor_stay(pipe: tuple[int, int]) -> None:
    out = Output(pipe[1])
    assert os.get_blocking(pipe[1])
    out.close()


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    told: list[str] = []
    out = Output(pipe[1], on_loss=told.append)
    os.close(pipe[0])
    assert not out.write("x\n")
    assert not out.write("x\n")
    assert told == ["Broken pipe"]


def test_a_full_disk() -> None:
    told: list[str] = []
    fd = os.open("/dev/full", os.O_WRONLY)
    out = Output(fd, on_loss=told.append)
    assert not out.write("x\n")
    assert not out.write("x\n")
    assert told == ["No space left on device"]
    os.close(fd)


def test_a_closed_descriptor_and_none() -> None:
    assert not Output(None).write("x\n")
    assert not Output(1 << 20).write("x\n")


def test_stderr_says_how_many_reports_were_lost(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module.forget()
    with open(pipe[1], "w", closefd=False) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        for _ in range(3):
            say("z" * 4095 + "\n")
        os.read(pipe[0], 8192)
        say("here\n")
        assert os.read(pipe[0], 8192) == (
            b"uvfio: 2 earlier reports could not be written here\nhere\n"
        )
    module.forget()


def test_no_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    say("x\n")
