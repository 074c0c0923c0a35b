"""Open files of sysfs that take writes."""

from __future__ import annotations

import pytest

from uvfio.core.seams import Task
from uvfio.core.waiting import Then, Wait
from uvfio.doors.local import Process
from uvfio.errors import BadDescriptor, InvalidArgument, UnknownCommand
from uvfio.fops.attribute import AttributeFile
from uvfio.fops.file import Deferred
from uvfio.machine.machine import Machine


class Memo:
    def __init__(self) -> None:
        self.data = b"memo\n"
        self.wait: Wait | None = None

    def read(self, offset: int, count: int) -> bytes:
        return self.data[offset : offset + count]

    def write(self, offset: int, data: bytes) -> tuple[int, Wait | None]:
        self.data = data
        return len(data), self.wait


@pytest.fixture
def task() -> Task:
    return Process(Machine(devices=[]))


def test_reads_and_writes(task: Task) -> None:
    memo = Memo()
    file = AttributeFile("/sys/x", memo, reads=True, writes=True)
    assert file.pread(task, 10, 1) == b"emo\n"
    assert file.pwrite(task, b"new", 7) == 3
    assert memo.data == b"new"


def test_what_it_was_not_opened_for(task: Task) -> None:
    memo = Memo()
    with pytest.raises(BadDescriptor):
        AttributeFile("/sys/x", memo, reads=True, writes=False).pwrite(task, b"x", 0)
    with pytest.raises(BadDescriptor):
        AttributeFile("/sys/x", memo, reads=False, writes=True).pread(task, 1, 0)
    assert memo.data == b"memo\n"


def test_what_no_such_file_can(task: Task) -> None:
    file = AttributeFile("/sys/x", Memo(), reads=True, writes=True)
    with pytest.raises(UnknownCommand):
        file.ioctl(task, 0x3B64, 0)
    with pytest.raises(InvalidArgument) as caught:
        file.mmap(task, 4096, 0, True)
    assert caught.value.errno == 19


def test_a_write_that_waits_is_answered_later(task: Task) -> None:
    memo = Memo()

    class Never:
        what, ready = "for ever", False

        def poll(self) -> bool:
            return False

        def delay(self) -> float:
            return 1.0

        def cancel(self) -> None: ...

    memo.wait = Then(Never(), lambda: None)
    with pytest.raises(Deferred) as caught:
        AttributeFile("/sys/x", memo, reads=False, writes=True).pwrite(task, b"four", 0)
    assert caught.value.wait is memo.wait
    assert caught.value.value == 4
