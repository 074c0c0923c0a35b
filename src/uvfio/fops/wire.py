"""What all ABIs read from a program's memory and write to it: integers, strings, structs that grow, capability chains.

A mainline struct begins with its own size, ``argsz`` or ``size``. A program may give more bytes than are known here
and must give at least the smallest size of the request. type1 and device files leave the rest alone
(``read_struct``); iommufd and the ioctls that are younger require zeroes there (``read_sized``, which is
copy_struct_from_user). An answer that does not fit states the size that it needs (``Chain``).

Functions here know neither files nor errno of one ABI. Each raises BadAddress for memory that is not there.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from uvfio.errors import InvalidArgument
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from uvfio.core.seams import Memory

__all__ = [
    "OFFSET_MASK",
    "PAGE_SIZE",
    "PIECE",
    "REGION_SHIFT",
    "REGISTERS_STRIDE",
    "TAIL_MAX",
    "Chain",
    "read_int",
    "read_sized",
    "read_string",
    "read_struct",
    "read_u32",
]

PAGE_SIZE: Final = 4096
PIECE: Final = 4096  # bytes of a long argument that are read in one call
REGION_SHIFT: Final = rfc.VFIO_REGION_SHIFT  # of file offsets, in all ABIs; VFIO_PCI_OFFSET_SHIFT
REGISTERS_STRIDE: Final = 1 << 13  # bytes of registers that one piece reads or writes
TAIL_MAX: Final = 1 << 20  # bytes of a struct beyond what is known that are looked at
OFFSET_MASK: Final = (1 << REGION_SHIFT) - 1
CAP_HEADER: Final = struct.Struct("<HHI")  # id, version, offset of the next


def read_int(memory: Memory, address: int) -> int:
    """A C ``int``."""
    return int.from_bytes(memory.read(address, 4), "little", signed=True)


def read_u32(memory: Memory, address: int) -> int:
    """A ``__u32``, such as the size at the beginning of a struct."""
    return int.from_bytes(memory.read(address, 4), "little")


def read_string(memory: Memory, address: int, limit: int = PAGE_SIZE) -> str:
    """A NUL-terminated string, like strndup_user. Raises InvalidArgument if it has no NUL within ``limit`` bytes."""
    text = b""
    while len(text) < limit:
        at = address + len(text)
        piece = memory.read(at, min(PAGE_SIZE - at % PAGE_SIZE, limit - len(text)))
        end = piece.find(b"\0")
        if end >= 0:
            return (text + piece[:end]).decode("utf-8", "surrogateescape")
        text += piece
    raise InvalidArgument(f"the string at {address:#x} has no NUL within {limit} bytes")


def read_struct(memory: Memory, address: int, size: int) -> bytes:
    """The first ``size`` bytes of a struct. Raises InvalidArgument if its ``argsz`` is less."""
    raw = memory.read(address, size)
    argsz = int.from_bytes(raw[:4], "little")
    if argsz < size:
        raise InvalidArgument(f"argsz is {argsz}, at least {size} are needed")
    return raw


def read_sized(memory: Memory, address: int, size: int, full: int) -> bytes:
    """``full`` bytes of a struct of which the caller gives ``size`` bytes (copy_struct_from_user).

    Missing bytes are 0. Raises InvalidArgument as E2BIG if bytes beyond ``full`` are not 0, and for more than
    ``TAIL_MAX`` of them: the kernel reads all, on the caller's time.
    """
    raw = memory.read(address, min(size, full))
    end = min(size, full + TAIL_MAX)
    for at in range(full, end, PIECE):
        if any(memory.read(address + at, min(PIECE, end - at))):
            raise InvalidArgument(
                f"the size is {size}, and what is behind the first {full} bytes is not 0",
                errno=errno.E2BIG,
            )
    if end < size:
        raise InvalidArgument(
            f"the size is {size}, of which {full} bytes are known and {TAIL_MAX} more looked at",
            "give the size of the struct",
            errno=errno.E2BIG,
        )
    return raw.ljust(full, b"\0")


class Chain:
    """Capabilities behind a struct: each is a header (id, version, offset of the next one) and its body."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[tuple[int, bytes]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, cap_id: int, body: bytes) -> None:
        """Append capability ``cap_id``, version 1. ``body`` follows the header; it is padded to 8 bytes."""
        self._parts.append((cap_id, body + bytes(-len(body) % 8)))

    @property
    def size(self) -> int:
        """Bytes of the whole chain."""
        return sum(CAP_HEADER.size + len(body) for _, body in self._parts)

    def pack(self, start: int) -> bytes:
        """The bytes of a chain that begins ``start`` bytes into the struct."""
        packed, at = b"", start
        for number, (cap_id, body) in enumerate(self._parts, 1):
            at += CAP_HEADER.size + len(body)
            following = at if number < len(self._parts) else 0
            packed += CAP_HEADER.pack(cap_id, 1, following) + body
        return packed

    def place(self, memory: Memory, address: int, argsz: int, start: int) -> tuple[int, int]:
        """Write the chain ``start`` bytes into the struct at ``address`` if ``argsz`` has room for it.

        Returns (argsz, cap_offset) of the answer: the size that is needed, and 0, if there is no room.
        """
        if not self:
            return argsz, 0
        if argsz < start + self.size:
            return start + self.size, 0
        memory.write(address + start, self.pack(start))
        return argsz, start
