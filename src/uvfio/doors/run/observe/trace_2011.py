"""Trace of the ioctls of the 2011 RFC: names, and arguments as strace writes them.

    VFIO_GROUP_GET_FLAGS, [VIABLE|MM_LOCKED]
    VFIO_IOMMU_MAP_DMA, {vaddr=0x7f1aaae7d000, dmaaddr=0x100000, size=0x2000, flags=WRITE}
    VFIO_DEVICE_SET_IRQ_EVENTFDS, [1, 2, 7, 8]

The twin of ``trace_mainline``, with the same three functions. Requests and structs are those of ``uvfio.uapi.rfc``. A
request has one meaning for all kinds of file there, so ``kind`` and ``file`` are not used.

Decoding reads the program's memory and changes nothing. What cannot be read is shown as its address.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

from uvfio.doors.run.observe.text import SHOWN, Read, flags_text, string_text
from uvfio.uapi import rfc

if TYPE_CHECKING:
    from uvfio.fops.file import File
    from uvfio.uapi.rfc import Ioctl
    from uvfio.uapi.structs import Struct

__all__ = ["decode", "find", "name_of"]


def find(kind: str, request: int) -> Ioctl | None:
    """The request, or None if the RFC has no such number."""
    return rfc.IOCTLS.get(request)


def name_of(kind: str, request: int) -> str:
    """The header's name, or the number and what it is made of."""
    return rfc.ioctl_name(request)


def decode(file: File, request: int, read: Read, argument: int) -> str:
    """The argument of an ioctl as text; empty if it takes none."""
    known = find(file.kind, request)
    if known is None:
        return f"{argument:#x}"
    kind = known.argument
    try:
        if isinstance(kind, type):
            return _struct_text(kind, read(argument, ctypes.sizeof(kind)))
        if kind == "none":
            return ""
        if kind == "char*":
            return string_text(read, argument)
        if kind == "u64*":
            value = rfc.U64.unpack(read(argument, 8))[0]
            return f"[{flags_text(value, rfc.FLAG_NAMES.get(known.name, {}))}]"
        if kind == "int[2]":
            return str(list(struct.unpack("<2i", read(argument, 8))))
        if kind == "int[]":
            head = struct.unpack("<2i", read(argument, 8))
            count = max(0, min(head[1], SHOWN))
            return str([*head, *struct.unpack(f"<{count}i", read(argument + 8, 4 * count))])
        return str([rfc.S32.unpack(read(argument, 4))[0]])
    except (OSError, struct.error, ValueError):
        return f"{argument:#x}"


def _struct_text(kind: type[Struct], raw: bytes) -> str:
    """``{field=value, ...}``; ``len`` of the DMA struct is left out, real programs leave it uninitialised."""
    parts = []
    names = rfc.FLAG_NAMES.get(kind.__name__, {})
    for field, value in kind.from_bytes(raw).as_dict().items():
        if field == "flags":
            parts.append(f"flags={flags_text(value, names)}")
        elif kind is rfc.vfio_dma_map and field == "len":
            continue
        else:
            parts.append(f"{field}={value:#x}" if value > 9 else f"{field}={value}")
    return "{" + ", ".join(parts) + "}"
