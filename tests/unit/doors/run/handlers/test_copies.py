"""Copies of sysfs files outside the reserved range, by a real program."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Iterator

import pytest

from support.puppet import Puppet, Stage
from uvfio.doors.run.linux import ptrace

A = "0000:07:00.0"
OVERRIDE = f"/sys/bus/pci/devices/{A}/driver_override".encode()
BIND = b"/sys/bus/pci/drivers/vfio-pci/bind"


@pytest.fixture(params=[64, 32])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Stage(f"edu@{A},group=241", bits=request.param) as made:
        yield made


def write(puppet: Puppet, fd: int, text: bytes) -> int:
    return puppet.call("write", fd, puppet.buffer(text), len(text))


def override(stage: Stage) -> str | None:
    return stage.session.machine.binding.overrides.get(A)


def traced(stage: Stage) -> set[int]:
    return stage.supervisor.calls.copies.traced


def test_a_copy_is_served_until_it_is_closed(stage: Stage) -> None:
    puppet = stage.puppet
    fd = puppet.open(OVERRIDE, os.O_WRONLY)
    assert fd in stage.session.reserved
    assert puppet.must("dup2", fd, 40) == 40
    assert write(puppet, 40, b"one\n") == 4
    assert override(stage) == "one"
    puppet.must("close", fd)
    assert write(puppet, 40, b"two\n") == 4
    assert override(stage) == "two"
    assert traced(stage)
    puppet.must("close", 40)
    assert write(puppet, 40, b"three\n") == -errno.EBADF
    assert not traced(stage)


def test_errors_reach_the_program(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.must("dup2", puppet.open(BIND, os.O_WRONLY), 40)
    assert write(puppet, 40, b"nobody") == -errno.ENODEV
    assert write(puppet, 40, A.encode()) == -errno.EBUSY
    assert puppet.call("read", 40, puppet.buffer(8), 8) == -errno.EBADF


def test_other_descriptors_of_a_followed_program_are_its_own(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.must("dup2", puppet.open(OVERRIDE, os.O_WRONLY), 40)
    null = puppet.open(b"/dev/null", os.O_RDWR)
    assert write(puppet, null, b"12345") == 5
    assert write(puppet, 41, b"12345") == -errno.EBADF
    assert override(stage) is None


def test_what_takes_its_place_is_not_followed(stage: Stage) -> None:
    puppet = stage.puppet
    fd = puppet.open(OVERRIDE, os.O_WRONLY)
    null = puppet.open(b"/dev/null", os.O_RDWR)
    puppet.must("dup2", fd, 40)
    puppet.must("dup2", null, 40)
    assert write(puppet, 40, b"lost") == 4
    assert override(stage) is None
    assert not traced(stage)
    puppet.must("dup2", fd, 40)
    assert write(puppet, 40, b"kept") == 4
    assert override(stage) == "kept"


def test_a_vfio_file_is_not_followed(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.must("dup2", puppet.open(b"/dev/vfio/241"), 40)
    assert stage.supervisor.calls._copies is None


def test_who_is_traced_already_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    puppet = stage.puppet
    fd = puppet.open(OVERRIDE, os.O_WRONLY)
    with monkeypatch.context() as patch:
        patch.setattr(ptrace._libc, "ptrace", refuse)
        assert puppet.call("dup2", fd, 40) == -errno.EBUSY
    assert write(puppet, 40, b"x") == -errno.EBADF
    assert write(puppet, fd, b"direct") == 6
    assert override(stage) == "direct"


def test_no_thread_stays(stage: Stage) -> None:
    puppet = stage.puppet
    before = set(threading.enumerate())
    puppet.must("dup2", puppet.open(OVERRIDE, os.O_WRONLY), 40)
    (tracer,) = set(threading.enumerate()) - before
    puppet.must("close", 40)
    tracer.join(20)
    assert not tracer.is_alive()
