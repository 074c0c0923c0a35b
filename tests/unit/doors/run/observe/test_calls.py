"""The observed calls as events: one entry, one exit, and what a handler does reaches the loop unchanged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from uvfio.doors.run.filter.rules import BY_KEY, Handler, Key, call_of
from uvfio.doors.run.observe.calls import decoder, tap
from uvfio.doors.run.session.events import CallEntry, CallExit, RunEvent
from uvfio.errors import InvalidArgument
from uvfio.fops.file import Deferred, File
from uvfio.uapi.seccomp import AUDIT_ARCH_X86_64, X86_64

KEY = (X86_64["pread64"], AUDIT_ARCH_X86_64)
OTHER = (X86_64["close"], AUDIT_ARCH_X86_64)
REQUEST = (1, 77, 0, X86_64["pread64"], AUDIT_ARCH_X86_64, 0, 0xFFFFFFFF00000005, 2, 3, 4, 5, 6)


class Mainline(File):
    def abi_of(self, cmd: int) -> str:
        return "mainline"


class Run:
    """A supervisor with two handlers, which return or raise ``answer``."""

    def __init__(self) -> None:
        self.answer: int | Exception | None = 0
        self.events: list[RunEvent] = []
        self.emit = self.events.append
        self.handlers: dict[Key, Handler] = {KEY: self.handle, OTHER: self.handle}

    def handle(self, request: tuple[int, ...]) -> int | None:
        assert isinstance(self.events[-1], CallEntry)  # emitted before the handler runs
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def exit(self) -> CallExit:
        entry, after = self.events
        assert isinstance(entry, CallEntry)
        assert isinstance(after, CallExit)
        assert after.entry is entry
        assert (entry.name, entry.request) == ("pread64", REQUEST)
        return after


@pytest.fixture
def run() -> Run:
    made = Run()
    tap(made.handlers, made.emit)
    return made


@pytest.mark.parametrize("answer", [0, 5, None])
def test_an_answer(run: Run, answer: int | None) -> None:
    run.answer = answer
    assert run.handlers[KEY](REQUEST) == answer
    after = run.exit()
    assert (after.value, after.error) == (answer, None)
    assert after.seconds is not None
    assert after.seconds >= 0


@pytest.mark.parametrize("error", [InvalidArgument("no"), ZeroDivisionError("a defect")])
def test_an_error(run: Run, error: Exception) -> None:
    run.answer = error
    with pytest.raises(type(error)) as raised:
        run.handlers[KEY](REQUEST)
    assert raised.value is error
    assert (run.exit().value, run.exit().error) == (None, error)


@pytest.mark.parametrize("answer", [8, InvalidArgument("too late")])
def test_an_answer_that_waits(run: Run, answer: int | OSError) -> None:
    run.answer = later = Deferred(cast("Any", SimpleNamespace()), 8)
    with pytest.raises(Deferred):
        run.handlers[KEY](REQUEST)
    assert len(run.events) == 1
    for answered in later.answered:
        answered(answer)
    after = run.exit()
    assert after.seconds is None
    assert answer in (after.value, after.error)


def test_other_calls_keep_their_handlers(run: Run) -> None:
    assert run.handlers[OTHER] == run.handle


def test_descriptors_are_unsigned_numbers() -> None:
    assert call_of(REQUEST).descriptor(REQUEST) == 5
    assert BY_KEY[X86_64["mmap"], AUDIT_ARCH_X86_64].descriptor(REQUEST) == 5


def test_the_decoder_is_that_of_the_files_abi() -> None:
    assert decoder(None, 0).__name__.endswith("trace_2011")  # type: ignore[attr-defined]
    assert decoder(File("a"), 0).__name__.endswith("trace_2011")  # type: ignore[attr-defined]
    assert decoder(Mainline("a"), 0).__name__.endswith("trace_mainline")  # type: ignore[attr-defined]
