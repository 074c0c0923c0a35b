"""Region memory in bytearrays."""

from __future__ import annotations

import pytest

from uvfio.errors import Busy
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
