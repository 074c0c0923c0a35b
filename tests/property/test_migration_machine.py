"""Migration under arbitrary programs, against arcs written down from the header and a few plain facts.

The program asks for any state at any time, feeds whole, half or damaged data, reads, writes a register and resets.
After each step the device is in the state that the facts say, its register answers and holds what they say, and a
refused call has changed nothing.
"""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.arcs import DATA, way
from support.mainline import Desk
from uvfio.doors.local import Process
from uvfio.machine.machine import Machine
from uvfio.uapi import pci, vfio
from uvfio.uapi import vfio_feature as features

NAME = "0000:01:00.0"
STATE = features.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
SAVING = {"PRE_COPY", "PRE_COPY_P2P", "STOP_COPY"}
STOPPED = {"STOP", "STOP_COPY", "RESUMING", "ERROR"}
SCRATCH, BOX = 0x10, 2 << 40
MARK = 0x5A5A


class Bench(Desk):
    def __init__(self) -> None:
        self.machine = Machine(devices=[f"exerciser@{NAME},group=1,migration=true,memory=4K"])
        self.framework = self.machine.framework
        self.me = Process(self.machine, abi="mainline")
        self.processes = [self.me]
        *_, self.dev = self.ready(1, NAME)
        self.set_config(self.dev, pci.PCI_COMMAND, 7)

    def state(self, wanted: int | None = None) -> tuple[int, int]:
        """(device_state, data_fd)"""
        way = features.VFIO_DEVICE_FEATURE_GET if wanted is None else 1 << 17
        argument = bytearray(struct.pack("<IIIi", 16, way | STATE, wanted or 0, 55))
        self.me.ioctl(self.dev, vfio.VFIO_DEVICE_FEATURE, argument)
        found: tuple[int, int] = struct.unpack("<Ii", argument[8:])
        return found


def stream_of(mark: int) -> bytes:
    bench = Bench()
    bench.me.pwrite(bench.dev, mark.to_bytes(4, "little"), SCRATCH)
    bench.me.pwrite(bench.dev, b"m" * 100, BOX)
    _, fd = bench.state(features.VFIO_DEVICE_STATE_STOP_COPY)
    return bench.me.read(fd, 1 << 20)


STREAM = stream_of(MARK)


class MigrationMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.bench = Bench()
        self.current = "RUNNING"
        self.scratch = 0
        self.fd = -1
        self.fed: bytes = b""
        self.heard: bytes = b""

    @rule(wanted=st.integers(0, 9))
    def go(self, wanted: int) -> None:
        name = features.STATE_NAMES.get(wanted, "none")
        path = None if self.current == "ERROR" else way(self.current, name, 7)
        if path is None:
            self.refused(wanted)
        elif self.current == "RESUMING" and path and self.fed != STREAM:
            self.refused(wanted)
            self.current = "ERROR"
        else:
            if self.current == "RESUMING" and path:
                self.scratch = MARK
            before = [self.current, *path][-2] if path else name
            opens = bool(path) and (name == "RESUMING" or (name in SAVING and before not in SAVING))
            state, fd = self.bench.state(wanted)
            assert (state, fd >= 0) == (wanted, opens)
            self.current = name
            if opens:
                self.fd, self.fed, self.heard = fd, b"", b""

    def refused(self, wanted: int) -> None:
        with pytest.raises(OSError) as error:
            self.bench.state(wanted)
        assert error.value.errno == errno.EINVAL

    @precondition(lambda self: self.fd >= 0)
    @rule(size=st.integers(1, 600))
    def read(self, size: int) -> None:
        if self.current not in SAVING:
            number = errno.EBADF if self.current == "RESUMING" else None
            with pytest.raises(OSError) as error:
                self.bench.me.read(self.fd, size)
            assert error.value.errno in ((number,) if number else (errno.ENODEV, errno.EBADF))
            return
        failed = 0
        try:
            data = self.bench.me.read(self.fd, size)
        except OSError as error:
            failed, data = error.errno or -1, b""
        self.heard += data
        if self.current == "STOP_COPY":
            assert not failed
            if not data:
                self.check_stream()
        else:
            assert failed == (0 if data else errno.ENOMSG)

    def check_stream(self) -> None:
        """What was heard to its end makes another device like this one."""
        other = Bench()
        _, fd = other.state(features.VFIO_DEVICE_STATE_RESUMING)
        other.me.write(fd, self.heard)
        other.state(features.VFIO_DEVICE_STATE_RUNNING)
        assert other.me.pread(other.dev, 4, SCRATCH) == self.scratch.to_bytes(4, "little")
        there, here = (b.me.pread(b.dev, 4096, BOX) for b in (other, self.bench))
        assert there == here

    @precondition(lambda self: self.current == "RESUMING" and self.fd >= 0)
    @rule(part=st.sampled_from(["all", "half", "rest", "bad"]))
    def feed(self, part: str) -> None:
        half = len(STREAM) // 2
        data = {
            "all": STREAM,
            "half": STREAM[:half],
            "rest": STREAM[half:],
            "bad": b"bad data " * 5,
        }[part]
        failed = 0
        try:
            self.bench.me.write(self.fd, data)
        except OSError as error:
            failed = error.errno or -1
        self.fed += data
        if STREAM.startswith(self.fed):
            assert not failed
        assert failed in (0, errno.EINVAL)

    @rule(value=st.integers(0, 1 << 31))
    def poke(self, value: int) -> None:
        self.bench.me.pwrite(self.bench.dev, value.to_bytes(4, "little"), SCRATCH)
        if self.current not in STOPPED:
            self.scratch = value

    @precondition(lambda self: self.current not in STOPPED)
    @rule(at=st.integers(0, 4000))
    def store(self, at: int) -> None:
        self.bench.me.pwrite(self.bench.dev, b"stored", BOX + at)

    @rule()
    def reset(self) -> None:
        self.bench.me.ioctl(self.bench.dev, vfio.VFIO_DEVICE_RESET)
        self.current, self.scratch = "RUNNING", 0

    @rule()
    def close_the_file(self) -> None:
        if self.fd >= 0:
            self.bench.me.close(self.fd)
            self.fd = -1

    @invariant()
    def the_state_is_known(self) -> None:
        if not hasattr(self, "bench"):
            return
        state, fd = self.bench.state()
        assert features.STATE_NAMES[state] == self.current
        assert fd == -1
        scratch = self.bench.me.pread(self.bench.dev, 4, SCRATCH)
        expected = 0xFFFFFFFF if self.current in STOPPED else self.scratch
        assert scratch == expected.to_bytes(4, "little")
        migration = self.bench.bound(NAME).migration
        assert migration is not None
        assert (migration.session is not None) == (self.current in DATA)


MigrationMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestMigration = MigrationMachine.TestCase
