"""The device file of today's ABIs, the same whether a group or /dev/vfio/devices led to it.

Regions are read, written and mapped at ``index << 40``. A PCI device has nine of them (0-5 BARs, 6 ROM, 7
configuration space, 8 VGA, which is never there) and five kinds of interrupts (0 INTx, 1 MSI, 2 MSI-X, 3 ERR,
4 REQ); a device of another bus has what its driver says.

Each call runs under the device's lock, so it cannot be taken away in the middle of one. Only a bus reset does
not: it needs the locks of several devices.

``opened`` is None as long as the file may not be used yet; a file that came from a group always may.

Behaviour: drivers/vfio/vfio_main.c (vfio_device_fops_unl_ioctl, vfio_ioctl_device_feature) and
drivers/vfio/pci/vfio_pci_core.c (vfio_pci_core_ioctl and what it calls).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.core.bus import IrqAction, IrqData, IrqDevice, ModernDevice, TakesToken
from uvfio.core.events import Interrupt
from uvfio.core.irq import ReportedEvent
from uvfio.core.structure.device import DeviceKind
from uvfio.errors import Gone, InvalidArgument, NoSpace, UnknownCommand
from uvfio.fops.file import File
from uvfio.fops.wire import Chain, ModernFile, read_struct
from uvfio.uapi import vfio
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from uvfio.core.bus import Dependent
    from uvfio.core.seams import Event, Task
    from uvfio.core.structure.device import BoundDevice, Device, OpenDevice, Region
    from uvfio.core.structure.framework import Framework

__all__ = ["DeviceFile"]

SHIFT: Final = 40
OFFSET_MASK: Final = (1 << SHIFT) - 1

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

GET: Final = features.VFIO_DEVICE_FEATURE_GET
SET: Final = features.VFIO_DEVICE_FEATURE_SET
PROBE: Final = features.VFIO_DEVICE_FEATURE_PROBE


class DeviceFile(ModernFile):
    """An open device. ``opened`` None: not usable yet, every call is InvalidArgument."""

    __slots__ = ("device", "framework", "modern", "opened")

    kind = "device"
    noexec = True

    def __init__(self, framework: Framework, device: Device, opened: OpenDevice | None) -> None:
        super().__init__("anon_inode:[vfio-device]")
        self.framework = framework
        self.device = device
        self.opened: OpenDevice | None = None
        self.modern: ModernDevice | None = None
        self.region_memory = device.name
        if opened is not None:
            self.use(opened)

    def use(self, opened: OpenDevice) -> None:
        """From now on calls are served."""
        self.opened = opened
        if isinstance(opened.data, ModernDevice):
            self.modern = opened.data

    def _release(self) -> None:
        if self.opened is not None:
            self.framework.close_device(self.opened)

    # -- reading, writing, mapping -----------------------------------------------------------------

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        if cmd == vfio.VFIO_DEVICE_PCI_HOT_RESET:
            return super().ioctl(task, cmd, arg)
        with self.device.lock:
            return super().ioctl(task, cmd, arg)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        self._bound()
        return super().dispatch(task, cmd, arg)

    def pread(self, task: Task, count: int, offset: int) -> bytes:
        with self.device.lock:
            opened, modern = self.opened, self.modern
            if opened is None or opened.data is None or modern is None:
                return self._bound().read(offset >> SHIFT, offset & OFFSET_MASK, count)
            return modern.load(offset >> SHIFT, offset & OFFSET_MASK, count)

    def pwrite(self, task: Task, payload: bytes, offset: int) -> int:
        with self.device.lock:
            opened, modern = self.opened, self.modern
            if opened is None or opened.data is None or modern is None:
                return self._bound().write(offset >> SHIFT, offset & OFFSET_MASK, payload)
            return modern.store(offset >> SHIFT, offset & OFFSET_MASK, payload)

    def mmap(self, task: Task, size: int, offset: int, shared: bool) -> memoryview:
        with self.device.lock:
            data = self._bound()
            if not shared:
                raise InvalidArgument("device memory can only be mapped MAP_SHARED")
            return data.mmap(offset >> SHIFT, offset & OFFSET_MASK, size)

    # -- what there is -----------------------------------------------------------------------------

    def bind_iommufd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD: only for files of a device's own node (``fops/mainline/cdev.py``)."""
        raise InvalidArgument("a device that was opened by its group cannot be bound to an iommufd")

    def get_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_INFO."""
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
        """VFIO_DEVICE_GET_REGION_INFO, with SPARSE_MMAP and MSIX_MAPPABLE where they apply."""
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
        """VFIO_DEVICE_GET_IRQ_INFO."""
        data, memory = self._bound(), task.memory
        argsz, _, index, _ = vfio.IRQ_INFO.unpack(read_struct(memory, arg, vfio.IRQ_INFO.size))
        flags = vfio.VFIO_IRQ_INFO_EVENTFD
        modern = self.modern
        if modern is None:
            irq = data.irq(index)
            count, level, resizable = irq.count, irq.level, True
        else:
            count, resizable = modern.irq_count(index), modern.irq_resizable(index)
            level = index == vfio.VFIO_PCI_INTX_IRQ_INDEX
        if level:
            flags |= vfio.VFIO_IRQ_INFO_MASKABLE | vfio.VFIO_IRQ_INFO_AUTOMASKED
        elif not resizable:
            flags |= vfio.VFIO_IRQ_INFO_NORESIZE
        memory.write(arg, vfio.IRQ_INFO.pack(argsz, flags, index, count))
        return 0

    # -- interrupts --------------------------------------------------------------------------------

    def set_irqs(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_SET_IRQS (vfio_set_irqs_validate_and_prepare, then the kind of interrupt decides)."""
        modern, memory = self._interrupts(), task.memory
        argsz, flags, index, start, count = vfio.IRQ_SET.unpack(
            read_struct(memory, arg, vfio.IRQ_SET.size)
        )
        if flags & ~(DATA | ACTION) or count >= U32_MAX - start:
            raise InvalidArgument(f"flags {flags:#x}, {count} interrupts from {start}")
        available = modern.irq_count(index)
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
        modern.apply_irqs(index, action, start, count, data)
        return 0

    def _event(self, task: Task, fd: int, index: int, vector: int) -> Event | None:
        """The program's eventfd; if the framework has an observer, each signal is reported to it first."""
        if fd < 0:
            return None
        event, framework, name = task.event(fd), self.framework, self.device.name
        if framework.observer is None:
            return event
        irq = IRQ_NAMES[index] if self.modern is not None else self._bound().irq(index).name
        return ReportedEvent(event, framework, Interrupt(name, irq, vector))

    def ioeventfd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_IOEVENTFD: let an eventfd do a store; fd -1 ends that."""
        modern = self._need("VFIO_DEVICE_IOEVENTFD")
        raw = read_struct(task.memory, arg, IOEVENTFD.size)
        _, flags, offset, value, fd = IOEVENTFD.unpack(raw)
        width = WIDTHS.get(flags)
        if width is None or fd < -1:
            raise InvalidArgument(f"flags {flags:#x} are no width, or {fd} is no descriptor")
        event = None if fd < 0 else lambda: task.event(fd)
        modern.set_ioevent(offset >> SHIFT, offset & OFFSET_MASK, width, value, event)
        return 0

    # -- resets ------------------------------------------------------------------------------------

    def reset(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_RESET."""
        self._bound().reset()
        return 0

    def get_hot_reset_info(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: who is reset with this device."""
        modern, memory = self._need("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"), task.memory
        argsz, *_ = HOT_RESET.unpack(read_struct(memory, arg, HOT_RESET.size))
        scope = self.framework.bus_reset_scope(modern, self.device)
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
        """How a device is named to who opened this file: by its group."""
        return found.dev.group or 0

    def hot_reset_flags(self, scope: list[Dependent]) -> int:
        """What the names mean, and whether all is the caller's."""
        return 0

    def hot_reset(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_PCI_HOT_RESET: reset the bus; every open device on it must be the caller's.

        Which ones are is shown by the group files that the caller names.
        """
        modern, memory = self._need("VFIO_DEVICE_PCI_HOT_RESET"), task.memory
        _, flags, count = HOT_RESET.unpack(read_struct(memory, arg, HOT_RESET.size))
        if flags or not self.accepts_groups(count):
            raise InvalidArgument(f"flags {flags:#x} with {count} groups")
        scope = self.framework.bus_reset_scope(modern, self.device)
        if count > len(scope):
            raise InvalidArgument(f"{count} groups are named, {len(scope)} devices are reset")
        owned = self._named_groups(task, memory.read(arg + HOT_RESET.size, 4 * count))
        self.framework.bus_reset(scope, lambda device: self.owns(device, owned))
        return 0

    def accepts_groups(self, count: int) -> bool:
        """Whether so many groups may be named."""
        return count > 0

    def owns(self, device: Device, named: set[object]) -> bool:
        """Whether a device is the caller's, or nobody's."""
        return not device.in_use or device.group in named

    def _named_groups(self, task: Task, raw: bytes) -> set[object]:
        from uvfio.fops.mainline.group import LegacyGroupFile

        groups: set[object] = set()
        for (fd,) in vfio.S32.iter_unpack(raw):
            file = task.file(fd)
            found = file.face(LegacyGroupFile) if isinstance(file, File) else None
            if found is None or found.framework is not self.framework:
                raise InvalidArgument(f"descriptor {fd} is no group")
            groups.add(found.held.group)
        return groups

    # -- features ----------------------------------------------------------------------------------

    def feature(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_FEATURE: what this device cannot do is ENOTTY, also when it is only asked for."""
        argsz, flags = vfio.HEAD.unpack(read_struct(task.memory, arg, vfio.HEAD.size))
        number = flags & features.VFIO_DEVICE_FEATURE_MASK
        if flags & ~(features.VFIO_DEVICE_FEATURE_MASK | GET | SET | PROBE):
            raise InvalidArgument(f"flags {flags:#x} has unknown bits")
        if not flags & PROBE and flags & GET and flags & SET:
            raise InvalidArgument("GET and SET exclude each other")
        handler = self.FEATURES.get(number) if self.modern is not None else None
        if handler is None:
            known = features.FEATURES.get(number)
            name = known.name if known else f"feature {number}"
            raise UnknownCommand(f"{self.device.name} has no {name}")
        return handler(self, task, flags, arg + vfio.HEAD.size, argsz - vfio.HEAD.size)

    @staticmethod
    def checked(flags: int, given: int, operations: int, minimum: int) -> bool:
        """Whether to go on, or False for a probe (vfio_check_feature)."""
        if flags & (GET | SET) & ~operations:
            raise InvalidArgument("the feature cannot be used in this way")
        if flags & PROBE:
            return False
        if not flags & (GET | SET):
            raise InvalidArgument("neither GET nor SET is wanted")
        if given < minimum:
            raise InvalidArgument(f"{given} bytes of data, {minimum} are needed")
        return True

    def low_power_entry(self, task: Task, flags: int, data: int, given: int) -> int:
        """LOW_POWER_ENTRY."""
        if self.checked(flags, given, SET, 0):
            self._need("LOW_POWER_ENTRY").enter_low_power(None)
        return 0

    def low_power_entry_with_wakeup(self, task: Task, flags: int, data: int, given: int) -> int:
        """LOW_POWER_ENTRY_WITH_WAKEUP."""
        if not self.checked(flags, given, SET, 8):
            return 0
        fd, reserved = struct.unpack("<iI", task.memory.read(data, 8))
        if fd < 0 or reserved:
            raise InvalidArgument(f"descriptor {fd}, reserved {reserved:#x}")
        event = task.event(fd)
        try:
            self._need("LOW_POWER_ENTRY_WITH_WAKEUP").enter_low_power(event)
        except BaseException:
            event.close()
            raise
        return 0

    def low_power_exit(self, task: Task, flags: int, data: int, given: int) -> int:
        """LOW_POWER_EXIT."""
        if self.checked(flags, given, SET, 0):
            self._need("LOW_POWER_EXIT").leave_low_power()
        return 0

    def vf_token(self, task: Task, flags: int, data: int, given: int) -> int:
        """PCI_VF_TOKEN: the token of a physical function (vfio_pci_core_feature_token)."""
        taker = self._bound()
        if not isinstance(taker, TakesToken):
            raise UnknownCommand(f"{self.device.name} has no VF token")
        taker.set_token(None)
        if self.checked(flags, given, SET, features.PCI_VF_TOKEN_SIZE):
            taker.set_token(task.memory.read(data, features.PCI_VF_TOKEN_SIZE))
        return 0

    def migration(self, task: Task, flags: int, data: int, given: int) -> int:
        """What devices that migrate have; see ``fops/mainline/migration.py``, which most programs need not load."""
        from uvfio.fops.mainline.migration import HANDLERS

        return HANDLERS[flags & features.VFIO_DEVICE_FEATURE_MASK](self, task, flags, data, given)

    # -- inner -------------------------------------------------------------------------------------

    def _bound(self) -> BoundDevice:
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

    def _need(self, what: str) -> ModernDevice:
        if self.modern is None:
            raise UnknownCommand(f"{self.device.name} has no {what}")
        return self.modern

    FEATURES: ClassVar[dict[int, Callable[..., int]]] = {
        features.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: vf_token,
        features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: low_power_entry,
        features.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: low_power_entry_with_wakeup,
        features.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: low_power_exit,
        **dict.fromkeys(features.MIGRATION_FEATURES, migration),
    }
    COMMANDS: ClassVar[dict[int, Callable[..., int]]] = {
        vfio.VFIO_DEVICE_GET_INFO: get_info,
        vfio.VFIO_DEVICE_GET_REGION_INFO: get_region_info,
        vfio.VFIO_DEVICE_GET_IRQ_INFO: get_irq_info,
        vfio.VFIO_DEVICE_SET_IRQS: set_irqs,
        vfio.VFIO_DEVICE_RESET: reset,
        vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: get_hot_reset_info,
        vfio.VFIO_DEVICE_PCI_HOT_RESET: hot_reset,
        vfio.VFIO_DEVICE_IOEVENTFD: ioeventfd,
        vfio.VFIO_DEVICE_FEATURE: feature,
        vfio.VFIO_DEVICE_BIND_IOMMUFD: bind_iommufd,
    }


def _describe_mapping(chain: Chain, region: Region) -> None:
    """What is special about mapping a region."""
    if region.areas:
        body = struct.pack("<II", len(region.areas), 0)
        body += b"".join(struct.pack("<QQ", *area) for area in region.areas)
        chain.add(vfio.VFIO_REGION_INFO_CAP_SPARSE_MMAP, body)
    if region.msix_table:
        chain.add(vfio.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, b"")
