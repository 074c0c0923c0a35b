"""Addresses: ranges of them, and the checks that all mapping rules share.

A *span* is a range of addresses with inclusive bounds, so the last byte of a 64-bit space needs no 65th bit. Functions
on several spans expect them in order.

Each check raises a condition, and its message has the values that made it fail. Which checks are made, and in which
order, is a matter of the rule sets (``rules_2011.py``, ``rules_type1.py``, ``ioas.py``). No function here has state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvfio.errors import InvalidArgument, WrapsAround

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ADDRESS_MAX",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "Span",
    "check_aligned",
    "check_end",
    "check_reserved",
    "check_size",
    "check_wrap",
    "gaps",
    "join",
    "last_of",
    "touched",
]

PAGE_SIZE: Final = 4096
PAGE_SHIFT: Final = 12
ADDRESS_MAX: Final = (1 << 64) - 1

Span = tuple[int, int]
"""A range of addresses: first and last."""


# -- checks ------------------------------------------------------------------------------------------


def check_size(size: int) -> None:
    """Check that a range has bytes. Raises InvalidArgument."""
    if size <= 0:
        raise InvalidArgument(f"size is {size}")


def check_wrap(name: str, start: int, size: int) -> None:
    """Check that ``size`` bytes from ``start`` are within 64-bit addresses. Raises WrapsAround."""
    if start < 0 or start + size - 1 > ADDRESS_MAX:
        raise WrapsAround(f"{name} {start:#x}+{size:#x} wraps around 2**64")


def check_end(name: str, start: int, size: int) -> None:
    """Check that the first address behind the range is a 64-bit number as well. Raises WrapsAround.

    The kernel checks so where it adds a size to an address with check_add_overflow.
    """
    if start + size > ADDRESS_MAX:
        raise WrapsAround(f"{name} {start:#x}+{size:#x} wraps around 2**64")


def check_aligned(granule: int, kind: str, **values: int) -> None:
    """Check that all values are multiples of ``granule``, which a message calls ``kind``. Raises InvalidArgument."""
    for name, value in values.items():
        if value % granule:
            raise InvalidArgument(f"{name} {value:#x} is not a multiple of {kind}{granule:#x}")


def check_reserved(reserved: Iterable[Span], first: int, last: int) -> None:
    """Check that no address of ``[first, last]`` is reserved. Raises InvalidArgument."""
    span = touched(reserved, first, last)
    if span is not None:
        raise InvalidArgument(
            f"iova {first:#x}-{last:#x} touches the reserved range {span[0]:#x}-{span[1]:#x}"
        )


def last_of(iova: int, size: int) -> int:
    """Return the last address of a range. Raises InvalidArgument (no size), WrapsAround."""
    check_size(size)
    check_wrap("iova", iova, size)
    return iova + size - 1


# -- spans -------------------------------------------------------------------------------------------


def touched(spans: Iterable[Span], first: int, last: int) -> Span | None:
    """Return the first of ``spans`` with an address in ``[first, last]``, or None."""
    for span in spans:
        if first <= span[1] and last >= span[0]:
            return span
    return None


def gaps(spans: Iterable[Span], last: int) -> list[Span]:
    """Return what ``spans``, which are sorted, leave of ``[0, last]``, in order."""
    found, start = [], 0
    for low, high in spans:
        if start < min(low, last + 1):
            found.append((start, min(low - 1, last)))
        start = max(start, high + 1)
    if start <= last:
        found.append((start, last))
    return found


def join(spans: Iterable[Span]) -> list[Span]:
    """Return the same addresses as spans in order that neither overlap nor touch."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined
