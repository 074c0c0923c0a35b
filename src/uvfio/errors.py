"""Errors: one base class, named conditions, and nothing about any one ABI.

The core raises a *condition* ("this range overlaps that one"). What number a program sees is decided
by the file operations of the ABI that the program speaks: the 2011 ABI answers ``EBUSY`` to an overlap,
mainline type1 answers ``EEXIST``. Each condition carries a default number so that Python callers, who
speak no ABI, get a useful ``OSError`` too.

Invariants: every message states the values that made the call fail; raising one of these means that
nothing was changed. This module imports the standard library only and is the one thing, besides
``uapi``, that every layer may import.
"""

from __future__ import annotations

import errno as _errno
from typing import ClassVar

__all__ = [
    "BadAddress",
    "BadDescriptor",
    "BrokenRing",
    "Busy",
    "Cancelled",
    "ConfigError",
    "DecodingOff",
    "DmaFault",
    "Gone",
    "InvalidArgument",
    "IovaInUse",
    "LimitExceeded",
    "ModelError",
    "ModelMistake",
    "NoData",
    "NoMemory",
    "NoSpace",
    "NoSuchDevice",
    "NoSuchGroup",
    "NoSuchObject",
    "NoVectors",
    "NotMapped",
    "NotOwner",
    "NotViable",
    "Overlap",
    "ReadOnly",
    "TooManyFiles",
    "TooManyMappings",
    "UnknownCommand",
    "UnsafeInterrupts",
    "Unsupported",
    "VfioError",
    "WrapsAround",
    "WrongToken",
]


class VfioError(OSError):
    """Base of everything that uvfio raises on purpose.

    ``errno`` is the number a program would see, ``strerror`` a sentence with the values, ``hint`` what
    to do about it (may be empty).
    """

    default_errno: ClassVar[int] = _errno.EINVAL
    hint: str

    def __init__(self, message: str, hint: str = "", *, errno: int | None = None) -> None:
        super().__init__(self.default_errno if errno is None else errno, message)
        self.hint = hint

    def __str__(self) -> str:
        return str(self.strerror)


class InvalidArgument(VfioError):
    """An argument has a value that the operation does not allow."""


class WrapsAround(InvalidArgument):
    """A range does not end before the end of a 64-bit address space. Some ABIs tell it apart."""


class NoVectors(InvalidArgument):
    """Message interrupts shall be enabled, but none of them. Some ABIs tell it apart."""


class BadAddress(VfioError):
    """A pointer of the program does not lead to (writable) memory."""

    default_errno = _errno.EFAULT


class BadDescriptor(VfioError):
    """A number that is not an open file of the program."""

    default_errno = _errno.EBADF


class UnknownCommand(VfioError):
    """The file does not know this ioctl."""

    default_errno = _errno.ENOTTY


class Unsupported(VfioError):
    """The operation is known, but this device cannot do it."""


class NotOwner(VfioError):
    """Another address space owns the iommu context."""

    default_errno = _errno.EPERM


class WrongToken(VfioError):
    """An open of a virtual function, or of its physical one, without the token that it needs."""

    default_errno = _errno.EACCES


class NotViable(VfioError):
    """A device of the set is not bound to a VFIO driver, so none of them may be used."""

    default_errno = _errno.EBUSY


class Busy(VfioError):
    """Something is in use that would have to be idle."""

    default_errno = _errno.EBUSY


class Overlap(VfioError):
    """A DMA mapping exists in the requested range."""

    default_errno = _errno.EEXIST


class IovaInUse(VfioError):
    """I/O addresses that a device cannot use, or not in this way, are mapped or set aside already."""

    default_errno = _errno.EADDRINUSE


class ReadOnly(VfioError):
    """Memory that was given to be read shall be written."""

    default_errno = _errno.EPERM


class NotMapped(VfioError):
    """There is no DMA mapping where one is needed."""

    default_errno = _errno.ENOENT


class NoSuchGroup(VfioError):
    """No group has this number or minor."""

    default_errno = _errno.ENODEV


class NoSuchObject(VfioError):
    """The file has no object with this number, or it is of another kind."""

    default_errno = _errno.ENOENT


class NoSuchDevice(VfioError):
    """No device of the set has this name."""

    default_errno = _errno.ENODEV


class Gone(VfioError):
    """The device was unplugged or its context revoked while the file was open."""

    default_errno = _errno.ENODEV


class LimitExceeded(VfioError):
    """A limit on locked memory or on the number of mappings would be exceeded."""

    default_errno = _errno.ENOMEM


class TooManyMappings(LimitExceeded):
    """The limit on the number of mappings would be exceeded. Some ABIs tell it apart."""


class NoMemory(VfioError):
    """An object could not be made (no IOMMU serves the bus, no memory)."""

    default_errno = _errno.ENOMEM


class NoData(VfioError):
    """There is nothing to read now, and there may be something later."""

    default_errno = _errno.ENOMSG


class NoSpace(VfioError):
    """No number is left, or the answer does not fit the buffer given for it."""

    default_errno = _errno.ENOSPC


class TooManyFiles(VfioError):
    """The program cannot have another open file."""

    default_errno = _errno.EMFILE


class UnsafeInterrupts(VfioError):
    """The IOMMU does not remap interrupts and the machine does not allow that."""

    default_errno = _errno.EPERM


class DecodingOff(VfioError):
    """The program accessed a region whose decoding it has switched off itself. ``inside``: bytes of the access that are
    in the region."""

    default_errno = _errno.EIO
    inside = 0


class BrokenRing(VfioError):
    """A driver put something into a ring that no device can follow. Models stop at it; no program sees it."""

    default_errno = _errno.EPROTO


class DmaFault(VfioError):
    """A device accessed an address that its domain does not translate, or not for this access."""

    default_errno = _errno.EFAULT


class Cancelled(VfioError):
    """A wait was interrupted."""

    default_errno = _errno.EINTR


class ConfigError(VfioError):
    """A machine description or an option is wrong; names the place, the key and the value."""


class ModelError(ConfigError):
    """A device model cannot be loaded or made, because its code is wrong; names file, line and method."""


class ModelMistake(RuntimeError):
    """The code of a device model failed in a running machine. No refusal: it is reported, and the call gets EIO.

    The message names device, file, line and register or method; ``hint`` says what to do; the cause is what the code
    raised.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
