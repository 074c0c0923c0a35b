"""drivers.window: how a byte range becomes accesses of registers, copies of memory, and mappings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from uvfio.core.bus import Region
from uvfio.drivers.window import MemoryWindow, PolledWindow, RegisterWindow, Window, width_at
from uvfio.errors import InvalidArgument

PAGE = 4096


class Silicon:
    """Bytes behind a region, and every access to them. ``asked`` counts how often memory was asked for."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(range(256)) * (size // 256) + bytearray(range(size % 256))
        self.log: list[tuple[int, ...]] = []
        self.asked = 0

    def load(self, index: int, offset: int, width: int) -> int:
        self.log.append((index, offset, width))
        return int.from_bytes(self.bytes[offset : offset + width], "little")

    def store(self, index: int, offset: int, value: int, width: int) -> None:
        self.log.append((index, offset, value, width))
        self.bytes[offset : offset + width] = value.to_bytes(width, "little")

    def memory(self, index: int) -> memoryview:
        self.asked += 1
        return memoryview(self.bytes)


def registers(size: int = 0x20, *, writable: bool = True) -> tuple[RegisterWindow, Silicon]:
    silicon = Silicon(size)
    return RegisterWindow(
        "dev", Region(2, size, writable=writable), silicon.load, silicon.store
    ), silicon


def memory(size: int = 2 * PAGE, *, writable: bool = True) -> tuple[MemoryWindow, Silicon]:
    silicon = Silicon(size)
    return MemoryWindow(
        "dev", Region(1, size, writable=writable, mappable=True), silicon.memory
    ), silicon


@pytest.mark.parametrize(
    ("offset", "left", "widest", "width"),
    [
        (0, 8, 4, 4),
        (0, 8, 8, 8),
        (4, 8, 8, 4),
        (0, 7, 8, 4),
        (2, 8, 8, 2),
        (0, 3, 4, 2),
        (3, 8, 8, 1),
        (2, 1, 4, 1),
    ],
)
def test_the_widest_aligned_access(offset: int, left: int, widest: int, width: int) -> None:
    assert width_at(offset, left, widest) == width


def test_a_read_of_registers_is_cut_into_aligned_accesses() -> None:
    window, silicon = registers()
    assert window.read(1, 10) == bytes(range(1, 11))
    assert silicon.log == [(2, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 2), (2, 10, 1)]
    silicon.log.clear()
    assert window.read(0, 16, 8) == bytes(range(16))
    assert silicon.log == [(2, 0, 8), (2, 8, 8)]


def test_a_write_of_registers_is_cut_into_aligned_accesses() -> None:
    window, silicon = registers()
    assert window.write(2, b"abcdefg") == 7
    assert silicon.log == [(2, 2, 0x6261, 2), (2, 4, 0x66656463, 4), (2, 8, 0x67, 1)]
    assert silicon.bytes[2:9] == b"abcdefg"


@pytest.mark.parametrize("make", [registers, memory])
def test_ranges_are_cut_at_the_end_of_the_region(
    make: Callable[[], tuple[Window, Silicon]],
) -> None:
    window, _ = make()
    size = window.region.size
    assert len(window.read(size - 3, 100)) == 3
    assert window.write(size - 3, b"abcdef") == 3
    assert window.read(size - 3, 3) == b"abc"
    assert window.read(size, 4) == b""
    assert window.write(size, b"1234") == 0


@pytest.mark.parametrize("make", [registers, memory])
def test_nothing_is_reached_outside(make: Callable[[], tuple[Window, Silicon]]) -> None:
    window, silicon = make()
    for offset in (window.region.size + 1, -1, 1 << 40):
        with pytest.raises(InvalidArgument, match="before offset"):
            window.read(offset, 1)
        with pytest.raises(InvalidArgument, match="before offset"):
            window.write(offset, b"x")
    assert (silicon.log, silicon.asked) == ([], 0)


@pytest.mark.parametrize("make", [registers, memory])
def test_a_read_only_region_takes_no_write(make: Callable[..., tuple[Window, Silicon]]) -> None:
    window, silicon = make(writable=False)
    with pytest.raises(InvalidArgument, match="read-only"):
        window.write(0, b"x")
    assert window.read(0, 2) == b"\0\1"
    assert silicon.bytes[0] == 0


def test_a_region_that_is_not_there() -> None:
    window = Window("dev", Region(3, 0, writable=False))
    calls = (lambda: window.read(0, 0), lambda: window.write(0, b""), lambda: window.mmap(0, PAGE))
    for call in calls:
        with pytest.raises(InvalidArgument, match="dev: region 3"):
            call()


def test_memory_is_asked_for_each_time() -> None:
    window, silicon = memory()
    window.read(0, 1)
    silicon.bytes = bytearray(b"moved".ljust(2 * PAGE, b"\0"))
    assert window.read(0, 5) == b"moved"


def test_a_mapping_is_the_memory_itself() -> None:
    window, silicon = memory()
    view = window.mmap(PAGE, PAGE)
    view[0:4] = b"here"
    assert len(view) == PAGE
    assert silicon.bytes[PAGE : PAGE + 4] == b"here"


def test_polled_registers_can_be_mapped_and_are_accessed_as_registers() -> None:
    silicon = Silicon(PAGE)
    region = Region(0, PAGE, writable=True, mappable=True)
    window = PolledWindow("dev", region, silicon.load, silicon.store, silicon.memory)
    assert window.read(4, 4) == b"\4\5\6\7"
    assert (silicon.log, silicon.asked) == ([(0, 4, 4)], 0)
    assert bytes(window.mmap(0, PAGE)[4:8]) == b"\4\5\6\7"
    assert silicon.asked == 1, "that is how the device knows"


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (-PAGE, PAGE), (PAGE, 2 * PAGE), (2 * PAGE, 1), (0, 1 << 63)]
)
def test_a_mapping_has_to_be_inside(offset: int, size: int) -> None:
    window, silicon = memory()
    with pytest.raises(InvalidArgument, match="is not inside"):
        window.mmap(offset, size)
    assert silicon.asked == 0


def test_less_than_a_page_and_plain_registers_cannot_be_mapped() -> None:
    small, _ = memory(0x800)
    with pytest.raises(InvalidArgument, match="smaller than a page"):
        small.mmap(0, 0x800)
    plain, _ = registers(PAGE)
    with pytest.raises(InvalidArgument, match="cannot be mapped") as caught:
        plain.mmap(0, PAGE)
    assert caught.value.hint == "read and write it"
