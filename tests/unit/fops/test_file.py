"""fops.file: a file that supports nothing says so, and its end comes once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, cast

import pytest

from uvfio.core.events import Interrupt
from uvfio.doors.local import LocalEvent
from uvfio.errors import InvalidArgument, UnknownCommand, VfioError
from uvfio.fops.file import ABI_2011, MAINLINE, Deferred, File, find_file, report_signals

TASK = cast("Any", None)


class Counted(File):
    ends = 0

    def _release(self) -> None:
        type(self).ends += 1


@pytest.mark.parametrize(
    ("call", "condition", "number"),
    [
        (lambda file: file.ioctl(TASK, 0x3B64, 0), UnknownCommand, errno.ENOTTY),
        (lambda file: file.pread(TASK, 4, 0), InvalidArgument, errno.EINVAL),
        (lambda file: file.pwrite(TASK, b"x", 0), InvalidArgument, errno.EINVAL),
        (lambda file: file.mmap(TASK, 4096, 0, True), InvalidArgument, errno.ENODEV),
    ],
)
def test_what_is_not_overridden_is_refused(
    call: Callable[[File], object], condition: type[VfioError], number: int
) -> None:
    with pytest.raises(condition, match="anon_inode") as caught:
        call(File("anon_inode:[x]"))
    assert caught.value.errno == number


def test_a_file_is_released_once() -> None:
    file = Counted("x")
    file.release()
    file.release()
    assert (Counted.ends, file.released) == (1, True)


def test_a_file_is_nothing_to_other_files_unless_it_overrides_that() -> None:
    file = Counted("x")
    assert (file.framework, file.container, file.context) == (None, None, None)
    assert file.group_as(ABI_2011) is file.group_as(MAINLINE) is None
    assert file.abi_of(0x3B64) == ABI_2011
    assert file.sequential() is file


def test_only_files_of_the_same_machine_are_found() -> None:
    machine, other = cast("Any", object()), cast("Any", object())

    class Member(File):
        framework = machine

    class Asking:
        def file(self, fd: int) -> object:
            return {3: member, 4: File("x"), 5: object()}[fd]

    member, task = Member("m"), cast("Any", Asking())
    assert find_file(task, 3, machine) is member
    assert find_file(task, 3, other) is None
    assert find_file(task, 4, machine) is None
    assert find_file(task, 5, machine) is None


def test_signals_are_reported_only_to_an_observer() -> None:
    class Watched:
        observer: object = None

    seen: list[object] = []
    watched, event = Watched(), LocalEvent()
    assert report_signals(cast("Any", watched), event, "d", "MSI", 1) is event
    watched.observer = seen.append
    report_signals(cast("Any", watched), event, "d", "MSI", 1).signal()
    assert seen == [Interrupt("d", "MSI", 1)]


def test_an_answer_that_comes_later_knows_its_value_and_who_wants_it() -> None:
    wait = cast("Any", object())
    later = Deferred(wait, 5)
    assert (later.wait, later.value, later.answered) == (wait, 5, [])
    assert not isinstance(later, OSError), "no door takes it for a refusal"
