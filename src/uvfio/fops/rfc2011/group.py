"""File operations of the 2011 ABI: group, iommu and device files of the RFC.

Each ioctl decodes its argument from the caller's memory, calls one operation of the core, and encodes
the answer; the order of the checks is the RFC's. Conditions carry the errno that this ABI gives them:
``Overlap`` is EBUSY here, an ioctl that a device cannot do is EINVAL, an unknown one ENOTTY (the RFC said
ENOSYS, which means "no such system call").

Files are close-on-exec. ``len`` of the DMA struct is never looked at: real clients leave junk there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.events import Interrupt
from uvfio.core.irq import ReportedEvent
from uvfio.core.structure.device import DeviceKind, DeviceTree
from uvfio.errors import (
    Gone,
    InvalidArgument,
    Overlap,
    UnknownCommand,
    Unsupported,
    VfioError,
)
from uvfio.fops.file import File
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from uvfio.core.seams import Event, Memory, Task
    from uvfio.core.structure.device import BoundDevice, OpenDevice
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.core.structure.iommu import Iommu, OpenIommu
    from uvfio.core.translation.domain import Domain

__all__ = ["DeviceFile", "GroupFile", "IommuFile", "install", "open_group"]

PAGE_SIZE: Final = 4096
SHIFT: Final = rfc.VFIO_REGION_SHIFT
OFFSET_MASK: Final = (1 << SHIFT) - 1
REGION_INFO_MIN: Final = 32  # `phys` may be omitted

ERRNO: Final[dict[type[VfioError], int]] = {Overlap: errno.EBUSY, Unsupported: errno.EINVAL}


def open_group(framework: Framework, group: Group, task: Task) -> GroupFile:
    """``open("/dev/vfio/N")``. NoSuchGroup when the group went meanwhile."""
    return GroupFile(framework, framework.open_group(group, task.mm))


def read_int(memory: Memory, address: int) -> int:
    """A C ``int`` of the caller."""
    value: int = rfc.S32.unpack(memory.read(address, 4))[0]
    return value


def read_string(memory: Memory, address: int, limit: int = PAGE_SIZE) -> str:
    """A NUL-terminated string, like strndup_user: BadAddress, InvalidArgument if it is too long."""
    text = b""
    while len(text) < limit:
        at = address + len(text)
        piece = memory.read(at, min(PAGE_SIZE - at % PAGE_SIZE, limit - len(text)))
        end = piece.find(b"\0")
        if end >= 0:
            return (text + piece[:end]).decode("utf-8", "surrogateescape")
        text += piece
    raise InvalidArgument(f"the string at {address:#x} has no NUL within {limit} bytes")


class RfcFile(File):
    """Common to the three kinds: a table of commands, and this ABI's numbers for conditions."""

    __slots__ = ()

    COMMANDS: ClassVar[dict[int, Callable[..., int]]]

    def enter(self, task: Task) -> None:
        """Checks that come before the command is looked at."""

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        try:
            if cmd != rfc.VFIO_GROUP_GET_FLAGS:
                self.enter(task)
            handler = self.COMMANDS.get(cmd)
            if handler is None:
                raise UnknownCommand(f"{self.name} does not know {rfc.ioctl_name(cmd)}")
            return handler(self, task, arg)
        except VfioError as error:
            error.errno = ERRNO.get(type(error), error.errno)
            raise


class GroupFile(RfcFile):
    """An open /dev/vfio/N. Every command but GET_FLAGS is the owner's alone."""

    __slots__ = ("framework", "held")

    structural = True

    def __init__(self, framework: Framework, held: OpenGroup) -> None:
        super().__init__(f"/dev/vfio/{held.group.node_name}")
        self.framework = framework
        self.held = held

    def enter(self, task: Task) -> None:
        self.framework.check_owner(self.held, task.mm)

    def _release(self) -> None:
        self.framework.close_group(self.held)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_FLAGS: about the whole merged set, for everybody."""
        viable, owned = self.framework.group_state(self.held)
        flags = rfc.VFIO_GROUP_FLAGS_VIABLE * viable | rfc.VFIO_GROUP_FLAGS_MM_LOCKED * owned
        task.memory.write(arg, rfc.U64.pack(flags))
        return 0

    def merge(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_MERGE: pull the group of another file into this group's context."""
        self.framework.merge(self.held, self._partner(task, arg), task.mm)
        return 0

    def unmerge(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_UNMERGE: push the group of another file out."""
        self.framework.unmerge(self.held, self._partner(task, arg), task.mm)
        return 0

    def get_iommu_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_IOMMU_FD: a new file on the shared context; opens it, and makes the caller owner."""
        file = IommuFile(self.framework, self.framework.open_iommu(self.held, task.mm))
        return install(task, file)

    def get_device_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_DEVICE_FD: a new file of the device named, from any group of the set."""
        name = read_string(task.memory, arg)
        file = DeviceFile(self.framework, self.framework.open_device(self.held, name, task.mm))
        return install(task, file)

    def _partner(self, task: Task, arg: int) -> OpenGroup:
        fd = read_int(task.memory, arg)
        if fd < 0:
            raise InvalidArgument(f"{fd} is no descriptor")
        file = task.file(fd)
        found = file.face(GroupFile) if isinstance(file, File) else None
        if found is None or found.framework is not self.framework:
            raise InvalidArgument(f"descriptor {fd} is not an open VFIO group")
        return found.held

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        rfc.VFIO_GROUP_GET_FLAGS: get_flags,
        rfc.VFIO_GROUP_MERGE: merge,
        rfc.VFIO_GROUP_UNMERGE: unmerge,
        rfc.VFIO_GROUP_GET_IOMMU_FD: get_iommu_fd,
        rfc.VFIO_GROUP_GET_DEVICE_FD: get_device_fd,
        rfc.VFIO_GROUP_GET_DEVICE_FD_32: get_device_fd,
    }


class IommuFile(RfcFile):
    """An open iommu context: DMA mappings of the owner."""

    __slots__ = ("framework", "opened")

    def __init__(self, framework: Framework, opened: OpenIommu) -> None:
        super().__init__("anon_inode:[vfio-iommu]")
        self.framework = framework
        self.opened = opened

    def _release(self) -> None:
        self.framework.close_iommu(self.opened)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_GET_FLAGS: any iova may lead to any vaddr."""
        self._iommu()
        task.memory.write(arg, rfc.U64.pack(rfc.VFIO_IOMMU_FLAGS_MAP_ANY))
        return 0

    def map_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_MAP_DMA: by the owner only (D25); READ is implied."""
        _, vaddr, iova, size, flags = rfc.DMA_MAP.unpack(task.memory.read(arg, 40))
        domain = self._owned(task)
        if flags & ~rfc.VFIO_DMA_MAP_FLAG_WRITE:
            raise InvalidArgument(f"flags {flags:#x} has unknown bits", "only bit 0, WRITE, exists")
        writable = bool(flags & rfc.VFIO_DMA_MAP_FLAG_WRITE)
        domain.map_range(iova, size, vaddr, writable, task.mm, task.memlock_limit())
        return 0

    def unmap_dma(self, task: Task, arg: int) -> int:
        """VFIO_IOMMU_UNMAP_DMA: vaddr and flags are ignored, nothing mapped is no error."""
        _, _, iova, size, _ = rfc.DMA_MAP.unpack(task.memory.read(arg, 40))
        self._owned(task).unmap_range(iova, size)
        return 0

    def _iommu(self) -> Iommu:
        iommu = self.opened.iommu
        if iommu is None:
            raise Gone("the iommu context was revoked")
        return iommu

    def _owned(self, task: Task) -> Domain:
        iommu = self._iommu()
        iommu.check_owner(task.mm)
        domain = iommu.domain
        if domain is None:
            raise Gone("the iommu context was revoked just now")
        return domain

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        rfc.VFIO_IOMMU_GET_FLAGS: get_flags,
        rfc.VFIO_IOMMU_MAP_DMA: map_dma,
        rfc.VFIO_IOMMU_UNMAP_DMA: unmap_dma,
    }


class DeviceFile(RfcFile):
    """An open device: regions by read, write and mmap, interrupts by eventfd, reset.

    Each call runs under the device's lock, so it cannot be taken away in the middle of one.
    """

    __slots__ = ("framework", "opened")

    def __init__(self, framework: Framework, opened: OpenDevice) -> None:
        super().__init__("anon_inode:[vfio-device]")
        self.framework = framework
        self.opened = opened
        self.region_memory = opened.device.name

    def _release(self) -> None:
        self.framework.close_device(self.opened)

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        with self.opened.device.lock:
            return super().ioctl(task, cmd, arg)

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        with self.opened.device.lock:
            data = self.opened.data
            if data is None:
                raise self._gone()
            return data.read(offset >> SHIFT, offset & OFFSET_MASK, count)

    def pwrite(self, task: Task, payload: bytes, offset: int) -> int:
        with self.opened.device.lock:
            data = self.opened.data
            if data is None:
                raise self._gone()
            return data.write(offset >> SHIFT, offset & OFFSET_MASK, payload)

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        if not shared:
            raise InvalidArgument("device memory can only be mapped MAP_SHARED")
        with self.opened.device.lock:
            return self._device().mmap(offset >> SHIFT, offset & OFFSET_MASK, size)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_FLAGS."""
        data = self._device()
        kind = rfc.VFIO_DEVICE_FLAGS_PCI
        if data.kind is DeviceKind.PLATFORM:
            kind = rfc.VFIO_DEVICE_FLAGS_DT
        flags = kind | rfc.VFIO_DEVICE_FLAGS_RESET * data.resettable
        task.memory.write(arg, rfc.U64.pack(flags))
        return 0

    def get_num_regions(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_NUM_REGIONS."""
        task.memory.write(arg, rfc.S32.pack(self._device().num_regions))
        return 0

    def get_region_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_REGION_INFO: ``len`` may be 32 to 40; all of it after ``index`` is written."""
        data, memory = self._device(), task.memory
        length = int.from_bytes(memory.read(arg, 4), "little")
        if not REGION_INFO_MIN <= length <= rfc.REGION_INFO.size:
            raise InvalidArgument(
                f"len {length} of vfio_region_info is not within {REGION_INFO_MIN}..40"
            )
        index = int.from_bytes(memory.read(arg, length)[4:8], "little")
        region = data.region(index)
        flags = 0
        if region.size:
            flags = rfc.VFIO_REGION_INFO_FLAG_MMAP * region.mappable
            flags |= rfc.VFIO_REGION_INFO_FLAG_RO * (not region.writable)
        info = rfc.REGION_INFO.pack(length, index, region.size, index << SHIFT, flags, 0)
        memory.write(arg, info[:length])
        return 0

    def get_num_irqs(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_NUM_IRQS."""
        task.memory.write(arg, rfc.S32.pack(self._device().num_irqs))
        return 0

    def get_irq_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO: ``len`` must be 16."""
        data, memory = self._device(), task.memory
        length = int.from_bytes(memory.read(arg, 4), "little")
        if length != rfc.IRQ_INFO.size:
            raise InvalidArgument(f"len {length} of vfio_irq_info is not 16")
        index = int.from_bytes(memory.read(arg, length)[4:8], "little")
        irq = data.irq(index)
        flags = rfc.VFIO_IRQ_INFO_FLAG_LEVEL * (irq.level and irq.count > 0)
        memory.write(arg, rfc.IRQ_INFO.pack(length, index, irq.count, flags))
        return 0

    def set_irq_eventfds(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_IRQ_EVENTFDS: ``{index, count, fd...}``."""
        data, memory = self._device(), task.memory
        index, count = read_int(memory, arg), read_int(memory, arg + 4)
        data.check_irqs(index, count)
        raw = memory.read(arg + 8, 4 * count) if count else b""
        events: list[Event] = []
        try:
            for at in range(0, len(raw), 4):
                fd = int.from_bytes(raw[at : at + 4], "little", signed=True)
                if fd < 0:
                    raise InvalidArgument(f"{fd} for interrupt {at // 4} is no descriptor")
                events.append(self._reported(task.event(fd), index, at // 4))
            data.set_irqs(index, events)
        except BaseException:
            for event in events:
                event.close()
            raise
        return 0

    def _reported(self, event: Event, index: int, vector: int) -> Event:
        """``event``; if the framework has an observer, each signal is reported to it first."""
        framework, device = self.framework, self.opened.device
        if framework.observer is None:
            return event
        name = self._device().irq(index).name
        return ReportedEvent(event, framework, Interrupt(device.name, name, vector))

    def unmask_irq(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_UNMASK_IRQ: the index counts (D32c)."""
        self._device().unmask_irq(read_int(task.memory, arg))
        return 0

    def set_unmask_irq_eventfd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: ``{index, fd}`` as the header says (D32d); fd < 0 ends it."""
        data, memory = self._device(), task.memory
        index, fd = read_int(memory, arg), read_int(memory, arg + 4)
        if fd < 0:
            data.set_unmask_event(index, None)
            return 0
        event = task.event(fd)
        try:
            data.set_unmask_event(index, event)
        except BaseException:
            event.close()
            raise
        return 0

    def reset(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_RESET."""
        self._device().reset()
        return 0

    def get_dtpath(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_DTPATH: the device tree node of a region or interrupt; ``fops/rfc2011/device_tree.py``
        has the rules."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtpath

        return get_dtpath(device, task.memory, arg, rfc.DTPATH)

    def get_dtpath_32(self, task: Task, arg: int) -> int:
        """The same for a 32-bit program."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtpath

        return get_dtpath(device, task.memory, arg, rfc.DTPATH_32)

    def get_dtindex(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_DTINDEX: the property of that node, and the entry."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtindex

        return get_dtindex(device, task.memory, arg)

    def _device_tree(self) -> DeviceTree:
        data = self._device()
        if not isinstance(data, DeviceTree):
            raise UnknownCommand(f"{self.opened.device.name} does not come from a device tree")
        return data

    def _device(self) -> BoundDevice:
        data = self.opened.data
        if data is None:
            raise self._gone()
        return data

    def _gone(self) -> Gone:
        return Gone(f"{self.opened.device.name} was taken away from its user")

    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        rfc.VFIO_DEVICE_GET_FLAGS: get_flags,
        rfc.VFIO_DEVICE_GET_NUM_REGIONS: get_num_regions,
        rfc.VFIO_DEVICE_GET_REGION_INFO: get_region_info,
        rfc.VFIO_DEVICE_GET_NUM_IRQS: get_num_irqs,
        rfc.VFIO_DEVICE_GET_IRQ_INFO: get_irq_info,
        rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS: set_irq_eventfds,
        rfc.VFIO_DEVICE_UNMASK_IRQ: unmask_irq,
        rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: set_unmask_irq_eventfd,
        rfc.VFIO_DEVICE_RESET: reset,
        rfc.VFIO_DEVICE_GET_DTPATH: get_dtpath,
        rfc.VFIO_DEVICE_GET_DTPATH_32: get_dtpath_32,
        rfc.VFIO_DEVICE_GET_DTINDEX: get_dtindex,
    }


def install(task: Task, file: File) -> int:
    """Give the caller a descriptor for ``file``; without one the file is closed again."""
    try:
        return task.install(file, cloexec=True)
    except BaseException:
        file.release()
        raise
