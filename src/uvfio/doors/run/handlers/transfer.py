"""Copying between a file of VFIO and a program's memory, in pieces of which each is a bounded amount of work.

``File.stride`` says how many bytes that is: few for registers, whose device acts on each access, more for memory. What
fits into one piece is done at once. ``transfer`` is the general case, a generator that yields between two pieces;
``finish`` runs it up to the first yield and leaves the rest to the loop (``session/pieces.py``).

As in the kernel (drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw): what was moved before an error counts, and
accesses of other callers may come between two accesses of one call. A piece ends at a multiple of 8, so that no access
of a device is cut in two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.core.waiting import Steps
from uvfio.fops.file import Deferred
from uvfio.uapi.linux import MAX_RW_COUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from uvfio.doors.run.session.programs.process import Process
    from uvfio.fops.file import File

    Move = Callable[[Process, File, int, int, int], int]
    """Moves bytes between a file and memory: address, bytes, offset in the file."""
    Work = Generator[None, None, int]

__all__ = ["finish", "read_piece", "transfer", "write_piece"]

WIDEST: Final = 8


def read_piece(process: Process, file: File, address: int, count: int, offset: int) -> int:
    """Copy up to ``count`` bytes at ``offset`` of ``file`` into the program."""
    data = file.pread(process, count, offset)
    process.memory.write(address, data)
    return len(data)


def write_piece(process: Process, file: File, address: int, count: int, offset: int) -> int:
    """Copy up to ``count`` bytes of the program to ``offset`` of ``file``."""
    return file.pwrite(process, process.memory.read(address, count), offset)


def transfer(
    process: Process, file: File, move: Move, parts: Iterable[tuple[int, int]], offset: int
) -> Work:
    """``move`` all ``parts`` (address, bytes) of the program's memory, one behind the other from ``offset`` on.

    Yields between two pieces. Returns how many bytes were moved: fewer at the end of the file, beyond MAX_RW_COUNT,
    and before an error. Raises what the first piece raises.
    """
    done = held = 0  # bytes; since the last yield
    for address, count in parts:
        at, size = 0, min(count, MAX_RW_COUNT - done)
        while at < size:
            here = offset + done
            piece = min(size - at, file.stride(here) - held)
            if piece < size - at:
                piece = (here + piece & -WIDEST) - here
            if piece <= 0:
                yield
                held = 0
                continue
            try:
                moved = move(process, file, address + at, piece, here)
            except OSError:
                if done:
                    return done
                raise
            done, at, held = done + moved, at + moved, held + moved
            if moved < piece:
                return done
    return done


def finish(work: Work, what: str) -> int:
    """The result of ``work`` if it is done at once. Raises Deferred for what is left."""
    try:
        next(work)
    except StopIteration as end:
        return int(end.value)
    raise Deferred(Steps(work, what), 0)
