"""The loop and its table of handlers."""

from __future__ import annotations

import errno
import inspect
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from support.puppet import AT_FDCWD, PAGE, Stage, machine_of, open_descriptors
from uvfio.core.events import DeviceBound, DevicePlugged, GroupAdded
from uvfio.doors.run import supervisor as module
from uvfio.doors.run.filter.rules import BY_KEY
from uvfio.doors.run.handlers.calls import Calls
from uvfio.doors.run.handlers.changes import Changes
from uvfio.doors.run.handlers.paths import Paths
from uvfio.doors.run.launch.launch import LaunchError
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.events import FileReleased, RunEvent
from uvfio.doors.run.session.session import Session
from uvfio.doors.run.supervisor import Supervisor
from uvfio.errors import NoMemory, TooManyFiles, VfioError
from uvfio.uapi import rfc
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

NODE = b"/dev/vfio/241"


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = open_descriptors()
    with Stage() as stage:
        yield stage
    assert open_descriptors() <= before


def replace(stage: Stage, name: str, handler: Callable[[tuple[int, ...]], int | None]) -> None:
    stage.supervisor.handlers[X86_64[name], AUDIT_ARCH_X86_64] = handler


def wait_for_end(pidfd: int) -> None:
    select.select([pidfd], [], [], 30)
    os.close(pidfd)


# -- the table -------------------------------------------------------------------------------------------


def test_what_is_notified_has_a_handler(stage: Stage) -> None:
    """The handler that the row names, and nothing else has one. Those that change files are loaded on demand."""
    owners = {"paths": stage.supervisor.paths, "calls": stage.supervisor.calls}
    handlers = stage.supervisor.handlers
    assert handlers.keys() == BY_KEY.keys()
    for key, call in BY_KEY.items():
        owner, method = call.handler.split(".")
        if owner == "changes":
            assert callable(handlers[key])
            assert hasattr(Changes, method)
        else:
            assert handlers[key] == getattr(owners[owner], method)


def test_each_method_that_takes_a_notification_is_in_the_table() -> None:
    named = {call.handler for call in BY_KEY.values()}
    methods = {
        f"{kind.__name__.lower()}.{name}"
        for kind in (Calls, Changes, Paths)
        for name, method in vars(kind).items()
        if not name.startswith("_")
        and inspect.isfunction(method)
        and list(inspect.signature(method).parameters) == ["self", "request"]
    }
    assert methods == named


@pytest.mark.parametrize("kind", [Calls, Changes, Paths])
def test_each_handler_is_described(kind: type) -> None:
    named = {call.handler.split(".")[1] for call in BY_KEY.values()}
    bare = [name for name in named & vars(kind).keys() if not getattr(kind, name).__doc__]
    assert bare == []


def test_arguments_of_32_bits_have_their_own_handlers(stage: Stage) -> None:
    """Calls whose arguments or structures differ between the two must not share one."""
    table = stage.supervisor.handlers
    for name in (
        "readv",
        "writev",
        "preadv",
        "pwritev",
        "preadv2",
        "pwritev2",
        "pread64",
        "pwrite64",
        "statfs",
    ):
        one, other = table[X86_64[name], AUDIT_ARCH_X86_64], table[I386[name], AUDIT_ARCH_I386]
        assert one != other, name


# -- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "number"),
    [
        (OSError(errno.EBUSY, "busy"), errno.EBUSY),
        (NoMemory("none"), errno.ENOMEM),
        (VfioError("of its own", errno=errno.ENODEV), errno.ENODEV),
        (OSError("no number"), errno.EIO),
    ],
)
def test_a_failure_is_an_errno(stage: Stage, failure: OSError, number: int) -> None:
    def fail(request: tuple[int, ...]) -> None:
        raise failure

    replace(stage, "access", fail)
    assert stage.puppet.call("access", b"/", 0) == -number
    failure.__traceback__ = None  # or it keeps the supervisor, and the memory of its devices


def test_values(stage: Stage) -> None:
    answers: list[int | None] = [0, 5, (1 << 47) - 1, None]
    replace(stage, "getcwd", lambda request: answers.pop(0))
    at = stage.puppet.buffer(PAGE)
    for expected in (0, 5, (1 << 47) - 1):
        assert stage.puppet.call("getcwd", at, PAGE) == expected
    assert stage.puppet.call("getcwd", at, PAGE) == len(os.getcwdb()) + 1  # the kernel's answer


def test_a_bug_is_the_programs_eio(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said aloud, and the loop goes on."""

    def broken(request: tuple[int, ...]) -> int:
        raise ZeroDivisionError("a mistake")

    puppet = stage.puppet
    original = stage.supervisor.handlers[X86_64["access"], AUDIT_ARCH_X86_64]
    replace(stage, "access", broken)
    assert puppet.call("access", NODE, 0) == -errno.EIO
    said = capsys.readouterr().err
    assert f"uvfio: internal error in system call {X86_64['access']} of task {puppet.pid}" in said
    assert "ZeroDivisionError: a mistake" in said
    replace(stage, "access", original)
    assert puppet.call("access", NODE, 0) == 0
    del stage.supervisor.handlers[X86_64["access"], AUDIT_ARCH_X86_64]
    assert puppet.call("access", NODE, 0) == -errno.EIO
    assert "KeyError" in capsys.readouterr().err


def test_a_file_with_a_bug(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = stage.open_device()
    at = stage.puppet.buffer(8)

    def broken(*_: object) -> bytes:
        raise KeyError("a register")

    with monkeypatch.context() as patch:
        patch.setattr(type(stage.file(fd)), "pread", broken)
        assert stage.puppet.call("pread64", fd, at, 4, 0) == -errno.EIO
    assert "KeyError: 'a register'" in capsys.readouterr().err
    assert stage.puppet.call("pread64", fd, at, 4, 0) == 4


# -- programs that end at a bad moment ---------------------------------------------------------------------


def test_killed_during_a_call(stage: Stage) -> None:
    """The answer reaches nobody; what the call did is undone by the end of the process."""
    puppet = stage.puppet
    child = puppet.spawn()
    original = stage.supervisor.handlers[X86_64["openat"], AUDIT_ARCH_X86_64]

    def kill_after(request: tuple[int, ...]) -> int | None:
        value = original(request)
        if request[1] == child.pid:
            pidfd = os.pidfd_open(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            wait_for_end(pidfd)
        return value

    replace(stage, "openat", kill_after)
    child.start("openat", AT_FDCWD, NODE, os.O_RDWR)
    assert puppet.call("wait4", child.pid, 0, 0, 0) == child.pid
    fd = puppet.open(NODE)
    assert stage.file(fd) is not None
    assert len(stage.session.tokens) == 1


def test_killed_before_its_descriptor(stage: Stage) -> None:
    puppet = stage.puppet
    child = puppet.spawn()
    original = stage.supervisor.handlers[X86_64["openat"], AUDIT_ARCH_X86_64]

    def kill_before(request: tuple[int, ...]) -> int | None:
        if request[1] == child.pid:
            pidfd = os.pidfd_open(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            wait_for_end(pidfd)
        return original(request)

    assert child.call("access", NODE, 0) == 0  # its memory is known
    replace(stage, "openat", kill_before)
    child.start("openat", AT_FDCWD, NODE, os.O_RDWR)
    assert puppet.call("wait4", child.pid, 0, 0, 0) == child.pid
    assert len(stage.session.tokens) == 0
    assert isinstance(puppet.open(NODE), int)
    assert len(stage.session.tokens) == 1


def test_the_end_of_all_programs(stage: Stage) -> None:
    fd = stage.puppet.open(NODE)
    assert stage.file(fd) is not None
    stage.puppet.start("exit_group", 3)
    assert os.waitstatus_to_exitcode(stage.supervisor.serve()) == 3
    stage.session.tokens.drain()
    assert len(stage.session.tokens) == 0


# -- what happens besides ------------------------------------------------------------------------------------


def test_timers_run_between_calls(stage: Stage) -> None:
    ran: list[str] = []
    stage.reactor.call_later(0, lambda: ran.append("timer"))
    assert stage.puppet.call("access", NODE, 0) == 0
    while not ran:
        stage.puppet.call("access", NODE, 0)
    assert ran == ["timer"]


def test_release_is_settled_before_what_depends_on_it(stage: Stage) -> None:
    """Closed and opened again by two processes: who comes second finds the group free."""
    puppet = stage.puppet
    other = puppet.spawn()
    for one, two in ((puppet, other), (other, puppet)):
        fd = one.open(NODE)
        iommu = one.must("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
        late = two.open(NODE)
        assert two.call("ioctl", late, rfc.VFIO_GROUP_GET_IOMMU_FD, 0) == -errno.EPERM
        one.must("close", iommu)
        mine = two.must("ioctl", late, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
        for number in (mine, late):
            two.must("close", number)
        one.must("close", fd)


def test_observers_get_the_events_of_the_framework_and_of_files(stage: Stage) -> None:
    told: list[RunEvent] = []
    stage.session.watch(told.append)
    stage.puppet.must("close", stage.puppet.open(NODE))
    stage.session.settle()
    assert FileReleased("/dev/vfio/241") in told
    stage.session.machine.plug("edu,group=9")
    assert told[-3:] == [
        GroupAdded("9", "pci", 9, 2),
        DevicePlugged("0000:00:01.0", "pci", "9"),
        DeviceBound("0000:00:01.0", "vfio-pci", "9"),
    ]


def test_an_observer_that_needs_no_event_of_the_framework_makes_it_emit_none(stage: Stage) -> None:
    told: list[RunEvent] = []
    stage.session.watch(told.append, framework=False)
    assert stage.session.machine.framework.observer is None
    stage.puppet.must("close", stage.puppet.open(NODE))
    stage.session.settle()
    assert told == [FileReleased("/dev/vfio/241")]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(errno.EMFILE, errno.ENFILE), (errno.ENFILE, errno.ENFILE), (errno.ENOSPC, errno.ENOMEM)],
)
def test_no_file_can_be_made(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ours: int, theirs: int
) -> None:
    """The supervisor's own limits are the program's system limits."""

    def full(*_: object) -> None:
        raise OSError(ours, os.strerror(ours))

    with monkeypatch.context() as broken:
        broken.setattr(stage.session.tokens, "create", full)
        assert stage.puppet.open(NODE) == -theirs
    assert stage.puppet.open(NODE) >= 0
    assert len(stage.session.tokens) == 1


def test_the_programs_limit_is_not_ours(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> Callable[..., int]:
        def addfd(*_: object) -> int:
            raise OSError(number, "no")

        return addfd

    for number in (errno.EMFILE, errno.ENFILE):
        with monkeypatch.context() as patch:
            patch.setattr(sc, "addfd", fail(number))
            with pytest.raises(TooManyFiles):
                stage.session.addfd(0, None, True)


def test_beyond_the_soft_limit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """EBADF from SETFD means that the program lowered its limit: any number will do."""
    asked: list[int | None] = []

    def addfd(listener: int, current: int, fd: int, number: int | None, cloexec: bool) -> int:
        asked.append(number)
        if number is not None:
            raise OSError(errno.EBADF, "Bad file descriptor")
        return 5

    monkeypatch.setattr(sc, "addfd", addfd)
    assert stage.session.addfd(0, 800, True) == 5
    assert asked == [800, None]


# -- life ------------------------------------------------------------------------------------------------


def test_a_supervisor_leaves_nothing(stage: Stage) -> None:
    folder = stage.session.tree.path
    assert os.path.isdir(folder)
    stage.open_device()
    other = Supervisor(Session(machine_of(), os.path.dirname(folder)))
    assert os.path.isdir(other.session.tree.path)
    other.close()
    assert not os.path.exists(other.session.tree.path)
    assert os.path.isdir(folder)


def test_a_machine_without_a_place_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "uvfio.doors.run.launch.check._candidates", lambda: ["/proc", "/nonexistent"]
    )
    with pytest.raises(LaunchError, match="unlinked files") as caught:
        module.run(machine_of(), ["true"], cast("Any", None))
    assert "uvfio check" in caught.value.hint
