"""The device file of the 2011 ABI: regions by read, write and mmap, interrupts by eventfd, reset, the device tree.

A region is at ``index << 40``. Each call runs under the device's lock, so the device cannot be taken away in the middle
of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.bus import DeviceKind, DeviceTree
from uvfio.errors import DecodingOff, Gone, InvalidArgument, UnknownCommand
from uvfio.fops.file import report_signals
from uvfio.fops.request import Request
from uvfio.fops.rfc2011.file import RfcFile
from uvfio.fops.wire import OFFSET_MASK, REGISTERS_STRIDE, read_int, read_u32
from uvfio.fops.wire import REGION_SHIFT as SHIFT
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.bus import BoundDevice
    from uvfio.core.seams import Event, Task
    from uvfio.core.structure.device import OpenDevice
    from uvfio.core.structure.framework import Framework

__all__ = ["DeviceFile"]

REGION_INFO_MIN: Final = 32  # `phys` may be omitted


class DeviceFile(RfcFile):
    """An open device. A device that was taken away answers ENODEV."""

    __slots__ = ("framework", "opened")

    framework: Framework

    kind = "device"

    def __init__(self, framework: Framework, opened: OpenDevice) -> None:
        super().__init__("anon_inode:[vfio-device]")
        self.framework = framework
        self.opened = opened
        self.region_memory = opened.device.name

    def _release(self) -> None:
        self.framework.close_device(self.opened)

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """Answer under the device's lock (D24)."""
        with self.opened.device.lock:
            return super().ioctl(task, cmd, arg)

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """Read region ``offset >> 40``, as ``BoundDevice.read``. ENODEV after a revocation.

        Ones while the region's decoding is off.
        """
        with self.opened.device.lock:
            data = self.opened.data
            if data is None:
                raise self._gone()
            try:
                found = data.read(offset >> SHIFT, offset & OFFSET_MASK, count)
            except DecodingOff as off:
                self._report(offset, off.inside, str(off.strerror), write=False)
                return b"\xff" * off.inside
            if len(found) < count and self.framework.observer:
                self._report_end(data, offset, count, len(found), write=False)
            return found

    def pwrite(self, task: Task, payload: bytes, offset: int) -> int:
        """Write region ``offset >> 40``, as ``BoundDevice.write``. ENODEV after a revocation.

        What is written while the region's decoding is off is lost.
        """
        with self.opened.device.lock:
            data = self.opened.data
            if data is None:
                raise self._gone()
            try:
                taken = data.write(offset >> SHIFT, offset & OFFSET_MASK, payload)
            except DecodingOff as off:
                self._report(offset, off.inside, str(off.strerror), write=True)
                return off.inside
            if taken < len(payload) and self.framework.observer:
                self._report_end(data, offset, len(payload), taken, write=True)
            return taken

    def _report_end(
        self, data: BoundDevice, offset: int, count: int, done: int, *, write: bool
    ) -> None:
        region = data.region(offset >> SHIFT)
        reason = f"region {region.index} ends at {region.size:#x}"
        self._report(offset + done, count - done, reason, write=write)

    def _report(self, offset: int, count: int, reason: str, *, write: bool) -> None:
        """Tell the observer of bytes that had no answer."""
        observer = self.framework.observer
        if observer is not None and count:
            from uvfio.core.events import Unanswered

            place = offset >> SHIFT, offset & OFFSET_MASK
            observer(Unanswered(self.opened.device.name, *place, count, write, reason))

    def stride(self, offset: int) -> int:
        """Few bytes of registers: the device acts on each access."""
        data = self.opened.data
        if data is None or not 0 <= offset >> SHIFT < data.num_regions:
            return super().stride(offset)
        return (
            REGISTERS_STRIDE if data.region(offset >> SHIFT).registers else super().stride(offset)
        )

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        """The memory of region ``offset >> 40``. EINVAL unless it is mapped MAP_SHARED, and as
        ``BoundDevice.mmap``."""
        if not shared:
            raise InvalidArgument("device memory can only be mapped MAP_SHARED")
        with self.opened.device.lock:
            return self._device().mmap(offset >> SHIFT, offset & OFFSET_MASK, size)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_FLAGS: PCI or DT, and RESET. ENODEV, EFAULT."""
        data = self._device()
        kind = rfc.VFIO_DEVICE_FLAGS_PCI
        if data.kind is DeviceKind.PLATFORM:
            kind = rfc.VFIO_DEVICE_FLAGS_DT
        flags = kind | rfc.VFIO_DEVICE_FLAGS_RESET * data.resettable
        task.memory.write(arg, rfc.U64.pack(flags))
        return 0

    def get_num_regions(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_NUM_REGIONS: 8 for PCI. ENODEV, EFAULT."""
        task.memory.write(arg, rfc.S32.pack(self._device().num_regions))
        return 0

    def get_region_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_REGION_INFO: size, offset and flags. ``len`` may be 32 to 40; all after ``index`` is written.

        ENODEV, EFAULT, EINVAL for ``len``, EINVAL for a region that does not exist.
        """
        data, memory = self._device(), task.memory
        length = read_u32(memory, arg)
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
        """VFIO_DEVICE_GET_NUM_IRQS: 3 for PCI. ENODEV, EFAULT."""
        task.memory.write(arg, rfc.S32.pack(self._device().num_irqs))
        return 0

    def get_irq_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO: the number of vectors, and LEVEL.

        ENODEV, EFAULT, EINVAL for ``len`` other than 16, EINVAL for a kind of interrupt that does not exist.
        """
        data, memory = self._device(), task.memory
        length = read_u32(memory, arg)
        if length != rfc.IRQ_INFO.size:
            raise InvalidArgument(f"len {length} of vfio_irq_info is not 16")
        index = int.from_bytes(memory.read(arg, length)[4:8], "little")
        irq = data.irq(index)
        flags = rfc.VFIO_IRQ_INFO_FLAG_LEVEL * (irq.level and irq.count > 0)
        memory.write(arg, rfc.IRQ_INFO.pack(length, index, irq.count, flags))
        return 0

    def set_irq_eventfds(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_IRQ_EVENTFDS: ``{index, count, fd...}`` connects and enables; count 0 disables.

        ENODEV, EFAULT, EINVAL for kind or count, EFAULT, EINVAL for a negative descriptor, EBADF or EINVAL for one
        that is no eventfd, then as the driver's ``set_irqs`` raises. No event stays connected after an error.
        """
        data, memory = self._device(), task.memory
        index, count = read_int(memory, arg), read_int(memory, arg + 4)
        data.check_irqs(index, count)
        raw = memory.read(arg + 8, 4 * count) if count else b""
        name = data.irq(index).name
        events: list[Event] = []
        try:
            for at in range(0, len(raw), 4):
                fd = int.from_bytes(raw[at : at + 4], "little", signed=True)
                if fd < 0:
                    raise InvalidArgument(f"{fd} for interrupt {at // 4} is no descriptor")
                event, vector = task.event(fd), at // 4
                events.append(
                    report_signals(self.framework, event, self.opened.device.name, name, vector)
                )
            data.set_irqs(index, events)
        except BaseException:
            for event in events:
                event.close()
            raise
        return 0

    def unmask_irq(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_UNMASK_IRQ: unmask INTx. ENODEV, EFAULT, EINVAL for any other index (D32c)."""
        self._device().unmask_irq(read_int(task.memory, arg))
        return 0

    def set_unmask_irq_eventfd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: ``{index, fd}`` as in the header (D32d); a negative fd disconnects.

        ENODEV, EFAULT, EBADF or EINVAL for a descriptor that is no eventfd, then as ``set_unmask_event`` raises.
        """
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
        """VFIO_DEVICE_RESET: reset the function. ENODEV, EINVAL if it has no way to be reset."""
        self._device().reset()
        return 0

    def get_dtpath(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_DTPATH: the device tree node of a region or interrupt (rules: ``device_tree.py``)."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtpath

        return get_dtpath(device, task.memory, arg, rfc.DTPATH)

    def get_dtpath_32(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_DTPATH of a 32-bit program."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtpath

        return get_dtpath(device, task.memory, arg, rfc.DTPATH_32)

    def get_dtindex(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_DTINDEX: the property of that node, and the entry of it (rules: ``device_tree.py``)."""
        device = self._device_tree()

        from uvfio.fops.rfc2011.device_tree import get_dtindex

        return get_dtindex(device, task.memory, arg)

    # -- inner -----------------------------------------------------------------------------------

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

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        rfc.VFIO_DEVICE_GET_FLAGS: Request(get_flags),
        rfc.VFIO_DEVICE_GET_NUM_REGIONS: Request(get_num_regions),
        rfc.VFIO_DEVICE_GET_REGION_INFO: Request(get_region_info),
        rfc.VFIO_DEVICE_GET_NUM_IRQS: Request(get_num_irqs),
        rfc.VFIO_DEVICE_GET_IRQ_INFO: Request(get_irq_info),
        rfc.VFIO_DEVICE_SET_IRQ_EVENTFDS: Request(set_irq_eventfds),
        rfc.VFIO_DEVICE_UNMASK_IRQ: Request(unmask_irq),
        rfc.VFIO_DEVICE_SET_UNMASK_IRQ_EVENTFD: Request(set_unmask_irq_eventfd),
        rfc.VFIO_DEVICE_RESET: Request(reset),
        rfc.VFIO_DEVICE_GET_DTPATH: Request(get_dtpath),
        rfc.VFIO_DEVICE_GET_DTPATH_32: Request(get_dtpath_32),
        rfc.VFIO_DEVICE_GET_DTINDEX: Request(get_dtindex),
    }
