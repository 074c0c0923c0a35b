"""Reports of mistakes: they name the culprit, and fail at nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from uvfio.doors.run.session.report import culprit, report_bug, report_memory


class Odd(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RuntimeError("x"), Odd()])
def test_any_exception_is_reported(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except BaseException:
        report_bug("a hook")
    text = capsys.readouterr().err
    assert text.startswith("uvfio: internal error in a hook\n")
    assert f"raised in {__file__}:" in text


def test_an_error_that_was_never_raised(capsys: pytest.CaptureFixture[str]) -> None:
    report_bug("a hook", RuntimeError("x"))
    assert "RuntimeError: x" in capsys.readouterr().err
    assert culprit(RuntimeError("x")) is None


def test_without_memory_for_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("traceback.format_exception", fail)
    report_bug("a hook", RuntimeError("x"))
    assert "RuntimeError; the stack cannot be printed" in capsys.readouterr().err


def test_no_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report_memory("system call 17", MemoryError())
    assert capsys.readouterr().err == "uvfio: no memory for system call 17; it gets ENOMEM\n"


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_the_state_of_stderr_does_not_matter(stderr: str) -> None:
    code = (
        "from uvfio.doors.run.session.report import report_bug\n"
        "report_bug('a hook', RuntimeError('x'))\nprint('goes on')"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {stderr}', "sh", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout == "goes on\n"
