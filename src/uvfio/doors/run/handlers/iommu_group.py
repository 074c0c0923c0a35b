"""``iommu_group`` of a device, as each ABI has it: a file in 2011, a link in mainline.

A machine whose programs may speak either ABI (``--abi auto``) has the mainline tree, in which iommu_group is a link to
the group's folder. In 2011 it was a file with the group's number. An open for reading gets that file; links,
listings and paths that go through it are mainline's::

    readlink, lstat, .../iommu_group/devices, open with O_DIRECTORY, O_PATH or O_NOFOLLOW      the link
    open(".../iommu_group", O_RDONLY)                                                          "240\\n"

What an open of a device node makes is the machine's rule (``machine/open.py``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from uvfio.doors.run.session.session import Session
    from uvfio.doors.run.session.tree import Found

__all__ = ["group_number"]


def group_number(session: Session, path: str, found: Found, flags: int) -> BinaryIO | None:
    """The file of 2011 if a device's iommu_group is opened for reading; None for any other file."""
    if (
        session.abi != "auto"
        or not path.endswith("/iommu_group")
        or flags & (os.O_ACCMODE | os.O_NOFOLLOW)
        or not os.path.isdir(found.real)
    ):
        return None
    with os.fdopen(os.memfd_create("iommu_group"), "wb") as made:
        made.write(os.path.basename(found.real).encode() + b"\n")
        made.flush()
        return open(f"/proc/self/fd/{made.fileno()}", "rb")
