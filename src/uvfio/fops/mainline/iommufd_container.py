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

from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.translation.area import Backing
from uvfio.errors import InvalidArgument
from uvfio.fops.mainline.type1 import (
    EXTENSIONS,
    VERSIONS,
    answer_info,
    get_api_version,
    read_info,
    read_map,
    read_unmap,
)
from uvfio.fops.request import Dispatcher, Partial, Refused, Request
from uvfio.fops.wire import Chain
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Task
    from uvfio.core.structure.iommufd import Iommufd

__all__ = ["PARTLY_UNMAPPED", "ContainerRequests"]

MAP_FLAGS: Final = vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE
PAGES_ALL: Final = (1 << 64) - 4096  # as long as no IOMMU says otherwise
PLENTY: Final = 0xFFFFFFFF  # mappings are not counted


PARTLY_UNMAPPED: Final = Partial(
    "a range that ends inside an area unmaps nothing; Linux unmaps the areas before that one"
)
NOT_HERE: Final = Refused("ENOTTY", "not on /dev/iommu, as in Linux")


class ContainerRequests(Dispatcher):
    """The container's requests to the iommufd ``context``. ``IommufdFile`` calls the handlers."""

    __slots__ = ("context",)

    kind = "container"

    def __init__(self, context: Iommufd) -> None:
        self.context = context

    def check_extension(self, task: Task, arg: int) -> int:
        """VFIO_CHECK_EXTENSION: 1 for an extension that exists, else 0 (iommufd_vfio_check_extension).

        DMA_CC_IOMMU is 1, as every device that can be bound is coherent, and ENODEV without an address space.
        """
        if arg == vfio.VFIO_DMA_CC_IOMMU:
            self.context.compat_ioas()
            return 1
        return int(arg in EXTENSIONS)

    def set_iommu(self, task: Task, arg: int) -> int:
        """VFIO_SET_IOMMU: type1, version 1 or 2; else EINVAL. ENODEV without an address space.

        Version 1 maps without large pages from then on (iommufd_vfio_set_iommu).
        """
        if arg not in VERSIONS:
            raise InvalidArgument(f"there is no IOMMU of type {arg}", "type1 is 1 or 3")
        ioas = self.context.compat_ioas()
        if arg == vfio.VFIO_TYPE1_IOMMU:
            ioas.use_large_pages(False)
        return 0

    def iommu_get_info(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_GET_INFO, with the capabilities DMA_AVAIL and IOVA_RANGE (iommufd_vfio_iommu_get_info).

        EFAULT, EINVAL for ``argsz`` below 16, ENODEV.
        """
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
        """VFIO_IOMMU_MAP_DMA: EFAULT, EINVAL for ``argsz`` or flags, ENODEV, then as ``Ioas.map`` raises
        (iommufd_vfio_map_dma)."""
        asked = read_map(task.memory, arg, MAP_FLAGS)
        ioas = self.context.compat_ioas()
        readable, writable = asked.readable, asked.writable
        backing = Backing(task.mm, writable, task.mm, task.memlock_limit())
        ioas.map(backing, asked.vaddr, asked.size, asked.iova, readable=readable, writable=writable)
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: one range or ALL; answer the number of bytes (iommufd_vfio_unmap_dma).

        EFAULT, EINVAL for ``argsz`` or flags, ENODEV, EINVAL for ALL with a range, then as ``Ioas.unmap`` raises.
        """
        asked = read_unmap(task.memory, arg)
        flags, iova, size = asked.flags, asked.iova, asked.size
        if flags & ~vfio.VFIO_DMA_UNMAP_FLAG_ALL:
            raise InvalidArgument(f"flags {flags:#x} has unknown bits")
        ioas = self.context.compat_ioas()
        if not flags:
            done = ioas.unmap(iova, size, cut=not ioas.large_pages)
        elif iova or size:
            raise InvalidArgument(f"all shall be unmapped, but {iova:#x}+{size:#x} is given")
        else:
            done = ioas.unmap_all()
        asked.answer(done)
        return 0

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        vfio.VFIO_GET_API_VERSION: Request(get_api_version),
        vfio.VFIO_CHECK_EXTENSION: Request(check_extension),
        vfio.VFIO_SET_IOMMU: Request(set_iommu),
        vfio.VFIO_IOMMU_GET_INFO: Request(iommu_get_info),
        vfio.VFIO_IOMMU_MAP_DMA: Request(map_dma),
        vfio.VFIO_IOMMU_UNMAP_DMA: Request(unmap_dma, PARTLY_UNMAPPED),
        vfio.VFIO_IOMMU_DIRTY_PAGES: Request(None, NOT_HERE),
        vfio.VFIO_IOMMU_ENABLE: Request(None, NOT_HERE),
        vfio.VFIO_IOMMU_DISABLE: Request(None, NOT_HERE),
    }
