"""The guard: parent of the program, and the one that ends it when the supervisor is gone.

When the last descriptor of a listener is closed, every notified call of the program fails with ENOSYS,
each ``open`` included: it would run on in a broken world. So a process that does nothing else holds a
second descriptor. If the supervisor dies, the program blocks, the guard reports it, kills every
descendant and exits with 125.

Theory of operation
-------------------
The guard is a child of the supervisor and a subreaper: the program is its child, and whatever the program
leaves behind becomes its child. It sleeps in poll until one of three things happens:

- a child changed: it reports the program's wait status to the supervisor through a pipe, stops the
  front (``launch/front.py``) when the program stops and continues it when the program goes on (the shell that waits for
  the front sees a stopped job, as it would without uvfio; the supervisor serves the other processes), and
  reaps. With ``kill_with_program`` it kills every descendant when the program has ended. No child left: it exits;
- the front passes on a signal that it received. A signal for a whole process group
  (Ctrl-C, ``kill -TERM -PGID``) reached the program already; it reached the guard too, which has all
  signals blocked, and so can detect that: a signal that is pending here is not passed on. (Signals of one number do not
  queue, so two for the group within the time that this takes, some 100 us, may come as three.) SIGCONT
  is passed on if the program had stopped before, and not if it has stopped since. ``KILL_ALL`` in place of a number:
  it kills every descendant;
- the supervisor's pidfd is readable: it died.

Invariants: the guard never uses the listener; it holds no descriptor but its own few, so that a reader of
a pipe that the program closes sees its end; nothing but SIGKILL and SIGSTOP acts on it; only it reaps the
program, so that no signal can be sent to a recycled pid.
"""

from __future__ import annotations

import _socket
import os
import select
import signal
import struct
import time
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.launch.front import EXIT_FAILED, KILL_ALL, QUIET, SIGNAL, keep_only
from uvfio.doors.run.linux import syscalls
from uvfio.doors.run.linux.output import forget, say

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from uvfio.doors.run.launch.front import Front

__all__ = ["EXIT_FAILED", "Guard", "kill_descendants", "receive_descriptors"]

WAIT_STATUS: Final = struct.Struct("<i")


def receive_descriptors(socket: _socket.socket, size: int, count: int) -> tuple[bytes, list[int]]:
    """One message of up to ``size`` bytes and ``count`` descriptors (CLOEXEC); (b"", []) at the end."""
    descriptor = struct.Struct("i")
    data, ancillary, _, _ = socket.recvmsg(
        size, _socket.CMSG_SPACE(count * descriptor.size), _socket.MSG_CMSG_CLOEXEC
    )
    numbers: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            whole = len(payload) - len(payload) % descriptor.size
            numbers += [number for (number,) in descriptor.iter_unpack(payload[:whole])]
    return data, numbers


def _descendants(pid: int) -> list[int]:
    """Every process below ``pid`` that one scan of /proc finds, zombies included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # the name may hold anything
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    parents = [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found += below
        parents += below
    return found


def kill_descendants(pid: int) -> None:
    """SIGKILL every descendant of ``pid`` and wait until each has died; ``pid`` itself is spared.

    Reaps nothing. Scans again until none is found alive, since processes that are about to be killed
    can fork. One that is orphaned while /proc is being read can be missed: it turns up as a child of the
    subreaper above it, so a caller who must be sure repeats this until that one has no children left.
    """
    while True:
        poller = select.poll()
        alive = []
        for descendant in _descendants(pid):
            try:
                pidfd = os.pidfd_open(descendant)
            except OSError:
                continue
            poller.register(pidfd, select.POLLIN)
            alive.append(pidfd)
        try:
            for ended, _ in poller.poll(0):  # readable: dead, be it a zombie or not
                poller.unregister(ended)
                alive.remove(ended)
                os.close(ended)
            if not alive:
                return
            for pidfd in list(alive):
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # about to become readable
                except PermissionError:
                    poller.unregister(pidfd)
                    alive.remove(pidfd)
                    os.close(pidfd)
            waiting = len(alive)
            if not waiting:
                return
            while waiting:
                for ended, _ in poller.poll():
                    poller.unregister(ended)
                    waiting -= 1
        finally:
            for pidfd in alive:
                os.close(pidfd)


class Guard:
    """The guard process. Made in it, after it forked the program; ``run`` never returns."""

    __slots__ = (
        "_cleanup",
        "_commands",
        "_ended",
        "_front",
        "_inbox",
        "_kill_with_program",
        "_program",
        "_quiet",
        "_report",
        "_stopped_at",
        "_supervisor",
        "_supervisor_pid",
    )

    def __init__(
        self,
        *,
        program: int,
        supervisor: int,
        supervisor_pid: int,
        inbox: _socket.socket,
        report: int,
        front: Front,
        kill_with_program: bool,
        cleanup: Callable[[], None] | None,
    ) -> None:
        """``supervisor`` is its pidfd; the listener arrives in ``inbox``."""
        self._program = program
        self._supervisor = supervisor
        self._supervisor_pid = supervisor_pid
        self._inbox = inbox
        self._report = report
        self._front = front
        self._commands = front.commands
        self._kill_with_program = kill_with_program
        self._quiet = False
        self._cleanup = cleanup
        self._ended = False
        self._stopped_at: int | None = None

    def run(self) -> NoReturn:
        """Watch until no child is left."""
        every = set(signal.valid_signals())
        signal.pthread_sigmask(signal.SIG_SETMASK, every)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        syscalls.prctl(syscalls.PR_SET_NAME, b"uvfio-guard")
        keep_only(
            {
                2,
                self._supervisor,
                self._inbox.fileno(),
                self._report,
                self._commands,
                self._front.pidfd,
                self._front.guard,
                wake_read,
                wake_write,
            }
        )
        forget()
        os.write(self._front.guard, os.getpid().to_bytes(4, "little"))
        # Nothing but its lifetime matters: the listener stays open until this process ends. Without one
        # the program failed before its filter was in force, and there is nothing to hold.
        receive_descriptors(self._inbox, 64, 2)
        # Not earlier: a handler would interrupt the calls above. A child that changed is reaped below.
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, every - {signal.SIGCHLD})
        poller = select.poll()
        for fd in (self._supervisor, self._commands, wake_read):
            poller.register(fd, select.POLLIN)
        while self._reap():
            for fd, _ in poller.poll():
                if fd == self._supervisor:
                    self._end_program()
                elif fd == wake_read:
                    os.read(wake_read, 4096)
                elif not self._pass_signals_on():
                    poller.unregister(self._commands)
        poller = select.poll()
        for fd in (self._supervisor, self._front.pidfd):
            poller.register(fd, select.POLLIN)
        if poller.poll(0):  # the program ended while they died; the kernel kills the other one
            poller.unregister(self._front.pidfd)
            poller.poll()
            if self._cleanup is not None:
                self._cleanup()
        os._exit(0)

    def _reap(self) -> bool:
        """Take note of every child that changed; False if there is no child left."""
        options = os.WNOHANG | os.WUNTRACED | os.WCONTINUED
        try:
            while (change := os.waitpid(-1, options)) != (0, 0):
                pid, status = change
                if pid == self._program:
                    self._program_changed(status)
        except ChildProcessError:
            return False
        return True

    def _program_changed(self, status: int) -> None:
        try:
            self._stopped_at = time.monotonic_ns() if os.WIFSTOPPED(status) else None
            if os.WIFSTOPPED(status):
                signal.pidfd_send_signal(self._front.pidfd, signal.SIGSTOP)
            elif os.WIFCONTINUED(status):
                signal.pidfd_send_signal(self._front.pidfd, signal.SIGCONT)
            else:
                self._ended = True
                signal.pidfd_send_signal(
                    self._front.pidfd, signal.SIGCONT
                )  # if it was stopped by hand
                os.write(self._report, WAIT_STATUS.pack(status))
        except (ProcessLookupError, BrokenPipeError):
            pass  # the supervisor died; its pidfd is readable and ends this loop
        if self._ended and self._kill_with_program:
            kill_descendants(os.getpid())

    def _pass_signals_on(self) -> bool:
        """Judge signals that the supervisor received; False at the end of the pipe."""
        commands = os.read(self._commands, 256 * SIGNAL.size)
        for number, when in SIGNAL.iter_unpack(commands):
            if number == QUIET:
                self._quiet = True
                continue
            if number == KILL_ALL:
                kill_descendants(os.getpid())
                continue
            received = signal.sigtimedwait({number}, 0) is not None
            self._reap()
            if self._ended:
                continue
            if number == signal.SIGCONT:
                received = self._stopped_at is None or self._stopped_at > when
            if not received or os.getpgid(self._program) != os.getpgrp():
                os.kill(self._program, number)
        return bool(commands)

    def _end_program(self) -> NoReturn:
        poller = select.poll()
        for fd in (self._commands, self._front.pidfd):
            poller.register(fd, select.POLLIN)
        ready = [fd for fd, event in poller.poll(0) if event & select.POLLIN]
        if self._commands in ready:
            self._pass_signals_on()
        if self._reap():
            died = self._front.pid if self._front.pidfd in ready else self._supervisor_pid
            if not self._quiet:
                say(f"uvfio: the supervisor (pid {died}) died; ending the program\n")
            while self._reap():
                kill_descendants(os.getpid())
        if self._cleanup is not None:
            self._cleanup()
        os._exit(EXIT_FAILED)
