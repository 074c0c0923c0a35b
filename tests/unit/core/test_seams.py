"""``Mm``: what an address space has to pay for, and up to which limit."""

from __future__ import annotations

import pytest

from support.world import PAGE, SparseMemory
from uvfio.core.seams import Mm
from uvfio.errors import LimitExceeded


def test_pages_are_charged_and_given_back() -> None:
    mm = Mm(SparseMemory(), "program")
    mm.charge(5, None)
    mm.uncharge(3)
    assert mm.locked_pages == 2


def test_the_limit_is_in_bytes_of_whole_pages_and_counts_what_is_locked() -> None:
    mm = Mm(SparseMemory())
    mm.charge(2, 3 * PAGE - 1)
    for limit in (0, 3 * PAGE - 1):
        with pytest.raises(LimitExceeded, match="0x1000 bytes more than the 0x2000 locked") as why:
            mm.charge(1, limit)
        assert why.value.hint == "raise it with ulimit -l"
        assert mm.locked_pages == 2
    mm.charge(1, 3 * PAGE)
    assert mm.locked_pages == 3


def test_no_pages_cost_nothing_even_at_the_limit() -> None:
    mm = Mm(SparseMemory())
    mm.charge(1, PAGE)
    mm.charge(0, PAGE)
    assert mm.locked_pages == 1


def test_it_is_shown_by_its_name() -> None:
    memory = SparseMemory()
    assert repr(Mm(memory, "vm 1")) == "<Mm vm 1>"
    assert repr(Mm(memory)) != repr(Mm(memory))
