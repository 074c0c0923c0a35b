"""File operations of today's group ABI: the container /dev/vfio/vfio and the group file /dev/vfio/N.

A program opens a container and groups, sets the container on each group, chooses an IOMMU type for the
container, maps memory through it and asks the groups for devices (``fops/mainline/device.py``).

    container without IOMMU   knows GET_API_VERSION, CHECK_EXTENSION and SET_IOMMU; all else is EINVAL
    container with IOMMU      knows type1's commands too; all else is ENOTTY
    enabled without IOMMU     knows nothing more; all else is ENOTTY

Each ioctl decodes its argument, calls one operation of the core and encodes the answer, in the kernel's order.
Behaviour: drivers/vfio/container.c, vfio_fops_unl_ioctl; drivers/vfio/group.c, vfio_group_fops_unl_ioctl;
drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_ioctl.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.errors import InvalidArgument, NoSuchDevice, NotOwner, UnknownCommand
from uvfio.fops.file import File
from uvfio.fops.mainline.device import DeviceFile
from uvfio.fops.rfc2011.group import install, read_int, read_string
from uvfio.fops.wire import Chain, ModernFile, read_struct
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.container import Container
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.core.translation.iova import Mapping
    from uvfio.core.translation.rules_type1 import RulesType1

__all__ = [
    "CONTAINER_NODE",
    "ContainerFile",
    "LegacyGroupFile",
    "answer_info",
    "open_container",
    "open_group",
    "read_info",
    "read_map",
]

CONTAINER_NODE: Final = "/dev/vfio/vfio"

VERSIONS: Final = {vfio.VFIO_TYPE1_IOMMU: 1, vfio.VFIO_TYPE1v2_IOMMU: 2}
ALWAYS: Final = {*VERSIONS, vfio.VFIO_UNMAP_ALL}

INFO: Final = struct.Struct("<IIQII")  # argsz, flags, iova_pgsizes, cap_offset, pad
INFO_MIN: Final = 16
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
    """``open("/dev/vfio/vfio")``: a new, empty container."""
    return ContainerFile(framework, framework.open_container())


def open_group(framework: Framework, group: Group, task: Task) -> LegacyGroupFile:
    """``open("/dev/vfio/N")`` of today. NoSuchGroup when the group went meanwhile, Busy if it is open."""
    return LegacyGroupFile(framework, framework.open_group(group, task.mm, exclusive=True))


def read_info(memory: Memory, arg: int) -> int:
    """The ``argsz`` of VFIO_IOMMU_GET_INFO."""
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
    """The answer of VFIO_IOMMU_GET_INFO: ``chain`` and behind it the capability IOVA_RANGE.

    ``exact``: it says how much it is also when there was more room.
    """
    ranges = b"".join(struct.pack("<QQ", *window) for window in windows)
    ranges = struct.pack("<II", len(windows), 0) + ranges
    chain.add(vfio.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, ranges)
    size = min(argsz, INFO.size)
    argsz, at = chain.place(memory, arg, argsz, INFO.size)
    argsz = INFO.size + chain.size if exact else argsz
    flags = vfio.VFIO_IOMMU_INFO_PGSIZES | vfio.VFIO_IOMMU_INFO_CAPS
    memory.write(arg, INFO.pack(argsz, flags, page_sizes, at, 0)[:size])


def read_map(memory: Memory, arg: int, known: int) -> tuple[int, int, int, int]:
    """(flags, vaddr, iova, size) of VFIO_IOMMU_MAP_DMA. InvalidArgument for flags that are not ``known``."""
    raw = read_struct(memory, arg, vfio.DMA_MAP.size)
    flags, vaddr, iova, size = vfio.DMA_MAP.unpack(raw)[1:]
    if flags & ~known:
        raise InvalidArgument(f"flags {flags:#x} has unknown bits")
    return flags, vaddr, iova, size


class Bitmap:
    """``struct vfio_bitmap`` of the program: one bit for each page of a range."""

    __slots__ = ("address", "page", "size")

    def __init__(self, raw: bytes) -> None:
        self.page, self.size, self.address = vfio.BITMAP.unpack(raw)

    def check(self, size: int) -> None:
        """InvalidArgument unless there is a bit for each page of ``size`` bytes."""
        shift = (self.page & -self.page).bit_length() - 1
        pages = size >> shift if self.page else 0
        needed = -(-pages // 64) * 8
        if not pages or not needed <= self.size <= BITMAP_MAX:
            raise InvalidArgument(
                f"a bitmap of {self.size} bytes for {pages} pages of {self.page:#x}: {needed} are needed"
            )

    def mark(self, memory: Memory, base: int, mapping: Mapping) -> None:
        """All pages of ``mapping`` are dirty; bit 0 stands for ``base``."""
        first, count = (mapping.first - base) // self.page, mapping.size // self.page
        word, shift = divmod(first, 64)
        value, at = (1 << count) - 1 << shift, self.address + 8 * word
        if shift:
            value |= int.from_bytes(memory.read(at, 8), "little")
        memory.write(at, value.to_bytes(-(-(shift + count) // 64) * 8, "little"))


class ContainerFile(ModernFile):
    """An open /dev/vfio/vfio."""

    __slots__ = ("container", "framework")

    kind = "container"
    structural = True

    def __init__(self, framework: Framework, container: Container) -> None:
        super().__init__(CONTAINER_NODE)
        self.framework = framework
        self.container = container

    def _release(self) -> None:
        self.framework.close_container(self.container)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        if self.container.type1 is None and cmd not in self.ALONE:
            if self.container.enabled:
                raise UnknownCommand("the container's devices have no IOMMU: nothing can be mapped")
            raise InvalidArgument(
                f"the container has no IOMMU yet: {vfio.ioctl_name(self.kind, cmd)}",
                "VFIO_GROUP_SET_CONTAINER and VFIO_SET_IOMMU come first",
            )
        return super().dispatch(task, cmd, arg)

    def get_api_version(self, task: Task, arg: int) -> int:
        """VFIO_GET_API_VERSION."""
        return vfio.VFIO_API_VERSION

    def check_extension(self, task: Task, arg: int) -> int:
        """VFIO_CHECK_EXTENSION: 1 for what there is; some only once the IOMMU is chosen."""
        type1 = self.container.type1
        if arg == vfio.VFIO_NOIOMMU_IOMMU or self.container.unprotected:
            known = self.container.unprotected or not self.container.groups
            return int(arg == vfio.VFIO_NOIOMMU_IOMMU and known and self.framework.noiommu)
        if arg == vfio.VFIO_DMA_CC_IOMMU:
            return int(type1 is not None and type1.domain.coherent)
        if arg == vfio.VFIO_UPDATE_VADDR:
            return int(type1 is not None)
        return int(arg in ALWAYS)

    def set_iommu(self, task: Task, arg: int) -> int:
        """VFIO_SET_IOMMU: type1, version 1 or 2, or for devices without an IOMMU none. There is no sPAPR."""
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
        """VFIO_IOMMU_GET_INFO, with the capabilities MIGRATION, DMA_AVAIL and IOVA_RANGE."""
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
        """VFIO_IOMMU_MAP_DMA, or with the flag VADDR a new address for a stale mapping."""
        type1 = self._type1()
        flags, vaddr, iova, size = read_map(task.memory, arg, MAP_FLAGS)
        readable = bool(flags & vfio.VFIO_DMA_MAP_FLAG_READ)
        writable = bool(flags & vfio.VFIO_DMA_MAP_FLAG_WRITE)
        mm, limit = task.mm, task.memlock_limit()
        if flags & vfio.VFIO_DMA_MAP_FLAG_VADDR:
            type1.renew(iova, size, vaddr, mm, limit, permitted=not (readable or writable))
        else:
            type1.map(iova, size, vaddr, mm, limit, readable=readable, writable=writable)
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: one range or ALL, or with VADDR just their addresses; answers how much."""
        type1, memory = self._type1(), task.memory
        raw = read_struct(memory, arg, vfio.DMA_UNMAP.size)
        argsz, flags, iova, size = vfio.DMA_UNMAP.unpack(raw)
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
        if done != size:  # else the program would get what it has given
            memory.write(arg, vfio.DMA_UNMAP.pack(argsz, flags, iova, done))
        return 0

    def dirty_pages(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_DIRTY_PAGES: start and stop tracking, get the bitmap. Version 2 only."""
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

    def _type1(self) -> RulesType1:
        type1 = self.container.type1
        assert type1 is not None, "dispatch has refused the request"
        return type1

    ALONE: ClassVar[dict[int, Callable[..., int]]] = {
        vfio.VFIO_GET_API_VERSION: get_api_version,
        vfio.VFIO_CHECK_EXTENSION: check_extension,
        vfio.VFIO_SET_IOMMU: set_iommu,
    }
    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        **ALONE,
        vfio.VFIO_IOMMU_GET_INFO: iommu_get_info,
        vfio.VFIO_IOMMU_MAP_DMA: map_dma,
        vfio.VFIO_IOMMU_UNMAP_DMA: unmap_dma,
        vfio.VFIO_IOMMU_DIRTY_PAGES: dirty_pages,
    }


class LegacyGroupFile(ModernFile):
    """An open /dev/vfio/N that speaks today's ABI."""

    __slots__ = ("framework", "held")

    kind = "group"
    structural = True

    def __init__(self, framework: Framework, held: OpenGroup) -> None:
        super().__init__(f"/dev/vfio/{held.group.node_name}")
        self.framework = framework
        self.held = held

    def _release(self) -> None:
        self.framework.close_group(self.held)

    def get_status(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_STATUS."""
        argsz, _ = vfio.HEAD.unpack(read_struct(task.memory, arg, vfio.HEAD.size))
        viable, inside = self.framework.group_status(self.held)
        flags = vfio.VFIO_GROUP_FLAGS_VIABLE * viable | vfio.VFIO_GROUP_FLAGS_CONTAINER_SET * inside
        task.memory.write(arg, vfio.HEAD.pack(argsz, flags))
        return 0

    def set_container(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_SET_CONTAINER: the argument points to a container's descriptor, or to an iommufd's."""
        fd = read_int(task.memory, arg)
        file = task.file(fd)
        self.framework.check_no_container(self.held)
        found = file.face(ContainerFile) if isinstance(file, File) else None
        if found is None:
            from uvfio.fops.mainline.iommufd import context_of

            self.framework.join_iommufd(self.held, context_of(self.framework, file, fd))
        elif found.framework is not self.framework:
            raise InvalidArgument(f"descriptor {fd} is of another machine", errno=errno.EBADFD)
        else:
            self.framework.join(self.held, found.container)
        return 0

    def unset_container(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_UNSET_CONTAINER: the last group takes the mappings with it."""
        self.framework.leave(self.held)
        return 0

    def get_device_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_DEVICE_FD: the name of a device of this group, and options behind it."""
        text = read_string(task.memory, arg)
        opened = self.framework.open_member(self.held, text)
        return install(task, DeviceFile(self.framework, opened.device, opened))

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        vfio.VFIO_GROUP_GET_STATUS: get_status,
        vfio.VFIO_GROUP_SET_CONTAINER: set_container,
        vfio.VFIO_GROUP_UNSET_CONTAINER: unset_container,
        vfio.VFIO_GROUP_GET_DEVICE_FD: get_device_fd,
    }
