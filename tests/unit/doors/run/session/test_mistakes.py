"""What a run says of the mistakes of device models: each once, and their number at the end."""

from __future__ import annotations

import pytest

from uvfio.doors.run.session.mistakes import Mistakes
from uvfio.doors.run.session.report import report_bug, report_end
from uvfio.errors import ModelMistake


def mistake(text: str, hint: str = "mend it") -> ModelMistake:
    try:
        try:
            raise KeyError("cause")
        except KeyError as error:
            raise ModelMistake(text, hint) from error
    except ModelMistake as made:
        return made


def test_each_is_said_once_and_all_are_counted() -> None:
    mistakes = Mistakes()
    said = mistakes.text("a call", mistake("m.py:3: dev: boom"))
    head = "uvfio: m.py:3: dev: boom\nhint: mend it\nuvfio: that was in a call\nTraceback"
    assert said.startswith(head)
    assert said.endswith("KeyError: 'cause'\n")
    assert mistakes.text("another call", mistake("m.py:3: dev: boom")) == ""
    assert mistakes.text("a call", ModelMistake("other")).splitlines() == [
        "uvfio: other",
        "uvfio: that was in a call",
    ]
    first = "the first: m.py:3: dev: boom"
    assert mistakes.last_line() == f"uvfio: this run had 3 errors of device models; {first}\n"
    assert mistakes.last_line() == ""


def test_it_is_no_internal_error(capsys: pytest.CaptureFixture[str]) -> None:
    report_end()
    capsys.readouterr()
    report_bug("a timer", mistake("m.py:3: boom"))
    report_end()
    report_end()
    text = capsys.readouterr().err
    assert text.startswith("uvfio: m.py:3: boom\nhint: mend it\n")
    assert "internal error" not in text
    assert text.endswith("uvfio: this run had 1 error of device models; the first: m.py:3: boom\n")
