"""Requests of type1 IOMMUs, decoded and encoded for both files that answer them.

/dev/vfio/vfio (``container.py``) and /dev/iommu (``iommufd_container.py``) take the same structs and have different
rules. What they share is here: the structs, the extensions and types that both have, and the one answer that does not
depend on anything.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from uvfio.errors import InvalidArgument
from uvfio.fops.wire import read_struct
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Memory, Task
    from uvfio.fops.wire import Chain

__all__ = [
    "EXTENSIONS",
    "VERSIONS",
    "Map",
    "Unmap",
    "answer_info",
    "get_api_version",
    "read_info",
    "read_map",
    "read_unmap",
]

VERSIONS: Final = {vfio.VFIO_TYPE1_IOMMU: 1, vfio.VFIO_TYPE1v2_IOMMU: 2}
"""The arguments of VFIO_SET_IOMMU that mean type1, and which version of it."""
EXTENSIONS: Final = frozenset((*VERSIONS, vfio.VFIO_UNMAP_ALL))
"""The arguments of VFIO_CHECK_EXTENSION that are always answered with 1."""

INFO: Final = struct.Struct("<IIQII")  # argsz, flags, iova_pgsizes, cap_offset, pad
INFO_MIN: Final = 16


class Map(NamedTuple):
    """The argument of VFIO_IOMMU_MAP_DMA. ``vaddr``, ``iova`` and ``size`` are in bytes."""

    flags: int
    vaddr: int
    iova: int
    size: int

    @property
    def readable(self) -> bool:
        """Whether the flag READ is set."""
        return bool(self.flags & vfio.VFIO_DMA_MAP_FLAG_READ)

    @property
    def writable(self) -> bool:
        """Whether the flag WRITE is set."""
        return bool(self.flags & vfio.VFIO_DMA_MAP_FLAG_WRITE)


class Unmap(NamedTuple):
    """The argument of VFIO_IOMMU_UNMAP_DMA, and where it is."""

    memory: Memory
    address: int
    argsz: int
    flags: int
    iova: int
    size: int

    def answer(self, done: int) -> None:
        """Write back that ``done`` bytes were unmapped. Raises BadAddress."""
        self.memory.write(
            self.address, vfio.DMA_UNMAP.pack(self.argsz, self.flags, self.iova, done)
        )


def get_api_version(file: object, task: Task, arg: int) -> int:
    """VFIO_GET_API_VERSION: 0. Cannot fail."""
    return vfio.VFIO_API_VERSION


def read_info(memory: Memory, arg: int) -> int:
    """The ``argsz`` of VFIO_IOMMU_GET_INFO. Raises BadAddress, InvalidArgument if it is less than 16."""
    return int.from_bytes(read_struct(memory, arg, INFO_MIN)[:4], "little")


def answer_info(
    memory: Memory,
    arg: int,
    argsz: int,
    page_sizes: int,
    chain: Chain,
    windows: list[tuple[int, int]],
    *,
    exact: bool = False,
) -> None:
    """Answer VFIO_IOMMU_GET_INFO: the struct, ``chain``, and the capability IOVA_RANGE made of ``windows``.

    ``argsz`` of the answer is the size that is needed if it was less; with ``exact`` always.
    """
    ranges = b"".join(struct.pack("<QQ", *window) for window in windows)
    ranges = struct.pack("<II", len(windows), 0) + ranges
    chain.add(vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, ranges)
    size = min(argsz, INFO.size)
    argsz, at = chain.place(memory, arg, argsz, INFO.size)
    argsz = INFO.size + chain.size if exact else argsz
    flags = vfio.VFIO_IOMMU_INFO_PGSIZES | vfio.VFIO_IOMMU_INFO_CAPS
    memory.write(arg, INFO.pack(argsz, flags, page_sizes, at, 0)[:size])


def read_map(memory: Memory, arg: int, known: int) -> Map:
    """The argument of VFIO_IOMMU_MAP_DMA.

    Raises BadAddress, InvalidArgument if ``argsz`` is less than 32, or for flags that are not ``known``.
    """
    raw = read_struct(memory, arg, vfio.DMA_MAP.size)
    flags, vaddr, iova, size = vfio.DMA_MAP.unpack(raw)[1:]
    if flags & ~known:
        raise InvalidArgument(f"flags {flags:#x} has unknown bits")
    return Map(flags, vaddr, iova, size)


def read_unmap(memory: Memory, arg: int) -> Unmap:
    """The argument of VFIO_IOMMU_UNMAP_DMA. Raises BadAddress, InvalidArgument if ``argsz`` is less than 24."""
    raw = read_struct(memory, arg, vfio.DMA_UNMAP.size)
    return Unmap(memory, arg, *vfio.DMA_UNMAP.unpack(raw))
