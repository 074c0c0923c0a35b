"""fops.wire: structs that grow, chains of capabilities, and the errno of conditions."""

from __future__ import annotations

import errno
import struct
from typing import Any, ClassVar, cast

import pytest

from support.world import PAGE, SparseMemory
from uvfio.errors import (
    BadAddress,
    Busy,
    InvalidArgument,
    NotViable,
    NoVectors,
    TooManyMappings,
    UnknownCommand,
    VfioError,
    WrapsAround,
)
from uvfio.fops.wire import Chain, ModernFile, read_sized, read_struct

AT = 0x1000
TASK = cast("Any", None)


class Raising(ModernFile):
    """Its one command raises ``error``, or gives back its argument."""

    __slots__ = ()
    kind = "container"
    error: ClassVar[VfioError | None] = None

    def command(self, task: object, arg: int) -> int:
        if self.error is not None:
            raise self.error
        return arg

    COMMANDS: ClassVar = {0x3B64: command}


def memory(data: bytes) -> SparseMemory:
    made = SparseMemory()
    made.write(AT, data)
    return made


# -- commands ------------------------------------------------------------------------------------


def test_a_command_of_the_table_is_called_and_any_other_named() -> None:
    file = Raising("container")
    assert file.ioctl(TASK, 0x3B64, 7) == 7
    with pytest.raises(UnknownCommand, match="VFIO_SET_IOMMU") as caught:
        file.ioctl(TASK, 0x3B66, 0)
    assert caught.value.errno == errno.ENOTTY
    assert file.abi_of(0x3B64) == "mainline"


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        (NotViable, errno.EPERM),
        (NoVectors, errno.ERANGE),
        (TooManyMappings, errno.ENOSPC),
        (WrapsAround, errno.EOVERFLOW),
        (Busy, errno.EBUSY),
    ],
)
def test_conditions_have_the_numbers_of_these_abis(
    condition: type[VfioError], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Raising, "error", condition("no"))
    with pytest.raises(condition) as caught:
        Raising("container").ioctl(TASK, 0x3B64, 0)
    assert caught.value.errno == number


def test_a_number_that_a_call_chose_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Raising, "error", InvalidArgument("no", errno=errno.E2BIG))
    with pytest.raises(InvalidArgument) as caught:
        Raising("container").ioctl(TASK, 0x3B64, 0)
    assert caught.value.errno == errno.E2BIG


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
