"""The group file that does not know yet which ABI its program speaks.

/dev/vfio/N is the one node that both ABIs open. Which one a program means shows in its first ioctl:

    values that only the RFC has          2011: GET_FLAGS, MERGE, UNMERGE, GET_DEVICE_FD
    values that only mainline has         today: SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD
    0x3b67 (GET_IOMMU_FD, GET_STATUS)     as the machine says
    anything else                         decides nothing; it is refused as the machine's default does

What the machine says is "mainline", or "auto". Then what the program has shown so far counts: whoever has opened
/dev/vfio/vfio or /dev/iommu, or had a file decide for today's ABI, means today's, and accordingly for 2011. A
program that has shown nothing yet means GET_STATUS if the argument leads to the structure that belongs to it (its
size, 8, comes first), and else GET_IOMMU_FD, which has no argument.

A file decides once; the files made from it follow. Being named by another file decides as well: MERGE takes its
partner for a file of 2011, PCI_HOT_RESET takes groups of today.

Exclusiveness follows: for who means today's ABI a group opens once (``exclusive``) unless its file turned out to
speak 2011, for others as soon as its file decides for today's ABI; that fails with EBUSY, and nothing is decided,
while the group is open elsewhere too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from uvfio.errors import BadAddress, VfioError
from uvfio.fops.file import File
from uvfio.fops.mainline.group import LegacyGroupFile
from uvfio.fops.rfc2011 import group as rfc_fops
from uvfio.uapi import rfc, vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Task
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import Group, OpenGroup

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
    the default is today's, or what the program has shown).

    NoSuchGroup when the group went meanwhile, Busy when today's ABI has it open.
    """
    if abi == "2011":
        return rfc_fops.open_group(framework, group, task)
    mainline = MAINLINE in (abi, task.mm.abi)
    with framework.lock:
        shared = any(not held.exclusive for held in group.opens)
        held = framework.open_group(group, task.mm, exclusive=mainline and not shared)
    return AnyGroupFile(framework, held, abi)


class AnyGroupFile(File):
    """An open /dev/vfio/N. ``abi`` is what the machine says; ``chosen`` the file that it has become, or None."""

    __slots__ = ("abi", "chosen", "framework", "held")

    kind = "group"
    structural = True

    def __init__(self, framework: Framework, held: OpenGroup, abi: str) -> None:
        super().__init__(f"/dev/vfio/{held.group.node_name}")
        self.framework = framework
        self.held = held
        self.abi = abi
        self.chosen: Face | None = None

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        chosen = self.chosen
        if chosen is None:
            wanted = self._means(task, arg) if cmd == SHARED else DECIDES.get(cmd)
            if wanted is None:  # refused, and which check refuses it is the default's
                return LegacyGroupFile(self.framework, self.held).ioctl(task, cmd, arg)
            chosen = self.decide(wanted)
            task.mm.abi = MAINLINE if wanted is LegacyGroupFile else "2011"
        return chosen.ioctl(task, cmd, arg)

    def _means(self, task: Task, arg: int) -> type[Face]:
        """What the shared value means; see the module's head."""
        shown = MAINLINE if self.abi == MAINLINE else task.mm.abi
        if not shown:
            try:
                argsz = int.from_bytes(task.memory.read(arg, 4), "little")
            except BadAddress:
                argsz = 0
            shown = MAINLINE if argsz == vfio.HEAD.size else "2011"
        return LegacyGroupFile if shown == MAINLINE else rfc_fops.GroupFile

    def abi_of(self, cmd: int) -> str:
        face = type(self.chosen) if self.chosen else DECIDES.get(cmd, LegacyGroupFile)
        return MAINLINE if face is LegacyGroupFile else "2011"

    def decide(self, wanted: type[Face]) -> Face:
        """Become a file of that ABI. Busy if the group cannot be opened that way now."""
        if wanted is LegacyGroupFile:
            self.framework.make_exclusive(self.held)
        else:
            self.framework.make_shared(self.held)
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
