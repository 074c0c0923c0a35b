"""The group file that does not know yet which ABI its program speaks.

/dev/vfio/N is the one node that both ABIs open. Which one a program means shows in its first ioctl:

    values that only the RFC has          2011: GET_FLAGS, MERGE, UNMERGE, GET_DEVICE_FD
    values that only mainline has         today: SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD
    0x3b67 (GET_IOMMU_FD, GET_STATUS)     as the machine says
    anything else                         decides nothing; it is refused as the machine's default does

A file decides once; the files made from it follow. Being named by another file decides as well: MERGE takes its
partner for a file of 2011, PCI_HOT_RESET takes groups of today.

Exclusiveness follows: where today's ABI is the machine's default a group opens once (``exclusive``) unless its
file turned out to speak 2011, elsewhere as soon as its file decides for today's ABI; that fails with EBUSY, and
nothing is decided, while the group is open elsewhere too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from uvfio.errors import VfioError
from uvfio.fops import rfc as rfc_fops
from uvfio.fops.file import File
from uvfio.fops.legacy import LegacyGroupFile
from uvfio.uapi import rfc, vfio

if TYPE_CHECKING:
    from uvfio.core.framework import Framework
    from uvfio.core.group import Group, OpenGroup
    from uvfio.core.seams import Task

__all__ = ["MAINLINE", "AnyGroupFile", "open_group"]

MAINLINE: Final = "mainline"

FileT = TypeVar("FileT", bound=File)
Face = rfc_fops.GroupFile | LegacyGroupFile

SHARED: Final = rfc.VFIO_GROUP_GET_IOMMU_FD
assert SHARED == vfio.VFIO_GROUP_GET_STATUS

DECIDES: Final[dict[int, type[Face]]] = {
    **dict.fromkeys(rfc_fops.GroupFile.COMMANDS, rfc_fops.GroupFile),
    **dict.fromkeys(LegacyGroupFile.COMMANDS, LegacyGroupFile),
}


def open_group(framework: Framework, group: Group, task: Task, abi: str) -> File:
    """``open("/dev/vfio/N")`` where ``abi`` is "2011" (that and nothing else), "mainline" or "auto" (undecided;
    the default is today's, or that of 2011).

    NoSuchGroup when the group went meanwhile, Busy when today's ABI has it open.
    """
    if abi == "2011":
        return rfc_fops.open_group(framework, group, task)
    modern = abi == MAINLINE
    with framework.lock:
        shared = any(not held.exclusive for held in group.opens)
        held = framework.open_group(group, task.mm, exclusive=modern and not shared)
    return AnyGroupFile(framework, held, LegacyGroupFile if modern else rfc_fops.GroupFile)


class AnyGroupFile(File):
    """An open /dev/vfio/N. ``chosen`` is the file that it has become, or None."""

    __slots__ = ("chosen", "default", "framework", "held")

    kind = "group"
    structural = True

    def __init__(self, framework: Framework, held: OpenGroup, default: type[Face]) -> None:
        super().__init__(f"/dev/vfio/{held.group.node_name}")
        self.framework = framework
        self.held = held
        self.default = default
        self.chosen: Face | None = None

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        chosen = self.chosen
        if chosen is None:
            wanted = self._wanted(cmd)
            if wanted is None:  # refused, and which check refuses it is the default's
                return self.default(self.framework, self.held).ioctl(task, cmd, arg)
            chosen = self.decide(wanted)
        return chosen.ioctl(task, cmd, arg)

    def _wanted(self, cmd: int) -> type[Face] | None:
        return self.default if cmd == SHARED else DECIDES.get(cmd)

    def abi_of(self, cmd: int) -> str:
        face = type(self.chosen) if self.chosen else self._wanted(cmd) or self.default
        return MAINLINE if face is LegacyGroupFile else "2011"

    def decide(self, wanted: type[Face]) -> Face:
        """Become a file of that ABI. Busy if the group cannot be opened that way now."""
        if wanted is LegacyGroupFile:
            self.framework.claim_group(self.held)
        else:
            self.framework.share_group(self.held)
        self.chosen = wanted(self.framework, self.held)
        return self.chosen

    def face(self, kind: type[FileT]) -> FileT | None:
        if self.chosen is None and kind in (rfc_fops.GroupFile, LegacyGroupFile):
            try:
                self.decide(rfc_fops.GroupFile if kind is rfc_fops.GroupFile else LegacyGroupFile)
            except VfioError:
                return None
        return None if self.chosen is None else self.chosen.face(kind)

    def _release(self) -> None:
        if self.chosen is None:
            self.framework.close_group(self.held)
        else:
            self.chosen.release()
