"""fops.wire: numbers, strings, structs that grow, and chains of capabilities."""

from __future__ import annotations

import errno
import struct
from typing import Any, cast

import pytest

from support.world import PAGE, SparseMemory
from uvfio.errors import (
    BadAddress,
    InvalidArgument,
)
from uvfio.fops.wire import (
    TAIL_MAX,
    Chain,
    read_int,
    read_sized,
    read_string,
    read_struct,
    read_u32,
)

AT = 0x1000
TASK = cast("Any", None)


def memory(data: bytes) -> SparseMemory:
    made = SparseMemory()
    made.write(AT, data)
    return made


# -- numbers and strings ---------------------------------------------------------------------------


def test_an_int_has_a_sign_and_a_size_has_none() -> None:
    given = memory(b"\xff" * 4)
    assert read_int(given, AT) == -1
    assert read_u32(given, AT) == 0xFFFFFFFF


def test_a_string_ends_within_its_limit() -> None:
    given = memory(b"a\xffb" + bytes(1))
    assert read_string(given, AT) == "a\udcffb"
    with pytest.raises(InvalidArgument, match="no NUL within 3 bytes"):
        read_string(given, AT, 3)


# -- structs -------------------------------------------------------------------------------------


def test_a_struct_may_be_longer_than_what_is_known_and_not_shorter() -> None:
    for argsz in (16, 17, 1 << 31):
        data = struct.pack("<IIQ", argsz, 1, 2)
        assert read_struct(memory(data), AT, 16) == data
    with pytest.raises(InvalidArgument, match="argsz is 15, at least 16"):
        read_struct(memory(struct.pack("<IIQ", 15, 1, 2)), AT, 16)


def test_a_struct_has_to_be_there() -> None:
    holes = SparseMemory()
    holes.holes.add(1)
    for read in (read_struct, lambda m, at, size: read_sized(m, at, size, size)):
        with pytest.raises(BadAddress):
            read(holes, AT, 8)


def test_a_sized_struct_is_filled_up_or_its_rest_is_0() -> None:
    assert read_sized(memory(b"abcd"), AT, 2, 4) == b"ab\0\0"
    assert read_sized(memory(b"abcd"), AT, 4, 4) == b"abcd"
    assert read_sized(memory(b"abcd"), AT, 3 * PAGE, 4) == b"abcd"
    for behind in (4, PAGE + 4, 3 * PAGE - 1):
        given = memory(b"abcd")
        given.write(AT + behind, b"x")
        with pytest.raises(InvalidArgument, match="is not 0") as caught:
            read_sized(given, AT, 3 * PAGE, 4)
        assert caught.value.errno == errno.E2BIG


class Counted(SparseMemory):
    """Zeroes everywhere, and how much of them was read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read(self, address: int, size: int) -> bytes:
        self.reads.append(size)
        return bytes(size)


@pytest.mark.parametrize("size", [TAIL_MAX + 5, 0xFFFFFFFF])
def test_a_tail_that_is_too_long_is_refused_after_a_limited_look(size: int) -> None:
    given = Counted()
    with pytest.raises(InvalidArgument, match="give the size of the struct|looked at") as caught:
        read_sized(given, AT, size, 4)
    assert caught.value.errno == errno.E2BIG
    assert (sum(given.reads), max(given.reads)) == (TAIL_MAX + 4, PAGE)
    assert read_sized(Counted(), AT, TAIL_MAX + 4, 4) == bytes(4)


# -- capabilities --------------------------------------------------------------------------------


def test_a_chain_leads_from_one_capability_to_the_next_in_steps_of_8() -> None:
    chain = Chain()
    assert not chain
    chain.add(1, b"12345")
    chain.add(3, b"")
    assert chain.size == 8 + 8 + 8
    packed = chain.pack(24)
    assert packed[:16] == struct.pack("<HHI", 1, 1, 40) + b"12345\0\0\0"
    assert packed[16:] == struct.pack("<HHI", 3, 1, 0)


def test_a_chain_without_room_says_how_much_it_needs_and_writes_nothing() -> None:
    chain, target = Chain(), memory(bytes(64))
    assert chain.place(target, AT, 24, 24) == (24, 0)
    chain.add(1, b"12345678")
    assert chain.place(target, AT, 39, 24) == (40, 0)
    assert target.read(AT, 64) == bytes(64)
    assert chain.place(target, AT, 40, 24) == (40, 24)
    assert target.read(AT + 24, 16) == chain.pack(24)
