"""Processes and threads as the supervisor knows them, against real ones."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
from collections.abc import Iterator

import pytest

from support.puppet import (
    AT_FDCWD,
    CLONE_FILES,
    CLONE_VFORK,
    CLONE_VM,
    PAGE,
    Puppet,
    Stage,
    open_descriptors,
)
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.session.processes import CHECKS, Process
from uvfio.errors import BadAddress, BadDescriptor, InvalidArgument
from uvfio.uapi import rfc

CLONE_SIGHAND, CLONE_THREAD = 0x800, 0x10000
THREAD = CLONE_VM | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD
NODE = b"/dev/vfio/240"
OTHER = b"/dev/vfio/241"
PR_SET_DUMPABLE = 4
F_SETFD = 2


@pytest.fixture
def stage() -> Iterator[Stage]:
    before = open_descriptors()
    with Stage() as stage:
        yield stage
    assert open_descriptors() <= before


def known(stage: Stage, puppet: Puppet) -> Process:
    return stage.session.processes.get(puppet.pid)


def trap(puppet: Puppet) -> None:
    """Any notified call: the supervisor learns what there is to learn."""
    assert puppet.call("access", b"/dev/vfio/nothing", 0) == -errno.ENOENT


def group_fd(puppet: Puppet, path: bytes = NODE) -> int:
    fd = puppet.open(path)
    assert fd >= 0, os.strerror(-fd)
    return fd


def owned_group(puppet: Puppet) -> int:
    """A group whose iommu the puppet's memory owns; all that is open survives an exec."""
    fd = group_fd(puppet)
    iommu = puppet.must("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
    puppet.must("fcntl", iommu, F_SETFD, 0)
    return fd


def owns(puppet: Puppet, fd: int) -> bool:
    """Whether the puppet may do what only the owner may."""
    result = puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0)
    assert result >= 0 or result == -errno.EPERM, os.strerror(-result)
    return result >= 0


# -- threads ------------------------------------------------------------------------------------------


def test_threads_are_one_process(stage: Stage) -> None:
    trap(stage.puppet)
    thread = stage.puppet.spawn(THREAD)
    trap(thread)
    assert thread.pid != stage.puppet.pid
    assert known(stage, thread) is known(stage, stage.puppet)
    assert known(stage, thread).tgid == stage.puppet.pid
    fd = owned_group(stage.puppet)
    assert owns(thread, fd)
    assert stage.file(fd, thread) is stage.file(fd)


def test_a_thread_ends_alone(stage: Stage) -> None:
    fd = owned_group(stage.puppet)
    thread = stage.puppet.spawn(THREAD)
    assert owns(thread, fd)
    thread.start("exit", 0)
    assert owns(stage.puppet, fd)


def test_thread_numbers_are_not_kept_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvfio.doors.run.session.processes.TIDS_KEPT", 4)
    processes = stage.session.processes
    trap(stage.puppet)
    for _ in range(9):
        thread = stage.puppet.spawn(THREAD)
        trap(thread)
        thread.start("exit", 0)
    assert len(processes.by_tid) <= 1 + 4
    assert set(processes.by_tid) - {stage.puppet.pid} == stage.process.tids - {stage.puppet.pid}
    assert stage.puppet.pid in processes.by_tid


# -- fork ---------------------------------------------------------------------------------------------


def test_a_child_is_another_owner(stage: Stage) -> None:
    fd = owned_group(stage.puppet)
    child = stage.puppet.spawn()
    assert stage.file(fd, child) is stage.file(fd)
    assert not owns(child, fd)
    assert known(stage, child).mm is not stage.process.mm
    assert known(stage, child).parent == stage.puppet.pid
    assert owns(stage.puppet, fd)


def test_descriptors_of_a_child_are_its_own(stage: Stage) -> None:
    fd = group_fd(stage.puppet)
    child = stage.puppet.spawn()
    child.must("close", fd)
    assert child.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, child.arena) == -errno.EBADF
    assert stage.file(fd) is not None
    again = group_fd(child, OTHER)
    assert again == fd
    assert stage.file(fd, child) is not stage.file(fd)


def test_memory_of_a_child_is_its_own(stage: Stage) -> None:
    fd = group_fd(stage.puppet)
    at = stage.puppet.buffer(8)
    child = stage.puppet.spawn()
    child.must("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, at)
    assert child.peek(at, 8) != bytes(8)
    assert stage.puppet.peek(at, 8) == bytes(8)


@pytest.mark.parametrize("used", [True, False])
def test_a_vfork_child_runs_in_its_parents_memory(stage: Stage, used: bool) -> None:
    trap(stage.puppet)
    fd = owned_group(stage.puppet) if used else -1
    child = stage.puppet.spawn(CLONE_VM | CLONE_VFORK)
    trap(child)
    if used:
        assert known(stage, child).mm is stage.process.mm
        assert owns(child, fd)
    assert child.execute() == 0
    assert stage.puppet.answer() == child.pid
    trap(child)
    if used:
        assert known(stage, child).mm is not stage.process.mm
        assert stage.process.mm.memory is stage.process.space
        assert owns(stage.puppet, fd)
        assert not owns(child, fd)


def test_a_vfork_child_that_finds_nothing_to_execute(stage: Stage) -> None:
    """execvp tries folder after folder; until one succeeds nothing has changed."""
    fd = owned_group(stage.puppet)
    child = stage.puppet.spawn(CLONE_VM | CLONE_VFORK)
    for path in (b"/nonexistent/a", b"/dev/null"):
        assert child.execute(path) < 0
        assert owns(child, fd)
        assert known(stage, child).mm is stage.process.mm
    child.exit()
    assert stage.puppet.answer() == child.pid
    assert owns(stage.puppet, fd)


@pytest.mark.parametrize("used", [True, False])
def test_a_shared_table_is_not_cached(stage: Stage, used: bool) -> None:
    """CLONE_FILES without CLONE_THREAD: what one closes is closed for the other."""
    trap(stage.puppet)
    if used:
        group_fd(stage.puppet, OTHER)
    child = stage.puppet.spawn(CLONE_FILES)
    trap(child)
    fd = group_fd(stage.puppet)
    first = stage.file(fd)
    assert first is not None
    assert stage.file(fd, child) is first
    stage.puppet.must("dup", fd)  # so that the file lives on
    child.must("close", fd)
    assert stage.file(fd) is None
    assert stage.puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, stage.puppet.arena) < 0
    assert group_fd(child, OTHER) == fd
    assert stage.file(fd) is stage.file(fd, child) is not first
    stage.puppet.must("dup", fd)
    stage.puppet.must("dup3", 0, fd, 0)
    assert stage.file(fd, child) is None
    assert not stage.process.files
    assert not known(stage, child).files


def test_an_exec_ends_the_sharing(stage: Stage) -> None:
    owned_group(stage.puppet)
    child = stage.puppet.spawn(CLONE_FILES)
    trap(child)
    assert not known(stage, child).cacheable
    assert child.execute() == 0
    trap(child)
    assert known(stage, child).cacheable
    fd = group_fd(child)
    assert fd in known(stage, child).files
    assert not stage.process.cacheable  # it may share with others still


def test_a_failed_exec_does_not(stage: Stage) -> None:
    trap(stage.puppet)
    child = stage.puppet.spawn(CLONE_FILES)
    assert child.execute(b"/nonexistent") == -errno.ENOENT
    fd = group_fd(child)
    child.must("dup", fd)  # so that the file lives on
    stage.puppet.must("close", fd)
    assert stage.file(fd, child) is None


@pytest.mark.parametrize("call", ["unshare", "close_range"])
def test_a_thread_that_leaves_the_table(stage: Stage, call: str) -> None:
    """From then on a number means two things in one process."""
    fd = group_fd(stage.puppet)
    thread = stage.puppet.spawn(THREAD)
    trap(thread)
    if call == "unshare":
        thread.must("unshare", CLONE_FILES)
    else:
        thread.must("close_range", 1000, 1001, 2)  # CLOSE_RANGE_UNSHARE
    thread.must("close", fd)
    assert stage.file(fd, thread) is None
    assert stage.file(fd) is not None
    assert not stage.process.cacheable


# -- exec ---------------------------------------------------------------------------------------------


def test_an_exec_makes_another_owner(stage: Stage) -> None:
    puppet = stage.puppet
    fd = owned_group(puppet)
    before = stage.process.mm
    assert puppet.execute() == 0
    assert not owns(puppet, fd)
    assert stage.process.mm is not before
    assert stage.process.tgid == puppet.pid
    with pytest.raises(BadAddress):
        before.memory.read(puppet.arena, 8)


def test_close_on_exec(stage: Stage) -> None:
    puppet = stage.puppet
    keep = group_fd(puppet)
    lose = puppet.must("openat", AT_FDCWD, OTHER, os.O_RDWR | os.O_CLOEXEC)
    assert puppet.execute() == 0
    assert puppet.call("ioctl", lose, rfc.VFIO_GROUP_GET_FLAGS, puppet.arena) == -errno.EBADF
    assert stage.file(keep) is not None
    assert stage.file(lose) is None
    assert len(stage.session.tokens) == 1


def test_a_failed_exec_changes_nothing(stage: Stage) -> None:
    puppet = stage.puppet
    fd = owned_group(puppet)
    before = stage.process.mm
    for path, why in ((b"/nonexistent", errno.ENOENT), (b"/dev/null", errno.EACCES)):
        assert puppet.execute(path) == -why
        assert owns(puppet, fd)
    assert stage.process.mm is before
    assert fd in stage.process.files  # cached again


def test_an_exec_of_another_thread(stage: Stage) -> None:
    """The kernel gives it the number of the first one."""
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    before = stage.process.mm
    assert thread.execute() == 0
    thread.pid = puppet.pid
    assert thread.call("getpid") == puppet.pid
    assert not owns(thread, fd)
    assert stage.process.mm is not before


def test_many_images(stage: Stage) -> None:
    before = open_descriptors()
    for _ in range(5):
        fd = group_fd(stage.puppet)
        stage.puppet.must("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, stage.puppet.buffer(8))
        assert stage.puppet.execute() == 0
        stage.puppet.must("close", fd)
    trap(stage.puppet)
    assert len(open_descriptors() - before) <= 2  # memory of the present image


# -- exit ---------------------------------------------------------------------------------------------


def test_an_exit_is_noticed(stage: Stage) -> None:
    processes = stage.session.processes
    trap(stage.puppet)
    before = open_descriptors()
    child = stage.puppet.spawn()
    group_fd(child)
    thread = child.spawn(THREAD)
    trap(thread)
    assert {child.pid, thread.pid} <= set(processes.by_tid)
    child.exit()
    stage.reactor.poll(0)
    assert set(processes.by_tgid) == {stage.puppet.pid}
    assert set(processes.by_tid) == {stage.puppet.pid}
    for puppet in (child, thread):
        puppet.control.close()
    assert open_descriptors() <= before
    assert len(stage.session.tokens) == 0


def test_a_killed_process_is_forgotten(stage: Stage) -> None:
    child = stage.puppet.spawn()
    fd = owned_group(child)
    os.kill(child.pid, signal.SIGKILL)
    stage.puppet.must("wait4", child.pid, 0, 0, 0)
    assert group_fd(stage.puppet) == fd
    assert child.pid not in stage.session.processes.by_tgid
    assert owns(stage.puppet, fd)  # the child's ownership went with its files


def test_a_task_that_is_not_there(stage: Stage) -> None:
    """It was killed while its call was on the way: nothing of it is remembered."""
    child = stage.puppet.spawn()
    child.exit()
    stage.puppet.must("wait4", child.pid, 0, 0, 0)
    processes = stage.session.processes
    ghost = processes.get(child.pid)
    with pytest.raises(BadAddress):
        ghost.memory.read(stage.puppet.arena, 1)
    assert ghost.lookup(child.pid, 768) is None
    with pytest.raises(BadDescriptor):
        ghost.event(0)
    assert child.pid not in processes.by_tgid
    assert child.pid not in processes.by_tid  # the number will be somebody else's


# -- the Task seam ------------------------------------------------------------------------------------


def test_file_is_what_a_number_means(stage: Stage) -> None:
    fd = group_fd(stage.puppet)
    null = stage.puppet.open(b"/dev/null")
    assert stage.process.file(fd) is stage.file(fd)
    assert stage.process.file(null) == "/dev/null"
    for closed in (999, 5000, -1):
        with pytest.raises(BadDescriptor):
            stage.process.file(closed)


def test_events(stage: Stage) -> None:
    puppet = stage.puppet
    trap(puppet)
    before = open_descriptors()
    fd = puppet.must("eventfd2", 0, 0)
    event = stage.process.event(fd)
    event.signal()
    event.signal()
    at = puppet.buffer(8)
    assert puppet.must("read", fd, at, 8) == 8
    assert puppet.peek(at, 8) == struct.pack("<Q", 2)
    event.close()
    with pytest.raises(InvalidArgument):
        stage.process.event(puppet.open(b"/dev/null"))
    for closed in (999, -1):
        with pytest.raises(BadDescriptor):
            stage.process.event(closed)
    assert open_descriptors() <= before


def test_the_limit_of_locked_memory(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    trap(stage.puppet)
    process = stage.process
    _, hard = resource.prlimit(process.tgid, resource.RLIMIT_MEMLOCK)
    resource.prlimit(process.tgid, resource.RLIMIT_MEMLOCK, (64 << 10, hard))
    monkeypatch.setattr(Process, "_may_lock", lambda self: False)
    assert process.memlock_limit() == 64 << 10
    monkeypatch.undo()
    assert process._may_lock() == (os.geteuid() == 0) or os.geteuid() == 0
    if process._may_lock():
        assert process.memlock_limit() is None
    stage.session.processes.memlock = 5 << 10
    assert process.memlock_limit() == 5 << 10


def test_free_numbers(stage: Stage) -> None:
    reserved = stage.session.reserved
    trap(stage.puppet)
    process = stage.process
    assert process.free_number() == reserved.start
    fd = group_fd(stage.puppet)
    assert fd == reserved.start
    assert process.free_number() == fd + 1
    stage.puppet.must("dup3", 0, fd + 1, 0)  # by the program itself
    assert process.free_number() == fd + 2
    assert process.free_number(fd + 100) == fd + 100
    assert process.free_number(reserved.stop) is None


def test_a_secretive_program(stage: Stage) -> None:
    """Root sees everything; others are told why they cannot."""
    puppet = stage.puppet
    if os.geteuid() == 0:
        pytest.skip("nothing is hidden from root")
    path = puppet.buffer(NODE + b"\0")
    puppet.must("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    assert puppet.call("openat", AT_FDCWD, path, os.O_RDWR) == -errno.EPERM
    with pytest.raises(Unreadable, match="non-dumpable"):
        _ = stage.process.space


# -- the working folder -------------------------------------------------------------------------------


def test_the_working_folder(stage: Stage) -> None:
    puppet = stage.puppet
    trap(puppet)
    assert stage.process.cwd == os.getcwd()
    puppet.must("chdir", b"/usr")
    assert stage.process.cwd == "/usr"
    child = puppet.spawn()
    trap(child)
    assert known(stage, child).cwd == "/usr"
    child.must("chdir", b"/")
    assert known(stage, child).cwd == "/"
    assert stage.process.cwd == "/usr"
    fd = puppet.open(b"/etc", os.O_RDONLY | os.O_DIRECTORY)
    puppet.must("fchdir", fd)
    assert stage.process.cwd == "/etc"


def test_a_folder_of_the_machine_is_inherited(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.must("chdir", b"/sys/bus/pci/devices")
    child = puppet.spawn()
    trap(child)
    assert known(stage, child).cwd == "/sys/bus/pci/devices"
    assert child.execute() == 0
    trap(child)
    assert known(stage, child).cwd == "/sys/bus/pci/devices"
    assert child.call("access", b"0000:07:00.0/vendor", os.R_OK) == 0


def test_strings_end_where_memory_ends(stage: Stage) -> None:
    puppet = stage.puppet
    at = puppet.pages(2)
    puppet.must("munmap", at + PAGE, PAGE)
    path = b"/dev/vfio/240\0"
    puppet.poke(at + PAGE - len(path), path)
    assert puppet.must("openat", AT_FDCWD, at + PAGE - len(path), os.O_RDWR) >= 0
    process = stage.process
    assert process.read_some(at + PAGE - 4, 256) == path[-4:]
    assert process.read_some(at + PAGE, 256) == b""
    assert process.read_some((1 << 64) - 1, 16) == b""
    assert puppet.call("openat", AT_FDCWD, at + PAGE, os.O_RDWR) == -errno.EFAULT


def test_pages_that_are_written_often_are_trusted_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvfio.doors.run.session.processes.PAGES_KEPT", 3)
    trap(stage.puppet)
    process = stage.process
    for _ in range(CHECKS - 1):
        process.checked(7)
    assert not process.trusted
    process.checked(7)
    assert process.trusted == {7: CHECKS}
    for page in range(10, 20):
        process.checked(page)
    assert not process.trusted
    for _ in range(CHECKS):
        process.checked(7)
    assert stage.puppet.execute() == 0
    trap(stage.puppet)
    assert not stage.process.trusted
