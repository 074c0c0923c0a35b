"""The device file of the mainline ABIs, the same from a group and from /dev/vfio/devices.

Regions are read, written and mapped at ``index << 40``. A PCI device has nine of them (0-5 BARs, 6 ROM, 7
configuration space, 8 VGA, which no device here has) and five kinds of interrupts (0 INTx, 1 MSI, 2 MSI-X, 3 ERR,
4 REQ); a device of another bus has what its driver reports.

Each call runs under the device's lock, so the device cannot be taken away in the middle of one. PCI_HOT_RESET is the
exception: it needs the locks of several devices.

``opened`` is None as long as the file may not be used yet: all calls are EINVAL then. A file that came from a group
has it from the beginning. A device that was taken away answers ENODEV.

Behaviour: drivers/vfio/vfio_main.c (vfio_device_fops_unl_ioctl, vfio_ioctl_device_feature) and
drivers/vfio/pci/vfio_pci_core.c (vfio_pci_core_ioctl and the functions that it calls).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.bus import DeviceKind, IrqAction, IrqData, IrqDevice, MainlineDevice, TakesToken
from uvfio.errors import Gone, InvalidArgument, NoSpace, UnknownCommand
from uvfio.fops.file import MAINLINE, find_file, report_signals
from uvfio.fops.mainline.feature import GET, PROBE, SET, FeatureCall
from uvfio.fops.mainline.file import MainlineFile
from uvfio.fops.request import Handler, Partial, Refused, Request, handlers
from uvfio.fops.wire import OFFSET_MASK, REGISTERS_STRIDE, Chain, read_struct
from uvfio.fops.wire import REGION_SHIFT as SHIFT
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.bus import BoundDevice, Dependent, Region
    from uvfio.core.seams import Event, Task
    from uvfio.core.structure.device import Device, OpenDevice
    from uvfio.core.structure.framework import Framework

__all__ = ["DeviceFile"]

INFO: Final = struct.Struct("<IIIIII")  # argsz, flags, num_regions, num_irqs, cap_offset, pad
INFO_MIN: Final = 16
HOT_RESET: Final = struct.Struct("<III")  # argsz, flags, count
DEPENDENT: Final = struct.Struct("<IHBB")  # group_id, segment, bus, devfn
IOEVENTFD: Final = struct.Struct("<IIQQi")  # argsz, flags, offset, data, fd

DATA: Final = vfio.VFIO_IRQ_SET_DATA_TYPE_MASK
ACTION: Final = vfio.VFIO_IRQ_SET_ACTION_TYPE_MASK
ACTIONS: Final = {
    vfio.VFIO_IRQ_SET_ACTION_MASK: IrqAction.MASK,
    vfio.VFIO_IRQ_SET_ACTION_UNMASK: IrqAction.UNMASK,
    vfio.VFIO_IRQ_SET_ACTION_TRIGGER: IrqAction.TRIGGER,
}
SIZES: Final = {
    vfio.VFIO_IRQ_SET_DATA_NONE: 0,
    vfio.VFIO_IRQ_SET_DATA_BOOL: 1,
    vfio.VFIO_IRQ_SET_DATA_EVENTFD: 4,
}
WIDTHS: Final = {
    vfio.VFIO_DEVICE_IOEVENTFD_8: 1,
    vfio.VFIO_DEVICE_IOEVENTFD_16: 2,
    vfio.VFIO_DEVICE_IOEVENTFD_32: 4,
    vfio.VFIO_DEVICE_IOEVENTFD_64: 8,
}
IRQ_NAMES: Final = ("INTx", "MSI", "MSI-X", "ERR", "REQ")
U32_MAX: Final = 0xFFFFFFFF

NO_DISPLAY: Final = Refused("ENOTTY", "of graphics cards with a display; no model has one")
OWN_NODE: Final = Refused("ENOTTY", "of devices opened by their own node, as in Linux")


class DeviceFile(MainlineFile):
    """An open device. ``mainline`` is the driver's interface for PCI devices, None for devices of other buses."""

    __slots__ = ("device", "framework", "mainline", "opened")

    framework: Framework

    kind = "device"
    noexec = True

    def __init__(self, framework: Framework, device: Device, opened: OpenDevice | None) -> None:
        super().__init__("anon_inode:[vfio-device]")
        self.framework = framework
        self.device = device
        self.opened: OpenDevice | None = None
        self.mainline: MainlineDevice | None = None
        self.region_memory = device.name
        if opened is not None:
            self.use(opened)

    def use(self, opened: OpenDevice) -> None:
        """Serve calls from now on."""
        self.opened = opened
        if isinstance(opened.data, MainlineDevice):
            self.mainline = opened.data

    def _release(self) -> None:
        if self.opened is not None:
            self.framework.close_device(self.opened)

    # -- reading, writing, mapping -----------------------------------------------------------------

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """Answer under the device's lock. PCI_HOT_RESET takes the locks of all devices that it resets by itself."""
        if cmd == vfio.VFIO_DEVICE_PCI_HOT_RESET:
            return super().ioctl(task, cmd, arg)
        with self.device.lock:
            return super().ioctl(task, cmd, arg)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Call the handler of ``cmd``. Raises InvalidArgument before the file may be used, Gone after a
        revocation."""
        self._bound()
        return super().dispatch(task, cmd, arg)

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        """Read region ``offset >> 40``; a PCI device as ``MainlineDevice.load``, others as ``BoundDevice.read``."""
        with self.device.lock:
            opened, mainline = self.opened, self.mainline
            if opened is None or opened.data is None or mainline is None:
                return self._bound().read(offset >> SHIFT, offset & OFFSET_MASK, count)
            return mainline.load(offset >> SHIFT, offset & OFFSET_MASK, count)

    def pwrite(self, task: Task, payload: bytes, offset: int) -> int:
        """Write region ``offset >> 40``; a PCI device as ``MainlineDevice.store``, others as
        ``BoundDevice.write``."""
        with self.device.lock:
            opened, mainline = self.opened, self.mainline
            if opened is None or opened.data is None or mainline is None:
                return self._bound().write(offset >> SHIFT, offset & OFFSET_MASK, payload)
            return mainline.store(offset >> SHIFT, offset & OFFSET_MASK, payload)

    def stride(self, offset: int) -> int:
        """Few bytes of registers: the device acts on each access."""
        data = self.opened.data if self.opened is not None else None
        if data is None or not 0 <= offset >> SHIFT < data.num_regions:
            return super().stride(offset)
        return (
            REGISTERS_STRIDE if data.region(offset >> SHIFT).registers else super().stride(offset)
        )

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        """The memory of region ``offset >> 40``. InvalidArgument unless it is mapped MAP_SHARED, and as
        ``BoundDevice.mmap``."""
        with self.device.lock:
            data = self._bound()
            if not shared:
                raise InvalidArgument("device memory can only be mapped MAP_SHARED")
            return data.mmap(offset >> SHIFT, offset & OFFSET_MASK, size)

    # -- information -------------------------------------------------------------------------------

    def refuse_bind(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD of a file that a group gave: EINVAL (device_cdev.c, vfio_df_ioctl_bind_iommufd)."""
        raise InvalidArgument("a device that was opened by its group cannot be bound to an iommufd")

    def get_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_INFO: the device's kind, numbers of regions and interrupts, RESET (vfio_pci_ioctl_get_info).

        EFAULT, EINVAL for ``argsz`` below 16. Without capabilities.
        """
        data, memory = self._bound(), task.memory
        argsz = int.from_bytes(read_struct(memory, arg, INFO_MIN)[:4], "little")
        flags = vfio.VFIO_DEVICE_FLAGS_RESET * data.resettable
        if data.kind is DeviceKind.PCI:
            flags |= vfio.VFIO_DEVICE_FLAGS_PCI
            regions, irqs = vfio.VFIO_PCI_NUM_REGIONS, vfio.VFIO_PCI_NUM_IRQS
        else:
            flags |= vfio.VFIO_DEVICE_FLAGS_PLATFORM
            regions, irqs = data.num_regions, data.num_irqs
        info = INFO.pack(argsz, flags, regions, irqs, 0, 0)
        memory.write(arg, info[: min(argsz, INFO.size)])
        return 0

    def get_region_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_REGION_INFO, with SPARSE_MMAP and MSIX_MAPPABLE (vfio_pci_ioctl_get_region_info).

        EFAULT, EINVAL for ``argsz`` below 32 or a region that does not exist. A region that the device does not have
        has size 0.
        """
        data, memory = self._bound(), task.memory
        raw = read_struct(memory, arg, vfio.REGION_INFO.size)
        argsz, _, index, *_ = vfio.REGION_INFO.unpack(raw)
        region = data.region(index)
        flags, chain = 0, Chain()
        if region.size:
            flags = vfio.VFIO_REGION_INFO_FLAG_READ * region.readable
            flags |= vfio.VFIO_REGION_INFO_FLAG_WRITE * region.writable
            if region.mappable:
                flags |= vfio.VFIO_REGION_INFO_FLAG_MMAP
                _describe_mapping(chain, region)
        if chain:
            flags |= vfio.VFIO_REGION_INFO_FLAG_CAPS
        argsz, at = chain.place(memory, arg, argsz, vfio.REGION_INFO.size)
        offset = index << SHIFT
        memory.write(arg, vfio.REGION_INFO.pack(argsz, flags, index, at, region.size, offset))
        return 0

    def get_irq_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_IRQ_INFO: the number of vectors and flags (vfio_pci_ioctl_get_irq_info).

        EFAULT, EINVAL for ``argsz`` below 16 or a kind of interrupt that does not exist.
        """
        data, memory = self._bound(), task.memory
        argsz, _, index, _ = vfio.IRQ_INFO.unpack(read_struct(memory, arg, vfio.IRQ_INFO.size))
        flags = vfio.VFIO_IRQ_INFO_EVENTFD
        mainline = self.mainline
        if mainline is None:
            irq = data.irq(index)
            count, level, resizable = irq.count, irq.level, True
        else:
            count, resizable = mainline.irq_count(index), mainline.irq_resizable(index)
            level = index == vfio.VFIO_PCI_INTX_IRQ_INDEX
        if level:
            flags |= vfio.VFIO_IRQ_INFO_MASKABLE | vfio.VFIO_IRQ_INFO_AUTOMASKED
        elif not resizable:
            flags |= vfio.VFIO_IRQ_INFO_NORESIZE
        memory.write(arg, vfio.IRQ_INFO.pack(argsz, flags, index, count))
        return 0

    # -- interrupts --------------------------------------------------------------------------------

    def set_irqs(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_IRQS: mask, unmask, trigger or connect interrupts (vfio_pci_ioctl_set_irqs).

        First as vfio_set_irqs_validate_and_prepare: EFAULT, EINVAL for ``argsz`` below 20, for unknown flags, for a
        kind or a range that does not exist, for not exactly one DATA flag, for an ``argsz`` without room for the data;
        EFAULT for the data. Then ENOTTY for not exactly one ACTION flag, and as the driver's ``apply_irqs`` raises.
        """
        device, memory = self._interrupts(), task.memory
        argsz, flags, index, start, count = vfio.IRQ_SET.unpack(
            read_struct(memory, arg, vfio.IRQ_SET.size)
        )
        if flags & ~(DATA | ACTION) or count >= U32_MAX - start:
            raise InvalidArgument(f"flags {flags:#x}, {count} interrupts from {start}")
        available = device.irq_count(index)
        if start >= available or start + count > available:
            raise InvalidArgument(
                f"{count} interrupts from {start} are wanted, interrupt {index} has {available}"
            )
        size = SIZES.get(flags & DATA)
        if size is None:
            raise InvalidArgument(f"flags {flags:#x} do not say what the data is")
        if argsz - vfio.IRQ_SET.size < count * size:
            raise InvalidArgument(f"argsz {argsz} leaves no room for {count} times {size} bytes")
        raw = memory.read(arg + vfio.IRQ_SET.size, count * size) if count and size else b""
        action = ACTIONS.get(flags & ACTION)
        if action is None:
            raise UnknownCommand(f"flags {flags:#x} do not ask for one action")
        data: IrqData = None
        if size == 1:
            data = raw
        elif size:
            fds = struct.unpack(f"<{count}i", raw)
            data = lambda at: self._event(task, fds[at], index, start + at)  # noqa: E731
        device.apply_irqs(index, action, start, count, data)
        return 0

    def _event(self, task: Task, fd: int, index: int, vector: int) -> Event | None:
        """The program's event; None for a negative descriptor. Raises BadDescriptor, InvalidArgument."""
        if fd < 0:
            return None
        event = task.event(fd)
        irq = IRQ_NAMES[index] if self.mainline is not None else self._bound().irq(index).name
        return report_signals(self.framework, event, self.device.name, irq, vector)

    def ioeventfd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_IOEVENTFD: each signal of an eventfd does a store; fd -1 ends that (vfio_pci_ioctl_ioeventfd).

        ENOTTY without PCI; EFAULT, EINVAL for ``argsz`` below 28, for not exactly one width, for fd below -1; then as
        the driver's ``set_ioevent`` raises.
        """
        mainline = self._need("VFIO_DEVICE_IOEVENTFD")
        raw = read_struct(task.memory, arg, IOEVENTFD.size)
        _, flags, offset, value, fd = IOEVENTFD.unpack(raw)
        width = WIDTHS.get(flags)
        if width is None or fd < -1:
            raise InvalidArgument(f"flags {flags:#x} are no width, or {fd} is no descriptor")
        event = None if fd < 0 else lambda: task.event(fd)
        mainline.set_ioevent(offset >> SHIFT, offset & OFFSET_MASK, width, value, event)
        return 0

    # -- resets ------------------------------------------------------------------------------------

    def reset(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_RESET: reset the function. EINVAL if it has no way to be reset (vfio_pci_ioctl_reset)."""
        self._bound().reset()
        return 0

    def get_hot_reset_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: the devices that are reset with this one.

        ENOTTY without PCI; EFAULT, EINVAL for ``argsz`` below 12; ENODEV if the bus cannot be reset; ENOSPC, with the
        number of devices, if ``argsz`` has no room for all (vfio_pci_ioctl_get_pci_hot_reset_info).
        """
        mainline, memory = self._need("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"), task.memory
        argsz, *_ = HOT_RESET.unpack(read_struct(memory, arg, HOT_RESET.size))
        scope = self.framework.bus_reset_scope(mainline, self.device)
        room = (argsz - HOT_RESET.size) // DEPENDENT.size
        listed = b"".join(
            DEPENDENT.pack(self.dependent_id(found), found.segment, found.bus, found.devfn)
            for found in scope[:room]
        )
        memory.write(arg, HOT_RESET.pack(argsz, self.hot_reset_flags(scope), len(scope)) + listed)
        if room < len(scope):
            raise NoSpace(f"{len(scope)} devices are reset together, argsz has room for {room}")
        return 0

    def dependent_id(self, found: Dependent) -> int:
        """The number by which an answer names a device: that of its group."""
        return found.dev.group or 0

    def hot_reset_flags(self, scope: list[Dependent]) -> int:
        """The flags of the answer: what the numbers mean, and whether all devices are the caller's."""
        return 0

    def hot_reset(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_PCI_HOT_RESET: reset the bus; every device on it that is in use must be the caller's.

        The caller names the groups that are its own by their descriptors. ENOTTY without PCI; EFAULT, EINVAL for
        ``argsz`` below 12, for flags, without groups; ENODEV if the bus cannot be reset; EINVAL for more groups than
        devices; EFAULT; EBADF or EINVAL for a descriptor that is no group; then EINVAL for a device of another user
        (vfio_pci_ioctl_pci_hot_reset_groups). Other devices of the bus lose their state as well.
        """
        mainline, memory = self._need("VFIO_DEVICE_PCI_HOT_RESET"), task.memory
        _, flags, count = HOT_RESET.unpack(read_struct(memory, arg, HOT_RESET.size))
        if flags or not self.accepts_groups(count):
            raise InvalidArgument(f"flags {flags:#x} with {count} groups")
        scope = self.framework.bus_reset_scope(mainline, self.device)
        if count > len(scope):
            raise InvalidArgument(f"{count} groups are named, {len(scope)} devices are reset")
        owned = self._named_groups(task, memory.read(arg + HOT_RESET.size, 4 * count))
        self.framework.bus_reset(scope, lambda device: self.owns(device, owned))
        return 0

    def accepts_groups(self, count: int) -> bool:
        """Whether a caller may name this number of groups."""
        return count > 0

    def owns(self, device: Device, named: set[object]) -> bool:
        """Whether a device is the caller's or not in use, given the groups that the caller named."""
        return not device.in_use or device.group in named

    def _named_groups(self, task: Task, raw: bytes) -> set[object]:
        groups: set[object] = set()
        for (fd,) in vfio.S32.iter_unpack(raw):
            file = find_file(task, fd, self.framework)
            held = None if file is None else file.group_as(MAINLINE)
            if held is None:
                raise InvalidArgument(f"descriptor {fd} is no group")
            groups.add(held.group)
        return groups

    # -- features ----------------------------------------------------------------------------------

    def feature(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_FEATURE: GET, SET or PROBE one feature (vfio_ioctl_device_feature).

        EFAULT, EINVAL for ``argsz`` below 8, for unknown flags, for GET with SET unless PROBE is set; ENOTTY for a
        feature that this device does not have, also for a probe; then as the feature.
        """
        argsz, flags = vfio.HEAD.unpack(read_struct(task.memory, arg, vfio.HEAD.size))
        number = flags & features.VFIO_DEVICE_FEATURE_MASK
        if flags & ~(features.VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE):
            raise InvalidArgument(f"flags {flags:#x} has unknown bits")
        if not flags & PROBE and flags & GET and flags & SET:
            raise InvalidArgument("GET and SET exclude each other")
        handler = self.FEATURE_HANDLERS.get(number)
        if self.mainline is None and not (handler is DeviceFile.migration and self._migrates()):
            handler = None
        if handler is None:
            known = features.FEATURES.get(number)
            name = known.name if known else f"feature {number}"
            raise UnknownCommand(f"{self.device.name} has no {name}")
        head = vfio.HEAD.size
        return handler(self, FeatureCall(task, flags, arg + head, argsz - head))

    def low_power_entry(self, call: FeatureCall) -> int:
        """LOW_POWER_ENTRY: EINVAL if the device is in low power already (vfio_pci_core_pm_entry)."""
        if call.check(SET, 0):
            self._need("LOW_POWER_ENTRY").enter_low_power(None)
        return 0

    def low_power_entry_with_wakeup(self, call: FeatureCall) -> int:
        """LOW_POWER_ENTRY_WITH_WAKEUP: an eventfd is signalled when the device wakes up by itself.

        EFAULT, EINVAL for a negative descriptor or reserved bytes that are not 0, EBADF or EINVAL for a descriptor
        that is no eventfd, EINVAL if the device is in low power already (vfio_pci_core_pm_entry_with_wakeup).
        """
        if not call.check(SET, 8):
            return 0
        fd, reserved = struct.unpack("<iI", call.task.memory.read(call.data, 8))
        if fd < 0 or reserved:
            raise InvalidArgument(f"descriptor {fd}, reserved {reserved:#x}")
        event = call.task.event(fd)
        try:
            self._need("LOW_POWER_ENTRY_WITH_WAKEUP").enter_low_power(event)
        except BaseException:
            event.close()
            raise
        return 0

    def low_power_exit(self, call: FeatureCall) -> int:
        """LOW_POWER_EXIT: nothing if the device is not in low power (vfio_pci_core_pm_exit)."""
        if call.check(SET, 0):
            self._need("LOW_POWER_EXIT").leave_low_power()
        return 0

    def vf_token(self, call: FeatureCall) -> int:
        """PCI_VF_TOKEN: set the token of a physical function; ENOTTY for others (vfio_pci_core_feature_token)."""
        taker = self._bound()
        if not isinstance(taker, TakesToken):
            raise UnknownCommand(f"{self.device.name} has no VF token")
        taker.set_token(None)
        if call.check(SET, features.PCI_VF_TOKEN_SIZE):
            taker.set_token(call.task.memory.read(call.data, features.PCI_VF_TOKEN_SIZE))
        return 0

    def migration(self, call: FeatureCall) -> int:
        """The features of devices that migrate: ``migration.py``, which is loaded with the first such request."""
        from uvfio.fops.mainline.migration import HANDLERS

        number = call.flags & features.VFIO_DEVICE_FEATURE_MASK
        return HANDLERS[number](self.device, self._bound(), call)

    def _migrates(self) -> bool:
        """Whether the device is of another bus than PCI and its model takes part in migration."""
        return getattr(self._bound(), "migration", None) is not None

    # -- inner -------------------------------------------------------------------------------------

    def _bound(self) -> BoundDevice:
        """The driver's view of the device. Raises InvalidArgument before the file may be used, Gone."""
        opened = self.opened
        if opened is None:
            raise InvalidArgument(f"{self.device.name} is not usable through this file yet")
        if opened.data is None:
            raise Gone(f"{self.device.name} was taken away from its user")
        return opened.data

    def _interrupts(self) -> IrqDevice:
        data: object = self._bound()
        if not isinstance(data, IrqDevice):
            raise UnknownCommand(f"{self.device.name} has no VFIO_DEVICE_SET_IRQS")
        return data

    def _need(self, what: str) -> MainlineDevice:
        """The driver's interface for PCI devices. Raises UnknownCommand for devices of other buses."""
        if self.mainline is None:
            raise UnknownCommand(f"{self.device.name} has no {what}")
        return self.mainline

    FEATURES: ClassVar[Mapping[int, Request]] = {
        features.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: Request(vf_token),
        features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: Request(low_power_entry),
        features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: Request(
            low_power_entry_with_wakeup
        ),
        features.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: Request(low_power_exit),
        **dict.fromkeys(features.MIGRATION_FEATURES, Request(migration)),
        features.VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Request(
            migration, Partial("the log has pages of 2 MiB at most")
        ),
        features.VFIO_DEVICE_FEATURE_BUS_MASTER: Request(
            None, Refused("ENOTTY", "of buses whose devices have no such bit: not of PCI")
        ),
        features.VFIO_DEVICE_FEATURE_DMA_BUF: Request(
            None,
            Refused(
                "ENOTTY",
                "as in a kernel that was built without it: nothing here could take such a buffer",
            ),
        ),
    }
    FEATURE_HANDLERS: ClassVar[Mapping[int, Handler]] = handlers(FEATURES)
    REQUESTS: ClassVar[Mapping[int, Request]] = {
        vfio.VFIO_DEVICE_GET_INFO: Request(get_info),
        vfio.VFIO_DEVICE_GET_REGION_INFO: Request(get_region_info),
        vfio.VFIO_DEVICE_GET_IRQ_INFO: Request(get_irq_info),
        vfio.VFIO_DEVICE_SET_IRQS: Request(set_irqs),
        vfio.VFIO_DEVICE_RESET: Request(reset),
        vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: Request(get_hot_reset_info),
        vfio.VFIO_DEVICE_PCI_HOT_RESET: Request(hot_reset),
        vfio.VFIO_DEVICE_QUERY_GFX_PLANE: Request(None, NO_DISPLAY),
        vfio.VFIO_DEVICE_GET_GFX_DMABUF: Request(None, NO_DISPLAY),
        vfio.VFIO_DEVICE_IOEVENTFD: Request(ioeventfd),
        vfio.VFIO_DEVICE_FEATURE: Request(
            feature, Partial("not all features; see the table of features")
        ),
        vfio.VFIO_DEVICE_BIND_IOMMUFD: Request(
            refuse_bind, Refused("EINVAL", "a group has opened the device, as in Linux")
        ),
        vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT: Request(None, OWN_NODE),
        vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT: Request(None, OWN_NODE),
    }


def _describe_mapping(chain: Chain, region: Region) -> None:
    """Add the capabilities about mapping a region: its areas if not all of it, and the MSI-X table inside."""
    if region.areas:
        body = struct.pack("<II", len(region.areas), 0)
        body += b"".join(struct.pack("<QQ", *area) for area in region.areas)
        chain.add(vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP, body)
    if region.msix_table:
        chain.add(vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, b"")
