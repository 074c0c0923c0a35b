"""Start the program under the filter, and end the way it ends.

Theory of operation
-------------------
Three processes::

    supervisor P   what the user started; holds the listener and answers
      guard G      forked by P: subreaper, parent of the program, second holder of the listener (guard.py)
        program C  forked by G: restores signals, installs the filter, sends the listener to P and G, execs

C's execve is notified already, so ``launch`` returns while C waits for its first answer.

Signals. C gets the dispositions and the mask that uvfio was started with; of SIGPIPE and SIGXFSZ, which
the interpreter ignores before any Python code runs, it cannot be known what they were: they are set to
their default. P blocks what a user or a terminal sends to a program (``FORWARDED``, SIGTSTP) in all its
threads, and one thread takes these signals with sigwaitinfo and hands them to G, which passes on to C what
C did not receive itself. The thread exists because P sits in an ioctl without a time-out.

The end. G exits when it has no descendant left, and P gets POLLHUP of the listener. Before Linux 6.11 a
receiving ioctl sleeps through that (commit "seccomp: interrupt SECCOMP_IOCTL_NOTIF_RECV when all users have
exited"). A signal alone does not end it either, as fcntl.ioctl repeats interrupted calls since Python 3.14.
So, when G has exited and P's main thread still sleeps in RECV, the thread sends it a signal whose handler
raises InterruptedError, which then comes out of that very call. For a supervisor: on EINTR and on ENOENT
ask ``ended``.

Invariants: every descriptor of uvfio is CLOEXEC; both forks happen before any thread exists; once
``launch`` has returned, either ``wait`` or ``kill`` and ``wait`` reap everything.

What this does not do: answer notifications. Processes that P forks later inherit the mask: they should set
``Launched.mask`` first.
"""

from __future__ import annotations

import _socket
import _thread
import errno
import fcntl
import os
import select
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.launch.guard import (
    EXIT_FAILED,
    SIGNAL,
    WAIT_STATUS,
    Guard,
    kill_descendants,
    receive_descriptors,
)
from uvfio.doors.run.linux import syscalls
from uvfio.doors.run.linux.output import say
from uvfio.errors import VfioError
from uvfio.uapi.seccomp import SECCOMP_IOCTL_NOTIF_RECV, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

__all__ = ["FORWARDED", "LaunchError", "Launched", "finish", "kill_descendants", "launch"]

MINIMUM_KERNEL: Final = (5, 19)
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
PTRACE_HINT: Final = "in a container: --cap-add SYS_PTRACE; else /proc/sys/kernel/yama/ptrace_scope must be 1 or less"

FORWARDED: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTERM,
        signal.SIGCONT,
        signal.SIGWINCH,
        signal.SIGPWR,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
# SIGTSTP is blocked and never taken: the guard stops this process when the program has stopped. Passing it
# on could stop the program again after the SIGCONT that followed.
_BLOCKED: Final = FORWARDED | {signal.SIGTSTP, signal.SIGCHLD}
INTERRUPT: Final = signal.SIGURG  # ignored by default: harmless wherever it arrives
_INTERPRETER_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)

# C to P: kind, pid or errno. "L" comes with the listener and a pidfd, the others are failures.
_MESSAGE: Final = struct.Struct("<ci")
_LISTENER, _NO_FORK, _NO_FILTER, _NO_EXEC = b"L", b"F", b"S", b"X"


class LaunchError(VfioError):
    """The program cannot be started under a supervisor on this machine or in this place."""

    default_errno = errno.ENOTSUP


class Launched:
    """A program that runs under the filter.

    ``listener`` is the descriptor to answer, ``pid`` the program, ``pidfd`` the same for good, ``guard``
    the pid of the guard, ``mask`` the signal mask that uvfio was started with, ``status_fd`` becomes
    readable when the program itself ended (its children may still run).
    """

    __slots__ = (
        "_commands",
        "_name",
        "_news",
        "_poller",
        "_waiting",
        "_waking",
        "guard",
        "listener",
        "mask",
        "pid",
        "pidfd",
        "status_fd",
    )

    def __init__(
        self,
        name: str,
        *,
        listener: int,
        pid: int,
        pidfd: int,
        guard: int,
        status_fd: int,
        commands: int,
        news: _socket.socket,
        mask: set[signal.Signals | int],
    ) -> None:
        self._name = name
        self.listener = listener
        self.pid = pid
        self.pidfd = pidfd
        self.guard = guard
        self.status_fd = status_fd
        self.mask = mask
        self._commands = commands
        self._news = news
        self._waiting = False
        self._waking = False
        self._poller = select.poll()
        self._poller.register(listener, 0)  # POLLHUP is always reported

    def ended(self) -> bool:
        """Whether every process under the filter has ended (POLLHUP of the listener)."""
        return bool(self._poller.poll(0))

    def wait(self) -> int:
        """The program's wait status, once everything below the guard has ended; reaps the guard.

        To be called when ``ended`` returns True, since no notification is answered meanwhile. If the program
        could not be executed, writes the reason in one line to stderr; the status is that of exit code 126 or 127.
        """
        self._waiting = True
        record = b""
        while chunk := os.read(self.status_fd, WAIT_STATUS.size):
            record += chunk
        try:
            os.waitpid(self.guard, 0)
        except ChildProcessError:
            pass  # another waitpid(-1) in this process was quicker
        if record:
            status: int = WAIT_STATUS.unpack(record)[0]
        else:
            # The guard was killed. This process is a subreaper, the program became its child.
            try:
                status = os.waitpid(self.pid, 0)[1]
            except ChildProcessError:
                status = EXIT_FAILED << 8
        message = self._news.recv(_MESSAGE.size)
        if message:
            number = _MESSAGE.unpack(message)[1]
            hint = exec_hint(self._name, number)
            say(
                f"uvfio: cannot run {self._name}: {os.strerror(number)}\n"
                + (f"hint: {hint}\n" if hint else "")
            )
        # The others stay open for the rest of this process: the thread may be about to use them.
        os.close(self.listener)
        os.close(self.status_fd)
        self._news.close()
        return status

    def kill(self) -> None:
        """SIGKILL the program and all its descendants; ``wait`` afterwards."""
        try:
            guard = os.pidfd_open(self.guard)
            watch = select.poll()
            watch.register(guard, select.POLLIN)
            try:
                signal.pidfd_send_signal(guard, signal.SIGCONT)
                while not watch.poll(0):
                    kill_descendants(self.guard)
                    watch.poll(
                        50
                    )  # it exits when it has reaped them; if not, a descendant was missed
            finally:
                os.close(guard)
        except ProcessLookupError:
            pass
        try:
            # Nothing to do, unless the guard was killed before.
            signal.pidfd_send_signal(self.pidfd, signal.SIGSTOP)
            kill_descendants(self.pid)
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _take_signals(self, main: int) -> None:
        """The thread: hand signals to the guard until it exits, then wake a main thread that sleeps on."""
        awaited = FORWARDED | {signal.SIGCHLD}
        listener = select.poll()
        listener.register(self.listener, 0)
        ended = False
        while not self._waiting:
            taken = signal.sigtimedwait(awaited, 0.02) if ended else signal.sigwaitinfo(awaited)
            if taken is None:
                # No call can arrive any more, so a thread that sleeps in RECV does so until the signal.
                if (
                    any(event & select.POLLHUP for _, event in listener.poll(0))
                    and _sleeps_in_recv()
                ):
                    self._waking = True
                    signal.pthread_kill(main, INTERRUPT)
            elif taken.si_signo == signal.SIGCHLD:
                ended = ended or self._guard_ended()
            elif (
                taken.si_pid != self.guard
            ):  # its SIGCONT reports that the program goes on, and is not for it
                self._forward(taken.si_signo)

    def _wake(self, number: int, frame: object) -> None:
        """Handler of ``INTERRUPT``; any process of the user can send that."""
        if self._waking:
            self._waking = False
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    def _guard_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.guard, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _forward(self, number: int) -> None:
        try:
            os.write(self._commands, SIGNAL.pack(number, time.monotonic_ns()))
        except OSError:
            try:
                signal.pidfd_send_signal(self.pidfd, number)  # the guard has gone
            except OSError:
                pass  # it has ended


def launch(
    argv: Sequence[str],
    env: Mapping[str, str],
    filter: bytes,  # noqa: A002
    *,
    cleanup: Callable[[], None] | None = None,
) -> Launched:
    """Start ``argv`` under ``filter`` (``filter.build.build_filter``); returns while its execve waits for an answer.

    To be called once, from the main thread of a process that has no other. ``cleanup`` runs in the guard,
    and only if this process dies before the program's end; it must not rely on open descriptors.
    Descriptors from 3 up without CLOEXEC were inherited for the program: they are closed here, as otherwise
    a pipe that the program closes would stay open.

    Raises LaunchError, with nothing left running, if the kernel is too old or not x86-64, if another
    listener is in force, or if this process may not reach the program's memory and descriptors.
    """
    _refuse_kernel()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or the buffers are written by each process
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    own_pidfd = os.pidfd_open(os.getpid())
    news, to_supervisor = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    status_fd, report = os.pipe()
    commands_read, commands = os.pipe()
    supervisor_pid = os.getpid()
    guard = os.fork()
    if guard == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            inbox, to_guard = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            try:
                program = os.fork()
            except OSError as error:
                to_supervisor.send(_MESSAGE.pack(_NO_FORK, error.errno or 0))
                os._exit(EXIT_FAILED)
            if program == 0:
                _run_program(argv, env, filter, mask, (to_supervisor, to_guard))
            Guard(
                program=program,
                supervisor=own_pidfd,
                supervisor_pid=supervisor_pid,
                inbox=inbox,
                report=report,
                commands=commands_read,
                cleanup=cleanup,
            ).run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(EXIT_FAILED)
    to_supervisor.close()
    for fd in (own_pidfd, report, commands_read):
        os.close(fd)
    message, descriptors = receive_descriptors(news, _MESSAGE.size, 2)
    if len(descriptors) != 2:
        os.waitpid(guard, 0)
        for fd in (status_fd, commands):
            os.close(fd)
        news.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise _failure(message)
    launched = Launched(
        argv[0],
        listener=descriptors[0],
        pid=_MESSAGE.unpack(message)[1],
        pidfd=descriptors[1],
        guard=guard,
        status_fd=status_fd,
        commands=commands,
        news=news,
        mask=mask,
    )
    refusal = _refusal(launched)
    if refusal is not None:
        launched.kill()
        launched.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise refusal
    syscalls.set_sync_wake_up(launched.listener)
    _close_inherited()
    signal.signal(INTERRUPT, launched._wake)
    _thread.start_new_thread(launched._take_signals, (_thread.get_ident(),))
    return launched


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
            stream.flush()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if number not in {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _sleeps_in_recv() -> bool:
    """Whether the main thread sleeps in SECCOMP_IOCTL_NOTIF_RECV (proc(5): /proc/PID/task/TID/syscall)."""
    with open(f"/proc/self/task/{os.getpid()}/syscall", encoding="ascii") as file:
        fields = file.read().split()  # number and arguments, or "running"
    return fields[0] == str(X86_64["ioctl"]) and int(fields[2], 16) == SECCOMP_IOCTL_NOTIF_RECV


def _refuse_kernel() -> None:
    uname = os.uname()
    if sys.maxsize < 1 << 32 or uname.machine not in {"x86_64", "i686"}:  # i686: setarch
        raise LaunchError(f"this machine is {uname.machine}; programs can be run on x86-64 only")
    release = syscalls.kernel_release()
    if (0, 0) < release < MINIMUM_KERNEL:
        raise LaunchError(
            f"this is Linux {uname.release}; running programs needs 5.19 or later",
            "older kernels repeat a system call whenever a signal arrives",
        )


def _failure(message: bytes) -> LaunchError:
    """Why no listener came."""
    if not message:
        return LaunchError("the program's process ended before it could be supervised")
    kind, number = _MESSAGE.unpack(message)
    text = os.strerror(number)
    if kind == _NO_FORK:
        return LaunchError(f"no process could be made: {text}", errno=number)
    if number == errno.EBUSY:
        return LaunchError(
            "another supervisor listens to this process's system calls already",
            "uvfio run cannot run inside uvfio run, nor inside a container runtime that uses seccomp"
            " notification",
            errno=number,
        )
    if number in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return LaunchError(
            f"the kernel does not offer seccomp user notification ({text})",
            "it needs Linux 5.19 with CONFIG_SECCOMP_FILTER",
            errno=number,
        )
    return LaunchError(
        f"the filter was refused: {text}", "`uvfio check` tries each step by itself", errno=number
    )


def _refusal(launched: Launched) -> LaunchError | None:
    """Try what the supervisor will do all the time: memory and descriptors of the program."""
    try:
        syscalls.pidfd_getfd(launched.pidfd, 0x7FFFFFFF)
    except OSError as error:
        # EBADF: allowed, but there is no such descriptor. ESRCH: a signal ended the program already.
        if error.errno not in {errno.EBADF, errno.ESRCH}:
            return LaunchError(
                f"descriptors of the program are out of reach ({error.strerror})",
                PTRACE_HINT,
                errno=error.errno,
            )
    try:
        os.close(os.open(f"/proc/{launched.pid}/mem", os.O_RDWR | os.O_CLOEXEC))
    except (FileNotFoundError, ProcessLookupError):
        pass
    except OSError as error:
        if not _has_memory(launched.pid):
            return None  # it could not be executed and has just ended; its message comes next
        return LaunchError(
            f"memory of the program is out of reach (/proc/{launched.pid}/mem: {error.strerror})",
            PTRACE_HINT,
            errno=error.errno,
        )
    return None


def _close_inherited() -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                os.close(fd)
        except OSError:
            continue  # the directory's own


def _has_memory(pid: int) -> bool:
    """Whether the process exists and still has an address space; after that only root may inspect it."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return b"VmSize:" in file.read()
    except OSError:
        return False


def exec_hint(name: str, number: int) -> str:
    """What may help when executing ``name`` has failed with errno ``number``; empty for nothing."""
    if not os.path.isfile(name):
        return ""
    if name.endswith(".py"):
        return f"a Python program is run by Python: uvfio run python3 {name}"
    if number == errno.EACCES and not os.access(name, os.X_OK):
        return f"it is not executable: chmod +x {name}"
    if number == errno.ENOENT:
        if "/" not in name:
            return f"the current folder is not searched for programs: ./{name}"
        return "what is not there is the interpreter that the file names"
    return ""


def _run_program(
    argv: Sequence[str],
    env: Mapping[str, str],
    filter: bytes,  # noqa: A002
    mask: set[signal.Signals | int],
    sockets: tuple[_socket.socket, _socket.socket],
) -> NoReturn:
    """In C: become the program, or send the reason to P and exit."""
    try:
        for number in signal.valid_signals():
            if number in _INTERPRETER_IGNORES or callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        pidfd = os.pidfd_open(os.getpid())
        listener = syscalls.seccomp(filter)
    except OSError as error:
        sockets[0].send(_MESSAGE.pack(_NO_FILTER, error.errno or 0))
        os._exit(EXIT_FAILED)
    # From here on opening a file waits for the supervisor.
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("ii", listener, pidfd))
    for socket in reversed(sockets):  # the guard first: it must have it when the supervisor begins
        socket.sendmsg([_MESSAGE.pack(_LISTENER, os.getpid())], [rights])
    os.close(listener)
    try:
        _execvpe(argv, env)
    except OSError as error:
        sockets[0].send(_MESSAGE.pack(_NO_EXEC, error.errno or 0))
        os._exit(EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_EXECUTABLE)


def _execvpe(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """execvp(3) with an environment, whose PATH counts; raises the OSError that matters."""
    file = argv[0]
    if "/" in file:
        candidates = [file]
    elif file:
        candidates = [
            os.path.join(directory, file)
            for directory in env.get("PATH", "/bin:/usr/bin").split(":")
        ]
    else:
        candidates = []
    failure: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for candidate in candidates:
        try:
            os.execve(candidate, list(argv), env)
        except (FileNotFoundError, NotADirectoryError) as error:
            if "/" in file:
                failure = error
        except PermissionError as error:
            failure = error  # told only if no later directory has it
        except OSError as error:
            if error.errno != errno.ENOEXEC or candidate.endswith(".py"):
                raise
            os.execve("/bin/sh", ["/bin/sh", candidate, *argv[1:]], env)  # a script without #!
    raise failure
