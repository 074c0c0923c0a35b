"""The container of the mainline group ABI: /dev/vfio/vfio.

A program opens a container and groups (``group.py``), sets the container on each group, chooses an IOMMU type for the
container, maps memory through it and gets devices from the groups (``device.py``). What the file answers depends on
the state of the container:

    container without IOMMU   GET_API_VERSION, CHECK_EXTENSION and SET_IOMMU; all else is EINVAL
    container with IOMMU      the requests of type1 as well; all else is ENOTTY
    enabled without IOMMU     the first three; all else is ENOTTY

Each handler decodes its argument, calls one operation of the core and encodes the answer; checks are in the kernel's
order. All are EFAULT for an argument that is not there and EINVAL for an ``argsz`` that is too small.
Behaviour: drivers/vfio/container.c, vfio_fops_unl_ioctl; drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_ioctl.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.errors import InvalidArgument, NoSuchDevice, NotOwner, UnknownCommand
from uvfio.fops.mainline.file import MainlineFile
from uvfio.fops.mainline.type1 import (
    EXTENSIONS,
    VERSIONS,
    answer_info,
    get_api_version,
    read_info,
    read_map,
    read_unmap,
)
from uvfio.fops.request import Refused, Request
from uvfio.fops.wire import Chain, read_struct
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.container import Container
    from uvfio.core.structure.framework import Framework
    from uvfio.core.translation.iova import Mapping as DmaMapping
    from uvfio.core.translation.rules_type1 import RulesType1

__all__ = ["CONTAINER_NODE", "ContainerFile", "open_container"]

CONTAINER_NODE: Final = "/dev/vfio/vfio"

ALONE: Final = frozenset(
    (vfio.VFIO_GET_API_VERSION, vfio.VFIO_CHECK_EXTENSION, vfio.VFIO_SET_IOMMU)
)  # answered by a container without an IOMMU
NO_SPAPR: Final = Refused("ENOTTY", "of sPAPR; type1 refuses it in Linux, too")

ONES: Final = 1 << 16  # bytes of a bitmap that are written at a time
BITMAP_MAX: Final = (1 << 31) // 8  # bytes: one bit for each of 2**31 - 1 pages, in 64-bit words

MAP_FLAGS: Final = (
    vfio.VFIO_DMA_MAP_FLAG_READ | vfio.VFIO_DMA_MAP_FLAG_WRITE | vfio.VFIO_DMA_MAP_FLAG_VADDR
)
UNMAP_FLAGS: Final = (
    vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP
    | vfio.VFIO_DMA_UNMAP_FLAG_ALL
    | vfio.VFIO_DMA_UNMAP_FLAG_VADDR
)
DIRTY_FLAGS: Final = (
    vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
    vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
)


def open_container(framework: Framework) -> ContainerFile:
    """``open("/dev/vfio/vfio")``: a new, empty container. Cannot fail."""
    return ContainerFile(framework, framework.open_container())


class Bitmap:
    """``struct vfio_bitmap`` of the program: one bit for each page of a range, in 64-bit words."""

    __slots__ = ("address", "page", "size")

    def __init__(self, raw: bytes) -> None:
        self.page, self.size, self.address = vfio.BITMAP.unpack(raw)

    def check(self, size: int) -> None:
        """Raises InvalidArgument unless there is a bit for each page of ``size`` bytes (verify_bitmap_size)."""
        shift = (self.page & -self.page).bit_length() - 1
        pages = size >> shift if self.page else 0
        needed = -(-pages // 64) * 8
        if not pages or not needed <= self.size <= BITMAP_MAX:
            raise InvalidArgument(
                f"a bitmap of {self.size} bytes for {pages} pages of {self.page:#x}: {needed} are needed"
            )

    def mark(self, memory: Memory, base: int, mapping: DmaMapping) -> None:
        """Set the bits of all pages of ``mapping``; bit 0 is the page at ``base``. Raises BadAddress."""
        first, count = (mapping.first - base) // self.page, mapping.size // self.page
        word, shift = divmod(first, 64)
        at, left = self.address + 8 * word, shift + count
        end = at + -(-left // 64) * 8
        value = (1 << min(left, 64)) - (1 << shift)
        if shift:
            value |= int.from_bytes(memory.read(at, 8), "little")
        memory.write(at, value.to_bytes(8, "little"))
        for piece in range(at + 8, end - 8, ONES):
            memory.write(piece, b"\xff" * min(ONES, end - 8 - piece))
        if end - 8 > at:
            memory.write(end - 8, ((1 << (left - 1) % 64 + 1) - 1).to_bytes(8, "little"))


class ContainerFile(MainlineFile):
    """An open /dev/vfio/vfio. Its last close does not end the container while that has groups."""

    __slots__ = ("container", "framework")

    container: Container
    framework: Framework

    kind = "container"
    structural = True

    def __init__(self, framework: Framework, container: Container) -> None:
        super().__init__(CONTAINER_NODE)
        self.framework = framework
        self.container = container

    def _release(self) -> None:
        self.framework.close_container(self.container)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Call the handler of ``cmd``. Before SET_IOMMU only the requests of ``ALONE``: InvalidArgument for others;
        UnknownCommand if the devices have no IOMMU."""
        if self.container.type1 is None and cmd not in ALONE:
            if self.container.enabled:
                raise UnknownCommand("the container's devices have no IOMMU: nothing can be mapped")
            raise InvalidArgument(
                f"the container has no IOMMU yet: {vfio.ioctl_name(self.kind, cmd)}",
                "VFIO_GROUP_SET_CONTAINER and VFIO_SET_IOMMU come first",
            )
        return super().dispatch(task, cmd, arg)

    def check_extension(self, task: Task, arg: int) -> int:
        """VFIO_CHECK_EXTENSION: 1 for an extension that exists, else 0. Cannot fail.

        DMA_CC_IOMMU and UPDATE_VADDR exist once type1 is chosen. NOIOMMU_IOMMU exists where the machine allows it and
        the container is empty or has groups without an IOMMU; such a container has no other extension
        (container.c, vfio_container_ioctl_check_extension; vfio_iommu_type1.c, vfio_iommu_type1_check_extension).
        """
        type1 = self.container.type1
        if arg == vfio.VFIO_NOIOMMU_IOMMU or self.container.unprotected:
            known = self.container.unprotected or not self.container.groups
            return int(arg == vfio.VFIO_NOIOMMU_IOMMU and known and self.framework.noiommu)
        if arg == vfio.VFIO_DMA_CC_IOMMU:
            return int(type1 is not None and type1.domain.coherent)
        if arg == vfio.VFIO_UPDATE_VADDR:
            return int(type1 is not None)
        return int(arg in EXTENSIONS)

    def set_iommu(self, task: Task, arg: int) -> int:
        """VFIO_SET_IOMMU: type1, version 1 or 2, or none for devices without an IOMMU (vfio_ioctl_set_iommu).

        EINVAL without groups or if one is chosen already; ENODEV for a type that does not exist or does not suit the
        groups, and for NOIOMMU where the machine does not allow it; then attach errors.
        """
        if arg == vfio.VFIO_NOIOMMU_IOMMU:
            self.framework.enable_unprotected(self.container)
            return 0
        version = VERSIONS.get(arg)
        if version is None:
            self.container.check_enable()
            name = vfio.EXTENSION_NAMES.get(arg, str(arg))
            raise NoSuchDevice(
                f"there is no IOMMU of type {name}", "type1 is 1, version 2 of it is 3"
            )
        self.framework.enable_container(self.container, version)
        return 0

    def iommu_get_info(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_GET_INFO: page sizes, and the capabilities MIGRATION, DMA_AVAIL and IOVA_RANGE in this order
        (vfio_iommu_type1_get_info)."""
        type1, memory = self._type1(), task.memory
        argsz = read_info(memory, arg)
        chain = Chain()
        migration = struct.pack("<IxxxxQQ", 0, type1.granule, BITMAP_MAX)
        chain.add(vfio.VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, migration)
        chain.add(vfio.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, vfio.U32.pack(type1.available))
        sizes = sum(type1.domain.page_sizes)
        answer_info(memory, arg, argsz, sizes, chain, type1.windows())
        return 0

    def map_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_MAP_DMA, or with the flag VADDR a new address for a stale mapping (vfio_dma_do_map).

        EINVAL for unknown flags; then as ``RulesType1.map`` or ``RulesType1.renew``: EINVAL for the range, EEXIST
        for an overlap, ENOSPC for too many mappings, ENOMEM beyond RLIMIT_MEMLOCK, EFAULT for memory that is not
        there.
        """
        type1 = self._type1()
        flags, vaddr, iova, size = asked = read_map(task.memory, arg, MAP_FLAGS)
        readable, writable = asked.readable, asked.writable
        mm, limit = task.mm, task.memlock_limit()
        if flags & vfio.VFIO_DMA_MAP_FLAG_VADDR:
            type1.renew(iova, size, vaddr, mm, limit, permitted=not (readable or writable))
        else:
            type1.map(iova, size, vaddr, mm, limit, readable=readable, writable=writable)
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: one range, or ALL, or with VADDR only their addresses (vfio_dma_do_unmap).

        The answer is the number of bytes; no mapping is 0 and no error. EINVAL for unknown flags or a wrong
        combination, for an ``argsz`` or a bitmap that is too small, then for the range as ``RulesType1.unmap`` does.
        """
        type1, memory = self._type1(), task.memory
        asked = read_unmap(memory, arg)
        argsz, flags, iova, size = asked.argsz, asked.flags, asked.iova, asked.size
        everything = bool(flags & vfio.VFIO_DMA_UNMAP_FLAG_ALL)
        addresses = bool(flags & vfio.VFIO_DMA_UNMAP_FLAG_VADDR)
        dirty = bool(flags & vfio.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP)
        if flags & ~UNMAP_FLAGS or (dirty and (everything or addresses)):
            raise InvalidArgument(f"flags {flags:#x} have no meaning together")
        if dirty:
            if argsz < vfio.DMA_UNMAP.size + vfio.BITMAP.size:
                raise InvalidArgument(f"argsz {argsz} leaves no room for a bitmap")
            bitmap = Bitmap(memory.read(arg + vfio.DMA_UNMAP.size, vfio.BITMAP.size))
            bitmap.check(size)
            done = type1.unmap(
                iova,
                size,
                dirty_page=bitmap.page,
                before=lambda mapping: bitmap.mark(memory, iova, mapping),
            )
        elif addresses:
            done = type1.invalidate(iova, size, everything=everything)
        else:
            done = type1.unmap(iova, size, everything=everything)
        if done != size:  # the struct holds ``size`` already
            asked.answer(done)
        return 0

    def dirty_pages(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_DIRTY_PAGES: start tracking, stop it, or get the bitmap (vfio_iommu_type1_dirty_pages).

        EACCES for version 1 of type1; EINVAL unless exactly one flag is set, for an ``argsz`` or a bitmap that is too
        small, and as ``RulesType1.dirty`` does.
        """
        type1, memory = self._type1(), task.memory
        if type1.version < 2:
            raise NotOwner(
                "type1 version 1 does not track dirty pages", "use version 2", errno=errno.EACCES
            )
        argsz, flags = vfio.HEAD.unpack(read_struct(memory, arg, vfio.HEAD.size))
        if flags not in DIRTY_FLAGS:
            raise InvalidArgument(f"flags {flags:#x} is not START, STOP or GET_BITMAP")
        if flags != vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
            type1.track(flags == vfio.VFIO_IOMMU_DIRTY_PAGES_FLAG_START)
            return 0
        size_of = 16 + vfio.BITMAP.size
        if argsz < vfio.HEAD.size + size_of:
            raise InvalidArgument(f"argsz {argsz} leaves no room for a range and a bitmap")
        raw = memory.read(arg + vfio.HEAD.size, size_of)
        iova, size = struct.unpack_from("<QQ", raw)
        bitmap = Bitmap(raw[16:])
        bitmap.check(size)
        for mapping in type1.dirty(iova, size, bitmap.page):
            bitmap.mark(memory, iova, mapping)
        return 0

    # -- inner -------------------------------------------------------------------------------------

    def _type1(self) -> RulesType1:
        type1 = self.container.type1
        assert type1 is not None, "dispatch has refused the request"
        return type1

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        vfio.VFIO_GET_API_VERSION: Request(get_api_version),
        vfio.VFIO_CHECK_EXTENSION: Request(check_extension),
        vfio.VFIO_SET_IOMMU: Request(set_iommu),
        vfio.VFIO_IOMMU_GET_INFO: Request(iommu_get_info),
        vfio.VFIO_IOMMU_MAP_DMA: Request(map_dma),
        vfio.VFIO_IOMMU_UNMAP_DMA: Request(unmap_dma),
        vfio.VFIO_IOMMU_DIRTY_PAGES: Request(dirty_pages),
        vfio.VFIO_IOMMU_ENABLE: Request(None, NO_SPAPR),
        vfio.VFIO_IOMMU_DISABLE: Request(None, NO_SPAPR),
    }
