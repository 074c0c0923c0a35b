"""The log of DMA writes by one device: which pages it has written since the last report.

``DmaLogger`` is the device's switch: at most one ``DmaLog`` at a time, begun by ``start`` and gone after ``stop``.
``DmaLog`` has ranges of I/O virtual addresses and a set of pages in them that were written. The machine makes every
DMA write itself, so the log is exact: a page is in it if and only if the device wrote a byte of it. A write that
was refused is not in it. One that ended because the program's memory vanished on the way is, as a whole.

``report`` hands out the dirty pages of a range and forgets them; it forgets after they have arrived.

Limits and errors are those of drivers/vfio/vfio_main.c (vfio_ioctl_device_feature_logging_start and _report); what the
kernel leaves to drivers follows drivers/vfio/pci/mlx5/cmd.c (mlx5vf_start_page_tracker): a log that runs already
and a report without one are InvalidArgument, stopping twice is fine. Page sizes are any power of two from 4096;
a log has pages of up to ``COARSEST``, and a report chooses its own. The log goes on over a reset and
ends with the last close.

It does not know bitmaps, memory or files.
"""

from __future__ import annotations

from bisect import bisect_right
from errno import E2BIG
from typing import TYPE_CHECKING, Final

from uvfio.core.translation.address import PAGE_SIZE, check_end
from uvfio.errors import InvalidArgument, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["COARSEST", "RANGES_MAX", "DmaLog", "DmaLogger"]

RANGES_MAX: Final = 256
"""Ranges of one log: what fits into a page of 4096 bytes."""

COARSEST: Final = 2 << 20
"""Bytes of the largest page that is logged. One byte written makes so much of a report, whatever its pages are."""

Range = tuple[int, int]
"""(iova, length), in bytes."""


class DmaLog:
    """Pages of ``page_size`` bytes in ``ranges``, which are sorted and apart from each other."""

    __slots__ = ("_dirty", "_firsts", "_lasts", "_shift", "page_size")

    def __init__(self, page_size: int, ranges: Sequence[Range]) -> None:
        self.page_size = page_size
        self._shift = page_size.bit_length() - 1
        self._firsts = [iova for iova, _ in ranges]
        self._lasts = [iova + length - 1 for iova, length in ranges]
        self._dirty: set[int] = set()

    def __len__(self) -> int:
        return len(self._dirty)

    def mark(self, iova: int, size: int) -> None:
        """Record that the device has written ``size`` bytes at ``iova``."""
        last = iova + size - 1
        at = max(bisect_right(self._firsts, iova) - 1, 0)
        while at < len(self._firsts) and self._firsts[at] <= last:
            low, high = max(iova, self._firsts[at]), min(last, self._lasts[at])
            if low <= high:
                self._dirty.update(range(low >> self._shift, (high >> self._shift) + 1))
            at += 1

    def written(self, iova: int, length: int) -> list[int]:
        """Return the dirty pages that the range touches, by number, in order."""
        if not length:
            return []
        first, last = iova >> self._shift, (iova + length - 1) >> self._shift
        if last - first < len(self._dirty):
            return [page for page in range(first, last + 1) if page in self._dirty]
        return sorted(page for page in self._dirty if first <= page <= last)

    def forget(self, pages: Iterable[int], iova: int, length: int) -> None:
        """Mark those of ``pages`` clean that are wholly in the range."""
        for page in pages:
            start = page << self._shift
            if iova <= start and start + self.page_size <= iova + length:
                self._dirty.discard(page)


class DmaLogger:
    """One device's switch. ``connect`` gives the device its log, or None."""

    def __init__(self, connect: Callable[[DmaLog | None], None]) -> None:
        self._connect = connect
        self.log: DmaLog | None = None

    @staticmethod
    def check_count(count: int) -> None:
        """Check the number of ranges, 1 to ``RANGES_MAX``. Raises InvalidArgument, LimitExceeded (E2BIG)."""
        if not count:
            raise InvalidArgument("no range is to be logged")
        if count > RANGES_MAX:
            raise LimitExceeded(f"{count} ranges, {RANGES_MAX} are the most", errno=E2BIG)

    def start(self, page_size: int, ranges: Iterable[Range]) -> int:
        """Log writes in ``ranges`` from now on, nothing dirty; returns the page size of the log, up to ``COARSEST``.

        Order of the checks: the page size; the ranges one by one (aligned, not wrapping around: WrapsAround, empty,
        apart from those before); that no log runs.
        """
        check_page_size(page_size)
        taken: list[Range] = []
        for iova, length in ranges:
            if iova % page_size or length % page_size or not length:
                raise InvalidArgument(
                    f"range {iova:#x}+{length:#x} is not made of pages of {page_size:#x}"
                )
            check_end("iova", iova, length)
            for other, size in taken:
                if iova < other + size and other < iova + length:
                    raise InvalidArgument(
                        f"range {iova:#x}+{length:#x} overlaps {other:#x}+{size:#x}"
                    )
            taken.append((iova, length))
        if self.log is not None:
            raise InvalidArgument("DMA is being logged already", "stop that first")
        self.log = DmaLog(min(page_size, COARSEST), sorted(taken))
        self._connect(self.log)
        return self.log.page_size

    def stop(self) -> None:
        """Log no more; nothing if nothing was logged."""
        if self.log is not None:
            self.log = None
            self._connect(None)

    def report(
        self, iova: int, length: int, page_size: int, deliver: Callable[[list[int]], None]
    ) -> None:
        """Give ``deliver`` the numbers of the dirty pages, counted in ``page_size`` from ``iova``, then forget them.

        InvalidArgument for a page size that cannot be, a range of no length, and while nothing is logged;
        WrapsAround. What ``deliver`` raises passes through, and nothing is forgotten.
        """
        check_page_size(page_size)
        check_end("iova", iova, length)
        if not length:
            raise InvalidArgument("the range has no length")
        log = self.log
        if log is None:
            raise InvalidArgument("DMA is not being logged", "start that first")
        pages = log.written(iova, length)
        last = iova + length - 1
        found: dict[int, None] = {}
        for page in pages:
            start = page * log.page_size
            low, high = max(start, iova), min(start + log.page_size - 1, last)
            found.update(
                dict.fromkeys(range((low - iova) // page_size, (high - iova) // page_size + 1))
            )
        deliver(list(found))
        log.forget(pages, iova, length)


def check_page_size(page_size: int) -> None:
    """Check that a page size is a power of two, 4096 or more. Raises InvalidArgument."""
    if page_size < PAGE_SIZE or page_size & (page_size - 1):
        raise InvalidArgument(f"page size {page_size:#x} is no power of two from {PAGE_SIZE:#x} on")
