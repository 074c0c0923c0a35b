"""The front: the process that the user started. It waits, passes signals on, and ends as the run ends.

Whoever waits for ``uvfio run`` must see it stop when the program stops, while the supervisor has to go on serving the
other processes of the run. So these are two processes: ``split`` forks, and returns in the child, the supervisor.

Theory of operation
-------------------
All signals are blocked in the front, which takes one after the other with sigwaitinfo:

    SIGCHLD                        the supervisor ended: end the same way
    SIGCONT from the guard         the program goes on, and so does the front, which the guard had stopped
    SIGTSTP, SIGTTIN, SIGTTOU      not taken: the guard stops the front if the program stops
    any other                      to the guard, which passes on to the program what that did not receive itself

The supervisor ignores all signals but SIGCHLD and ``INTERRUPT``: what a terminal, a shell or a timer sends to the
process group does not end it. It gets SIGKILL when the front dies, and the guard then ends the program.

    the program is stopped by      front (what the shell waits for)    supervisor
    SIGSTOP, SIGTSTP, terminal     stopped by the guard                serves the other processes
    then SIGCONT to the program    continued by the guard              serves
    then SIGCONT to the front      passes it on to the program         serves
    SIGSTOP to the front alone     stopped; the program is not         serves

Hooks without an end. A signal that asks for the end (``ENDING``) is also told to the supervisor's second thread, which
looks at what the main thread is doing, prints it and answers:

    IDLE      between two calls, or in one that ended within ``GRACE``: nothing is said
    BUSY      in a hook, which was printed now for the first time
    STUCK     in the hook that was printed before: the front ends the run
    silence   for ``ANSWER`` seconds: a hook in C holds the interpreter's lock. The first time its stack is printed by a
              signal handler of ``faulthandler``; the second time the front ends the run

To end the run it kills the supervisor; the guard kills the program and all its descendants and removes the folder; the
status is 125. ``--timeout``: the guard kills the descendants; the run ends by itself, with status 124. If a hook keeps
it from that, it is killed as above.

Invariants: the front never uses a descriptor of the run; when it exits the guard has exited, so nothing of the run is
left.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.linux import syscalls
from uvfio.doors.run.linux.output import forget, say

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = [
    "ASK",
    "BUSY",
    "ENDING",
    "EXIT_FAILED",
    "EXIT_TIMEOUT",
    "IDLE",
    "INTERRUPT",
    "STUCK",
    "Front",
    "finish",
    "keep_only",
    "split",
]

EXIT_FAILED: Final = 125  # uvfio itself failed
EXIT_TIMEOUT: Final = 124  # as timeout(1)
SIGNAL: Final = struct.Struct("<Bq")  # number, time.monotonic_ns() of its arrival
KILL_ALL, QUIET = (
    0,
    255,
)  # in place of a number: kill the descendants; do not report that the supervisor died
ASK, IDLE, BUSY, STUCK = b"\0", b"i", b"b", b"s"  # ASK, or the number of a signal for the program
GRACE: Final = 0.3  # seconds in which a call ends that is no hook without an end
ANSWER: Final = 2.0
RELEASE: Final = 10.0  # seconds for what follows the end of the programs

INTERRUPT: Final = signal.SIGURG  # ignored by default: harmless wherever it arrives
DUMP: Final = signal.SIGSTKFLT  # unused by Linux
ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP})
_STOPS: Final = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_KEPT: Final = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, INTERRUPT, DUMP}


class Front:
    """What the supervisor and the guard need of the front; ``mask`` and ``handlers`` are as uvfio was started."""

    __slots__ = ("acks", "commands", "guard", "handlers", "mask", "pid", "pidfd", "relay")

    def __init__(self, mask: set[signal.Signals | int]) -> None:
        self.mask = mask
        self.handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.pid = os.getpid()
        self.pidfd = os.pidfd_open(self.pid)
        self.commands = self.relay = self.acks = self.guard = -1


def split(timeout: float | None = None) -> Front:
    """Fork. Returns in the child, which becomes the supervisor; this process waits and ends as the child ends.

    ``timeout`` in seconds ends the run (None: no limit). To be called from the only thread of a process.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()  # or the buffers are written by each process
            except OSError:
                continue
    every = set(signal.valid_signals())
    front = Front(signal.pthread_sigmask(signal.SIG_SETMASK, every))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the caller, children leave no status
    front.commands, commands = os.pipe()
    front.relay, relay = os.pipe()
    acks, front.acks = os.pipe()
    guard, front.guard = os.pipe()
    child = os.fork()
    if child:
        for fd in (commands, relay, guard):
            os.set_blocking(fd, False)
        try:
            _Waiting(child, commands, relay, acks, guard, timeout).run()
        finally:
            os._exit(EXIT_FAILED)
    for fd in (commands, relay, acks, guard):
        os.close(fd)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != front.pid:
        os._exit(EXIT_FAILED)
    for number in every - _KEPT:
        signal.signal(number, signal.SIG_IGN)
    if sys.stderr is not None:
        import faulthandler

        try:
            faulthandler.register(DUMP, all_threads=False)
        except (OSError, ValueError, AttributeError):
            signal.signal(DUMP, signal.SIG_IGN)  # stderr has no descriptor
    else:
        signal.signal(DUMP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    return front


class _Waiting:
    """The front itself."""

    def __init__(
        self, child: int, commands: int, relay: int, acks: int, guard: int, timeout: float | None
    ) -> None:
        self._child = child
        self._commands = commands
        self._relay = relay
        self._acks = acks
        self._guard = guard
        self._guard_pid = 0
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timed_out = False
        self._silent = False

    def run(self) -> NoReturn:
        forget()
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        keep_only({0, 1, 2, self._commands, self._relay, self._acks, self._guard})
        awaited = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, *_STOPS}
        while True:
            self._reap()
            if self._deadline is None:
                taken: signal.struct_siginfo | None = signal.sigwaitinfo(awaited)
            else:
                left = min(max(self._deadline - time.monotonic(), 0), 86400.0)
                taken = signal.sigtimedwait(awaited, left)
            if taken is None:
                if self._deadline is not None and self._deadline <= time.monotonic():
                    self._time_is_up()
            elif taken.si_signo != signal.SIGCHLD:
                self._pass_on(taken.si_signo, taken.si_pid)

    def _reap(self) -> None:
        """End if the supervisor has ended."""
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if pid:
            self._await_guard()
            if self._timed_out:
                os._exit(EXIT_TIMEOUT)
            if os.WIFSIGNALED(status):
                finish(status)
            os._exit(os.waitstatus_to_exitcode(status))

    def _await_guard(self) -> None:
        """The guard holds the other end of the pipe until its end; an orphan by then, it is a child of the front."""
        os.set_blocking(self._guard, True)
        while os.read(self._guard, 64):
            pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _pass_on(self, number: int, sender: int) -> None:
        if number == signal.SIGCONT and sender and sender == self._pid_of_guard():
            return
        if number == signal.SIGPIPE and sender == os.getpid():
            return  # of a write of this process
        self._command(number)
        if number in ENDING and self._is_stuck():
            self._end(EXIT_FAILED)

    def _pid_of_guard(self) -> int:
        if not self._guard_pid:
            try:
                self._guard_pid = int.from_bytes(os.read(self._guard, 4), "little")
            except BlockingIOError:
                return -1  # it has not started
        return self._guard_pid

    def _command(self, number: int) -> None:
        try:
            os.write(self._commands, SIGNAL.pack(number, time.monotonic_ns()))
        except BlockingIOError:
            pass  # thousands are on the way
        except BrokenPipeError:  # the guard was killed; the supervisor has the program
            if KILL_ALL < number < QUIET:
                try:
                    os.write(self._relay, bytes([number]))
                except (BlockingIOError, BrokenPipeError):
                    pass

    def _is_stuck(self) -> bool:
        """Ask the supervisor; True if the user was told before what keeps it from ending."""
        answer = self._ask()
        if answer:
            return answer == STUCK
        if self._silent:
            return True
        self._silent = True
        say(
            "uvfio: the supervisor does not answer: a hook in C, or a model's start, does not end; this is where:\n"
        )
        self._kill(DUMP)
        say("hint: one more signal ends the run\n")
        return False

    def _ask(self) -> bytes:
        """The answer of the supervisor's thread; empty if there is none in time."""
        poller = select.poll()
        poller.register(self._acks, select.POLLIN)
        try:
            while poller.poll(0) and os.read(self._acks, 64):
                pass  # late ones
            os.write(self._relay, ASK)
        except (BlockingIOError, BrokenPipeError):
            return b"" if not self._ended() else IDLE
        if not poller.poll(ANSWER * 1000):
            return b""
        return os.read(self._acks, 1) or IDLE  # it has just ended

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill(self, number: int) -> None:
        try:
            os.kill(self._child, number)
        except ProcessLookupError:
            pass  # not reaped yet, so it cannot be another process

    def _time_is_up(self) -> None:
        if not self._timed_out:
            self._timed_out = True
            say(f"uvfio: the run took longer than {self._timeout:g} s (--timeout); ending it\n")
            answer = self._ask()
            if answer == IDLE:
                self._command(KILL_ALL)
                self._deadline = time.monotonic() + RELEASE
                return
            if not answer:
                self._kill(DUMP)
                self._silent = True
        self._end(EXIT_TIMEOUT)

    def _end(self, status: int) -> NoReturn:
        """Kill the supervisor, let the guard end everything else, exit with ``status``."""
        if status == EXIT_FAILED:
            say("uvfio: ended while a hook ran\n")
        self._command(QUIET)
        self._kill(signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._await_guard()
        os._exit(status)


def keep_only(keep: set[int]) -> None:
    """Close every descriptor that is not in ``keep``."""
    first = 0
    for fd in sorted(keep):
        if first < fd:
            syscalls.close_range(first, fd - 1)
        first = fd + 1
    syscalls.close_range(first, 0xFFFFFFFF)


def finish(status: int) -> NoReturn:
    """End this process as the program with wait status ``status`` ended, killed by a signal or not.

    A signal is raised again with its default action, so that a shell reports it as usual; there is no
    core dump of uvfio. As process 1 of a container, which signals do not kill, exits with 128 + signal.
    """
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    number = os.WTERMSIG(status)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                continue
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if number not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)
