"""The timer block, by its data sheet."""

from __future__ import annotations

import pytest

from support.platform_world import World, power_on
from uvfio.errors import ConfigError
from uvfio.models.timer import ENTRY_SIZE, LOG_HEAD, Timer

ID, LOAD, VALUE, CONTROL, STATUS, PERIOD, EVENTS, ADDRESS = 0, 4, 8, 0xC, 0x10, 0x14, 0x18, 0x20
RUN, PERIOD_IRQ, OVERFLOW_IRQ, TO_MEMORY, ONE_SHOT = 1, 2, 4, 8, 16
ELAPSED, OVERFLOW, FAULT = 1, 2, 4
IRQ, EDGE = 0, 1


@pytest.fixture
def world() -> World[Timer]:
    return power_on(Timer, period=100)


def start(world: World[Timer], control: int = 0, load: int = 1000) -> None:
    world.write(LOAD, load)
    world.write(CONTROL, RUN | control)


def wait(world: World[Timer], microseconds: int) -> None:
    """So much time passes, and a nanosecond: sums of decimal fractions may be a little short."""
    world.clock.advance(microseconds / 1e6 + 1e-9)


def entry(world: World[Timer], number: int) -> tuple[int, int, int]:
    """Time, what, number of entry ``number`` (from 1) of the log."""
    at = LOG_HEAD + (number - 1) % 255 * ENTRY_SIZE
    return world.read(at, 8, 1), world.read(at + 8, 4, 1), world.read(at + 12, 4, 1)


def test_after_power_on(world: World[Timer]) -> None:
    assert world.read(ID) == 0x454D4954
    assert bytes.fromhex("54494d45") == world.read(ID).to_bytes(4, "little") == b"TIME"
    assert [world.read(at) for at in (LOAD, VALUE, CONTROL, STATUS, EVENTS)] == [0] * 5
    assert world.read(PERIOD) == 100
    world.clock.advance(1)
    assert world.read(EVENTS) == 0


def test_options() -> None:
    assert power_on(Timer).read(PERIOD) == 1000
    with pytest.raises(ConfigError, match="does not fit 32 bits"):
        power_on(Timer, period=1 << 32)
    with pytest.raises(ConfigError):
        power_on(Timer, period=-1)


def test_it_counts_down(world: World[Timer]) -> None:
    start(world)
    assert world.read(VALUE) == 1000
    for passed in range(1, 4):
        wait(world, 100)
        assert world.read(VALUE) == 1000 - passed
    assert world.read(STATUS) == ELAPSED
    world.write(CONTROL, 0)
    world.clock.advance(1)
    assert world.read(VALUE) == 997
    assert world.read(EVENTS) == 3


def test_value_and_id_are_read_only(world: World[Timer]) -> None:
    for at in (ID, VALUE, EVENTS):
        before = world.read(at)
        world.write(at, 77)
        assert world.read(at) == before


def test_level_interrupt_until_acknowledged(world: World[Timer]) -> None:
    start(world, PERIOD_IRQ)
    wait(world, 100)
    wait(world, 100)
    assert world.sink.take() == [(IRQ, True)]
    world.write(STATUS, OVERFLOW)  # not the one
    assert world.sink.take() == []
    world.write(STATUS, ELAPSED)
    assert world.sink.take() == [(IRQ, False)]
    wait(world, 100)
    assert world.sink.take() == [(IRQ, True)]
    world.write(CONTROL, RUN)
    assert world.sink.take() == [(IRQ, False)]
    world.write(CONTROL, RUN | PERIOD_IRQ)
    assert world.sink.take() == [(IRQ, True)]


def test_no_interrupt_unless_enabled(world: World[Timer]) -> None:
    start(world, load=0)
    wait(world, 100)
    assert world.read(STATUS) == ELAPSED | OVERFLOW
    assert world.sink.take() == []


def test_overflow_is_an_edge_and_reloads(world: World[Timer]) -> None:
    start(world, OVERFLOW_IRQ, load=2)
    values, edges = [], []
    for _ in range(7):
        wait(world, 100)
        values.append(world.read(VALUE))
        edges.append(len(world.sink.take()))
    assert values == [1, 0, 2, 1, 0, 2, 1]
    assert edges == [0, 0, 1, 0, 0, 1, 0]
    assert world.read(STATUS) == ELAPSED | OVERFLOW


def test_load_takes_effect_at_the_next_overflow(world: World[Timer]) -> None:
    start(world, load=1)
    world.write(LOAD, 9)
    wait(world, 100)
    assert world.read(VALUE) == 0
    wait(world, 100)
    assert world.read(VALUE) == 9


def test_one_shot(world: World[Timer]) -> None:
    start(world, ONE_SHOT | OVERFLOW_IRQ, load=1)
    wait(world, 100)
    wait(world, 100)
    world.clock.advance(1)
    assert world.sink.take() == [(EDGE, True)]
    assert world.read(CONTROL) == ONE_SHOT | OVERFLOW_IRQ
    assert (world.read(VALUE), world.read(EVENTS)) == (0, 2)
    world.write(CONTROL, RUN | ONE_SHOT)
    assert world.read(VALUE) == 1


def test_changing_the_period_begins_a_new_one(world: World[Timer]) -> None:
    start(world)
    wait(world, 60)
    world.write(PERIOD, 50)
    wait(world, 40)
    assert world.read(EVENTS) == 0
    wait(world, 10)
    assert world.read(EVENTS) == 1
    world.write(PERIOD, 0)
    world.clock.advance(1)
    assert world.read(EVENTS) == 1
    world.write(PERIOD, 50)
    wait(world, 50)
    assert world.read(EVENTS) == 2


def test_setting_run_again_changes_nothing(world: World[Timer]) -> None:
    start(world)
    wait(world, 60)
    world.write(CONTROL, RUN | PERIOD_IRQ)
    wait(world, 40)
    assert (world.read(EVENTS), world.read(VALUE)) == (1, 999)


def test_a_late_host_counts_what_has_passed_in_one_event(world: World[Timer]) -> None:
    start(world, OVERFLOW_IRQ, load=9)
    wait(world, 735)
    assert (world.read(EVENTS), world.read(VALUE)) == (1, 2)
    wait(world, 65)  # the period that was under way ends in time
    assert (world.read(EVENTS), world.read(VALUE)) == (2, 1)
    wait(world, 25 * 100)
    assert (world.read(VALUE), world.sink.take()) == (6, [(EDGE, True)])


@pytest.mark.parametrize("load", [0, 1, 2, 9])
@pytest.mark.parametrize("late", range(1, 25))
def test_late_or_not_the_value_is_the_same(load: int, late: int) -> None:
    punctual, slow = power_on(Timer, period=100), power_on(Timer, period=100)
    start(punctual, load=load)
    start(slow, load=load)
    for _ in range(late):
        wait(punctual, 100)
    wait(slow, late * 100)
    assert slow.read(VALUE) == punctual.read(VALUE)
    assert slow.read(STATUS) == punctual.read(STATUS)


def test_log(world: World[Timer]) -> None:
    start(world, load=1)
    for _ in range(3):
        wait(world, 100)
    assert world.read(0, 8, 1) == 3
    assert [entry(world, n) for n in (1, 2, 3)] == [
        (100, ELAPSED, 1),
        (200, ELAPSED | OVERFLOW, 2),
        (300, ELAPSED, 3),
    ]


def test_log_is_a_ring(world: World[Timer]) -> None:
    start(world)
    for _ in range(256):
        wait(world, 100)
    assert world.read(0, 8, 1) == 256
    assert entry(world, 256) == (25600, ELAPSED, 256)
    assert entry(world, 2)[2] == 2


def test_entry_in_memory_is_handed_over_by_a_store(world: World[Timer]) -> None:
    world.write(ADDRESS, 0x3004, 8)  # the low bits do not count
    start(world, TO_MEMORY)
    wait(world, 100)
    assert world.domain.stores == [(0x300C, 1, 4)]
    written = bytes(world.domain.memory[0x3000:0x3010])
    assert written == (100).to_bytes(8, "little") + b"\1\0\0\0\1\0\0\0"
    assert written == bytes(world.model.log[16:32])
    assert world.read(STATUS) == ELAPSED


def test_an_entry_that_faults_sets_the_status_and_is_in_the_log(world: World[Timer]) -> None:
    world.write(ADDRESS, 1 << 40, 8)
    start(world, TO_MEMORY | PERIOD_IRQ)
    wait(world, 100)
    assert world.read(STATUS) == ELAPSED | FAULT
    assert world.sink.take() == [(IRQ, True)]
    assert entry(world, 1) == (100, ELAPSED, 1)
    world.write(STATUS, FAULT)
    wait(world, 100)
    assert world.read(STATUS) == ELAPSED | FAULT


def test_reset(world: World[Timer]) -> None:
    start(world, PERIOD_IRQ)
    world.write(PERIOD, 7)
    wait(world, 7)
    world.sink.take()
    world.model.reset()
    assert world.sink.take() == [(IRQ, False)]
    assert [world.read(at) for at in (LOAD, VALUE, CONTROL, STATUS, EVENTS)] == [0] * 5
    assert world.read(PERIOD) == 100
    assert not any(world.model.log)
    world.clock.advance(1)
    assert world.clock.waiting == 0
    start(world)
    wait(world, 100)
    assert entry(world, 1) == (1_000_100, ELAPSED, 1)
