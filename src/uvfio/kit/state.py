"""Sections: named pieces of bytes in one, the form of a model's state (``kit/migration.py``).

u16 length of the name, the name, u32 length of the content, the content; and so on, little-endian
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from uvfio.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["pack", "unpack"]

NAME: Final = struct.Struct("<H")
LENGTH: Final = struct.Struct("<I")


def pack(sections: Mapping[str, bytes]) -> bytes:
    """Sections as bytes."""
    packed = bytearray()
    for name, content in sections.items():
        packed += NAME.pack(len(name)) + name.encode() + LENGTH.pack(len(content)) + content
    return bytes(packed)


def unpack(packed: bytes) -> dict[str, bytes]:
    """The sections, by name. InvalidArgument if they do not fill ``packed`` exactly."""
    sections: dict[str, bytes] = {}
    at = 0
    try:
        while at < len(packed):
            (size,) = NAME.unpack_from(packed, at)
            name = packed[at + NAME.size : at + NAME.size + size].decode("ascii")
            at += NAME.size + size
            (size,) = LENGTH.unpack_from(packed, at)
            at += LENGTH.size
            if name in sections or at + size > len(packed):
                raise ValueError(f"section {name!r} at byte {at}")
            sections[name] = packed[at : at + size]
            at += size
    except (ValueError, struct.error) as wrong:
        raise InvalidArgument(f"the state of the device makes no sense: {wrong}") from wrong
    return sections
