"""``Patches``: the memory of one mapping that is made of several pieces, each reached in its own way.

A mapping has several pieces if the range that a program named leads to several files, if neighbours were joined by the
rules of 2011, or if areas of one backing were held at different times. ``join`` makes ``Pages`` of pieces, and no
``Patches`` where one piece is enough. Pieces are (address, address behind it, pages), by the program's address.

Pieces never change. They do not overlap; an access to an address between two of them is BadAddress.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from uvfio.errors import BadAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from uvfio.core.seams import Pages

__all__ = ["Patch", "Patches", "cut", "join"]

Patch = tuple[int, int, "Pages"]


class Patches:
    """Implements ``Pages`` over at least two pieces in ascending order."""

    __slots__ = ("_starts", "parts")

    def __init__(self, parts: list[Patch]) -> None:
        self.parts = parts
        self._starts = [start for start, _, _ in parts]

    def around(self, address: int) -> Patch:
        """The piece that has ``address``. Raises BadAddress."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or self.parts[at][1] <= address:
            raise BadAddress(f"nothing is held at {address:#x}")
        return self.parts[at]

    def _pieces(self, address: int, size: int) -> Iterator[tuple[Pages, int, int]]:
        end = address + size
        while address < end:
            _, stop, pages = self.around(address)
            n = min(stop, end) - address
            yield pages, address, n
            address += n

    def read(self, address: int, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        return b"".join(pages.read(at, n) for pages, at, n in self._pieces(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data``; if a piece fails those before it have been written."""
        done = 0
        for pages, at, n in self._pieces(address, len(data)):
            pages.write(at, data[done : done + n])
            done += n

    def store(self, address: int, value: int, width: int) -> None:
        """Store ``width`` bytes atomically: an aligned word is in one piece."""
        self.around(address)[2].store(address, value, width)

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview | None:
        """A window, if one piece has all of the range and gives one."""
        _, stop, pages = self.around(address)
        if address + size > stop:
            return None
        return pages.view(address, size, writable=writable, cut=cut)

    def exchanged(self, address: int, size: int) -> str:
        """What differs in the first piece that differs."""
        found = (pages.exchanged(at, n) for pages, at, n in self._pieces(address, size))
        return next(filter(None, found), "")


def join(pieces: Iterable[Patch]) -> Pages:
    """``Pages`` for all of ``pieces``, which do not overlap; at least one."""
    parts: list[Patch] = []
    for start, end, pages in sorted(_flat(pieces), key=lambda piece: piece[0]):
        if parts and parts[-1][1] == start and parts[-1][2] is pages:
            parts[-1] = (parts[-1][0], end, pages)
        else:
            parts.append((start, end, pages))
    return parts[0][2] if len(parts) == 1 else Patches(parts)


def cut(pages: Pages, start: int, end: int) -> Pages:
    """What of ``pages`` is needed for the range."""
    if not isinstance(pages, Patches):
        return pages
    return join(_clipped(pages, start, end))


def _flat(pieces: Iterable[Patch]) -> Iterator[Patch]:
    for start, end, pages in pieces:
        if isinstance(pages, Patches):
            yield from _clipped(pages, start, end)
        else:
            yield start, end, pages


def _clipped(pages: Patches, start: int, end: int) -> Iterator[Patch]:
    for low, high, part in pages.parts:
        if low < end and start < high:
            yield max(low, start), min(high, end), part
