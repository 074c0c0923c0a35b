"""Calls that the program makes itself, with another path: the way out of the machine's folders.

A path like /dev/vfio/../null, or ../../../etc/hostname from a folder that exists only here, means a file of the host
that the kernel would not find by it. The supervisor must not open that file in the program's place: it has other
rights, another umask, root, mount namespace, /proc/self and other descriptors, and a FIFO would block every program.
So the program repeats its call with a path that means the same ("/dev/null"), and the kernel answers it.

Theory of operation
-------------------
``begin`` is called for a call that waits for its answer, and returns at once. A thread of its own becomes the tracer
of the calling thread (the kernel binds a tracee to a thread) and steps it through::

    stop        SEIZE and INTERRUPT; the supervisor answers the call, the thread stops before it returns to its code
    mmap        a page for the paths, by a system call that the tracer makes the thread execute; all signals blocked
    the call    again, from the instruction before. At its entry the argument is the new path and the thread has its
                own signal mask again, so that a signal interrupts a call that blocks
    munmap      the page goes
    return      every register as the kernel would leave it; the thread is detached

The repeated call is notified as any other. Its path is an ordinary one of the host, so the kernel runs it.

A call that a signal interrupts ends with ERESTARTSYS and its own arguments: the kernel runs the handler and then
restarts the call that the program made, which is notified and redirected again, or returns EINTR. An exec that
succeeds ends the trace with EVENT_EXEC. A thread that is killed in between is reaped here, as its parent sees it.

Invariants: the supervisor never waits for a tracer. SEIZE of a thread whose process executes another program waits
for that exec, the exec waits until the tracers of the process's other threads have reaped them, and a tracer that is
about to detach waits for the supervisor.

A thread that was seized is the one that made the call only if the call waits after the SEIZE: numbers are used again,
and an exec gives that of the process to the thread that made it.

One tracer for one call; nothing of the program but the new path in a page of its own changes; a thread
that cannot be traced gets ``Unreadable`` and has made no call.

What this does not do: decide which path means the same (``handlers/lookup.py``), or follow a child.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.linux import ptrace
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.uapi.linux import MAP_ANONYMOUS, MAP_PRIVATE, PATH_MAX, PROT_READ, PROT_WRITE
from uvfio.uapi.seccomp import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, I386, X86_64

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.reactor import Reactor
    from uvfio.doors.run.session.redirect import Redirect

__all__ = ["begin"]

MAP_CALL: Final = {AUDIT_ARCH_X86_64: X86_64["mmap"], AUDIT_ARCH_I386: I386["mmap2"]}
UNMAP_CALL: Final = {AUDIT_ARCH_X86_64: X86_64["munmap"], AUDIT_ARCH_I386: I386["munmap"]}
WORD: Final = (1 << 64) - 1
INT: Final = (1 << 32) - 1
ALL_SIGNALS: Final = WORD
NO_CALL: Final = WORD  # in orig_rax: no call to restart
RESTARTS: Final = range(512, 517)  # ERESTARTSYS and its kin (include/linux/errno.h)


def begin(
    reactor: Reactor,
    request: Request,
    wanted: Redirect,
    repeating: set[int],
    waits: Callable[[], bool],
    begun: Callable[[Unreadable | None], None],
) -> None:
    """Trace the thread that made ``request``, if the call still ``waits`` for its answer. ``begun`` is called on the
    supervisor's thread, with None when the call is to be answered with any value, with Unreadable if the thread
    cannot be traced. ``repeating`` contains the thread until its call has returned."""
    stop, tid = reactor.accept_posts(), request[1]
    held = [tid]

    def forget() -> None:
        """For both threads. A second time could end the thread's next call."""
        if held:
            repeating.discard(held.pop())

    def end() -> None:
        forget()
        stop()

    def start(error: BaseException | None) -> None:
        if error is None:
            repeating.add(
                tid
            )  # it is seized: its number is not free before its tracer has forgotten it
            if not held:
                repeating.discard(tid)
            begun(None)
            return
        end()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        paths = ", ".join(os.fsdecode(path) for path in wanted.paths.values())
        begun(
            Unreadable(
                f"task {tid} cannot be led out of the machine's folders to {paths}: {reason}",
                "a program that a debugger traces can use the path itself; `uvfio check` tries ptrace",
            )
        )

    tracer = _Tracer(reactor, request, wanted, waits, start, forget, end)
    try:
        threading.Thread(target=tracer.run, name=f"redirect {tid}", daemon=True).start()
    except RuntimeError as none:  # no thread can be made
        start(OSError(errno.EAGAIN, str(none)))


class _Gone(Exception):
    """The thread ended, or executed another program: there is nothing more to do."""


class _Tracer:
    """One redirected call; ``run`` is a thread. ``start`` and ``end`` are called on the supervisor's thread: when the
    calling thread is traced or cannot be, and when its call has returned."""

    def __init__(
        self,
        reactor: Reactor,
        request: Request,
        wanted: Redirect,
        waits: Callable[[], bool],
        start: Callable[[BaseException | None], None],
        forget: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self.reactor = reactor
        self.tid, self.number, self.arch = request[1], request[3], request[4]
        self.wanted = wanted
        self.waits = waits
        self.start = start
        self.forget = forget
        self.end = end

    def run(self) -> None:
        """Seize the thread, then step it through its call."""
        try:
            if not self.waits():
                self.reactor.post(self.end)
                return
            ptrace.ptrace(ptrace.PTRACE_SEIZE, self.tid, 0, ptrace.ONE_CALL)
            if (
                not self.waits()
            ):  # the number may be another thread's, or an image's that was executed meanwhile
                self.reactor.post(self.end)
                return  # the end of this thread detaches what was seized
            ptrace.ptrace(ptrace.PTRACE_INTERRUPT, self.tid)
        except BaseException as error:
            refused = error.with_traceback(None)  # which would keep this frame, a cycle
            self.reactor.post(lambda: self.start(refused))
            return
        self.reactor.post(lambda: self.start(None))
        try:
            self._steps()
        except (_Gone, ProcessLookupError, ChildProcessError):
            pass  # killed; or its exit was the last that was to be reaped
        except BaseException as error:
            self._fail(error)
        finally:
            self.forget()  # before the end of this thread, which frees the number of a dead one
            self.reactor.post(self.end)

    def _fail(self, error: BaseException) -> None:
        """A mistake here: end the program, which stands in the middle of a call, and have the error reported."""

        def report() -> None:
            raise error

        os.kill(self.tid, signal.SIGKILL)
        self.reactor.post(report)

    def _steps(self) -> None:
        self._until_interrupted()
        before = ptrace.registers(self.tid)
        mask = ptrace.signal_mask(self.tid)
        ptrace.set_signal_mask(self.tid, ALL_SIGNALS)
        page = self._map(before) if self.wanted.paths else 0
        result = page if -4096 < page < 0 else self._call(before, mask, page)
        if page > 0:
            self._execute(before, UNMAP_CALL[self.arch], (page, self._size()))
        self._finish(result, before, mask)

    def _finish(self, result: int, before: list[int] | None = None, mask: int = 0) -> None:
        """Call ``done`` on the supervisor's thread, then let the thread return to its code and detach: what ``done``
        changes counts for the program's next call. A new image (no ``before``) keeps its registers."""
        finished: queue.SimpleQueue[int] = queue.SimpleQueue()

        def call() -> None:
            value = result
            try:
                self.end()
                if self.wanted.done is not None and -result not in RESTARTS:
                    value = self.wanted.done(result)
            finally:
                finished.put(value)

        self.reactor.post(call)
        value = finished.get()
        if before is not None:
            after = list(before)
            after[ptrace.RAX] = value & WORD
            after[ptrace.ORIG_RAX] = self.number if -value in RESTARTS else NO_CALL
            ptrace.set_registers(self.tid, after)
            ptrace.set_signal_mask(self.tid, mask)
        ptrace.ptrace(ptrace.PTRACE_DETACH, self.tid)

    # -- one system call ---------------------------------------------------------------------------

    def _size(self) -> int:
        return PATH_MAX * len(self.wanted.paths)

    def _map(self, before: list[int]) -> int:
        """A page for each path, filled: its address, or -errno."""
        protection, flags = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
        page = self._execute(
            before, MAP_CALL[self.arch], (0, self._size(), protection, flags, WORD, 0)
        )
        if not -4096 < page < 0:
            with open(f"/proc/{self.tid}/mem", "r+b", buffering=0) as memory:
                ptrace.registers(
                    self.tid
                )  # still the same thread: it is killed by an exec of another one
                for at, path in enumerate(self.wanted.paths.values()):
                    memory.seek(page + at * PATH_MAX)
                    memory.write(path[: PATH_MAX - 1] + b"\0")
        return page

    def _call(self, before: list[int], mask: int, page: int) -> int:
        """The program's own call, with the new paths."""
        self._to_entry(before, self.number, None)
        changed = ptrace.registers(self.tid)
        for at, argument in enumerate(self.wanted.paths):
            changed[ptrace.ARGUMENTS[self.arch][argument]] = page + at * PATH_MAX
        ptrace.set_registers(self.tid, changed)
        ptrace.set_signal_mask(self.tid, mask)
        result = self._to_exit()
        ptrace.set_signal_mask(self.tid, ALL_SIGNALS)
        return result

    def _execute(self, before: list[int], number: int, arguments: tuple[int, ...]) -> int:
        """Let the thread make a system call of ours; returns its value, or -errno."""
        self._to_entry(before, number, arguments)
        return self._to_exit()

    def _to_entry(self, before: list[int], number: int, arguments: tuple[int, ...] | None) -> None:
        """Go to the entry of call ``number``, with the program's own arguments if none are given."""
        values = list(before)
        values[ptrace.RIP] -= ptrace.CALL_BYTES
        values[ptrace.RAX], values[ptrace.ORIG_RAX] = number, NO_CALL
        if arguments is not None:
            limit = INT if self.arch == AUDIT_ARCH_I386 else WORD
            for place, value in zip(ptrace.ARGUMENTS[self.arch], arguments, strict=False):
                values[place] = value & limit
        ptrace.set_registers(self.tid, values)
        self._to_call_stop()

    def _to_exit(self) -> int:
        self._to_call_stop()
        value = ptrace.registers(self.tid)[ptrace.RAX]
        if self.arch == AUDIT_ARCH_I386:
            value &= INT
            return value - (1 << 32) if value > INT - 4096 else value
        return value - (1 << 64) if value >> 63 else value

    # -- stops -------------------------------------------------------------------------------------

    def _to_call_stop(self) -> None:
        """Go on to the next entry or exit of a system call."""
        deliver = 0
        while True:
            ptrace.ptrace(ptrace.PTRACE_SYSCALL, self.tid, 0, deliver)
            stopped_by, event = self._wait()
            deliver = 0
            if stopped_by == ptrace.SYSCALL_STOP:
                return
            if event == ptrace.EVENT_EXEC:
                self._detach_image()
            if event == ptrace.EVENT_STOP and stopped_by != signal.SIGTRAP:
                self._sleep()
            elif not event:
                deliver = stopped_by  # SIGSTOP: no handler can run

    def _until_interrupted(self) -> None:
        """Wait for the stop that INTERRUPT asked for; a job that is stopped first sleeps until SIGCONT."""
        while True:
            stopped_by, event = self._wait()
            if event == ptrace.EVENT_STOP and stopped_by == signal.SIGTRAP:
                return
            if event == ptrace.EVENT_STOP:
                self._sleep()
                return
            ptrace.ptrace(ptrace.PTRACE_SYSCALL, self.tid, 0, 0 if event else stopped_by)

    def _sleep(self) -> None:
        """Stopped like any job: it goes on with SIGCONT, which is the next stop."""
        ptrace.ptrace(ptrace.PTRACE_LISTEN, self.tid)
        self._wait()

    def _wait(self) -> tuple[int, int]:
        """The next stop: the signal, and the event. ``_Gone`` when the thread has ended."""
        everything = os.WEXITED | os.WSTOPPED | os.WNOWAIT
        found = os.waitid(os.P_ALL, 0, everything | ptrace.WALL | ptrace.WNOTHREAD)
        if found is not None and found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            self.forget()  # the number is free once the thread is reaped
        tid, status = os.waitpid(-1, ptrace.WALL | ptrace.WNOTHREAD)
        if not os.WIFSTOPPED(status):
            raise _Gone
        self.tid = tid  # after an exec a thread has the number of its process
        return status >> 8 & 0xFF, status >> 16

    def _detach_image(self) -> None:
        """The call was an exec that succeeded: the new image owes nothing."""
        self._finish(0)
        raise _Gone
