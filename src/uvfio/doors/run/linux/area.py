"""``Area``: what a program has mapped at a range of addresses, and what it means for two of them to be the same memory.

An area is a line of /proc/PID/maps. Its bounds are no identity: the kernel joins neighbours and divides areas without
any exchange of memory. Anonymous private memory has no identity at all.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Area", "Identity", "described"]

Identity = tuple[bool, int, int, int]
"""What is mapped at an address, wherever it is: shared, device, inode, offset in the file minus address."""


class Area(NamedTuple):
    """A part of the program's address space, from /proc/PID/maps."""

    start: int
    end: int
    readable: bool
    writable: bool
    shared: bool
    offset: int
    dev: int
    inode: int

    @property
    def identity(self) -> Identity:
        """Equal for areas that show the same bytes at the same addresses, and for any two of anonymous memory."""
        return (self.shared, self.dev, self.inode, self.offset - self.start if self.inode else 0)


def described(identity: Identity, address: int) -> str:
    """What ``identity`` says of an address, in words."""
    shared, _, inode, shift = identity
    kind = "shared" if shared else "private"
    return f"{kind} inode {inode} + {address + shift:#x}" if inode else f"{kind} anonymous memory"
