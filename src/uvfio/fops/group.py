"""``HeldGroupFile``: what open files of /dev/vfio/N have in common in all ABIs: the open group that they stand for.

A class that closes the group defines ``_release``: a file that is undecided hands its group on (``either.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.fops.file import File

if TYPE_CHECKING:
    from uvfio.core.structure.framework import Framework
    from uvfio.core.structure.group import OpenGroup

__all__ = ["HeldGroupFile"]


class HeldGroupFile(File):
    """An open /dev/vfio/N. ``held`` is the open group."""

    __slots__ = ("framework", "held")

    framework: Framework

    kind = "group"
    structural = True

    def __init__(self, framework: Framework, held: OpenGroup) -> None:
        super().__init__(f"/dev/vfio/{held.group.node_name}")
        self.framework = framework
        self.held = held

    def group_as(self, abi: str) -> OpenGroup | None:
        """The open group, if ``abi`` is the file's."""
        return self.held if abi == self.abi else None
