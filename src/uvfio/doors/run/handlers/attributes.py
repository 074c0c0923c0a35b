"""Opening a file of sysfs that is made or takes writes (``machine/sysfs/attributes.py``).

One that is opened to be read is a real file of the tree, with what it says at that moment: it costs a program nothing
afterwards, and does not follow later changes. One that is opened to be written is a file that the supervisor serves.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from uvfio.fops.attribute import AttributeFile
from uvfio.machine.sysfs import attributes
from uvfio.machine.sysfs.tree import attribute_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.core.waiting import Wait
    from uvfio.doors.run.session.tree import Found
    from uvfio.doors.run.supervisor import Supervisor
    from uvfio.machine.sysfs.attributes import Bound

__all__ = ["Written", "open_attribute"]


def open_attribute(supervisor: Supervisor, found: Found, flags: int) -> AttributeFile | None:
    """The file to serve, or None if the real one will do. Refused as ``Bound.check_open`` says."""
    path = supervisor.tree.virtual(found.real) or ""
    bound = attributes.find(supervisor.machine, path)
    if bound is None:
        return None
    reads = flags & os.O_ACCMODE != os.O_WRONLY
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    bound.check_open(reads, writes)
    if not writes:
        supervisor.tree.renew(path, attribute_text(bound))
        return None
    contents = Written(bound, supervisor.settle, supervisor.refresh_tree)
    return AttributeFile(path, contents, reads=reads, writes=writes)


class Written(NamedTuple):
    """An attribute that is open for writing. What was closed before a write is closed (``settle``), and the program
    sees its effect at once (``show``)."""

    bound: Bound
    settle: Callable[[], None]
    show: Callable[[], None]

    def read(self, offset: int, count: int) -> bytes:
        return self.bound.read(offset, count)

    def write(self, offset: int, data: bytes) -> tuple[int, Wait | None]:
        self.settle()
        try:
            return self.bound.write(offset, data)
        finally:
            if not self.bound.positioned:
                self.show()
