"""What drivers of all buses share: opens counted, resets that may fail, regions by number, one lock."""

from __future__ import annotations

from threading import RLock
from typing import Any, cast

import pytest

from uvfio.core.bus import Region
from uvfio.drivers.life import VfioDevice
from uvfio.drivers.window import MemoryWindow
from uvfio.errors import Gone, InvalidArgument, NoMemory, Unsupported


class Thing(VfioDevice):
    """A device that writes down what is done to it."""

    def __init__(self) -> None:
        super().__init__("thing", RLock())
        self.log: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.has_reset = True
        memory = memoryview(bytearray(8192))
        region = Region(0, 8192, mappable=True)
        self._windows = (MemoryWindow("thing", region, lambda index: memory),)
        self._interrupts = cast("Any", self)

    def do(self, what: str) -> None:
        self.log.append(what)
        if what in self.fail:
            raise self.fail[what]

    def _first_open(self) -> None:
        self.do("open")
        self._try_reset()

    def _last_close(self) -> None:
        self.do("close")

    def _has_reset(self) -> bool:
        return self.has_reset

    def _reset_hardware(self) -> None:
        self.do("reset")


def test_the_first_get_opens_and_the_last_put_closes() -> None:
    thing = Thing()
    thing.get()
    thing.get()
    assert (thing.opens, thing.log) == (2, ["open", "reset"])
    thing.put()
    assert thing.log == ["open", "reset"]
    thing.put()
    assert (thing.opens, thing.log) == (0, ["open", "reset", "close"])
    assert repr(thing) == "<Thing thing opens=0>"


def test_a_put_without_a_get_is_gone_and_changes_nothing() -> None:
    thing = Thing()
    with pytest.raises(Gone, match="thing is not open"):
        thing.put()
    assert (thing.opens, thing.log) == (0, [])


def test_an_open_that_fails_is_none() -> None:
    thing = Thing()
    thing.fail["open"] = NoMemory("no")
    with pytest.raises(NoMemory):
        thing.get()
    assert thing.opens == 0


def test_a_close_that_fails_is_one() -> None:
    thing = Thing()
    thing.get()
    thing.fail["close"] = NoMemory("no")
    with pytest.raises(NoMemory):
        thing.put()
    assert thing.opens == 0


def test_a_reset_that_fails_costs_the_reset_and_not_the_device() -> None:
    thing = Thing()
    assert thing.resettable
    thing.fail["reset"] = Unsupported("broken")
    thing.get()
    assert (thing.opens, thing.resettable) == (1, False)
    thing.put()
    thing.fail.clear()
    thing.get()
    assert thing.resettable
    thing.has_reset = False
    assert not thing.resettable


def test_an_error_that_is_no_condition_is_not_swallowed() -> None:
    thing = Thing()
    thing.fail["reset"] = RuntimeError("a defect")
    with pytest.raises(RuntimeError):
        thing.get()
    assert thing.opens == 0


def test_regions_are_found_by_number() -> None:
    thing = Thing()
    assert thing.region(0).size == 8192
    thing.mmap(0, 4096, 4096)[0] = 9
    assert thing.mmap(0, 0, 8192)[4096] == 9
    for index in (-1, 1):
        with pytest.raises(InvalidArgument, match=f"thing: region {index} does not exist"):
            thing.region(index)
        with pytest.raises(InvalidArgument):
            thing.mmap(index, 0, 4096)


def test_requests_are_remembered() -> None:
    thing = Thing()
    assert thing.requests == 0
    thing.request(3)
    assert thing.requests == 3


def test_get_and_put_hold_the_hardwares_lock() -> None:
    thing = Thing()
    held: list[bool] = []

    class Lock:
        def __enter__(self) -> None:
            held.append(True)

        def __exit__(self, *_: object) -> None:
            held.append(False)

    thing._lock = Lock()
    thing.get()
    thing.put()
    assert held == [True, False, True, False]
