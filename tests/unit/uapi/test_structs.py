"""Structs: annotations become the layout that a C compiler makes."""

import ctypes

import pytest

from uvfio.uapi.structs import Struct, i32, s64, u8, u16, u32, u64


class mixed(Struct):
    a: u8
    b: u16
    c: u32
    d: u64
    e: i32
    f: s64


class empty(Struct):
    pass


def test_fields_are_aligned_as_in_c() -> None:
    assert [getattr(mixed, name).offset for name in "abcdef"] == [0, 2, 4, 8, 16, 24]
    assert ctypes.sizeof(mixed) == 32


def test_fields_are_little_endian_and_signed_as_declared() -> None:
    value = mixed(a=1, b=0x0203, c=4, d=5, e=-1, f=-2)
    data = bytes(value)
    assert data[2:4] == b"\3\2"
    assert data[16:20] == b"\xff" * 4
    assert mixed.from_bytes(data).as_dict() == {
        "a": 1,
        "b": 0x0203,
        "c": 4,
        "d": 5,
        "e": -1,
        "f": -2,
    }


@pytest.mark.parametrize("size", [0, 31, 33])
def test_decoding_needs_the_exact_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"mixed is 32 bytes, not {size}"):
        mixed.from_bytes(bytes(size))


def test_a_decoded_struct_is_a_copy() -> None:
    data = bytearray(32)
    value = mixed.from_bytes(bytes(data))
    data[0] = 9
    assert value.a == 0


def test_a_struct_shows_its_fields_in_hexadecimal() -> None:
    assert (
        repr(mixed.from_bytes(b"\xff" + bytes(31)))
        == "mixed(a=0xff, b=0x0, c=0x0, d=0x0, e=0x0, f=0x0)"
    )


def test_a_struct_may_have_no_fields() -> None:
    assert ctypes.sizeof(empty) == 0
