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
import sys
from typing import TYPE_CHECKING, Final

from uvfio.doors.run.filter.build import reserved_range
from uvfio.doors.run.linux import syscalls as sc
from uvfio.doors.run.session.polls import Polls
from uvfio.doors.run.session.processes import Processes
from uvfio.doors.run.session.reactor import Reactor
from uvfio.doors.run.session.report import report_bug
from uvfio.doors.run.session.tokens import Tokens
from uvfio.doors.run.session.tree import Tree
from uvfio.doors.run.session.waits import Waits
from uvfio.errors import NoMemory, NoSpace, TooManyFiles
from uvfio.machine.machine import Machine
from uvfio.machine.sysfs.tree import nodes
from uvfio.uapi.seccomp import SECCOMP_IOCTL_NOTIF_SEND, seccomp_notif_resp

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvfio.doors.run.filter.rules import Request
    from uvfio.doors.run.linux.memory import Unreadable
    from uvfio.doors.run.session.events import RunEvent, RunObserver
    from uvfio.doors.run.session.processes import Process
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
    its RLIMIT_MEMLOCK).
    """

    def __init__(
        self,
        spec: MachineSpec,
        scratch: str,
        *,
        abi: str = "2011",
        inotify: int | None = None,
        memlock: int | None = None,
    ) -> None:
        self.abi = abi
        self.observers: list[RunObserver] = []
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.reserved = reserved_range(soft)
        self.reactor = Reactor(
            lambda: report_bug("a timer or an event; the run goes on without it")
        )
        self.waits = Waits(self.reactor)
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
        self.tree = Tree(scratch)
        self.tree.update(nodes(self.machine, abi))
        self.shown = self.machine.framework.generation
        self.reactor.watch(self.tokens.fileno, self.settle, wake=False)
        self.processes = Processes(
            self.reactor, self.tokens, self.reserved, install=self.install, memlock=memlock
        )
        self.listener = -1
        self.current = 0

    def close(self) -> None:
        """Release everything: files, groups, descriptors, the folder."""
        self.tokens.release_all()
        self.processes.close()
        self.tokens.close()
        self.tree.remove()
        self.reactor.close()

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
                sys.stderr.write(
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
            answer(later.value if error is None else 0, error)
            for told in later.answered:
                told(later.value if error is None else error)

        self.waits.add(later.wait, finish, alive)

    def defer_notification(self, request: Request, later: Deferred) -> None:
        """``defer`` a call that waits for its notification's answer."""
        number = request[0]
        self.defer(
            request,
            later,
            lambda value, error: self._send(number, value, error),
            lambda: sc.notif_id_valid(self.listener, number),
        )

    def _send(self, number: int, value: int, error: OSError | None) -> None:
        failed = 0 if error is None else negative_errno(error)
        try:
            answer = seccomp_notif_resp.pack(number, value, failed, 0)
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
        number = process.free_number()
        try:
            given = self.addfd(fd, number, cloexec)
        except BaseException:
            self.tokens.abort(token, fd, file)
            raise
        os.close(fd)
        process.used = True
        if given in self.reserved and process.cacheable and not process.exec_tid:
            process.files[given] = file
        return given

    def expose(self, process: Process, tid: int, number: int, file: File) -> None:
        """Put the memory of the device behind descriptor ``number``, which leads to ``file``, before it is mapped.

        Other descriptors of the same open file, in this and in other processes, keep the old token. NoMemory if the
        descriptor cannot be exchanged.
        """
        token = process.token(tid, number)
        if token is None or self.tokens.holds_memory(token):
            return
        flags = process.open_flags(tid, number)
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

    def addfd(self, fd: int, number: int | None, cloexec: bool) -> int:
        """Copy ``fd`` into the caller of the current call, as ``number`` if the program's limit allows it.

        TooManyFiles: EMFILE. NoSpace: the program was killed during the call.
        """
        try:
            return sc.addfd(self.listener, self.current, fd, number, cloexec)
        except OSError as error:
            if error.errno == errno.EBADF and number is not None:  # above the soft limit now
                return self.addfd(fd, None, cloexec)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise TooManyFiles("the program has no free descriptor") from error
            if error.errno == errno.ENOENT:
                raise NoSpace("the program was killed during the call") from error
            raise

    # -- observers and reports -----------------------------------------------------------------------

    def watch(self, observer: RunObserver, *, framework: bool = True) -> None:
        """Call ``observer`` for each event from now on. ``framework=False``: it needs none of the framework's events,
        which are not made before an observer needs them."""
        self.observers.append(observer)
        if framework:
            self.machine.framework.observer = self.emit

    def emit(self, event: RunEvent) -> None:
        """Call each observer, in the order in which they were added."""
        for observer in self.observers:
            observer(event)

    def _released(self, token: Token) -> None:
        for file in token.files:
            self.processes.forget_file(file)
            if self.observers:
                from uvfio.doors.run.session.events import FileReleased

                self.emit(FileReleased(file.name, file.device_name))

    def report_unreadable(self, tid: int, failure: Unreadable) -> None:
        """Report why a program sees EPERM in all its calls; once for each process."""
        process = self.processes.get(tid)
        if not process.complained:
            process.complained = True
            sys.stderr.write(f"uvfio: {failure}\n")
            if failure.hint:
                sys.stderr.write(f"hint: {failure.hint}\n")


def negative_errno(error: OSError) -> int:
    """What a program gets for ``error``: -EIO for one without a number."""
    return -(error.errno or errno.EIO)
