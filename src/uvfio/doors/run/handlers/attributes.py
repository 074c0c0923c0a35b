"""Opening a file of sysfs whose contents are made on demand or that takes writes (``machine/sysfs/attributes.py``).

One that is opened for reading only is a real file of the tree, with its contents at that moment: reads run natively,
and later changes do not show. One that is opened for writing is a file that the supervisor serves.

What this does not do: decide which attributes there are or what a write does; that is the machine's part.
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
    from uvfio.doors.run.session.session import Session
    from uvfio.doors.run.session.tree import Found
    from uvfio.machine.sysfs.attributes import Bound

__all__ = ["Written", "open_attribute"]


def open_attribute(session: Session, found: Found, flags: int) -> AttributeFile | None:
    """The file to serve, or None to open the real one. Raises what ``Bound.check_open`` raises (EACCES)."""
    path = session.tree.virtual(found.real) or ""
    bound = attributes.find(session.machine, path)
    if bound is None:
        return None
    reads = flags & os.O_ACCMODE != os.O_WRONLY
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    bound.check_open(reads, writes)
    if not writes:
        session.tree.renew(path, attribute_text(bound))
        return None
    contents = Written(bound, session.settle, session.refresh_tree)
    return AttributeFile(path, contents, reads=reads, writes=writes)


class Written(NamedTuple):
    """An attribute that is open for writing. ``settle`` releases what was closed before a write, so that the write
    finds it closed; ``show`` makes its effect visible in the tree before the answer."""

    bound: Bound
    settle: Callable[[], None]
    show: Callable[[], None]

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes of the contents at ``offset``."""
        return self.bound.read(offset, count)

    def write(self, offset: int, data: bytes) -> tuple[int, Wait | None]:
        """Store ``data``; returns how many bytes were taken, and what the answer has to wait for, if anything."""
        self.settle()
        try:
            return self.bound.write(offset, data)
        finally:
            if not self.bound.positioned:
                self.show()
