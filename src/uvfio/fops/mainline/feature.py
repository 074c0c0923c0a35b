"""``FeatureCall``: one VFIO_DEVICE_FEATURE request, as the handlers of features receive it.

Behaviour: include/linux/vfio.h and drivers/vfio/vfio_main.c, vfio_check_feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.errors import InvalidArgument
from uvfio.uapi import vfio_feature as features

if TYPE_CHECKING:
    from uvfio.core.seams import Task

__all__ = ["GET", "PROBE", "SET", "FeatureCall"]

GET: Final = features.VFIO_DEVICE_FEATURE_GET
SET: Final = features.VFIO_DEVICE_FEATURE_SET
PROBE: Final = features.VFIO_DEVICE_FEATURE_PROBE


class FeatureCall:
    """``data`` is the address of the feature's data, ``given`` the number of bytes that the caller has there."""

    __slots__ = ("data", "flags", "given", "task")

    def __init__(self, task: Task, flags: int, data: int, given: int) -> None:
        self.task = task
        self.flags = flags
        self.data = data
        self.given = given

    def check(self, operations: int, minimum: int) -> bool:
        """Whether to go on; False for a probe, which is answered with 0.

        Raises InvalidArgument for an operation (GET, SET) that is not in ``operations``, for neither of them without
        PROBE, and for fewer than ``minimum`` bytes of data, in this order.
        """
        flags = self.flags
        if flags & (GET | SET) & ~operations:
            raise InvalidArgument("the feature cannot be used in this way")
        if flags & PROBE:
            return False
        if not flags & (GET | SET):
            raise InvalidArgument("neither GET nor SET is wanted")
        if self.given < minimum:
            raise InvalidArgument(f"{self.given} bytes of data, {minimum} are needed")
        return True
