"""``RfcFile``: the base of the files of the RFC of November 2011, and the errno of conditions there.

    condition     errno    instead of
    Overlap       EBUSY    EEXIST (mainline)
    Unsupported   EINVAL   the device's own
    unknown       ENOTTY   ENOSYS of the RFC, which means that there is no such system call

All other conditions have their default, or the errno that the raising code gives them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from uvfio.errors import Overlap, Unsupported, VfioError
from uvfio.fops.request import RequestFile
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RfcFile"]


class RfcFile(RequestFile):
    """See the module's head."""

    __slots__ = ()

    ERRNO: ClassVar[Mapping[type[VfioError], int]] = {
        Overlap: errno.EBUSY,
        Unsupported: errno.EINVAL,
    }

    def request_name(self, cmd: int) -> str:
        """The header's name of a request to this file, or its number."""
        return rfc.ioctl_name(cmd)
