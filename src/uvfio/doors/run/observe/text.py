"""Text of a trace that is the same for both ABIs: sets of flags, strings in the program's memory.

``Read`` reads that memory: ``read(address, size)``, OSError where nothing is mapped. A decoder never
makes a call fail: its caller shows the address of what cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["SHOWN", "Read", "flags_text", "string_text"]

Read = Callable[[int, int], bytes]

SHOWN = 16  # bytes of data, or elements of a list, in a line
PAGE_SIZE = 4096
NAME_MAX = 64


def flags_text(flags: int, names: dict[int, str]) -> str:
    """``VIABLE|MM_LOCKED``, with unknown bits as a number; "0" for none."""
    words = [name for bit, name in names.items() if flags & bit]
    rest = flags & ~sum(names)
    if rest or not words:
        words.append(hex(rest) if rest else "0")
    return "|".join(words)


def string_text(read: Read, address: int) -> str:
    """A string in quotes, its first ``NAME_MAX`` bytes."""
    raw = read(address, min(NAME_MAX, PAGE_SIZE - address % PAGE_SIZE))  # memory may end behind it
    if b"\0" not in raw and len(raw) < NAME_MAX:
        raw += read(address + len(raw), NAME_MAX - len(raw))
    return '"' + raw.split(b"\0")[0].decode("utf-8", "replace") + '"'
