"""Processes and threads as the supervisor knows them, against real ones."""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from itertools import islice

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
from uvfio.doors.run.linux import proc, syscalls
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.linux.proc import SPARE
from uvfio.doors.run.session.programs.process import CHECKS, Process
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


def end_thread(stage: Stage, thread: Puppet) -> None:
    """The thread ends; returns when its number is free or about to be."""
    pidfd = os.pidfd_open(thread.pid, syscalls.PIDFD_THREAD)
    try:
        thread.start("exit", 0)
        stage.serve(pidfd)
    finally:
        os.close(pidfd)


def test_a_thread_that_ended_is_forgotten(stage: Stage) -> None:
    processes = stage.session.processes
    trap(stage.puppet)
    before = open_descriptors()
    thread = stage.puppet.spawn(THREAD)
    trap(thread)
    assert processes.by_tid[thread.pid] is stage.process
    end_thread(stage, thread)
    trap(stage.puppet)
    assert set(processes.by_tid) == stage.process.tids == {stage.puppet.pid}
    thread.control.close()
    assert open_descriptors() <= before


@pytest.mark.parametrize("why", ["too many threads", "an old kernel"])
def test_a_thread_without_a_pidfd_is_asked_for_at_each_call(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "an old kernel":
        monkeypatch.setattr(syscalls, "PIDFD_THREAD", 1 << 30)  # EINVAL
    else:
        monkeypatch.setattr("uvfio.doors.run.session.programs.endings.THREADS", 0)
    asked = []
    is_thread = syscalls.is_thread

    def ask(tgid: int, tid: int) -> bool:
        asked.append(tid)
        return is_thread(tgid, tid)

    monkeypatch.setattr(syscalls, "is_thread", ask)
    fd = owned_group(stage.puppet)
    thread = stage.puppet.spawn(THREAD)
    for _ in range(3):
        assert owns(thread, fd)
    assert thread.pid not in stage.session.processes.by_tid
    assert asked == [thread.pid] * 2, "the first call identified it"
    monkeypatch.setattr(syscalls, "is_thread", lambda tgid, tid: False)
    child = stage.puppet.spawn()
    stage.session.processes._unwatched[child.pid] = stage.process  # as if it had been a thread's
    assert not owns(child, fd)
    assert known(stage, child).tgid == child.pid


def reuse(stage: Stage, number: int) -> Puppet:
    """A child of the puppet with this number, which is free now."""
    for _ in range(200):
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(number - 1))
        child = stage.puppet.spawn()
        if child.pid == number:
            return child
        child.exit()
        stage.puppet.must("wait4", child.pid, 0, 0, 0)
        stage.puppet.children.remove(child)
        child.control.close()
    pytest.skip(f"number {number} is taken, or others take it each time")


needs_numbers = pytest.mark.skipif(
    not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK) or os.geteuid() != 0,
    reason="choosing a process's number needs root and CONFIG_CHECKPOINT_RESTORE",
)


@needs_numbers
@pytest.mark.parametrize("watched", [True, False])
def test_the_number_of_a_thread_that_ended_is_anybodys(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    if not watched:
        monkeypatch.setattr("uvfio.doors.run.session.programs.endings.THREADS", 0)
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    assert owns(thread, fd)
    end_thread(stage, thread)
    child = reuse(stage, thread.pid)
    assert not owns(child, fd)
    at = child.buffer(8)
    child.must("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, at)
    assert child.peek(at, 8) != bytes(8)
    assert puppet.peek(at, 8) == bytes(8)
    child.must("close", fd)
    assert stage.file(fd) is not None, "closed for the child alone"


@needs_numbers
def test_the_number_of_a_process_that_ended_is_anybodys(stage: Stage) -> None:
    first = stage.puppet.spawn()
    fd = owned_group(first)
    first.exit()
    stage.puppet.must("wait4", first.pid, 0, 0, 0)
    second = reuse(stage, first.pid)
    assert second.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, second.arena) == -errno.EBADF
    assert group_fd(second, OTHER) == fd
    at = second.buffer(8)
    second.must("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, at)
    assert second.peek(at, 8) != bytes(8)


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


CLONE_PARENT = 0x8000


@pytest.mark.parametrize("orphan", [False, True])
def test_a_table_that_is_shared_with_a_relative(stage: Stage, orphan: bool) -> None:
    """Not with its parent: a sibling (CLONE_PARENT), or the child of one that has ended."""
    fd = group_fd(stage.puppet)
    first = stage.file(fd)
    if orphan:
        between = stage.puppet.spawn(CLONE_FILES)
        child = between.spawn(CLONE_FILES)
        between.exit()
    else:
        child = stage.puppet.spawn(CLONE_FILES | CLONE_PARENT)
    stage.puppet.must("dup", fd)  # so that the file lives on
    assert stage.file(fd) is first
    child.must("close", fd)
    assert stage.puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, stage.puppet.arena) < 0
    assert group_fd(child, OTHER) == fd
    assert stage.file(fd) is stage.file(fd, child) is not first
    stage.puppet.must("close", fd)
    assert stage.file(fd, child) is None


def test_tables_are_compared_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    kcmp = syscalls.kcmp

    def count(pid1: int, pid2: int, kind: int) -> int:
        kinds.append(kind)
        return kcmp(pid1, pid2, kind)

    group_fd(stage.puppet)
    child = stage.puppet.spawn()
    monkeypatch.setattr(syscalls, "kcmp", count)
    for _ in range(5):
        child.must("close", group_fd(child, OTHER))
    assert kinds.count(syscalls.KCMP_FILES) == 1
    assert kinds.count(syscalls.KCMP_VM) <= 2
    child.exit()
    stage.reactor.poll(0)
    assert not stage.process.distinct


def test_an_exec_ends_the_sharing(stage: Stage) -> None:
    owned_group(stage.puppet)
    child = stage.puppet.spawn(CLONE_FILES)
    assert child.call("close", stage.session.reserved[-1]) == -errno.EBADF
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


def test_an_exec_while_another_thread_calls(stage: Stage) -> None:
    """Until it is known whether the exec succeeded nothing is cached, and nothing of the old image is lost."""
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    assert owns(thread, fd)
    process = stage.process
    processes, before = stage.session.processes, process.mm
    processes.exec_begins(process, puppet.pid)  # and the kernel takes its time
    assert owns(thread, fd)
    assert not process.files
    assert process.mm is before
    assert thread.pid not in processes.by_tid
    assert owns(puppet, fd), "the exec has failed"
    assert not process.execs
    assert process.files


def test_execs_of_two_threads(stage: Stage) -> None:
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    process, processes = stage.process, stage.session.processes
    for tid in (puppet.pid, thread.pid):
        processes.exec_begins(process, tid)
    assert owns(thread, fd)
    assert process.execs == {puppet.pid}, "one has failed"
    assert not process.files
    before = process.mm
    assert puppet.execute() == 0
    assert not owns(puppet, fd)
    assert process.mm is not before
    assert process.files


def test_an_exec_of_a_thread_that_has_ended_since(stage: Stage) -> None:
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    trap(thread)
    assert thread.execute(b"/nonexistent") == -errno.ENOENT
    assert stage.process.execs == {thread.pid}
    end_thread(stage, thread)
    assert owns(puppet, fd)
    assert not stage.process.execs


@pytest.mark.parametrize("mark", [b"", b"old"])
def test_a_main_thread_that_has_ended_proves_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, mark: bytes
) -> None:
    """Its auxiliary vector is empty. The caller's own counts, and if that is empty nothing is known."""
    puppet = stage.puppet
    fd = owned_group(puppet)
    thread = puppet.spawn(THREAD)
    trap(thread)
    marks = {puppet.pid: b"", thread.pid: b"old"}
    monkeypatch.setattr(proc, "image_mark", lambda tid: marks[tid])
    process, before = stage.process, stage.process.mm
    stage.session.processes.exec_begins(process, thread.pid)
    third = puppet.spawn(THREAD)
    marks[third.pid] = mark
    assert owns(third, fd)
    assert process.execs == {thread.pid}
    assert process.mm is before
    marks[third.pid] = b"new"
    assert not owns(third, fd)
    assert not process.execs


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


# -- changes that take effect after their answer -------------------------------------------------------


def test_a_number_that_is_changing_is_not_cached(stage: Stage) -> None:
    """Not before the thread that changes it calls again."""
    puppet = stage.puppet
    fd = group_fd(puppet)
    thread = puppet.spawn(THREAD)
    trap(thread)
    process, processes = stage.process, stage.session.processes
    processes.begins(process, thread.pid, range(fd, fd + 1))
    assert stage.file(fd) is not None, "it has not changed yet"
    assert fd not in process.files
    assert process.free_number() == fd + 1
    puppet.must("close", fd)
    trap(puppet)
    assert process.free_number() == fd + 1, "the other thread may take it"
    trap(thread)
    assert not process.changing
    assert process.free_number() == fd
    assert group_fd(puppet) == fd
    assert fd in process.files


def test_a_change_of_a_thread_that_ended(stage: Stage) -> None:
    puppet = stage.puppet
    fd = group_fd(puppet)
    thread = puppet.spawn(THREAD)
    trap(thread)
    stage.session.processes.begins(stage.process, thread.pid, range(fd, fd + 1))
    end_thread(stage, thread)
    assert not stage.process.is_changing(fd)
    assert stage.file(fd) is not None
    assert fd in stage.process.files


def test_copies_of_other_files_in_the_range(stage: Stage) -> None:
    puppet, reserved = stage.puppet, stage.session.reserved
    null = puppet.open(b"/dev/null")
    for command in (0, 1030):  # F_DUPFD, F_DUPFD_CLOEXEC
        fd = puppet.must("fcntl", null, command, reserved.start)
        assert fd == reserved.start
        assert puppet.must("fcntl", fd, 1, 0) == (command != 0)  # F_GETFD
        assert puppet.must("fcntl", null, command, fd) == fd + 1
        assert group_fd(puppet) == fd + 2
        puppet.must("close_range", fd, fd + 2, 0)
    path = puppet.open(b"/dev/null", os.O_PATH)  # cannot be installed from outside
    assert puppet.must("fcntl", path, 0, reserved.start) == reserved.start
    assert puppet.call("fcntl", 700, 0, reserved.start) == -errno.EBADF
    assert puppet.call("fcntl", null, 0, 300) == 300


def test_a_full_table(stage: Stage) -> None:
    """The kernel gives numbers of the range to anything then: ours are taken where none of these can follow."""
    puppet, reserved = stage.puppet, stage.session.reserved
    null = puppet.open(b"/dev/null")
    while puppet.must("dup", null) < 600:
        pass
    assert group_fd(puppet) == reserved[-1]
    assert group_fd(puppet) == reserved[-2]
    while puppet.must("dup", null) < 790:
        pass
    number = group_fd(puppet)
    assert number == 791, "the lowest, by the kernel's choice"
    assert stage.file(number) is not None


def test_a_program_that_lowers_its_limit(stage: Stage) -> None:
    """``ulimit -S -n 300``: files still get numbers where each use is seen, and the limit stays."""
    puppet, reserved = stage.puppet, stage.session.reserved
    _, hard = resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE)
    lowered = (300, hard)
    resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE, lowered)
    fd = group_fd(puppet)
    assert fd == reserved.start
    assert fd in stage.process.files
    assert puppet.must("dup", fd) == fd + 1
    assert puppet.call("fcntl", fd, 0, reserved.start) == -errno.EINVAL
    assert resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE) == lowered
    thread = puppet.spawn(THREAD)
    assert group_fd(thread, OTHER) < 300, "the other thread would see another limit"
    assert resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE) == lowered


# -- descriptors of the supervisor ----------------------------------------------------------------------


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Sets how many more descriptors this process may open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        taken = {int(number) for number, _ in open_descriptors()}
        free = (number for number in range(before[0]) if number not in taken)
        limit = next(islice(free, count, None))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_descriptors_no_call_reaches_the_host(
    stage: Stage,
    few_descriptors: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    puppet = stage.puppet
    fd = group_fd(puppet)
    children = [puppet.spawn() for _ in range(2)]
    few_descriptors(4)  # the test itself needs some
    for child in children:
        assert child.call("access", b"/sys/bus/pci/devices/0000:07:00.0", 0) == -errno.ENFILE
        assert child.call("access", b"/etc/passwd", 0) == -errno.ENFILE
    assert puppet.open(OTHER) == -errno.ENFILE
    assert puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_FLAGS, puppet.buffer(8)) == 0
    assert puppet.call("ioctl", fd, rfc.VFIO_GROUP_GET_IOMMU_FD, 0) == -errno.ENFILE
    text = capsys.readouterr().err
    assert text.count("has no free descriptor") == 1
    assert "ulimit -Hn" in text
    few_descriptors(40)
    assert children[0].call("access", b"/sys/bus/pci/devices/0000:07:00.0", 0) == 0
    assert puppet.open(OTHER) >= 0


def test_memory_of_idle_processes_is_closed_first(
    stage: Stage, few_descriptors: Callable[[int], None]
) -> None:
    trap(stage.puppet)
    children = [stage.puppet.spawn() for _ in range(12)]
    few_descriptors(SPARE + 14)
    for child in children:
        trap(child)
    assert len(stage.session.processes.by_tgid) == 1 + len(children)
    for child in children:
        trap(child)


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


def test_the_limit_of_another_users_program(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """prlimit(2) is refused without CAP_SYS_RESOURCE; /proc tells it all the same."""
    trap(stage.puppet)
    process = stage.process
    _, hard = resource.prlimit(process.tgid, resource.RLIMIT_MEMLOCK)
    resource.prlimit(process.tgid, resource.RLIMIT_MEMLOCK, (64 << 10, hard))

    def refuse(*_: object) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(resource, "prlimit", refuse)
    monkeypatch.setattr(Process, "_may_lock", lambda self: False)
    assert process.memlock_limit() == 64 << 10
    monkeypatch.setattr(Process, "_may_lock", lambda self: True)
    assert process.memlock_limit() is None


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


@pytest.mark.parametrize("how", ["mlock", "mlock2", "mlockall", "mmap"])
def test_what_is_locked_is_read_of_programs_that_lock(stage: Stage, how: str) -> None:
    """A program that never calls mlock has locked nothing; an exec unlocks everything."""
    puppet = stage.puppet
    at = puppet.pages(2)
    trap(puppet)
    memory = stage.process.memory
    assert not stage.process.locks
    assert memory.mlocked() == 0
    if how == "mmap":
        locked, anonymous, private = 0x2000, 0x20, 0x02
        puppet.must("mmap", 0, PAGE, 3, private | anonymous | locked, (1 << 64) - 1, 0)
    elif how == "mlockall":
        assert puppet.call(how, 1) in (0, -errno.ENOMEM, -errno.EPERM)
    else:
        puppet.must(how, at, PAGE, 0)
    assert stage.process.locks
    if how != "mlockall":
        assert memory.mlocked() == PAGE
    assert puppet.execute(b"/nonexistent") == -errno.ENOENT
    trap(puppet)
    assert stage.process.locks
    assert puppet.execute() == 0
    trap(puppet)
    assert not stage.process.locks


def test_the_working_folder_of_threads_is_not_remembered(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that one of them has begun may take effect at any time."""
    alone = stage.process.cwd
    asked: list[str] = []

    def readlink(path: str) -> str:
        asked.append(path)
        return alone

    monkeypatch.setattr(os, "readlink", readlink)
    assert stage.process.cwd == stage.process.cwd == alone
    assert asked == []
    thread = stage.puppet.spawn(THREAD)
    trap(thread)
    stage.process.forget_cwd()
    assert stage.process.cwd == stage.process.cwd == alone
    assert len(asked) == 2


def test_a_folder_of_the_machine_is_inherited(stage: Stage) -> None:
    puppet = stage.puppet
    puppet.must("chdir", b"/sys/bus/pci/devices")
    child = puppet.spawn()
    trap(child)
    devices = stage.session.tree.root + "/sys/bus/pci/devices"
    assert known(stage, child).cwd == devices
    assert child.execute() == 0
    trap(child)
    assert known(stage, child).cwd == devices
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
    monkeypatch.setattr("uvfio.doors.run.session.programs.process.PAGES_KEPT", 3)
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
