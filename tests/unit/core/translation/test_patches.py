"""Memory of several pieces: each access reaches the piece that has its address."""

from __future__ import annotations

from typing import Any

import pytest

from uvfio.core.translation.patches import Patches, cut, join
from uvfio.errors import BadAddress


class Piece:
    """256 bytes, by the address modulo 256."""

    def __init__(self, fill: int) -> None:
        self.bytes = bytearray([fill] * 256)
        self.difference = ""

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes[address % 256 : address % 256 + size])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address % 256 : address % 256 + len(data)] = data

    def store(self, address: int, value: int, width: int) -> None:
        self.write(address, value.to_bytes(width, "little"))

    def view(self, address: int, size: int, **_: Any) -> memoryview | None:
        return memoryview(self.bytes)[address % 256 : address % 256 + size]

    def exchanged(self, address: int, size: int) -> str:
        return self.difference


ONE, TWO = Piece(1), Piece(2)


def made() -> tuple[Patches, Piece, Piece]:
    one, two = Piece(1), Piece(2)
    found = join([(0x200, 0x300, two), (0x100, 0x200, one)])
    assert isinstance(found, Patches)
    return found, one, two


def test_accesses_over_the_border() -> None:
    patches, one, two = made()
    assert patches.read(0x1FE, 4) == b"\1\1\2\2"
    patches.write(0x1FF, b"ab")
    assert (one.bytes[255], two.bytes[0]) == (ord("a"), ord("b"))
    patches.store(0x208, 0x0201, 2)
    assert two.bytes[8:10] == b"\1\2"
    assert patches.view(0x1FF, 2) is None
    view = patches.view(0x1F0, 16)
    assert view is not None
    view[0] = 9
    assert one.bytes[0xF0] == 9


@pytest.mark.parametrize(("address", "size"), [(0xFF, 2), (0x2FF, 2), (0x300, 1), (0, 1)])
def test_what_is_in_no_piece(address: int, size: int) -> None:
    patches, *_ = made()
    with pytest.raises(BadAddress, match="nothing is held at"):
        patches.read(address, size)
    with pytest.raises(BadAddress):
        patches.write(address, bytes(size))


def test_the_first_difference() -> None:
    patches, one, two = made()
    assert patches.exchanged(0x100, 0x200) == ""
    two.difference = "second"
    assert patches.exchanged(0x100, 0x200) == "second"
    assert patches.exchanged(0x100, 0x100) == ""
    one.difference = "first"
    assert patches.exchanged(0x100, 0x200) == "first"


def test_pieces_of_the_same_pages_are_one() -> None:
    assert join([(0, 0x100, ONE), (0x100, 0x200, ONE)]) is ONE
    apart = join([(0, 0x80, ONE), (0x90, 0x100, ONE)])
    assert isinstance(apart, Patches)
    assert [part[:2] for part in apart.parts] == [(0, 0x80), (0x90, 0x100)]


def test_a_cut_keeps_what_is_needed() -> None:
    patches, one, two = made()
    assert cut(patches, 0x100, 0x180) is one
    assert cut(patches, 0x200, 0x300) is two
    assert cut(ONE, 0x1000, 0x2000) is ONE
    both = cut(patches, 0x180, 0x280)
    assert isinstance(both, Patches)
    assert both.parts == [(0x180, 0x200, one), (0x200, 0x280, two)]


def test_joined_pieces_stay_flat() -> None:
    patches, *_ = made()
    more = join([(0x100, 0x300, patches), (0x300, 0x400, ONE)])
    assert isinstance(more, Patches)
    assert len(more.parts) == 3
    assert more.read(0x2FF, 2) == b"\2\1"
