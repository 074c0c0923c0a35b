"""A program of 2011 with two groups open, and a second program with one of them.

``Desk`` is a ``World`` of two devices, a in group 1 and b in group 2.
"""

from __future__ import annotations

from support.world import (
    PAGE,
    World,
    group_fd,
    iommu_fd,
    see_mappings,
)
from uvfio.core.translation.unit import IommuUnit
from uvfio.doors.local import Process
from uvfio.uapi import rfc

VIABLE, LOCKED = rfc.VFIO_GROUP_FLAGS_VIABLE, rfc.VFIO_GROUP_FLAGS_MM_LOCKED
NOWHERE = 0x10  # an address that leads to no memory
UNKNOWN = 0x3B7F
PAIR = ("a", "b")


class Desk(World):
    """Groups 1 (a) and 2 (b); a program with both open, and a stranger with group 1 open."""

    def __init__(self, unit: IommuUnit = IommuUnit(), memlock: int | None = None) -> None:  # noqa: B008
        super().__init__()
        self.plug("a", 1)
        self.plug("b", 2, unit=unit)
        self.me = self.process("me", memlock)
        self.other = self.process("other")
        self.g1 = group_fd(self.me, 1)
        self.g2 = group_fd(self.me, 2)
        self.foreign = group_fd(self.other, 1)

    def buffer(self, size: int = PAGE, process: Process | None = None) -> int:
        """The address of memory of the program."""
        return (process or self.me).memory.allocate(size)

    def iommu_and_buffer(self, pages: int = 4) -> tuple[int, int]:
        return iommu_fd(self.me, self.g1), self.buffer(pages * PAGE)

    def mappings(self) -> list[tuple[int, int, int, bool]]:
        domain = self.iommu(1).domain
        assert domain is not None
        return see_mappings(domain)


def at_end_of_memory(desk: Desk, data: bytes) -> int:
    """The address of ``data`` so placed that the byte after it is not mapped."""
    base = desk.buffer(PAGE)
    desk.me.memory.write(base + PAGE - len(data), data)
    return base + PAGE - len(data)


def read_only(desk: Desk) -> int:
    return desk.me.memory.allocate(PAGE, writable=False)
