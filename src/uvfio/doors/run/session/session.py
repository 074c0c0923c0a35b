"""One run: its state, and the services that handlers, observers and the supervisor use.

The state is the machine, the tree of files that shows it, the processes, the tokens that stand for open VFIO files,
the reactor with its timers, the waits, and the notification that is being answered (``current``, and its task in
``processes.caller``).

Invariants: everything runs on one thread, between the receipt of a notification and its answer, or in the reactor.
``install``, ``expose`` and ``addfd`` are for the call being answered only. ``settle`` precedes whatever depends on what
programs have open.

What this does not do: receive notifications or know a system call (``supervisor.py``, ``handlers/``), start a program
(``launch/``), or print what happens (``observe/``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from typing import TYPE_CHECKING, Final

from uvfio.core.waiting import Steps
from uvfio.doors.run.filter.build import reserved_range
from uvfio.doors.run.linux import proc
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.linux.memory import Unreadable
from uvfio.doors.run.linux.output import say
from uvfio.doors.run.session.pieces import Pieces
from uvfio.doors.run.session.polls import Polls
from uvfio.doors.run.session.programs.processes import Processes
from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.report import report_bug
from uvfio.doors.run.session.tokens import Tokens
from uvfio.doors.run.session.tree import Tree
from uvfio.doors.run.session.waits import Waits
from uvfio.errors import LimitExceeded, NoMemory, NoSpace, TooManyFiles, VfioError
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs.tree import nodes
from uvfio.uapi.seccomp import (
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    seccomp_notif_resp,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.session.events import RunEvent, RunObserver
    from uvfio.doors.run.session.programs.process import Process
    from uvfio.doors.run.session.redirect import Redirect
    from uvfio.doors.run.session.tokens import Token
    from uvfio.fops.file import Deferred, File
    from uvfio.machine.spec import MachineSpec

__all__ = ["SEND_ERRORS", "Session", "negative_errno"]

SEND_ERRORS: Final = (errno.ENOENT, errno.EINPROGRESS)
INCOMPLETE: Final = -1  # the generation of a tree that lacks files


class Session:
    """The machine, the programs that use it, and what connects them. OSError if ``scratch`` cannot hold the files.

    ``scratch`` is a folder for the tree and the tokens; ``abi`` is "2011", "mainline" or "auto"; ``inotify`` is an idle
    inotify descriptor to take over; ``memlock`` is the number of bytes that each program's DMA mappings may lock (None:
    its RLIMIT_MEMLOCK). ``strict``: DMA to memory that the program exchanged after it was mapped is a fault, and is
    said on stderr.
    """

    def __init__(
        self,
        spec: MachineSpec,
        scratch: str,
        *,
        abi: str = "2011",
        inotify: int | None = None,
        memlock: int | None = None,
        strict: bool = False,
    ) -> None:
        self.abi = abi
        self.observers: list[RunObserver] = []
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.reserved = reserved_range(soft)
        self.reactor = Reactor(
            lambda: report_bug("a timer or an event; the run goes on without it")
        )
        self.waits = Waits(self.reactor)
        self.pieces = Pieces(self.reactor)
        polls = Polls(self.reactor, lambda: report_bug("a store in mapped registers"))
        self.tokens = Tokens(
            scratch,
            self._released,
            on_error=lambda: report_bug("a file that was closed; the run goes on"),
            polls=polls,
            inotify=inotify,
        )
        self.machine = Machine(
            spec, clock=self.reactor, store=self.tokens, processors=os.cpu_count() or 1
        )
        self.machine.framework.strict = strict
        if strict:
            self.watch(_report_exchange)
        self.tree = Tree(scratch)
        try:
            self.tree.update(nodes(self.machine, abi))
        except OSError as error:
            self.tree.remove()
            raise NoSpace(
                f"the machine's files cannot be written to {scratch}: {error.strerror}",
                "make room there, or set XDG_RUNTIME_DIR to another folder",
            ) from error
        self.shown = self.machine.framework.generation
        self.reactor.watch(self.tokens.fileno, self.settle, wake=False)
        self.processes = Processes(
            self.reactor,
            self.tokens,
            self.reserved,
            install=self.install,
            memlock=memlock,
            is_valid=self.is_valid,
        )
        self._memlock_told = False
        self.listener = -1
        self.current = 0
        self.repeating: set[int] = set()  # threads whose call the kernel runs with another path
        self._told_shortage = False

    def close(self) -> None:
        """Release everything: files, groups, descriptors, the folder."""
        self.tokens.release_all()
        self.processes.close()
        self.tokens.close()
        self.tree.remove()
        self.reactor.close()

    def is_valid(self) -> bool:
        """Whether the task whose call is being answered still waits: so long its number means it. A call that comes by
        a tracer has no notification, and its task is stopped."""
        return not self.current or sc.notif_id_valid(self.listener, self.current)

    # -- what is open, and what programs see ---------------------------------------------------------

    def settle(self) -> None:
        """Release the files that the programs have closed, and show changes of the machine."""
        self.tokens.drain()
        if self.shown != self.machine.framework.generation:
            self.refresh_tree()

    def refresh_tree(self) -> None:
        """Show the programs the machine as it is now, after devices came or went. Without room for the files some are
        missing until there is, which is tried at each ``settle``."""
        before, self.shown = self.shown, self.machine.framework.generation
        try:
            self.tree.update(nodes(self.machine, self.abi))
        except OSError as error:
            self.shown = INCOMPLETE
            if before != INCOMPLETE:
                say(
                    f"uvfio: files of the machine are missing in {self.tree.root}: {error.strerror}\n"
                    "hint: make room there; they come back by themselves\n"
                )

    # -- answers that take a while -------------------------------------------------------------------

    def defer(
        self,
        request: Request,
        later: Deferred,
        answer: Callable[[int, OSError | None], None],
        alive: Callable[[], bool],
    ) -> None:
        """Call ``answer`` when the wait is over; a caller that is no longer ``alive`` ends the wait without one."""

        def finish(error: BaseException | None) -> None:
            self.refresh_tree()
            if error is not None and not isinstance(error, OSError):
                report_bug(f"system call {request[3]} of task {request[1]}, which waited", error)
                error = OSError(errno.EIO, str(error))
            value = wait.value if isinstance(wait, Steps) else later.value
            answer(value if error is None else 0, error)
            for told in later.answered:
                told(value if error is None else error)

        wait = later.wait
        if isinstance(wait, Steps):
            self.pieces.add(wait, finish, alive)
        else:
            self.waits.add(wait, finish, alive)

    def defer_notification(self, request: Request, later: Deferred) -> None:
        """``defer`` a call that waits for its notification's answer."""
        number = request[0]
        self.defer(
            request,
            later,
            lambda value, error: self._send(number, value, error),
            lambda: sc.notif_id_valid(self.listener, number),
        )

    def redirect(self, request: Request, wanted: Redirect) -> None:
        """Let the caller repeat its call with other paths. The call is answered when the caller is traced; if it cannot
        be traced, by ``wanted.otherwise`` or with EPERM."""
        from uvfio.doors.run.session.repeat import begin

        wanted = wanted.with_traceback(
            None
        )  # it would keep the caller's process, also if that ends
        try:
            begin(
                self.reactor,
                request,
                wanted,
                self.repeating,
                lambda: sc.notif_id_valid(self.listener, request[0]),
                lambda refused: self._redirected(request, wanted, refused),
            )
        except BaseException as error:
            self._fail(request, error)

    def _redirected(self, request: Request, wanted: Redirect, refused: Unreadable | None) -> None:
        number = request[0]
        if not sc.notif_id_valid(self.listener, number):
            return  # it was killed meanwhile: nobody waits for an answer
        if refused is None:
            self._send(number, 0, OSError(errno.ENOSYS, "repeated"))
        elif wanted.otherwise is None:
            self._fail(request, refused)
        else:
            try:
                self._send(number, wanted.otherwise(), None)
            except BaseException as error:
                self._fail(request, error)

    def _fail(self, request: Request, error: BaseException) -> None:
        """Answer a notification whose handler has returned already, as the supervisor's loop answers others."""
        if isinstance(error, OSError):
            failure = self.own_shortage(error)
            self.report_refusal(request[1], failure)
        else:
            report_bug(f"system call {request[3]} of task {request[1]}; it gets EIO", error)
            failure = OSError(errno.EIO, "a mistake")
        self._send(request[0], 0, failure)

    def _send(self, number: int, value: int | None, error: OSError | None) -> None:
        """Answer notification ``number``. With None for both the kernel runs the call."""
        failed = 0 if error is None else negative_errno(error)
        go_on = SECCOMP_USER_NOTIF_FLAG_CONTINUE if value is None else 0
        try:
            answer = seccomp_notif_resp.pack(number, value or 0, failed, go_on)
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, answer)
        except OSError as lost:
            if lost.errno not in SEND_ERRORS:
                raise

    # -- descriptors for the caller --------------------------------------------------------------------

    def install(self, process: Process, file: File, cloexec: bool) -> int:
        """Give the caller of the current call a descriptor for ``file``; returns its number there.

        TooManyFiles: EMFILE if the program has no free number, ENFILE if uvfio has none. NoMemory: no token can be
        made. NoSpace: the program was killed during the call. After an error ``file`` is still the caller's to release.
        """
        try:
            token, fd = self.tokens.create(file)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyFiles("uvfio has no free descriptor", errno=errno.ENFILE) from error
            raise NoMemory(f"cannot make a file for {file.name}: {error.strerror}") from error
        self.processes.part(process)
        number = process.free_number()
        try:
            given = self.addfd(fd, number, cloexec)
        except BaseException:
            self.tokens.abort(token, fd, file)
            raise
        os.close(fd)
        process.cache(given, file)
        return given

    def expose(self, process: Process, tid: int, number: int, file: File) -> None:
        """Put the memory of the device behind descriptor ``number``, which leads to ``file``, before it is mapped.

        Other descriptors of the same open file, in this and in other processes, keep the old token. NoMemory if the
        descriptor cannot be exchanged; EAGAIN if another thread is changing what the number means. Outside the reserved
        range such a change is not seen.
        """
        token = process.token(tid, number)
        if token is None or self.tokens.holds_memory(token):
            return
        if process.is_changing(number):
            raise OSError(errno.EAGAIN, f"another thread changes descriptor {number}")
        flags = proc.open_flags(tid, number)
        found = self.tokens.expose(file)
        if found is None:
            return
        memory, fd = found
        try:
            sc.addfd(self.listener, self.current, fd, number, bool(flags & os.O_CLOEXEC))
        except OSError as error:
            self.tokens.abort(memory, fd, file)
            raise NoMemory(f"descriptor {number} cannot be exchanged: {error.strerror}") from error
        os.close(fd)

    def addfd_of(self, real: str, flags: int, cloexec: bool, number: int | None = None) -> int:
        """Give the caller a descriptor for reading of a file of the tree. As ``addfd``."""
        keep = os.O_DIRECTORY | os.O_NONBLOCK
        fd = os.open(real, flags & keep | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return self.addfd(fd, number, cloexec)
        finally:
            os.close(fd)

    def addfd(self, fd: int, number: int | None, cloexec: bool, *, exactly: bool = False) -> int:
        """Copy ``fd`` into the caller of the current call, as ``number`` if that can be. A program may have lowered its
        limit (``ulimit -n 300``) below the reserved range. With ``exactly``, EBADF if it has.

        TooManyFiles: EMFILE. NoSpace: the program was killed during the call.
        """
        try:
            return sc.addfd(self.listener, self.current, fd, number, cloexec)
        except OSError as error:
            if error.errno == errno.EBADF and number is not None and not exactly:
                if self._may_exceed(number):
                    return self._exceed(fd, number, cloexec)
                return self.addfd(fd, None, cloexec)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyFiles("the program has no free descriptor") from error
            if error.errno == errno.ENOENT:
                raise NoSpace("the program was killed during the call") from error
            raise

    def _may_exceed(self, number: int) -> bool:
        """Whether the program has lowered its limit to ``number`` or less, has a descriptor free below it, and nobody
        would notice another limit for a moment: its one thread waits for the answer."""
        pid = self.processes.get(self.processes.caller).tgid
        try:
            soft, _ = proc.limits(pid, b"Max open files")
            below = sum(int(name) < soft for name in os.listdir(f"/proc/{pid}/fd"))
        except FileNotFoundError:
            return False  # it has ended
        return below < soft <= number and proc.is_alone(pid)

    def _exceed(self, fd: int, number: int, cloexec: bool) -> int:
        """``addfd`` under a higher limit; as any number if that is not permitted (CAP_SYS_RESOURCE)."""
        pid = self.processes.get(self.processes.caller).tgid
        try:
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (number + 1, max(hard, number + 1)))
        except (PermissionError, ProcessLookupError):
            return self.addfd(fd, None, cloexec)
        try:
            return sc.addfd(self.listener, self.current, fd, number, cloexec)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    # -- observers and reports -----------------------------------------------------------------------

    def watch(self, observer: RunObserver, *, framework: bool = True) -> None:
        """Call ``observer`` for each event from now on. ``framework=False``: it needs none of the framework's events,
        which are not made before an observer needs them."""
        self.observers.append(observer)
        if framework:
            self.machine.framework.observer = self.emit

    def emit(self, event: RunEvent) -> None:
        """Call each observer, in the order in which they were added. One that raises changes no call."""
        for observer in self.observers:
            try:
                observer(event)
            except BaseException:
                report_bug(f"an observer of {type(event).__name__}; the run goes on")

    def _released(self, token: Token) -> None:
        for file in token.files:
            self.processes.forget_file(file)
            if self.observers:
                from uvfio.doors.run.session.events import FileReleased

                self.emit(FileReleased(file.name, file.device_name))

    def report_refusal(self, tid: int, failure: OSError) -> None:
        """Report on stderr what the errno of a refused call cannot say: why a program sees EPERM in all its calls, once
        for each process; that a limit on locked memory was exceeded, once for each run."""
        if isinstance(failure, Unreadable):
            try:
                process = self.processes.get(tid)
            except OSError:
                return  # it was killed meanwhile
            told, process.complained = process.complained, True
            hint = failure.hint
        elif type(failure) is LimitExceeded and failure.errno == errno.ENOMEM:  # of memory
            told, self._memlock_told = self._memlock_told, True
            hint = "raise it before the start (`ulimit -l`), or set what programs may lock with `--memlock SIZE`"
        else:
            return
        if not told:
            say(f"uvfio: {failure}\n" + (f"hint: {hint}\n" if hint else ""))

    def own_shortage(self, error: OSError) -> OSError:
        """What a program gets for an error that uvfio itself ran into: ENFILE instead of EMFILE, said once on stderr.
        An error that concerns the program is returned as it is."""
        ours = not isinstance(error, VfioError) and error.errno == errno.EMFILE
        if not ours and error.errno != errno.ENFILE:
            return error
        if not self._told_shortage:
            self._told_shortage = True
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            say(
                f"uvfio: the supervisor has no free descriptor (its limit is {limit}): calls of programs "
                "fail with ENFILE\n"
                "hint: raise the hard limit of open files (ulimit -Hn) before uvfio run\n"
            )
        return TooManyFiles("uvfio has no free descriptor", errno=errno.ENFILE)


def _report_exchange(event: RunEvent) -> None:
    from uvfio.core.events import MemoryExchanged

    if isinstance(event, MemoryExchanged):
        say(f"uvfio: {event}\nhint: call UNMAP_DMA before the memory is given up\n")


def negative_errno(error: OSError) -> int:
    """What a program gets for ``error``: -EIO for one without a number."""
    return -(error.errno or errno.EIO)
