"""The iommu file of the 2011 ABI: DMA mappings of the set of groups that share the context.

``len`` of the DMA struct is never read: real clients leave it uninitialised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from uvfio.core.translation.rules_2011 import Rules2011
from uvfio.errors import Gone, InvalidArgument
from uvfio.fops.request import Request
from uvfio.fops.rfc2011.file import RfcFile
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Task
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.iommu import Iommu, OpenIommu

__all__ = ["IommuFile"]


class IommuFile(RfcFile):
    """An open iommu context. Once the context is revoked every request is ENODEV."""

    __slots__ = ("framework", "opened")

    framework: Framework

    kind = "iommu"

    def __init__(self, framework: Framework, opened: OpenIommu) -> None:
        super().__init__("anon_inode:[vfio-iommu]")
        self.framework = framework
        self.opened = opened

    def _release(self) -> None:
        self.framework.close_iommu(self.opened)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_GET_FLAGS: MAP_ANY, as any iova may map any vaddr. ENODEV, EFAULT."""
        self._iommu()
        task.memory.write(arg, rfc.U64.pack(rfc.VFIO_IOMMU_FLAGS_MAP_ANY))
        return 0

    def map_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_MAP_DMA: map memory of the caller, who must be the owner (D25). READ is implied.

        EFAULT, ENODEV, EPERM for another address space, EINVAL for unknown flags, then as ``Rules2011.map``
        raises: EINVAL, EBUSY for an overlap, ENOMEM beyond a limit, EFAULT for memory that is not there.
        """
        _, vaddr, iova, size, flags = rfc.DMA_MAP.unpack(task.memory.read(arg, 40))
        rules = self._owned(task)
        if flags & ~rfc.VFIO_DMA_MAP_FLAG_WRITE:
            raise InvalidArgument(f"flags {flags:#x} has unknown bits", "only bit 0, WRITE, exists")
        writable = bool(flags & rfc.VFIO_DMA_MAP_FLAG_WRITE)
        rules.map(iova, size, vaddr, task.mm, task.memlock_limit(), writable=writable)
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: unmap a range. ``vaddr`` and ``flags`` are ignored.

        EFAULT, ENODEV, EPERM for another address space, EINVAL for the range. A range without mappings
        is no error.
        """
        _, _, iova, size, _ = rfc.DMA_MAP.unpack(task.memory.read(arg, 40))
        self._owned(task).unmap(iova, size)
        return 0

    # -- inner -----------------------------------------------------------------------------------

    def _iommu(self) -> Iommu:
        iommu = self.opened.iommu
        if iommu is None:
            raise Gone("the iommu context was revoked")
        return iommu

    def _owned(self, task: Task) -> Rules2011:
        iommu = self._iommu()
        iommu.check_owner(task.mm)
        domain = iommu.domain
        if domain is None:
            raise Gone("the iommu context was revoked just now")
        return Rules2011(domain)

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        rfc.VFIO_IOMMU_GET_FLAGS: Request(get_flags),
        rfc.VFIO_IOMMU_MAP_DMA: Request(map_dma),
        rfc.VFIO_IOMMU_UNMAP_DMA: Request(unmap_dma),
    }
