"""The group file whose ABI is not known yet: it becomes a file of either ABI.

/dev/vfio/N is the one node that both ABIs open. The first ioctl decides:

    numbers that only the RFC has         2011: GET_FLAGS, MERGE, UNMERGE, GET_DEVICE_FD
    numbers that only mainline has        mainline: SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD
    0x3b67 (GET_IOMMU_FD, GET_STATUS)     the machine's setting decides
    any other                             decides nothing; it is refused as mainline refuses it

The machine's setting is "mainline" or "auto". With "auto" the program's earlier calls decide: a program that has opened
/dev/vfio/vfio or /dev/iommu, or whose file became one of mainline, uses mainline, and accordingly for 2011. For a
program without such calls it is GET_STATUS if the argument points to the structure of that request (its size, 8, comes
first), and else GET_IOMMU_FD, which has no argument.

A file decides once; the files made from it follow. A request that names the file decides as well: MERGE makes it one of
2011, PCI_HOT_RESET one of mainline (``group_as``).

Exclusiveness follows: a group opens once (``exclusive``) for programs of mainline unless an open file of it became one
of 2011; for other programs it becomes exclusive when the file decides for mainline. That is EBUSY, and nothing is
decided, while the group is open elsewhere too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.errors import BadAddress, VfioError
from uvfio.fops.file import ABI_2011, MAINLINE
from uvfio.fops.group import HeldGroupFile
from uvfio.fops.mainline.group import GroupFile as MainlineGroupFile
from uvfio.fops.rfc2011.group import GroupFile as RfcGroupFile
from uvfio.fops.rfc2011.group import open_group as open_rfc_group
from uvfio.fops.wire import read_u32
from uvfio.uapi import rfc, vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Task
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group, OpenGroup
    from uvfio.fops.file import File

__all__ = ["AnyGroupFile", "open_group"]

GroupFile = RfcGroupFile | MainlineGroupFile

SHARED: Final = rfc.VFIO_GROUP_GET_IOMMU_FD
assert SHARED == vfio.VFIO_GROUP_GET_STATUS

FILES: Final[dict[str, type[GroupFile]]] = {ABI_2011: RfcGroupFile, MAINLINE: MainlineGroupFile}
DECIDES: Final[dict[int, str]] = {
    **dict.fromkeys(RfcGroupFile.REQUESTS, ABI_2011),
    **dict.fromkeys(MainlineGroupFile.REQUESTS, MAINLINE),
}


def open_group(framework: Framework, group: Group, task: Task, abi: str) -> File:
    """``open("/dev/vfio/N")`` where ``abi`` is "2011" (never another one), "mainline" or "auto" (undecided).

    Raises NoSuchGroup if the group went meanwhile, Busy if a file of mainline has it open.
    """
    if abi == ABI_2011:
        return open_rfc_group(framework, group, task)
    mainline = MAINLINE in (abi, task.mm.abi)
    with framework.lock:
        shared = any(not held.exclusive for held in group.opens)
        held = framework.open_group(group, task.mm, exclusive=mainline and not shared)
    return AnyGroupFile(framework, held, abi)


class AnyGroupFile(HeldGroupFile):
    """An open /dev/vfio/N. ``setting`` is the machine's; ``chosen`` the file that it has become, or None."""

    __slots__ = ("chosen", "setting")

    def __init__(self, framework: Framework, held: OpenGroup, setting: str) -> None:
        super().__init__(framework, held)
        self.setting = setting
        self.chosen: GroupFile | None = None

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        """Decide if this is the first request, and let the chosen file answer. Busy as ``decide``."""
        chosen = self.chosen
        if chosen is None:
            abi = self._meant(task, arg) if cmd == SHARED else DECIDES.get(cmd)
            if abi is None:
                return MainlineGroupFile(self.framework, self.held).ioctl(task, cmd, arg)
            chosen = self.decide(abi)
            task.mm.abi = abi
        return chosen.ioctl(task, cmd, arg)

    def _meant(self, task: Task, arg: int) -> str:
        """The ABI of a request with the shared number; see the module's head."""
        abi = MAINLINE if self.setting == MAINLINE else task.mm.abi
        if not abi:
            try:
                argsz = read_u32(task.memory, arg)
            except BadAddress:
                argsz = 0
            abi = MAINLINE if argsz == vfio.HEAD.size else ABI_2011
        return abi

    def abi_of(self, cmd: int) -> str:
        """The ABI that the request ``cmd`` has on this file, for traces and statistics."""
        return self.chosen.abi if self.chosen else DECIDES.get(cmd, MAINLINE)

    def decide(self, abi: str) -> GroupFile:
        """Become a file of that ABI. Raises Busy if the group cannot be opened that way now."""
        if abi == MAINLINE:
            self.framework.make_exclusive(self.held)
        else:
            self.framework.make_shared(self.held)
        self.chosen = FILES[abi](self.framework, self.held)
        return self.chosen

    def group_as(self, abi: str) -> OpenGroup | None:
        """The open group; a file that is undecided becomes one of ``abi``. None if it is one of the other ABI or
        cannot become this one."""
        if self.chosen is None:
            try:
                self.decide(abi)
            except VfioError:
                return None
        return None if self.chosen is None else self.chosen.group_as(abi)

    def _release(self) -> None:
        if self.chosen is None:
            self.framework.close_group(self.held)
        else:
            self.chosen.release()
