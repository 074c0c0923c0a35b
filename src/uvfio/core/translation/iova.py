"""``IovaMap``: an ordered map of DMA mappings that never overlap.

Two levels: a list of chunks, each a sorted list of at most ``CHUNK`` mappings, and a list of the chunks'
lowest addresses. A lookup is two bisections; an insertion moves at most ``CHUNK`` entries. The bounds of a mapping
are inclusive (``first``, ``last``), so the last page of a 64-bit space needs no 65th bit. A mapping takes some 250
bytes, also the millionth.

Invariants: mappings do not overlap, chunks are not empty, order is by ``first``. Splitting, trimming and
coalescing are the domain's rules; this module only keeps order. Not synchronised: the domain locks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from uvfio.core.translation.patches import Patches, cut

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvfio.core.seams import Mm, Pages

__all__ = ["IovaMap", "Mapping"]

CHUNK = 512
UNPINNED: Final = Patches([])
"""Pages of a mapping that no page table translates: each access is BadAddress."""


class Mapping:
    """``[first, last]`` of the I/O address space leads to what ``mm`` had at ``vaddr`` when it was pinned: ``pages``.

    ``charged``: its pages count against the owner's locked memory (device memory does not). ``stale``: the
    program has announced that ``vaddr`` will be another one; accesses go on meanwhile. ``told``: how the memory at
    ``vaddr`` differs from ``pages``, if the domain found that.
    """

    __slots__ = (
        "charged",
        "first",
        "last",
        "mm",
        "pages",
        "readable",
        "stale",
        "told",
        "vaddr",
        "writable",
    )

    def __init__(
        self,
        first: int,
        last: int,
        vaddr: int,
        writable: bool,
        mm: Mm,
        charged: bool = True,
        readable: bool = True,
        pages: Pages = UNPINNED,
    ) -> None:
        self.first = first
        self.last = last
        self.vaddr = vaddr
        self.writable = writable
        self.mm = mm
        self.charged = charged
        self.readable = readable
        self.pages = pages
        self.stale = False
        self.told = ""

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self.last - self.first + 1

    def part(self, first: int, last: int) -> Mapping:
        """A new mapping of ``[first, last]``, which this one contains, to the same memory."""
        vaddr = self.vaddr + (first - self.first)
        pages = cut(self.pages, vaddr, vaddr + last - first + 1)
        return Mapping(
            first, last, vaddr, self.writable, self.mm, self.charged, self.readable, pages
        )

    def __repr__(self) -> str:
        mode = "r" * self.readable + "w" * self.writable
        return f"<Mapping {self.first:#x}+{self.size:#x} -> {self.vaddr:#x} {mode}>"


class IovaMap:
    """See the module's head. All addresses are integers in [0, 2**64)."""

    __slots__ = ("_chunks", "_count", "_mins", "_starts")

    def __init__(self) -> None:
        self._chunks: list[list[Mapping]] = []
        self._starts: list[list[int]] = []
        self._mins: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Mapping]:
        for chunk in self._chunks:
            yield from chunk

    def find(self, address: int) -> Mapping | None:
        """The mapping that contains ``address``."""
        which = bisect_right(self._mins, address) - 1
        if which < 0:
            return None
        slot = bisect_right(self._starts[which], address) - 1
        found = self._chunks[which][slot]
        return found if address <= found.last else None

    def overlapping(self, first: int, last: int) -> list[Mapping]:
        """All mappings with a byte in ``[first, last]``, in order."""
        which = max(bisect_right(self._mins, first) - 1, 0)
        if which == len(self._mins):
            return []
        chunk, starts = self._chunks[which], self._starts[which]
        slot = bisect_right(starts, first)
        if slot and chunk[slot - 1].last >= first:
            slot -= 1
        found: list[Mapping] = []
        while True:
            if starts[-1] > last:
                return found + chunk[slot : bisect_right(starts, last, slot)]
            found += chunk[slot:]
            which += 1
            if which == len(self._chunks):
                return found
            chunk, starts, slot = self._chunks[which], self._starts[which], 0

    def first_overlap(self, first: int, last: int) -> Mapping | None:
        """The lowest mapping with a byte in ``[first, last]``."""
        which = max(bisect_right(self._mins, first) - 1, 0)
        if which == len(self._mins):
            return None
        chunk = self._chunks[which]
        slot = bisect_right(self._starts[which], first)
        if slot and chunk[slot - 1].last >= first:
            return chunk[slot - 1]
        if slot == len(chunk):
            if which + 1 == len(self._chunks):
                return None
            chunk, slot = self._chunks[which + 1], 0
        found = chunk[slot]
        return found if found.first <= last else None

    def insert(self, mapping: Mapping) -> None:
        """Add a mapping that overlaps none (the caller has looked)."""
        self._count += 1
        if not self._chunks:
            self._chunks.append([mapping])
            self._starts.append([mapping.first])
            self._mins.append(mapping.first)
            return
        which = max(bisect_right(self._mins, mapping.first) - 1, 0)
        chunk, starts = self._chunks[which], self._starts[which]
        slot = bisect_right(starts, mapping.first)
        chunk.insert(slot, mapping)
        starts.insert(slot, mapping.first)
        if slot == 0:
            self._mins[which] = mapping.first
        if len(chunk) > CHUNK:
            half = len(chunk) // 2
            self._chunks.insert(which + 1, chunk[half:])
            self._starts.insert(which + 1, starts[half:])
            self._mins.insert(which + 1, starts[half])
            del chunk[half:], starts[half:]

    def remove(self, mapping: Mapping) -> None:
        """Take out a mapping that is in the map; KeyError if it is not."""
        which = bisect_right(self._mins, mapping.first) - 1
        slot = bisect_right(self._starts[which], mapping.first) - 1 if which >= 0 else -1
        if slot < 0 or self._chunks[which][slot] is not mapping:
            raise KeyError(mapping)
        self._count -= 1
        chunk, starts = self._chunks[which], self._starts[which]
        del chunk[slot], starts[slot]
        if not chunk:
            del self._chunks[which], self._starts[which], self._mins[which]
        elif slot == 0:
            self._mins[which] = starts[0]

    def remove_all(self, mappings: list[Mapping]) -> None:
        """Take out mappings in the order of their addresses; KeyError, and none goes, if one is not in the map."""
        kept: dict[int, list[Mapping]] = {}  # what is left of each chunk
        done, before = 0, -1
        while done < len(mappings):
            which = bisect_right(self._mins, mappings[done].first) - 1
            if which <= before:
                raise KeyError(mappings[done])
            end = len(mappings)
            if which + 1 < len(self._mins):
                end = bisect_left(mappings, self._mins[which + 1], done, key=lambda m: m.first)
            mine, chunk = mappings[done:end], self._chunks[which]
            slot = bisect_right(self._starts[which], mine[0].first) - 1
            if chunk[slot : slot + len(mine)] == mine:
                kept[which] = chunk[:slot] + chunk[slot + len(mine) :]
            else:
                gone = {id(mapping) for mapping in mine}
                kept[which] = [mapping for mapping in chunk if id(mapping) not in gone]
                if len(kept[which]) + len(mine) != len(chunk):
                    raise KeyError(mine)
            done, before = end, which
        self._count -= len(mappings)
        for which, chunk in kept.items():
            self._chunks[which] = chunk
            self._starts[which] = [mapping.first for mapping in chunk]
            if chunk:
                self._mins[which] = chunk[0].first
        if not all(kept.values()):
            left = [which for which, chunk in enumerate(self._chunks) if chunk]
            self._chunks = [self._chunks[which] for which in left]
            self._starts = [self._starts[which] for which in left]
            self._mins = [self._mins[which] for which in left]

    def clear(self) -> None:
        """Take out everything."""
        self._chunks.clear()
        self._starts.clear()
        self._mins.clear()
        self._count = 0
