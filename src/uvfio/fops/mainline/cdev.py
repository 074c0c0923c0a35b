"""/dev/vfio/devices/vfioN: a device that is opened by its own node.

    open --BIND_IOMMUFD--> as a device file that a group gave (``device.py``), and besides:
                           ATTACH_IOMMUFD_PT   DMA goes through a page table; while attached: through another one
                           DETACH_IOMMUFD_PT   DMA faults
                           hot resets          devices are named by their numbers in the iommufd and belong to it or not

Before BIND_IOMMUFD everything else is EINVAL. The file is ``alone``: of several opens of a node one may be bound, and a
door must not take one for another.

Behaviour: drivers/vfio/device_cdev.c, vfio_main.c, vfio_pci_core.c (vfio_pci_fill_devs).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.errors import BadAddress, InvalidArgument, Unsupported
from uvfio.fops.file import find_file
from uvfio.fops.mainline.device import DeviceFile
from uvfio.fops.mainline.file import context_of
from uvfio.fops.request import Partial, Request
from uvfio.fops.wire import read_sized, read_struct, read_u32
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.bus import Dependent
    from uvfio.core.seams import Memory, Task
    from uvfio.core.structure.device import Device, OpenCdev
    from uvfio.core.structure.framework import Framework

__all__ = ["DEVICES", "CdevFile", "open_cdev", "read_bind"]

DEVICES: Final = "/dev/vfio/devices"

BIND_MIN: Final = 16  # with ``out_devid``
BIND: Final = struct.Struct("<IIiIQ")  # argsz, flags, iommufd, out_devid, token_uuid_ptr
OUT_DEVID: Final = 12
ATTACH: Final = struct.Struct("<III")  # argsz, flags, pt_id
ATTACH_PASID: Final = 16
PT_ID: Final = 8
DETACH_PASID: Final = 12
TOKEN_SIZE: Final = 16
NOT_OWNED: Final = vfio.VFIO_PCI_DEVID_NOT_OWNED & 0xFFFFFFFF
NO_PASIDS: Final = Partial("no PASIDs (EOPNOTSUPP): no device has them")


def open_cdev(framework: Framework, number: int) -> CdevFile:
    """``open("/dev/vfio/devices/vfioN")``. Raises NoSuchDevice if the node went meanwhile."""
    return CdevFile(framework, framework.open_cdev(number), number)


class CdevFile(DeviceFile):
    """See the module's head. ``held`` is the open of the node; ``opened`` follows with the binding."""

    __slots__ = ("held",)

    structural = True
    alone = True

    def __init__(self, framework: Framework, held: OpenCdev, number: int) -> None:
        super().__init__(framework, held.device, None)
        self.name = f"{DEVICES}/vfio{number}"
        self.held = held

    def _release(self) -> None:
        self.framework.close_cdev(self.held)

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """BIND_IOMMUFD works on a file that is not bound yet; every other request as ``DeviceFile.dispatch``."""
        if cmd == vfio.VFIO_DEVICE_BIND_IOMMUFD:
            return self.bind_iommufd(task, arg)
        return super().dispatch(task, cmd, arg)

    # -- binding -----------------------------------------------------------------------------------

    def bind_iommufd(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_BIND_IOMMUFD: answer the device's number in the iommufd (vfio_df_ioctl_bind_iommufd).

        EFAULT, EINVAL and E2BIG as ``read_bind``; EBUSY while the group is open; EINVAL if the file is bound; EBADF,
        EBADFD for a descriptor that is no iommufd; EFAULT for the token; then as ``Framework.bind_cdev`` raises. The
        device is unbound again if the number cannot be written (EFAULT).
        """
        memory = task.memory
        fd, flags, token_at = read_bind(memory, arg)
        self.framework.check_cdev(self.held)
        context = context_of(find_file(task, fd, self.framework), fd)
        with_token = flags & vfio.VFIO_DEVICE_BIND_FLAG_TOKEN
        token = memory.read(token_at, TOKEN_SIZE) if with_token else None
        number = self.framework.bind_cdev(self.held, context, token)
        try:
            memory.write(arg + OUT_DEVID, vfio.U32.pack(number))
        except BadAddress:
            self.framework.unbind_cdev(self.held)
            raise
        assert self.held.opened is not None
        self.use(self.held.opened)
        return 0

    def attach_iommufd_pt(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_ATTACH_IOMMUFD_PT: answer the number of the page table (vfio_df_ioctl_attach_pt).

        EINVAL for ``argsz`` below 12 or unknown flags, EOPNOTSUPP for a PASID, EFAULT before anything is attached,
        then as ``Iommufd.attach`` raises.
        """
        memory = task.memory
        argsz, flags, number = ATTACH.unpack(read_struct(memory, arg, ATTACH.size))
        _check_pasid(argsz, flags, ATTACH_PASID)
        memory.write(arg + PT_ID, vfio.U32.pack(number))  # EFAULT before anything is attached
        found = self.framework.attach_cdev(self.held, number)
        memory.write(arg + PT_ID, vfio.U32.pack(found))
        return 0

    def detach_iommufd_pt(self, task: Task, arg: int) -> int:
        """VFIO_DEVICE_DETACH_IOMMUFD_PT: nothing if it is not attached (vfio_df_ioctl_detach_pt).

        EFAULT, EINVAL for ``argsz`` below 8 or unknown flags, EOPNOTSUPP for a PASID.
        """
        argsz, flags = vfio.HEAD.unpack(read_struct(task.memory, arg, vfio.HEAD.size))
        _check_pasid(argsz, flags, DETACH_PASID)
        self.framework.detach_cdev(self.held)
        return 0

    # -- hot resets --------------------------------------------------------------------------------

    def _number_of(self, device: Device | None) -> int | None:
        context = self.held.iommufd
        return None if context is None else self.framework.number_in(context, device)

    def dependent_id(self, found: Dependent) -> int:
        """The number by which an answer names a device: its own in the iommufd, or NOT_OWNED."""
        device = self.framework.lookup(found.dev)
        bound = device is not None and device.bound
        number = self._number_of(device) if bound else None
        return NOT_OWNED if number is None else number

    def hot_reset_flags(self, scope: list[Dependent]) -> int:
        """DEV_ID, and DEV_ID_OWNED if the iommufd owns every device of ``scope``."""
        owned = all(self.dependent_id(found) != NOT_OWNED for found in scope)
        return vfio.VFIO_PCI_HOT_RESET_FLAG_DEV_ID | (
            vfio.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED * owned
        )

    def accepts_groups(self, count: int) -> bool:
        """Whether ``count`` is 0: the iommufd is the proof of ownership."""
        return count == 0

    def owns(self, device: Device, named: set[object]) -> bool:
        """Whether the device has a number in the file's iommufd; ``named`` is empty."""
        return self._number_of(device) is not None

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        **DeviceFile.REQUESTS,
        vfio.VFIO_DEVICE_BIND_IOMMUFD: Request(bind_iommufd),
        vfio.VFIO_DEVICE_ATTACH_IOMMUFD_PT: Request(attach_iommufd_pt, NO_PASIDS),
        vfio.VFIO_DEVICE_DETACH_IOMMUFD_PT: Request(detach_iommufd_pt, NO_PASIDS),
    }


def read_bind(memory: Memory, arg: int) -> tuple[int, int, int]:
    """(iommufd, flags, address of the token) of VFIO_DEVICE_BIND_IOMMUFD.

    Raises BadAddress; InvalidArgument for ``argsz`` below 16, as E2BIG for a tail that is not 0, for a negative
    descriptor or unknown flags.
    """
    argsz = read_u32(memory, arg)
    if argsz < BIND_MIN:
        raise InvalidArgument(f"argsz is {argsz}, at least {BIND_MIN} are needed")
    _, flags, fd, _, token = BIND.unpack(read_sized(memory, arg, argsz, BIND.size))
    if fd < 0 or flags & ~vfio.VFIO_DEVICE_BIND_FLAG_TOKEN:
        raise InvalidArgument(f"iommufd is {fd}, flags {flags:#x}")
    return fd, flags, token


def _check_pasid(argsz: int, flags: int, needed: int) -> None:
    """Raises InvalidArgument for unknown flags and a short ``argsz``, Unsupported for a PASID: no device has them."""
    if flags & ~vfio.VFIO_DEVICE_ATTACH_PASID:
        raise InvalidArgument(f"flags {flags:#x} has unknown bits")
    if flags and argsz < needed:
        raise InvalidArgument(f"argsz is {argsz}, at least {needed} are needed")
    if flags:
        raise Unsupported("the device has no PASIDs", errno=errno.EOPNOTSUPP)
