"""ioctl request numbers, part by part."""

from __future__ import annotations

import pytest

from uvfio.uapi.ioctl import (
    _IO,
    _IOC,
    _IOC_DIR,
    _IOC_NONE,
    _IOC_NR,
    _IOC_READ,
    _IOC_SIZE,
    _IOC_TYPE,
    _IOC_WRITE,
    _IOR,
    _IOW,
    _IOWR,
)


def test_the_four_makers_differ_in_direction() -> None:
    assert _IO(0x3B, 0x67) == 0x00003B67
    assert _IOW(0x3B, 0x65, 4) == 0x40043B65
    assert _IOR(0x3B, 0x64, 8) == 0x80083B64
    assert _IOWR(0x3B, 0x6A, 40) == 0xC0283B6A


def test_parts_can_be_taken_out_again() -> None:
    request = _IOC(_IOC_READ | _IOC_WRITE, 0x3B, 0x6A, 40)
    assert _IOC_DIR(request) == 3
    assert _IOC_TYPE(request) == ord(";")
    assert _IOC_NR(request) == 0x6A
    assert _IOC_SIZE(request) == 40
    assert _IOC_DIR(_IO(0, 0)) == _IOC_NONE


@pytest.mark.parametrize("parts", [(3, 255, 255, (1 << 14) - 1), (0, 0, 0, 0)])
def test_the_ends_of_each_part_fit(parts: tuple[int, int, int, int]) -> None:
    direction, kind, nr, size = parts
    request = _IOC(*parts)
    assert (_IOC_DIR(request), _IOC_TYPE(request)) == (direction, kind)
    assert (_IOC_NR(request), _IOC_SIZE(request)) == (nr, size)


@pytest.mark.parametrize(
    "parts",
    [
        (4, 0, 0, 0),
        (-1, 0, 0, 0),
        (0, 256, 0, 0),
        (0, 0, 256, 0),
        (0, 0, 0, 1 << 14),
        (0, 0, 0, -1),
    ],
)
def test_a_part_that_does_not_fit_is_refused(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        _IOC(*parts)
