"""Windows: memory, overlays, calls, and nothing at all."""

from __future__ import annotations

from uvfio.kit.window import AbsentWindow, CallWindow, MemoryWindow, OverlayWindow


def test_memory_window() -> None:
    memory = bytearray(8)
    window = MemoryWindow({0: memoryview(memory)}, 0)
    window.write(2, 0x1234, 2)
    assert memory == bytes([0, 0, 0x34, 0x12, 0, 0, 0, 0])
    assert window.read(0, 8) == 0x12340000


def test_overlay() -> None:
    memory = memoryview(bytearray(32))
    seen: list[tuple[int, int, int]] = []
    window = OverlayWindow(
        MemoryWindow({0: memory}, 0),
        (
            (8, 16, CallWindow(lambda offset, size: offset, lambda *write: seen.append(write))),
            (16, 20, CallWindow(lambda offset, size: 7)),
        ),
    )
    for offset in (4, 12, 16, 20):
        window.write(offset, 0x55, 4)
    assert seen == [(4, 0x55, 4)]
    assert [window.read(offset, 4) for offset in (4, 12, 16, 20)] == [0x55, 4, 7, 0x55]


def test_absent_window() -> None:
    window = AbsentWindow()
    window.write(0, 1, 4)
    assert window.read(0, 2) == 0xFFFF
