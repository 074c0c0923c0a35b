"""Words of a trace: flags by name, strings of a program's memory as far as they can be read."""

from __future__ import annotations

import pytest

from uvfio.doors.run.observe.text import NAME_MAX, PAGE_SIZE, flags_text, string_text

NAMES = {1: "A", 2: "B", 8: "C"}


@pytest.mark.parametrize(
    ("flags", "text"), [(0, "0"), (3, "A|B"), (9, "A|C"), (4, "0x4"), (0x15, "A|0x14")]
)
def test_flags(flags: int, text: str) -> None:
    assert flags_text(flags, NAMES) == text


class Page:
    """One page at 0x1000, and every read of it."""

    def __init__(self, data: bytes, at: int) -> None:
        self.at = at
        self.bytes = bytes(at - 0x1000) + data
        self.bytes = self.bytes[:PAGE_SIZE].ljust(PAGE_SIZE, b"~")

    def read(self, address: int, size: int) -> bytes:
        if not 0x1000 <= address <= address + size <= 0x1000 + PAGE_SIZE:
            raise OSError(14, "nothing there")
        return self.bytes[address - 0x1000 : address - 0x1000 + size]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"edu\0rest", '"edu"'),
        (b"\0", '""'),
        (b"x" * 99, f'"{"x" * NAME_MAX}"'),
        (b"\xff\0", '"\ufffd"'),
    ],
)
def test_a_string_ends_at_its_nul_or_with_the_line(data: bytes, text: str) -> None:
    assert string_text(Page(data, 0x1100).read, 0x1100) == text


def test_nothing_behind_the_end_of_a_page_is_needed_for_a_string_that_ends_before() -> None:
    at = 0x2000 - 4
    assert string_text(Page(b"edu\0", at).read, at) == '"edu"'
    with pytest.raises(OSError, match="nothing there"):
        string_text(Page(b"long", at).read, at)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (0, "0"),
        (1, "ONE"),
        (3, "ONE|TWO"),
        (4, "0x4"),
        (6, "TWO|0x4"),
        (1 << 63, "0x8000000000000000"),
    ],
)
def test_flags_and_bits_without_a_name(flags: int, text: str) -> None:
    assert flags_text(flags, {1: "ONE", 2: "TWO"}) == text


def test_flags_without_names() -> None:
    assert flags_text(0, {}) == "0"
    assert flags_text(5, {}) == "0x5"
