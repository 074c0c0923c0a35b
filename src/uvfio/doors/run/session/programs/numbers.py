"""Which number of the reserved range a new descriptor of a program gets.

A descriptor is installed with SECCOMP_ADDFD_FLAG_SETFD, which replaces what is there: the number has to be free, and to
stay free until then, although other threads of the program run. Numbers of the range are taken by

    dup2, dup3, F_DUPFD with a number of FLOOR or more    notified: ``Processes.begins`` notes what they may take
    F_DUPFD with a smaller one, open, socket, recvmsg...  not notified: the kernel gives the lowest free one

The latter reach a number when none is free between FLOOR and it. Therefore ``free_number`` gives only numbers that have
MARGIN free ones below them besides; in a fuller table it gives none, and the kernel chooses (docs/limits.md).

Invariants: nothing is remembered; a number that was given is the caller's to use before the next call is received.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from uvfio.doors.run.filter.build import floor
from uvfio.doors.run.linux import proc

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["free_number", "may_reach"]


class Table(Protocol):
    """What is known of a program's descriptors (``Process``)."""

    @property
    def files(self) -> Mapping[int, object]:
        """The numbers that lead to files of the machine."""

    def is_changing(self, fd: int) -> bool:
        """Whether a call that may take the number is in flight."""


def _margin(reserved: range) -> int:
    return reserved.start // 8


def free_number(process: Table, tid: int, reserved: range, least: int = 0) -> int | None:
    """The lowest free descriptor of ``reserved`` that is not below ``least``; the highest one if that has too few free
    ones below it and ``least`` is not in the range; or None."""
    numbers = range(max(reserved.start, least), reserved.stop)
    safe = proc.count_open(tid) + floor(reserved) + _margin(reserved)
    if safe > numbers.start:
        if least > reserved.start:
            return None
        numbers = range(max(numbers.start, safe), reserved.stop)[::-1]
    for number in numbers:
        if (
            number not in process.files
            and not os.path.lexists(f"/proc/{tid}/fd/{number}")
            and not process.is_changing(number)
        ):
            return number
    return None


def may_reach(tid: int, reserved: range, least: int) -> bool:
    """Whether F_DUPFD with ``least``, which is below the range, may give a number of the range."""
    try:
        taken = sum(
            least <= int(number) < reserved.start for number in os.listdir(f"/proc/{tid}/fd")
        )
    except FileNotFoundError:
        return False  # it has ended
    return reserved.start - least - taken < _margin(reserved)
