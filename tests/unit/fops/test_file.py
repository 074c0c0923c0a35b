"""fops.file: a file that supports nothing says so, and its end comes once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, cast

import pytest

from uvfio.errors import InvalidArgument, UnknownCommand, VfioError
from uvfio.fops.file import Deferred, File

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


def test_a_file_has_the_faces_of_its_classes() -> None:
    file = Counted("x")
    assert file.face(Counted) is file
    assert file.face(File) is file
    assert File("y").face(Counted) is None
    assert file.sequential() is file


def test_an_answer_that_comes_later_knows_its_value_and_who_wants_it() -> None:
    wait = cast("Any", object())
    later = Deferred(wait, 5)
    assert (later.wait, later.value, later.answered) == (wait, 5, [])
    assert not isinstance(later, OSError), "no door takes it for a refusal"
