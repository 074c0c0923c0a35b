"""Words and numbers of a trace that both ABIs write alike: sets of flags, strings in the program's memory.

``Read`` is how a decoder sees that memory: ``read(address, size)``, OSError where there is nothing. A decoder never
makes a call fail; what cannot be read is shown as its address, which is the caller's part.
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
    """A string in quotes, as far as a line has room for it."""
    raw = read(address, min(NAME_MAX, PAGE_SIZE - address % PAGE_SIZE))  # memory may end behind it
    if b"\0" not in raw and len(raw) < NAME_MAX:
        raw += read(address + len(raw), NAME_MAX - len(raw))
    return '"' + raw.split(b"\0")[0].decode("utf-8", "replace") + '"'
