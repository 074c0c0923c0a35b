"""The container's ABI on /dev/iommu: for programs that were written for /dev/vfio/vfio.

The requests act on one address space of the iommufd (``Iommufd.compat``), which SET_CONTAINER makes or
IOMMU_VFIO_IOAS chooses; before that they are ENODEV. It has the rules of iommufd, which differ from type1's:

    request              /dev/vfio/vfio                     here
    SET_IOMMU            once, with groups                  any time; type1 (not v2) switches large pages off
    MAP_DMA              a device's memory too              memory only (EFAULT)
    UNMAP_DMA            nothing there is 0 bytes           ENOENT
      a part, version 1  as the first page says             exactly that part: the area is cut
      a part, version 2  EINVAL                             ENOENT
    DIRTY_PAGES, VADDR   yes                                no

Behaviour: drivers/iommu/iommufd/vfio_compat.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.translation.ioas import Backing
from uvfio.errors import InvalidArgument, UnknownCommand
from uvfio.fops.mainline.group import answer_info, read_info, read_map
from uvfio.fops.wire import Chain, ModernFile, read_struct
from uvfio.uapi import iommufd, vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Task
    from uvfio.core.structure.iommufd import Iommufd

__all__ = ["CompatFile"]

TYPES: Final = (vfio.VFIO_TYPE1_IOMMU, vfio.VFIO_TYPE1v2_IOMMU)
ALWAYS: Final = (*TYPES, vfio.VFIO_UNMAP_ALL)
MAP_FLAGS: Final = vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE
PAGES_ALL: Final = (1 << 64) - 4096  # as long as no IOMMU says otherwise
PLENTY: Final = 0xFFFFFFFF  # mappings are not counted


class CompatFile(ModernFile):
    """See the module's head."""

    __slots__ = ("context",)

    context: Iommufd

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        handler = self.COMPAT.get(cmd)
        if handler is None:
            raise UnknownCommand(f"{self.name} does not know {iommufd.ioctl_name(cmd)}")
        return handler(self, task, arg)

    def get_api_version(self, task: Task, arg: int) -> int:
        """VFIO_GET_API_VERSION."""
        return vfio.VFIO_API_VERSION

    def check_extension(self, task: Task, arg: int) -> int:
        """VFIO_CHECK_EXTENSION. Every device that can be bound is coherent."""
        if arg == vfio.VFIO_DMA_CC_IOMMU:
            self.context.compat_ioas()
            return 1
        return int(arg in ALWAYS)

    def set_iommu(self, task: Task, arg: int) -> int:
        """VFIO_SET_IOMMU: type1, version 1 or 2."""
        if arg not in TYPES:
            raise InvalidArgument(f"there is no IOMMU of type {arg}", "type1 is 1 or 3")
        ioas = self.context.compat_ioas()
        if arg == vfio.VFIO_TYPE1_IOMMU:
            ioas.use_large_pages(False)
        return 0

    def iommu_get_info(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_GET_INFO, with the capabilities DMA_AVAIL and IOVA_RANGE."""
        memory = task.memory
        argsz = read_info(memory, arg)
        ioas = self.context.compat_ioas()
        sizes = PAGES_ALL
        for hwpt in ioas.hwpts:
            sizes &= sum(hwpt.unit.page_sizes)
        chain = Chain()
        chain.add(vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, vfio.U32.pack(PLENTY))
        answer_info(memory, arg, argsz, sizes, chain, ioas.windows(), exact=True)
        return 0

    def map_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_MAP_DMA."""
        flags, vaddr, iova, size = read_map(task.memory, arg, MAP_FLAGS)
        ioas = self.context.compat_ioas()
        readable = bool(flags & vfio.VFIO_DMA_MAP_FLAG_READ)
        writable = bool(flags & vfio.VFIO_DMA_MAP_FLAG_WRITE)
        backing = Backing(task.mm, writable, task.mm, task.memlock_limit())
        ioas.map(backing, vaddr, size, iova, readable=readable, writable=writable)
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: one range or ALL; answers how much."""
        memory = task.memory
        raw = read_struct(memory, arg, vfio.DMA_UNMAP.size)
        argsz, flags, iova, size = vfio.DMA_UNMAP.unpack(raw)
        if flags & ~vfio.VFIO_DMA_UNMAP_FLAG_ALL:
            raise InvalidArgument(f"flags {flags:#x} has unknown bits")
        ioas = self.context.compat_ioas()
        if not flags:
            done = ioas.unmap(iova, size, cut=not ioas.large_pages)
        elif iova or size:
            raise InvalidArgument(f"all shall be unmapped, but {iova:#x}+{size:#x} is given")
        else:
            done = ioas.unmap_all()
        memory.write(arg, vfio.DMA_UNMAP.pack(argsz, flags, iova, done))
        return 0

    COMPAT: ClassVar[dict[int, Callable[..., int]]] = {
        vfio.VFIO_GET_API_VERSION: get_api_version,
        vfio.VFIO_CHECK_EXTENSION: check_extension,
        vfio.VFIO_SET_IOMMU: set_iommu,
        vfio.VFIO_IOMMU_GET_INFO: iommu_get_info,
        vfio.VFIO_IOMMU_MAP_DMA: map_dma,
        vfio.VFIO_IOMMU_UNMAP_DMA: unmap_dma,
    }
