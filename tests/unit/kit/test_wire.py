"""Wires: two ends, carrier, and whose machine they belong to."""

from __future__ import annotations

import gc

import pytest

from support.model_world import FakeClock
from uvfio.errors import ConfigError
from uvfio.kit import wire


class Port:
    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: list[bytes] = []
        self.changes = 0

    def arrived(self, frames: list[bytes]) -> None:
        self.frames += frames

    def carrier_changed(self) -> None:
        self.changes += 1


def test_two_ends() -> None:
    clock, a, b = FakeClock(), Port("a"), Port("b")
    line = wire.join(clock, "w", a)
    assert not line.carrier
    assert not line.send(a, [b"lost"])
    assert wire.join(clock, "w", b) is line
    assert line.carrier
    assert (a.changes, b.changes) == (1, 0)
    assert line.send(a, [b"1", b"2"])
    assert line.send(b, [b"3"])
    assert (a.frames, b.frames) == ([b"3"], [b"1", b"2"])


def test_no_third_end() -> None:
    clock = FakeClock()
    for name in "ab":
        wire.join(clock, "w", Port(name))
    with pytest.raises(ConfigError, match="c: wire 'w' is taken at both ends: a and b"):
        wire.join(clock, "w", Port("c"))


def test_leaving_makes_room() -> None:
    clock, a, b, c = FakeClock(), Port("a"), Port("b"), Port("c")
    line = wire.join(clock, "w", a)
    wire.join(clock, "w", b)
    line.leave(a)
    line.leave(a)
    assert not line.carrier
    assert b.changes == 1
    assert wire.join(clock, "w", c) is line
    line.leave(b)
    line.leave(c)
    assert wire.join(clock, "w", a) is not line


def test_names_and_machines_are_apart() -> None:
    one, two, a, b, c = FakeClock(), FakeClock(), Port("a"), Port("b"), Port("c")
    lines = {
        id(wire.join(clock, name, end))
        for clock, name, end in ((one, "v", a), (one, "w", b), (two, "w", c))
    }
    assert len(lines) == 3
    assert (a.changes, b.changes, c.changes) == (0, 0, 0)


def test_a_machine_that_is_gone_is_forgotten() -> None:
    gc.collect()
    before = len(wire._wires)
    clock = FakeClock()
    wire.join(clock, "w", Port("a"))
    assert len(wire._wires) == before + 1
    del clock
    gc.collect()
    assert len(wire._wires) == before
