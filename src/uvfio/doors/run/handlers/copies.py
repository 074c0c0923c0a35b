"""Copies of sysfs files that left the reserved range: ``echo 1 > FILE`` of a shell, and standard output of a child.

A shell opens the file (reserved number, notified), makes it descriptor 1 with dup2 and writes there. Writes to
descriptor 1 are not notified, because then those of all programs would be. Instead the few threads that hold such
a copy are traced (ptrace) from the dup2 until the copy is gone: a call on the copy is answered by the handler that
a notification would have gone to, everything else runs natively. Programs that never do this pay nothing.

Theory of operation
-------------------
``follow`` is called while the dup2 waits for its answer. A thread of its own becomes the tracer (the kernel binds
tracees to a thread), seizes all threads of the program, interrupts them, and examines each system call::

    entry, on a copy      the supervisor's thread runs the handler, through ``Reactor.post``; the call is skipped
    exit of that call     the result is put into rax
    exit of close, dup2,  no copy left: detach
      exec and the like
    a new child           is traced from its start, and detached like others

Which calls are answered and which may end a copy is in ``filter/rules.py`` (column ``copies``). The result is set at
the exit, since a skipped call has number -1, which the filter answers with ENOSYS.

Invariants: the supervisor waits for a tracer for ``BEGIN`` seconds at most, whatever that does; a tracee that ends is
reaped here at once, so that its parent sees it; signals and stops reach it as they would; when the program cannot be
traced (it has another tracer), the dup2 is refused instead of losing writes.

What this does not do: copies that arrive by SCM_RIGHTS are not followed; what is written there is lost.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import threading
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.filter.rules import BY_KEY, INT
from uvfio.doors.run.linux import ptrace
from uvfio.doors.run.linux.memory import lives
from uvfio.doors.run.session.report import report_bug
from uvfio.doors.run.session.session import negative_errno
from uvfio.errors import Busy
from uvfio.fops.file import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Handler, Key, Request
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.session import Session

__all__ = ["Copies"]

BEGIN: Final = 5.0  # seconds in which the program is seized, else the dup2 is refused
NO_CALL: Final = (1 << 64) - 1

Result = tuple[int | None, OSError | None]

SERVED: Final = {key: call.descriptors for key, call in BY_KEY.items() if call.copies == "served"}
ENDS: Final = {key for key, call in BY_KEY.items() if call.copies == "ends"}


class Copies:
    """All copies of a run. Its methods are for the supervisor's thread. ``handlers`` answers calls on copies."""

    def __init__(self, session: Session, handlers: dict[Key, Handler]) -> None:
        self.session = session
        self.handlers = handlers
        self.traced: set[int] = set()  # threads; also changed by tracers

    def follow(self, process: Process, tid: int) -> None:
        """Trace thread ``tid``, which is about to make a copy. Busy if the program cannot be traced."""
        if tid in self.traced:
            return
        stop = self.session.reactor.accept_posts()
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
        self.session = copies.session
        self.process = process
        self.tid = tid
        self.stop = stop
        self.tids: set[int] = set()
        self.results: dict[int, int] = {}  # of skipped calls, until their exit
        self.late = False  # nobody waits for it
        self.made = False  # whether the dup2 has been done
        self.last: dict[int, Key] = {}  # the call that each is in
        self.started: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    # -- the supervisor's thread -------------------------------------------------------------------

    def begin(self) -> OSError | None:
        """Returns when the program is traced, or why it cannot be."""
        try:
            threading.Thread(target=self._run, name=f"copies of {self.tid}", daemon=True).start()
            return self.started.get(timeout=BEGIN)
        except RuntimeError as error:  # no thread can be started
            return OSError(errno.EAGAIN, str(error))
        except queue.Empty:
            self.late = True
            return OSError(errno.ETIMEDOUT, "it does not stop")

    def _serve(self, request: Request, answer: queue.SimpleQueue[Result]) -> None:
        """Run the handler on the supervisor's thread, as the loop does with a notification; put its result or error."""
        self.session.current, self.session.processes.caller = request[0], request[1]
        self.session.processes.endings.settle()
        try:
            answer.put((self.copies.handlers[request[3], request[4]](request), None))
        except OSError as error:
            answer.put((None, error))
        except Deferred as later:
            self._defer(request, later, answer)
        except BaseException:
            report_bug(f"system call {request[3]} of task {request[1]}; it gets EIO")
            answer.put((None, OSError(errno.EIO, "internal error")))

    def _defer(self, request: Request, later: Deferred, answer: queue.SimpleQueue[Result]) -> None:
        def alive() -> bool:
            if lives(request[1]):
                return True
            answer.put((None, OSError(errno.EINTR, "killed")))
            return False

        self.session.defer(request, later, lambda *result: answer.put(result), alive)

    # -- the tracer --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._seize(self.tid)
            for name in os.listdir(f"/proc/{self.process.tgid}/task"):
                if int(name) not in self.tids:
                    try:
                        self._seize(int(name))
                    except OSError:
                        continue  # it has just ended
        except BaseException as error:  # the supervisor waits: it gets an answer in any case
            self.copies.traced -= self.tids
            self.started.put(
                error if isinstance(error, OSError) else OSError(errno.EIO, repr(error))
            )
            return  # the end of the thread detaches what was seized
        if self.late:
            self.copies.traced -= self.tids
            return
        self.started.put(None)
        try:
            while self.tids:
                tid, status = os.waitpid(-1, ptrace.WALL | ptrace.WNOTHREAD)
                try:
                    self._turn(tid, status)
                except ProcessLookupError:
                    continue  # killed while it was stopped: its end is next
        except ChildProcessError:
            pass
        finally:
            self.copies.traced -= self.tids
            self.session.reactor.post(self.stop)

    def _seize(self, tid: int) -> None:
        ptrace.ptrace(ptrace.PTRACE_SEIZE, tid, 0, ptrace.OPTIONS)
        self.tids.add(tid)
        self.copies.traced.add(tid)
        ptrace.ptrace(ptrace.PTRACE_INTERRUPT, tid)

    def _forget(self, tid: int) -> None:
        self.tids.discard(tid)
        self.copies.traced.discard(tid)
        self.results.pop(tid, None)

    def _turn(self, tid: int, status: int) -> None:
        """Handle one change of state of one tracee."""
        if not os.WIFSTOPPED(status):
            self._forget(tid)
            return
        if tid not in self.tids:  # a child that stops before its parent's event
            self.tids.add(tid)
            self.copies.traced.add(tid)
        stopped_by, event = status >> 8 & 0xFF, status >> 16
        if stopped_by == ptrace.SYSCALL_STOP:
            if self._call(tid):
                self._detach(tid)
                return
        elif event == ptrace.EVENT_STOP and stopped_by != signal.SIGTRAP:
            ptrace.ptrace(
                ptrace.PTRACE_LISTEN, tid
            )  # stopped like any job; it goes on with SIGCONT
            return
        elif event == ptrace.EVENT_STOP:
            self.made = self.made or tid == self.tid
            if self.made and not self._has_copy(tid):
                self._detach(tid)
                return
        elif not event:
            ptrace.ptrace(ptrace.PTRACE_SYSCALL, tid, 0, stopped_by)  # a signal for it
            return
        elif event in ptrace.EVENTS_OF_BIRTH:
            child = ptrace.event_message(tid)
            self.tids.add(child)
            self.copies.traced.add(child)
        elif event == ptrace.EVENT_EXEC:
            self.tids &= {tid for tid in self.tids if lives(tid)}
        ptrace.ptrace(ptrace.PTRACE_SYSCALL, tid)

    def _detach(self, tid: int) -> None:
        """Detach; after the first thread the others are interrupted, to test whether they still have a copy."""
        self._forget(tid)
        ptrace.ptrace(ptrace.PTRACE_DETACH, tid)
        if tid == self.tid:
            for other in list(self.tids):
                try:
                    ptrace.ptrace(ptrace.PTRACE_INTERRUPT, other)
                except ProcessLookupError:
                    continue

    def _call(self, tid: int) -> bool:
        """A system call begins or ends. Returns whether the thread may be detached."""
        kind, arch, ip, number, arguments = ptrace.syscall_info(tid)
        if kind == ptrace.EXIT:
            result = self.results.pop(tid, None)
            if result is not None:
                ptrace.set_register(tid, ptrace.RAX, result)
                return False
            return self.last.pop(tid, None) in ENDS and not self._has_copy(tid)
        key = number & INT, arch
        self.last[tid] = key
        if key in SERVED and self._is_copy(tid, key, arguments):
            answer: queue.SimpleQueue[Result] = queue.SimpleQueue()
            request = (0, tid, 0, *key, ip, *arguments)
            self.session.reactor.post(lambda: self._serve(request, answer))
            value, error = answer.get()
            if value is not None or error is not None:
                failed = negative_errno(error) if error is not None else 0
                self.results[tid] = (failed or value or 0) & NO_CALL
                ptrace.set_register(tid, ptrace.ORIG_RAX, NO_CALL)
        return False

    def _is_copy(self, tid: int, key: Key, arguments: list[int]) -> bool:
        numbers = {arguments[at] & INT for at in SERVED[key]}
        return any(self._copied(tid, number) for number in numbers)

    def _copied(self, tid: int, fd: int) -> bool:
        """Whether ``fd`` is a file of sysfs outside the reserved range."""
        if fd in self.session.reserved:
            return False
        try:
            found = os.stat(f"/proc/{tid}/fd/{fd}")
        except OSError:
            return False
        token = self.session.tokens.find(found.st_dev, found.st_ino)
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
