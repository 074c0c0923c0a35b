"""The group file of the 2011 ABI: /dev/vfio/N of the RFC.

Each handler decodes its argument from the caller's memory, calls one operation of the core, and encodes the answer; the
order of the checks is the RFC's. New files are close-on-exec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from uvfio.errors import InvalidArgument
from uvfio.fops.file import ABI_2011, find_file, install
from uvfio.fops.group import HeldGroupFile
from uvfio.fops.request import Request
from uvfio.fops.rfc2011.device import DeviceFile
from uvfio.fops.rfc2011.file import RfcFile
from uvfio.fops.rfc2011.iommu import IommuFile
from uvfio.fops.wire import read_int, read_string
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Task
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group, OpenGroup

__all__ = ["GroupFile", "open_group"]


def open_group(framework: Framework, group: Group, task: Task) -> GroupFile:
    """``open("/dev/vfio/N")``. Raises NoSuchGroup if the group went meanwhile."""
    return GroupFile(framework, framework.open_group(group, task.mm))


class GroupFile(HeldGroupFile, RfcFile):
    """An open /dev/vfio/N. Every request but GET_FLAGS is for the owner of the set alone."""

    __slots__ = ()

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Call the handler. EPERM for callers that do not own the set comes first, also for unknown requests."""
        if cmd != rfc.VFIO_GROUP_GET_FLAGS:
            self.framework.check_owner(self.held, task.mm)
        return super().dispatch(task, cmd, arg)

    def _release(self) -> None:
        self.framework.close_group(self.held)

    def get_flags(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_FLAGS: VIABLE and MM_LOCKED of the whole set, for every caller. EFAULT."""
        viable, owned = self.framework.group_state(self.held)
        flags = rfc.VFIO_GROUP_FLAGS_VIABLE * viable | rfc.VFIO_GROUP_FLAGS_MM_LOCKED * owned
        task.memory.write(arg, rfc.U64.pack(flags))
        return 0

    def merge(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_MERGE: let the group of another file share this group's context.

        EFAULT, EINVAL for a negative descriptor, EBADF, EINVAL for a file that is no group, then as
        ``Framework.merge`` raises.
        """
        self.framework.merge(self.held, self._partner(task, arg), task.mm)
        return 0

    def unmerge(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_UNMERGE: give the group of another file a context of its own.

        As MERGE for the descriptor, then as ``Framework.unmerge`` raises.
        """
        self.framework.unmerge(self.held, self._partner(task, arg), task.mm)
        return 0

    def get_iommu_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_IOMMU_FD: a new file on the shared context; the caller becomes the owner if there is none.

        As ``Framework.open_iommu`` raises; EMFILE, and the context is closed again.
        """
        file = IommuFile(self.framework, self.framework.open_iommu(self.held, task.mm))
        return install(task, file)

    def get_device_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_DEVICE_FD: a new file of the device that the string names, of any group of the set.

        EFAULT, EINVAL for a string without an end, then as ``Framework.open_device`` raises; EMFILE.
        """
        name = read_string(task.memory, arg)
        file = DeviceFile(self.framework, self.framework.open_device(self.held, name, task.mm))
        return install(task, file)

    def _partner(self, task: Task, arg: int) -> OpenGroup:
        """The open group whose descriptor ``arg`` points to."""
        fd = read_int(task.memory, arg)
        if fd < 0:
            raise InvalidArgument(f"{fd} is no descriptor")
        file = find_file(task, fd, self.framework)
        held = None if file is None else file.group_as(ABI_2011)
        if held is None:
            raise InvalidArgument(f"descriptor {fd} is not an open VFIO group")
        return held

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        rfc.VFIO_GROUP_GET_FLAGS: Request(get_flags),
        rfc.VFIO_GROUP_MERGE: Request(merge),
        rfc.VFIO_GROUP_UNMERGE: Request(unmerge),
        rfc.VFIO_GROUP_GET_IOMMU_FD: Request(get_iommu_fd),
        rfc.VFIO_GROUP_GET_DEVICE_FD: Request(get_device_fd),
        rfc.VFIO_GROUP_GET_DEVICE_FD_32: Request(get_device_fd),
    }
