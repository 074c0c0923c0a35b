"""The group file of the mainline ABI: /dev/vfio/N.

A group is put into a container (``container.py``) or an iommufd; then it gives its devices (``device.py``). A group
opens once (``Framework.open_group``, exclusive).

Behaviour: drivers/vfio/group.c, vfio_group_fops_unl_ioctl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from uvfio.fops.file import find_file, install
from uvfio.fops.group import HeldGroupFile
from uvfio.fops.mainline.device import DeviceFile
from uvfio.fops.mainline.file import MainlineFile, context_of
from uvfio.fops.request import Request
from uvfio.fops.wire import read_int, read_string, read_struct
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.seams import Task

__all__ = ["GroupFile"]


class GroupFile(HeldGroupFile, MainlineFile):
    """An open /dev/vfio/N of the mainline ABI."""

    __slots__ = ()

    def _release(self) -> None:
        self.framework.close_group(self.held)

    # -- requests ------------------------------------------------------------------------------------

    def get_status(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_STATUS: the flags VIABLE and CONTAINER_SET (vfio_group_ioctl_get_status).

        EFAULT, EINVAL for ``argsz`` below 8, ENODEV for a group that lost its last VFIO device.
        """
        argsz, _ = vfio.HEAD.unpack(read_struct(task.memory, arg, vfio.HEAD.size))
        viable, inside = self.framework.group_status(self.held)
        flags = vfio.VFIO_GROUP_FLAGS_VIABLE * viable | vfio.VFIO_GROUP_FLAGS_CONTAINER_SET * inside
        task.memory.write(arg, vfio.HEAD.pack(argsz, flags))
        return 0

    def set_container(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_SET_CONTAINER: put the group into a container, or into an iommufd.

        ``arg`` points to the descriptor of either. EFAULT, EBADF for a closed descriptor, EINVAL if the group is in
        one already, EBADFD for any other file, then as ``Framework.join`` or ``Framework.join_iommufd`` raises
        (vfio_group_ioctl_set_container).
        """
        fd = read_int(task.memory, arg)
        file = find_file(task, fd, self.framework)
        self.framework.check_no_container(self.held)
        if file is not None and file.container is not None:
            self.framework.join(self.held, file.container)
        else:
            self.framework.join_iommufd(self.held, context_of(file, fd))
        return 0

    def unset_container(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_UNSET_CONTAINER: the mappings go with the last group (vfio_group_ioctl_unset_container).

        EINVAL if it is in none, EBUSY while a device of the group is open.
        """
        self.framework.leave(self.held)
        return 0

    def get_device_fd(self, task: Task, arg: int) -> int:
        """VFIO_GROUP_GET_DEVICE_FD: a new file of the device that the string names (vfio_group_ioctl_get_device_fd).

        Options may follow the name: a VF token. EFAULT, EINVAL for a string without an end, then as
        ``Framework.open_member`` raises, EMFILE without a free descriptor.
        """
        text = read_string(task.memory, arg)
        opened = self.framework.open_member(self.held, text)
        return install(task, DeviceFile(self.framework, opened.device, opened))

    REQUESTS: ClassVar[Mapping[int, Request]] = {
        vfio.VFIO_GROUP_GET_STATUS: Request(get_status),
        vfio.VFIO_GROUP_SET_CONTAINER: Request(set_container),
        vfio.VFIO_GROUP_UNSET_CONTAINER: Request(unset_container),
        vfio.VFIO_GROUP_GET_DEVICE_FD: Request(get_device_fd),
    }
