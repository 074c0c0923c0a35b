"""The services of a run: what they refuse when descriptors, memory or room are short, and what stays as it was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from support.puppet import machine_of
from uvfio.doors.run.linux import syscalls
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.session.events import FileReleased
from uvfio.doors.run.session.session import INCOMPLETE, Session, negative_errno
from uvfio.errors import Cancelled, NoMemory, NoSpace, TooManyFiles
from uvfio.fops.file import Deferred, File


class Thing(File):
    """An open file that counts its releases."""

    __slots__ = ("released_times",)

    def __init__(self, name: str = "thing") -> None:
        super().__init__(name)
        self.released_times = 0

    def _release(self) -> None:
        self.released_times += 1


class FakeProcess:
    cacheable, used, tgid = True, False, 0

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.complained = False
        self.distinct: set[FakeProcess] = set()

    def free_number(self) -> int:
        return 800

    def cache(self, fd: int, file: File) -> None:
        self.used = True
        if fd >= 768:
            self.files[fd] = file


@pytest.fixture
def session(tmp_path: Any) -> Iterator[Session]:
    session = Session(machine_of("edu@0000:07:00.0,group=241"), str(tmp_path), abi="auto")
    session.listener = 99
    session.processes.caller = os.getpid()
    session.processes.get(os.getpid())
    yield session
    session.close()


def failing(*numbers: int) -> Callable[..., int]:
    """An addfd that fails with each of ``numbers`` in turn, then gives the number it is asked for, or 5."""
    left = list(numbers)

    def addfd(listener: int, notification: int, fd: int, number: int | None, cloexec: bool) -> int:
        if left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number))
        return 5 if number is None else number

    return addfd


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- descriptors -----------------------------------------------------------------------------------


def test_install(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "addfd", failing())
    process, file = FakeProcess(), Thing()
    assert session.install(cast("Any", process), file, True) == 800
    assert process.files == {800: file}
    assert process.used


@pytest.mark.parametrize(
    ("numbers", "condition", "number"),
    [
        ((errno.EMFILE,), TooManyFiles, errno.EMFILE),
        ((errno.ENFILE,), TooManyFiles, errno.EMFILE),
        ((errno.ENOENT,), NoSpace, errno.ENOSPC),
        ((errno.EBADF, errno.EMFILE), TooManyFiles, errno.EMFILE),
        ((errno.EINVAL,), OSError, errno.EINVAL),
    ],
)
def test_a_descriptor_that_cannot_be_given_leaves_nothing(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    numbers: tuple[int, ...],
    condition: type[OSError],
    number: int,
) -> None:
    before = open_descriptors()
    monkeypatch.setattr(syscalls, "addfd", failing(*numbers))
    process, file = FakeProcess(), Thing()
    with pytest.raises(condition) as refused:
        session.install(cast("Any", process), file, True)
    assert refused.value.errno == number
    assert (process.files, process.used, file.released_times) == ({}, False, 0)
    assert open_descriptors() == before


def test_a_number_above_the_limit_becomes_any_number(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "addfd", failing(errno.EBADF))
    process, file = FakeProcess(), Thing()
    assert session.install(cast("Any", process), file, False) == 5
    assert process.files == {}, "5 is not reserved, so it is not cached"


@pytest.mark.parametrize(
    ("number", "condition", "seen"),
    [
        (errno.EMFILE, TooManyFiles, errno.ENFILE),
        (errno.ENFILE, TooManyFiles, errno.ENFILE),
        (errno.ENOSPC, NoMemory, errno.ENOMEM),
    ],
)
def test_a_file_that_cannot_be_made(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    condition: type[OSError],
    seen: int,
) -> None:
    def create(file: File) -> tuple[object, int]:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(session.tokens, "create", create)
    with pytest.raises(condition) as refused:
        session.install(cast("Any", FakeProcess()), Thing(), True)
    assert refused.value.errno == seen


# -- the tree --------------------------------------------------------------------------------------


def test_without_room_the_tree_is_incomplete_until_there_is(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = session.tree.update
    full = [True]

    def maybe(nodes: Any) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        update(nodes)

    monkeypatch.setattr(session.tree, "update", maybe)
    session.machine.plug("edu@0000:09:00.0,group=9")
    session.settle()
    session.settle()
    assert session.shown == INCOMPLETE
    assert capsys.readouterr().err.count("No space left") == 1, "reported once"
    full[0] = False
    session.settle()
    assert session.shown == session.machine.framework.generation
    assert os.path.isdir(f"{session.tree.root}/sys/bus/pci/devices/0000:09:00.0")


# -- answers that take a while ---------------------------------------------------------------------


class FakeWait:
    what, ready = "waiting", False

    def __init__(self, *results: object) -> None:
        self.results = list(results)
        self.cancelled = False

    def poll(self) -> bool:
        result = self.results.pop(0) if self.results else False
        if isinstance(result, BaseException):
            raise result
        return bool(result)

    def delay(self) -> float:
        return 100.0

    def cancel(self) -> None:
        self.cancelled = True


def deferred(session: Session, wait: FakeWait, alive: Callable[[], bool] = lambda: True) -> Any:
    answers: list[object] = []
    later = Deferred(cast("Any", wait), 5)
    later.answered.append(answers.append)
    request = (1, 77, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0)
    session.defer(request, later, lambda value, error: answers.append((value, error)), alive)
    return answers


def test_a_wait_that_ends_is_answered_with_its_value(session: Session) -> None:
    answers = deferred(session, FakeWait(False, True))
    session.waits.poll()
    session.waits.poll()
    assert answers == [(5, None), 5]


def test_a_wait_that_is_refused_is_answered_with_the_refusal(session: Session) -> None:
    refusal = Cancelled("no")
    answers = deferred(session, FakeWait(refusal))
    session.waits.poll()
    assert answers == [(0, refusal), refusal]


def test_a_defect_in_a_wait_is_eio_and_is_reported(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = deferred(session, FakeWait(RuntimeError("a defect")))
    session.waits.poll()
    ((value, error), told) = answers
    assert (value, error.errno) == (0, errno.EIO)
    assert told is error
    assert "system call 16 of task 77, which waited" in capsys.readouterr().err


def test_a_caller_that_is_gone_ends_the_wait(session: Session) -> None:
    wait = FakeWait(False, False)
    answers = deferred(session, wait, lambda: False)
    session.waits.poll()
    assert wait.cancelled
    assert answers == []


# -- observers and reports -------------------------------------------------------------------------


def test_files_that_are_released_are_events_in_order(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []
    session.watch(lambda event: seen.append(("first", event)))
    session.watch(lambda event: seen.append(("second", event)), framework=False)
    forgotten: list[File] = []
    monkeypatch.setattr(session.processes, "forget_file", forgotten.append)
    file = Thing("/dev/vfio/1")
    session._released(cast("Any", SimpleNamespace(files=[file])))
    assert forgotten == [file]
    event = FileReleased("/dev/vfio/1")
    assert seen == [("first", event), ("second", event)]


def test_memory_that_cannot_be_read_is_reported_once_for_a_process(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = FakeProcess()
    monkeypatch.setattr(session.processes, "get", lambda tid: process)
    failure = Unreadable("the memory of 7 cannot be read", "run as root")
    session.report_refusal(7, failure)
    session.report_refusal(7, failure)
    assert capsys.readouterr().err == ("uvfio: the memory of 7 cannot be read\nhint: run as root\n")


def test_an_error_without_a_number_is_eio() -> None:
    assert negative_errno(OSError()) == -errno.EIO
    assert negative_errno(OSError(errno.EPERM, "")) == -errno.EPERM


@pytest.mark.parametrize("refused", ["write", "symlink", "mkdir", "rename"])
def test_no_room_at_the_start_leaves_nothing(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is refused with the folder and what to do; the folder is as it was."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, refused, full)
        with pytest.raises(OSError, match="No space left") as error:
            Session(machine_of(), str(tmp_path))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
