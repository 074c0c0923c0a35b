"""What all files of today's ABIs share: a table of commands, errno, structs that grow, capability chains.

A struct begins with its own size, ``argsz``. A program may give more than we know (the rest is left alone) and
must give at least what a command calls its smallest size (``read_struct``: InvalidArgument). An answer that does
not fit says how large the struct has to be (``Chain``).

Conditions carry the errno that these ABIs give them: a group that is not viable is EPERM, a range that wraps is
EOVERFLOW, too many mappings ENOSPC. An unknown command is ENOTTY.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from uvfio.errors import (
    InvalidArgument,
    NotViable,
    NoVectors,
    TooManyMappings,
    UnknownCommand,
    VfioError,
    WrapsAround,
)
from uvfio.fops.file import File
from uvfio.uapi import vfio

if TYPE_CHECKING:
    from uvfio.core.seams import Memory, Task

__all__ = ["Chain", "ModernFile", "read_sized", "read_struct"]

ERRNO: Final[dict[type[VfioError], int]] = {
    NotViable: errno.EPERM,
    NoVectors: errno.ERANGE,
    TooManyMappings: errno.ENOSPC,
    WrapsAround: errno.EOVERFLOW,
}
PIECE: Final = 4096  # bytes looked at in one go
CAP_HEADER: Final = struct.Struct("<HHI")  # id, version, offset of the next


class ModernFile(File):
    """A file whose ioctls are a table. ``kind`` is its name in ``uvfio.uapi.vfio.IOCTLS``."""

    __slots__ = ()

    COMMANDS: ClassVar[dict[int, Callable[..., int]]]

    def ioctl(self, task: Task, cmd: int, arg: int) -> int:
        try:
            return self.dispatch(task, cmd, arg)
        except VfioError as error:
            error.errno = ERRNO.get(type(error), error.errno)
            raise

    def abi_of(self, cmd: int) -> str:
        return "mainline"

    def dispatch(self, task: Task, cmd: int, arg: int) -> int:
        """Look the command up and call it."""
        handler = self.COMMANDS.get(cmd)
        if handler is None:
            raise UnknownCommand(f"{self.name} does not know {vfio.ioctl_name(self.kind, cmd)}")
        return handler(self, task, arg)


def read_struct(memory: Memory, address: int, size: int) -> bytes:
    """The first ``size`` bytes of a struct. BadAddress, InvalidArgument if its ``argsz`` is less."""
    raw = memory.read(address, size)
    argsz = int.from_bytes(raw[:4], "little")
    if argsz < size:
        raise InvalidArgument(f"argsz is {argsz}, at least {size} are needed")
    return raw


def read_sized(memory: Memory, address: int, size: int, full: int) -> bytes:
    """``full`` bytes of a struct that its caller knows with ``size`` bytes (copy_struct_from_user).

    What is missing is 0, and what is too much has to be 0. BadAddress, InvalidArgument as E2BIG.
    """
    raw = memory.read(address, min(size, full))
    for at in range(full, size, PIECE):
        if any(memory.read(address + at, min(PIECE, size - at))):
            raise InvalidArgument(
                f"the size is {size}, and what is behind the first {full} bytes is not 0",
                errno=errno.E2BIG,
            )
    return raw.ljust(full, b"\0")


class Chain:
    """Capabilities behind a struct: ``id, version, offset of the next`` and what each of them is made of."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, cap_id: int, body: bytes) -> None:
        """Append capability ``cap_id``, version 1; ``body`` is what follows its header."""
        self._parts.append((cap_id, body + bytes(-len(body) % 8)))

    @property
    def size(self) -> int:
        """Bytes of the whole chain."""
        return sum(CAP_HEADER.size + len(body) for _, body in self._parts)

    def pack(self, start: int) -> bytes:
        """The chain as it is at ``start`` bytes into the struct."""
        packed, at = b"", start
        for number, (cap_id, body) in enumerate(self._parts, 1):
            at += CAP_HEADER.size + len(body)
            following = at if number < len(self._parts) else 0
            packed += CAP_HEADER.pack(cap_id, 1, following) + body
        return packed

    def place(self, memory: Memory, address: int, argsz: int, start: int) -> tuple[int, int]:
        """Write the chain ``start`` bytes into the struct at ``address`` if ``argsz`` has room for it.

        Returns (argsz, cap_offset) for the answer: the size that is needed and 0 if there is no room.
        """
        if not self:
            return argsz, 0
        if argsz < start + self.size:
            return start + self.size, 0
        memory.write(address + start, self.pack(start))
        return argsz, start
