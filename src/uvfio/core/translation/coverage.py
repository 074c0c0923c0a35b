"""``Coverage``: a multiset of spans, and how many numbers they cover together.

A program decides how many spans there are and how they overlap, so a change may not cost more the more there are:
``add`` and ``remove`` take a number of steps that is logarithmic in the numbers (``BITS``) and does not depend on the
other spans. The first span, and each that is there already, cost a lookup in a dictionary.

It is a segment tree whose nodes exist while they are not empty. Node 1 is all numbers, nodes 2n and 2n + 1 are the
halves of n. ``_counts`` says how often a node is covered as a whole, by spans that do not cover its parent;
``_covered`` how many of its numbers are covered by it and what is below it.

It does not know what the numbers count.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BITS", "Coverage"]

BITS: Final = 52
"""Numbers are below 2**BITS: the pages of 64-bit addresses."""


class Coverage:
    """See the module's head. ``steps`` counts the nodes that changes have visited."""

    __slots__ = ("_counts", "_covered", "_spans", "steps", "total")

    def __init__(self) -> None:
        self.total = 0
        self.steps = 0
        self._spans: dict[tuple[int, int], int] = {}
        self._counts: dict[int, int] = {}
        self._covered: dict[int, int] = {}

    def add(self, first: int, last: int) -> int:
        """Add the span from ``first`` to ``last``; returns how many of its numbers were not covered before."""
        span, before = (first, last), self.total
        known = self._spans.get(span, 0)
        self._spans[span] = known + 1
        if not known:
            if len(self._spans) == 1:
                self.total = last - first + 1
            else:
                if not self._covered:  # the first span has no tree yet
                    self._change(next(iter(self._spans)), 1)
                self._change(span, 1)
        return self.total - before

    def remove(self, first: int, last: int) -> int:
        """Remove a span that was added; returns how many of its numbers are not covered any more. KeyError."""
        span, before = (first, last), self.total
        left = self._spans[span] - 1
        if left:
            self._spans[span] = left
            return 0
        del self._spans[span]
        if self._covered:
            self._change(span, -1)
        else:
            self.total = 0
        return before - self.total

    def gaps(self, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of the span from ``first`` to ``last`` that nothing covers, in ascending order."""
        found: list[tuple[int, int]] = []
        if self._covered:
            self._gaps(1, 0, (1 << BITS) - 1, first, last, found)
            return found
        for low, high in self._spans:  # one at most
            if first < low:
                found.append((first, min(last, low - 1)))
            if high < last:
                found.append((max(first, high + 1), last))
            return found
        return [(first, last)]

    def _gaps(
        self, node: int, low: int, high: int, first: int, last: int, found: list[tuple[int, int]]
    ) -> None:
        first, last = max(first, low), min(last, high)
        if first > last or node in self._counts:
            return
        if node not in self._covered:
            if found and found[-1][1] + 1 == first:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
            return
        middle = (low + high) // 2
        self._gaps(2 * node, low, middle, first, last, found)
        self._gaps(2 * node + 1, middle + 1, high, first, last, found)

    def _change(self, span: tuple[int, int], by: int) -> None:
        low, high = (1 << BITS) + span[0], (1 << BITS) + span[1] + 1
        first, last = low >> 1, high - 1 >> 1
        while low < high:
            if low & 1:
                self._count(low, by)
                low += 1
            if high & 1:
                high -= 1
                self._count(high, by)
            low, high = low >> 1, high >> 1
        while first:
            self._settle(first)
            if last != first:
                self._settle(last)
            first, last = first >> 1, last >> 1
        self.total = self._covered.get(1, 0)

    def _count(self, node: int, by: int) -> None:
        count = self._counts.get(node, 0) + by
        if count:
            self._counts[node] = count
        else:
            del self._counts[node]
        self._settle(node)

    def _settle(self, node: int) -> None:
        self.steps += 1
        if node in self._counts:
            self._covered[node] = 1 << BITS + 1 - node.bit_length()
            return
        covered = self._covered.get(2 * node, 0) + self._covered.get(2 * node + 1, 0)
        if covered:
            self._covered[node] = covered
        else:
            self._covered.pop(node, None)
