"""Copying in pieces: how much each has, where it ends, and what an error leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from uvfio.core.waiting import Steps
from uvfio.doors.run.handlers import transfer as module
from uvfio.doors.run.handlers.transfer import finish, read_piece, transfer, write_piece
from uvfio.errors import BadAddress, VfioError
from uvfio.fops.file import Deferred, File

STRIDE = 64


class Registers(File):
    """``size`` bytes of registers, each byte the low one of its offset, and a log of the accesses."""

    __slots__ = ("log", "size")

    def __init__(self, size: int = 1 << 40) -> None:
        super().__init__("registers")
        self.size = size
        self.log: list[tuple[int, int]] = []

    def stride(self, offset: int) -> int:
        return STRIDE

    def pread(self, task: object, count: int, offset: int) -> bytes:
        self.log.append((offset, count))
        return bytes(at & 0xFF for at in range(offset, min(offset + count, self.size)))

    def pwrite(self, task: object, data: bytes, offset: int) -> int:
        self.log.append((offset, len(data)))
        return min(len(data), self.size - offset)


class Program:
    """A process with memory up to ``end``."""

    def __init__(self, end: int = 1 << 40) -> None:
        self.memory = self
        self.end = end
        self.bytes = bytearray(1 << 16)

    def read(self, address: int, size: int) -> bytes:
        if address + size > self.end:
            raise BadAddress("not there")
        return bytes(self.bytes[address : address + size])

    def write(self, address: int, data: bytes) -> None:
        if address + len(data) > self.end:
            raise BadAddress("not there")
        self.bytes[address : address + len(data)] = data


def run(
    program: Program,
    file: File,
    parts: Iterable[tuple[int, int]],
    offset: int,
    *,
    writes: bool = False,
) -> tuple[int, int]:
    """The result, and how many pieces it took."""
    move = write_piece if writes else read_piece
    work = transfer(cast("Any", program), file, move, parts, offset)
    pieces = 1
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value, pieces
        pieces += 1


@pytest.mark.parametrize("writes", [False, True])
def test_a_piece_has_a_stride_at_most(writes: bool) -> None:
    file, program = Registers(), Program()
    assert run(program, file, [(0, 1000)], 0, writes=writes) == (1000, 16)
    assert max(count for _, count in file.log) == STRIDE
    assert sum(count for _, count in file.log) == 1000


def test_pieces_end_where_no_access_is_cut() -> None:
    file, program = Registers(), Program()
    assert run(program, file, [(0, 300)], 5)[0] == 300
    assert [offset % 8 for offset, _ in file.log] == [5, 0, 0, 0, 0]
    assert program.bytes[:300] == bytes((5 + n) & 0xFF for n in range(300))


def test_many_parts_share_the_pieces() -> None:
    """Each of 1000 parts has a byte: as much work as 1000 bytes."""
    file, program = Registers(), Program()
    parts = [(at, 1) for at in range(1000)]
    done, pieces = run(program, file, [*parts, (0, 0), (2000, 3)], 0)
    assert (done, len(file.log)) == (1003, 1001)
    assert 1003 // STRIDE <= pieces <= 1003 // (STRIDE - 8) + 1


def test_the_end_of_the_file_ends_it() -> None:
    assert run(Program(), Registers(100), [(0, 1000), (0, 5)], 0) == (100, 2)


def test_no_more_than_the_kernel_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RW_COUNT", 160)
    assert run(Program(), Registers(), [(0, 100), (0, 100), (0, 100)], 0)[0] == 160


@pytest.mark.parametrize("writes", [False, True])
def test_what_was_moved_before_an_error_counts(writes: bool) -> None:
    assert run(Program(end=STRIDE), Registers(), [(0, 1000)], 0, writes=writes) == (STRIDE, 2)
    with pytest.raises(BadAddress):
        run(Program(end=STRIDE - 1), Registers(), [(0, 1000)], 0, writes=writes)


def test_what_takes_one_piece_is_finished_at_once() -> None:
    file, program = Registers(), Program()
    work = transfer(cast("Any", program), file, read_piece, [(0, STRIDE)], 0)
    assert finish(work, "reading") == STRIDE
    with pytest.raises(Deferred) as later:
        finish(transfer(cast("Any", program), file, read_piece, [(0, 100)], 0), "reading 100")
    wait = later.value.wait
    assert isinstance(wait, Steps)
    assert wait.what == "reading 100"
    assert wait.poll()
    assert wait.value == 100


def test_an_error_of_the_first_piece_is_the_calls() -> None:
    with pytest.raises(VfioError):
        finish(transfer(cast("Any", Program(end=0)), Registers(), read_piece, [(0, 100)], 0), "x")
