"""The memory that a DMA mapping was given, in another process: held where it is shared, followed where it is private.

Linux pins the pages of a DMA mapping: devices go on with them whatever the program maps at the address later. From
outside of the program, without privilege, this is possible for shared memory only:

    shared      ``Held``: the file is mapped here, as the program had it when it called MAP_DMA. Reads, writes, stores
                and views reach that file, also after munmap, mmap, mremap, exec and the end of the program
    private     ``Followed``: what the address leads to now. Memory that is exchanged is recognised afterwards, if
                the program has nothing there, or a file (``exchanged``). Anonymous memory in place of anonymous memory
                is not recognised
    shared, but no descriptor leads to the file (shared anonymous memory, a closed memfd) and /proc/PID/map_files is
                not allowed: as private; it is recognised by its inode, though

Files can be cut by the program at any time. Reads and writes here go through /proc/self/mem, where a page that is not
there is an error (BadAddress). Views and stores are plain loads and stores: a page that is lost is covered with zeroes
(``sigbus.py``), and stays detached from the file: it is BadAddress from then on.

Several files that are next to each other in the program are next to each other here, so that one view shows them all.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final, Protocol

from uvfio.doors.run.linux import sigbus
from uvfio.doors.run.linux import syscalls as sc
from uvfio.errors import BadAddress
from uvfio.uapi.linux import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvfio.doors.run.linux.area import Area, Identity

__all__ = ["Cut", "Followed", "Held", "Space", "as_words", "page_size"]

MAP_NORESERVE: Final = 0x4000
HUGE_MOST: Final = 1 << 30


class Space(Protocol):
    """The program's address space (``memory.ProgramMemory``)."""

    @property
    def here(self) -> int:
        """A descriptor of /proc/self/mem, as long as this object lives."""

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes of the address space as it is now."""

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data`` into it."""

    def difference(self, address: int, size: int, expected: Callable[[int], Identity]) -> str:
        """How the range differs from what is ``expected(address)``."""


class Followed:
    """The address space itself, for memory that cannot be held. ``identity`` is what was mapped there."""

    __slots__ = ("__weakref__", "identity", "space")

    def __init__(self, space: Space, area: Area) -> None:
        self.space = space
        self.identity = area.identity

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes, whatever rights the pages have. Raises BadAddress."""
        return self.space.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data``, whatever rights the pages have. Raises BadAddress."""
        self.space.write(address, data)

    def store(self, address: int, value: int, width: int) -> None:
        """One store by the kernel's copy, which moves aligned words whole. Raises BadAddress."""
        self.space.write(address, value.to_bytes(width, "little"))

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview | None:
        """None."""
        return None

    def exchanged(self, address: int, size: int) -> str:
        """See ``Pages``."""
        return self.space.difference(address, size, lambda _: self.identity)


class Cut:
    """The pages of one ``Held`` that were lost, and who is told. It does not keep the mapping alive.

    ``pieces`` are (address here, address behind it, page size); ``shift`` is address here minus address there.
    """

    __slots__ = ("lost", "pieces", "shift", "users")

    def __init__(self, shift: int, pieces: Sequence[tuple[int, int, int]]) -> None:
        self.shift = shift
        self.pieces = pieces
        self.lost: list[tuple[int, int]] = []
        self.users: dict[str, Callable[[int], None]] = {}

    def mend(self, here: int) -> bool:
        """Cover the page at ``here``, and all behind it of the same file if the last one is lost, too."""
        for start, end, unit in self.pieces:
            if start <= here < end:
                low = start + (here - start) // unit * unit
                high = low + unit if sigbus.present(end - 1) else end
                sigbus.cover(low, high - low)
                self.lost.append((low, high))
                for told in list(self.users.values()):
                    told(here - self.shift)
                return True
        return False

    def check(self, address: int, size: int) -> None:
        """Raises BadAddress if a lost page is in the range."""
        here = address + self.shift
        for low, high in self.lost:
            if low < here + size and here < high:
                raise BadAddress(
                    f"{address:#x}+{size:#x} is behind the end of its file, which was cut"
                )


class Held:
    """Files of the program that are mapped here, for areas that follow each other in its address space.

    ``areas`` are whole areas, and ``files`` a descriptor for each, which the caller closes. ``unit`` is the largest
    page size of the files. OSError: they cannot be mapped.
    """

    __slots__ = ("__weakref__", "_cut", "_fd", "_pieces", "_shift", "_view", "space", "writable")

    def __init__(
        self, space: Space, areas: Sequence[Area], files: Sequence[int], unit: int
    ) -> None:
        self.space = space
        self.writable = all(area.writable for area in areas)
        self._fd = space.here
        first, size = areas[0].start, areas[-1].end - areas[0].start
        room = mmap.mmap(-1, size + unit, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
        at = ctypes.addressof(ctypes.c_char.from_buffer(room))
        here = at + (first - at) % unit
        shift = self._shift = here - first
        for area, fd in zip(areas, files, strict=True):
            sc.mmap(
                area.start + shift,
                area.end - area.start,
                MAP_SHARED | MAP_FIXED,
                fd,
                area.offset,
                writable=self.writable,
            )
        pieces = [(area.start + shift, area.end + shift, unit) for area in areas]
        self._cut = Cut(shift, pieces)
        sigbus.protect(room, here, size, self._cut.mend)
        self._view = memoryview(room)[here - at : here - at + size]
        self._pieces = [(area.start, area.end, area.identity) for area in areas]

    def has(self, area: Area, start: int, end: int) -> bool:
        """Whether it holds what ``area`` has in the range, with the rights of ``area``."""
        if area.writable and not self.writable:
            return False
        return any(
            low <= start and end <= high and identity == area.identity
            for low, high, identity in self._pieces
        )

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes. Raises BadAddress behind the end of the file."""
        if self._cut.lost:
            self._cut.check(address, size)
        data = sc.read_memory(self._fd, address + self._shift, size)
        if data is None:
            raise BadAddress(f"cannot read {size} bytes at {address:#x}: its file was cut")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Copy ``data``; the file does not grow. Raises BadAddress behind its end."""
        if self._cut.lost:
            self._cut.check(address, len(data))
        if not sc.write_memory(self._fd, address + self._shift, data):
            raise BadAddress(f"cannot write {len(data)} bytes at {address:#x}: its file was cut")

    def store(self, address: int, value: int, width: int) -> None:
        """One store of the processor. Raises BadAddress behind the end of the file."""
        cut = self._cut
        at = address - self._pieces[0][0]
        if not self.writable:
            raise BadAddress(f"{address:#x} is read-only")
        as_words(self._view[at : at + width], width)[0] = value
        if cut.lost:
            cut.check(address, width)

    def view(
        self,
        address: int,
        size: int,
        *,
        writable: bool = True,
        cut: tuple[str, Callable[[int], None]] | None = None,
    ) -> memoryview | None:
        """A window; None for a writable one on memory that the program mapped read-only."""
        if writable and not self.writable:
            return None
        start, end = address + self._shift, address + self._shift + size
        for low, high, _ in self._cut.pieces:  # a file is cut from behind
            last = min(end, high) - 1
            if max(start, low) <= last and not sigbus.present(last):
                raise BadAddress(
                    f"{address:#x}+{size:#x} is behind the end of its file, which was cut"
                )
        self._cut.check(address, size)
        if cut is not None:
            self._cut.users[cut[0]] = cut[1]
        at = address - self._pieces[0][0]
        found = self._view[at : at + size]
        return found if writable else found.toreadonly()

    def exchanged(self, address: int, size: int) -> str:
        """See ``Pages``."""

        def expected(at: int) -> Identity:
            return next(found for low, high, found in self._pieces if low <= at < high)

        return self.space.difference(address, size, expected)


def page_size(fd: int) -> int:
    """The size of the pages of a file: that of huge pages on hugetlbfs."""
    size = os.fstatvfs(fd).f_bsize
    return size if mmap.PAGESIZE <= size <= HUGE_MOST and not size & (size - 1) else mmap.PAGESIZE


def as_words(window: memoryview, width: int) -> memoryview:
    """``window`` as machine words: assigning to one is a single store."""
    if width == 2:
        return window.cast("H")
    return window.cast("I") if width == 4 else window.cast("Q")
