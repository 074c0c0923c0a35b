"""States of migration: the ways between them, against arcs written down anew; what happens on each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pytest

from support.arcs import FLAGS, way
from uvfio.core.bus import Activity
from uvfio.core.migration.states import (
    ALL_FLAGS,
    Migration,
    MigrationFlag,
    MigrationState,
    next_state,
)
from uvfio.core.migration.stream import BLOCK, ResumingStream, SavingStream
from uvfio.errors import Gone, InvalidArgument, NoData, Unsupported
from uvfio.uapi import vfio_feature as features

S = MigrationState


class FakeDevice:
    """Memory of two blocks, a word of state, and a log of what it was told."""

    def __init__(self, identity: str = "fake") -> None:
        self.identity = identity
        self.resets = 0
        self.memory = memoryview(bytearray(2 * BLOCK))
        self.word = b"word"
        self.activity = Activity.FULL
        self.told: list[Activity] = []
        self.failing: Exception | None = None

    @property
    def memories(self) -> Mapping[int, memoryview]:
        return {0: self.memory}

    def quiesce(self, activity: Activity) -> None:
        self.activity = activity
        self.told.append(activity)

    def save(self) -> bytes:
        if self.failing:
            raise self.failing
        return self.word

    def load(self, state: bytes) -> None:
        if self.failing:
            raise self.failing
        self.word = state


class Bench:
    def __init__(self, flags: MigrationFlag = ALL_FLAGS) -> None:
        self.device = FakeDevice()
        self.migration = Migration(self.device, flags)

    @property
    def state(self) -> str:
        return self.migration.state.name

    def save(self) -> SavingStream:
        stream = self.migration.set_state(S.STOP_COPY)
        assert isinstance(stream, SavingStream)
        return stream

    def resume(self) -> ResumingStream:
        stream = self.migration.set_state(S.RESUMING)
        assert isinstance(stream, ResumingStream)
        return stream


@pytest.fixture
def bench() -> Bench:
    return Bench()


def everything(stream: SavingStream) -> bytes:
    got = b""
    while data := stream.read(len(got), 1 << 20):
        got += data
    return got


# -- ways ------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_header() -> None:
    assert {state.value: state.name for state in S} == features.STATE_NAMES
    flags = (
        features.VFIO_MIGRATION_STOP_COPY,
        features.VFIO_MIGRATION_P2P,
        features.VFIO_MIGRATION_PRE_COPY,
    )
    assert tuple(MigrationFlag) == flags


@pytest.mark.parametrize("flags", FLAGS)
def test_every_way(flags: int) -> None:
    """All pairs of states, with every set of flags."""
    for current, wanted in product(S, S):
        expected = way(current.name, wanted.name, flags)
        steps: list[str] = []
        at = current
        try:
            while not steps or at is not wanted:
                at = next_state(at, wanted, MigrationFlag(flags))
                steps.append(at.name)
        except InvalidArgument:
            assert expected is None, f"{current.name} -> {wanted.name}"
        else:
            assert steps == (expected or [wanted.name]), f"{current.name} -> {wanted.name}"
            assert expected is not None


@pytest.mark.parametrize("number", [-1, 8, 9, 1 << 31, (1 << 32) - 1])
def test_numbers_that_are_no_state(number: int) -> None:
    with pytest.raises(InvalidArgument, match="no migration state"):
        next_state(S.RUNNING, number, ALL_FLAGS)


# -- what a device does ----------------------------------------------------------------------------


def test_activity(bench: Bench) -> None:
    wanted = {
        S.RUNNING: Activity.FULL,
        S.PRE_COPY: Activity.FULL,
        S.RUNNING_P2P: Activity.QUIET,
        S.PRE_COPY_P2P: Activity.QUIET,
        S.STOP: Activity.STOPPED,
        S.STOP_COPY: Activity.STOPPED,
        S.RESUMING: Activity.STOPPED,
    }
    for state, activity in wanted.items():
        bench.migration.set_state(S.RUNNING) if bench.migration.state is not S.RESUMING else None
        bench.migration.set_state(state)
        assert (bench.migration.state, bench.device.activity) == (state, activity)


def test_the_device_is_told_of_each_step(bench: Bench) -> None:
    bench.migration.set_state(S.STOP)
    bench.migration.set_state(S.RUNNING)
    full, quiet, stopped = Activity
    assert bench.device.told == [quiet, stopped, quiet, full]


def test_staying_is_nothing(bench: Bench) -> None:
    assert bench.migration.set_state(S.RUNNING) is None
    stream = bench.save()
    assert bench.migration.set_state(S.STOP_COPY) is None
    assert bench.migration.session is stream
    assert not stream.closed


# -- data ------------------------------------------------------------------------------------------


def test_state_and_memory_move(bench: Bench) -> None:
    bench.device.memory[:] = b"m" * len(bench.device.memory)
    data = everything(bench.save())
    other = Bench()
    other.device.word = b""
    stream = other.resume()
    stream.write(data)
    assert other.migration.set_state(S.RUNNING) is None
    assert other.device.word == b"word"
    assert bytes(other.device.memory) == bytes(bench.device.memory)
    with pytest.raises(Gone):
        stream.write(b"more")


def test_saving_while_it_runs(bench: Bench) -> None:
    stream = bench.migration.set_state(S.PRE_COPY)
    assert isinstance(stream, SavingStream)
    initial, _ = bench.migration.precopy_info(stream)
    got = stream.read(0, initial)
    with pytest.raises(NoData):
        stream.read(initial, 1)
    assert bench.migration.set_state(S.PRE_COPY_P2P) is None
    assert bench.migration.set_state(S.PRE_COPY) is None
    bench.device.memory[0] = 7
    assert bench.migration.precopy_info(stream) == (0, BLOCK + 24)
    assert bench.migration.set_state(S.STOP_COPY) is None
    with pytest.raises(InvalidArgument, match="STOP_COPY, not in PRE_COPY"):
        bench.migration.precopy_info(stream)
    while data := stream.read(len(got), 999):
        got += data
    other = Bench()
    other.resume().write(got)
    other.migration.set_state(S.STOP)
    assert other.device.memory[0] == 7


@pytest.mark.parametrize("wanted", [S.STOP, S.RUNNING, S.RUNNING_P2P, S.RESUMING])
@pytest.mark.parametrize("saving", [S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY])
def test_leaving_ends_the_session(bench: Bench, saving: S, wanted: S) -> None:
    stream = bench.migration.set_state(saving)
    assert isinstance(stream, SavingStream)
    bench.migration.set_state(wanted)
    with pytest.raises(Gone):
        stream.read(0, 1)
    with pytest.raises(InvalidArgument):
        bench.migration.precopy_info(stream)


def test_each_session_has_its_own_stream(bench: Bench) -> None:
    first = bench.save()
    bench.migration.set_state(S.STOP)
    second = bench.save()
    assert first is not second
    assert first.closed
    assert not second.closed


def test_a_file_that_was_closed_does_not_hinder_the_end(bench: Bench) -> None:
    stream = bench.migration.set_state(S.PRE_COPY)
    assert stream is not None
    stream.close()
    bench.migration.set_state(S.STOP_COPY)
    assert bench.state == "STOP_COPY"


def test_the_estimate(bench: Bench) -> None:
    assert bench.migration.data_size() >= 2 * BLOCK
    bench.device.memory[:] = b"m" * len(bench.device.memory)
    stream = bench.save()
    assert len(everything(stream)) <= bench.migration.data_size()


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_state_that_cannot_be_saved(bench: Bench) -> None:
    bench.device.failing = Unsupported("not now")
    with pytest.raises(Unsupported):
        bench.migration.set_state(S.STOP_COPY)
    assert bench.state == "STOP"
    assert bench.migration.session is None
    bench.migration.set_state(S.RUNNING)
    stream = bench.migration.set_state(S.PRE_COPY)
    with pytest.raises(Unsupported):
        bench.migration.set_state(S.STOP_COPY)
    assert bench.state == "PRE_COPY_P2P"
    assert bench.migration.session is stream
    assert bench.device.activity is Activity.QUIET
    bench.device.failing = None
    bench.migration.set_state(S.STOP_COPY)
    assert bench.state == "STOP_COPY"


@pytest.mark.parametrize("failing", [InvalidArgument("no"), KeyError("key"), IndexError("at")])
def test_a_state_that_is_not_taken(bench: Bench, failing: Exception) -> None:
    data = everything(bench.save())
    bench.migration.set_state(S.STOP)
    bench.resume().write(data)
    bench.device.failing = failing
    with pytest.raises(InvalidArgument, match="does not take"):
        bench.migration.set_state(S.RUNNING)
    assert bench.state == "ERROR"
    assert bench.device.activity is Activity.STOPPED


@pytest.mark.parametrize("data", [b"", b"UVFIO", b"something else entirely"])
def test_wrong_data_are_an_error_until_a_reset(bench: Bench, data: bytes) -> None:
    stream = bench.resume()
    try:
        stream.write(data)
    except InvalidArgument:
        assert bench.state == "RESUMING"
    with pytest.raises(InvalidArgument):
        bench.migration.set_state(S.STOP)
    for wanted in range(8):
        with pytest.raises(InvalidArgument):
            bench.migration.set_state(wanted)
        assert bench.state == "ERROR"
    assert bench.device.word == b"word"
    bench.migration.reset()
    assert bench.state == "RUNNING"
    assert bench.device.activity is Activity.FULL


@pytest.mark.parametrize("state", [S.STOP, S.STOP_COPY, S.RESUMING, S.PRE_COPY_P2P])
def test_a_reset_lets_it_run(bench: Bench, state: S) -> None:
    stream = bench.migration.set_state(state)
    bench.migration.reset()
    assert bench.state == "RUNNING"
    assert bench.device.activity is Activity.FULL
    assert bench.migration.session is None
    assert stream is None or stream.closed


def test_a_reset_by_configuration_space_is_noticed(bench: Bench) -> None:
    stream = bench.save()
    bench.device.resets += 1
    assert bench.state == "RUNNING"
    assert stream.closed
    assert bench.device.activity is Activity.FULL
    bench.device.resets += 1
    bench.migration.set_state(S.STOP)
    assert bench.state == "STOP"
