"""Copies of sysfs files that left the reserved range: ``echo 1 > FILE`` of a shell, and standard output of a child.

A shell opens the file (reserved number, notified), makes it descriptor 1 with dup2 and writes there. Writes to
descriptor 1 are not notified, because those of all programs would have to be. Instead the few threads that hold such
a copy are traced (ptrace) from the dup2 until the copy is gone: a call on the copy is answered by the handler that
a notification would have gone to, everything else runs as it is. Programs that never do this pay nothing.

Theory of operation
-------------------
``follow`` is called while the dup2 waits for its answer. A thread of its own becomes the tracer (the kernel binds
tracees to a thread), seizes all threads of the program, asks them to stop, and looks at each system call::

    entry, on a copy      the supervisor's thread runs the handler, through ``Reactor.post``; the call is skipped
    exit of that call     the result is put into rax
    exit of close, dup2,  no copy left: detach
      exec and the like
    a new child           is traced from its start, and let go like others

The result is set at the exit, since a skipped call has number -1, to which the filter says ENOSYS.

Invariants: a tracee that ends is reaped here at once, so that its parent sees it; signals and stops reach it as they
would; when the tracer cannot be (somebody else traces the program), the dup2 is refused instead of losing writes.

What this does not do: copies that arrive by SCM_RIGHTS are not followed; what is written there is lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import signal
import struct
import threading
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.linux.memory import lives
from uvfio.errors import Busy
from uvfio.fops.file import Deferred
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.session.processes import Process
    from uvfio.doors.run.supervisor import Supervisor

__all__ = ["Copies"]

# linux/ptrace.h, and user_regs_struct of x86-64 (27 words) from asm/user_64.h
PTRACE_GETREGS: Final = 12
PTRACE_SETREGS: Final = 13
PTRACE_DETACH: Final = 17
PTRACE_SYSCALL: Final = 24
PTRACE_GETEVENTMSG: Final = 0x4201
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_LISTEN: Final = 0x4208
PTRACE_GET_SYSCALL_INFO: Final = 0x420E
OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10  # TRACESYSGOOD, FORK, VFORK, CLONE, EXEC
EVENTS_OF_BIRTH: Final = (1, 2, 3)
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128
SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
ENTRY, EXIT = 1, 2
WALL, WNOTHREAD = 0x40000000, 0x20000000
REGISTERS: Final = struct.Struct("<27Q")
RAX, ORIG_RAX = 10, 15
SYSCALL_INFO: Final = struct.Struct("<B3xIQQ7Q")
NO_CALL: Final = (1 << 64) - 1

_ON_FIRST: Final = (
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek _llseek fstat fstat64"
    " ftruncate ftruncate64 fsync fdatasync sendfile sendfile64 splice copy_file_range"
)
_ON_OTHER: Final = {"sendfile": 1, "sendfile64": 1, "splice": 2, "copy_file_range": 2}
_FORGETS: Final = "close close_range dup2 dup3 fcntl fcntl64 execve execveat"

Key = tuple[int, int]  # number and architecture of a call
Result = tuple[int | None, OSError | None]


def _keys(names: str) -> set[Key]:
    tables = ((AUDIT_ARCH_X86_64, X86_64), (AUDIT_ARCH_I386, I386))
    return {(table[n], arch) for arch, table in tables for n in names.split() if n in table}


SERVED: Final = _keys(_ON_FIRST)
OTHER: Final = {key: at for name, at in _ON_OTHER.items() for key in _keys(name)}
FORGETS: Final = _keys(_FORGETS)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, tid: int, address: int = 0, data: object = 0) -> None:
    """ptrace(2). OSError."""
    if _libc.ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace: {os.strerror(number)}")


class Copies:
    """All copies of a run. Its methods are for the supervisor's thread."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.traced: set[int] = set()  # threads; also changed by tracers

    def follow(self, process: Process, tid: int) -> None:
        """Thread ``tid`` is about to have a copy. Busy if the program cannot be traced."""
        if tid in self.traced:
            return
        stop = self.supervisor.reactor.accept_posts()
        tracer = _Tracer(self, process, tid, stop)
        error = tracer.begin()
        if error is not None:
            stop()
            raise Busy(
                f"process {process.tgid} cannot be followed to where it puts its file: {error.strerror}",
                "is it being traced? write to the descriptor that open returned",
            )


class _Tracer:
    """One thread that traces the threads of a program, and their children, until no copy is left."""

    def __init__(
        self, copies: Copies, process: Process, tid: int, stop: Callable[[], None]
    ) -> None:
        self.copies = copies
        self.supervisor = copies.supervisor
        self.process = process
        self.tid = tid
        self.stop = stop
        self.tids: set[int] = set()
        self.results: dict[int, int] = {}  # of skipped calls, until their exit
        self.made = False  # whether the dup2 has been done
        self.last: dict[int, Key] = {}  # the call that each is in
        self.started: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    # -- the supervisor's thread -------------------------------------------------------------------

    def begin(self) -> OSError | None:
        """Returns when the program is traced, or why it cannot be."""
        threading.Thread(target=self._run, name=f"copies of {self.tid}", daemon=True).start()
        return self.started.get()

    def _serve(self, request: tuple[int, ...], answer: queue.SimpleQueue[Result]) -> None:
        """What the loop of the supervisor does with a notification."""
        from uvfio.doors.run.supervisor import report_bug

        try:
            answer.put((self.supervisor.handlers[request[3], request[4]](request), None))
        except OSError as error:
            answer.put((None, error))
        except Deferred as later:
            self._defer(request, later, answer)
        except Exception:
            report_bug(f"system call {request[3]} of task {request[1]}; it gets EIO")
            answer.put((None, OSError(errno.EIO, "internal error")))

    def _defer(
        self, request: tuple[int, ...], later: Deferred, answer: queue.SimpleQueue[Result]
    ) -> None:
        def alive() -> bool:
            if lives(request[1]):
                return True
            answer.put((None, OSError(errno.EINTR, "killed")))
            return False

        self.supervisor.defer(request, later, lambda *result: answer.put(result), alive)

    # -- the tracer --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._seize(self.tid)
        except OSError as error:
            self.started.put(error)
            return
        for name in os.listdir(f"/proc/{self.process.tgid}/task"):
            if int(name) not in self.tids:
                try:
                    self._seize(int(name))
                except OSError:
                    continue  # it has just ended
        self.started.put(None)
        try:
            while self.tids:
                tid, status = os.waitpid(-1, WALL | WNOTHREAD)
                try:
                    self._turn(tid, status)
                except ProcessLookupError:
                    continue  # killed while it was stopped: its end is next
        except ChildProcessError:
            pass
        finally:
            self.copies.traced -= self.tids
            self.supervisor.reactor.post(self.stop)

    def _seize(self, tid: int) -> None:
        ptrace(PTRACE_SEIZE, tid, 0, OPTIONS)
        self.tids.add(tid)
        self.copies.traced.add(tid)
        ptrace(PTRACE_INTERRUPT, tid)

    def _forget(self, tid: int) -> None:
        self.tids.discard(tid)
        self.copies.traced.discard(tid)
        self.results.pop(tid, None)

    def _turn(self, tid: int, status: int) -> None:
        """One news of one tracee."""
        if not os.WIFSTOPPED(status):
            self._forget(tid)
            return
        if tid not in self.tids:  # a child that stops before its parent tells of it
            self.tids.add(tid)
            self.copies.traced.add(tid)
        stopped_by, event = status >> 8 & 0xFF, status >> 16
        if stopped_by == SYSCALL_STOP:
            if self._call(tid):
                self._detach(tid)
                return
        elif event == EVENT_STOP and stopped_by != signal.SIGTRAP:
            ptrace(PTRACE_LISTEN, tid)  # stopped like any job; it goes on with SIGCONT
            return
        elif event == EVENT_STOP:
            self.made = self.made or tid == self.tid
            if self.made and not self._has_copy(tid):
                self._detach(tid)
                return
        elif not event:
            ptrace(PTRACE_SYSCALL, tid, 0, stopped_by)  # a signal for it
            return
        elif event in EVENTS_OF_BIRTH:
            message = ctypes.c_ulong()
            ptrace(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
            self.tids.add(message.value)
            self.copies.traced.add(message.value)
        elif event == EVENT_EXEC:
            self.tids &= {tid for tid in self.tids if lives(tid)}
        ptrace(PTRACE_SYSCALL, tid)

    def _detach(self, tid: int) -> None:
        """Let go; threads beside the first one look whether they need to be traced any longer."""
        self._forget(tid)
        ptrace(PTRACE_DETACH, tid)
        if tid == self.tid:
            for other in list(self.tids):
                try:
                    ptrace(PTRACE_INTERRUPT, other)
                except ProcessLookupError:
                    continue

    def _call(self, tid: int) -> bool:
        """A system call begins or ends; whether the thread need not be traced any more."""
        buffer = ctypes.create_string_buffer(SYSCALL_INFO.size)
        ptrace(PTRACE_GET_SYSCALL_INFO, tid, SYSCALL_INFO.size, ctypes.addressof(buffer))
        kind, arch, ip, _, number, *arguments = SYSCALL_INFO.unpack(buffer.raw)
        if kind == EXIT:
            result = self.results.pop(tid, None)
            if result is not None:
                self._set_register(tid, RAX, result)
                return False
            return self.last.pop(tid, None) in FORGETS and not self._has_copy(tid)
        key = number & 0xFFFFFFFF, arch
        self.last[tid] = key
        if key in SERVED and self._is_copy(tid, key, arguments):
            answer: queue.SimpleQueue[Result] = queue.SimpleQueue()
            request = (0, tid, 0, *key, ip, *arguments)
            self.supervisor.reactor.post(lambda: self._serve(request, answer))
            value, error = answer.get()
            if value is not None or error is not None:
                failed = -(error.errno or errno.EIO) if error is not None else 0
                self.results[tid] = (failed or value or 0) & NO_CALL
                self._set_register(tid, ORIG_RAX, NO_CALL)
        return False

    def _is_copy(self, tid: int, key: Key, arguments: list[int]) -> bool:
        numbers = {arguments[0], arguments[OTHER.get(key, 0)]}
        return any(self._copied(tid, number & 0xFFFFFFFF) for number in numbers)

    def _copied(self, tid: int, fd: int) -> bool:
        """Whether ``fd`` is a file of sysfs outside the reserved range."""
        if fd in self.supervisor.reserved:
            return False
        try:
            found = os.stat(f"/proc/{tid}/fd/{fd}")
        except OSError:
            return False
        token = self.supervisor.tokens.find(found.st_dev, found.st_ino)
        files = (
            token.files if token is not None else []
        )  # replaced, never emptied, by the other thread
        return bool(files) and files[-1].whole

    def _has_copy(self, tid: int) -> bool:
        try:
            numbers = os.listdir(f"/proc/{tid}/fd")
        except OSError:
            return False
        return any(self._copied(tid, int(number)) for number in numbers)

    @staticmethod
    def _set_register(tid: int, which: int, value: int) -> None:
        buffer = ctypes.create_string_buffer(REGISTERS.size)
        ptrace(PTRACE_GETREGS, tid, 0, ctypes.addressof(buffer))
        values = list(REGISTERS.unpack(buffer.raw))
        values[which] = value
        ctypes.memmove(buffer, REGISTERS.pack(*values), REGISTERS.size)
        ptrace(PTRACE_SETREGS, tid, 0, ctypes.addressof(buffer))
