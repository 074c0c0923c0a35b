"""Region memory in bytearrays."""

from __future__ import annotations

import pytest

from uvfio.errors import Busy, NoMemory
from uvfio.machine.store import ByteStore


def test_store_gives_zeroed_memory_once() -> None:
    store = ByteStore()
    views = store.allocate("a", {0: 4096, 2: 16})
    assert {index: bytes(view) for index, view in views.items()} == {0: bytes(4096), 2: bytes(16)}
    views[0][1] = 7
    with pytest.raises(Busy, match="a has memory already"):
        store.allocate("a", {0: 1})
    store.release("a")
    store.release("a")
    assert store.devices == ()
    assert views[0][1] == 7, "who still looks at it keeps it"
    assert store.allocate("a", {0: 2})[0][1] == 0


def test_large_memory_takes_no_pages_before_it_is_written_to() -> None:
    store = ByteStore()
    memory = store.allocate("a", {0: 1 << 40, 2: 4096})
    assert [len(memory[index]) for index in (0, 2)] == [1 << 40, 4096]
    memory[0][-4:] = b"last"
    assert bytes(memory[0][-8:]) == bytes(4) + b"last"


def test_memory_that_cannot_be_had_is_a_condition() -> None:
    store = ByteStore()
    with pytest.raises(NoMemory, match="a: no 0x"):
        store.allocate("a", {0: 1 << 50})
    assert store.devices == ()
