"""Start the program under the filter, and end the way it ends.

Theory of operation
-------------------
Four processes::

    front F        what the user started; takes signals, ends as the run ends (front.py)
      supervisor P   forked by F: holds the listener and answers
        guard G        forked by P: subreaper, parent of the program, second holder of the listener (guard.py)
          program C      forked by G: restores signals, installs the filter, sends the listener to P and G, execs

C's execve is notified already, so ``launch`` returns while C waits for its first answer.

Signals. C gets the dispositions and the mask that uvfio was started with; of SIGPIPE and SIGXFSZ, which
the interpreter ignores before any Python code runs, it cannot be known what they were: they are set to
their default. P ignores what is sent to the process group; F hands it to G, which passes on to C what C did not receive
itself.

The end. G exits when it has no descendant left, and P gets POLLHUP of the listener. Before Linux 6.11 a
receiving ioctl sleeps through that (commit "seccomp: interrupt SECCOMP_IOCTL_NOTIF_RECV when all users have
exited"). A signal alone does not end it either, as fcntl.ioctl repeats interrupted calls since Python 3.14.
So, when G has exited and P's main thread still sleeps in RECV, a second thread sends it a signal whose handler
raises InterruptedError, which then comes out of that very call. For a supervisor: on EINTR and on ENOENT
ask ``ended``. The same thread answers F, which asks what the main thread is doing when a user wants the end
(``Launched.inspect``).

Invariants: every descriptor of uvfio is CLOEXEC; both forks happen before any thread exists; once
``launch`` has returned, either ``wait`` or ``kill`` and ``wait`` reap everything.

What this does not do: answer notifications. P ignores most signals, and so do processes that a model starts from it.
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

from uvfio.doors.run.launch.front import (
    ASK,
    BUSY,
    EXIT_FAILED,
    GRACE,
    IDLE,
    INTERRUPT,
    RELEASE,
    STUCK,
    Front,
    finish,
)
from uvfio.doors.run.launch.guard import (
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

__all__ = ["LaunchError", "Launched", "finish", "kill_descendants", "launch"]

MINIMUM_KERNEL: Final = (5, 19)
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
PTRACE_HINT: Final = "in a container: --cap-add SYS_PTRACE; else /proc/sys/kernel/yama/ptrace_scope must be 1 or less"

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
    the pid of the guard, ``status_fd`` becomes readable when the program itself ended (its children may still run).
    ``inspect`` is to be set by the supervisor: what the main thread is doing, and a value that is the same as long as
    it is the same call; None while it waits for calls. ``cleanup`` is what the guard does, too.
    """

    __slots__ = (
        "_front",
        "_name",
        "_news",
        "_poller",
        "_waiting",
        "_waking",
        "cleanup",
        "guard",
        "inspect",
        "listener",
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
        front: Front,
        news: _socket.socket,
        cleanup: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self.listener = listener
        self.pid = pid
        self.pidfd = pidfd
        self.guard = guard
        self.status_fd = status_fd
        self.cleanup = cleanup
        self.inspect: Callable[[], tuple[float, str] | None] = lambda: None
        self._front = front
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

    def _watch(self, main: int, guard: int) -> None:
        """The thread: answer the front; when the guard (a pidfd) has ended, wake a main thread that sleeps on."""
        poller, listener = select.poll(), select.poll()
        poller.register(self._front.relay, select.POLLIN)
        poller.register(guard, select.POLLIN)
        listener.register(self.listener, 0)
        told, ended, deadline = 0.0, False, 0.0
        while True:
            for fd, event in poller.poll(20 if ended else None):
                if fd == guard:
                    poller.unregister(guard)
                    ended, deadline = True, time.monotonic() + RELEASE
                elif event & select.POLLIN and (asked := os.read(fd, 1)):
                    if asked != ASK:
                        self._send(asked[0])
                        continue
                    answer, told = self._answer(told)
                    os.write(self._front.acks, answer)
                else:
                    poller.unregister(fd)  # the front died; the kernel kills this process now
            if not ended:
                continue
            # No call can arrive any more, so a thread that sleeps in RECV does so until the signal.
            if (
                not self._waiting
                and any(event & select.POLLHUP for _, event in listener.poll(0))
                and _sleeps_in_recv()
            ):
                self._waking = True
                signal.pthread_kill(main, INTERRUPT)
            if time.monotonic() > deadline:
                deadline += RELEASE
                answer, told = self._answer(told)
                if answer == STUCK:
                    say("uvfio: the programs have ended and the hook has not: ending the run\n")
                    os._exit(EXIT_FAILED)

    def _send(self, number: int) -> None:
        """Send a signal to the program; the guard has gone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # it has ended

    def _answer(self, told: float) -> tuple[bytes, float]:
        """What to answer to the front, and the call that was told to the user. A call that is done soon is not told."""
        busy = self.inspect()
        if busy is None:
            return IDLE, told
        since, limit = busy[0], time.monotonic() + GRACE
        while since != told and time.monotonic() < limit:
            time.sleep(0.01)
            busy = self.inspect()
            if busy is None or busy[0] != since:
                return IDLE, told
        seconds = time.monotonic() - since
        if since == told:
            say(f"uvfio: {busy[1]} did not end in {seconds:.1f} s\n")
            if self.cleanup is not None and self._guard_ended():
                self.cleanup()
            return STUCK, told
        say(
            f"uvfio: {busy[1]} has been running for {seconds:.1f} s\n"
            "hint: nothing is answered meanwhile; one more signal ends the run (status 125)\n"
        )
        return BUSY, since

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


def launch(
    argv: Sequence[str],
    env: Mapping[str, str],
    filter: bytes,  # noqa: A002
    front: Front,
    *,
    kill_with_program: bool = False,
    cleanup: Callable[[], None] | None = None,
) -> Launched:
    """Start ``argv`` under ``filter`` (``filter.build.build_filter``); returns while its execve waits for an answer.

    To be called once, from the main thread of a process that has no other and was made by ``front.split``. With
    ``kill_with_program`` everything ends when the program ends. ``cleanup`` runs in the guard,
    and only if this process dies before the program's end; it must not rely on open descriptors.
    Descriptors from 3 up without CLOEXEC were inherited for the program: they are closed here, as otherwise
    a pipe that the program closes would stay open.

    Raises LaunchError, with nothing left running, if the kernel is too old or not x86-64, if another
    listener is in force, or if this process may not reach the program's memory and descriptors.
    """
    _refuse_kernel()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    # A signal for the group stays pending in the guard, and reaches the program as soon as that lets it.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    own_pidfd = os.pidfd_open(os.getpid())
    news, to_supervisor = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    status_fd, report = os.pipe()
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
                _run_program(argv, env, filter, front, (to_supervisor, to_guard))
            Guard(
                program=program,
                supervisor=own_pidfd,
                supervisor_pid=supervisor_pid,
                inbox=inbox,
                report=report,
                front=front,
                kill_with_program=kill_with_program,
                cleanup=cleanup,
            ).run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(EXIT_FAILED)
    to_supervisor.close()
    for fd in (own_pidfd, report, front.commands, front.guard):
        os.close(fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    message, descriptors = receive_descriptors(news, _MESSAGE.size, 2)
    if len(descriptors) != 2:
        os.waitpid(guard, 0)
        os.close(status_fd)
        news.close()
        raise _failure(message)
    launched = Launched(
        argv[0],
        listener=descriptors[0],
        pid=_MESSAGE.unpack(message)[1],
        pidfd=descriptors[1],
        guard=guard,
        status_fd=status_fd,
        front=front,
        news=news,
        cleanup=cleanup,
    )
    refusal = _refusal(launched)
    if refusal is not None:
        launched.kill()
        launched.wait()
        raise refusal
    syscalls.set_sync_wake_up(launched.listener)
    _close_inherited()
    signal.signal(INTERRUPT, launched._wake)
    watched = os.pidfd_open(launched.guard)  # before anything can reap it
    _thread.start_new_thread(launched._watch, (_thread.get_ident(), watched))
    return launched


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
    front: Front,
    sockets: tuple[_socket.socket, _socket.socket],
) -> NoReturn:
    """In C: become the program, or send the reason to P and exit."""
    try:
        for number, handler in front.handlers.items():
            if number in _INTERPRETER_IGNORES or callable(handler):
                signal.signal(number, signal.SIG_DFL)
            elif handler is not None and number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, front.mask)
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
