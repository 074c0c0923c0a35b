"""ioctl request numbers as ``asm-generic/ioctl.h`` encodes them (x86, arm64; not powerpc or mips).

A request is 32 bits: direction (2), size of the argument (14), type byte (8), number (8).
"""

from __future__ import annotations

__all__ = [
    "_IO",
    "_IOC",
    "_IOC_DIR",
    "_IOC_NONE",
    "_IOC_NR",
    "_IOC_READ",
    "_IOC_SIZE",
    "_IOC_TYPE",
    "_IOC_WRITE",
    "_IOR",
    "_IOW",
    "_IOWR",
]

_IOC_NONE, _IOC_WRITE, _IOC_READ = 0, 1, 2


def _IOC(direction: int, kind: int, nr: int, size: int) -> int:
    """``_IOC(dir, type, nr, size)``; raises ValueError for a part that its bits cannot hold."""
    if not (0 <= direction < 4 and 0 <= kind < 256 and 0 <= nr < 256 and 0 <= size < 1 << 14):
        raise ValueError(f"_IOC({direction}, {kind}, {nr}, {size}) does not fit 2+14+8+8 bits")
    return direction << 30 | size << 16 | kind << 8 | nr


def _IO(kind: int, nr: int) -> int:
    return _IOC(_IOC_NONE, kind, nr, 0)


def _IOR(kind: int, nr: int, size: int) -> int:
    return _IOC(_IOC_READ, kind, nr, size)


def _IOW(kind: int, nr: int, size: int) -> int:
    return _IOC(_IOC_WRITE, kind, nr, size)


def _IOWR(kind: int, nr: int, size: int) -> int:
    return _IOC(_IOC_READ | _IOC_WRITE, kind, nr, size)


def _IOC_DIR(request: int) -> int:
    return request >> 30 & 3


def _IOC_TYPE(request: int) -> int:
    return request >> 8 & 0xFF


def _IOC_NR(request: int) -> int:
    return request & 0xFF


def _IOC_SIZE(request: int) -> int:
    return request >> 16 & 0x3FFF
