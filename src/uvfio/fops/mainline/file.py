"""``MainlineFile``: the base of the files of the kernel's current ABIs, and the errno of conditions there.

    condition         errno         instead of
    NotViable         EPERM         EBUSY (2011)
    NoVectors         ERANGE        EINVAL
    TooManyMappings   ENOSPC        ENOMEM
    WrapsAround       EOVERFLOW     EINVAL (2011)

All other conditions have their default, or the errno that the raising code gives them. An unknown request is ENOTTY.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.errors import (
    InvalidArgument,
    NotViable,
    NoVectors,
    TooManyMappings,
    VfioError,
    WrapsAround,
)
from uvfio.fops.file import MAINLINE
from uvfio.fops.request import RequestFile
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvfio.core.structure.iommufd import Iommufd
    from uvfio.fops.file import File

__all__ = ["ERRNO", "MainlineFile", "context_of"]

ERRNO: Final[dict[type[VfioError], int]] = {
    NotViable: errno.EPERM,
    NoVectors: errno.ERANGE,
    TooManyMappings: errno.ENOSPC,
    WrapsAround: errno.EOVERFLOW,
}


class MainlineFile(RequestFile):
    """See the module's head. ``kind`` is the file's name in ``uvfio.uapi.vfio.IOCTLS``."""

    __slots__ = ()

    abi = MAINLINE
    ERRNO: ClassVar[Mapping[type[VfioError], int]] = ERRNO

    def request_name(self, cmd: int) -> str:
        """The header's name of a request to this file, or its number."""
        return vfio.ioctl_name(self.kind, cmd)


def context_of(file: File | None, fd: int) -> Iommufd:
    """The iommufd context of the file behind ``fd``. Raises InvalidArgument as EBADFD if it is no iommufd."""
    context = None if file is None else file.context
    if context is None:
        raise InvalidArgument(f"descriptor {fd} is no iommufd", errno=errno.EBADFD)
    return context
