"""A program that does the same many times, and what the supervisor holds before and after.

The program prints ``at rest``, reads a number from its input, does as many rounds, and begins again. While it rests no
call is in flight, so what the supervisor holds can be compared exactly. Its size is bounded: it may grow by ``GROWTH``
from the end of the first piece to the end of the last.

The numbers of each storm are printed: pytest shows them with -rP.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from support.uvfio_cli import Uvfio

__all__ = ["GROWTH", "storm"]

GROWTH: Final = 4 << 10  # KiB
PATIENCE: Final = 500.0  # seconds for one piece


def storm(uvfio: Uvfio, rounds: int, *, pieces: int = 5, warm: int = 0) -> None:
    """``rounds`` rounds in ``pieces``, after ``warm`` rounds (default: a tenth of a piece) that fill caches."""
    count = rounds // pieces
    uvfio.expect("at rest\n")
    _run(uvfio, warm or max(count // 10, 1))
    before = uvfio.resources()
    sizes, begun = [uvfio.resident()], time.monotonic()
    for _ in range(pieces):
        _run(uvfio, count)
        held = uvfio.resources()
        assert held == before, f"more: {held - before}, less: {before - held}"
        sizes.append(uvfio.resident())
    seconds = time.monotonic() - begun
    print(f"{count * pieces} rounds in {seconds:.0f} s, RSS {sizes} KiB")
    assert sizes[-1] - sizes[1] < GROWTH, sizes


def _run(uvfio: Uvfio, rounds: int) -> None:
    uvfio.send(f"{rounds}\n")
    uvfio.expect("at rest\n", timeout=PATIENCE)
