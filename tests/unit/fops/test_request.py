"""fops.request: a table makes the dispatch, and one place gives conditions their errno."""

from __future__ import annotations

import errno
from typing import Any, ClassVar, cast

import pytest

from uvfio.errors import Busy, Overlap, UnknownCommand
from uvfio.fops.request import FULL, Dispatcher, Refused, Request, RequestFile

TASK = cast("Any", None)


class Known(RequestFile):
    __slots__ = ()
    ERRNO: ClassVar = {Overlap: errno.EBUSY}

    def answer(self, task: object, arg: int) -> int:
        if arg < 0:
            raise Overlap("no")
        return arg

    REQUESTS: ClassVar = {1: Request(answer), 2: Request(None, Refused("ENOTTY", "why"))}


def test_a_request_is_answered_by_its_row_and_refused_without_a_handler() -> None:
    file = Known("x")
    assert file.ioctl(TASK, 1, 7) == 7
    for number in (2, 3):
        with pytest.raises(UnknownCommand, match=f"x does not know 0x0000000{number}"):
            file.ioctl(TASK, number, 0)


def test_the_handlers_of_a_class_are_those_of_its_own_table() -> None:
    class More(Known):
        __slots__ = ()
        REQUESTS: ClassVar = {**Known.REQUESTS, 3: Request(Known.answer)}

    assert set(Known.HANDLERS) == {1}
    assert set(More.HANDLERS) == {1, 3}
    assert Dispatcher.HANDLERS == {}
    assert Known.REQUESTS[1].support is FULL


def test_a_condition_has_the_errno_of_the_abi() -> None:
    with pytest.raises(Overlap) as caught:
        Known("x").ioctl(TASK, 1, -1)
    assert caught.value.errno == errno.EBUSY != Overlap.default_errno
    assert Busy("own").errno == errno.EBUSY
